package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
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

// testScan: a scan goes over the ops in either direction, without their data.
func testScan(t *suite) {
	st := t.deploy()
	for n := range 6 {
		st.tx(n+1, put(n%3, strings.Repeat("data", 1000), "a"), put(9, "x", "b"))
	}
	st.tx(10, remove(1)) // a: 1 3 5 7 9 11 13
	scan := func(downTo, upTo model.OpID, ascending bool, stop int) string {
		var b strings.Builder
		n := 0
		for op, err := range t.s.Scan(t.ctx, st.id, "a", downTo, upTo, ascending) {
			t.check(err)
			if op.Data != "" || op.ObjectType != "t" || op.Key != row(int(op.ObjectID[0]-'0')) {
				t.Errorf("scanned %+v", op)
			}
			fmt.Fprintf(&b, "%s%s ", op.ID, op.ObjectID)
			if n++; n == stop {
				break
			}
		}
		return strings.TrimSpace(b.String())
	}
	for _, x := range []struct {
		downTo, upTo model.OpID
		ascending    bool
		stop         int
		want         string
	}{
		{0, 99, false, -1, "131 112 91 70 52 31 10"},
		{0, 99, true, -1, "10 31 52 70 91 112 131"},
		{3, 9, false, -1, "91 70 52"},
		{3, 9, true, -1, "52 70 91"},
		{2, 10, false, 2, "91 70"},
		{2, 10, true, 2, "31 52"},
		{9, 9, false, -1, ""},
		{9, 3, true, -1, ""},
		{13, 99, false, -1, ""},
	} {
		if got := scan(x.downTo, x.upTo, x.ascending, x.stop); got != x.want {
			t.Errorf("scan of (%s, %s], ascending %v: %q, want %q", x.downTo, x.upTo, x.ascending, got, x.want)
		}
	}
	// Below a CLEAR, unlike a read, a scan says what is there.
	st.replace(store.Replacement{Bucket: "a", Checkpoint: 13, Moves: []store.Move{{ID: 1, Target: 7}, {ID: 3, Target: 13}}, ClearTo: 3})
	n := 0
	for op, err := range t.s.Scan(t.ctx, st.id, "a", 0, 4, true) {
		t.check(err)
		if n++; op.Kind != model.OpClear || op.Target != 13 {
			t.Errorf("scanned %+v", op)
		}
	}
	if n != 1 {
		t.Errorf("scanned %d ops below the CLEAR", n)
	}
}
