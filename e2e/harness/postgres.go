package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres is a real server with logical replication, of one test.
type Postgres struct {
	t   testing.TB
	dir string
	at  Place // nil = the test's own network
	URL string
}

// StartPostgres starts a server in dir. It does not fsync: the tests crash its
// processes, not the machine.
func StartPostgres(t testing.TB, dir string) *Postgres {
	t.Helper()
	return StartPostgresAt(t, dir, nil)
}

// StartPostgresAt starts one in a place, whose others may connect.
func StartPostgresAt(t testing.TB, dir string, at Place) *Postgres {
	t.Helper()
	p := &Postgres{t: t, dir: filepath.Join(dir, "postgres"), at: at}
	t.Cleanup(func() { p.Stop("immediate") })
	p.Start()
	return p
}

// Use is like Driver.Use.
func (p *Postgres) Use(t testing.TB) { use(&p.t, t) }

// Start starts the server, on the port it had before if it had one.
func (p *Postgres) Start() {
	p.t.Helper()
	args := []string{"up", p.dir, "0", "-c", "fsync=off", "-c", "max_connections=200"}
	if p.at != nil {
		access := p.dir + "-access.conf"
		if err := os.WriteFile(access, []byte("local all all trust\nhost all,replication all all trust\n"), 0o644); err != nil {
			p.t.Fatal(err)
		}
		args = append(args, "-c", "listen_addresses=*", "-c", "hba_file="+access)
	}
	out, err := script(p.t, p.at, nil, "postgres", args...)
	if err != nil {
		p.t.Fatal(err)
	}
	out = strings.Replace(out, "127.0.0.1", address(p.at), 1)
	// The port stays what it was, so that whoever reads URL meanwhile is right.
	if url := strings.TrimSpace(out); url != p.URL {
		p.URL = url
	}
}

// Stop stops the server: "fast" disconnects everybody, "immediate" is a crash.
func (p *Postgres) Stop(mode string) {
	p.t.Helper()
	if _, err := script(p.t, p.at, nil, "postgres", "down", p.dir, mode); err != nil {
		p.t.Error(err)
	}
}

// Save copies the files of the stopped server, with their owner, and returns what
// puts them back.
func (p *Postgres) Save() (restore func()) {
	p.t.Helper()
	run := func(name string, args ...string) {
		p.t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			p.t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	saved := p.dir + ".saved"
	run("cp", "-a", p.dir, saved)
	return func() {
		p.t.Helper()
		run("rm", "-rf", p.dir)
		run("mv", saved, p.dir)
	}
}

// Dial returns a new connection.
func (p *Postgres) Dial(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(p.URL)
	if err != nil {
		return nil, err
	}
	if p.at != nil {
		config.DialFunc = Dial(p.at)
	}
	return pgx.ConnectConfig(ctx, config)
}

// Connect returns a connection that is closed with the test.
func (p *Postgres) Connect() *pgx.Conn {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	conn, err := p.Dial(ctx)
	if err != nil {
		p.t.Fatalf("connect to the source: %v", err)
	}
	p.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := conn.Close(ctx); err != nil {
			p.t.Logf("close a source connection: %v", err)
		}
	})
	return conn
}

// Exec runs statements on a connection of their own: one statement that has
// arguments, or several that have none.
func (p *Postgres) Exec(sql string, args ...any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 60*time.Second)
	defer cancel()
	conn, err := p.Dial(ctx)
	if err != nil {
		p.t.Fatalf("connect to the source: %v", err)
	}
	defer conn.Close(ctx)
	if len(args) == 0 {
		_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	} else {
		_, err = conn.Exec(ctx, sql, args...)
	}
	if err != nil {
		p.t.Fatalf("%s: %v", sql, err)
	}
}

// Rows returns the result of a query, every value in Postgres' text form, NULL
// as "NULL", one line a row.
func (p *Postgres) Rows(sql string) ([]string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	conn, err := p.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the source: %w", err)
	}
	defer conn.Close(ctx)
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sql, err)
	}
	var lines []string
	for _, row := range results[len(results)-1].Rows {
		fields := make([]string, len(row))
		for i, v := range row {
			fields[i] = "NULL"
			if v != nil {
				fields[i] = string(v)
			}
		}
		lines = append(lines, strings.Join(fields, "|"))
	}
	return lines, nil
}
