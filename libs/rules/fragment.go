package rules

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
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
// edition 2: text and numbers as such, everything else as a blob that holds
// its JSON text, which appendRaw writes. What is no array has no elements.
func rawElements(v model.Value, dst []model.Value) ([]model.Value, error) {
	if v.IsNull() {
		return dst, nil
	}
	text := value.Text(v)
	if !json.Valid([]byte(text)) {
		return dst, errors.New("not valid JSON")
	}
	var elems []json.RawMessage
	if json.Unmarshal([]byte(text), &elems) != nil {
		return dst, nil
	}
	for _, e := range elems {
		dst = append(dst, rawElement(e))
	}
	return dst, nil
}

func rawElement(e json.RawMessage) model.Value {
	switch c := e[0]; {
	case c == '"':
		var s string
		if json.Unmarshal(e, &s) == nil {
			return model.TextValue(s)
		}
	case c == 'n':
		return model.NullValue
	case c == '-' || c >= '0' && c <= '9':
		if i, err := strconv.ParseInt(string(e), 10, 64); err == nil {
			return model.IntegerValue(i)
		}
		if f, err := strconv.ParseFloat(string(e), 64); err == nil {
			return model.RealValue(f)
		}
	}
	return model.BlobValue(string(compact(e)))
}

// compact rewrites JSON without spaces and with normal numbers.
func compact(e json.RawMessage) []byte {
	var v any
	if json.Unmarshal(e, &v) != nil {
		return e
	}
	b, err := json.Marshal(v)
	if err != nil {
		return e
	}
	return b
}

// appendRaw is appendFragment for a value of rawElements.
func appendRaw(dst []byte, v model.Value) ([]byte, bool) {
	if v.Kind() == model.Blob {
		return append(dst, v.Str()...), true
	}
	return appendFragment(dst, v)
}
