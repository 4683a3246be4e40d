package storetest

import (
	"fmt"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// testAnotherLog: what a record says of the log and the puts of its row is kept,
// and so a table that is copied again is ops only where it differs; readers stay
// at their checkpoint until all of it is compared.
func testAnotherLog(t *suite) {
	st := t.deploy()
	var rows []model.EvaluatedRow
	for n := range 8 {
		rows = append(rows, put(n, fmt.Sprint("v", n), "a", "b"))
	}
	before := st.tx(5, append(rows, entry(100, "l", "[1]"), entry(101, "l", "[2]"))...)
	record := func(n int) *ledger.Record {
		t.Helper()
		r, err := t.s.Records(t.ctx, st.id, []model.RowKey{row(n)})
		t.check(err)
		if r[0] == nil {
			return &ledger.Record{}
		}
		return r[0]
	}
	was := record(1)
	if was.Log != 0 || was.Digest == 0 {
		t.Errorf("log %d, digest %x", was.Log, was.Digest)
	}
	for _, other := range []bool{false, true} {
		st.relog(other)
		head, err := t.s.Head(t.ctx, st.id)
		t.check(err)
		if head.SnapshotDone || head.Applied.Position.Source() != "" || head.Checkpoint.Op != before || (head.Origin == "") != other && head.Origin != "" {
			t.Errorf("the head of another log is %+v", head)
		}
		log := head.Applied.Position
		snapshot := func(r model.EvaluatedRow) model.EvaluatedRow {
			r.Kind = model.RowSnapshot
			return r
		}
		copied := func(offset uint64, rows ...model.EvaluatedRow) {
			t.Helper()
			b := &model.EvaluatedBatch{Stream: st.id, Epoch: st.epoch, Previous: st.at, End: model.Cursor{Position: log + position(1), Offset: offset}, Rows: rows}
			st.applyBatch(b)
		}
		changed := put(2, fmt.Sprint("changed in ", log), "a", "c")
		copied(1, snapshot(rows[0]), snapshot(rows[1]), snapshot(changed), snapshot(entry(100, "l", "[1]")))
		if was = record(1); was.Log != log.Log() {
			t.Errorf("a row that is copied again is of log %d, not %d", was.Log, log.Log())
		}
		st.open() // as after a crash
		t.reopen()
		added := put(50, "added", "b")
		copied(2, snapshot(added), snapshot(entry(101, "l", "[3]")))
		copied(3, model.EvaluatedRow{Kind: model.RowSweep, Key: model.RowKey{Table: row(0).Table}})
		if head, err = t.s.Head(t.ctx, st.id); err != nil || head.Checkpoint.Op != before {
			t.Errorf("D1: while tables are compared the head is %+v, %v", head, err)
		}
		st.wantLookups(before, map[bool]string{false: "[[[1] [2]]]", true: "[[[1] [3]]]"}[other], "l")
		ops := head.Persisted
		after := st.apply(model.Cursor{Position: log + position(2)})
		if after != ops {
			t.Errorf("the checkpoint is %d, the last op %d", after, ops)
		}
		if !other {
			st.wantOps("a", before, after, "20 PUT 2 changed in }; 24 REMOVE 3; 26 REMOVE 4; 28 REMOVE 5; 30 REMOVE 6; 32 REMOVE 7")
			st.wantOps("b", before, after, "19 REMOVE 2; 22 PUT 50 added; 25 REMOVE 3; 27 REMOVE 4; 29 REMOVE 5; 31 REMOVE 6; 33 REMOVE 7")
			st.wantOps("c", before, after, "21 PUT 2 changed in }")
		} else {
			st.wantOps("a", before, after, "34 PUT 2 changed in }~")
			st.wantOps("b", before, after, "")
			st.wantOps("c", before, after, "35 PUT 2 changed in }~")
		}
		st.wantSums(after, "a", "b", "c")
		st.wantLookups(after, "[[[1] [3]]]", "l")
		before = after
		rows = rows[:2]
	}
}
