package replicator

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

// TestInspect: what is told of a source without a running instance, before and
// after its fixes are pasted.
func TestInspect(t *testing.T) {
	pg := pgtest.Start(t)
	admin := pg.Connect(t, "postgres")
	pgtest.Exec(t, admin, `CREATE ROLE repl LOGIN PASSWORD 'trusted'; CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int)`)
	cfg := Config{Connection: config.Connection{Type: "postgresql", Postgres: pg.Config("postgres")}}
	cfg.Connection.Postgres.Username, cfg.Connection.Postgres.SlotNamePrefix = "repl", "my_"
	tables := []model.TablePattern{{Connection: "default", Schema: "public", Name: "a"}, {Connection: "default", Schema: "public", Name: "b"}, {Connection: "default", Schema: "public", Name: "c"}}
	inspect := func() *Inspection {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		i, err := Inspect(ctx, cfg, tables, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	text := func(ps []Problem) string {
		var out []string
		for _, p := range ps {
			out = append(out, fmt.Sprintf("%v %s %s", p.Fatal, p.Code, p.Message))
		}
		return strings.Join(out, "\n")
	}
	i := inspect()
	if !strings.HasPrefix(i.URI, "postgresql://127.0.0.1:") || strings.Contains(i.URI, "trusted") || i.Server == "" || i.Ahead.Abs() > 5*time.Second || i.Found != 2 {
		t.Errorf("%+v", i)
	}
	for want, got := range map[string]string{
		`true  role "repl" may not replicate`:                                      text(i.Settings),
		`true PSYNC_S1141 publication "powersync" does not exist`:                  text(i.Settings),
		`true  table "public"."b" has no replica identity`:                         text(i.Tables),
		`false  table public.c not found`:                                          text(i.Tables),
		`false  max_slot_wal_keep_size is unlimited: an instance that is away for`: text(i.Log),
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	for _, part := range []func(*Inspection) []Problem{
		func(i *Inspection) []Problem { return i.Settings }, func(i *Inspection) []Problem { return i.Tables }, func(i *Inspection) []Problem { return i.Log },
	} {
		for _, p := range part(inspect()) {
			// ALTER SYSTEM stands alone.
			for _, statement := range strings.SplitAfter(p.Fix, ";") {
				if statement = strings.TrimSpace(statement); statement != "" {
					pgtest.Exec(t, admin, statement)
				}
			}
		}
	}
	tables = tables[:2]
	eventually(t, 10*time.Second, "the settings are read again", func() bool {
		i = inspect()
		return len(i.Settings)+len(i.Tables)+len(i.Log) == 0
	})
	// A slot that is ours and comes near its budget; others' are not looked at.
	pgtest.Exec(t, admin, `SELECT pg_create_logical_replication_slot('my_1', 'pgoutput'), pg_create_logical_replication_slot('other', 'pgoutput')`)
	pgtest.Exec(t, admin, `ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'`)
	pgtest.Exec(t, admin, `SELECT pg_reload_conf()`)
	for range 4 {
		pgtest.Exec(t, admin, `SELECT pg_switch_wal()`)
		pgtest.Exec(t, admin, `CREATE TABLE IF NOT EXISTS x (); DROP TABLE x`)
	}
	eventually(t, 10*time.Second, "the budget is half used up", func() bool { return strings.Contains(text(inspect().Log), "replication slot my_1 has ") })
	if got := text(inspect().Log); strings.Contains(got, "other") || !strings.Contains(got, "of its WAL budget of 64 MiB left") {
		t.Error(got)
	}
	cfg.Connection.Postgres.Port = 1999
	if _, err := Inspect(context.Background(), cfg, nil, slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), "trusted") {
		t.Errorf("nobody there: %v", err)
	}
}
