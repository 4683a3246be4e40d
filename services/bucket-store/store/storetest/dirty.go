package storetest

import (
	"fmt"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// testDirtiest: by need the dirtiest come first, to within a factor of two.
func testDirtiest(t *suite) {
	st := t.deploy()
	var rows []model.EvaluatedRow
	for n := range 5 {
		for range 1 << n {
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
	want := func(q store.DirtyQuery, want string) {
		t.Helper()
		if got := dirty(q); got != want {
			t.Errorf("%+v: %s, want %s", q, got, want)
		}
	}
	for range 2 {
		want(store.DirtyQuery{MinChanges: 1}, "b4:16/16 b3:8/8 b2:4/4 b1:2/2 b0:1/1")
		want(store.DirtyQuery{MinChanges: 3, Limit: 2}, "b4:16/16 b3:8/8")
		want(store.DirtyQuery{MinChanges: 5}, "b4:16/16 b3:8/8")
		want(store.DirtyQuery{MinChanges: 17}, "")
		want(store.DirtyQuery{Limit: 2}, "b0:1/1 b1:2/2")
		want(store.DirtyQuery{Limit: 2, After: "b1"}, "b2:4/4 b3:8/8")
		want(store.DirtyQuery{Only: []string{"b3", "b0", "zz"}}, "b0:1/1 b3:8/8")
		want(store.DirtyQuery{Only: []string{"b3", "b0"}, After: "b0"}, "b3:8/8")
		t.reopen()
	}
	st.open()
	st.replace(store.Replacement{Bucket: "b4", Checkpoint: c, Finished: true})
	st.replace(store.Replacement{Bucket: "b3", Checkpoint: c, Finished: true})
	want(store.DirtyQuery{MinChanges: 1}, "b2:4/4 b1:2/2 b0:1/1")
	rows = nil
	for range 4 {
		rows = append(rows, put(4, "y", "b4"), put(2, "y", "b2"))
	}
	c = st.tx(2, append(rows, put(3, "y", "b3"))...)
	want(store.DirtyQuery{MinChanges: 1}, "b2:8/8 b4:4/20 b1:2/2 "+sorted(dirty(store.DirtyQuery{MinChanges: 1}), "b0:1/1", "b3:1/9"))
	// A tenth of the ops at least.
	st.replace(store.Replacement{Bucket: "b4", Checkpoint: c, Finished: true})
	want(store.DirtyQuery{MinChanges: 3}, "b2:8/8")
	st.tx(3, put(4, "z", "b4"))
	want(store.DirtyQuery{MinChanges: 1, Limit: 2}, "b2:8/8 b1:2/2")
	want(store.DirtyQuery{Only: []string{"b4"}}, "b4:1/21")
	st.tx(4, put(4, "z", "b4"))
	want(store.DirtyQuery{MinChanges: 2, Limit: 1}, "b2:8/8")
	if got := dirty(store.DirtyQuery{MinChanges: 2}); !strings.Contains(got, "b4:2/22") {
		t.Errorf("a bucket is not dirty again: %s", got)
	}
	// What compaction removes of its ops makes a bucket no less dirty.
	r := st.compaction("b2", c)
	r.Finished = false
	st.replace(r)
	want(store.DirtyQuery{MinChanges: 3}, "b2:8/2")
}

// testFinished: what came after the checkpoint is not compacted, and makes a
// bucket dirty as before.
func testFinished(t *suite) {
	st := t.deploy()
	n := 0
	some := func(k int) (rows []model.EvaluatedRow) {
		for range k {
			n++
			rows = append(rows, put(n%7, fmt.Sprint(n), "a", "b"))
		}
		return rows
	}
	want := func(r store.Replacement, c model.OpID, changes uint64) {
		t.Helper()
		r.Bucket, r.Checkpoint, r.Finished = "a", c, true
		st.replace(r)
		d, err := t.s.Dirtiest(t.ctx, st.id, store.DirtyQuery{Only: []string{"a"}})
		t.check(err)
		if len(d) != 1 || d[0].Changes != changes {
			t.Errorf("compacted up to %s: %+v, want %d changes", c, d, changes)
		}
	}
	first := st.tx(1, some(20)...)
	second := st.tx(2, some(5)...)
	want(store.Replacement{}, second, 0)
	want(store.Replacement{}, first, 5)
	st.apply(model.Cursor{Position: position(2), Offset: 1}, some(3)...) // not visible yet
	want(store.Replacement{}, first, 8)
	want(store.Replacement{}, second, 3)
	third := st.tx(3, some(2)...)
	want(st.compaction("a", second), second, 5)
	want(st.compaction("a", third), third, 0)
	st.wantSums(third, "a", "b")
}

// sorted are two names, which are equally dirty, in the order in which the list
// has them.
func sorted(list, a, b string) string {
	if strings.Index(list, a) < strings.Index(list, b) {
		return a + " " + b
	}
	return b + " " + a
}
