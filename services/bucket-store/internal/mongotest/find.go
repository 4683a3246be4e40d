package mongotest

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// cursor is a find that goes on. Without an order, or by _id, it goes on in what is
// there; else in the documents that were there, as they are.
type cursor struct {
	name       string
	filter     bson.Raw
	projection bson.Raw
	descending bool
	byID       bool
	place      string   // key of the last document
	rest       []string // unless byID
	limit      int      // left; 0 = none
}

// firstBatch is how many documents a server sends if it is not told.
const firstBatch = 101

func (s *Server) find(c *command) (bson.D, error) {
	cur := &cursor{name: c.name(), filter: c.document("filter"), projection: c.document("projection"), limit: c.number("limit"), byID: true}
	by, err := c.document("sort").Elements()
	if err != nil {
		return nil, err
	}
	of := s.collection(c, false)
	switch {
	case len(by) > 1:
		return nil, errors.New("the fake sorts by one field")
	case len(by) == 1:
		cur.descending = by[0].Value().AsInt64() < 0
		if field := by[0].Key(); field != "_id" {
			cur.byID = false
			if cur.rest, err = of.by(field, cur); err != nil {
				return nil, err
			}
		}
	}
	size := c.number("batchSize")
	if size == 0 {
		size = firstBatch
	}
	batch, done, err := s.batch(cur, size)
	if err != nil {
		return nil, err
	}
	id := int64(0)
	if !done && !c.is("singleBatch") {
		s.lastCursor++
		id = s.lastCursor
		s.cursors[id] = cur
	}
	return bson.D{{Key: "cursor", Value: bson.D{{Key: "id", Value: id}, {Key: "ns", Value: c.name()}, {Key: "firstBatch", Value: batch}}}}, nil
}

func (s *Server) getMore(c *command) (bson.D, error) {
	id := c.Body.Lookup("getMore").AsInt64()
	cur := s.cursors[id]
	if cur == nil {
		return nil, &fault{43, fmt.Sprintf("cursor id %d not found", id)} // CursorNotFound
	}
	size := c.number("batchSize")
	if size == 0 {
		size = 1 << 30 // as many as fit into a message
	}
	batch, done, err := s.batch(cur, size)
	if err != nil {
		return nil, err
	}
	if done {
		delete(s.cursors, id)
		id = 0
	}
	return bson.D{{Key: "cursor", Value: bson.D{{Key: "id", Value: id}, {Key: "ns", Value: cur.name}, {Key: "nextBatch", Value: batch}}}}, nil
}

func (s *Server) killCursors(c *command) (bson.D, error) {
	ids, err := c.Body.Lookup("cursors").Array().Values()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		delete(s.cursors, id.AsInt64())
	}
	return nil, nil
}

// index is the keys of a collection in the order of a field, as of a version.
type index struct {
	version int
	keys    []string
	values  []bson.RawValue
}

// by are the keys of what a cursor may select, in the order of a field.
func (of *collection) by(field string, cur *cursor) ([]string, error) {
	i := of.indexes[field]
	if i == nil || i.version != of.version {
		i = &index{version: of.version}
		for _, k := range of.sorted() {
			v, found := lookup(of.docs[k], field)
			if !found {
				return nil, errors.New("the fake sorts by no field that is missing")
			}
			if _, err := compare(v, v); err != nil {
				return nil, err
			}
			i.keys, i.values = append(i.keys, k), append(i.values, v)
		}
		sort.Stable(i)
		of.indexes[field] = i
	}
	keys := i.keys
	if condition, err := cur.filter.LookupErr(field); err == nil && !cur.descending {
		if from, err := condition.Document().LookupErr("$gte"); err == nil {
			keys = keys[sort.Search(len(keys), func(n int) bool { return order(i.values[n], from) >= 0 }):]
		}
	}
	if cur.descending {
		keys = slices.Clone(keys)
		slices.Reverse(keys)
	}
	return keys, nil
}

func (i *index) Len() int           { return len(i.keys) }
func (i *index) Less(a, b int) bool { return order(i.values[a], i.values[b]) < 0 }
func (i *index) Swap(a, b int) {
	i.keys[a], i.keys[b] = i.keys[b], i.keys[a]
	i.values[a], i.values[b] = i.values[b], i.values[a]
}

// order compares values that can be compared.
func order(a, b bson.RawValue) int {
	n, err := compare(a, b)
	if err != nil {
		panic(err)
	}
	return n
}

// batch is the next documents of a cursor: at most so many, and 16 MB unless it is
// one.
func (s *Server) batch(cur *cursor, size int) (batch bson.A, done bool, err error) {
	batch = bson.A{}
	of := s.collections[cur.name]
	if of == nil {
		return batch, true, nil
	}
	keys := cur.rest
	if cur.byID {
		if keys, err = of.candidates(cur.filter); err != nil {
			return nil, false, err
		}
		if cur.descending {
			keys = slices.Clone(keys)
			slices.Reverse(keys)
		}
		if cur.place != "" {
			i, found := slices.BinarySearchFunc(keys, cur.place, func(k, place string) int {
				if cur.descending {
					return compareKeys(place, k)
				}
				return compareKeys(k, place)
			})
			if found {
				i++
			}
			keys = keys[i:]
		}
	}
	bytes := 0
	for i, k := range keys {
		doc := of.docs[k]
		if doc == nil {
			continue // removed meanwhile
		}
		ok, err := selected(doc, cur.filter)
		if err != nil {
			return nil, false, err
		}
		if !ok {
			continue
		}
		if doc, err = project(doc, cur.projection); err != nil {
			return nil, false, err
		}
		if bytes+len(doc) > maxDocument && len(batch) > 0 || len(batch) == size {
			cur.rest = keys[i:]
			return batch, false, nil
		}
		batch = append(batch, doc)
		bytes += len(doc)
		cur.place = k
		if cur.limit > 0 {
			if cur.limit--; cur.limit == 0 {
				return batch, true, nil
			}
		}
	}
	return batch, true, nil
}

// project leaves out fields.
func project(doc, projection bson.Raw) (bson.Raw, error) {
	elements, err := projection.Elements()
	if err != nil || len(elements) == 0 {
		return doc, err
	}
	var d bson.D
	if err := bson.Unmarshal(doc, &d); err != nil {
		return nil, err
	}
	for _, e := range elements {
		if e.Value().AsInt64() != 0 || strings.Contains(e.Key(), ".") {
			return nil, errors.New("the fake only leaves fields out")
		}
		if d, err = at(d, e.Key(), nil); err != nil {
			return nil, err
		}
	}
	return bson.Marshal(d)
}
