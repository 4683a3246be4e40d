package mongotest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// order of types, as MongoDB compares values of different ones.
func typeOrder(t bson.Type) (int, error) {
	switch t {
	case bson.TypeNull:
		return 1, nil
	case bson.TypeInt32, bson.TypeInt64, bson.TypeDouble:
		return 2, nil
	case bson.TypeString:
		return 3, nil
	case bson.TypeEmbeddedDocument:
		return 4, nil
	case bson.TypeArray:
		return 5, nil
	case bson.TypeBinary:
		return 6, nil
	case bson.TypeBoolean:
		return 8, nil
	}
	return 0, fmt.Errorf("the fake compares no values of type %s", t)
}

// compare compares as MongoDB does: bytes by their number first.
func compare(a, b bson.RawValue) (int, error) {
	x, err := typeOrder(a.Type)
	if err != nil {
		return 0, err
	}
	y, err := typeOrder(b.Type)
	if err != nil || x != y {
		return cmp.Compare(x, y), err
	}
	switch a.Type {
	case bson.TypeNull:
		return 0, nil
	case bson.TypeInt32, bson.TypeInt64, bson.TypeDouble:
		if a.Type != bson.TypeDouble && b.Type != bson.TypeDouble {
			return cmp.Compare(a.AsInt64(), b.AsInt64()), nil
		}
		return cmp.Compare(number(a), number(b)), nil
	case bson.TypeString:
		return strings.Compare(a.StringValue(), b.StringValue()), nil
	case bson.TypeBinary:
		s, p := a.Binary()
		t, q := b.Binary()
		return cmp.Or(cmp.Compare(len(p), len(q)), cmp.Compare(s, t), bytes.Compare(p, q)), nil
	case bson.TypeBoolean:
		x, y := 0, 0
		if a.Boolean() {
			x = 1
		}
		if b.Boolean() {
			y = 1
		}
		return cmp.Compare(x, y), nil
	}
	if bytes.Equal(a.Value, b.Value) {
		return 0, nil
	}
	return 0, fmt.Errorf("the fake does not order values of type %s", a.Type)
}

func number(v bson.RawValue) float64 {
	if f, ok := v.DoubleOK(); ok {
		return f
	}
	return float64(v.AsInt64())
}

// lookup finds a value by its dotted path, not through arrays.
func lookup(doc bson.Raw, path string) (bson.RawValue, bool) {
	for {
		name, rest, more := strings.Cut(path, ".")
		v, err := doc.LookupErr(name)
		if err != nil {
			return bson.RawValue{}, false
		}
		if !more {
			return v, true
		}
		if v.Type != bson.TypeEmbeddedDocument {
			return bson.RawValue{}, false
		}
		doc, path = v.Document(), rest
	}
}

// matches tells whether a document is one that a filter selects.
func matches(doc, filter bson.Raw) (bool, error) { return all(doc, filter, false) }

// selected is matches of one of the candidates, whose _id is as the filter says.
func selected(doc, filter bson.Raw) (bool, error) { return all(doc, filter, true) }

func all(doc, filter bson.Raw, butID bool) (bool, error) {
	elements, err := filter.Elements()
	if err != nil {
		return false, err
	}
	for _, e := range elements {
		if butID && e.Key() == "_id" {
			continue
		}
		ok, err := false, error(nil)
		switch key := e.Key(); {
		case key == "$or":
			ok, err = matchesAny(doc, e.Value())
		case strings.HasPrefix(key, "$"):
			err = fmt.Errorf("the fake knows no filter %s", key)
		default:
			v, found := lookup(doc, key)
			ok, err = holds(v, found, e.Value())
		}
		if err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func matchesAny(doc bson.Raw, filters bson.RawValue) (bool, error) {
	list, err := filters.Array().Values()
	if err != nil {
		return false, err
	}
	for _, f := range list {
		if ok, err := matches(doc, f.Document()); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// operators are those of a condition; nil: it is a value.
func operators(condition bson.RawValue) ([]bson.RawElement, error) {
	if condition.Type != bson.TypeEmbeddedDocument {
		return nil, nil
	}
	elements, err := condition.Document().Elements()
	if err != nil || len(elements) == 0 || !strings.HasPrefix(elements[0].Key(), "$") {
		return nil, err
	}
	return elements, nil
}

// holds tells whether a condition does of a value.
func holds(v bson.RawValue, found bool, condition bson.RawValue) (bool, error) {
	ops, err := operators(condition)
	if err != nil {
		return false, err
	}
	if ops == nil {
		return found && equal(v, condition), nil
	}
	for _, op := range ops {
		want := op.Value()
		ok := false
		switch op.Key() {
		case "$exists":
			ok = found == want.Boolean()
		case "$in", "$nin":
			list, err := want.Array().Values()
			if err != nil {
				return false, err
			}
			for _, one := range list {
				ok = ok || found && equal(v, one)
			}
			ok = ok == (op.Key() == "$in")
		case "$gt", "$gte", "$lt", "$lte":
			if !found || !sameKind(v, want) { // no value of another type is selected
				break
			}
			n, err := compare(v, want)
			if err != nil {
				return false, err
			}
			switch op.Key() {
			case "$gt":
				ok = n > 0
			case "$gte":
				ok = n >= 0
			case "$lt":
				ok = n < 0
			case "$lte":
				ok = n <= 0
			}
		default:
			return false, fmt.Errorf("the fake knows no condition %s", op.Key())
		}
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

func sameKind(a, b bson.RawValue) bool {
	x, err := typeOrder(a.Type)
	y, other := typeOrder(b.Type)
	return err == nil && other == nil && x == y
}

func equal(a, b bson.RawValue) bool {
	if a.Type == b.Type && a.Type != bson.TypeDouble {
		return bytes.Equal(a.Value, b.Value)
	}
	n, err := compare(a, b)
	return err == nil && n == 0
}

// update is a document after an update: a replacement, or operators.
func update(doc, change bson.Raw) (bson.Raw, error) {
	elements, err := change.Elements()
	if err != nil {
		return nil, err
	}
	id := doc.Lookup("_id")
	if len(elements) == 0 || !strings.HasPrefix(elements[0].Key(), "$") {
		if v, err := change.LookupErr("_id"); err == nil {
			if !equal(v, id) {
				return nil, &fault{66, "the _id would be changed"} // ImmutableField
			}
			return change, nil
		}
		var d bson.D
		if err := bson.Unmarshal(change, &d); err != nil {
			return nil, err
		}
		return bson.Marshal(append(bson.D{{Key: "_id", Value: id}}, d...))
	}
	var d bson.D
	if err := bson.Unmarshal(doc, &d); err != nil {
		return nil, err
	}
	paths := map[string]bool{}
	for _, e := range elements {
		fields, err := e.Value().Document().Elements()
		if err != nil {
			return nil, err
		}
		for _, f := range fields {
			path := f.Key()
			if path == "_id" || strings.HasPrefix(path, "_id.") {
				return nil, &fault{66, "the _id would be changed"}
			}
			for other := range paths {
				if other == path || strings.HasPrefix(other, path+".") || strings.HasPrefix(path, other+".") {
					return nil, &fault{40, fmt.Sprintf("updating %s and %s conflicts", other, path)} // ConflictingUpdateOperators
				}
			}
			paths[path] = true
			v := f.Value()
			switch e.Key() {
			case "$set":
				d, err = at(d, path, func(bson.RawValue, bool) (any, error) { return v, nil })
			case "$unset":
				d, err = at(d, path, nil)
			case "$rename":
				to, ok := v.StringValueOK()
				if !ok || strings.Contains(path+to, ".") || paths[to] {
					return nil, errors.New("the fake renames whole fields only, that nothing else changes")
				}
				paths[to] = true
				if is, found := lookup(doc, path); found {
					if d, err = at(d, path, nil); err == nil {
						d, err = at(d, to, func(bson.RawValue, bool) (any, error) { return is, nil })
					}
				}
			case "$inc":
				d, err = at(d, path, func(old bson.RawValue, found bool) (any, error) {
					if !found {
						return v, nil
					}
					if old.Type == bson.TypeInt32 && v.Type == bson.TypeInt32 {
						return old.Int32() + v.Int32(), nil
					}
					if x, ok := old.AsInt64OK(); ok {
						return x + v.AsInt64(), nil
					}
					return nil, &fault{14, "it is not a number: " + path} // TypeMismatch
				})
			default:
				err = fmt.Errorf("the fake knows no update %s", e.Key())
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return bson.Marshal(d)
}

// at changes the value at a dotted path; change nil: it is removed.
func at(d bson.D, path string, change func(old bson.RawValue, found bool) (any, error)) (bson.D, error) {
	name, rest, more := strings.Cut(path, ".")
	i := 0
	for i < len(d) && d[i].Key != name {
		i++
	}
	found := i < len(d)
	if !found && change == nil {
		return d, nil
	}
	if more {
		var inner bson.D
		if found {
			is, ok := d[i].Value.(bson.D)
			if !ok {
				return nil, &fault{28, "no field can be made in " + name} // PathNotViable
			}
			inner = is
		} else {
			d = append(d, bson.E{Key: name})
		}
		inner, err := at(inner, rest, change)
		d[i].Value = inner
		return d, err
	}
	if change == nil {
		return append(d[:i:i], d[i+1:]...), nil
	}
	var old bson.RawValue
	if found {
		t, b, err := bson.MarshalValue(d[i].Value)
		if err != nil {
			return nil, err
		}
		old = bson.RawValue{Type: t, Value: b}
	} else {
		d = append(d, bson.E{Key: name})
	}
	v, err := change(old, found)
	if raw, ok := v.(bson.RawValue); ok && raw.Type == bson.TypeEmbeddedDocument {
		var inner bson.D // so that a later path leads into it
		if err := bson.Unmarshal(raw.Value, &inner); err != nil {
			return nil, err
		}
		v = inner
	}
	d[i].Value = v
	return d, err
}
