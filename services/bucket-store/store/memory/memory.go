// Package memory keeps everything in maps: the fake for tests and simulations.
// It passes the same suite as the real stores (TestStore), and Fail makes it
// break.
package memory

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Store is a store.Store.
type Store struct {
	// Fail, if set, is asked before each commit, and may make it fail: before
	// it has done anything, or after it has stored everything.
	Fail func(c *ledger.Commit) Failure

	mu      sync.RWMutex
	next    model.StreamID
	streams map[model.StreamID]*stream       // guarded by mu, with all they hold
	users   map[string]store.UserCheckpoints // guarded by mu
}

// Failure is what Fail makes of a commit.
type Failure uint8

const (
	Succeeds       Failure = iota
	FailsBefore            // nothing is stored
	FailsPersisted         // everything is stored, but the caller gets an error
)

// ErrFailed is what a commit fails with that Fail has picked.
var ErrFailed = errors.New("failed on purpose")

var _ store.Store = (*Store)(nil)

type stream struct {
	model.Stream
	buckets  map[string]*bucket
	dirty    [65]map[string]*bucket              // by Dirt
	entries  map[string]map[model.RowKey][]entry // by lookup; ascending by op
	cleared  model.OpID
	records  map[model.RowKey]*ledger.Record
	progress map[model.TableID]model.TableProgress
	custom   map[string]store.UserCheckpoints
}

type bucket struct {
	ops     []model.Op // ascending
	cleared model.OpID
	changes uint64
}

// index puts a bucket that was of that dirt where it belongs now.
func (st *stream) index(name string, b *bucket, was int) {
	is := b.dirt()
	if is == was {
		return
	}
	delete(st.dirty[was], name)
	if is > 0 {
		if st.dirty[is] == nil {
			st.dirty[is] = map[string]*bucket{}
		}
		st.dirty[is][name] = b
	}
}

func (b *bucket) dirt() int { return store.Dirt(uint64(len(b.ops)), b.changes) }

type entry struct {
	op     model.OpID
	values string
}

// New returns an empty store.
func New() *Store {
	return &Store{streams: map[model.StreamID]*stream{}, users: map[string]store.UserCheckpoints{}}
}

// Close does nothing.
func (s *Store) Close() error { return nil }

// Size counts what the ops, entries and records hold.
func (s *Store) Size(context.Context) (size store.Size, _ error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, st := range s.streams {
		for _, b := range st.buckets {
			for i := range b.ops {
				size.Operations += uint64(64 + len(b.ops[i].Data))
			}
		}
		for lookup, rows := range st.entries {
			for _, versions := range rows {
				size.Parameters += uint64(len(versions) * (48 + len(lookup)))
			}
		}
		size.Replication += uint64(64 * len(st.records))
	}
	return size, nil
}

func (s *Store) stream(id model.StreamID) (*stream, error) {
	if st := s.streams[id]; st != nil && st.State != model.Terminated {
		return st, nil
	}
	return nil, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
}

func (s *Store) list() []model.Stream {
	list := make([]model.Stream, 0, len(s.streams))
	for _, st := range s.streams {
		list = append(list, st.Stream)
	}
	slices.SortFunc(list, func(a, b model.Stream) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Streams returns every stream.
func (s *Store) Streams(context.Context) ([]model.Stream, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list(), nil
}

// Change alters the catalog.
func (s *Store) Change(_ context.Context, decide func([]model.Stream) store.Change) (*model.Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := decide(s.list())
	for _, id := range c.Altered() {
		if s.streams[id] == nil {
			return nil, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
		}
	}
	for _, id := range c.Altered() {
		c.Alter(&s.streams[id].Stream)
	}
	if c.New == nil {
		return nil, nil
	}
	s.next++
	st := &stream{Stream: *c.New}
	st.ID, st.Head = s.next, model.StreamHead{}
	st.Name = fmt.Sprintf("%s%d%s", c.Prefix, st.ID, c.Suffix)
	st.empty()
	s.streams[st.ID] = st
	made := st.Stream
	return &made, nil
}

func (st *stream) empty() {
	st.buckets, st.entries, st.cleared = map[string]*bucket{}, map[string]map[model.RowKey][]entry{}, 0
	st.records, st.progress = map[model.RowKey]*ledger.Record{}, map[model.TableID]model.TableProgress{}
	st.custom, st.dirty = map[string]store.UserCheckpoints{}, [65]map[string]*bucket{}
}

// OpenSession raises the epoch.
func (s *Store) OpenSession(_ context.Context, id model.StreamID) (model.StreamHead, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.stream(id)
	if err != nil {
		return model.StreamHead{}, err
	}
	if !store.Replicated(st.State) {
		return model.StreamHead{}, fmt.Errorf("stream %d: %w", id, store.ErrNotReplicated)
	}
	st.Head.Epoch++
	return st.Head, nil
}

// ReportError keeps the last error.
func (s *Store) ReportError(_ context.Context, id model.StreamID, epoch model.Epoch, message string, at model.Micros) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.stream(id)
	if err != nil {
		return err
	}
	if epoch != st.Head.Epoch {
		return &store.FencedError{Epoch: epoch, Current: st.Head.Epoch}
	}
	st.Head.LastError, st.Head.LastErrorAt = message, at
	if message == "" {
		st.Head.LastErrorAt = 0
	}
	return nil
}

// Tables returns the progress of every table.
func (s *Store) Tables(_ context.Context, id model.StreamID) ([]model.TableProgress, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(st.progress), func(a, b model.TableProgress) int { return bytes.Compare(a.Table.ID[:], b.Table.ID[:]) }), nil
}

// Clear removes a stopped stream's data.
func (s *Store) Clear(_ context.Context, id model.StreamID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	switch {
	case st == nil:
		return fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
	case st.State == model.Terminated:
		return nil
	case st.State != model.Stopped:
		return fmt.Errorf("stream %d is %s: only a stopped one may be cleared", id, st.State)
	}
	st.empty()
	st.State = model.Terminated
	return nil
}

// Commit stores c.
func (s *Store) Commit(_ context.Context, c *ledger.Commit) error {
	failure := Succeeds
	if s.Fail != nil {
		failure = s.Fail(c)
	}
	if failure == FailsBefore {
		return ErrFailed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.stream(c.Stream)
	if err != nil {
		return err
	}
	if err := store.CheckCommit(st.State, &st.Head, c); err != nil {
		return fmt.Errorf("stream %d: %w", c.Stream, err)
	}
	for i := range c.Ops {
		name, op := c.Buckets[c.Ops[i].Bucket].Bucket, c.Ops[i].Op
		name = strings.Clone(name)
		b := st.buckets[name]
		if b == nil {
			b = &bucket{}
			st.buckets[name] = b
		}
		was := b.dirt()
		op.ObjectType, op.ObjectID, op.Data = strings.Clone(op.ObjectType), strings.Clone(op.ObjectID), strings.Clone(op.Data)
		b.ops = append(b.ops, op)
		b.changes++
		st.index(name, b, was)
	}
	for _, r := range c.Gone {
		maps.DeleteFunc(st.records, func(k model.RowKey, _ *ledger.Record) bool { return r.Has(k) })
	}
	for _, r := range c.Rows {
		if r.Record == nil {
			delete(st.records, r.Key)
		} else {
			st.records[r.Key] = clone(r.Record)
		}
	}
	for _, e := range c.Entries {
		rows := st.entries[e.Lookup]
		if rows == nil {
			rows = map[model.RowKey][]entry{}
			st.entries[strings.Clone(e.Lookup)] = rows
		}
		rows[e.Key] = append(rows[e.Key], entry{e.ID, strings.Clone(e.Values)})
	}
	for _, p := range c.Progress {
		st.progress[p.Table.ID] = p
	}
	store.TakeAll(st.custom, store.CustomRequests(c), st.Head.Checkpoint.Position)
	st.Head = store.NextHead(&st.Head, c)
	if c.Activate {
		for _, other := range s.streams {
			if other.State == model.Active || other.State == model.Errored {
				other.State = model.Stopped
			}
		}
		st.State, st.Activated = model.Active, c.Head.StoredAt
	}
	st.Copied(c.Layer)
	if failure == FailsPersisted {
		return ErrFailed
	}
	return nil
}

func clone(r *ledger.Record) *ledger.Record {
	c := &ledger.Record{Buckets: slices.Clone(r.Buckets), Lookups: slices.Clone(r.Lookups), Source: strings.Clone(r.Source), Log: r.Log, Digest: r.Digest}
	for i, m := range c.Buckets {
		c.Buckets[i] = ledger.Membership{Bucket: strings.Clone(m.Bucket), ObjectType: strings.Clone(m.ObjectType), ObjectID: strings.Clone(m.ObjectID)}
	}
	for i, e := range c.Lookups {
		c.Lookups[i] = model.ParameterEntry{Lookup: strings.Clone(e.Lookup), Values: strings.Clone(e.Values)}
	}
	return c
}

// Records returns what is known of rows.
func (s *Store) Records(_ context.Context, id model.StreamID, keys []model.RowKey) ([]*ledger.Record, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	records := make([]*ledger.Record, len(keys))
	for i, k := range keys {
		if r := st.records[k]; r != nil {
			records[i] = clone(r)
		}
	}
	return records, nil
}

// Table returns records of a table.
func (s *Store) Table(_ context.Context, id model.StreamID, table model.TableID, after model.RowID, limit int) ([]ledger.KeyedRecord, bool, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, false, err
	}
	var rows []ledger.KeyedRecord
	for k, r := range st.records {
		if k.Table == table && (after == model.RowID{} || bytes.Compare(k.Row[:], after[:]) > 0) {
			rows = append(rows, ledger.KeyedRecord{Key: k, Record: clone(r)})
		}
	}
	slices.SortFunc(rows, func(a, b ledger.KeyedRecord) int { return bytes.Compare(a.Key.Row[:], b.Key.Row[:]) })
	if len(rows) > limit {
		return rows[:limit], true, nil
	}
	return rows, false, nil
}

// Head returns a stream's head.
func (s *Store) Head(_ context.Context, id model.StreamID) (model.StreamHead, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return model.StreamHead{}, err
	}
	return st.Head, nil
}

// Checksums sums up.
func (s *Store) Checksums(_ context.Context, id model.StreamID, c model.OpID, buckets []string) ([]model.BucketState, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	out := make([]model.BucketState, len(buckets))
	for i, name := range buckets {
		b := st.buckets[name]
		if b == nil {
			continue
		}
		if c < b.cleared {
			return nil, store.ErrInvalidated
		}
		for _, op := range b.ops {
			if op.ID <= c {
				out[i].Checksum += op.Checksum
				out[i].Count++
			}
		}
	}
	return out, nil
}

// between returns a copy of a bucket's ops in (from, to].
func (s *Store) between(id model.StreamID, name string, from, to model.OpID, check bool) ([]model.Op, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	b := st.buckets[name]
	if b == nil || from >= to {
		return nil, nil
	}
	if check && to < b.cleared {
		return nil, store.ErrInvalidated
	}
	var ops []model.Op
	for _, op := range b.ops {
		if op.ID > from && op.ID <= to {
			ops = append(ops, op)
		}
	}
	return ops, nil
}

// Ops yields a bucket's ops.
func (s *Store) Ops(_ context.Context, id model.StreamID, bucket string, after, upTo model.OpID) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		ops, err := s.between(id, bucket, after, upTo, true)
		if err != nil {
			yield(model.Op{}, err)
			return
		}
		for _, op := range ops {
			if !yield(op, nil) {
				return
			}
		}
	}
}

// Lookups reads the parameter index.
func (s *Store) Lookups(_ context.Context, id model.StreamID, c model.OpID, lookups []string, limit int) ([][]string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	if c < st.cleared {
		return nil, store.ErrInvalidated
	}
	results := make([][]string, len(lookups))
	found := 0
	for i, lookup := range lookups {
		rows := st.entries[lookup]
		for _, key := range slices.SortedFunc(maps.Keys(rows), compareKeys) {
			values := ""
			for _, e := range rows[key] {
				if e.op <= c {
					values = e.values
				}
			}
			if values == "" {
				continue
			}
			if found++; found > limit {
				return nil, &store.LimitError{Limit: limit}
			}
			results[i] = append(results[i], values)
		}
	}
	return results, nil
}

func compareKeys(a, b model.RowKey) int {
	return cmp.Or(bytes.Compare(a.Table[:], b.Table[:]), bytes.Compare(a.Row[:], b.Row[:]))
}

// CreateWriteCheckpoints gives requests their numbers.
func (s *Store) CreateWriteCheckpoints(_ context.Context, position model.Position, requests []store.WriteCheckpointRequest) ([]model.WriteCheckpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, _ := store.TakeAll(s.users, requests, position)
	return taken, nil
}

// Reached returns the numbers that position has reached.
func (s *Store) Reached(_ context.Context, position model.Position, keys []string) ([]uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return reached(s.users, position, keys), nil
}

// CustomReached returns a stream's custom numbers that position has reached.
func (s *Store) CustomReached(_ context.Context, id model.StreamID, position model.Position, keys []string) ([]uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	return reached(st.custom, position, keys), nil
}

func reached(users map[string]store.UserCheckpoints, position model.Position, keys []string) []uint64 {
	ids := make([]uint64, len(keys))
	for i, key := range keys {
		u := users[key]
		ids[i] = u.Reached(position)
	}
	return ids
}

// Unreached yields what position has not reached.
func (s *Store) Unreached(_ context.Context, position model.Position) iter.Seq2[model.WriteCheckpoint, error] {
	return func(yield func(model.WriteCheckpoint, error) bool) {
		s.mu.RLock()
		users := maps.Clone(s.users)
		s.mu.RUnlock()
		for _, key := range slices.Sorted(maps.Keys(users)) {
			if u := users[key]; u.Head > position && !yield(model.WriteCheckpoint{UserKey: key, ID: u.ID, Head: u.Head}, nil) {
				return
			}
		}
	}
}

// Dirtiest lists buckets.
func (s *Store) Dirtiest(_ context.Context, id model.StreamID, q store.DirtyQuery) ([]store.DirtyBucket, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	var out []store.DirtyBucket
	list := func(names iter.Seq[string]) bool {
		for _, name := range slices.Compact(slices.Sorted(names)) {
			b := st.buckets[name]
			if b == nil || b.changes < q.MinChanges && len(q.Only) == 0 || q.After != "" && name <= q.After {
				continue
			}
			out = append(out, store.DirtyBucket{Bucket: name, Ops: uint64(len(b.ops)), Changes: b.changes})
			if len(out) == q.Limit {
				return false
			}
		}
		return true
	}
	switch {
	case len(q.Only) > 0:
		list(slices.Values(q.Only))
	case q.MinChanges == 0:
		list(maps.Keys(st.buckets))
	default:
		q.After = ""
		for dirt := len(st.dirty) - 1; dirt >= bits.Len64(q.MinChanges) && list(maps.Keys(st.dirty[dirt])); dirt-- {
		}
	}
	return out, nil
}

// Scan yields a bucket's ops without data.
func (s *Store) Scan(_ context.Context, id model.StreamID, bucket string, downTo, upTo model.OpID, ascending bool) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		ops, err := s.between(id, bucket, downTo, upTo, false)
		if err != nil {
			yield(model.Op{}, err)
			return
		}
		if !ascending {
			slices.Reverse(ops)
		}
		for _, op := range ops {
			op.Data = ""
			if !yield(op, nil) {
				return
			}
		}
	}
}

// Replace rewrites ops.
func (s *Store) Replace(_ context.Context, id model.StreamID, r store.Replacement) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.stream(id)
	if err != nil {
		return 0, err
	}
	refuse := func(op model.OpID, reason string) (uint64, error) {
		return 0, &store.ReplaceError{Bucket: r.Bucket, Op: op, Reason: reason}
	}
	b := st.buckets[r.Bucket]
	if b == nil {
		return refuse(0, "there is no such bucket")
	}
	if r.Checkpoint > st.Head.Checkpoint.Op || r.ClearTo > r.Checkpoint {
		return refuse(max(r.Checkpoint, r.ClearTo), "it is above the checkpoint")
	}
	ops := slices.Clone(b.ops)
	find := func(id model.OpID) *model.Op {
		i, found := slices.BinarySearchFunc(b.ops, id, func(op model.Op, id model.OpID) int { return cmp.Compare(op.ID, id) })
		if !found {
			return nil
		}
		return &b.ops[i]
	}
	named := map[model.OpID]bool{}
	for _, m := range r.Moves {
		op, target := find(m.ID), find(m.Target)
		switch {
		case m.ID >= m.Target || m.Target > r.Checkpoint:
			return refuse(m.ID, "its target is not between it and the checkpoint")
		case op == nil || named[m.ID]:
			return refuse(m.ID, "it is not there, or named twice")
		}
		named[m.ID] = true
		if op.Kind == model.OpMove {
			continue
		}
		if target == nil || op.Kind == model.OpClear || (target.Kind != model.OpPut && target.Kind != model.OpRemove) ||
			op.Key != target.Key || op.ObjectType != target.ObjectType || op.ObjectID != target.ObjectID {
			return refuse(m.ID, "its target does not supersede it")
		}
		i, _ := slices.BinarySearchFunc(ops, m.ID, func(op model.Op, id model.OpID) int { return cmp.Compare(op.ID, id) })
		ops[i] = model.Op{ID: op.ID, Kind: model.OpMove, Checksum: op.Checksum, Target: m.Target}
	}
	var removed uint64
	if r.ClearTo > 0 {
		n, found := slices.BinarySearchFunc(ops, r.ClearTo, func(op model.Op, id model.OpID) int { return cmp.Compare(op.ID, id) })
		if !found {
			return refuse(r.ClearTo, "it is not there")
		}
		clear := model.Op{ID: r.ClearTo, Kind: model.OpClear}
		for _, op := range ops[:n+1] {
			if op.Kind == model.OpPut {
				return refuse(op.ID, "it is a PUT and cannot be cleared")
			}
			clear.Checksum += op.Checksum
			clear.Target = max(clear.Target, op.Target)
		}
		removed = uint64(n)
		ops = append([]model.Op{clear}, ops[n+1:]...)
		if removed > 0 {
			b.cleared = max(b.cleared, r.ClearTo)
		}
	}
	was := b.dirt()
	b.ops = ops
	if r.Finished {
		n, _ := slices.BinarySearchFunc(ops, r.Checkpoint+1, func(op model.Op, id model.OpID) int { return cmp.Compare(op.ID, id) })
		b.changes = uint64(len(ops) - n)
	}
	st.index(strings.Clone(r.Bucket), b, was)
	return removed, nil
}

// CompactLookups drops superseded entries. A place is a lookup with a byte
// before it.
func (s *Store) CompactLookups(_ context.Context, id model.StreamID, c model.OpID, after []byte, limit int) (removed uint64, next []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.stream(id)
	if err != nil {
		return 0, nil, err
	}
	if c > st.Head.Checkpoint.Op {
		return 0, nil, &store.ReplaceError{Op: c, Reason: "it is above the checkpoint"}
	}
	looked := 0
	for _, lookup := range slices.Sorted(maps.Keys(st.entries)) {
		if len(after) > 0 && lookup < string(after[1:]) {
			continue
		}
		if limit > 0 && looked >= limit {
			return removed, append([]byte{'l'}, lookup...), nil
		}
		for key, versions := range st.entries[lookup] {
			looked += len(versions)
			newest := -1
			for i, e := range versions {
				if e.op <= c {
					newest = i
				}
			}
			if newest < 0 {
				continue
			}
			drop := newest
			if versions[newest].values == "" {
				drop++
			}
			if drop == 0 {
				continue
			}
			st.cleared = max(st.cleared, versions[newest].op)
			removed += uint64(drop)
			if drop == len(versions) {
				delete(st.entries[lookup], key)
			} else {
				st.entries[lookup][key] = slices.Clone(versions[drop:])
			}
		}
	}
	return removed, nil, nil
}

// ExpireRequests drops old requests. A place is a key with a byte before it
// that says whether it is custom.
func (s *Store) ExpireRequests(_ context.Context, id model.StreamID, before model.Micros, after []byte, limit int) (removed uint64, next []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.stream(id)
	if err != nil {
		return 0, nil, err
	}
	looked := 0
	position := st.Head.Checkpoint.Position
	for kind, users := range []map[string]store.UserCheckpoints{s.users, st.custom} {
		reached := position // custom ones are of the stream
		if kind == 0 {
			reached = st.Place(position)
		}
		for _, key := range slices.Sorted(maps.Keys(users)) {
			place := append([]byte{byte(kind)}, key...)
			if bytes.Compare(place, after) < 0 {
				continue
			}
			if limit > 0 && looked >= limit {
				return removed, place, nil
			}
			looked++
			if u := users[key]; u.Expired(reached, before) {
				delete(users, key)
				removed++
			}
		}
	}
	return removed, nil, nil
}
