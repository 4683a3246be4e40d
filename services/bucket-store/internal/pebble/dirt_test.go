package pebble

import (
	"bytes"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// TestIndexOfBefore: a store of before there was an index by dirt gets it when
// it is opened.
func TestIndexOfBefore(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	l, err := begin(s)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		if err := addTransaction(s, l, 1, n+1); err != nil {
			t.Fatal(err)
		}
	}
	list := func() []store.DirtyBucket {
		t.Helper()
		d, err := s.Dirtiest(t.Context(), 1, store.DirtyQuery{MinChanges: 1})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := list()
	if len(want) != 4 || want[0].Bucket != "all" {
		t.Fatalf("dirtiest %+v", want)
	}
	lower, upper := streamRange(kindDirty, 1)
	if err := s.db.DeleteRange(lower, upper, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Delete(dirtIndexed, pebble.Sync); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, Options{})
		if got := list(); !slices.Equal(got, want) {
			t.Errorf("dirtiest %+v, want %+v", got, want)
		}
	}
	defer s.Close()
}

// TestDirtyKeyOrder: the dirtiest come first, whatever their names.
func TestDirtyKeyOrder(t *testing.T) {
	for dirt := 1; dirt < 64; dirt++ {
		if bytes.Compare(appendDirtyKey(nil, 1, dirt+1, "\xff\xff"), appendDirtyKey(nil, 1, dirt, "")) >= 0 {
			t.Errorf("dirt %d comes before %d", dirt, dirt+1)
		}
	}
}
