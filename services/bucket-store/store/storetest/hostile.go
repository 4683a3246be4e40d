package storetest

import (
	"fmt"
	"slices"
	"strings"

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
