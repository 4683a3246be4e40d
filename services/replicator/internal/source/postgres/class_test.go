package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// TestClass: how soon to try again after what a real server, or the way to it,
// answers (spec/04 §1.2, §2.1).
func TestClass(t *testing.T) {
	pg := pgtest.Start(t)
	conn := pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, `CREATE PUBLICATION powersync FOR ALL TABLES; CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE closed NOLOGIN`)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := lis.Addr().(*net.TCPAddr).Port
	lis.Close()
	stream := &model.Stream{Name: "powersync_1_abcd", Tables: []model.TablePattern{{Connection: "default", Schema: "public", Name: "t"}}}
	open := func(t *testing.T, change func(user, database *string, port *int)) (*Source, error) {
		c := pg.Config("postgres")
		if change != nil {
			change(&c.Username, &c.Database, &c.Port)
		}
		s, err := New(c, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		_, err = s.Check(ctx)
		return s, err
	}
	read := func(t *testing.T, between string) (*Source, error) {
		s, err := open(t, nil)
		if err != nil {
			t.Fatal(err)
		}
		log, err := s.Open(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		pgtest.Exec(t, conn, between)
		return s, log.Read(ctx, &recorder{known: map[model.TableID]*model.TableProgress{}, want: 100})
	}
	for name, test := range map[string]struct {
		fail func(t *testing.T) (*Source, error)
		want source.ErrorClass
	}{
		"refused": {func(t *testing.T) (*Source, error) { return open(t, func(_, _ *string, port *int) { *port = refused }) }, source.Restarting},
		"no login": {func(t *testing.T) (*Source, error) {
			return open(t, func(user, _ *string, _ *int) { *user = "closed" })
		}, source.Denied},
		"no database": {func(t *testing.T) (*Source, error) {
			return open(t, func(_, name *string, _ *int) { *name = "nowhere" })
		}, source.Other},
		"no such host": {func(t *testing.T) (*Source, error) {
			s, err := open(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			return s, fmt.Errorf("connect: %w", &net.DNSError{Err: "no such host", Name: "db", IsNotFound: true})
		}, source.Unreachable},
		"ended by the operator": {func(t *testing.T) (*Source, error) {
			s, err := open(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.pool.Exec(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
			return s, err
		}, source.Restarting},
		"slot dropped": {func(t *testing.T) (*Source, error) {
			return read(t, `SELECT pg_drop_replication_slot('powersync_1_abcd')`)
		}, source.Lost},
		"publication dropped": {func(t *testing.T) (*Source, error) {
			s, err := read(t, `DROP PUBLICATION powersync; INSERT INTO t VALUES (1)`)
			pgtest.Exec(t, conn, `CREATE PUBLICATION powersync FOR ALL TABLES`)
			if err := s.Remove(ctx, stream); err != nil {
				t.Error(err)
			}
			return s, err
		}, source.Lost},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := test.fail(t)
			if err == nil {
				t.Fatal("no error")
			}
			if got := s.Class(err); got != test.want {
				t.Errorf("class %d, want %d: %v", got, test.want, err)
			}
		})
	}
}
