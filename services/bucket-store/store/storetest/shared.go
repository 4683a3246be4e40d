package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// RunShared runs the contract of store.Shared. open makes an empty storage, and
// returns what opens it as another process would; it cleans up after itself.
func RunShared(t *testing.T, open func(*testing.T) func() store.Shared) {
	for _, c := range []struct {
		name string
		test func(*shared)
	}{
		{"Fenced", testFenced}, {"Expires", testExpires}, {"Keeps", testKeeps}, {"Seen", testSeen}, {"Race", testRace},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(&shared{T: t, ctx: t.Context(), process: open(t)}) })
	}
}

type shared struct {
	*testing.T
	ctx     context.Context
	process func() store.Shared
}

func (t *shared) check(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// takeover bounds how long an owner that is gone is waited for, as a client
// feels it; the contract says 4 s.
const takeover = 5 * time.Second

// own makes s the owner, and returns how long that took.
func (t *shared) own(s store.Shared, address string) (store.Owner, time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.ctx, 4*takeover)
	defer cancel()
	begin := time.Now()
	o, err := s.Own(ctx, address, func(reason error) {
		if !errors.Is(reason, store.ErrOwned) {
			t.Errorf("waits because of %v", reason)
		}
	})
	t.check(err)
	return o, time.Since(begin)
}

func (t *shared) overview(s store.Shared) store.Overview {
	t.Helper()
	v, err := s.Overview(t.ctx)
	t.check(err)
	return v
}

// on returns a suite that works with s.
func (t *shared) on(s store.Store) *suite { return &suite{T: t.T, ctx: t.ctx, s: s} }

// refused holds that s can write nothing, and that it changes nothing.
func (t *shared) refused(s store.Store, st *stream, lookups bool) {
	t.Helper()
	before, err := s.Streams(t.ctx)
	t.check(err)
	head, err := s.Head(t.ctx, st.id)
	t.check(err)
	change := store.Change{New: &model.Stream{State: model.Stopped}}
	writes := map[string]func() error{
		"Change": func() error {
			_, err := s.Change(t.ctx, func([]model.Stream) store.Change { return change })
			return err
		},
		"OpenSession": func() error { _, err := s.OpenSession(t.ctx, st.id); return err },
		"ReportError": func() error { return s.ReportError(t.ctx, st.id, head.Epoch, "late", 1) },
		"Clear":       func() error { return s.Clear(t.ctx, st.id) },
		"Commit":      func() error { return s.Commit(t.ctx, st.bulk(head, []string{"a", "late"}, 3)) },
		"CreateWriteCheckpoints": func() error {
			_, err := s.CreateWriteCheckpoints(t.ctx, head.Checkpoint.Position, []store.WriteCheckpointRequest{{UserKey: "late"}})
			return err
		},
		"Replace": func() error {
			_, err := s.Replace(t.ctx, st.id, store.Replacement{Bucket: "a", Checkpoint: head.Checkpoint.Op, Finished: true})
			return err
		},
		"ExpireRequests": func() error { _, _, err := s.ExpireRequests(t.ctx, st.id, 1, nil, 0); return err },
	}
	if lookups {
		writes["CompactLookups"] = func() error {
			_, _, err := s.CompactLookups(t.ctx, st.id, head.Checkpoint.Op, nil, 100)
			return err
		}
	}
	for name, write := range writes {
		if err := write(); !errors.Is(err, store.ErrNotOwner) {
			t.Errorf("D5: %s by a process that is not the owner: %v", name, err)
		}
	}
	after, err := s.Streams(t.ctx)
	t.check(err)
	if len(after) != len(before) || after[0].Head != before[0].Head || after[0].State != before[0].State {
		t.Errorf("D5: refused writes left %+v, was %+v", after, before)
	}
}

// testFenced: who is not yet, or no more, the owner writes nothing.
func testFenced(t *shared) {
	first, second := t.process(), t.process()
	if _, err := first.Change(t.ctx, func([]model.Stream) store.Change { return store.Change{New: &model.Stream{}} }); !errors.Is(err, store.ErrNotOwner) {
		t.Errorf("a change by nobody's owner: %v", err)
	}
	if v := t.overview(first); v.Owned || v.Address != "" {
		t.Errorf("before there was an owner: %+v", v)
	}
	owner, _ := t.own(first, "one:1")
	st := t.on(first).deploy()
	st.tx(1, put(1, "x", "a"), entry(2, "l", "[1]"))
	st.tx(2, put(1, "y", "a"), entry(2, "l", "[2]"))
	t.refused(second, st, true)
	if v := t.overview(second); !v.Owned || v.Address != "one:1" || v.Epoch == 0 {
		t.Errorf("the owner is %+v", v)
	}

	t.check(owner.Release())
	t.check(owner.Release())
	t.refused(first, st, true)
	epoch := t.overview(second).Epoch
	next, took := t.own(second, "two:2")
	if took > takeover/2 {
		t.Errorf("taken over after %s from one that released", took)
	}
	if v := t.overview(first); v.Epoch <= epoch || v.Address != "two:2" {
		t.Errorf("the owner is %+v, epoch %d before it", v, epoch)
	}
	if err := owner.Keep(t.ctx); !errors.Is(err, store.ErrNotOwner) {
		t.Errorf("Keep of a former owner: %v", err)
	}
	t.refused(first, st, true)
	// The session goes on: it is the replicator's, not the owner's.
	st.s = second
	st.tx(3, put(1, "z", "a"))
	t.check(next.Release())

	// One that was the owner before may be it again.
	_, _ = t.own(first, "one:1")
	st.s = first
	st.tx(4, put(1, "zz", "a"))
	t.refused(second, st, true)
}

// testExpires: an owner that is stalled is replaced, and can do no harm.
func testExpires(t *shared) {
	first, second := t.process(), t.process()
	owner, _ := t.own(first, "one:1")
	st := t.on(first).deploy()
	st.tx(1, put(1, "x", "a"))
	_, took := t.own(second, "two:2")
	if took > takeover {
		t.Errorf("taken over after %s", took)
	}
	t.refused(first, st, false)
	if err := owner.Keep(t.ctx); !errors.Is(err, store.ErrNotOwner) {
		t.Errorf("Keep of a former owner: %v", err)
	}
	t.check(owner.Release()) // says nothing to the new one
	if v := t.overview(first); !v.Owned || v.Address != "two:2" {
		t.Errorf("the owner is %+v", v)
	}
	st.s = second
	st.tx(2, put(1, "y", "a"))
}

// testKeeps: an owner that renews its right stays one.
func testKeeps(t *shared) {
	first, second := t.process(), t.process()
	owner, _ := t.own(first, "one:1")
	ctx, cancel := context.WithCancel(t.ctx)
	kept := make(chan error, 1)
	go func() { kept <- owner.Keep(ctx) }()
	waiting, end := context.WithTimeout(t.ctx, takeover)
	defer end()
	if _, err := second.Own(waiting, "two:2", func(error) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another became the owner: %v", err)
	}
	cancel()
	if err := <-kept; err != nil {
		t.Errorf("Keep: %v", err)
	}
	t.check(owner.Release())
}

// testSeen: what the owner was told is durable, the others read.
func testSeen(t *shared) {
	first, second := t.process(), t.process()
	t.own(first, "one:1")
	empty := t.overview(second)
	st := t.on(first).deploy()
	made := t.overview(second)
	if made.Catalog == empty.Catalog || len(made.Heads) != 1 {
		t.Errorf("after a deploy %+v, before it %+v", made, empty)
	}
	other := &stream{suite: t.on(second), id: st.id}
	st.tx(1, put(1, "w", "a")) // the stream becomes the active one
	if active := t.overview(second); active.Catalog == made.Catalog {
		t.Error("an activation does not change the catalog")
	} else {
		made = active
	}
	for n := range 20 {
		op := st.tx(n+2, put(1, "x", "a"), put(n, "y", "b"), entry(n, "l", "[]"))
		v := t.overview(second)
		if v.Heads[st.id] != st.ledger.Head() {
			t.Fatalf("commit %d: the overview's head is %+v, want %+v", n, v.Heads[st.id], st.ledger.Head())
		}
		if v.Catalog != made.Catalog {
			t.Fatalf("commit %d changed the catalog", n)
		}
		head, err := second.Head(t.ctx, st.id)
		t.check(err)
		if head.Checkpoint.Op != op {
			t.Fatalf("commit %d: the head's checkpoint is %s, want %s", n, head.Checkpoint.Op, op)
		}
		other.wantSums(op, "a", "b")
		st.wantSums(op, "a", "b")
		if got, want := other.sums(op, "a", "b"), st.sums(op, "a", "b"); got[0] != want[0] || got[1] != want[1] || got[0].Count == 0 {
			t.Fatalf("commit %d: sums %v, the owner's %v", n, got, want)
		}
		if got, want := other.lookups(op, "l"), st.lookups(op, "l"); got != want {
			t.Fatalf("commit %d: lookups %s, the owner's %s", n, got, want)
		}
	}
	_, err := first.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{Edited: map[model.StreamID]store.Edit{st.id: {Text: "edited"}}}
	})
	t.check(err)
	edited := t.overview(second)
	if edited.Catalog == made.Catalog {
		t.Error("an edit does not change the catalog")
	}
	_, err = first.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{States: map[model.StreamID]model.StreamState{st.id: model.Stopped}}
	})
	t.check(err)
	t.check(first.Clear(t.ctx, st.id))
	if v := t.overview(second); v.Catalog == edited.Catalog || len(v.Heads) != 0 {
		t.Errorf("after the stream was cleared %+v", v)
	}
	if _, err := second.Head(t.ctx, st.id); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("head of a cleared stream: %v", err)
	}
}

// testRace: of many that want to, one becomes the owner.
func testRace(t *shared) {
	ctx, cancel := context.WithCancel(t.ctx)
	const all = 4
	owners := make(chan error, all) // nil: it became the owner
	for range all {
		s := t.process()
		go func() {
			_, err := s.Own(ctx, "any:1", func(error) {})
			owners <- err
		}()
	}
	if err := <-owners; err != nil {
		t.Fatal(err)
	}
	// The winner does not renew: the next one follows when its time is over.
	select {
	case err := <-owners:
		t.Errorf("another one at the same time: %v", err)
	case <-time.After(time.Second):
	}
	cancel()
	for range all - 1 {
		if err := <-owners; !errors.Is(err, context.Canceled) {
			t.Errorf("another one: %v", err)
		}
	}
}
