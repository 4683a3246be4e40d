// Package storetest is the contract of store.Store as a suite: every
// implementation runs it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Instance is an empty store. Reopen closes it and opens it again; the data is
// there as after a restart.
type Instance struct {
	Store  store.Store
	Reopen func() store.Store
}

// Run runs the suite on instances that open makes; open cleans up after itself.
func Run(t *testing.T, open func(*testing.T) Instance) {
	for _, c := range []struct {
		name string
		test func(*suite)
	}{
		{"Commit", testCommit}, {"Refused", testRefused}, {"Catalog", testCatalog}, {"Clear", testClear},
		{"Checksums", testChecksums}, {"LongTransaction", testLongTransaction}, {"Lookups", testLookups},
		{"HostileNames", testHostileNames}, {"LargeRow", testLargeRow}, {"Table", testTable},
		{"WriteCheckpoints", testWriteCheckpoints}, {"CustomCheckpoints", testCustomCheckpoints}, {"ExpireRequests", testExpireRequests}, {"Replace", testReplace}, {"ReplaceRefused", testReplaceRefused},
		{"CompactLookups", testCompactLookups}, {"Dirtiest", testDirtiest}, {"LikeTheModel", testLikeTheModel}, {"Meanwhile", testMeanwhile},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := open(t)
			c.test(&suite{T: t, ctx: t.Context(), s: i.Store, instance: i})
		})
	}
}

type suite struct {
	*testing.T
	ctx      context.Context
	s        store.Store
	instance Instance
}

func (t *suite) check(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *suite) reopen() {
	t.Helper()
	t.s = t.instance.Reopen()
}

// deploy makes a stream that is being processed.
func (t *suite) deploy() *stream {
	t.Helper()
	made, err := t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{New: &model.Stream{Config: "config", State: model.Processing}, Prefix: "p_", Suffix: "_x"}
	})
	t.check(err)
	st := &stream{suite: t, id: made.ID}
	st.open()
	return st
}

// stream drives one stream through a ledger.
type stream struct {
	*suite
	id      model.StreamID
	ledger  *ledger.Ledger
	epoch   model.Epoch
	at      model.Cursor
	now     model.Micros // StoredAt of commits
	commits int
}

// open opens a session, as a replicator does.
func (st *stream) open() {
	st.Helper()
	head, err := st.s.OpenSession(st.ctx, st.id)
	st.check(err)
	streams, err := st.s.Streams(st.ctx)
	st.check(err)
	for i := range streams {
		if streams[i].ID == st.id {
			st.ledger = ledger.New(&streams[i], ledger.Options{TableRows: 3})
		}
	}
	st.epoch, st.at = head.Epoch, head.Applied
}

func position(n int) model.Position { return model.Position(fmt.Sprintf("%08d", n)) }

// apply commits a batch up to the given cursor and returns the checkpoint op.
func (st *stream) apply(end model.Cursor, rows ...model.EvaluatedRow) model.OpID {
	st.Helper()
	b := &model.EvaluatedBatch{Stream: st.id, Epoch: st.epoch, Previous: st.at, End: end, Rows: rows}
	b.Meta.SnapshotDone = true
	st.applyBatch(b)
	return st.ledger.Head().Checkpoint.Op
}

// tx commits a whole transaction.
func (st *stream) tx(n int, rows ...model.EvaluatedRow) model.OpID {
	st.Helper()
	return st.apply(model.Cursor{Position: position(n)}, rows...)
}

func (st *stream) applyBatch(b *model.EvaluatedBatch) {
	st.Helper()
	queue := []ledger.Event{ledger.Arrived{Ticket: 1, Batch: b}}
	for len(queue) > 0 {
		e := queue[0]
		queue = queue[1:]
		for _, a := range st.ledger.Step(e) {
			switch a := a.(type) {
			case ledger.Load:
				r, err := st.s.Records(st.ctx, st.id, a.Keys)
				st.check(err)
				queue = append(queue, ledger.Loaded{Records: r})
			case ledger.LoadTable:
				rows, more, err := st.s.Table(st.ctx, st.id, a.Table, a.After, a.Limit)
				st.check(err)
				queue = append(queue, ledger.TableLoaded{Rows: rows, More: more})
			case *ledger.Commit:
				a.Head.StoredAt = st.now
				st.check(st.s.Commit(st.ctx, a))
				st.commits++
				queue = append(queue, ledger.Committed{})
			case ledger.Answer:
				if a.Result != ledger.ResultCommitted {
					st.Fatalf("batch %s: %s %s", b.End, a.Result, a.Message)
				}
			case ledger.Broken:
				st.Fatal(a.Reason)
			}
		}
	}
	st.at = b.End
}

func row(n int) model.RowKey {
	return model.RowKey{Table: model.TableID{7}, Row: model.RowID{byte(n >> 8), byte(n)}}
}

// put is row n with data v in buckets.
func put(n int, v string, buckets ...string) model.EvaluatedRow {
	r := model.EvaluatedRow{Kind: model.RowPut, Key: row(n)}
	for _, b := range buckets {
		sum, _ := model.PutChecksum("t", fmt.Sprint(n), v, nil)
		r.Puts = append(r.Puts, model.Put{Bucket: b, ObjectType: "t", ObjectID: fmt.Sprint(n), Data: v, Checksum: sum})
	}
	return r
}

func remove(n int) model.EvaluatedRow { return model.EvaluatedRow{Kind: model.RowDelete, Key: row(n)} }

// entry is row n under a lookup.
func entry(n int, lookup, values string) model.EvaluatedRow {
	return model.EvaluatedRow{Kind: model.RowPut, Key: row(n), Lookups: []model.ParameterEntry{{Lookup: lookup, Values: values}}}
}

// ops reads a bucket as text.
func (st *stream) ops(bucket string, after, upTo model.OpID) string {
	st.Helper()
	var b strings.Builder
	for op, err := range st.s.Ops(st.ctx, st.id, bucket, after, upTo) {
		if errors.Is(err, store.ErrInvalidated) {
			return "invalidated"
		}
		st.check(err)
		b.WriteString(opText(&op))
	}
	return strings.TrimSuffix(b.String(), "; ")
}

func opText(op *model.Op) string {
	switch op.Kind {
	case model.OpPut:
		return fmt.Sprintf("%s PUT %s %s; ", op.ID, op.ObjectID, op.Data)
	case model.OpRemove:
		return fmt.Sprintf("%s REMOVE %s; ", op.ID, op.ObjectID)
	}
	return fmt.Sprintf("%s %s ->%s; ", op.ID, op.Kind, op.Target)
}

func (st *stream) wantOps(bucket string, after, upTo model.OpID, want string) {
	st.Helper()
	if got := st.ops(bucket, after, upTo); got != want {
		st.Errorf("ops of %q in (%s, %s]:\n %s\nwant\n %s", bucket, after, upTo, got, want)
	}
}

// sums reads checksums; nil if invalidated.
func (st *stream) sums(c model.OpID, buckets ...string) []model.BucketState {
	st.Helper()
	states, err := st.s.Checksums(st.ctx, st.id, c, buckets)
	if errors.Is(err, store.ErrInvalidated) {
		return nil
	}
	st.check(err)
	return states
}

// wantSums holds D7: a checksum is the sum of the ops sent to a new client.
func (st *stream) wantSums(c model.OpID, buckets ...string) {
	st.Helper()
	got := st.sums(c, buckets...)
	if got == nil {
		st.Errorf("checksums at %s are invalidated", c)
		return
	}
	for i, name := range buckets {
		var want model.BucketState
		for op, err := range st.s.Ops(st.ctx, st.id, name, 0, c) {
			st.check(err)
			want.Checksum += op.Checksum
			want.Count++
		}
		if got[i] != want {
			st.Errorf("D7: bucket %q at %s has %v, its ops %v", name, c, got[i], want)
		}
	}
}

func (st *stream) lookups(c model.OpID, lookups ...string) string {
	st.Helper()
	found, err := st.s.Lookups(st.ctx, st.id, c, lookups, 1000)
	if errors.Is(err, store.ErrInvalidated) {
		return "invalidated"
	}
	st.check(err)
	return fmt.Sprint(found)
}

func (st *stream) wantLookups(c model.OpID, want string, lookups ...string) {
	st.Helper()
	if got := st.lookups(c, lookups...); got != want {
		st.Errorf("lookups %q at %s: %s, want %s", lookups, c, got, want)
	}
}

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

func testCatalog(t *suite) {
	states := func() string {
		t.Helper()
		streams, err := t.s.Streams(t.ctx)
		t.check(err)
		var b strings.Builder
		for _, s := range streams {
			fmt.Fprintf(&b, "%s %s %s\n", s.Name, s.State, s.Text())
		}
		return b.String()
	}
	first := t.deploy()
	first.tx(1, put(1, "x", "a"))
	second := t.deploy()
	if got := states(); got != "p_1_x ACTIVE config\np_2_x PROCESSING config\n" {
		t.Errorf("states\n%s", got)
	}
	if _, err := t.s.Change(t.ctx, func(s []model.Stream) store.Change {
		if len(s) != 2 || s[0].Head.Checkpoint.Op != 1 {
			t.Errorf("decide sees %+v", s)
		}
		return store.Change{States: map[model.StreamID]model.StreamState{first.id: model.Errored}}
	}); err != nil {
		t.Fatal(err)
	}
	second.tx(1, put(1, "y", "a"))
	if got := states(); got != "p_1_x STOP config\np_2_x ACTIVE config\n" {
		t.Errorf("INV-36: states\n%s", got)
	}
	first.wantOps("a", 0, 10, "1 PUT 1 x")
	second.wantOps("a", 0, 10, "1 PUT 1 y")
	if err := t.s.ReportError(t.ctx, second.id, second.epoch, "slot lost", 5); err != nil {
		t.Fatal(err)
	}
	if err := t.s.ReportError(t.ctx, second.id, second.epoch+1, "no", 5); err == nil {
		t.Error("D5: an error of another epoch is kept")
	}
	if h, err := t.s.Head(t.ctx, second.id); err != nil || h.LastError != "slot lost" || h.LastErrorAt != 5 {
		t.Errorf("head %+v %v", h, err)
	}
	second.apply(model.Cursor{Position: position(1), Offset: 1})
	if h, err := t.s.Head(t.ctx, second.id); err != nil || h.LastError != "slot lost" {
		t.Errorf("an error is gone without a checkpoint: %+v %v", h, err)
	}
	second.tx(2)
	if h, err := t.s.Head(t.ctx, second.id); err != nil || h.LastError != "" || h.LastErrorAt != 0 {
		t.Errorf("an error stays after a checkpoint: %+v %v", h, err)
	}
	if _, err := t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{Edited: map[model.StreamID]string{second.id: "edited"}, States: map[model.StreamID]model.StreamState{first.id: model.Errored}}
	}); err != nil {
		t.Fatal(err)
	}
	third := t.deploy()
	third.now = 77
	third.tx(1)
	if got := states(); got != "p_1_x STOP config\np_2_x STOP edited\np_3_x ACTIVE config\n" {
		t.Errorf("states\n%s", got)
	}
	if _, err := t.s.Change(t.ctx, func([]model.Stream) store.Change { return store.Change{Edited: map[model.StreamID]string{42: "x"}} }); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("the text of no stream is changed: %v", err)
	}
	before := states()
	t.reopen()
	streams, err := t.s.Streams(t.ctx)
	t.check(err)
	if s := streams[2]; s.Activated != 77 || s.Edited != "" || streams[1].Edited != "edited" || streams[1].Config != "config" {
		t.Errorf("streams %+v", streams)
	}
	if got := states(); got != before {
		t.Errorf("states after a restart\n%s", got)
	}
	if fourth := t.deploy(); fourth.id != 4 {
		t.Errorf("stream id %d", fourth.id)
	}
	if _, err := t.s.Head(t.ctx, 42); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("no such stream: %v", err)
	}
}

func testClear(t *suite) {
	a, b := t.deploy(), t.deploy()
	rows := []model.EvaluatedRow{put(1, "x", "a", "b"), entry(2, "l", "[1]")}
	a.tx(1, rows...)
	b.tx(1, rows...)
	if err := t.s.Clear(t.ctx, b.id); err == nil {
		t.Error("an active stream is cleared")
	}
	t.check(t.s.Clear(t.ctx, a.id)) // stopped by b's activation
	t.check(t.s.Clear(t.ctx, a.id))
	for range 2 {
		if _, err := t.s.Checksums(t.ctx, a.id, 3, []string{"a"}); !errors.Is(err, store.ErrNoStream) {
			t.Errorf("checksums of a cleared stream: %v", err)
		}
		for _, err := range t.s.Ops(t.ctx, a.id, "a", 0, 3) {
			if !errors.Is(err, store.ErrNoStream) {
				t.Errorf("ops of a cleared stream: %v", err)
			}
		}
		b.wantOps("a", 0, 3, "1 PUT 1 x") // INV-41
		b.wantSums(3, "a", "b")
		b.wantLookups(3, "[[[1]]]", "l")
		t.reopen()
	}
	streams, err := t.s.Streams(t.ctx)
	t.check(err)
	if len(streams) != 2 || streams[0].State != model.Terminated {
		t.Errorf("streams %+v", streams)
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

func testLookups(t *suite) {
	st := t.deploy()
	c1 := st.tx(1, entry(1, "l", "[1]"), entry(2, "l", "[2]"), entry(3, "m", "[3]"))
	c2 := st.tx(2, entry(1, "l", "[10]"), entry(2, "m", "[20]"))
	c3 := st.tx(3, remove(1), remove(3))
	check := func() {
		t.Helper()
		st.wantLookups(0, "[[] [] []]", "l", "m", "n")
		st.wantLookups(c1, "[[[1] [2]] [[3]] []]", "l", "m", "n")
		st.wantLookups(c2, "[[[10]] [[20] [3]] []]", "l", "m", "n")
		st.wantLookups(c3, "[[] [[20]] []]", "l", "m", "n")
		st.wantLookups(c3, "[[[20]] [[20]]]", "m", "m")
		var limit *store.LimitError
		if _, err := t.s.Lookups(t.ctx, st.id, c1, []string{"l", "m"}, 2); !errors.As(err, &limit) || limit.Limit != 2 {
			t.Errorf("more than the limit: %v", err)
		}
		if _, err := t.s.Lookups(t.ctx, st.id, c1, []string{"l", "m"}, 3); err != nil {
			t.Errorf("as many as the limit: %v", err)
		}
	}
	check()
	t.reopen()
	check()
}

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

func testWriteCheckpoints(t *suite) {
	create := func(visible, want string, requests ...store.WriteCheckpointRequest) {
		t.Helper()
		made, err := t.s.CreateWriteCheckpoints(t.ctx, model.Position(visible), requests)
		t.check(err)
		var ids []string
		for _, m := range made {
			ids = append(ids, fmt.Sprint(m.UserKey, m.ID, m.Head))
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("made %s, want %s", got, want)
		}
	}
	reached := func(position, want string) {
		t.Helper()
		ids, err := t.s.Reached(t.ctx, model.Position(position), []string{"u", "v", "w"})
		t.check(err)
		if got := fmt.Sprint(ids); got != want {
			t.Errorf("reached at %s: %s, want %s", position, got, want)
		}
	}
	request := func(key string, id uint64, head string) store.WriteCheckpointRequest {
		return store.WriteCheckpointRequest{UserKey: key, ID: id, Head: model.Position(head)}
	}
	create("0", "u1a u2b v1b", request("u", 0, "a"), request("u", 0, "b"), request("v", 0, "b"))
	reached("a", "[0 0 0]") // a newer number takes an unreached one's place
	reached("b", "[2 1 0]")
	create("b", "u3d", request("u", 0, "d"))
	reached("c", "[2 1 0]") // INV-26: what was reached stays
	reached("d", "[3 1 0]")
	create("d", "u7e", request("u", 7, "e"))
	create("d", "u7e", request("u", 5, "z")) // lower: nothing changes
	create("d", "u7e", request("u", 7, "z")) // equal: the head stays
	create("d", "w9223372036854775807f", request("w", 1<<63-1, "f"))
	t.reopen()
	reached("d", "[3 1 0]")
	reached("f", "[7 1 9223372036854775807]")
	unreached := func(position, want string) {
		t.Helper()
		var got []string
		for w, err := range t.s.Unreached(t.ctx, model.Position(position)) {
			t.check(err)
			got = append(got, fmt.Sprint(w.UserKey, w.ID, w.Head))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("unreached at %s: %s, want %s", position, s, want)
		}
	}
	unreached("d", "u7e w9223372036854775807f")
	unreached("f", "")
}
