package lease

import (
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/model"
)

func TestLease(t *testing.T) {
	now := time.Unix(1000, 0)
	leases := New(func() time.Time { return now })
	take := func(holder, other string) {
		t.Helper()
		if got, ok := leases.Take(1, holder, time.Minute); got != other || ok != (other == "") {
			t.Errorf("%s takes: %q %v, want %q", holder, got, ok, other)
		}
	}
	renew := func(holder string, epoch, current int, want bool) {
		t.Helper()
		if got := leases.Renew(1, holder, model.Epoch(epoch), model.Epoch(current), time.Minute); got != want {
			t.Errorf("%s renews %d of %d: %v, want %v", holder, epoch, current, got, want)
		}
	}
	take("a", "")
	renew("a", 1, 1, false) // the session is not open yet
	leases.Opened(1, "a", 1)
	take("b", "a")
	renew("a", 1, 1, true)
	renew("b", 1, 1, false)
	renew("a", 1, 2, false) // D5: someone opened another session
	take("a", "")           // the holder may open again
	leases.Opened(1, "a", 2)
	renew("a", 1, 2, false)
	now = now.Add(59 * time.Second)
	take("b", "a")
	now = now.Add(time.Second)
	renew("a", 2, 2, true) // late, but nobody came
	now = now.Add(time.Minute)
	take("b", "")
	leases.Opened(1, "b", 3)
	renew("a", 2, 3, false)
	leases.Release(1, "b", 2) // an old session of b
	take("a", "b")
	leases.Release(1, "b", 3)
	renew("b", 3, 3, false)
	take("a", "")
	leases.Opened(1, "a", 4)
	leases.Revoke(1, 3) // of an earlier epoch
	renew("a", 4, 4, true)
	leases.Revoke(1, 4)
	renew("a", 4, 4, false) // D4: a broken chain ends the session
	take("b", "")
}

// TestRestart: a new table knows no lease, the epoch says who was last.
func TestRestart(t *testing.T) {
	leases := New(func() time.Time { return time.Unix(1000, 0) })
	if leases.Renew(1, "a", 4, 5, time.Minute) {
		t.Error("an old epoch is renewed")
	}
	if !leases.Renew(1, "a", 5, 5, time.Minute) {
		t.Error("the last holder is not known after a restart")
	}
	if other, ok := leases.Take(1, "b", time.Minute); ok || other != "a" {
		t.Errorf("b takes what a has renewed: %q %v", other, ok)
	}
	leases.Revoke(2, 7)
	if leases.Renew(2, "a", 7, 7, time.Minute) {
		t.Error("a revoked epoch is renewed after a restart")
	}
}
