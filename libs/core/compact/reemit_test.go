package compact

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicesync/sluice/libs/model"
)

// plan feeds a whole bucket to a plan.
func (b bucket) plan(l Limits) *Plan {
	p := New(l)
	for i := len(b) - 1; i >= 0; i-- {
		p.Add(&b[i])
	}
	return p
}

// reemit puts ops again at the end, as bucket-store does.
func (b bucket) reemit(ids []model.OpID) bucket {
	out := slices.Clone(b)
	for _, op := range b {
		if slices.Contains(ids, op.ID) {
			op.ID = head(out) + 1
			out = append(out, op)
		}
	}
	return out
}

// shown is what an app sees of each object: its newest row.
func (c *client) shown() map[string]string {
	newest, data := map[string]model.OpID{}, map[string]string{}
	for k, op := range c.rows {
		if o := k.objectType + "/" + k.objectID; op.ID > newest[o] {
			newest[o], data[o] = op.ID, op.Data
		}
	}
	return data
}

// TestReemit: D6. What clients show is the same after rows were put again and the
// bucket was compacted, and as many ops are gone as was promised.
func TestReemit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b bucket
		for range rapid.IntRange(1, 4).Draw(t, "parts") {
			b = grow(t, b, rapid.IntRange(0, 10).Draw(t, "ops"))
			// A long tail of one row's changes, as in the worst case.
			for range rapid.IntRange(0, 60).Draw(t, "tail") {
				op := model.Op{ID: head(b) + 1, Kind: model.OpPut, Key: model.RowKey{Row: model.RowID{99}}, ObjectType: "counters", ObjectID: "hot"}
				op.Checksum, op.Data = model.Checksum(op.ID), fmt.Sprintf(`{"v":%d}`, op.ID)
				b = append(b, op)
			}
		}
		compacted := states(t, b, head(b), Limits{})
		b = compacted[len(compacted)-1]
		worth := rapid.SampledFrom([]int{1, 5, 20}).Draw(t, "worth")
		ids, freed := b.plan(Limits{Worth: worth}).Reemit()
		if len(ids) == 0 {
			if freed != 0 {
				t.Fatalf("%d ops freed by nothing", freed)
			}
			return
		}
		if freed < worth*len(ids) {
			t.Errorf("%d ops freed for %d rows is not worth it", freed, len(ids))
		}
		after := b.reemit(ids)
		steps := states(t, after, head(after), Limits{})
		after = steps[len(steps)-1]
		want, got := b.reduce(), after.reduce()
		if !maps.Equal(got.shown(), want.shown()) {
			t.Fatalf("clients show %v, want %v", got.shown(), want.shown())
		}
		// The CLEAR that takes their place, if there was none, is one op.
		if saved := len(b) - len(after); saved < freed-1 {
			t.Errorf("%d ops before, %d after: %d gone, %d promised", len(b), len(after), saved, freed)
		}
	})
}

// TestReemitWorstCase: one old row holds back all of a busy one's history.
func TestReemitWorstCase(t *testing.T) {
	put := func(id int, object string) model.Op {
		return model.Op{ID: model.OpID(id), Kind: model.OpPut, Key: model.RowKey{Row: model.RowID{object[0]}}, ObjectType: "t", ObjectID: object}
	}
	b := bucket{put(1, "old")}
	for id := 2; id <= 100_000; id++ {
		b = append(b, put(id, "hot"))
	}
	ids, freed := b.plan(Limits{}).Reemit()
	if !slices.Equal(ids, []model.OpID{1}) || freed != 99_998 {
		t.Errorf("put again %v frees %d", ids, freed)
	}
	if ids, _ := b.plan(Limits{Memory: 1}).Reemit(); ids != nil {
		t.Errorf("%v without knowing what stands", ids)
	}
	// Rows that are shown as one object keep their order.
	twin := put(2, "old")
	twin.Key.Row[1] = 1
	b[1] = twin
	if ids, _ := b.plan(Limits{}).Reemit(); ids != nil {
		t.Errorf("%v though another row is the same object", ids)
	}
}
