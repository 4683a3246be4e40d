// Package jsontext reads JSON text exactly and writes it as the reference
// service does: integers of any size stay exact, a number with a point or an
// exponent is a real and is written with at least .0, keys that look like array
// indexes come first, in order.
//
// Invariants:
//
//   - Append then Parse gives the same Node (FuzzParse).
//   - Append of a parsed text is a fixed point: parsing and appending again
//     gives the same bytes (FuzzParse).
//   - Find gives what Parse and Get give (FuzzParse).
//   - Parse takes no text that nests deeper than MaxDepth and never panics
//     (FuzzParse).
package jsontext

import (
	"slices"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// Kind is the kind of a Node.
type Kind uint8

const (
	Null Kind = iota
	Bool
	Number
	String
	Array
	Object
)

// Node is a JSON value.
type Node struct {
	Kind Kind
	// Value is the number or string, or 1 or 0.
	Value model.Value
	// Elems are the elements of an array or the values of an object, whose keys
	// are Keys.
	Elems []Node
	Keys  []string
}

// Append appends the text of n.
func (n Node) Append(dst []byte) []byte {
	switch n.Kind {
	case Bool:
		return strconv.AppendBool(dst, n.Value.Int() != 0)
	case Number, String:
		return model.AppendJSON(dst, n.Value)
	case Array:
		dst = append(dst, '[')
		for i, e := range n.Elems {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = e.Append(dst)
		}
		return append(dst, ']')
	case Object:
		dst = append(dst, '{')
		for i, e := range n.Elems {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = model.AppendJSONString(dst, n.Keys[i])
			dst = append(dst, ':')
			dst = e.Append(dst)
		}
		return append(dst, '}')
	}
	return append(dst, "null"...)
}

// Text is Append as a string.
func (n Node) Text() string { return string(n.Append(nil)) }

// SQL returns n as a SQL value: booleans are 1 and 0, arrays and objects their
// text, null is NULL.
func (n Node) SQL() model.Value {
	switch n.Kind {
	case Bool, Number, String:
		return n.Value
	case Array, Object:
		return model.TextValue(n.Text())
	}
	return model.NullValue
}

// Get returns the property key of n: a member of an object, an element of an
// array, a UTF-16 unit of a string, or the length of these two, which the
// reference's host language gives as a real.
func (n Node) Get(key string) (Node, bool) {
	switch n.Kind {
	case Object:
		if i := slices.Index(n.Keys, key); i >= 0 {
			return n.Elems[i], true
		}
	case Array:
		if i, ok := index(key); ok && i < uint64(len(n.Elems)) {
			return n.Elems[i], true
		}
		if key == "length" {
			return Node{Kind: Number, Value: model.RealValue(float64(len(n.Elems)))}, true
		}
	case String:
		length := value.Length(n.Value.Str())
		if i, ok := index(key); ok && i < uint64(length) {
			unit := value.Slice(n.Value.Str(), int64(i), int64(i)+1)
			return Node{Kind: String, Value: model.TextValue(unit)}, true
		}
		if key == "length" {
			return Node{Kind: Number, Value: model.RealValue(float64(length))}, true
		}
	}
	return Node{}, false
}

// index reads a canonical array index.
func index(key string) (uint64, bool) {
	if key == "" || len(key) > 10 || key[0] == '0' && key != "0" {
		return 0, false
	}
	for i := range len(key) {
		if key[i] < '0' || key[i] > '9' {
			return 0, false
		}
	}
	i, err := strconv.ParseUint(key, 10, 64)
	return i, err == nil && i < 1<<32-1
}

// sortIndexKeys puts the keys that are array indexes first, ascending.
func (n *Node) sortIndexKeys() {
	if !slices.ContainsFunc(n.Keys, func(k string) bool { _, ok := index(k); return ok }) {
		return
	}
	order := make([]int, len(n.Keys))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, aok := index(n.Keys[i])
		b, bok := index(n.Keys[j])
		switch {
		case aok && bok:
			return int(int64(a) - int64(b))
		case aok:
			return -1
		case bok:
			return 1
		}
		return 0
	})
	keys, elems := make([]string, len(order)), make([]Node, len(order))
	for to, from := range order {
		keys[to], elems[to] = n.Keys[from], n.Elems[from]
	}
	n.Keys, n.Elems = keys, elems
}

// mergeKeys keeps the last value of equal keys, in the place of the first.
func (n *Node) mergeKeys() {
	place := make(map[string]int, len(n.Keys))
	keys, elems := n.Keys[:0], n.Elems[:0]
	for i, k := range n.Keys {
		if at, ok := place[k]; ok {
			elems[at] = n.Elems[i]
			continue
		}
		place[k] = len(keys)
		keys, elems = append(keys, k), append(elems, n.Elems[i])
	}
	n.Keys, n.Elems = keys, elems
}

// TextArray is the text of a JSON array of strings.
func TextArray(elems []string) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, e := range elems {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(model.AppendJSONString(nil, e))
	}
	b.WriteByte(']')
	return b.String()
}
