package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
)

func (st *stream) replace(r store.Replacement) uint64 {
	st.Helper()
	removed, err := st.s.Replace(st.ctx, st.id, r)
	st.check(err)
	return removed
}

func testReplace(t *suite) {
	st := t.deploy()
	for n := range 4 {
		st.tx(n+1, put(1, fmt.Sprint("v", n), "a"), put(2, "w", "b"))
	}
	c := st.tx(9, remove(1), put(3, "stays", "a")) // a: 1 3 5 7 PUT, 9 REMOVE 1, 10 PUT 3
	st.wantOps("a", 0, c, "1 PUT 1 v0; 3 PUT 1 v1; 5 PUT 1 v2; 7 PUT 1 v3; 9 REMOVE 1; 10 PUT 3 stays")
	before := st.sums(c, "a", "b")
	if n := st.replace(store.Replacement{Bucket: "a", Checkpoint: c, Moves: []store.Move{{ID: 1, Target: 9}, {ID: 3, Target: 9}}}); n != 0 {
		t.Errorf("moves removed %d ops", n)
	}
	st.wantOps("a", 0, c, "1 MOVE ->9; 3 MOVE ->9; 5 PUT 1 v2; 7 PUT 1 v3; 9 REMOVE 1; 10 PUT 3 stays")
	for upTo := range c + 1 {
		st.wantSums(upTo, "a", "b") // a MOVE keeps id and checksum
	}
	moves := []store.Move{{ID: 3, Target: 9}, {ID: 5, Target: 9}, {ID: 7, Target: 9}} // 3: done before
	for n, want := range []uint64{3, 0} {
		if removed := st.replace(store.Replacement{Bucket: "a", Checkpoint: c, Moves: moves, ClearTo: 7, Finished: true}); removed != want {
			t.Errorf("clear removed %d ops, want %d", removed, want)
		}
		moves = nil
		if n == 0 {
			after := st.sums(c, "a", "b")
			before[0].Count -= 3
			if !slices.Equal(after, before) {
				t.Errorf("INV-17: checksums %v, were %v", after, before)
			}
		}
	}
	more := st.tx(10, put(3, "later", "a"), put(2, "w", "b"))
	for range 2 {
		st.wantOps("a", 0, c, "7 CLEAR ->9; 9 REMOVE 1; 10 PUT 3 stays")
		st.wantOps("a", 0, 7, "7 CLEAR ->9")
		for upTo := model.OpID(7); upTo <= more; upTo++ {
			st.wantSums(upTo, "a", "b")
		}
		// INV-19: below the CLEAR there is nothing right to read.
		st.wantOps("a", 0, 6, "invalidated")
		if s := st.sums(6, "b", "a"); s != nil {
			t.Errorf("checksums below the CLEAR: %v", s)
		}
		st.wantSums(6, "b")
		t.reopen()
	}
	st.open()
	if removed := st.replace(store.Replacement{Bucket: "a", Checkpoint: more, Moves: []store.Move{{ID: 10, Target: more - 1}}, ClearTo: 10}); removed != 2 {
		t.Errorf("second clear removed %d", removed)
	}
	st.wantOps("a", 0, more, fmt.Sprintf("10 CLEAR ->%d; %d PUT 3 later", more-1, more-1))
	st.wantSums(more, "a")
	d, err := t.s.Dirtiest(t.ctx, st.id, store.DirtyQuery{Only: []string{"a", "nothing"}})
	t.check(err)
	if len(d) != 1 || d[0].Ops != 2 {
		t.Errorf("dirtiest %+v", d)
	}
}

func testReplaceRefused(t *suite) {
	st := t.deploy()
	c := st.tx(1, put(1, "x", "a"), put(2, "y", "a"), put(1, "z", "a"), put(1, "z", "b"), remove(2)) // a: 1 PUT 1, 2 PUT 2, 3 PUT 1, 4 REMOVE 1; b: 5; a: 6 REMOVE 2
	st.apply(model.Cursor{Position: position(1), Offset: 1}, put(7, "invisible", "a"))
	before := st.ops("a", 0, c)
	for name, r := range map[string]store.Replacement{
		"no such bucket":       {Bucket: "c", Checkpoint: c, ClearTo: 1},
		"above the checkpoint": {Bucket: "a", Checkpoint: c + 1},
		"clear above":          {Bucket: "a", Checkpoint: c, ClearTo: c + 1},
		"clears a PUT":         {Bucket: "a", Checkpoint: c, ClearTo: 4, Moves: []store.Move{{ID: 1, Target: 4}, {ID: 3, Target: 4}}},
		"not there":            {Bucket: "a", Checkpoint: c, Moves: []store.Move{{ID: 5, Target: 6}}},
		"clear to nothing":     {Bucket: "a", Checkpoint: c, ClearTo: 5, Moves: []store.Move{{ID: 1, Target: 4}, {ID: 3, Target: 4}, {ID: 2, Target: 6}}},
		"target is older":      {Bucket: "a", Checkpoint: c, Moves: []store.Move{{ID: 3, Target: 1}}},
		"another row":          {Bucket: "a", Checkpoint: c, Moves: []store.Move{{ID: 1, Target: 2}}},
		"named twice":          {Bucket: "a", Checkpoint: c, Moves: []store.Move{{ID: 1, Target: 4}, {ID: 1, Target: 4}}},
		"target not there":     {Bucket: "a", Checkpoint: c, Moves: []store.Move{{ID: 1, Target: 5}}},
	} {
		var refused *store.ReplaceError
		if _, err := t.s.Replace(t.ctx, st.id, r); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
		if after := st.ops("a", 0, c); after != before {
			t.Fatalf("INV-20: %s: a refused replacement changed %s to %s", name, before, after)
		}
	}
	st.wantSums(c, "a", "b")
}

func testCompactLookups(t *suite) {
	st := t.deploy()
	c1 := st.tx(1, entry(1, "l", "[1]"), entry(2, "l", "[2]"), entry(3, "m", "[3]"))
	c2 := st.tx(2, entry(1, "l", "[10]"), remove(3))
	c3 := st.tx(3, entry(1, "l", "[100]"), entry(4, "m\x00", "[4]"))
	if _, _, err := t.s.CompactLookups(t.ctx, st.id, c3+1, nil, 100); err == nil {
		t.Error("lookups above the checkpoint are compacted")
	}
	var removed uint64
	var next []byte
	for steps := 0; ; steps++ {
		n, after, err := t.s.CompactLookups(t.ctx, st.id, c2, next, 1)
		t.check(err)
		removed += n
		if next = after; next == nil {
			if steps == 0 {
				t.Error("one step for all, though the limit is 1")
			}
			break
		}
	}
	if removed != 3 { // [1], [3] and the tombstone over it
		t.Errorf("removed %d entries, want 3", removed)
	}
	for range 2 {
		st.wantLookups(c3, "[[[100] [2]] [] [[4]]]", "l", "m", "m\x00")
		st.wantLookups(c2, "[[[10] [2]] []]", "l", "m")
		// INV-19: an older reader is told, not given less.
		st.wantLookups(c1, "invalidated", "l", "m")
		t.reopen()
	}
	if n, next, err := t.s.CompactLookups(t.ctx, st.id, c2, nil, 0); n != 0 || next != nil || err != nil {
		t.Errorf("INV-20: again: %d %x %v", n, next, err)
	}
}

func testDirtiest(t *suite) {
	st := t.deploy()
	var rows []model.EvaluatedRow
	for n := range 5 {
		for range n + 1 {
			rows = append(rows, put(n, "x", fmt.Sprint("b", n)))
		}
	}
	c := st.tx(1, rows...)
	dirty := func(q store.DirtyQuery) string {
		t.Helper()
		list, err := t.s.Dirtiest(t.ctx, st.id, q)
		t.check(err)
		var b strings.Builder
		for _, d := range list {
			fmt.Fprintf(&b, "%s:%d/%d ", d.Bucket, d.Changes, d.Ops)
		}
		return strings.TrimSpace(b.String())
	}
	for _, x := range []struct {
		q    store.DirtyQuery
		want string
	}{
		{store.DirtyQuery{MinChanges: 1}, "b4:5/5 b3:4/4 b2:3/3 b1:2/2 b0:1/1"},
		{store.DirtyQuery{MinChanges: 3, Limit: 2}, "b4:5/5 b3:4/4"},
		{store.DirtyQuery{MinChanges: 4}, "b4:5/5 b3:4/4"},
		{store.DirtyQuery{Limit: 2}, "b0:1/1 b1:2/2"},
		{store.DirtyQuery{Limit: 2, After: "b1"}, "b2:3/3 b3:4/4"},
		{store.DirtyQuery{Only: []string{"b3", "b0", "zz"}}, "b0:1/1 b3:4/4"},
		{store.DirtyQuery{Only: []string{"b3", "b0"}, After: "b0"}, "b3:4/4"},
	} {
		if got := dirty(x.q); got != x.want {
			t.Errorf("%+v: %s, want %s", x.q, got, x.want)
		}
	}
	st.replace(store.Replacement{Bucket: "b4", Checkpoint: c, Finished: true})
	st.tx(2, put(4, "y", "b4"))
	if got := dirty(store.DirtyQuery{MinChanges: 1, MinRatio: 0.5}); got != "b3:4/4 b2:3/3 b1:2/2 b0:1/1" {
		t.Errorf("after compaction: %s", got)
	}
}

// testLikeTheModel makes random changes and compactions in the store and in
// the memory fake: every read of either must be the same.
func testLikeTheModel(t *suite) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	real := t.deploy()
	fake := (&suite{T: t.T, ctx: t.ctx, s: memory.New()}).deploy()
	bucket := func() string { return fmt.Sprint("b", random.IntN(4)) }
	for n := 1; n <= 300; n++ {
		var rows []model.EvaluatedRow
		for range random.IntN(5) {
			var r model.EvaluatedRow
			switch k := random.IntN(8); random.IntN(10) {
			case 0:
				r = remove(k)
			case 1:
				r = model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: model.TableID{7}}}
			case 2:
				r = put(k, fmt.Sprint("moved ", n), bucket())
				before := row(random.IntN(8)).Row
				r.Before = &before
			default:
				r = put(k, fmt.Sprint("v", n), bucket())
				if other := bucket(); other != r.Puts[0].Bucket {
					r.Puts = append(r.Puts, put(k, fmt.Sprint("v", n), other).Puts...)
				}
				r.Lookups = []model.ParameterEntry{{Lookup: fmt.Sprint("l", random.IntN(3)), Values: fmt.Sprintf("[%d]", random.IntN(5))}}
			}
			rows = append(rows, r)
		}
		end := model.Cursor{Position: position(n)}
		if random.IntN(4) == 0 {
			end = model.Cursor{Position: real.at.Position, Offset: real.at.Offset + 1}
		}
		real.apply(end, rows...)
		fake.apply(end, rows...)
		head := real.ledger.Head()
		if f := fake.ledger.Head(); f != head {
			t.Fatalf("seed %d step %d: head %+v, model %+v", seed, n, head, f)
		}
		if n%20 == 0 {
			compactBoth(real, fake, bucket(), head.Checkpoint.Op)
			_, _, err := real.s.CompactLookups(t.ctx, real.id, head.Checkpoint.Op, nil, 0)
			t.check(err)
			_, _, err = fake.s.CompactLookups(t.ctx, fake.id, head.Checkpoint.Op, nil, 0)
			t.check(err)
		}
		if n == 150 {
			t.reopen()
			real.open()
			fake.open()
		}
		for range 5 {
			c := model.OpID(random.Uint64N(uint64(head.Persisted) + 2))
			if random.IntN(2) == 0 {
				c = head.Checkpoint.Op
			}
			b, after := bucket(), model.OpID(random.Uint64N(uint64(c)+1))
			if got, want := real.ops(b, after, c), fake.ops(b, after, c); got != want {
				t.Fatalf("seed %d step %d: ops of %s in (%s, %s]:\n%s\nmodel\n%s", seed, n, b, after, c, got, want)
			}
			if got, want := real.sums(c, "b0", "b1", "b2", "b3"), fake.sums(c, "b0", "b1", "b2", "b3"); !slices.Equal(got, want) {
				t.Fatalf("seed %d step %d: checksums at %s: %v, model %v", seed, n, c, got, want)
			}
			if got, want := real.lookups(c, "l0", "l1", "l2"), fake.lookups(c, "l0", "l1", "l2"); got != want {
				t.Fatalf("seed %d step %d: lookups at %s: %s, model %s", seed, n, c, got, want)
			}
		}
	}
}

// compaction is a whole pass over a bucket (spec/05 §6).
func (st *stream) compaction(bucket string, c model.OpID) store.Replacement {
	st.Helper()
	r := store.Replacement{Bucket: bucket, Checkpoint: c, Finished: true}
	type name struct {
		key     model.RowKey
		typ, id string
	}
	seen := map[name]model.OpID{}
	var notPut model.OpID
	count := 0
	for op, err := range st.s.Scan(st.ctx, st.id, bucket, 0, c, false) {
		st.check(err)
		isPut := op.Kind == model.OpPut
		if op.Kind == model.OpPut || op.Kind == model.OpRemove {
			k := name{op.Key, strings.Clone(op.ObjectType), strings.Clone(op.ObjectID)}
			if target, ok := seen[k]; ok {
				r.Moves = append(r.Moves, store.Move{ID: op.ID, Target: target})
				isPut = false
			} else {
				seen[k] = op.ID
			}
		}
		if isPut {
			notPut, count = 0, 0
			continue
		}
		if notPut == 0 {
			notPut = op.ID
		}
		count++
	}
	if count > 1 {
		r.ClearTo = notPut
	}
	return r
}

func compactBoth(real, fake *stream, bucket string, c model.OpID) {
	real.Helper()
	r := real.compaction(bucket, c)
	if f := fake.compaction(bucket, c); fmt.Sprint(f) != fmt.Sprint(r) {
		real.Fatalf("compaction of %s would be %v, model %v", bucket, r, f)
	}
	if len(r.Moves) == 0 && r.ClearTo == 0 {
		return
	}
	if a, b := real.replace(r), fake.replace(r); a != b {
		real.Fatalf("compaction of %s removed %d, model %d", bucket, a, b)
	}
}

// testMeanwhile reads while a writer commits and a compactor compacts: what a
// reader gets at a published checkpoint is right or said to be invalidated.
func testMeanwhile(t *suite) {
	st := t.deploy()
	st.tx(1, put(1, "x", "a"))
	var wg sync.WaitGroup
	done := make(chan struct{})
	published := make(chan model.OpID, 1) // the newest checkpoint
	published <- st.ledger.Head().Checkpoint.Op
	newest := func() model.OpID {
		c := <-published
		published <- c
		return c
	}
	for range 2 {
		wg.Go(func() {
			valid := 0
			for last := false; !last; {
				select {
				case <-done:
					last = true // one more read, of what nobody changes any more
				default:
				}
				c := newest()
				states, err := t.s.Checksums(t.ctx, st.id, c, []string{"a"})
				if errors.Is(err, store.ErrInvalidated) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				var sum model.Checksum
				before := model.OpID(0)
				ok := true
				for op, err := range t.s.Ops(t.ctx, st.id, "a", 0, c) {
					if errors.Is(err, store.ErrInvalidated) {
						ok = false
						break
					}
					if err != nil || op.ID <= before || op.ID > c {
						t.Errorf("INV-24: op %s after %s up to %s: %v", op.ID, before, c, err)
						return
					}
					before = op.ID
					sum += op.Checksum
				}
				if ok && sum != states[0].Checksum {
					t.Errorf("INV-16: checksum %d at %s, the ops have %d", states[0].Checksum, c, sum)
					return
				}
				if ok {
					valid++
				}
			}
			if valid == 0 {
				t.Error("no read was valid")
			}
		})
	}
	compacting := make(chan model.OpID) // closed by the writer
	wg.Go(func() {
		for c := range compacting {
			if _, err := t.s.Replace(t.ctx, st.id, st.compaction("a", c)); err != nil {
				t.Error(err)
			}
		}
	})
	for n := 2; n < 200; n++ {
		rows := []model.EvaluatedRow{put(n%5, fmt.Sprint("v", n), "a")}
		if n%7 == 0 {
			rows = append(rows, remove(n%3))
		}
		c := st.tx(n, rows...)
		<-published
		published <- c
		if n%10 == 0 {
			compacting <- c
		}
	}
	close(compacting)
	close(done)
	wg.Wait()
	st.wantSums(st.ledger.Head().Checkpoint.Op, "a")
}
