package fanout

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/model"
)

// TestPace: changes that come faster than a client's SDK applies checkpoints
// share some, none is late by more than the pace, and the client's own write is
// not late at all.
func TestPace(t *testing.T) {
	inRig(t, plan{fixed: []string{"b"}}, func(r *rig) {
		_, k := r.start("u")
		k.take()
		write := func() {
			r.store.commit(func(c *commit) { c.put("b", "1") })
			synctest.Wait()
		}
		completed := func() int { return strings.Count(k.take(), "checkpoint_complete") }
		for range 3 * paceBurst {
			write()
		}
		if got := completed(); got != paceBurst {
			t.Errorf("%d checkpoints at once, want %d", got, paceBurst)
		}
		time.Sleep(paceEvery)
		synctest.Wait()
		r.want(k, "checkpoint_diff 30 b; data b 20; checkpoint_complete 30")

		for range 500 { // 5 s
			write()
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(paceEvery)
		synctest.Wait()
		if got := completed(); got < 49 || got > 51 {
			t.Errorf("%d checkpoints in 5 s, want 50", got)
		}

		write()
		write()
		k.take()
		r.store.mu.Lock()
		r.store.writes["u"] = model.WriteCheckpoint{UserKey: "u", ID: 7, Head: r.store.at.Position}
		r.store.mu.Unlock()
		write()
		if got := k.take(); !strings.Contains(got, "write=7") {
			t.Errorf("the write checkpoint waits for the pace: %s", got)
		}

		time.Sleep(time.Second)
		synctest.Wait()
		k.take()
		write()
		if completed() != 1 {
			t.Error("a lone change waits")
		}
	})
}
