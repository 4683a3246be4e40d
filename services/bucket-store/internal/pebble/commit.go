package pebble

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Commit stores c in one batch. A crash before the batch is synced leaves
// nothing of it, a crash after it leaves all.
func (s *Store) Commit(_ context.Context, c *ledger.Commit) error {
	if err := s.disk.room(); err != nil {
		return fmt.Errorf("commit stream %d: %w", c.Stream, err)
	}
	if c.Activate || c.Layer > 0 {
		s.catalog.Lock()
		defer s.catalog.Unlock()
	} else {
		s.catalog.RLock()
		defer s.catalog.RUnlock()
	}
	st, err := s.stream(c.Stream)
	if err != nil {
		return err
	}
	st.write.Lock()
	defer st.write.Unlock()
	was := st.head.Load()
	if err := store.CheckCommit(st.definition.Load().State, &was.StreamHead, c); err != nil {
		return fmt.Errorf("stream %d: %w", c.Stream, fault(err))
	}
	now := &head{StreamHead: store.NextHead(&was.StreamHead, c), buckets: was.buckets}

	batch := s.db.NewBatch()
	defer batch.Close()
	w := writer{batch: batch, stream: c.Stream}
	states, err := s.nextStates(&w, st, was, now, c)
	if err != nil {
		return err
	}
	for _, i := range opOrder(c, states) {
		w.op(states[c.Ops[i].Bucket].number, &c.Ops[i].Op)
	}
	for i := range c.Gone {
		if err := s.gone(&w, &c.Gone[i]); err != nil {
			return err
		}
	}
	filter := st.filter.Load()
	for _, i := range rowOrder(c) {
		r := &c.Rows[i]
		w.record(r)
		if filter != nil && r.Record != nil && !filter.add(&r.Key) {
			st.filter.Store(nil)
			filter = nil
		}
	}
	for i := range c.Entries {
		w.entry(&c.Entries[i])
	}
	for i := range c.Progress {
		w.progress(&c.Progress[i])
	}
	w.take(s, streamKey(kindCustom, c.Stream), store.CustomRequests(c), was.Checkpoint.Position)
	w.set(streamKey(kindHead, c.Stream), appendHead(nil, now))
	var moved map[*stream]*model.Stream
	if c.Activate || c.Layer > 0 {
		if moved, err = s.redefine(batch, c); err != nil {
			return err
		}
	}
	if w.err != nil {
		return fmt.Errorf("encode commit: %w", w.err)
	}
	if err := s.apply(batch, pebble.Sync); err != nil {
		return fmt.Errorf("commit stream %d: %w", c.Stream, fault(err))
	}

	for i := range states {
		// Clone: the name may share memory with a whole batch.
		s.states.put(stateKey{c.Stream, c.Buckets[i].Bucket}.clone(), states[i])
	}
	// After the states: whoever sees this checkpoint sees its states. And before
	// the definitions: who is to be served by another config is from here on.
	st.head.Store(now)
	for st, def := range moved {
		st.definition.Store(def)
	}
	s.noteSoon()
	return nil
}

// redefine is setDefinitions where c makes its stream the active one or says that
// its layers are copied.
func (s *Store) redefine(batch *pebble.Batch, c *ledger.Commit) (map[*stream]*model.Stream, error) {
	ids := []model.StreamID{c.Stream}
	for _, d := range s.list() {
		if c.Activate && d.ID != c.Stream && (d.State == model.Active || d.State == model.Errored) {
			ids = append(ids, d.ID)
		}
	}
	return s.setDefinitions(batch, ids, func(d *model.Stream) {
		switch {
		case d.ID != c.Stream:
			d.State = model.Stopped
			return
		case c.Activate:
			d.State, d.Activated = model.Active, c.Head.StoredAt
		}
		d.Copied(c.Layer)
	})
}

// nextStates adds the commit to the states of its buckets and writes them.
func (s *Store) nextStates(w *writer, st *stream, was, now *head, c *ledger.Commit) ([]bucketState, error) {
	states := make([]bucketState, len(c.Buckets))
	for i := range c.Buckets {
		d := &c.Buckets[i]
		b, err := s.state(stateKey{st.id, d.Bucket})
		if err != nil {
			return nil, err
		}
		dirt := b.dirt()
		if b.number == 0 {
			now.buckets++
			b.number = now.buckets
		}
		if b.head.last <= was.Checkpoint.Op {
			b.base, b.first = b.head, d.First
		}
		b.head.checksum += d.Checksum
		b.head.count += d.Count
		b.head.last = d.Last
		b.changes += d.Count
		w.state(d.Bucket, &b, dirt)
		states[i] = b
	}
	return states, nil
}

// opOrder and rowOrder return the indexes of a commit's ops and rows in the
// order of their keys: the memtable takes keys in order about twice as fast.

func opOrder(c *ledger.Commit, states []bucketState) []int32 {
	buckets := make([]int32, len(states))
	for i := range buckets {
		buckets[i] = int32(i)
	}
	slices.SortFunc(buckets, func(a, b int32) int { return cmp.Compare(states[a].number, states[b].number) })
	next := make([]int32, len(states)) // the place of the bucket's next op
	place := int32(0)
	for _, i := range buckets {
		next[i] = place
		place += int32(c.Buckets[i].Count)
	}
	order := make([]int32, len(c.Ops))
	for i := range c.Ops {
		b := c.Ops[i].Bucket
		order[next[b]] = int32(i)
		next[b]++
	}
	return order
}

func rowOrder(c *ledger.Commit) []int32 {
	type row struct {
		id    uint64 // of its first bytes
		index int32
	}
	rows := make([]row, len(c.Rows))
	for i := range c.Rows {
		rows[i] = row{binary.BigEndian.Uint64(c.Rows[i].Key.Row[:]), int32(i)}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.id, b.id) })
	order := make([]int32, len(rows))
	for i := range rows {
		order[i] = rows[i].index
	}
	return order
}

// writer encodes straight into a batch's memory.
type writer struct {
	batch  *pebble.Batch
	stream model.StreamID
	buf    []byte
	key    []byte
	err    error
}

func (w *writer) set(key, value []byte) { w.err = errors.Join(w.err, w.batch.Set(key, value, nil)) }

// state writes a bucket's state, and its place in the index by dirt unless it
// was that dirty before.
func (w *writer) state(bucket string, s *bucketState, was int) {
	w.key = appendBucketKey(w.key[:0], w.stream, bucket)
	w.buf = appendState(w.buf[:0], s)
	w.set(w.key, w.buf)
	is := s.dirt()
	if is == was {
		return
	}
	if was > 0 {
		w.key = appendDirtyKey(w.key[:0], w.stream, was, bucket)
		w.err = errors.Join(w.err, w.batch.Delete(w.key, nil))
	}
	if is > 0 {
		w.key = appendDirtyKey(w.key[:0], w.stream, is, bucket)
		w.set(w.key, nil)
	}
}

func (w *writer) op(bucket uint64, op *model.Op) {
	d := w.batch.SetDeferred(opKeySize, opSize(op))
	putOpKey(d.Key, w.stream, bucket, op.ID)
	appendOp(d.Value[:0], op)
	if err := d.Finish(); err != nil {
		w.err = errors.Join(w.err, err)
	}
}

func (w *writer) record(r *ledger.RowWrite) {
	w.key = appendRecordKey(w.key[:0], w.stream, r.Key)
	if r.Record == nil {
		w.err = errors.Join(w.err, w.batch.Delete(w.key, nil))
		return
	}
	w.buf = record.Append(w.buf[:0], r.Record)
	w.set(w.key, w.buf)
}

// gone removes a range of records: in one step, unless there are few of them (see
// clearFew).
func (s *Store) gone(w *writer, r *ledger.RowRange) error {
	lower := appendRecordKey(nil, w.stream, model.RowKey{Table: r.Table, Row: r.After})
	if r.After != (model.RowID{}) {
		lower = append(lower, 0)
	}
	upper := append(appendRecordKey(nil, w.stream, model.RowKey{Table: r.Table, Row: r.UpTo}), 0)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("read records: %w", fault(err))
	}
	defer it.Close()
	var few [][]byte
	for it.First(); it.Valid() && len(few) <= clearFew; it.Next() {
		few = append(few, bytes.Clone(it.Key()))
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("read records: %w", fault(err))
	}
	if len(few) > clearFew {
		w.err = errors.Join(w.err, w.batch.DeleteRange(lower, upper, nil))
		return nil
	}
	for _, key := range few {
		w.err = errors.Join(w.err, w.batch.Delete(key, nil))
	}
	return nil
}

func (w *writer) entry(e *ledger.EntryWrite) {
	w.key = appendLookupKey(w.key[:0], w.stream, e.Lookup, e.Key, e.ID)
	w.buf = append(w.buf[:0], e.Values...)
	w.set(w.key, w.buf)
}

func (w *writer) progress(p *model.TableProgress) {
	value, err := json.Marshal(p)
	if err != nil {
		w.err = errors.Join(w.err, err)
		return
	}
	w.key = append(appendStream(w.key[:0], kindProgress, w.stream), p.Table.ID[:]...)
	w.set(w.key, value)
}

// Records returns what is known of rows.
func (s *Store) Records(_ context.Context, id model.StreamID, keys []model.RowKey) ([]*ledger.Record, error) {
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	records := make([]*ledger.Record, len(keys))
	filter := st.filter.Load()
	var key []byte
	for i := range keys {
		if filter != nil && !filter.maybe(&keys[i]) {
			continue
		}
		key = appendRecordKey(key[:0], id, keys[i])
		value, ok, err := s.get(key)
		if err != nil {
			return nil, fmt.Errorf("read record: %w", fault(err))
		}
		if !ok {
			continue
		}
		if records[i], err = record.Read(value); err != nil {
			return nil, fmt.Errorf("read record: %w", fault(err))
		}
	}
	return records, nil
}

// tableBytes bounds the records that Table returns, but for one.
const tableBytes = 8 << 20

// Table returns records of a table.
func (s *Store) Table(_ context.Context, id model.StreamID, table model.TableID, from model.RowID, limit int) (rows []ledger.KeyedRecord, more bool, err error) {
	if _, err := s.stream(id); err != nil {
		return nil, false, err
	}
	prefix := append(streamKey(kindRecord, id), table[:]...)
	lower := prefix
	if from != (model.RowID{}) {
		lower = append(append(append([]byte(nil), prefix...), from[:]...), 0)
	}
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: after(prefix)})
	if err != nil {
		return nil, false, fmt.Errorf("read table: %w", fault(err))
	}
	defer iter.Close()
	size := 0
	for iter.First(); iter.Valid(); iter.Next() {
		if len(rows) == limit || size >= tableBytes {
			return rows, true, nil
		}
		size += len(iter.Value())
		rec, err := record.Read(string(iter.Value()))
		if err != nil {
			return nil, false, fmt.Errorf("read table: %w", fault(err))
		}
		row := ledger.KeyedRecord{Key: model.RowKey{Table: table}, Record: rec}
		copy(row.Key.Row[:], iter.Key()[len(prefix):])
		rows = append(rows, row)
	}
	return rows, false, fault(iter.Error())
}
