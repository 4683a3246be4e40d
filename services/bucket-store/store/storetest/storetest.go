// Package storetest is the contract of store.Store as a suite: every
// implementation runs it.
package storetest

import (
	"context"
	"errors"
	"fmt"
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

	// Break makes the next durable step of the store fail: before any of it is
	// stored, or after all of it is. The failure is an error, or a panic where
	// it would be the end of the process; Reopen follows, and finds what was
	// durable and nothing else, also if there was no durable step. nil: the
	// store cannot be broken, and nobody knows what it does then.
	Break func(persisted bool)
	// Import begins to fill another store of the same kind; open opens what has
	// become of it, again if it is called again. The same place is used by each
	// call. nil: this store cannot be copied.
	Import func() (to store.Import, open func() (store.Store, error))
	// Survives: the store is to be used after a break without Reopen, too.
	Survives bool
	// Small: large amounts of data show nothing here, as everything is in
	// memory or another instance is shown them.
	Small bool
}

// Run runs the suite on instances that open makes; open cleans up after itself.
func Run(t *testing.T, open func(*testing.T) Instance) {
	for _, c := range []struct {
		name string
		test func(*suite)
	}{
		{"Catalog", testCatalog}, {"Layers", testLayers}, {"Clear", testClear}, {"Fencing", testFencing}, {"Deploys", testDeploys},
		{"Commit", testCommit}, {"Refused", testRefused}, {"Redelivered", testRedelivered}, {"LongTransaction", testLongTransaction},
		{"AnotherLog", testAnotherLog}, {"Records", testRecords}, {"Table", testTable}, {"Gone", testGone}, {"LargeTable", testLargeTable}, {"Checksums", testChecksums}, {"Ops", testOps},
		{"Lookups", testLookups}, {"Versions", testVersions}, {"CompactLookups", testCompactLookups},
		{"WriteCheckpoints", testWriteCheckpoints}, {"CreateAtOnce", testCreateAtOnce}, {"CustomCheckpoints", testCustomCheckpoints}, {"ExpireRequests", testExpireRequests},
		{"Scan", testScan}, {"Replace", testReplace}, {"ReplaceRefused", testReplaceRefused}, {"Dirtiest", testDirtiest}, {"Finished", testFinished},
		{"HostileNames", testHostileNames}, {"LargeRow", testLargeRow}, {"LargeBucket", testLargeBucket}, {"ManyBuckets", testManyBuckets},
		{"LikeTheModel", testLikeTheModel}, {"Meanwhile", testMeanwhile}, {"Canceled", testCanceled}, {"Broken", testBroken}, {"Copy", testCopy},
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
		return store.Change{New: &model.Stream{Config: "config", Parts: []string{"p", "q"}, State: model.Processing}, Prefix: "p_", Suffix: "_x"}
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
	// commit makes a commit; nil: the store does.
	commit func(*ledger.Commit) error
}

// open opens a session, as a replicator does.
func (st *stream) open() {
	st.Helper()
	_, err := st.s.OpenSession(st.ctx, st.id)
	st.check(err)
	st.resume()
}

// resume begins at what is stored.
func (st *stream) resume() {
	st.Helper()
	streams, err := st.s.Streams(st.ctx)
	st.check(err)
	for i := range streams {
		if streams[i].ID == st.id {
			st.ledger = ledger.New(&streams[i], ledger.Options{TableRows: 3})
		}
	}
	st.epoch, st.at = st.ledger.Head().Epoch, st.ledger.Head().Applied
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
	st.run(ledger.Arrived{Ticket: 1, Batch: b})
	st.at = b.End
}

// relog begins another log.
func (st *stream) relog(otherHistory bool) {
	st.Helper()
	st.run(ledger.Relog{Ticket: 1, Epoch: st.epoch, OtherHistory: otherHistory})
	st.at = st.ledger.Head().Applied
}

// run steps the ledger until it has nothing more to do.
func (st *stream) run(first ledger.Event) {
	st.Helper()
	queue := []ledger.Event{first}
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
				if st.commit != nil {
					st.check(st.commit(a))
				} else {
					st.check(st.s.Commit(st.ctx, a))
				}
				st.commits++
				queue = append(queue, ledger.Committed{})
			case ledger.Answer:
				if a.Result != ledger.ResultCommitted {
					st.Fatalf("batch: %s %s", a.Result, a.Message)
				}
			case ledger.Relogged:
				if a.Refused != "" {
					st.Fatal(a.Refused)
				}
			case ledger.Broken:
				st.Fatal(a.Reason)
			}
		}
	}
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
