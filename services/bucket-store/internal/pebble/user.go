package pebble

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// user reads what is kept under the whole key of a user.
func (s *Store) user(key []byte) (store.UserCheckpoints, error) {
	value, ok, err := s.get(key)
	if err != nil || !ok {
		return store.UserCheckpoints{}, err
	}
	return readUser(value)
}

// take gives the requests their numbers, while clients see a checkpoint at
// position, and writes what changes of the users whose keys begin with prefix.
func (w *writer) take(s *Store, prefix []byte, requests []store.WriteCheckpointRequest, position model.Position) []model.WriteCheckpoint {
	users := make(map[string]store.UserCheckpoints, len(requests))
	for i := range requests {
		w.key = append(append(w.key[:0], prefix...), requests[i].UserKey...)
		u, err := s.user(w.key)
		if err != nil {
			w.err = errors.Join(w.err, fmt.Errorf("read write checkpoint: %w", fault(err)))
			return nil
		}
		users[requests[i].UserKey] = u
	}
	taken, changed := store.TakeAll(users, requests, position)
	for _, key := range changed {
		w.user(prefix, key, users[key])
	}
	return taken
}

func (w *writer) user(prefix []byte, key string, u store.UserCheckpoints) {
	w.key = append(append(w.key[:0], prefix...), key...)
	w.buf = appendUser(w.buf[:0], &u)
	w.set(w.key, w.buf)
}

// CreateWriteCheckpoints gives all requests their numbers by one synced batch.
func (s *Store) CreateWriteCheckpoints(_ context.Context, position model.Position, requests []store.WriteCheckpointRequest) ([]model.WriteCheckpoint, error) {
	if err := s.disk.room(); err != nil {
		return nil, fmt.Errorf("store write checkpoints: %w", err)
	}
	s.users.Lock()
	defer s.users.Unlock()
	batch := s.db.NewBatch()
	defer batch.Close()
	w := writer{batch: batch}
	taken := w.take(s, []byte{kindUser}, requests, position)
	if w.err != nil {
		return nil, fmt.Errorf("write checkpoints: %w", w.err)
	}
	if batch.Empty() {
		return taken, nil
	}
	if err := s.apply(batch, pebble.Sync); err != nil {
		return nil, fmt.Errorf("store write checkpoints: %w", fault(err))
	}
	return taken, nil
}

// Reached returns the numbers that position has reached.
func (s *Store) Reached(_ context.Context, position model.Position, keys []string) ([]uint64, error) {
	return s.reached([]byte{kindUser}, position, keys)
}

// CustomReached returns a stream's custom numbers that position has reached.
func (s *Store) CustomReached(_ context.Context, id model.StreamID, position model.Position, keys []string) ([]uint64, error) {
	if _, err := s.stream(id); err != nil {
		return nil, err
	}
	return s.reached(streamKey(kindCustom, id), position, keys)
}

func (s *Store) reached(prefix []byte, position model.Position, keys []string) ([]uint64, error) {
	ids := make([]uint64, len(keys))
	for i, key := range keys {
		u, err := s.user(append(prefix[:len(prefix):len(prefix)], key...))
		if err != nil {
			return nil, fmt.Errorf("read write checkpoint: %w", fault(err))
		}
		ids[i] = u.Reached(position)
	}
	return ids, nil
}

// Unreached yields what position has not reached.
func (s *Store) Unreached(_ context.Context, position model.Position) iter.Seq2[model.WriteCheckpoint, error] {
	return func(yield func(model.WriteCheckpoint, error) bool) {
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{kindUser}, UpperBound: []byte{kindUser + 1}})
		if err != nil {
			yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", fault(err)))
			return
		}
		defer it.Close()
		for it.First(); it.Valid(); it.Next() {
			u, err := readUser(string(it.Value()))
			if err != nil {
				yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", fault(err)))
				return
			}
			if u.Head > position && !yield(model.WriteCheckpoint{UserKey: string(it.Key()[1:]), ID: u.ID, Head: u.Head}, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", fault(err)))
		}
	}
}

// ExpireRequests drops old requests. A place is the next key to look at.
func (s *Store) ExpireRequests(_ context.Context, id model.StreamID, before model.Micros, from []byte, limit int) (removed uint64, next []byte, err error) {
	st, err := s.stream(id)
	if err != nil {
		return 0, nil, err
	}
	// Nobody asks for a number again between the look and the removal.
	s.users.Lock()
	defer s.users.Unlock()
	st.write.Lock()
	defer st.write.Unlock()
	position := st.head.Load().Checkpoint.Position
	place := st.definition.Load().Place(position)
	batch := s.db.NewBatch()
	defer batch.Close()
	looked := 0
	for _, prefix := range [][]byte{streamKey(kindCustom, id), {kindUser}} {
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
		if err != nil {
			return 0, nil, fmt.Errorf("expire requests: %w", fault(err))
		}
		for it.SeekGE(from); it.Valid(); it.Next() {
			if limit > 0 && looked >= limit {
				next = slices.Clone(it.Key())
				break
			}
			looked++
			reached := position // custom ones are of the stream
			if prefix[0] == kindUser {
				reached = place
			}
			u, err := readUser(string(it.Value()))
			if err == nil && u.Expired(reached, before) {
				err = batch.Delete(it.Key(), nil)
			}
			if err != nil {
				return 0, nil, errors.Join(fmt.Errorf("expire requests: %w", fault(err)), it.Close())
			}
		}
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			return 0, nil, fmt.Errorf("expire requests: %w", fault(err))
		}
		if next != nil {
			break
		}
	}
	if batch.Empty() {
		return 0, next, nil
	}
	removed = uint64(batch.Count())
	if err := s.apply(batch, pebble.NoSync); err != nil {
		return 0, nil, fmt.Errorf("expire requests: %w", fault(err))
	}
	return removed, next, nil
}
