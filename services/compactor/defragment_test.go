package compactor

import (
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// fragmented has a bucket whose two old rows hold back a busy one's history.
func fragmented() *fakeStore {
	f := &fakeStore{buckets: map[string][]model.Op{}, changes: map[string]uint64{}}
	put := func(object string) {
		f.checkpoint++
		f.buckets["1#b[]"] = append(f.buckets["1#b[]"], model.Op{
			ID: f.checkpoint, Kind: model.OpPut, Checksum: model.Checksum(f.checkpoint), Key: model.RowKey{Row: model.RowID{object[0]}},
			ObjectType: "t", ObjectID: object, Data: fmt.Sprintf(`{"v":"%04d"}`, f.checkpoint), // 12 bytes
		})
	}
	put("old")
	put("aged")
	for range 1000 {
		put("hot")
	}
	return f
}

// TestDefragment: D6, and the budget.
func TestDefragment(t *testing.T) {
	for _, test := range []struct {
		reemit int64 // a day
		left   int   // ops
	}{
		{0, 4},       // the default is enough for both: CLEAR, hot, old, aged
		{24 * 24, 4}, // in the first hour two rows of 12 bytes
		{24 * 23, 1002},
		{-1, 1002},
	} {
		f := fragmented()
		want := reduce(f.buckets["1#b[]"])
		cfg := onDemand
		cfg.Reemit = test.reemit
		c := start(t, f, cfg)
		if _, err := c.client.Compact(t.Context(), &pb.CompactRequest{}); err != nil {
			t.Fatal(err)
		}
		ops := f.snapshot()["1#b[]"]
		if got := reduce(ops); !maps.Equal(got.Rows, want.Rows) {
			t.Errorf("D6: clients end up with %v, want %v", got.Rows, want.Rows)
		}
		if len(ops) != test.left {
			t.Errorf("%d bytes a day: %d ops are left, want %d", test.reemit, len(ops), test.left)
		}
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(2400, time.Now())
		for _, step := range []struct {
			after time.Duration
			want  uint64
			spend uint64
		}{
			{0, 100, 40},
			{0, 60, 260},               // two buckets at once
			{time.Hour, 0, 0},          // still in debt
			{2 * time.Hour, 100, 0},    // paid
			{100 * time.Hour, 2400, 0}, // no more than a day's worth
		} {
			time.Sleep(step.after)
			if got := b.bytes(time.Now()); got != step.want {
				t.Errorf("after %s: %d bytes, want %d", step.after, got, step.want)
			}
			b.spend(step.spend)
		}
	})
}
