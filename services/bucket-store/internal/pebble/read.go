package pebble

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func (k stateKey) clone() stateKey { return stateKey{k.stream, strings.Clone(k.bucket)} }

// Head returns a stream's head.
func (s *Store) Head(_ context.Context, id model.StreamID) (model.StreamHead, error) {
	st, err := s.stream(id)
	if err != nil {
		return model.StreamHead{}, err
	}
	return st.head.Load().StreamHead, nil
}

// Checksums returns the states of buckets at c: from memory at the head and
// at the visible checkpoint, else by subtracting the ops above c.
func (s *Store) Checksums(_ context.Context, id model.StreamID, c model.OpID, buckets []string) ([]model.BucketState, error) {
	if _, err := s.stream(id); err != nil {
		return nil, err
	}
	out := make([]model.BucketState, len(buckets))
	for i, bucket := range buckets {
		b, err := s.state(stateKey{id, bucket})
		if err != nil {
			return nil, err
		}
		var t total
		switch {
		case c < b.cleared:
			return nil, store.ErrInvalidated
		case c >= b.head.last:
			t = b.head
		case b.base.last <= c && c < b.first:
			t = b.base
		default:
			if t, err = s.subtract(id, bucket, b, c); err != nil {
				return nil, err
			}
		}
		out[i] = model.BucketState{Checksum: t.checksum, Count: t.count}
	}
	return out, nil
}

// subtract is the head's total without the ops above c.
func (s *Store) subtract(id model.StreamID, bucket string, b bucketState, c model.OpID) (total, error) {
	t := b.head
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: opKey(id, b.number, c+1), UpperBound: opKey(id, b.number, b.head.last+1)})
	if err != nil {
		return t, fmt.Errorf("read ops: %w", fault(err))
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		value := it.Value()
		if len(value) < 5 {
			return t, fmt.Errorf("read ops: %w", record.ErrCorrupt)
		}
		t.checksum -= opChecksum(value)
		t.count--
	}
	if err := it.Error(); err != nil {
		return t, fmt.Errorf("read ops: %w", fault(err))
	}
	// A clear that the iterator may have seen is in the state by now.
	if b, err = s.state(stateKey{id, bucket}); err == nil && c < b.cleared {
		err = store.ErrInvalidated
	}
	return t, err
}

// Ops yields a bucket's ops.
func (s *Store) Ops(_ context.Context, id model.StreamID, bucket string, from, upTo model.OpID) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		var op model.Op
		err := s.ops(id, bucket, from, upTo, false, true, func(key, value []byte) (bool, error) {
			if err := readOp(opID(key), value, &op); err != nil {
				return false, err
			}
			return yield(op, nil), nil
		})
		if err != nil {
			yield(model.Op{}, err)
		}
	}
}

// ops calls do with the encoded ops in (from, upTo] while it returns true.
func (s *Store) ops(id model.StreamID, bucket string, from, upTo model.OpID, descending, check bool, do func(key, value []byte) (bool, error)) error {
	if _, err := s.stream(id); err != nil {
		return err
	}
	b, err := s.state(stateKey{id, bucket})
	if err != nil || b.number == 0 || from >= upTo {
		return err
	}
	if from >= b.head.last {
		// Nothing is stored after from. (Whoever knows a checkpoint sees a
		// state that includes it.)
		if check && upTo < b.cleared {
			return store.ErrInvalidated
		}
		return nil
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: opKey(id, b.number, from+1), UpperBound: opKey(id, b.number, min(upTo, ^model.OpID(0)-1)+1)})
	if err != nil {
		return fmt.Errorf("read ops: %w", fault(err))
	}
	defer it.Close()
	if check {
		// After the iterator: a clear that it sees is in the state by now.
		if b, err = s.state(stateKey{id, bucket}); err != nil {
			return err
		}
		if upTo < b.cleared {
			return store.ErrInvalidated
		}
	}
	first, next := it.First, it.Next
	if descending {
		first, next = it.Last, it.Prev
	}
	for ok := first(); ok; ok = next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read ops: %w", fault(err))
		}
		if more, err := do(it.Key(), value); err != nil || !more {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("read ops: %w", fault(err))
	}
	return nil
}

// Lookups returns the values under each lookup at c.
func (s *Store) Lookups(_ context.Context, id model.StreamID, c model.OpID, lookups []string, limit int) ([][]string, error) {
	st, err := s.stream(id)
	if err != nil {
		return nil, err
	}
	lower, upper := streamRange(kindLookup, id)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("read lookups: %w", fault(err))
	}
	defer it.Close()
	results := make([][]string, len(lookups))
	found := 0
	var prefix, group []byte
	for i, lookup := range lookups {
		prefix = appendLookupPrefix(prefix[:0], id, lookup)
		group = group[:0]
		for ok := it.SeekGE(prefix); ok && bytes.HasPrefix(it.Key(), prefix); ok = it.Next() {
			g, op, valid := lookupKey(it.Key())
			if !valid {
				return nil, fmt.Errorf("read lookups: %w", record.ErrCorrupt)
			}
			if op > c || bytes.Equal(g, group) {
				continue // too new, or superseded
			}
			group = append(group[:0], g...)
			value, err := it.ValueAndErr()
			if err != nil {
				return nil, fmt.Errorf("read lookups: %w", fault(err))
			}
			if len(value) == 0 {
				continue // removed
			}
			if found++; found > limit {
				return nil, &store.LimitError{Limit: limit}
			}
			results[i] = append(results[i], string(value))
		}
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("read lookups: %w", fault(err))
	}
	if uint64(c) < st.cleared.Load() {
		return nil, store.ErrInvalidated
	}
	return results, nil
}
