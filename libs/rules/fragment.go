package rules

import (
	"errors"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// A fragment is the JSON text of a key, as it stands in bucket ids and lookup
// keys. Numbers are normal: 1.0 and 1 have the same fragment.

// appendFragment appends the fragment of v; ok is false for what cannot be a
// key: blobs and absent values.
func appendFragment(dst []byte, v model.Value) (_ []byte, ok bool) {
	switch v.Kind() {
	case model.Null:
		return append(dst, "null"...), true
	case model.Integer:
		return strconv.AppendInt(dst, v.Int(), 10), true
	case model.Real:
		return model.AppendReal(dst, v.Float()), true
	case model.BigInteger:
		return append(dst, v.Str()...), true
	case model.Text:
		return model.AppendJSON(dst, v), true
	}
	return dst, false
}

var errNoArray = errors.New("not a JSON array")

// rowElements are the elements of a row's array, which must be one; strict: it
// must not be null either.
func rowElements(v model.Value, strict bool) ([]model.Value, error) {
	if v.IsNull() && !strict {
		return nil, nil
	}
	elems, err := rawElements(v, nil)
	if err == nil && !strings.HasPrefix(strings.TrimLeft(value.Text(v), " \t\r\n"), "[") {
		err = errNoArray
	}
	return elems, err
}

// rawElements returns the elements of a JSON array as values, for rules and
// edition 2: text, numbers and null as such, everything else as a blob that
// holds its JSON text, which appendRaw writes. What is no array has no elements.
func rawElements(v model.Value, dst []model.Value) ([]model.Value, error) {
	if v.IsNull() {
		return dst, nil
	}
	n, err := jsontext.Parse(value.Text(v))
	if err != nil || n.Kind != jsontext.Array {
		return dst, err
	}
	for _, e := range n.Elems {
		switch e.Kind {
		case jsontext.Null:
			dst = append(dst, model.NullValue)
		case jsontext.Number, jsontext.String:
			dst = append(dst, e.Value)
		default:
			dst = append(dst, model.BlobValue(string(appendPlain(nil, e))))
		}
	}
	return dst, nil
}

// appendPlain appends JSON without spaces and with normal numbers.
func appendPlain(dst []byte, n jsontext.Node) []byte {
	switch n.Kind {
	case jsontext.Array, jsontext.Object:
		open, end := byte('['), byte(']')
		if n.Kind == jsontext.Object {
			open, end = '{', '}'
		}
		dst = append(dst, open)
		for i, e := range n.Elems {
			if i > 0 {
				dst = append(dst, ',')
			}
			if n.Kind == jsontext.Object {
				dst = append(model.AppendJSONString(dst, n.Keys[i]), ':')
			}
			dst = appendPlain(dst, e)
		}
		return append(dst, end)
	case jsontext.Number:
		dst, _ = appendFragment(dst, n.Value)
		return dst
	}
	return n.Append(dst)
}

// appendRaw is appendFragment for a value of rawElements.
func appendRaw(dst []byte, v model.Value) ([]byte, bool) {
	if v.Kind() == model.Blob {
		return append(dst, v.Str()...), true
	}
	return appendFragment(dst, v)
}
