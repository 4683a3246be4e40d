package mongotest

import (
	"fmt"
	"slices"
	"sort"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// collection is the documents of one, by _id and in its order.
type collection struct {
	docs map[string]bson.Raw // by keyOf
	// order has the keys sorted, but for the added ones, and maybe some that
	// are gone.
	order []string
	added []string
	gone  bool

	version int               // raised by every change
	indexes map[string]*index // by field; those of another version are old
}

// keyOf is a value as a text: its type and bytes.
func keyOf(v bson.RawValue) string { return string(append([]byte{byte(v.Type)}, v.Value...)) }

func valueOf(key string) bson.RawValue {
	return bson.RawValue{Type: bson.Type(key[0]), Value: []byte(key[1:])}
}

func compareKeys(a, b string) int {
	return order(valueOf(a), valueOf(b)) // insert has compared them
}

// sorted returns all keys in order.
func (c *collection) sorted() []string {
	if c.gone {
		c.order = slices.DeleteFunc(c.order, func(k string) bool { return c.docs[k] == nil })
		c.added = slices.DeleteFunc(c.added, func(k string) bool { return c.docs[k] == nil })
		c.gone = false
	}
	if len(c.added) > 0 {
		slices.SortFunc(c.added, compareKeys)
		merged := make([]string, 0, len(c.order)+len(c.added))
		i := 0
		for _, k := range c.order {
			for i < len(c.added) && compareKeys(c.added[i], k) < 0 {
				merged = append(merged, c.added[i])
				i++
			}
			merged = append(merged, k)
		}
		merged = append(merged, c.added[i:]...)
		c.order, c.added = slices.Compact(merged), nil
	}
	return c.order
}

func (c *collection) insert(doc bson.Raw) error {
	id, err := doc.LookupErr("_id")
	if err != nil {
		return fmt.Errorf("a document without an _id")
	}
	if _, err := compare(id, id); err != nil {
		return err
	}
	if len(doc) > maxDocument {
		return &fault{10334, fmt.Sprintf("a document of %d bytes is too large", len(doc))} // BSONObjectTooLarge
	}
	key := keyOf(id)
	if c.docs[key] != nil {
		return &fault{11000, "E11000 duplicate key error: _id"}
	}
	c.docs[key] = doc
	c.version++
	c.added = append(c.added, key)
	return nil
}

func (c *collection) remove(key string) {
	delete(c.docs, key)
	c.version++
	c.gone = true
}

// candidates are keys, in order, of all documents that a filter may select.
func (c *collection) candidates(filter bson.Raw) ([]string, error) {
	if any, err := filter.LookupErr("$or"); err == nil {
		list, err := any.Array().Values()
		if err != nil {
			return nil, err
		}
		var all []string
		for _, f := range list {
			some, err := c.candidates(f.Document())
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		slices.SortFunc(all, compareKeys)
		return slices.Compact(all), nil
	}
	condition, err := filter.LookupErr("_id")
	if err != nil {
		return c.sorted(), nil
	}
	ops, err := operators(condition)
	if err != nil {
		return nil, err
	}
	if ops == nil {
		return c.those([]bson.RawValue{condition}), nil
	}
	keys := []string(nil)
	whole := true
	but := map[string]bool{}
	for _, op := range ops {
		if op.Key() == "$nin" {
			list, err := op.Value().Array().Values()
			if err != nil {
				return nil, err
			}
			for _, id := range list {
				but[keyOf(id)] = true
			}
			continue
		}
		if op.Key() == "$in" {
			list, err := op.Value().Array().Values()
			if err != nil {
				return nil, err
			}
			return c.those(list), nil
		}
		if whole {
			keys, whole = c.sorted(), false
		}
		bound := keyOf(op.Value())
		least := sort.Search(len(keys), func(i int) bool { return compareKeys(keys[i], bound) >= 0 })
		beyond := sort.Search(len(keys), func(i int) bool { return compareKeys(keys[i], bound) > 0 })
		switch op.Key() {
		case "$gt":
			keys = keys[beyond:]
		case "$gte":
			keys = keys[least:]
		case "$lt":
			keys = keys[:least]
		case "$lte":
			keys = keys[:beyond]
		}
	}
	if len(but) > 0 {
		if whole {
			keys = c.sorted()
		}
		keys = slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return but[k] })
	}
	return keys, nil
}

func (c *collection) those(ids []bson.RawValue) []string {
	var keys []string
	for _, id := range ids {
		if k := keyOf(id); c.docs[k] != nil {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, compareKeys)
	return slices.Compact(keys)
}

// first is the key of a document that a filter selects, "" if there is none.
func (c *collection) first(filter bson.Raw) (string, error) {
	keys, err := c.candidates(filter)
	if err != nil {
		return "", err
	}
	for _, k := range keys {
		if ok, err := selected(c.docs[k], filter); ok || err != nil {
			return k, err
		}
	}
	return "", nil
}

// change updates the document of a key.
func (c *collection) change(key string, u bson.Raw) error {
	doc, err := update(c.docs[key], u)
	if err != nil {
		return err
	}
	if len(doc) > maxDocument {
		return &fault{10334, fmt.Sprintf("a document of %d bytes is too large", len(doc))}
	}
	c.docs[key] = doc
	c.version++
	return nil
}

// changeAll updates all documents that a filter selects.
func (c *collection) changeAll(filter, u bson.Raw) (n int, err error) {
	keys, err := c.candidates(filter)
	if err != nil {
		return 0, err
	}
	for _, k := range keys {
		if ok, err := selected(c.docs[k], filter); err != nil {
			return n, err
		} else if !ok {
			continue
		}
		if err := c.change(k, u); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
