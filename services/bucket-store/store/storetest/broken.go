package storetest

import (
	"errors"
	"fmt"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
)

// broken makes every step in the store and in the memory fake, and breaks each
// durable one twice on the way: before it has stored anything, and after it has
// stored all. The store then is what the fake is, whole steps and no others (D3).
type broken struct {
	*suite
	fake  *suite
	asked asked
	// silent: steps that the store made without a durable one, so that they
	// returned nil though they were to break.
	silent int
}

// testBroken goes through every kind of step.
func testBroken(t *suite) {
	if t.instance.Break == nil {
		t.Skip("this store cannot be broken")
	}
	b := &broken{suite: t, fake: &suite{T: t.T, ctx: t.ctx, s: memory.New()}, asked: asked{
		tables: []model.TableID{{7}}, lookups: []string{"l", "m", "l\x00"}, users: []string{"u", "v", "custom"},
		heads: []model.Position{position(0), position(3), position(5), position(99)},
	}}
	for n := range 12 {
		b.asked.rows = append(b.asked.rows, row(n))
	}
	deploy := func() model.StreamID {
		b.step("deploy", true, func(s store.Store) error {
			_, err := s.Change(t.ctx, func([]model.Stream) store.Change {
				return store.Change{New: &model.Stream{Config: "config", State: model.Processing}, Prefix: "p_", Suffix: "_x"}
			})
			return err
		})
		streams, err := b.fake.s.Streams(t.ctx)
		t.check(err)
		return streams[len(streams)-1].ID
	}
	first := deploy()
	st := b.open(first)
	for n := 1; n <= 5; n++ {
		rows := []model.EvaluatedRow{put(n, fmt.Sprint("v", n), "a", fmt.Sprint("b", n%2)), put(1, "again", "a")}
		r := put(9, "lookup", "b0")
		r.Lookups = []model.ParameterEntry{{Lookup: "l", Values: fmt.Sprintf("[%d]", n)}, {Lookup: "l\x00", Values: "[0]"}}
		st.tx(n, append(rows, r)...)
	}
	st.apply(model.Cursor{Position: position(5), Offset: 1}, put(2, "half a transaction", "a", "c"))
	st.give(model.Cursor{Position: position(6)}, model.CustomCheckpoint{UserKey: "custom", ID: 4, Requested: true})
	c := st.tx(7, remove(3), model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: model.TableID{9}}})
	create := func(requests ...store.WriteCheckpointRequest) {
		b.step("create write checkpoints", true, func(s store.Store) error {
			_, err := s.CreateWriteCheckpoints(t.ctx, position(4), requests)
			return err
		})
	}
	create(store.WriteCheckpointRequest{UserKey: "u", ID: 4, Head: position(4)}, store.WriteCheckpointRequest{UserKey: "v", ID: 9, Head: position(2), Requested: 5})
	create(store.WriteCheckpointRequest{UserKey: "u", ID: 7, Head: position(9)})
	b.step("report an error", true, func(s store.Store) error { return s.ReportError(t.ctx, first, st.epoch, "slot lost", 5) })
	replace := func(r store.Replacement) {
		b.step(fmt.Sprintf("replace in %s", r.Bucket), false, func(s store.Store) error {
			_, err := s.Replace(t.ctx, first, r)
			return err
		})
	}
	for _, bucket := range []string{"a", "b0", "b1"} {
		r := st.compaction(bucket, c)
		clearTo, moves := r.ClearTo, r.Moves
		r.ClearTo, r.Finished, r.Moves = 0, false, moves[:min(1, len(moves))]
		replace(r)
		r.ClearTo, r.Finished, r.Moves = clearTo, true, moves
		replace(r)
	}
	b.step("compact lookups", false, func(s store.Store) error {
		_, _, err := s.CompactLookups(t.ctx, first, c, nil, 0)
		return err
	})
	b.step("expire requests", false, func(s store.Store) error {
		_, _, err := s.ExpireRequests(t.ctx, first, 100, nil, 0)
		return err
	})
	second := b.open(deploy())
	second.tx(8, put(1, "other", "a"), entry(2, "l", "[9]")) // becomes the active one
	b.step("clear", true, func(s store.Store) error { return s.Clear(t.ctx, first) })
	second.tx(9, model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: model.TableID{7}}})
	if got, want := t.dump(t.s, b.asked), t.dump(b.fake.s, b.asked); got != want {
		t.Errorf("at the end\n%s\nwant\n%s", got, want)
	}
	t.Logf("%d steps were made without a durable one", b.silent)
}

// open opens a session, and returns the fake's driver of the stream, whose
// commits are made in the store too.
func (b *broken) open(id model.StreamID) *stream {
	b.Helper()
	b.step("open session", true, func(s store.Store) error {
		_, err := s.OpenSession(b.ctx, id)
		return err
	})
	st := &stream{suite: b.fake, id: id, commit: b.commit}
	st.resume()
	return st
}

// commit makes a commit of the fake's ledger in both, and in the store again after
// it was persisted (D4).
func (b *broken) commit(c *ledger.Commit) error {
	b.Helper()
	b.step("commit", true, func(s store.Store) error { return s.Commit(b.ctx, c) })
	var moved *store.MovedError
	if err := b.s.Commit(b.ctx, c); !errors.As(err, &moved) || moved.Head.Applied != c.Head.Applied || moved.Head.Persisted != c.Head.Persisted {
		b.Errorf("D4: a commit made again: %v", err)
	}
	return nil
}

// step does one step in store and fake. A step that is not durable may be lost
// by a crash, wholly.
func (b *broken) step(name string, durable bool, do func(store.Store) error) {
	b.Helper()
	if !durable {
		defer b.sync()
	}
	before := b.dump(b.fake.s, b.asked)
	after := ""
	for _, persisted := range []bool{false, true} {
		b.instance.Break(persisted)
		err := b.try(do)
		if err == nil {
			b.silent++
			if durable {
				b.Errorf("%s, broken (persisted: %v), says that it is done", name, persisted)
			}
		}
		if persisted {
			b.check(do(b.fake.s))
			after = b.dump(b.fake.s, b.asked)
		}
		for _, reopened := range []bool{false, true} {
			if reopened {
				b.reopen()
			} else if !b.instance.Survives || err == nil {
				continue
			}
			got := b.dump(b.s, b.asked)
			if !persisted && !durable && err == nil && got != before {
				b.check(do(b.fake.s)) // made without a durable step, and not lost
				if after = b.dump(b.fake.s, b.asked); got != after {
					b.Fatalf("D3: %s leaves\n%s\nwant\n%s", name, got, after)
				}
				return
			}
			switch {
			case persisted && got == after, !persisted && got == before:
				continue
			case persisted && !durable && got == before:
				b.check(do(b.s)) // lost; once more
				if got := b.dump(b.s, b.asked); got != after {
					b.Fatalf("D3: %s, made again, leaves\n%s\nwant\n%s", name, got, after)
				}
				continue
			}
			b.Fatalf("D3: %s, broken (persisted: %v, reopened: %v), leaves\n%s\nbefore it\n%s\nafter it\n%s", name, persisted, reopened, got, before, after)
		}
	}
}

// sync makes a durable step, so that the crashes after it leave those before it.
func (b *broken) sync() {
	for _, s := range []store.Store{b.s, b.fake.s} {
		_, err := s.CreateWriteCheckpoints(b.ctx, position(9), []store.WriteCheckpointRequest{{UserKey: "sync", Head: position(9)}})
		b.check(err)
	}
}

// try calls do with the store. A panic is a process that dies of the failure.
func (b *broken) try(do func(store.Store) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the process has died: %v", p)
		}
	}()
	return do(b.s)
}
