package storetest

import (
	"errors"
	"fmt"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// give commits a batch of custom write checkpoints.
func (st *stream) give(end model.Cursor, given ...model.CustomCheckpoint) {
	st.Helper()
	b := &model.EvaluatedBatch{Stream: st.id, Epoch: st.epoch, Previous: st.at, End: end, Checkpoints: given}
	b.Meta.SnapshotDone = true
	st.applyBatch(b)
}

func (st *stream) wantCustom(at model.Position, want string) {
	st.Helper()
	ids, err := st.s.CustomReached(st.ctx, st.id, at, []string{"u/1", "u/2", "u"})
	st.check(err)
	if got := fmt.Sprint(ids); got != want {
		st.Errorf("custom write checkpoints at %s: %s, want %s", at, got, want)
	}
}

// testCustomCheckpoints: D1, D3, D4.
func testCustomCheckpoints(t *suite) {
	st := t.deploy()
	given := func(key string, id uint64) model.CustomCheckpoint {
		return model.CustomCheckpoint{UserKey: key, ID: id}
	}
	st.give(model.Cursor{Position: position(1)}, given("u/1", 5), given("u/2", 1))
	st.wantCustom(position(0), "[0 0 0]")
	st.wantCustom(position(1), "[5 1 0]")
	// In the middle of a transaction: not before its end.
	st.give(model.Cursor{Position: position(1), Offset: 1}, given("u/1", 7))
	st.wantCustom(position(1), "[5 1 0]")
	st.give(model.Cursor{Position: position(1), Offset: 2}, given("u/1", 6)) // lower: no effect
	t.reopen()
	st.open()
	st.wantCustom(position(1), "[5 1 0]")
	st.give(model.Cursor{Position: position(2)})
	st.wantCustom(position(2), "[7 1 0]")
	st.give(model.Cursor{Position: position(3)}, given("u/2", 9223372036854775807))
	st.wantCustom(position(2), "[7 1 0]") // INV-26: what was reached stays
	st.wantCustom(position(3), "[7 9223372036854775807 0]")

	// Another stream, and what is handed out, have their own.
	other := t.deploy()
	other.wantCustom(position(9), "[0 0 0]")
	made, err := t.s.CreateWriteCheckpoints(t.ctx, position(3), []store.WriteCheckpointRequest{{UserKey: "u/1", Head: position(3)}})
	t.check(err)
	if made[0].ID != 1 {
		t.Errorf("the first number handed out is %d", made[0].ID)
	}
	st.wantCustom(position(3), "[7 9223372036854775807 0]")
	for w, err := range t.s.Unreached(t.ctx, "") {
		t.check(err)
		if w.UserKey != "u/1" || w.ID != 1 {
			t.Errorf("%+v is unreached", w)
		}
	}

	// A commit that is refused gives nothing.
	head, err := t.s.Head(t.ctx, st.id)
	t.check(err)
	c := &ledger.Commit{
		Stream: st.id, Previous: head.Applied, PreviousOp: head.Persisted, Head: head,
		Checkpoints: []model.CustomCheckpoint{given("u/1", 100)}, CheckpointsAt: position(4),
	}
	c.Head.Epoch++
	if err := t.s.Commit(t.ctx, c); err == nil {
		t.Error("D5: a commit of another epoch is taken")
	}
	st.wantCustom(position(9), "[7 9223372036854775807 0]")

	_, err = t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{States: map[model.StreamID]model.StreamState{st.id: model.Stopped}}
	})
	t.check(err)
	t.check(t.s.Clear(t.ctx, st.id))
	if _, err := t.s.CustomReached(t.ctx, st.id, position(9), []string{"u/1"}); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("custom write checkpoints of a cleared stream: %v", err)
	}
}

// testExpireRequests: spec/05 section 8.
func testExpireRequests(t *suite) {
	st := t.deploy()
	requested := func(key string, id uint64) model.CustomCheckpoint {
		return model.CustomCheckpoint{UserKey: key, ID: id, Requested: true}
	}
	st.now = 1000
	st.give(model.Cursor{Position: position(1)}, requested("u/1", 5), requested("u/2", 5), model.CustomCheckpoint{UserKey: "u", ID: 5})
	st.now = 2000
	st.give(model.Cursor{Position: position(2)}, requested("u/2", 5), requested("u", 5)) // again: kept longer, or for ever
	st.give(model.Cursor{Position: position(2), Offset: 1})

	ask := func(key string, id uint64, at model.Micros, head int) {
		t.Helper()
		_, err := t.s.CreateWriteCheckpoints(t.ctx, position(2), []store.WriteCheckpointRequest{{UserKey: key, ID: id, Head: position(head), Requested: at}})
		t.check(err)
	}
	ask("old", 7, 1000, 2)
	ask("again", 7, 1000, 2)
	ask("again", 7, 2000, 2)
	ask("lower", 7, 1000, 2)
	ask("lower", 6, 2000, 2)
	ask("waits", 7, 1000, 3) // no checkpoint has reached it
	ask("generated", 0, 0, 2)
	ask("both", 7, 1000, 2)
	ask("both", 0, 0, 2)

	expire := func(before model.Micros, limit int) (removed uint64) {
		t.Helper()
		for next, pages := []byte(nil), 0; ; pages++ {
			n, after, err := t.s.ExpireRequests(t.ctx, st.id, before, next, limit)
			t.check(err)
			removed += n
			if next = after; next == nil {
				return removed
			}
			if pages > 100 {
				t.Fatal("no end of pages")
			}
		}
	}
	want := func(step, handedOut, custom string) {
		t.Helper()
		ids, err := t.s.Reached(t.ctx, position(9), []string{"old", "again", "lower", "waits", "generated", "both"})
		t.check(err)
		if got := fmt.Sprint(ids); got != handedOut {
			t.Errorf("%s: numbers %s, want %s", step, got, handedOut)
		}
		st.wantCustom(position(9), custom)
	}
	if n := expire(1000, 0); n != 0 {
		t.Errorf("%d requests expired that are not older", n)
	}
	want("before", "[7 7 7 7 1 8]", "[5 5 5]")
	if n := expire(1001, 2); n != 3 {
		t.Errorf("%d requests expired, want 3", n)
	}
	want("first", "[0 7 0 7 1 8]", "[0 5 5]")
	t.reopen()
	if n := expire(1<<60, 0); n != 2 {
		t.Errorf("%d requests expired, want 2", n)
	}
	want("second", "[0 0 0 7 1 8]", "[0 0 5]")
	// A client that was away begins anew.
	ask("old", 1, 3000, 2)
	want("anew", "[1 0 0 7 1 8]", "[0 0 5]")
	// To a stream of a later history, places of an earlier one are reached.
	made, err := t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{New: &model.Stream{State: model.Processing, Era: 1}, Prefix: "p_"}
	})
	t.check(err)
	later := &stream{suite: t, id: made.ID}
	later.open()
	later.tx(1)
	ask("later", 3, 1000, 2)
	_, err = t.s.CreateWriteCheckpoints(t.ctx, model.PlaceIn(1, position(1)), []store.WriteCheckpointRequest{{UserKey: "ahead", ID: 3, Head: model.PlaceIn(1, position(2)), Requested: 1000}})
	t.check(err)
	removed, _, err := t.s.ExpireRequests(t.ctx, later.id, 1001, nil, 0)
	t.check(err)
	if ids, err := t.s.Reached(t.ctx, model.PlaceIn(1, position(2)), []string{"later", "waits", "ahead"}); err != nil || removed != 2 || fmt.Sprint(ids) != "[0 0 3]" {
		t.Errorf("in a later history %d requests expired, want 2; left are %v %v", removed, ids, err)
	}
	if _, _, err := t.s.ExpireRequests(t.ctx, st.id+100, 1, nil, 0); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("requests of no stream: %v", err)
	}
}
