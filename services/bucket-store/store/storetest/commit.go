package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func testCommit(t *suite) {
	st := t.deploy()
	st.applyBatch(&model.EvaluatedBatch{
		Stream: st.id, Epoch: st.epoch, End: model.Cursor{Position: position(1), Offset: 1},
		Rows: []model.EvaluatedRow{{Kind: model.RowSnapshot, Key: row(1), Puts: put(1, "one", "a", "b").Puts, Source: "source", Lookups: entry(1, "l", "[1]").Lookups}},
		Meta: model.BatchMeta{
			SnapshotDone: true, NoCheckpointBefore: position(3), Origin: "o", CommitTime: 5, Heartbeat: 6, PublishedAt: 7, EvaluatedAt: 8,
			Progress: []model.TableProgress{{Table: model.SourceTable{ID: model.TableID{7}, Connection: "default", Schema: "s", Name: "n", CompleteRows: true, Columns: []model.Column{{Name: "c", Type: "25", Key: true}}}, LastKey: []byte{0, 255}, Rows: 3, Estimate: 4, Done: true}},
		},
	})
	st.tx(2, put(2, "two", "a"))
	if head, err := t.s.Head(t.ctx, st.id); err != nil || head.Checkpoint.Op != 0 || head.Persisted != 4 {
		t.Errorf("D1: before NoCheckpointBefore there is a checkpoint: %+v %v", head, err)
	}
	c := st.tx(3, put(1, "one more", "b"))
	check := func() {
		t.Helper()
		st.wantOps("a", 0, c, "1 PUT 1 one; 4 PUT 2 two; 5 REMOVE 1")
		st.wantOps("b", 0, c, "2 PUT 1 one; 7 PUT 1 one more")
		st.wantOps("b", 2, 5, "")
		st.wantOps("c", 0, c, "")
		st.wantSums(c, "a", "b", "c")
		st.wantLookups(c, "[[]]", "l")
		st.wantLookups(5, "[[[1]]]", "l")
		records, err := t.s.Records(t.ctx, st.id, []model.RowKey{row(1), row(9), row(2)})
		t.check(err)
		if records[0] == nil || records[1] != nil || records[2] == nil || records[0].Source != "" || fmt.Sprint(records[0].Buckets) != "[{b t 1}]" {
			t.Errorf("records %+v", records)
		}
		tables, err := t.s.Tables(t.ctx, st.id)
		t.check(err)
		if got := fmt.Sprintf("%+v", tables); got != "[{Table:{ID:[7 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0] Connection:default Schema:s Name:n Columns:[{Name:c Type:25 Key:true}] CompleteRows:true} LastKey:[0 255] Rows:3 Estimate:4 Done:true}]" {
			t.Errorf("tables %s", got)
		}
		head, err := t.s.Head(t.ctx, st.id)
		t.check(err)
		want := model.StreamHead{Epoch: 1, Applied: model.Cursor{Position: position(3)}, Persisted: 7, Checkpoint: model.Checkpoint{Op: 7, Position: position(3)},
			SnapshotDone: true, NoCheckpointBefore: position(3), Origin: "o", CommitTime: 5, Heartbeat: 6, PublishedAt: 7, EvaluatedAt: 8}
		if head != want {
			t.Errorf("head\n%+v, want\n%+v", head, want)
		}
	}
	check()
	t.reopen()
	check()
	st.open()
	if n := st.tx(4, put(3, "three", "a")); n <= c {
		t.Errorf("D2: op id %s after %s", n, c)
	}
}

func testRefused(t *suite) {
	st := t.deploy()
	st.tx(1, put(1, "one", "a"))
	before, err := t.s.Head(t.ctx, st.id)
	t.check(err)
	commit := func(change func(*ledger.Commit)) error {
		c := &ledger.Commit{Stream: st.id, Previous: before.Applied, PreviousOp: before.Persisted, Head: before, Published: true,
			Buckets: []ledger.BucketChange{{Bucket: "a", Checksum: 1, Count: 1, First: 2, Last: 2}},
			Ops:     []ledger.BucketOp{{Op: model.Op{ID: 2, Kind: model.OpPut, Checksum: 1, ObjectType: "t", ObjectID: "x", Data: "no"}}},
			Rows:    []ledger.RowWrite{{Key: row(5), Record: &ledger.Record{}}},
			Entries: []ledger.EntryWrite{{ID: 3, Lookup: "l", Values: "[1]"}},
		}
		c.Head.Applied, c.Head.Persisted, c.Head.Checkpoint = model.Cursor{Position: position(2)}, 3, model.Checkpoint{Op: 3, Position: position(2)}
		change(c)
		return t.s.Commit(t.ctx, c)
	}
	var fenced *store.FencedError
	if err := commit(func(c *ledger.Commit) { c.Head.Epoch-- }); !errors.As(err, &fenced) || fenced.Current != before.Epoch {
		t.Errorf("D5: commit of an older epoch: %v", err)
	}
	var moved *store.MovedError
	if err := commit(func(c *ledger.Commit) { c.Previous = model.Cursor{} }); !errors.As(err, &moved) || moved.Head != before {
		t.Errorf("D4: commit from an earlier cursor: %v", err)
	}
	if err := commit(func(c *ledger.Commit) { c.Previous = model.Cursor{Position: position(9)} }); !errors.As(err, &moved) {
		t.Errorf("D4: commit behind a gap: %v", err)
	}
	if err := commit(func(c *ledger.Commit) { c.PreviousOp++ }); !errors.As(err, &moved) {
		t.Errorf("D2: commit from other op ids: %v", err)
	}
	if err := commit(func(c *ledger.Commit) { c.Stream = 99 }); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("commit to no stream: %v", err)
	}
	head, err := t.s.OpenSession(t.ctx, st.id)
	t.check(err)
	if err := commit(func(*ledger.Commit) {}); !errors.As(err, &fenced) {
		t.Errorf("D5: a revived writer commits: %v", err)
	}
	if _, err := t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{States: map[model.StreamID]model.StreamState{st.id: model.Stopped}}
	}); err != nil {
		t.Fatal(err)
	}
	if err := commit(func(c *ledger.Commit) { c.Head.Epoch = head.Epoch }); !errors.Is(err, store.ErrNotReplicated) {
		t.Errorf("commit to a stopped stream: %v", err)
	}
	if _, err := t.s.OpenSession(t.ctx, st.id); !errors.Is(err, store.ErrNotReplicated) {
		t.Errorf("session of a stopped stream: %v", err)
	}
	after, err := t.s.Head(t.ctx, st.id)
	t.check(err)
	before.Epoch = head.Epoch
	if after != before {
		t.Errorf("D3: the head moved from %+v to %+v", before, after)
	}
	st.wantOps("a", 0, 100, "1 PUT 1 one")
	st.wantSums(100, "a")
	st.wantLookups(100, "[[]]", "l")
	if r, err := t.s.Records(t.ctx, st.id, []model.RowKey{row(5)}); err != nil || r[0] != nil {
		t.Errorf("D3: a refused commit left a record: %v %v", r, err)
	}
}

func testChecksums(t *suite) {
	st := t.deploy()
	for n := range 20 {
		st.tx(n+1, put(n%3, fmt.Sprint("v", n), "a", fmt.Sprint("b", n%2)))
	}
	st.tx(30, remove(1))
	check := func() {
		t.Helper()
		for c := range st.ledger.Head().Persisted + 3 {
			st.wantSums(c, "a", "b0", "b1", "none")
		}
	}
	check()
	t.reopen()
	check()
}

func testLongTransaction(t *suite) {
	st := t.deploy()
	c := st.tx(1, put(1, "x", "a"))
	before := st.sums(c, "a", "b")
	for n := range 5 {
		if got := st.apply(model.Cursor{Position: position(1), Offset: uint64(n + 1)}, put(1, fmt.Sprint("y", n), "a"), put(2, "z", "b")); got != c {
			t.Errorf("INV-2: the checkpoint moved to %s within a transaction", got)
		}
		if now := st.sums(c, "a", "b"); !slices.Equal(now, before) {
			t.Errorf("D1: checksums at the checkpoint %v, before the transaction %v", now, before)
		}
		for c := range st.ledger.Head().Persisted + 2 {
			st.wantSums(c, "a", "b")
		}
	}
	c = st.tx(2, put(1, "end", "a"))
	st.wantSums(c, "a", "b")
	st.wantSums(1, "a", "b")
}

func testTable(t *suite) {
	st := t.deploy()
	other := put(500, "other table", "a")
	other.Key.Table = model.TableID{7, 1}
	var rows []model.EvaluatedRow
	for n := range 25 {
		rows = append(rows, put(n*11, "x", "a"))
	}
	st.tx(1, append(rows, other)...)
	var found []model.RowKey
	after := model.RowID{}
	for more := true; more; {
		var page []ledger.KeyedRecord
		var err error
		page, more, err = t.s.Table(t.ctx, st.id, model.TableID{7}, after, 10)
		t.check(err)
		if len(page) > 10 || len(page) == 0 {
			t.Fatalf("page of %d", len(page))
		}
		for _, r := range page {
			found = append(found, r.Key)
			if len(r.Record.Buckets) != 1 {
				t.Errorf("record %+v", r)
			}
		}
		after = page[len(page)-1].Key.Row
	}
	if len(found) != 25 || found[24] != row(24*11) {
		t.Errorf("found %d rows, the last %v", len(found), found[len(found)-1])
	}
	commits := st.commits
	c := st.tx(2, model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: model.TableID{7}}}, put(3, "again", "a"))
	if st.commits-commits < 5 {
		t.Errorf("a truncate of 25 rows by 3 took %d commits", st.commits-commits)
	}
	left := map[string]bool{}
	for op, err := range t.s.Ops(t.ctx, st.id, "a", 0, c) {
		t.check(err)
		left[strings.Clone(op.ObjectID)] = op.Kind == model.OpPut
	}
	for id, is := range left {
		if is != (id == "500" || id == "3") {
			t.Errorf("INV-11: after the truncate row %s present is %v", id, is)
		}
	}
	if page, more, err := t.s.Table(t.ctx, st.id, model.TableID{7}, model.RowID{}, 10); err != nil || len(page) != 1 || more {
		t.Errorf("records after the truncate: %v %v %v", page, more, err)
	}
}
