package fanout

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestDrainCheckpoint: a session that drains tells its checkpoint to the end and
// begins no other, however long that takes, unless it is asked again.
func TestDrainCheckpoint(t *testing.T) {
	inRig(t, plan{fixed: []string{"all", "$user"}}, func(r *rig) {
		hold := make(chan struct{})
		idle, i := r.start("idle")
		i.take()
		r.store.before = func(call string) {
			if call == "Ops" {
				<-hold
			}
		}
		r.store.commit(func(c *commit) { c.put("busy", "1") })
		busy, b := r.start("busy")
		time.Sleep(2 * linger)
		r.want(b, "checkpoint 1 all busy")
		r.hub.End(ErrDraining, time.Second)
		time.Sleep(2 * time.Second)
		r.store.commit(func(c *commit) { c.put("all", "2") })
		synctest.Wait()
		if ended, err := i.end(); !ended || err != nil {
			t.Errorf("the idle one: ended %v, %v", ended, err)
		}
		<-idle.Done()
		if ended, _ := b.end(); ended {
			t.Error("it ended in the middle of a checkpoint")
		}
		close(hold)
		r.want(b, "data busy 1; checkpoint_complete 1")
		<-busy.Done()
		if ended, err := b.end(); !ended || err != nil {
			t.Errorf("the busy one: ended %v, %v", ended, err)
		}
		if _, err := r.hub.Open(r.ctx, Request{}); err == nil {
			t.Error("a session was taken")
		}
	})
	inRig(t, plan{fixed: []string{"$user"}}, func(r *rig) {
		hold := make(chan struct{})
		r.store.before = func(call string) {
			if call == "Ops" {
				<-hold
			}
		}
		r.store.commit(func(c *commit) { c.put("busy", "1") })
		busy, b := r.start("busy")
		r.hub.End(ErrDraining, time.Second)
		time.Sleep(2 * time.Second)
		r.hub.End(ErrDraining, 0)
		<-busy.Done()
		if _, err := b.end(); err != nil || !errors.Is(busy.summary.Reason, ErrDraining) {
			t.Errorf("%v, %v", err, busy.summary.Reason)
		}
		close(hold)
	})
}
