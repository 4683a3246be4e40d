package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Filled is an empty store filled with some of everything, and what Dump is to ask
// for.
type Filled struct {
	*suite
	streams []*stream
	asked   asked
}

// Fill fills an empty store.
func Fill(t *testing.T, s store.Store) *Filled {
	t.Helper()
	f := &Filled{suite: &suite{T: t, ctx: t.Context(), s: s}, asked: asked{
		tables: []model.TableID{{7}, {9}}, lookups: []string{"l0", "l1", "l2", "l\x00", "\x00\xff", ""}, users: []string{"u", "v", "w", "u/1", "u/2", "\x00"},
		heads: []model.Position{position(0), position(3), position(5), position(55), position(99)}, present: true,
	}}
	for n := range 12 {
		f.asked.rows = append(f.asked.rows, row(n))
	}
	// One is cleared, one stopped, one active, one being made.
	gone := f.deploy()
	gone.tx(1, put(1, "gone", "a"))
	stopped := f.deploy()
	stopped.tx(2, put(2, "stopped", "a"), entry(3, "l0", "[1]"))
	active := f.deploy()
	active.now = 77
	f.work(active, 50)
	_, err := f.s.Change(f.ctx, func([]model.Stream) store.Change {
		return store.Change{Edited: map[model.StreamID]store.Edit{active.id: {Text: "edited", Content: "content", Former: "config", Filed: "filed", FromFile: true}}}
	})
	f.check(err)
	f.check(f.s.Clear(f.ctx, gone.id))
	f.check(f.s.ReportError(f.ctx, active.id, active.epoch, "an error", 5))
	for n, key := range []string{"u", "v", "u", "w", "\x00", "u"} {
		_, err := f.s.CreateWriteCheckpoints(f.ctx, position(n), []store.WriteCheckpointRequest{{UserKey: key, Head: position(n), Requested: model.Micros(n % 2 * 9)}})
		f.check(err)
	}
	made := f.deploy()
	b := &model.EvaluatedBatch{Stream: made.id, Epoch: made.epoch, Previous: made.at, End: model.Cursor{Position: position(60), Offset: 1}, Rows: []model.EvaluatedRow{put(1, "copied", "a", "b"), entry(2, "l1", "[2]")}}
	b.Meta.Progress = []model.TableProgress{{Table: model.SourceTable{ID: model.TableID{7}, Schema: "s", Name: "t"}, LastKey: []byte{0, 1}, Rows: 2, Estimate: 9}}
	made.applyBatch(b)
	f.streams = []*stream{active, made}
	return f
}

// work is n transactions of all kinds, with compactions between them. The last
// one is not complete.
func (f *Filled) work(st *stream, n int) {
	f.Helper()
	const seed = 11
	random := rand.New(rand.NewPCG(seed, seed))
	for i := 1; i <= n; i++ {
		var rows []model.EvaluatedRow
		for range 1 + random.IntN(4) {
			k := random.IntN(9)
			switch random.IntN(9) {
			case 0:
				rows = append(rows, remove(k))
			case 1:
				rows = append(rows, model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: model.TableID{9}}})
			default:
				r := put(k, fmt.Sprint("v", i), fmt.Sprint("b", random.IntN(4)), "all\x00")
				r.Puts[0].ObjectType = "other"
				r.Lookups = []model.ParameterEntry{{Lookup: fmt.Sprint("l", random.IntN(3)), Values: fmt.Sprintf("[%d]", random.IntN(5))}, {Lookup: "l\x00", Values: "[0]"}, {Lookup: "\x00\xff", Values: fmt.Sprint(i)}}
				rows = append(rows, r)
			}
		}
		st.tx(i, rows...)
		if i%10 == 0 {
			st.give(model.Cursor{Position: position(i), Offset: 1}, model.CustomCheckpoint{UserKey: "u/1", ID: uint64(i), Requested: true}, model.CustomCheckpoint{UserKey: "u/2", ID: uint64(2 * i)})
			c := st.tx(i+1, put(0, "end", "b0"))
			i++
			for _, bucket := range []string{"b0", "b1", "all\x00"} {
				if r := st.compaction(bucket, c); len(r.Moves) > 0 || r.ClearTo > 0 {
					st.replace(r)
				}
			}
			_, _, err := st.s.CompactLookups(f.ctx, st.id, c, nil, 0)
			f.check(err)
		}
	}
	st.tx(n+5, remove(8), entry(9, "l1", "[1]"))
	st.apply(model.Cursor{Position: position(n + 5), Offset: 1}, put(10, "half a transaction", "b1", "new"), entry(9, "l1", "[2]"), entry(11, "l2", "[3]"))
}

// Dump is all that anyone can see in s, as text, but for what is older than the
// checkpoints.
func (f *Filled) Dump(s store.Store) string {
	f.Helper()
	streams, err := s.Streams(f.ctx)
	f.check(err)
	text, err := json.Marshal(streams)
	f.check(err)
	return string(text) + "\n" + f.dump(s, f.asked)
}

// GoOn makes the same changes in s as ever: what was filled and what was copied
// from it become the same (D2, D4).
func (f *Filled) GoOn(s store.Store) string {
	f.Helper()
	t := &suite{T: f.T, ctx: f.ctx, s: s}
	for _, old := range f.streams {
		st := &stream{suite: t, id: old.id}
		st.open()
		st.apply(model.Cursor{Position: st.at.Position, Offset: st.at.Offset + 1}, put(1, "goes on", "a", "b0", "later"), entry(2, "l2", "[8]"))
		st.give(model.Cursor{Position: position(90)}, model.CustomCheckpoint{UserKey: "u/2", ID: 7000})
		st.tx(91, remove(0), remove(3), model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: model.TableID{7}}})
	}
	_, err := s.CreateWriteCheckpoints(f.ctx, position(3), []store.WriteCheckpointRequest{{UserKey: "u", Head: position(80)}, {UserKey: "new", Head: position(81)}})
	f.check(err)
	made := t.deploy()
	made.tx(99, put(1, "another", "a"))
	return f.Dump(s)
}

// Move copies what is in from into an import, and opens it.
func (f *Filled) Move(from store.Store, to store.Import, open func() (store.Store, error)) store.Store {
	f.Helper()
	var last store.CopyProgress
	f.check(store.Copy(f.ctx, from.(store.Export), to, func(p store.CopyProgress) { last = p }))
	f.check(to.Close())
	if last.Total == 0 || last.Done > last.Total || last.Total-last.Done > 50 {
		f.Errorf("the copy ended at %+v", last)
	}
	s, err := open()
	f.check(err)
	return s
}

// testCopy: another store of the same kind becomes the same; one that was filled
// in half is no store, and a copy into it can be made again, but not over a store.
func testCopy(t *suite) {
	if t.instance.Import == nil {
		t.Skip("this store cannot be copied")
	}
	f := Fill(t.T, t.s)
	f.s = t.s
	before := f.Dump(t.s)

	// Cut short, at several places.
	for adds := range 4 {
		to, open := t.instance.Import()
		err := store.Copy(t.ctx, t.s.(store.Export), &cut{Import: to, left: adds}, func(store.CopyProgress) {})
		if !errors.Is(err, errCut) {
			t.Fatalf("a copy that is cut short: %v", err)
		}
		t.check(to.Close())
		if s, err := open(); err == nil {
			streams, err := s.Streams(t.ctx)
			t.check(err)
			t.check(s.Close())
			t.Fatalf("what is copied in part is a store, with %d streams", len(streams))
		}
	}

	to, open := t.instance.Import()
	s := f.Move(t.s, to, open)
	if got := f.Dump(s); got != before {
		t.Errorf("copied\n%s\nwant\n%s", got, before)
	}
	want := f.GoOn(t.s)
	if got := f.GoOn(s); got != want {
		t.Errorf("after more changes, the copy is\n%s\nwant\n%s", got, want)
	}
	t.check(s.Close())
	if s, err := open(); err != nil {
		t.Error(err)
	} else {
		if got := f.Dump(s); got != want {
			t.Errorf("opened again, the copy is\n%s\nwant\n%s", got, want)
		}
		t.check(s.Close())
	}
}

var errCut = errors.New("cut short on purpose")

// cut is an import that fails.
type cut struct {
	store.Import
	left int // parts that it takes
}

func (c *cut) Add(ctx context.Context, p *store.Part) error {
	if c.left == 0 {
		return errCut
	}
	c.left--
	return c.Import.Add(ctx, p)
}
