package mongodb

import (
	"bytes"
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// CompactLookups drops superseded entries, a batch at a time. Who reads at a
// checkpoint below the newest op that superseded a dropped entry is told so
// (ErrInvalidated). A place is a group: lookup, table, row.
func (s *Store) CompactLookups(ctx context.Context, id model.StreamID, c model.OpID, from []byte, limit int) (removed uint64, next []byte, err error) {
	if len(from) == 0 {
		from = make([]byte, groupBytes)
	}
	if len(from) != groupBytes {
		return 0, nil, fmt.Errorf("compact lookups: %x is not a place", from)
	}
	u := s.unit(id)
	u.compact.Lock()
	defer u.compact.Unlock()
	st, err := s.load(ctx)
	if err != nil {
		return 0, nil, err
	}
	unit, err := st.at(id)
	if err != nil {
		return 0, nil, err
	}
	if err := s.owned(st); err != nil {
		return 0, nil, fmt.Errorf("compact lookups: %w", err)
	}
	if opID(c) > unit.Head.Checkpoint {
		return 0, nil, &store.ReplaceError{Op: c, Reason: "it is above the checkpoint"}
	}
	w := lookupWalk{unit: unit, c: opID(c), limit: limit}
	at := append(bytes.Clone(from), make([]byte, 16)...)
	for done := false; !done; {
		var page []entry
		cursor, err := s.of(id, lookupsName).Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$gt", Value: at}}}},
			options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}).SetLimit(int64(s.options.batch)).SetProjection(bson.D{{Key: "v", Value: 0}}))
		if err == nil {
			err = cursor.All(ctx, &page)
		}
		if err != nil {
			return removed, nil, failed(id, "compact lookups", err)
		}
		for i := range page {
			if next = w.look(&page[i]); next != nil {
				break
			}
			at = page[i].ID
		}
		if done = next != nil || len(page) < s.options.batch; done {
			w.leave()
		}
		n, err := s.dropLookups(ctx, id, &w)
		removed += n
		if err != nil {
			return removed, nil, failed(id, "compact lookups", err)
		}
	}
	return removed, next, nil
}

// lookupWalk sees entries in the order of their ids: newest first in a group.
type lookupWalk struct {
	unit   *unitState
	c      int64
	limit  int
	looked int
	group  []byte
	newest int64 // of group, at most c; 0 = not met yet
	// tombstone of group, if its newest entry is one. It goes last: without it
	// the entries that it removed would be back.
	tombstone []byte

	gone    [][]byte // entries that are superseded
	last    [][]byte // tombstones of which all is in gone, or was before
	cleared int64    // the newest op that superseded one of gone or is one of last
}

// look takes an entry, or returns its place if the walk ends before it.
func (w *lookupWalk) look(e *entry) (next []byte) {
	if g := e.ID[:groupBytes]; !bytes.Equal(g, w.group) {
		if w.looked >= w.limit && w.limit > 0 {
			return g
		}
		w.leave()
		w.group, w.newest = g, 0
	}
	w.looked++
	if e.Op > w.c || !w.unit.visible(e.Attempt) {
		return nil
	}
	switch {
	case w.newest != 0:
		w.cleared = max(w.cleared, w.newest)
		w.gone = append(w.gone, e.ID)
	case e.Removed:
		w.newest, w.tombstone = e.Op, e.ID
	default:
		w.newest = e.Op
	}
	return nil
}

// leave is called when there are no more entries of the group.
func (w *lookupWalk) leave() {
	if w.tombstone != nil {
		w.cleared = max(w.cleared, w.newest)
		w.last = append(w.last, w.tombstone)
		w.tombstone = nil
	}
}

// dropLookups drops what the walk has found. A crash leaves some of it, and readers
// told of all of it.
func (s *Store) dropLookups(ctx context.Context, id model.StreamID, w *lookupWalk) (removed uint64, err error) {
	if len(w.gone)+len(w.last) == 0 {
		return 0, nil
	}
	if err := s.step(ctx, id, func(a *attempt) error {
		if a.was.Superseded >= w.cleared {
			return nil
		}
		return a.decide(ctx, func(u *unitState) { u.Superseded = w.cleared }, nil, nil, nil)
	}); err != nil {
		return 0, err
	}
	for _, list := range []*[][]byte{&w.gone, &w.last} {
		if err := inBatches(*list, s.options.batch, func(ids [][]byte) error {
			r, err := s.of(id, lookupsName).DeleteMany(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
			if err == nil {
				removed += uint64(r.DeletedCount)
			}
			return err
		}); err != nil {
			return removed, err
		}
		*list = nil
	}
	return removed, nil
}
