// Package pgtest starts Postgres servers for tests: each with its own folder
// and port, stopped when the test ends.
package pgtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// binaries is where Postgres is installed: $SLUICE_PG_BIN, or what
// scripts/postgres finds or installs.
func binaries(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	out, err := exec.Command(filepath.Join(filepath.Dir(file), "../../../../scripts/postgres"), "bin").Output()
	if err != nil {
		t.Fatalf("find Postgres: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// Server is a running Postgres.
type Server struct {
	Port int
	dir  string
	bin  string
}

// Start starts a server with logical replication. A test that needs it fails
// without it.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	bin := binaries(t)
	dir, err := os.MkdirTemp("", "sluice-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{Port: freePort(t), dir: dir, bin: bin}
	if os.Getuid() == 0 {
		if out, err := exec.Command("chown", "postgres", dir).CombinedOutput(); err != nil {
			t.Fatalf("chown: %v: %s", err, out)
		}
	}
	s.run(t, "initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	conf := append([]string{
		"port=" + strconv.Itoa(s.Port), "listen_addresses='127.0.0.1'", "unix_socket_directories='" + dir + "'",
		"wal_level=logical", "max_replication_slots=20", "max_wal_senders=20", "fsync=off", "max_wal_size='4GB'", "shared_buffers='128MB'",
	}, settings...)
	s.run(t, "sh", "-c", `printf '%s\n' "$@" >>`+s.data()+"/postgresql.conf", "sh", strings.Join(conf, "\n"))
	s.StartAgain(t)
	t.Cleanup(func() {
		if out, err := s.command("pg_ctl", "-D", s.data(), "-m", "immediate", "-w", "stop").CombinedOutput(); err != nil && !strings.Contains(string(out), "PID file") {
			t.Errorf("stop Postgres: %v: %s", err, out)
		}
	})
	return s
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	path := filepath.Join(s.bin, name)
	if name == "sh" {
		path = "sh"
	}
	if os.Getuid() == 0 {
		return exec.Command("runuser", append([]string{"-u", "postgres", "--", path}, args...)...)
	}
	return exec.Command(path, args...)
}

func (s *Server) run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := s.command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// StartAgain starts the server after Stop, and returns when it takes writes: the
// end of a recovery comes after pg_ctl has seen it accept connections.
func (s *Server) StartAgain(t testing.TB) {
	t.Helper()
	s.run(t, "pg_ctl", "-D", s.data(), "-w", "-t", "60", "-l", filepath.Join(s.dir, "log"), "start")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URI("postgres")+"?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for recovering := true; recovering; {
		if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovering); err != nil {
			t.Fatal(err)
		}
	}
}

// Stop stops the server, gracefully or as a crash would.
func (s *Server) Stop(t testing.TB, mode string) {
	t.Helper()
	s.run(t, "pg_ctl", "-D", s.data(), "-m", mode, "-w", "stop")
}

// Save returns a copy of a stopped server's files, for Restore.
func (s *Server) Save(t testing.TB) (saved string) {
	t.Helper()
	saved = filepath.Join(s.dir, fmt.Sprint("saved", rand.Uint32()))
	s.run(t, "sh", "-c", `cp -a "$1" "$2"`, "sh", s.data(), saved)
	return saved
}

// Restore puts the files of a stopped server back to what was saved.
func (s *Server) Restore(t testing.TB, saved string) {
	t.Helper()
	s.run(t, "sh", "-c", `rm -rf "$1" && mv "$2" "$1"`, "sh", s.data(), saved)
}

// Recover makes a stopped server end a recovery when it is started: it then is
// on a new timeline, as after a promotion.
func (s *Server) Recover(t testing.TB) {
	t.Helper()
	s.run(t, "sh", "-c", `touch "$1/recovery.signal" && echo "restore_command='false'" >>"$1/postgresql.conf"`, "sh", s.data())
}

// URI of a database, as user postgres.
func (s *Server) URI(database string) string {
	return fmt.Sprintf("postgresql://postgres:trusted@127.0.0.1:%d/%s", s.Port, database)
}

// Config of a connection to a database, as user postgres.
func (s *Server) Config(database string) *config.Postgres {
	return &config.Postgres{Hostname: "127.0.0.1", Port: s.Port, Username: "postgres", Password: "trusted", Database: database, SSLMode: "disable", MaxPoolSize: 8}
}

// Connect connects to a database until the test ends.
func (s *Server) Connect(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URI(database)+"?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// Exec runs statements separated by semicolons.
func Exec(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%v in: %.300s", err, sql)
	}
}

// freePort is below the ports that the system gives to outgoing connections: one
// of these could otherwise take that of a server that is being restarted.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 20_000 + rand.IntN(12_000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}
