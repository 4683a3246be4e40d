package mongodb

import (
	"context"
	"math"
	"slices"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
)

// knownRecords are cells as the last call of Records found them, for the commit
// that follows: nil = there is none. If it is not like that any more, the commit
// fails.
type knownRecords struct {
	mu    sync.Mutex
	cells map[model.RowKey]*cell // guarded by mu
}

func (k *knownRecords) put(cells map[model.RowKey]*cell) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cells = cells
}

func (k *knownRecords) take() map[model.RowKey]*cell {
	k.mu.Lock()
	defer k.mu.Unlock()
	cells := k.cells
	k.cells = nil
	return cells
}

func recordID(k *model.RowKey) []byte { return slices.Concat(k.Table[:], k.Row[:]) }

const recordBytes = len(model.RowKey{}.Table) + len(model.RowKey{}.Row)

// rowKeyOf is what recordID is of.
func rowKeyOf(id []byte) model.RowKey {
	return model.RowKey{Table: model.TableID(id[:16]), Row: model.RowID(id[16:])}
}

// Records returns what is known of rows, and remembers it for the commit that
// follows.
func (s *Store) Records(ctx context.Context, id model.StreamID, keys []model.RowKey) ([]*ledger.Record, error) {
	wanted := make(map[model.RowKey]*cell, len(keys))
	ids := make([][]byte, 0, len(keys))
	for i := range keys {
		if _, twice := wanted[keys[i]]; !twice {
			wanted[keys[i]] = nil
			ids = append(ids, recordID(&keys[i]))
		}
	}
	cells, err := s.cells(ctx, s.of(id, recordsName), ids)
	if err != nil {
		return nil, failed(id, "read records", err)
	}
	u, err := s.fresh(ctx, id) // after them: what counts by then is there
	if err != nil {
		return nil, err
	}
	records := make([]*ledger.Record, len(keys))
	for i := range keys {
		c := cells[textOf(recordID(&keys[i]))]
		wanted[keys[i]] = c
		if records[i], err = s.record(ctx, id, u, c); err != nil {
			return nil, failed(id, "read records", err)
		}
	}
	s.unit(id).known.put(wanted)
	return records, nil
}

// record is the record that a cell has, nil if there is none.
func (s *Store) record(ctx context.Context, id model.StreamID, u *unitState, c *cell) (*ledger.Record, error) {
	if c == nil {
		return nil, nil
	}
	value, ok, err := s.value(ctx, id, c.ID, c.stored(u))
	if err != nil || !ok {
		return nil, err
	}
	return record.Read(textOf(value))
}

// tableBytes bounds the records that Table returns, but for one.
const tableBytes = 8 << 20

// Table returns records of a table.
func (s *Store) Table(ctx context.Context, id model.StreamID, table model.TableID, after model.RowID, limit int) (found []ledger.KeyedRecord, more bool, err error) {
	last := model.RowID(slices.Repeat([]byte{math.MaxUint8}, len(after)))
	from := bson.E{Key: "$gt", Value: recordID(&model.RowKey{Table: table, Row: after})}
	if after == (model.RowID{}) {
		from.Key = "$gte"
	}
	cursor, err := s.of(id, recordsName).Find(ctx, bson.D{{Key: "_id", Value: bson.D{from, {Key: "$lte", Value: recordID(&model.RowKey{Table: table, Row: last})}}}},
		options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}))
	if err != nil {
		return nil, false, failed(id, "read table", err)
	}
	defer cursor.Close(ctx)
	u, err := s.fresh(ctx, id) // only the caller writes
	if err != nil {
		return nil, false, err
	}
	size := 0
	for cursor.Next(ctx) {
		var c cell
		if err := cursor.Decode(&c); err != nil {
			return nil, false, failed(id, "read table", err)
		}
		if stored := c.stored(u); len(stored) == 0 {
			continue
		} else if size += s.sizeOf(stored); len(found) == limit || len(found) > 0 && size > tableBytes {
			return found, true, nil
		}
		rec, err := s.record(ctx, id, u, &c)
		if err != nil {
			return nil, false, failed(id, "read table", err)
		}
		found = append(found, ledger.KeyedRecord{Key: rowKeyOf(c.ID), Record: rec})
	}
	if err := cursor.Err(); err != nil {
		return nil, false, failed(id, "read table", err)
	}
	return found, false, nil
}
