package postgres

import (
	"strings"
	"sync"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func TestMigrate(t *testing.T) {
	pg := pgtest.Start(t)
	c, o := pg.Config(), Options{Schema: "m"}
	_, err := Open(t.Context(), c, Options{Schema: "m", NoMigration: true})
	if err == nil || !strings.Contains(err.Error(), "sluice migrate up") {
		t.Errorf("without migrations: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 { // at once
		wg.Go(func() {
			if err := Migrate(t.Context(), c, o, false, false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := owning(t, c, Options{Schema: "m", NoMigration: true})
	defer s.Close()
	made, err := s.Change(t.Context(), func([]model.Stream) store.Change { return store.Change{New: &model.Stream{State: model.Processing}} })
	if err != nil {
		t.Fatal(err)
	}
	// Steps after the first keep what there is.
	steps, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	for _, down := range []bool{true, false} {
		for range steps[1:] {
			if err := Migrate(t.Context(), c, o, down, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Dirtiest(t.Context(), made.ID, store.DirtyQuery{MinChanges: 1}); err != nil {
		t.Errorf("a stream of before the step: %v", err)
	}
	for range steps[1:] {
		if err := Migrate(t.Context(), c, o, true, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := Migrate(t.Context(), c, o, true, false); err == nil || !strings.Contains(err.Error(), "--drop-data") {
		t.Errorf("down over data: %v", err)
	}
	if streams, err := s.Streams(t.Context()); err != nil || len(streams) != 1 {
		t.Errorf("streams after a refused down: %v %v", streams, err)
	}
	if err := Migrate(t.Context(), c, o, true, true); err != nil {
		t.Error(err)
	}
	var left int
	if err := session(t, pg).QueryRow(t.Context(), `SELECT count(*) FROM pg_class WHERE relnamespace = 'm'::regnamespace AND relkind = 'r' AND relname <> 'migrations'`).Scan(&left); err != nil || left != 0 {
		t.Errorf("%d tables are left after down: %v", left, err)
	}
	if err := Migrate(t.Context(), c, o, false, false); err != nil {
		t.Errorf("up again: %v", err)
	}
	if _, err := session(t, pg).Exec(t.Context(), `INSERT INTO m.migrations VALUES ('9999_later')`); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), c, o); err == nil || !strings.Contains(err.Error(), "later version") {
		t.Errorf("a later version's schema: %v", err)
	}
	c.Port = 1
	if _, err := Open(t.Context(), c, o); errs.CodeOf(err) != errs.S2402 || !errs.IsRetry(err) {
		t.Errorf("no server: %v", err)
	}
}
