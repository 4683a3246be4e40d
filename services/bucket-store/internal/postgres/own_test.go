package postgres

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

func TestShared(t *testing.T) {
	pg := pgtest.Start(t)
	n := 0
	storetest.RunShared(t, func(t *testing.T) func() store.Shared {
		n++
		o := Options{Schema: fmt.Sprintf("s%d", n)}
		return func() store.Shared {
			s := open(t, pg.Config(), o)
			t.Cleanup(func() { s.Close() })
			return s
		}
	})
}

// TestStalledCommit: D5. An owner that stalls in the middle of a commit, with
// the stream locked, holds up the next one no longer than any other; and what it
// has begun does not happen.
func TestStalledCommit(t *testing.T) {
	pg := pgtest.Start(t)
	first := owning(t, pg.Config(), Options{})
	defer first.Close()
	id, head := deploy(t, first)
	if err := first.Commit(t.Context(), next(id, head, 1)); err != nil {
		t.Fatal(err)
	}
	head, err := first.Head(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	begun, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- first.transaction(t.Context(), func(conn *pgx.Conn) error {
			var b pgx.Batch
			first.begin(&b)
			b.Queue(`SELECT FROM heads FOR UPDATE`)
			b.Queue(`UPDATE heads SET persisted = 1000000`)
			if err := send(t.Context(), conn, &b); err != nil {
				return err
			}
			close(begun)
			<-goOn
			_, err := conn.Exec(t.Context(), `COMMIT`)
			return err
		})
	}()
	<-begun
	second := open(t, pg.Config(), Options{})
	defer second.Close()
	begin := time.Now()
	if _, err := second.Own(t.Context(), "", func(error) {}); err != nil {
		t.Fatal(err)
	}
	if err := second.Commit(t.Context(), next(id, head, 2)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the next owner's first commit came after %s", took)
	}
	close(goOn)
	if err := <-ended; err == nil {
		t.Error("D5: the former owner's transaction was committed")
	}
	if err := first.Commit(t.Context(), next(id, head, 2)); !errors.Is(err, store.ErrNotOwner) {
		t.Errorf("D5: the former owner commits: %v", err)
	}
	whole(t, second, id, 2)
}
