package compact

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicesync/sluice/libs/model"
)

type vectorOp struct {
	ID       model.OpID     `json:"op_id"`
	Op       string         `json:"op"`
	Table    string         `json:"table"`
	RowID    string         `json:"id"`
	Subkey   string         `json:"subkey"`
	Data     string         `json:"data"`
	Checksum model.Checksum `json:"checksum"`
}

func (v vectorOp) op(t *testing.T) model.Op {
	op := model.Op{ID: v.ID, Checksum: v.Checksum, ObjectType: v.Table, ObjectID: v.RowID, Data: v.Data}
	switch v.Op {
	case "PUT":
		op.Kind = model.OpPut
	case "REMOVE":
		op.Kind = model.OpRemove
	case "MOVE":
		op.Kind = model.OpMove
	case "CLEAR":
		op.Kind = model.OpClear
	default:
		t.Fatalf("op %q", v.Op)
	}
	if v.Subkey != "" {
		op.Key.Row = model.UUID5([]byte(v.Subkey))
	}
	return op
}

func ops(t *testing.T, vs []vectorOp) bucket {
	b := make(bucket, len(vs))
	for i, v := range vs {
		b[i] = v.op(t)
	}
	return b
}

func (b bucket) withoutTargets() bucket {
	b = slices.Clone(b)
	for i := range b {
		b[i].Target = 0
	}
	return b
}

// TestConformance holds the recorded compactions.
func TestConformance(t *testing.T) {
	dir := os.Getenv("SLUICE_CONFORMANCE") // another folder of vectors, of scripts/conformance
	least := 0
	if dir == "" {
		dir, least = "testdata", 14
	}
	file, err := os.ReadFile(filepath.Join(dir, "compaction.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Vectors []struct {
			Name   string
			Ops    []vectorOp
			Expect struct {
				AfterMove         []vectorOp `json:"after_move"`
				AfterMoveAndClear []vectorOp `json:"after_move_and_clear"`
				Reduced           struct {
					Remainder model.Checksum
					Puts      []vectorOp
				}
				TotalChecksum model.Checksum `json:"total_checksum"`
				Count         int
			}
		}
	}
	if err := json.Unmarshal(file, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Vectors) < least {
		t.Fatalf("only %d vectors", len(doc.Vectors))
	}
	for _, v := range doc.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			original := ops(t, v.Ops)
			last := original[len(original)-1].ID
			states, err := original.compactTo(last, Limits{Held: -1}) // so that MOVEs and CLEAR can be told apart
			if err != nil {
				t.Fatal(err)
			}
			got := states[len(states)-1]
			moved := states[0]
			if len(states) > 1 && !slices.ContainsFunc(states[1], func(o model.Op) bool { return o.Kind == model.OpClear }) {
				moved = states[1]
			}
			if d := cmp.Diff(ops(t, v.Expect.AfterMove), moved.withoutTargets()); d != "" {
				t.Errorf("after MOVE: %s", d)
			}
			if d := cmp.Diff(ops(t, v.Expect.AfterMoveAndClear), got.withoutTargets()); d != "" {
				t.Errorf("after CLEAR: %s", d)
			}
			inOne, err := original.compactTo(last, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(got, inOne[len(inOne)-1]); d != "" {
				t.Errorf("with MOVEs held back: %s", d)
			}
			if len(got) != v.Expect.Count || got.checksum(last) != v.Expect.TotalChecksum {
				t.Errorf("count %d, checksum %d, want %d, %d", len(got), got.checksum(last), v.Expect.Count, v.Expect.TotalChecksum)
			}
			for name, b := range map[string]bucket{"original": original, "compacted": got} {
				c := b.reduce()
				var puts bucket
				for _, op := range b {
					if kept, ok := c.rows[row{op.Key, op.ObjectType, op.ObjectID}]; ok && kept.ID == op.ID {
						puts = append(puts, op)
					}
				}
				if d := cmp.Diff(ops(t, v.Expect.Reduced.Puts), append(bucket{}, puts...)); d != "" || c.remainder != v.Expect.Reduced.Remainder {
					t.Errorf("%s reduces to remainder %d (want %d), puts %s", name, c.remainder, v.Expect.Reduced.Remainder, d)
				}
			}
		})
	}
}
