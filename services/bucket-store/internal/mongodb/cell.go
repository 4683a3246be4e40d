package mongodb

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
)

// cell is a document with a value that steps replace: a record, the progress of a
// table, the write checkpoints of a user. It has the value before it as well, which
// counts as long as the attempt that wrote Now is not decided.
type cell struct {
	ID      []byte `bson:"_id"`
	Attempt int64  `bson:"a"`
	Now     []byte `bson:"s,omitempty"` // none: no value
	Was     []byte `bson:"p,omitempty"`
}

// grave is a cell without a value, or a part of a value that is no more; or the
// cells of a range that an attempt has left without.
type grave struct {
	name string // of the collection
	id   []byte
	rows *ledger.RowRange // unless it has an id
	by   int64            // the attempt that rows were removed by
}

// stored is the value that counts, in its stored form.
func (c *cell) stored(u *unitState) []byte {
	if c == nil {
		return nil
	}
	if u.visible(c.Attempt) {
		return c.Now
	}
	return c.Was
}

// A stored value is a byte and the value, or another byte and what its parts are:
// the attempt that wrote them and how many.
const (
	whole   = 0
	inParts = 1
)

// partsBytes is the length of the latter.
const partsBytes = 13

func partID(key []byte, attempt int64, n int) []byte {
	id := binary.BigEndian.AppendUint64(bytes.Clone(key), uint64(attempt))
	return binary.BigEndian.AppendUint32(id, uint32(n))
}

// part is a document with a part of a value.
type part struct {
	ID      []byte `bson:"_id"`
	Attempt int64  `bson:"a"`
	Data    []byte `bson:"d"`
}

// keep returns the stored form of value. What is too large goes into parts, which
// are written at once.
func (a *attempt) keep(ctx context.Context, key, value []byte) ([]byte, error) {
	size := a.s.options.partBytes
	if len(value) <= size {
		return append([]byte{whole}, value...), nil
	}
	n := 0
	for rest := value; len(rest) > 0; n++ {
		p := part{ID: partID(key, a.number, n), Attempt: a.number, Data: rest[:min(size, len(rest))]}
		if _, err := a.s.of(a.id, partsName).InsertOne(ctx, &p); err != nil {
			return nil, fmt.Errorf("write a part: %w", err)
		}
		rest = rest[len(p.Data):]
	}
	stored := binary.BigEndian.AppendUint64([]byte{inParts}, uint64(a.number))
	return binary.BigEndian.AppendUint32(stored, uint32(n)), nil
}

// parts is how many parts a stored form has, and partsOf the attempt that wrote them.
func parts(stored []byte) int {
	if len(stored) != partsBytes || stored[0] != inParts {
		return 0
	}
	return int(binary.BigEndian.Uint32(stored[9:]))
}

func partsOf(stored []byte) int64 { return int64(binary.BigEndian.Uint64(stored[1:])) }

// partGraves are those of the parts of a stored form.
func partGraves(key, stored []byte) (graves []grave) {
	for n := range parts(stored) {
		graves = append(graves, grave{name: partsName, id: partID(key, partsOf(stored), n)})
	}
	return graves
}

// sizeOf is the size of the value that a stored form is of, or more.
func (s *Store) sizeOf(stored []byte) int { return len(stored) + parts(stored)*s.options.partBytes }

// value returns the value that a stored form is of; false: there is none.
func (s *Store) value(ctx context.Context, id model.StreamID, key, stored []byte) (value []byte, ok bool, err error) {
	switch {
	case len(stored) == 0:
		return nil, false, nil
	case stored[0] == whole:
		return stored[1:], true, nil
	case parts(stored) == 0:
		return nil, false, record.ErrCorrupt
	}
	for n := range parts(stored) {
		var p part
		if err := s.of(id, partsName).FindOne(ctx, bson.D{{Key: "_id", Value: partID(key, partsOf(stored), n)}}).Decode(&p); err != nil {
			return nil, false, fmt.Errorf("read part %d of a value: %w", n, err)
		}
		value = append(value, p.Data...)
	}
	return value, true, nil
}

// cells reads cells by their ids.
func (s *Store) cells(ctx context.Context, c *mongo.Collection, keys [][]byte) (map[string]*cell, error) {
	found := make(map[string]*cell, len(keys))
	err := inBatches(keys, s.options.batch, func(keys [][]byte) error {
		cursor, err := c.Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: keys}}}})
		if err != nil {
			return err
		}
		defer cursor.Close(ctx)
		for cursor.Next(ctx) {
			var d cell
			if err := cursor.Decode(&d); err != nil {
				return err
			}
			found[string(d.ID)] = &d
		}
		return cursor.Err()
	})
	return found, err
}

// cellWrite gives a cell another value; nil = none.
type cellWrite struct {
	key   []byte
	old   *cell // as it is; nil = there is none
	value []byte
}

// cells writes cells.
func (a *attempt) cells(ctx context.Context, name string, writes []cellWrite) error {
	c := a.s.of(a.id, name)
	var made []any
	var changed []mongo.WriteModel
	var graves []grave
	for _, w := range writes {
		was := w.old.stored(a.was)
		if w.old != nil {
			if a.outrun(w.old.Attempt) {
				return errMoved
			}
			lost := w.old.Was
			if !a.was.visible(w.old.Attempt) {
				lost = w.old.Now
			}
			graves = append(graves, partGraves(w.key, lost)...)
		}
		d := cell{ID: w.key, Attempt: a.number, Was: was}
		if w.value == nil {
			if w.old == nil {
				continue
			}
			graves = append(append(graves, grave{name: name, id: w.key}), partGraves(w.key, was)...)
		} else {
			var err error
			if d.Now, err = a.keep(ctx, w.key, w.value); err != nil {
				return err
			}
		}
		if w.old == nil {
			made = append(made, &d)
		} else {
			changed = append(changed, mongo.NewReplaceOneModel().SetFilter(bson.D{{Key: "_id", Value: w.key}, {Key: "a", Value: w.old.Attempt}}).SetReplacement(&d))
		}
	}
	a.bereave(graves...)
	if err := a.insert(ctx, c, made); err != nil {
		return err
	}
	return a.replace(ctx, c, changed)
}

// bereave adds graves to those that the step makes.
func (a *attempt) bereave(graves ...grave) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.graves = append(a.graves, graves...)
}

// insert makes documents.
func (a *attempt) insert(ctx context.Context, c *mongo.Collection, docs []any) error {
	return inBatches(docs, a.s.options.batch, func(docs []any) error {
		_, err := c.InsertMany(ctx, docs, options.InsertMany().SetOrdered(false))
		if mongo.IsDuplicateKeyError(err) {
			err = fmt.Errorf("%w: %w", errMoved, err)
		}
		if err != nil {
			return fmt.Errorf("insert into %s: %w", c.Name(), err)
		}
		return nil
	})
}

// replace changes documents, each of which must be as its filter says.
func (a *attempt) replace(ctx context.Context, c *mongo.Collection, changes []mongo.WriteModel) error {
	return inBatches(changes, a.s.options.batch, func(changes []mongo.WriteModel) error {
		r, err := c.BulkWrite(ctx, changes, options.BulkWrite().SetOrdered(false))
		if err != nil {
			return fmt.Errorf("change in %s: %w", c.Name(), err)
		}
		if int(r.MatchedCount) != len(changes) {
			return fmt.Errorf("change in %s: %w", c.Name(), errMoved)
		}
		return nil
	})
}

// bury returns a part of the step that removes what does not count any more since
// an earlier step, but no cells that this step writes.
func (a *attempt) bury(writes ...[]cellWrite) func(context.Context) error {
	graves := a.unit.graves
	a.unit.graves = nil
	again := map[string]bool{}
	if len(graves) > 0 {
		for _, list := range writes {
			for i := range list {
				again[string(list[i].key)] = true
			}
		}
	}
	byName := map[string][][]byte{}
	var ranges []bson.D
	for _, g := range graves {
		if g.rows != nil {
			var written [][]byte
			for key := range again {
				if len(key) == recordBytes && g.rows.Has(rowKeyOf([]byte(key))) {
					written = append(written, []byte(key))
				}
			}
			for _, among := range rangesBut(g.rows, written, a.s.options.batch) {
				ranges = append(ranges, bson.D{{Key: "_id", Value: among}, {Key: "s", Value: bson.D{{Key: "$exists", Value: false}}}, {Key: "a", Value: g.by}})
			}
		} else if !again[string(g.id)] {
			byName[g.name] = append(byName[g.name], g.id)
		}
	}
	return func(ctx context.Context) error {
		for _, filter := range ranges {
			if _, err := a.s.of(a.id, recordsName).DeleteMany(ctx, filter); err != nil {
				return fmt.Errorf("remove what does not count any more: %w", err)
			}
		}
		for name, ids := range byName {
			if err := inBatches(ids, a.s.options.batch, func(ids [][]byte) error {
				filter := bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}}
				if name != partsName {
					filter = append(filter, bson.E{Key: "s", Value: bson.D{{Key: "$exists", Value: false}}}, bson.E{Key: "a", Value: bson.D{{Key: "$lte", Value: a.was.Attempt}}})
				}
				_, err := a.s.of(a.id, name).DeleteMany(ctx, filter)
				return err
			}); err != nil {
				return fmt.Errorf("remove what does not count any more: %w", err)
			}
		}
		return nil
	}
}

// atOnce runs parts of a step side by side, and all of them to their end: what is
// given up would be done by the server later, in the way of the next attempt.
func atOnce(ctx context.Context, parts ...func(context.Context) error) error {
	var eg errgroup.Group
	for _, p := range parts {
		eg.Go(func() error { return p(ctx) })
	}
	return eg.Wait()
}
