package storetest

import (
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func testHostileNames(t *suite) {
	st := t.deploy()
	names := []string{
		"", "\x00", "\x00\x00", "\x00\x01", "\x00\xff", "\x01", "a", "a\x00", "a\x00\x01", "a\x00b", "a\xff", "a\xff\xff", "b", "\xff", "\xff\xff", "\xff\x00",
		"ü\n\"'", strings.Repeat("long", 50_000), strings.Repeat("\x00", 1000), strings.Repeat("\xff", 1000),
	}
	var rows []model.EvaluatedRow
	for i, name := range names {
		r := put(i, fmt.Sprint("data of ", i), name)
		r.Lookups = []model.ParameterEntry{{Lookup: name, Values: fmt.Sprint(i)}}
		r.Puts[0].ObjectID, r.Puts[0].ObjectType = name, name
		rows = append(rows, r)
	}
	c := st.tx(1, rows...)
	_, err := t.s.CreateWriteCheckpoints(t.ctx, "", []store.WriteCheckpointRequest{{UserKey: names[2], Head: "1"}, {UserKey: names[14], Head: "2"}})
	t.check(err)
	for range 2 {
		st.wantSums(c, names...)
		for i, name := range names {
			n := 0
			for op, err := range t.s.Ops(t.ctx, st.id, name, 0, c) {
				t.check(err)
				if n++; n > 1 || op.Data != fmt.Sprint("data of ", i) || op.ObjectID != name || op.ObjectType != name {
					t.Errorf("bucket %.20q: op %d is %.40q", name, n, op.Data)
				}
			}
			if n != 1 {
				t.Errorf("bucket %.20q has %d ops", name, n)
			}
			st.wantLookups(c, fmt.Sprintf("[[%d]]", i), name)
		}
		list, err := t.s.Dirtiest(t.ctx, st.id, store.DirtyQuery{})
		t.check(err)
		var found []string
		for _, b := range list {
			found = append(found, b.Bucket)
		}
		if want := slices.Sorted(slices.Values(names)); !slices.Equal(found, want) {
			t.Errorf("buckets by name: %.200q, want %.200q", found, want)
		}
		t.reopen()
	}
}

func testLargeRow(t *suite) {
	st := t.deploy()
	data := strings.Repeat("0123456789abcdef", 15<<20/16)
	c := st.tx(1, put(1, "small", "a"), put(2, data, "a", "b"), put(3, "small", "a"))
	for range 2 {
		n := 0
		for op, err := range t.s.Ops(t.ctx, st.id, "a", 0, c) {
			t.check(err)
			if n++; n == 2 && op.Data != data {
				t.Error("a row of 15 MB came back different")
			}
		}
		if n != 3 {
			t.Errorf("%d ops", n)
		}
		st.wantSums(c, "a", "b")
		t.reopen()
	}
}

// size is n, or as much of it as shows the same in less time.
func (t *suite) size(n int) int {
	switch {
	case t.instance.Small || testing.Short():
		return n / 50
	case raced:
		return n / 10
	}
	return n
}

// testLargeBucket: a million ops in one bucket are read as they come, and cost
// no memory.
func testLargeBucket(t *suite) {
	const commits = 10
	each := t.size(100_000)
	st := t.deploy()
	head := st.ledger.Head()
	for range commits {
		c := st.bulk(head, []string{"large"}, each)
		t.check(t.s.Commit(t.ctx, c))
		head = c.Head
	}
	total := commits * each
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const bound = 32 << 20 // a tenth of what the ops hold
	read := func(name string, from model.OpID, seq iter.Seq2[model.Op, error], descending bool) {
		t.Helper()
		before := heap()
		n := 0
		last := from
		for op, err := range seq {
			t.check(err)
			if n++; !descending && op.ID <= last || descending && op.ID >= last {
				t.Fatalf("%s: op %s after %s", name, op.ID, last)
			}
			last = op.ID
			if n == total/2 && !t.instance.Small {
				if now := heap(); now > before+bound {
					t.Errorf("%s: %d MB of memory in the middle of a bucket", name, (now-before)>>20)
				}
			}
		}
		if n != total {
			t.Errorf("%s: %d ops, want %d", name, n, total)
		}
	}
	read("ops", 0, t.s.Ops(t.ctx, st.id, "large", 0, head.Persisted), false)
	read("scan", head.Persisted+1, t.s.Scan(t.ctx, st.id, "large", 0, head.Persisted, false), true)

	var half model.Checksum
	n := 0
	for op, err := range t.s.Ops(t.ctx, st.id, "large", 0, model.OpID(total/2)) {
		t.check(err)
		half += op.Checksum
		n++
	}
	if got := st.sums(model.OpID(total/2), "large"); got[0] != (model.BucketState{Checksum: half, Count: uint64(n)}) {
		t.Errorf("D7: in the middle %v, its ops %d %d", got[0], half, n)
	}
	// The end of a large bucket is as near as that of a small one.
	first := 0
	for op, err := range t.s.Ops(t.ctx, st.id, "large", head.Persisted-3, head.Persisted) {
		t.check(err)
		if first++; op.ID != head.Persisted-3+model.OpID(first) {
			t.Errorf("op %s at place %d of the end", op.ID, first)
		}
	}
	if first != 3 {
		t.Errorf("%d ops at the end", first)
	}
}

// testManyBuckets: 100,000 buckets in one commit are all there, and are listed
// in pages.
func testManyBuckets(t *suite) {
	n := t.size(100_000)
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("def|%d[\"%06d\"]", i%3, i)
	}
	st := t.deploy()
	c := st.bulk(st.ledger.Head(), names, n+n/2) // the first half has two ops
	t.check(t.s.Commit(t.ctx, c))
	for range 2 {
		states, err := t.s.Checksums(t.ctx, st.id, c.Head.Persisted, names)
		t.check(err)
		for i, s := range states {
			if s != (model.BucketState{Checksum: c.Buckets[i].Checksum, Count: c.Buckets[i].Count}) {
				t.Fatalf("D7: bucket %s has %v, want %+v", names[i], s, c.Buckets[i])
			}
		}
		found := make([]string, 0, n)
		for after := ""; ; {
			page, err := t.s.Dirtiest(t.ctx, st.id, store.DirtyQuery{Limit: 2000, After: after})
			t.check(err)
			for _, b := range page {
				found = append(found, b.Bucket)
			}
			if len(page) < 2000 {
				break
			}
			after = page[len(page)-1].Bucket
		}
		if sorted := slices.Sorted(slices.Values(names)); !slices.Equal(found, sorted) {
			t.Errorf("%d buckets are listed, of %d", len(found), n)
		}
		dirty, err := t.s.Dirtiest(t.ctx, st.id, store.DirtyQuery{Limit: 10, MinChanges: 2})
		t.check(err)
		if len(dirty) != 10 || dirty[0].Changes != 2 || dirty[9].Changes != 2 {
			t.Errorf("dirtiest %+v", dirty)
		}
		for _, i := range []int{0, n / 3, n - 1} {
			st.wantSums(c.Head.Persisted, names[i])
		}
		t.reopen()
	}
}
