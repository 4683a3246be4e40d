package bucketstore

import (
	"errors"
	"testing"
	"time"

	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
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
