package storetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
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
		if got := fmt.Sprintf("%+v", tables); got != "[{Table:{ID:[7 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0] Connection:default Schema:s Name:n Columns:[{Name:c Type:25 Key:true}] CompleteRows:true} LastKey:[0 255] Rows:3 Estimate:4 Done:true Layer:0}]" {
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

// testRedelivered: a commit made again changes nothing (D4), and neither does one
// whose predecessor is missing.
func testRedelivered(t *suite) {
	st := t.deploy()
	var commits []*ledger.Commit
	st.commit = func(c *ledger.Commit) error {
		kept := *c // the ledger uses its memory again
		kept.Buckets, kept.Ops, kept.Rows, kept.Entries = slices.Clone(c.Buckets), slices.Clone(c.Ops), slices.Clone(c.Rows), slices.Clone(c.Entries)
		commits = append(commits, &kept)
		return t.s.Commit(t.ctx, c)
	}
	all := asked{tables: []model.TableID{{7}}, rows: []model.RowKey{row(1), row(2)}, lookups: []string{"l"}, users: []string{"u"}, heads: []model.Position{position(9)}}
	for n := 1; n <= 4; n++ {
		st.tx(n, put(1, fmt.Sprint("v", n), "a"), entry(2, "l", fmt.Sprint(n)))
	}
	st.give(model.Cursor{Position: position(5)}, model.CustomCheckpoint{UserKey: "u", ID: 3})
	before := t.dump(t.s, all)
	head := st.ledger.Head()
	for range 2 {
		for i, c := range commits {
			var moved *store.MovedError
			if err := t.s.Commit(t.ctx, c); !errors.As(err, &moved) || moved.Head.Applied != head.Applied || moved.Head.Persisted != head.Persisted {
				t.Errorf("D4: commit %d again: %v", i, err)
			}
		}
		gap := st.bulk(head, []string{"a"}, 1)
		gap.Previous = model.Cursor{Position: position(7)}
		var moved *store.MovedError
		if err := t.s.Commit(t.ctx, gap); !errors.As(err, &moved) {
			t.Errorf("D4: a commit behind a gap: %v", err)
		}
		if after := t.dump(t.s, all); after != before {
			t.Fatalf("D4: redelivery changed\n%s\nto\n%s", before, after)
		}
		t.reopen()
	}
}

// bulk is a commit on head that is made without a ledger: ops PUTs in turn in the
// buckets, of a row each.
func (st *stream) bulk(head model.StreamHead, buckets []string, ops int) *ledger.Commit {
	c := &ledger.Commit{Stream: st.id, Previous: head.Applied, PreviousOp: head.Persisted, Head: head, Published: true, Batches: 1, RowCount: ops}
	c.Buckets = make([]ledger.BucketChange, len(buckets))
	c.Ops = make([]ledger.BucketOp, ops)
	for i, b := range buckets {
		c.Buckets[i].Bucket = b
	}
	for i := range c.Ops {
		n := uint64(head.Persisted) + uint64(i) + 1
		op := model.Op{ID: model.OpID(n), Kind: model.OpPut, Checksum: model.Checksum(n * 2654435761), ObjectType: "t", ObjectID: strconv.FormatUint(n, 10), Data: `{"some":"data"}`}
		binary.BigEndian.PutUint64(op.Key.Row[:], n)
		op.Key.Table = model.TableID{7}
		c.Ops[i] = ledger.BucketOp{Bucket: i % len(buckets), Op: op}
		b := &c.Buckets[i%len(buckets)]
		if b.Count++; b.Count == 1 {
			b.First = op.ID
		}
		b.Checksum += op.Checksum
		b.Last = op.ID
	}
	c.Head.Persisted += model.OpID(ops)
	c.Head.Applied = model.Cursor{Position: head.Applied.Position + "+"}
	c.Head.Checkpoint = model.Checkpoint{Op: c.Head.Persisted, Position: c.Head.Applied.Position}
	c.Head.SnapshotDone = true
	return c
}

// testRecords: records come in the order asked for, as they are now.
func testRecords(t *suite) {
	st := t.deploy()
	big := put(2, "x", "a", "b", "\x00", "")
	big.Source = strings.Repeat("source\x00", 1000)
	big.Lookups = []model.ParameterEntry{{Lookup: "l", Values: "[1]"}, {Lookup: "", Values: "[]"}, {Lookup: "m\xff", Values: "[2]"}}
	other := put(1, "of another table", "a")
	other.Key.Table = model.TableID{8}
	st.tx(1, put(1, "x", "a"), put(1, "y", "b"), big, put(3, "x", "a"), remove(3), other, put(0xffff, "last", "a"))
	for range 2 {
		keys := []model.RowKey{row(0xffff), row(3), row(2), row(1), row(2), other.Key, {}, {Table: model.TableID{7}}}
		records, err := t.s.Records(t.ctx, st.id, keys)
		t.check(err)
		var got []string
		for _, r := range records {
			if r == nil {
				got = append(got, "-")
			} else {
				got = append(got, fmt.Sprint(len(r.Buckets), len(r.Lookups), len(r.Source)))
			}
		}
		if s := strings.Join(got, ", "); s != "1 0 0, -, 4 3 7000, 1 0 0, 4 3 7000, 1 0 0, -, -" {
			t.Errorf("records %s", s)
		}
		if r := records[2]; !slices.Equal(r.Lookups, big.Lookups) || r.Source != big.Source || r.Buckets[2] != (ledger.Membership{Bucket: "\x00", ObjectType: "t", ObjectID: "2"}) {
			t.Errorf("record %+v", r)
		}
		if r := records[3]; r.Buckets[0].Bucket != "b" {
			t.Errorf("record %+v is not the newest", r)
		}
		if empty, err := t.s.Records(t.ctx, st.id, nil); err != nil || len(empty) != 0 {
			t.Errorf("no records: %v %v", empty, err)
		}
		// A page that ends where the table does says so.
		for limit, more := range map[int]bool{1: true, 2: true, 3: false, 4: false} {
			page, is, err := t.s.Table(t.ctx, st.id, model.TableID{7}, model.RowID{}, limit)
			if err != nil || len(page) != min(limit, 3) || is != more {
				t.Errorf("a page of %d of 3 records: %d, more %v, %v", limit, len(page), is, err)
			}
		}
		t.reopen()
	}
}

// testOps: bounds of reads, and reads that end early.
func testOps(t *suite) {
	st := t.deploy()
	for n := range 10 {
		st.tx(n+1, put(1, "x", "a"), put(2, "y", "b"))
	}
	c := st.ledger.Head().Checkpoint.Op // a: odd ones, b: even ones
	ids := func(bucket string, after, upTo model.OpID, stop int) (ids []model.OpID) {
		for op, err := range t.s.Ops(t.ctx, st.id, bucket, after, upTo) {
			t.check(err)
			ids = append(ids, op.ID)
			if len(ids) == stop {
				break
			}
		}
		return ids
	}
	for after := range c + 2 {
		for upTo := range c + 4 {
			var want []model.OpID
			for id := model.OpID(1); id <= c; id += 2 {
				if id > after && id <= upTo {
					want = append(want, id)
				}
			}
			if got := ids("a", after, upTo, -1); !slices.Equal(got, want) {
				t.Fatalf("ops in (%s, %s]: %v, want %v", after, upTo, got, want)
			}
			if got := ids("a", after, upTo, 2); !slices.Equal(got, want[:min(2, len(want))]) {
				t.Fatalf("the first two ops in (%s, %s]: %v of %v", after, upTo, got, want)
			}
		}
	}
	if got := ids("a", 0, math.MaxUint64>>1, -1); len(got) != 10 {
		t.Errorf("%d ops up to the end of numbers", len(got))
	}
	count := 0
	for _, err := range t.s.Ops(t.ctx, 99, "a", 0, c) {
		if count++; count > 1 || !errors.Is(err, store.ErrNoStream) {
			t.Errorf("ops of no stream: %d %v", count, err)
		}
	}
	if count != 1 {
		t.Error("ops of no stream end without an error")
	}
	want := st.sums(c, "a", "b", "none")
	if got := st.sums(c, "none", "b", "a", "b"); !slices.Equal(got, []model.BucketState{want[2], want[1], want[0], want[1]}) || want[2] != (model.BucketState{}) {
		t.Errorf("checksums in another order: %v, %v", got, want)
	}
}

// testCanceled: what a caller does not wait for is done or not (D3), and a read
// cut short ends with an error.
func testCanceled(t *suite) {
	st := t.deploy()
	ctx, cancel := context.WithCancel(t.ctx)
	cancel()
	head := st.ledger.Head()
	for n := 1; n <= 5; n++ {
		c := st.bulk(head, []string{"a", "b"}, 10)
		err := t.s.Commit(ctx, c)
		found, herr := t.s.Head(t.ctx, st.id)
		t.check(herr)
		done := found.Applied == c.Head.Applied && found.Persisted == c.Head.Persisted
		if err == nil && !done || err != nil && !done && found != head {
			t.Fatalf("D3: a canceled commit says %v, the head is %+v", err, found)
		}
		if head = found; !done {
			t.check(t.s.Commit(t.ctx, c))
			head, herr = t.s.Head(t.ctx, st.id)
			t.check(herr)
		}
		st.wantSums(head.Checkpoint.Op, "a", "b")
	}
	ctx, cancel = context.WithCancel(t.ctx)
	defer cancel()
	count := 0
	var last error
	for _, err := range t.s.Ops(ctx, st.id, "a", 0, head.Persisted) {
		if last = err; err == nil {
			count++
		}
		cancel()
	}
	if last == nil && count != 25 {
		t.Errorf("a canceled read of 25 ops ends after %d without an error", count)
	}
}
