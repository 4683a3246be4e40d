package pebble

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Dirtiest lists buckets: by need, from the index by dirt.
func (s *Store) Dirtiest(_ context.Context, id model.StreamID, q store.DirtyQuery) ([]store.DirtyBucket, error) {
	if _, err := s.stream(id); err != nil {
		return nil, err
	}
	if len(q.Only) > 0 {
		return s.only(id, q)
	}
	kind, skip := byte(kindBucket), 0
	if q.MinChanges > 0 {
		kind, skip = kindDirty, 1
	}
	lower, upper := streamRange(kind, id)
	prefix := len(lower) + skip
	switch {
	case q.MinChanges > 0:
		upper = appendDirtyKey(nil, id, bits.Len64(q.MinChanges)-1, "")
	case q.After != "":
		lower = append(appendBucketKey(nil, id, q.After), 0)
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("read dirty buckets: %w", fault(err))
	}
	defer it.Close()
	var out []store.DirtyBucket
	for it.First(); it.Valid() && (q.Limit == 0 || len(out) < q.Limit); it.Next() {
		name := string(it.Key()[prefix:])
		var b bucketState
		if kind == kindBucket {
			b, err = readState(it.Value())
		} else {
			b, err = s.state(stateKey{id, name})
		}
		if err != nil {
			return nil, fmt.Errorf("read dirty buckets: %w", fault(err))
		}
		if b.changes >= q.MinChanges { // it may have been compacted since
			out = append(out, store.DirtyBucket{Bucket: name, Ops: b.head.count, Changes: b.changes})
		}
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("read dirty buckets: %w", fault(err))
	}
	return out, nil
}

// dirtIndexed is there once the index by dirt is.
var dirtIndexed = []byte{kindMeta, 'd'}

// indexDirt makes the index by dirt of a store of before there was one. A crash
// before its end has it made again.
func (s *Store) indexDirt() error {
	if _, ok, err := s.get(dirtIndexed); ok || err != nil {
		return err
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{kindBucket}, UpperBound: []byte{kindBucket + 1}})
	if err != nil {
		return err
	}
	defer it.Close()
	batch := s.db.NewBatch()
	defer func() { batch.Close() }()
	for it.First(); it.Valid(); it.Next() {
		b, err := readState(it.Value())
		if err != nil {
			return err
		}
		if b.dirt() == 0 {
			continue
		}
		stream := model.StreamID(binary.BigEndian.Uint64(it.Key()[1:]))
		if err := batch.Set(appendDirtyKey(nil, stream, b.dirt(), string(it.Key()[9:])), nil, nil); err != nil {
			return err
		}
		if batch.Count() >= lookupStep {
			if err := s.apply(batch, pebble.NoSync); err != nil {
				return err
			}
			batch.Close()
			batch = s.db.NewBatch()
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	if err := batch.Set(dirtIndexed, nil, nil); err != nil {
		return err
	}
	return s.apply(batch, pebble.Sync)
}

func (s *Store) only(id model.StreamID, q store.DirtyQuery) ([]store.DirtyBucket, error) {
	var out []store.DirtyBucket
	names := slices.Clone(q.Only)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if q.After != "" && name <= q.After || q.Limit > 0 && len(out) == q.Limit {
			continue
		}
		b, err := s.state(stateKey{id, name})
		if err != nil {
			return nil, err
		}
		if b.number != 0 {
			out = append(out, store.DirtyBucket{Bucket: name, Ops: b.head.count, Changes: b.changes})
		}
	}
	return out, nil
}

// Scan yields a bucket's ops without data.
func (s *Store) Scan(_ context.Context, id model.StreamID, bucket string, downTo, upTo model.OpID, ascending bool) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		var op model.Op
		err := s.ops(id, bucket, downTo, upTo, !ascending, false, func(key, value []byte) (bool, error) {
			if err := readOp(opID(key), value, &op); err != nil {
				return false, err
			}
			op.Data = ""
			return yield(op, nil), nil
		})
		if err != nil {
			yield(model.Op{}, err)
		}
	}
}

// Replace rewrites ops. They are at or below the checkpoint, so no commit
// touches them and they are looked at without holding up commits; only the
// bucket's state is shared with those.
func (s *Store) Replace(_ context.Context, id model.StreamID, r store.Replacement) (uint64, error) {
	st, err := s.stream(id)
	if err != nil {
		return 0, err
	}
	st.compact.Lock()
	defer st.compact.Unlock()
	key := stateKey{id, r.Bucket}
	b, err := s.state(key)
	if err != nil {
		return 0, err
	}
	refuse := func(op model.OpID, format string, args ...any) error {
		return &store.ReplaceError{Bucket: r.Bucket, Op: op, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case b.number == 0:
		return 0, refuse(0, "there is no such bucket")
	case r.Checkpoint > st.head.Load().Checkpoint.Op:
		return 0, refuse(r.Checkpoint, "it is above the checkpoint")
	case r.ClearTo > r.Checkpoint:
		return 0, refuse(r.ClearTo, "it is above the checkpoint")
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	x := replacer{s: s, id: id, b: b, batch: batch, refuse: refuse, moved: map[model.OpID]model.OpID{}, rows: map[model.OpID]rowName{}}
	if err := x.move(r.Moves, r.ClearTo, r.Checkpoint); err != nil {
		return 0, err
	}
	var removed uint64
	if r.ClearTo > 0 {
		if removed, err = x.clear(r.ClearTo); err != nil {
			return 0, err
		}
	}
	var newer uint64
	if r.Finished {
		if newer, err = s.newer(id, b, r.Checkpoint); err != nil {
			return 0, err
		}
	}
	count := b.head.count

	st.write.Lock()
	defer st.write.Unlock()
	if (*s.streams.Load())[id].definition.Load().State == model.Terminated {
		return 0, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
	}
	if b, err = s.state(key); err != nil {
		return 0, err
	}
	dirt := b.dirt()
	if r.Finished {
		b.changes = newer + b.head.count - count
	}
	if removed > 0 {
		b.head.count -= removed
		if r.ClearTo <= b.base.last {
			b.base.count -= removed
		}
		b.cleared = max(b.cleared, r.ClearTo)
		// Before the batch, so that a reader that sees the clear sees this.
		warned := b
		warned.head.count += removed
		if r.ClearTo <= b.base.last {
			warned.base.count += removed
		}
		s.states.put(key.clone(), warned)
	}
	w := writer{batch: batch, stream: id}
	if w.state(r.Bucket, &b, dirt); w.err != nil {
		return 0, fmt.Errorf("replace ops: %w", fault(w.err))
	}
	if err := s.apply(batch, pebble.NoSync); err != nil {
		s.states.drop(key)
		return 0, fmt.Errorf("replace ops: %w", fault(err))
	}
	s.states.put(key.clone(), b)
	return removed, nil
}

// newer counts the ops of a bucket above c.
func (s *Store) newer(id model.StreamID, b bucketState, c model.OpID) (n uint64, err error) {
	switch {
	case b.head.last <= c:
		return 0, nil
	case b.base.last <= c && c < b.first:
		return b.head.count - b.base.count, nil
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: opKey(id, b.number, c+1), UpperBound: opKey(id, b.number, b.head.last+1)})
	if err != nil {
		return 0, fmt.Errorf("read ops: %w", fault(err))
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		n++
	}
	if err := it.Error(); err != nil {
		return 0, fmt.Errorf("read ops: %w", fault(err))
	}
	return n, nil
}

// rowName is a row's key in a bucket.
type rowName struct {
	key     model.RowKey
	typ, id string
}

// replacer makes the batch of one Replace.
type replacer struct {
	s      *Store
	id     model.StreamID
	b      bucketState
	batch  *pebble.Batch
	refuse func(op model.OpID, format string, args ...any) error
	moved  map[model.OpID]model.OpID
	rows   map[model.OpID]rowName // of targets
}

// walk reads ops in ascending order of id. Ops near one another are found by
// steps rather than by searches.
type walk struct {
	x   *replacer
	it  *pebble.Iterator
	key []byte
}

func (w *walk) op(id model.OpID, op *model.Op) error {
	found := false
	if w.it.Valid() && opID(w.it.Key()) < id {
		found = w.it.Next() && opID(w.it.Key()) == id
	}
	if !found {
		w.key = append(w.key[:0], opKey(w.x.id, w.x.b.number, id)...)
		found = w.it.SeekGE(w.key) && opID(w.it.Key()) == id
	}
	if err := w.it.Error(); err != nil {
		return fmt.Errorf("read op %s: %w", id, fault(err))
	}
	if !found {
		return w.x.refuse(id, "it is not there")
	}
	value, err := w.it.ValueAndErr()
	if err != nil {
		return fmt.Errorf("read op %s: %w", id, fault(err))
	}
	return readOp(id, value, op)
}

// move notes the moves and writes them, except those that go into the CLEAR.
func (x *replacer) move(moves []store.Move, clearTo, checkpoint model.OpID) error {
	if len(moves) == 0 {
		return nil
	}
	moves = slices.SortedFunc(slices.Values(moves), func(a, b store.Move) int { return cmp.Compare(a.ID, b.ID) })
	targets := make([]model.OpID, len(moves))
	for i, m := range moves {
		if m.ID >= m.Target || m.Target > checkpoint {
			return x.refuse(m.ID, "its target %s is not between it and the checkpoint", m.Target)
		}
		if i > 0 && m.ID == moves[i-1].ID {
			return x.refuse(m.ID, "it is named twice")
		}
		targets[i] = m.Target
	}
	it, err := x.s.db.NewIter(&pebble.IterOptions{LowerBound: opKey(x.id, x.b.number, moves[0].ID), UpperBound: opKey(x.id, x.b.number, checkpoint+1)})
	if err != nil {
		return fmt.Errorf("read ops: %w", fault(err))
	}
	defer it.Close()
	w := walk{x: x, it: it}
	var op model.Op
	slices.Sort(targets)
	for _, id := range slices.Compact(targets) {
		var refused *store.ReplaceError
		if err := w.op(id, &op); errors.As(err, &refused) {
			continue // of a move done before, perhaps
		} else if err != nil {
			return err
		}
		if op.Kind == model.OpPut || op.Kind == model.OpRemove {
			x.rows[id] = rowName{op.Key, strings.Clone(op.ObjectType), strings.Clone(op.ObjectID)}
		}
	}
	var value []byte
	for _, m := range moves {
		if err := w.op(m.ID, &op); err != nil {
			return err
		}
		if op.Kind == model.OpMove {
			continue // done before
		}
		if op.Kind != model.OpPut && op.Kind != model.OpRemove {
			return x.refuse(m.ID, "it is a %s", op.Kind)
		}
		target, ok := x.rows[m.Target]
		if !ok {
			return x.refuse(m.Target, "it is no PUT or REMOVE, and cannot supersede another op")
		}
		if target != (rowName{op.Key, op.ObjectType, op.ObjectID}) {
			return x.refuse(m.ID, "op %s is of another row", m.Target)
		}
		x.moved[m.ID] = m.Target
		if m.ID <= clearTo {
			continue
		}
		moved := model.Op{Kind: model.OpMove, Checksum: op.Checksum, Target: m.Target}
		value = appendOp(value[:0], &moved)
		if err := x.batch.Set(w.it.Key(), value, nil); err != nil {
			return fmt.Errorf("move op %s: %w", m.ID, fault(err))
		}
	}
	return nil
}

// clearFew is up to how many ops a clear deletes one by one. More are deleted
// as a range, or readers would step over each of them until Pebble has
// compacted them away: the next CLEAR first of all. But ranges by the thousand,
// one a small bucket, make every new iterator slow.
const clearFew = 64

// clear makes everything up to id one CLEAR and returns the ops that are gone.
func (x *replacer) clear(to model.OpID) (removed uint64, err error) {
	it, err := x.s.db.NewIter(&pebble.IterOptions{LowerBound: opKey(x.id, x.b.number, 0), UpperBound: opKey(x.id, x.b.number, to+1)})
	if err != nil {
		return 0, fmt.Errorf("read ops: %w", fault(err))
	}
	defer it.Close()
	clear := model.Op{Kind: model.OpClear}
	var count uint64
	var op model.Op
	var few []model.OpID // the first ops met
	for it.First(); it.Valid(); it.Next() {
		if err := readOp(opID(it.Key()), it.Value(), &op); err != nil {
			return 0, fmt.Errorf("read ops: %w", fault(err))
		}
		target, moved := x.moved[op.ID]
		if moved {
			op.Target = target
		} else if op.Kind == model.OpPut {
			return 0, x.refuse(op.ID, "it is a PUT and cannot be cleared")
		}
		clear.Checksum += op.Checksum
		clear.Target = max(clear.Target, op.Target)
		if count++; count <= clearFew {
			few = append(few, op.ID)
		}
	}
	if err := it.Error(); err != nil {
		return 0, fmt.Errorf("read ops: %w", fault(err))
	}
	if count == 0 || op.ID != to {
		return 0, x.refuse(to, "it is not there")
	}
	if count <= clearFew {
		for _, id := range few[:count-1] {
			if err := x.batch.Delete(opKey(x.id, x.b.number, id), nil); err != nil {
				return 0, fmt.Errorf("clear ops: %w", fault(err))
			}
		}
	} else if err := x.batch.DeleteRange(opKey(x.id, x.b.number, 0), opKey(x.id, x.b.number, to), nil); err != nil {
		return 0, fmt.Errorf("clear ops: %w", fault(err))
	}
	return count - 1, x.batch.Set(opKey(x.id, x.b.number, to), appendOp(nil, &clear), nil)
}

// lookupStep is the number of entries that one batch of CompactLookups removes.
const lookupStep = 10_000

// CompactLookups drops superseded entries. Who reads at a checkpoint below the
// newest op that superseded a dropped entry is told so (ErrInvalidated).
func (s *Store) CompactLookups(_ context.Context, id model.StreamID, c model.OpID, from []byte, limit int) (removed uint64, next []byte, err error) {
	st, err := s.stream(id)
	if err != nil {
		return 0, nil, err
	}
	st.compact.Lock()
	defer st.compact.Unlock()
	if c > st.head.Load().Checkpoint.Op {
		return 0, nil, &store.ReplaceError{Op: c, Reason: "it is above the checkpoint"}
	}
	lower, upper := streamRange(kindLookup, id)
	if len(from) > 0 {
		if bytes.Compare(from, lower) < 0 || bytes.Compare(from, upper) >= 0 {
			return 0, nil, fmt.Errorf("compact lookups: %x is not a place in stream %d", from, id)
		}
		lower = from
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return 0, nil, fmt.Errorf("compact lookups: %w", fault(err))
	}
	defer it.Close()
	batch := s.db.NewBatch()
	defer func() { batch.Close() }()
	var group []byte
	var newest model.OpID // of group, at most c; 0 = not met yet
	var grave []byte      // newest, if it says removed: it goes when all below it are gone
	var cleared model.OpID
	remove := func(key []byte) error {
		if err := batch.Delete(key, nil); err != nil {
			return fmt.Errorf("compact lookups: %w", fault(err))
		}
		removed++
		if batch.Count() < lookupStep {
			return nil
		}
		if err := s.applyLookups(st, batch, cleared); err != nil {
			return err
		}
		batch.Close()
		batch = s.db.NewBatch()
		return nil
	}
	bury := func() error {
		if len(grave) == 0 {
			return nil
		}
		err := remove(grave)
		grave = grave[:0]
		return err
	}
	looked := 0
	for it.First(); it.Valid(); it.Next() {
		g, op, ok := lookupKey(it.Key())
		if !ok {
			return removed, nil, fmt.Errorf("compact lookups: %w", record.ErrCorrupt)
		}
		if !bytes.Equal(g, group) {
			if err := bury(); err != nil {
				return removed, nil, err
			}
			if looked >= limit && limit > 0 {
				next = slices.Clone(it.Key())
				break
			}
			group, newest = append(group[:0], g...), 0
		}
		looked++
		if op > c {
			continue
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return removed, nil, fmt.Errorf("compact lookups: %w", fault(err))
		}
		switch {
		case newest != 0:
			cleared = max(cleared, newest)
			if err := remove(it.Key()); err != nil {
				return removed, nil, err
			}
		case len(value) == 0:
			newest, grave, cleared = op, append(grave[:0], it.Key()...), max(cleared, op)
		default:
			newest = op
		}
	}
	if err := it.Error(); err != nil {
		return removed, nil, fmt.Errorf("compact lookups: %w", fault(err))
	}
	if err := bury(); err != nil {
		return removed, nil, err
	}
	if batch.Empty() {
		return removed, next, nil
	}
	return removed, next, s.applyLookups(st, batch, cleared)
}

func (s *Store) applyLookups(st *stream, batch *pebble.Batch, cleared model.OpID) error {
	st.write.Lock()
	defer st.write.Unlock()
	if uint64(cleared) > st.cleared.Load() {
		// Before the batch, so that a reader that misses entries is told.
		st.cleared.Store(uint64(cleared))
	}
	if err := batch.Set(streamKey(kindCleared, st.id), binary.BigEndian.AppendUint64(nil, st.cleared.Load()), nil); err != nil {
		return fmt.Errorf("compact lookups: %w", fault(err))
	}
	if err := s.apply(batch, pebble.NoSync); err != nil {
		return fmt.Errorf("compact lookups: %w", fault(err))
	}
	return nil
}
