package storetest

import (
	"errors"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func testLookups(t *suite) {
	st := t.deploy()
	c1 := st.tx(1, entry(1, "l", "[1]"), entry(2, "l", "[2]"), entry(3, "m", "[3]"))
	c2 := st.tx(2, entry(1, "l", "[10]"), entry(2, "m", "[20]"))
	c3 := st.tx(3, remove(1), remove(3))
	check := func() {
		t.Helper()
		st.wantLookups(0, "[[] [] []]", "l", "m", "n")
		st.wantLookups(c1, "[[[1] [2]] [[3]] []]", "l", "m", "n")
		st.wantLookups(c2, "[[[10]] [[20] [3]] []]", "l", "m", "n")
		st.wantLookups(c3, "[[] [[20]] []]", "l", "m", "n")
		st.wantLookups(c3, "[[[20]] [[20]]]", "m", "m")
		var limit *store.LimitError
		if _, err := t.s.Lookups(t.ctx, st.id, c1, []string{"l", "m"}, 2); !errors.As(err, &limit) || limit.Limit != 2 {
			t.Errorf("more than the limit: %v", err)
		}
		if _, err := t.s.Lookups(t.ctx, st.id, c1, []string{"l", "m"}, 3); err != nil {
			t.Errorf("as many as the limit: %v", err)
		}
	}
	check()
	t.reopen()
	check()
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

// testVersions: each checkpoint keeps the versions of its time, until compaction
// says so (INV-19).
func testVersions(t *suite) {
	st := t.deploy()
	const n = 40
	checkpoints := []model.OpID{0}
	for i := 1; i <= n; i++ {
		rows := []model.EvaluatedRow{entry(1, "l", fmt.Sprintf("[%d]", i))}
		switch i % 4 {
		case 0:
			rows = append(rows, entry(2, "l", "[0]"))
		case 2:
			rows = append(rows, remove(2))
		case 3: // the last version of a transaction counts
			rows = append([]model.EvaluatedRow{entry(1, "l", "[-1]"), remove(1)}, rows...)
		}
		checkpoints = append(checkpoints, st.tx(i, rows...))
	}
	at := func(i int) string {
		switch {
		case i == 0:
			return "[[]]"
		case i >= 4 && i%4 < 2:
			return fmt.Sprintf("[[[%d] [0]]]", i)
		}
		return fmt.Sprintf("[[[%d]]]", i)
	}
	for range 2 {
		for i, c := range checkpoints {
			st.wantLookups(c, at(i), "l")
		}
		t.reopen()
	}
	_, _, err := t.s.CompactLookups(t.ctx, st.id, checkpoints[n/2], nil, 0)
	t.check(err)
	for range 2 {
		for i, c := range checkpoints {
			if i < n/2 {
				st.wantLookups(c, "invalidated", "l")
			} else {
				st.wantLookups(c, at(i), "l")
			}
		}
		t.reopen()
	}
}
