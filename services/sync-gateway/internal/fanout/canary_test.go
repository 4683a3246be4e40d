package fanout

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
)

// canaryRig is a rig with a canary.
type canaryRig struct {
	*rig
	mu   sync.Mutex
	told []model.Micros // guarded by mu
}

func withCanary(t *testing.T, p plan, f func(*canaryRig)) {
	inRig(t, p, func(r *rig) {
		c := &canaryRig{rig: r}
		ctx, stop := context.WithCancel(r.ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			r.hub.Canary(ctx, func(at model.Micros) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.told = append(c.told, at)
			})
		})
		synctest.Wait()
		f(c)
		stop()
		wg.Wait()
		if r.hub.canary != nil {
			t.Error("the canary is still there")
		}
	})
}

func (c *canaryRig) wantTold(what string, want model.Micros) {
	c.t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	last := model.Micros(-1)
	if len(c.told) > 0 {
		last = c.told[len(c.told)-1]
	}
	if last != want {
		c.t.Errorf("%s: the canary was told of %d, want %d; in all %v", what, last, want, c.told)
	}
}

func (c *canaryRig) beat(at model.Micros) {
	c.store.commit(func(x *commit) { x.n.Heartbeat = at })
}

// TestCanary: a heartbeat reaches the canary through a view that the store was
// asked for, one that is old does not come again, and no client's count moves.
func TestCanary(t *testing.T) {
	withCanary(t, plan{fixed: []string{"all"}}, func(r *canaryRig) {
		r.wantTold("at first", 0)
		r.beat(5)
		r.wantTold("a heartbeat", 5)
		before := r.store.count("Checksums")
		r.beat(6)
		r.wantTold("another", 6)
		if n := r.store.count("Checksums") - before; n != 1 {
			t.Errorf("%d reads for a heartbeat", n)
		}
		r.beat(4)
		r.wantTold("an old one", 6)
		if r.hub.Noticed() != 6 {
			t.Errorf("noticed %d", r.hub.Noticed())
		}
		// Data goes by it.
		r.store.commit(func(c *commit) { c.put("all", "1") })
		r.store.commit(func(c *commit) { c.put(canaryBucket+"1", "1"); c.n.Heartbeat = 7 })
		r.wantTold("a heartbeat with data", 7)
		if r.hub.Sessions() != 0 {
			t.Errorf("%d sessions", r.hub.Sessions())
		}
		_, k := r.start("u")
		r.want(k, "checkpoint 2 all; data all 1; checkpoint_complete 2")
		r.beat(8)
		r.wantTold("beside a client", 8)
		r.want(k, "")
		if s := r.stats; s.Sessions.Load() != 1 || s.Deliveries.Load() != 1 || s.Wakeups.Load() != 0 || s.Ops.Load() != 1 || r.hub.Sessions() != 1 {
			t.Errorf("the client's counts: %d sessions (%d), %d deliveries, %d wakeups, %d ops", s.Sessions.Load(), r.hub.Sessions(), s.Deliveries.Load(), s.Wakeups.Load(), s.Ops.Load())
		}
	})
}

// TestCanaryFallback: without notices the head is asked for, and the canary
// lives on what it says.
func TestCanaryFallback(t *testing.T) {
	withCanary(t, plan{}, func(r *canaryRig) {
		r.beat(5)
		r.store.mute = true
		r.beat(6)
		r.wantTold("no notice", 5)
		time.Sleep(2 * silence)
		r.wantTold("the head was asked for", 6)
	})
}

// TestCanaryOutage: while the store cannot be read the canary is told of nothing,
// though heartbeats are noticed; it comes back with the store, and after an hour.
func TestCanaryOutage(t *testing.T) {
	withCanary(t, plan{}, func(r *canaryRig) {
		fail := func(err error) {
			r.store.mu.Lock()
			defer r.store.mu.Unlock()
			r.store.fail = err
		}
		r.beat(5)
		r.wantTold("a heartbeat", 5)
		fail(errors.New("away"))
		r.beat(6)
		time.Sleep(time.Minute) // longer than a session's patience
		r.wantTold("no store", 5)
		if r.hub.Noticed() != 6 {
			t.Errorf("noticed %d", r.hub.Noticed())
		}
		fail(nil)
		time.Sleep(5 * time.Second)
		r.wantTold("the store is back", 6)
		time.Sleep(canaryLife + 2*canaryPause)
		r.beat(7)
		r.wantTold("another life", 7)
	})
}

// TestCanaryReads: a checkpoint counts when it is complete, and data ends the canary.
func TestCanaryReads(t *testing.T) {
	var told []model.Micros
	c := canarySink{delivered: func(at model.Micros) { told = append(told, at) }}
	var l Lines
	for _, x := range []session.Line{
		session.Checkpoint{LastOp: 1, WriteCheckpoint: 8}, session.TokenExpiresIn{Seconds: 9}, session.Complete{LastOp: 1},
		session.CheckpointDiff{LastOp: 2, WriteCheckpoint: 9},
	} {
		l.Add(line.NDJSON, x)
	}
	if err := c.Send(&l); err != nil || len(told) != 1 || told[0] != 8 {
		t.Errorf("told of %v, %v", told, err)
	}
	l.Reset()
	l.AddChunk(&chunk.Chunk{})
	if err := c.Send(&l); !errors.Is(err, errCanaryData) {
		t.Errorf("data: %v", err)
	}
}
