package mongodb

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// deployment is the unit of the write checkpoints that are handed out.
const deployment model.StreamID = 0

func userID(key string) []byte {
	h := hashOf(key)
	return h[:]
}

// userIDs are the ids of keys, each once.
func userIDs(keys []string) [][]byte {
	ids := make([][]byte, len(keys))
	for i := range keys {
		ids[i] = userID(keys[i])
	}
	slices.SortFunc(ids, slices.Compare)
	return slices.CompactFunc(ids, slices.Equal)
}

// user is the value of a cell of write checkpoints.
type user struct {
	store.UserCheckpoints
	key string
}

func (u *user) append(dst []byte) []byte {
	dst = record.AppendText(dst, u.key)
	dst = binary.AppendUvarint(dst, u.ID)
	dst = record.AppendText(dst, string(u.Head))
	dst = binary.AppendUvarint(dst, u.ReachedID)
	dst = record.AppendText(dst, string(u.ReachedHead))
	return binary.AppendUvarint(dst, uint64(u.Requested))
}

// user is what a cell has, zero if nothing.
func (s *Store) user(ctx context.Context, id model.StreamID, u *unitState, c *cell) (user, error) {
	if c == nil {
		return user{}, nil
	}
	value, ok, err := s.value(ctx, id, c.ID, c.stored(u))
	if err != nil || !ok {
		return user{}, err
	}
	r := record.NewReader(textOf(value))
	out := user{key: r.Text()}
	out.ID, out.Head = r.Uvarint(), model.Position(r.Text())
	out.ReachedID, out.ReachedHead = r.Uvarint(), model.Position(r.Text())
	out.Requested = model.Micros(r.Uvarint())
	return out, r.Err()
}

// users reads cells of write checkpoints, and then the unit.
func (s *Store) users(ctx context.Context, id model.StreamID, keys []string) (map[string]*cell, *unitState, error) {
	cells, err := s.cells(ctx, s.of(id, usersName), userIDs(keys))
	if err != nil {
		return nil, nil, err
	}
	u, err := s.fresh(ctx, id)
	return cells, u, err
}

// CreateWriteCheckpoints gives all requests their numbers in one step.
func (s *Store) CreateWriteCheckpoints(ctx context.Context, position model.Position, requests []store.WriteCheckpointRequest) ([]model.WriteCheckpoint, error) {
	keys := make([]string, len(requests))
	for i := range requests {
		keys[i] = requests[i].UserKey
	}
	var out []model.WriteCheckpoint
	err := s.step(ctx, deployment, func(a *attempt) error {
		cells, err := s.cells(ctx, s.of(deployment, usersName), userIDs(keys))
		if err != nil {
			return err
		}
		var writes []cellWrite
		if out, writes, err = a.take(ctx, cells, requests, position); err != nil {
			return err
		}
		if err := a.write(ctx, a.bury(writes), func(ctx context.Context) error { return a.cells(ctx, usersName, writes) }); err != nil {
			return err
		}
		return a.decide(ctx, nil, nil, nil, nil)
	})
	if err != nil {
		return nil, fmt.Errorf("store write checkpoints: %w", err)
	}
	return out, nil
}

// take gives requests their numbers, and says what is to be written of that.
func (a *attempt) take(ctx context.Context, cells map[string]*cell, requests []store.WriteCheckpointRequest, position model.Position) (taken []model.WriteCheckpoint, writes []cellWrite, err error) {
	users := make(map[string]store.UserCheckpoints, len(requests))
	for _, r := range requests {
		u, err := a.s.user(ctx, a.id, a.was, cells[string(userID(r.UserKey))])
		if err != nil {
			return nil, nil, err
		}
		users[r.UserKey] = u.UserCheckpoints
	}
	taken, changed := store.TakeAll(users, requests, position)
	for _, key := range changed {
		id := userID(key)
		u := user{users[key], key}
		writes = append(writes, cellWrite{id, cells[string(id)], u.append(nil)})
	}
	return taken, writes, nil
}

// Reached returns the numbers that position has reached.
func (s *Store) Reached(ctx context.Context, position model.Position, keys []string) ([]uint64, error) {
	ids, err := s.reached(ctx, deployment, position, keys)
	if err != nil {
		return nil, fmt.Errorf("read write checkpoints: %w", err)
	}
	return ids, nil
}

// CustomReached returns a stream's custom numbers that position has reached.
func (s *Store) CustomReached(ctx context.Context, id model.StreamID, position model.Position, keys []string) ([]uint64, error) {
	ids, err := s.reached(ctx, id, position, keys)
	if err != nil {
		return nil, failed(id, "read custom write checkpoints", err)
	}
	return ids, nil
}

func (s *Store) reached(ctx context.Context, id model.StreamID, position model.Position, keys []string) ([]uint64, error) {
	cells, unit, err := s.users(ctx, id, keys)
	if err != nil {
		return nil, err
	}
	ids := make([]uint64, len(keys))
	for i, key := range keys {
		u, err := s.user(ctx, id, unit, cells[string(userID(key))])
		if err != nil {
			return nil, err
		}
		ids[i] = u.Reached(position)
	}
	return ids, nil
}

// userPage bounds the users that are read at once.
const userPage = 2000

// userCells reads cells from a place on, with the unit as it is after that.
func (s *Store) userCells(ctx context.Context, id model.StreamID, from []byte, limit int) (cells []cell, u *unitState, err error) {
	cursor, err := s.of(id, usersName).Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$gte", Value: from}}}},
		options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetLimit(int64(limit)))
	if err != nil {
		return nil, nil, err
	}
	if err := cursor.All(ctx, &cells); err != nil {
		return nil, nil, err
	}
	u, err = s.fresh(ctx, id)
	return cells, u, err
}

// afterID is the place after an id.
func afterID(id []byte) []byte {
	next := slices.Clone(id)
	for i := len(next) - 1; i >= 0; i-- {
		if next[i]++; next[i] != 0 {
			return next
		}
	}
	return nil
}

// Unreached yields what position has not reached, by key. It looks at all users.
func (s *Store) Unreached(ctx context.Context, position model.Position) iter.Seq2[model.WriteCheckpoint, error] {
	return func(yield func(model.WriteCheckpoint, error) bool) {
		var all []model.WriteCheckpoint
		for from := make([]byte, 16); from != nil; {
			cells, unit, err := s.userCells(ctx, deployment, from, userPage)
			from = nil
			for i := range cells {
				u, uerr := s.user(ctx, deployment, unit, &cells[i])
				if uerr != nil {
					err = uerr
					break
				}
				if u.ID > 0 && u.Head > position {
					all = append(all, model.WriteCheckpoint{UserKey: u.key, ID: u.ID, Head: u.Head})
				}
			}
			if err != nil {
				yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", err))
				return
			}
			if len(cells) == userPage {
				from = afterID(cells[userPage-1].ID)
			}
		}
		slices.SortFunc(all, func(a, b model.WriteCheckpoint) int { return strings.Compare(a.UserKey, b.UserKey) })
		for _, w := range all {
			if !yield(w, nil) {
				return
			}
		}
	}
}

// ExpireRequests drops old requests, a page in a step. A place is 'c', of custom
// ones, or 'u', and the id to go on from.
func (s *Store) ExpireRequests(ctx context.Context, id model.StreamID, before model.Micros, from []byte, limit int) (removed uint64, next []byte, err error) {
	if len(from) == 0 {
		from = append([]byte{'c'}, make([]byte, 16)...)
	}
	if len(from) != 17 || from[0] != 'c' && from[0] != 'u' {
		return 0, nil, fmt.Errorf("expire requests: %x is not a place", from)
	}
	st, err := s.load(ctx)
	if err == nil {
		err = s.owned(st)
	}
	var stream *unitState
	if err == nil {
		stream, err = st.at(id)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("expire requests: %w", err)
	}
	def, err := s.definition(ctx, stream.Definition)
	if err != nil {
		return 0, nil, failed(id, "expire requests", err)
	}
	checkpoint := stream.Head.model().Checkpoint.Position
	for left := limit; from != nil && (limit == 0 || left > 0); {
		page := userPage
		if limit > 0 {
			page = min(page, left)
		}
		unit, reached := id, checkpoint
		if from[0] == 'u' {
			unit, reached = deployment, def.Place(checkpoint)
		}
		looked, gone, after, err := s.expire(ctx, unit, before, reached, from[1:], page)
		if err != nil {
			return removed, nil, failed(id, "expire requests", err)
		}
		removed += gone
		left -= looked
		switch {
		case after != nil:
			from = append([]byte{from[0]}, after...)
		case from[0] == 'c':
			from = append([]byte{'u'}, make([]byte, 16)...)
		default:
			from = nil
		}
	}
	return removed, from, nil
}

// expire looks at a page of users; after is where the next one begins.
func (s *Store) expire(ctx context.Context, id model.StreamID, before model.Micros, reached model.Position, from []byte, limit int) (looked int, removed uint64, after []byte, err error) {
	err = s.step(ctx, id, func(a *attempt) error {
		looked, removed, after = 0, 0, nil
		cells, _, err := s.userCells(ctx, id, from, limit+1)
		if err != nil {
			return err
		}
		if len(cells) > limit {
			after, cells = cells[limit].ID, cells[:limit]
		}
		looked = len(cells)
		var writes []cellWrite
		for i := range cells {
			u, err := s.user(ctx, id, a.was, &cells[i])
			if err != nil {
				return err
			}
			if u.Expired(reached, before) {
				writes = append(writes, cellWrite{cells[i].ID, &cells[i], nil})
			}
		}
		if removed = uint64(len(writes)); removed == 0 {
			return nil
		}
		if err := a.write(ctx, a.bury(writes), func(ctx context.Context) error { return a.cells(ctx, usersName, writes) }); err != nil {
			return err
		}
		return a.decide(ctx, nil, nil, nil, nil)
	})
	return looked, removed, after, err
}
