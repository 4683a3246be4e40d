package bucketstore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pebble"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/internal/postgres"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

type closer interface {
	store.Store
	store.Export
}

// stored opens the storage of cfg.
func stored(t *testing.T, cfg Config) closer {
	t.Helper()
	var s closer
	var err error
	if cfg.Postgres != nil {
		var pg *postgres.Store
		if pg, err = postgres.Open(t.Context(), cfg.Postgres.Connection, cfg.Postgres.options(nil)); err == nil {
			s = pg
			_, err = pg.Own(t.Context(), "", func(err error) { t.Log(err) })
		}
	} else {
		s, err = pebble.Open(cfg.Dir, pebble.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// look opens the storage of cfg for do.
func look(t *testing.T, cfg Config, do func(store.Store) string) string {
	t.Helper()
	s := stored(t, cfg)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	return do(s)
}

// TestCopy: from one kind of storage to another and back everything stays as it
// is, and goes on the same.
func TestCopy(t *testing.T) {
	pg := pgtest.Start(t)
	log := slog.New(slog.DiscardHandler)
	silent := func(CopyProgress) {}
	first := Config{Dir: filepath.Join(t.TempDir(), "store")}
	second := Config{Postgres: &Postgres{Connection: pg.Config(), Schema: "copy of it"}}
	third := Config{Dir: filepath.Join(t.TempDir(), "not there", "store")}

	s := stored(t, first)
	f := storetest.Fill(t, s)
	want := f.Dump(s)
	if _, err := Copy(t.Context(), first, second, log, silent); errs.CodeOf(err) != errs.S2402 || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a copy of a storage in use: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), third, second, log, silent); errs.CodeOf(err) != errs.S2001 || !strings.Contains(err.Error(), "no storage to copy") {
		t.Errorf("a copy of nothing: %v", err)
	}
	if _, err := Copy(t.Context(), first, first, log, silent); errs.CodeOf(err) != errs.S2001 {
		t.Errorf("a copy of a storage to itself: %v", err)
	}

	from := first
	for _, to := range []Config{second, third} {
		// Cut short: no bucket-store runs on it, and it is no hindrance to another.
		ctx, cut := context.WithCancel(t.Context())
		_, err := Copy(ctx, from, to, log, func(p CopyProgress) {
			if p.Doing == "operations" {
				cut()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("a copy that is cut short: %v", err)
		}
		if to.Postgres != nil {
			err := Run(t.Context(), to, Conns{}, service.Env{Log: log, Health: &service.Health{}})
			if errs.CodeOf(err) != errs.S2404 || !strings.Contains(err.Error(), "copy again") {
				t.Errorf("bucket-store on half a copy: %v", err)
			}
		} else if _, err := os.Stat(to.Dir); err == nil {
			t.Error("half a copy is where the store will be")
		}
		c, err := Copy(t.Context(), from, to, log, silent)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Streams) != 3 || c.Items == 0 || !strings.Contains(c.Streams[1], " ACTIVE at ") {
			t.Errorf("copied %+v", c)
		}
		if got := look(t, to, f.Dump); got != want {
			t.Errorf("%s has\n%s\nwant\n%s", c.To, got, want)
		}
		if _, err := Copy(t.Context(), from, to, log, silent); errs.CodeOf(err) != errs.S2001 || !strings.Contains(err.Error(), "something already") {
			t.Errorf("a copy over a store: %v", err)
		}
		from = to
	}
	if got := look(t, second, f.Dump); got != want {
		t.Errorf("after it was copied, it has\n%s\nwant\n%s", got, want)
	}
	want = look(t, first, f.GoOn)
	for _, cfg := range []Config{second, third} {
		if got := look(t, cfg, f.GoOn); got != want {
			t.Errorf("after more changes, it has\n%s\nwant\n%s", got, want)
		}
	}

	// Somebody has the database.
	owner := stored(t, second)
	defer owner.Close()
	fourth := Config{Dir: filepath.Join(t.TempDir(), "store")}
	for _, way := range [][2]Config{{second, fourth}, {first, second}} {
		if _, err := Copy(t.Context(), way[0], way[1], log, silent); errs.CodeOf(err) != errs.S2402 || !strings.Contains(err.Error(), "in use") {
			t.Errorf("a copy of, or to, a database in use: %v", err)
		}
	}
}

// TestCopyIDs: stream ids that a restored store skips are skipped in the copy.
func TestCopyIDs(t *testing.T) {
	pg := pgtest.Start(t)
	dir := t.TempDir()
	s := stored(t, Config{Dir: filepath.Join(dir, "store")}).(*pebble.Store)
	storetest.Fill(t, s)
	if _, err := s.Backup(filepath.Join(dir, "backup")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	restored := Config{Dir: filepath.Join(dir, "restored")}
	if _, err := Restore(restored, filepath.Join(dir, "backup"), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	way := []Config{restored, {Postgres: &Postgres{Connection: pg.Config()}}, {Dir: filepath.Join(dir, "back")}}
	for i := range way[1:] {
		if _, err := Copy(t.Context(), way[i], way[i+1], slog.New(slog.DiscardHandler), func(CopyProgress) {}); err != nil {
			t.Fatal(err)
		}
	}
	for _, cfg := range way {
		s := stored(t, cfg)
		defer s.Close()
		made, err := s.Change(t.Context(), func([]model.Stream) store.Change {
			return store.Change{New: &model.Stream{State: model.Processing}}
		})
		if err != nil || made.ID != 1005 {
			t.Errorf("the next stream is %+v %v", made, err)
		}
	}
}

// TestCopyMidway: where Postgres does not have the text of a lookup that readers
// have, the copy is refused rather than made without it.
func TestCopyMidway(t *testing.T) {
	pg, nc := pgtest.Start(t), bus(t)
	cfg := Config{Postgres: &Postgres{Connection: pg.Config()}}
	i := launch(t, cfg, nc)
	i.connect()
	c := i.begin("config 1")
	with := put(1, "one", "a")
	with.Lookups = []model.ParameterEntry{{Lookup: "l", Values: "[1]"}}
	i.apply(c.next(6, with))
	half := c.next(6, put(1, "one", "a"))
	half.End.Offset = 1
	i.apply(half)
	i.stop()
	to := Config{Dir: filepath.Join(t.TempDir(), "store")}
	copyIt := func() error {
		_, err := Copy(t.Context(), cfg, to, slog.New(slog.DiscardHandler), func(CopyProgress) {})
		return err
	}
	if err := copyIt(); !errors.Is(err, postgres.ErrMidway) {
		t.Fatalf("a copy in the middle of a transaction: %v", err)
	}
	conn, err := pgx.Connect(t.Context(), pg.URL.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `UPDATE sluice.heads SET checkpoint = persisted`); err != nil { // its end
		t.Fatal(err)
	}
	if err := copyIt(); err != nil {
		t.Error(err)
	}
}
