package ledger

import (
	"bytes"
	"iter"
	"maps"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// shelf is the least that can be called a store.
type shelf struct {
	head    model.StreamHead
	records map[model.RowKey]*Record
	buckets map[string][]model.Op
	entries []EntryWrite
	custom  map[string][]model.WriteCheckpoint // by key
}

func newShelf(head model.StreamHead) *shelf {
	return &shelf{head: head, records: map[model.RowKey]*Record{}, buckets: map[string][]model.Op{}, custom: map[string][]model.WriteCheckpoint{}}
}

func keysOf[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

func (s *shelf) load(a Action) Event {
	switch a := a.(type) {
	case Load:
		var e Loaded
		for _, k := range a.Keys {
			e.Records = append(e.Records, s.records[k])
		}
		return e
	case LoadTable:
		var e TableLoaded
		for k, r := range s.records {
			if k.Table == a.Table && (a.After == (model.RowID{}) || bytes.Compare(k.Row[:], a.After[:]) > 0) {
				e.Rows = append(e.Rows, KeyedRecord{k, r})
			}
		}
		slices.SortFunc(e.Rows, func(a, b KeyedRecord) int { return bytes.Compare(a.Key.Row[:], b.Key.Row[:]) })
		if len(e.Rows) > a.Limit {
			e.Rows, e.More = e.Rows[:a.Limit], true
		}
		return e
	case LoadOps:
		var e OpsLoaded
		size := 0
		for _, op := range s.buckets[a.Bucket] {
			if op.ID > a.Checkpoint {
				e.Since = append(e.Since, op)
			} else if _, wanted := slices.BinarySearch(a.Ops, op.ID); wanted {
				e.Ops = append(e.Ops, op)
				size += len(op.Data)
			}
		}
		e.Cut = size > a.Bytes
		return e
	}
	panic("not a load")
}

// newest are the PUTs of a bucket up to op that are the newest op of their row.
func (s *shelf) newest(bucket string, op model.OpID) []model.OpID {
	newest := map[place]model.Op{}
	for _, o := range s.buckets[bucket] {
		if o.ID <= op {
			newest[place{o.Key, o.ObjectType, o.ObjectID}] = o
		}
	}
	var ids []model.OpID
	for _, o := range newest {
		if o.Kind == model.OpPut {
			ids = append(ids, o.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// commit stores c, unless it is fenced or out of place.
func (s *shelf) commit(c *Commit) bool {
	if c.Head.Epoch != s.head.Epoch || c.Previous != s.head.Applied || c.PreviousOp != s.head.Persisted {
		return false
	}
	for _, op := range c.Ops {
		name := c.Buckets[op.Bucket].Bucket
		s.buckets[name] = append(s.buckets[name], op.Op)
	}
	for _, r := range c.Gone {
		maps.DeleteFunc(s.records, func(k model.RowKey, _ *Record) bool { return r.Has(k) })
	}
	for _, r := range c.Rows {
		if r.Record == nil {
			delete(s.records, r.Key)
		} else {
			s.records[r.Key] = r.Record
		}
	}
	s.entries = append(s.entries, c.Entries...)
	for _, w := range c.Checkpoints {
		s.custom[w.UserKey] = append(s.custom[w.UserKey], model.WriteCheckpoint{UserKey: w.UserKey, ID: w.ID, Head: c.CheckpointsAt})
	}
	s.head = c.Head
	return true
}

// reached is the highest custom write checkpoint of each key that position has
// reached.
func (s *shelf) reached(position model.Position) map[string]uint64 {
	all := map[string]uint64{}
	for key, ws := range s.custom {
		for _, w := range ws {
			if w.Head <= position {
				all[key] = max(all[key], w.ID)
			}
		}
	}
	return all
}
