package pebble

import (
	"context"
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func userKey(key string) []byte { return append([]byte{kindUser}, key...) }

func (s *Store) user(key string) (store.UserCheckpoints, error) {
	value, ok, err := s.get(userKey(key))
	if err != nil || !ok {
		return store.UserCheckpoints{}, err
	}
	return readUser(value)
}

// CreateWriteCheckpoints gives all requests their numbers by one synced batch.
func (s *Store) CreateWriteCheckpoints(_ context.Context, position model.Position, requests []store.WriteCheckpointRequest) ([]model.WriteCheckpoint, error) {
	s.users.Lock()
	defer s.users.Unlock()
	batch := s.db.NewBatch()
	defer batch.Close()
	users := make(map[string]store.UserCheckpoints, len(requests))
	out := make([]model.WriteCheckpoint, len(requests))
	for i, r := range requests {
		u, ok := users[r.UserKey]
		if !ok {
			var err error
			if u, err = s.user(r.UserKey); err != nil {
				return nil, fmt.Errorf("read write checkpoint: %w", err)
			}
		}
		before := u.ID
		u.Take(r, position)
		if u.ID != before {
			if err := batch.Set(userKey(r.UserKey), appendUser(nil, &u), nil); err != nil {
				return nil, fmt.Errorf("write checkpoint: %w", err)
			}
		}
		users[r.UserKey] = u
		out[i] = model.WriteCheckpoint{UserKey: r.UserKey, ID: u.ID, Head: u.Head}
	}
	if batch.Empty() {
		return out, nil
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return nil, fmt.Errorf("store write checkpoints: %w", err)
	}
	return out, nil
}

// Reached returns the numbers that position has reached.
func (s *Store) Reached(_ context.Context, position model.Position, keys []string) ([]uint64, error) {
	ids := make([]uint64, len(keys))
	for i, key := range keys {
		u, err := s.user(key)
		if err != nil {
			return nil, fmt.Errorf("read write checkpoint: %w", err)
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
			yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", err))
			return
		}
		defer it.Close()
		for it.First(); it.Valid(); it.Next() {
			u, err := readUser(string(it.Value()))
			if err != nil {
				yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", err))
				return
			}
			if u.Head > position && !yield(model.WriteCheckpoint{UserKey: string(it.Key()[1:]), ID: u.ID, Head: u.Head}, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", err))
		}
	}
}
