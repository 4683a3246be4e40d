package storetest

import (
	"fmt"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

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
