package postgres

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

var errEnough = errors.New("enough")

// recorder is a sink that knows a table as copied and keeps what comes.
type recorder struct {
	rows  source.Rows
	known map[model.TableID]*model.TableProgress
	until model.Position
	held  model.Position
	want  int
}

func (r *recorder) Begin(model.Position) bool                     { return false }
func (r *recorder) Skip() bool                                    { return false }
func (r *recorder) Rows() *source.Rows                            { return &r.rows }
func (r *recorder) Added(context.Context) error                   { return nil }
func (r *recorder) Heartbeat(model.Micros)                        {}
func (r *recorder) CopiedUntil() model.Position                   { return r.until }
func (r *recorder) Hold(p model.Position)                         { r.held = max(r.held, p) }
func (r *recorder) Idle(context.Context, model.Position) error    { return nil }
func (r *recorder) Known() map[model.TableID]*model.TableProgress { return r.known }
func (r *recorder) Table(context.Context, *source.Table, []*model.SourceTable) error {
	return errors.New("the table is known")
}
func (r *recorder) Commit(context.Context, source.Transaction) error {
	if len(r.rows.Changes) >= r.want {
		return errEnough
	}
	return nil
}

// TestFill: a row that a copy may have missed since its key changed meanwhile
// has its unchanged large values even so; afterwards nothing is read for them.
func TestFill(t *testing.T) {
	pg := pgtest.Start(t)
	conn := pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, `CREATE PUBLICATION powersync FOR ALL TABLES; CREATE TABLE t (id text, n int, big text, other text, PRIMARY KEY (n, id));
		ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL; INSERT INTO t SELECT 'it''s', i, repeat('b', 5000), repeat('o', 5000) FROM generate_series(1, 4) i`)
	ctx := context.Background()
	src, err := New(pg.Config("postgres"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	stream := &model.Stream{Name: "powersync_1_abcd", Tables: []model.TablePattern{{Connection: "default", Schema: "public", Name: "t"}}}
	log, err := src.Open(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := log.Tables(ctx, nil)
	if err != nil || len(tables) != 1 {
		t.Fatal(tables, err)
	}
	pgtest.Exec(t, conn, `UPDATE t SET n = 100 WHERE n = 1; UPDATE t SET n = 200 WHERE n = 2; UPDATE t SET other = 'newer' WHERE n = 200; UPDATE t SET n = 300 WHERE n = 3; DELETE FROM t WHERE n = 300`)
	until, err := src.Position(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, conn, `UPDATE t SET n = 400 WHERE n = 4`)
	r := &recorder{known: map[model.TableID]*model.TableProgress{tables[0].ID: {Table: tables[0].SourceTable, LastKey: tables[0].Place, Done: true}}, until: until, want: 6}
	if err := log.Read(ctx, r); !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	got := updates(r)
	want := []string{"it's n large large", "it's n large newer", "it's n absent newer", "it's n absent absent", "it's n absent absent"}
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if r.held <= until {
		t.Errorf("checkpoints are held until %q only", r.held)
	}
}

// TestFillUnseen: the row is read after the update is seen, which is later than
// it is in the log.
func TestFillUnseen(t *testing.T) {
	pg := pgtest.Start(t, "synchronous_standby_names='nobody'", "synchronous_commit='local'")
	conn, waiting := pg.Connect(t, "postgres"), pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, `CREATE PUBLICATION powersync FOR ALL TABLES; CREATE TABLE t (n int PRIMARY KEY, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL; INSERT INTO t VALUES (1, repeat('b', 5000))`)
	pgtest.Exec(t, waiting, `SET synchronous_commit TO on`)
	ctx := t.Context()
	src, err := New(pg.Config("postgres"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	log, err := src.Open(ctx, &model.Stream{Name: "powersync_1_abcd", Tables: []model.TablePattern{{Connection: "default", Schema: "public", Name: "t"}}})
	if err != nil {
		t.Fatal(err)
	}
	tables, err := log.Tables(ctx, nil)
	if err != nil || len(tables) != 1 {
		t.Fatal(tables, err)
	}
	is := func(sql string) {
		t.Helper()
		for is := false; !is; {
			if err := conn.QueryRow(ctx, sql).Scan(&is); err != nil {
				t.Fatal(err)
			}
		}
	}
	done := make(chan error, 2)
	go func() {
		_, err := waiting.Exec(ctx, `UPDATE t SET n = 2`)
		done <- err
	}()
	is(`SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
	until, err := src.Position(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{known: map[model.TableID]*model.TableProgress{tables[0].ID: {Table: tables[0].SourceTable, LastKey: tables[0].Place, Done: true}}, until: until, want: 1}
	go func() {
		if err := log.Read(ctx, r); !errors.Is(err, errEnough) {
			done <- err
		}
		done <- nil
	}()
	is(`SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%virtualtransaction%' AND pid <> pg_backend_pid()`)
	pgtest.Exec(t, conn, `ALTER SYSTEM SET synchronous_standby_names = ''`)
	pgtest.Exec(t, conn, `SELECT pg_reload_conf()`)
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if got := updates(r); len(got) != 1 || got[0] != "n large" {
		t.Errorf("got %q", got)
	}
}

// updates shows the rows of the updates that came.
func updates(r *recorder) []string {
	var got []string
	for _, c := range r.rows.Changes {
		if c.Op != model.Update {
			continue
		}
		line := ""
		for _, v := range c.Row {
			switch {
			case v.Kind() == model.Absent:
				line += " absent"
			case len(v.Str()) > 100:
				line += " large"
			case v.Kind() == model.Integer:
				line += " n"
			default:
				line += " " + v.Str()
			}
		}
		got = append(got, strings.TrimSpace(line))
	}
	return got
}
