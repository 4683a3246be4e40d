package mongodb

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// removeRanges takes the values of all records of the commit's ranges, but of
// those that the commit writes: what is known of these is as it was.
func (w *commit) removeRanges(ctx context.Context) error {
	for i := range w.c.Gone {
		r := new(w.c.Gone[i])
		var written [][]byte
		for j := range w.c.Rows {
			if k := &w.c.Rows[j].Key; r.Has(*k) {
				written = append(written, recordID(k))
			}
		}
		w.bereave(grave{rows: r, by: w.number})
		for _, among := range rangesBut(r, written, w.s.options.batch) {
			if err := w.removeRange(ctx, among); err != nil {
				return fmt.Errorf("remove a range of records: %w", err)
			}
		}
	}
	return nil
}

// rangesBut are conditions of the _id of cells, that together select those of a
// range but for some, of which each has at most so many.
func rangesBut(r *ledger.RowRange, but [][]byte, most int) []bson.D {
	from := bson.E{Key: "$gt", Value: recordID(&model.RowKey{Table: r.Table, Row: r.After})}
	if r.After == (model.RowID{}) {
		from.Key = "$gte"
	}
	slices.SortFunc(but, bytes.Compare)
	var all []bson.D
	for len(but) > most {
		last := but[most-1]
		all = append(all, bson.D{from, {Key: "$lt", Value: last}, {Key: "$nin", Value: but[:most-1]}})
		from, but = bson.E{Key: "$gt", Value: last}, but[most:]
	}
	among := bson.D{from, {Key: "$lte", Value: recordID(&model.RowKey{Table: r.Table, Row: r.UpTo})}}
	if len(but) > 0 {
		among = append(among, bson.E{Key: "$nin", Value: but})
	}
	return append(all, among)
}

// removeRange takes the values of cells.
func (w *commit) removeRange(ctx context.Context, among bson.D) error {
	cells := w.s.of(w.id, recordsName)
	id := bson.E{Key: "_id", Value: among}
	if err := w.bereaveParts(ctx, id); err != nil {
		return err
	}
	counted := bson.D{{Key: "$lte", Value: w.was.Attempt}}
	if len(w.was.Aborted) > 0 {
		counted = append(counted, bson.E{Key: "$nin", Value: w.was.Aborted})
	}
	taken := bson.E{Key: "$set", Value: bson.D{{Key: "a", Value: w.number}}}
	for {
		now, err := cells.UpdateMany(ctx, bson.D{id, {Key: "a", Value: counted}, {Key: "s", Value: bson.D{{Key: "$exists", Value: true}}}},
			bson.D{taken, {Key: "$rename", Value: bson.D{{Key: "s", Value: "p"}}}})
		if err != nil || len(w.was.Aborted) == 0 {
			return err
		}
		was, err := cells.UpdateMany(ctx, bson.D{id, {Key: "a", Value: bson.D{{Key: "$in", Value: w.was.Aborted}}}},
			bson.D{taken, {Key: "$unset", Value: bson.D{{Key: "s", Value: ""}}}})
		if err != nil {
			return err
		}
		if now.MatchedCount+was.MatchedCount == 0 {
			return nil // what a stalled process writes is of an attempt that came to nothing
		}
	}
}

// bereaveParts makes graves of the parts that the values of cells have.
func (w *commit) bereaveParts(ctx context.Context, id bson.E) error {
	stored := func(field string) bson.D {
		least, most := make([]byte, partsBytes), bytes.Repeat([]byte{0xff}, partsBytes)
		least[0], most[0] = inParts, inParts
		return bson.D{{Key: field, Value: bson.D{{Key: "$gte", Value: least}, {Key: "$lte", Value: most}}}} // binary values are ordered by length first
	}
	cursor, err := w.s.of(w.id, recordsName).Find(ctx, bson.D{id, {Key: "$or", Value: bson.A{stored("s"), stored("p")}}})
	if err != nil {
		return err
	}
	defer cursor.Close(ctx)
	for cursor.Next(ctx) {
		var c cell
		if err := cursor.Decode(&c); err != nil {
			return err
		}
		w.bereave(partGraves(c.ID, c.Now)...)
		w.bereave(partGraves(c.ID, c.Was)...)
	}
	return cursor.Err()
}
