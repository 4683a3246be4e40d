package ledger

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/sluicesync/sluice/libs/model"
)

// applied is what a log leaves, a transaction a batch, without faults.
func applied(t *rapid.T, log [][]model.EvaluatedRow, o Options) *shelf {
	s := newShelf(model.StreamHead{Epoch: 1})
	l := New(&model.Stream{ID: 1, State: model.Processing, Head: s.head}, o)
	var at model.Cursor
	for n, rows := range log {
		b := &model.EvaluatedBatch{Stream: 1, Epoch: 1, Previous: at, End: model.Cursor{Position: position(n + 1)}, Rows: rows, Meta: model.BatchMeta{SnapshotDone: true}}
		at = b.End
		todo := l.Step(Arrived{Ticket: uint64(n), Batch: b, Size: 10})
		for len(todo) > 0 {
			a := todo[0]
			todo = todo[1:]
			switch a := a.(type) {
			case Load, LoadTable:
				todo = append(todo, l.Step(s.load(a))...)
			case *Commit:
				if !s.commit(a) {
					t.Fatalf("commit %+v refused", a)
				}
				todo = append(todo, l.Step(Committed{})...)
			}
		}
	}
	return s
}

// TestTruncateIsRemovals: INV-11, a truncate leaves what removing the rows one by
// one, in the order of their ids, leaves, op by op.
func TestTruncateIsRemovals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := drawSource(t)
		alive := map[model.RowKey]bool{}
		var truncated, removed [][]model.EvaluatedRow
		begin := 0
		for _, end := range src.ends {
			var rows []model.EvaluatedRow
			for _, r := range src.changes[begin:end] {
				switch r.Kind {
				case model.RowTruncate:
					var keys []model.RowKey
					for k := range alive {
						if k.Table == r.Key.Table {
							keys = append(keys, k)
							delete(alive, k)
						}
					}
					slices.SortFunc(keys, func(a, b model.RowKey) int { return bytes.Compare(a.Row[:], b.Row[:]) })
					for _, k := range keys {
						rows = append(rows, model.EvaluatedRow{Kind: model.RowDelete, Key: k})
					}
					continue
				case model.RowDelete:
					delete(alive, r.Key)
				default:
					if r.Before != nil {
						delete(alive, model.RowKey{Table: r.Key.Table, Row: *r.Before})
					}
					alive[r.Key] = true
				}
				rows = append(rows, r)
			}
			truncated, removed = append(truncated, src.changes[begin:end]), append(removed, rows)
			begin = end
		}
		o := Options{TableRows: rapid.IntRange(1, 4).Draw(t, "table rows"), GroupRows: rapid.IntRange(1, 6).Draw(t, "group")}
		a, b := applied(t, truncated, o), applied(t, removed, Options{})
		if d := cmp.Diff(a.buckets, b.buckets); d != "" {
			t.Fatalf("the ops differ: %s", d)
		}
		if d := cmp.Diff(a.entries, b.entries); d != "" {
			t.Fatalf("the parameter index differs: %s", d)
		}
		if d := cmp.Diff(a.records, b.records, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("the records differ: %s", d)
		}
		if a.head.Persisted != b.head.Persisted {
			t.Fatalf("op ids up to %s and %s", a.head.Persisted, b.head.Persisted)
		}
	})
}

// TestLargeTruncate: of a large table, each row is read once, in few steps, the
// first of which comes at once.
func TestLargeTruncate(t *testing.T) {
	const rows = 100_000
	l := New(&model.Stream{ID: 1, State: model.Active, Head: model.StreamHead{Epoch: 1, SnapshotDone: true}}, Options{})
	b := &model.EvaluatedBatch{Stream: 1, Epoch: 1, End: model.Cursor{Position: position(1)}, Rows: []model.EvaluatedRow{{Kind: model.RowTruncate, Key: rowKey(0, 0)}}}
	todo := l.Step(Arrived{Ticket: 1, Batch: b, Size: 10})
	read, commits, gone := 0, 0, 0
	for len(todo) > 0 {
		a := todo[0]
		todo = todo[1:]
		switch a := a.(type) {
		case LoadTable:
			var e TableLoaded
			for len(e.Rows) < a.Limit && read < rows {
				read++
				key := model.RowKey{Table: a.Table, Row: model.RowID{byte(read >> 16), byte(read >> 8), byte(read)}}
				e.Rows = append(e.Rows, KeyedRecord{key, &Record{Buckets: []Membership{{Bucket: fmt.Sprint(read % 7), ObjectType: "t", ObjectID: "x"}}}})
			}
			e.More = read < rows
			todo = append(todo, l.Step(e)...)
		case *Commit:
			if commits++; commits == 1 && read > 20_000 {
				t.Errorf("%d rows were read before the first write", read)
			}
			if len(a.Gone) != 1 || len(a.Rows) != 0 {
				t.Fatalf("a commit has %d ranges and %d rows", len(a.Gone), len(a.Rows))
			}
			gone += len(a.Ops)
			todo = append(todo, l.Step(Committed{})...)
		}
	}
	if gone != rows || commits != 5 {
		t.Errorf("%d REMOVEs in %d commits", gone, commits)
	}
}
