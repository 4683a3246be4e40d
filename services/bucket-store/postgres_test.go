package bucketstore

import (
	"errors"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// reason waits until the health says that, and returns how long it took.
func (i *instance) reason(want error) time.Duration {
	i.t.Helper()
	begin := time.Now()
	for deadline := begin.Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := i.health.Snapshot()
		if s.Ready && want == nil || !s.Ready && want != nil && errors.Is(s.Reason, want) {
			return time.Since(begin)
		}
		if time.Now().After(deadline) {
			i.t.Fatalf("not ready because of %v, want %v", s.Reason, want)
		}
	}
}

// TestTakeover: of two processes on one storage one serves, and the other does
// when it is gone.
func TestTakeover(t *testing.T) {
	pg, nc := pgtest.Start(t), bus(t)
	cfg := Config{Postgres: &Postgres{Connection: pg.Config()}}
	first := launch(t, cfg, nc)
	first.connect()
	c := first.begin("config 1")
	first.apply(c.next(10, put(1, "one", "a")))
	want := first.head(int64(c.stream)).GetHead()
	if want.GetCheckpoint().GetOp() == 0 {
		t.Fatalf("head %v", want)
	}

	second := launch(t, cfg, nc)
	second.reason(store.ErrOwned)
	want = first.head(int64(c.stream)).GetHead()
	first.stop()
	if took := second.reason(nil); took > 5*time.Second {
		t.Errorf("taken over after %s", took)
	}
	second.connect()
	if got := second.head(int64(c.stream)).GetHead(); got.GetCheckpoint().GetOp() != want.GetCheckpoint().GetOp() || got.GetApplied().GetPosition() != want.GetApplied().GetPosition() {
		t.Errorf("head %v, was %v", got, want)
	}
	session, err := second.repl.OpenSession(t.Context(), &pb.OpenSessionRequest{Stream: int64(c.stream), Holder: "r"})
	if err != nil {
		t.Fatal(err)
	}
	c.epoch = model.Epoch(session.GetEpoch())
	second.apply(c.next(12, put(3, "three", "a")))
}

// TestUnreachable: a database that is away at the start is waited for.
func TestUnreachable(t *testing.T) {
	pg, nc := pgtest.Start(t), bus(t)
	cfg := Config{Postgres: &Postgres{Connection: pg.Config()}}
	if err := pg.Crash(); err != nil {
		t.Fatal(err)
	}
	i := launch(t, cfg, nc)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s := i.health.Snapshot(); s.Started && !s.Ready && s.Reason != nil && s.Reason.Error() != "starting" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not say that storage is away")
		}
	}
	if err := pg.Up(); err != nil {
		t.Fatal(err)
	}
	i.reason(nil)
	i.connect()
	i.begin("config 1")
}
