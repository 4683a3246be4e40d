package eval

import (
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// Member is x -> key (op "->", JSON text) or x ->> key (a SQL value). A text
// key that starts with $ is a path of keys with dots between, whose first part
// stands for the document; without FixedJSONExtract every text key is a path.
// An integer key is one key; key is not NULL.
func Member(x Expr, op string, key model.Value, o Options) Expr {
	path := pathOf(key, o)
	if op == "->" {
		return unary(x, func(v model.Value) (model.Value, error) { return memberText(v, path, o) })
	}
	return unary(x, func(v model.Value) (model.Value, error) { return member(v, path, o) })
}

// pathOf returns the keys that a key, not NULL, stands for.
func pathOf(key model.Value, o Options) []string {
	path := value.Text(key)
	root := strings.HasPrefix(path, "$")
	if key.Kind() != model.Text || o.FixedJSONExtract && !root {
		return []string{path}
	}
	keys := strings.Split(path, ".")
	if root {
		keys = keys[1:]
	}
	return keys
}

// member is v ->> key. The legacy rule gives JSON null as the text null.
func member(v model.Value, path []string, o Options) (model.Value, error) {
	if v.IsNull() {
		return model.NullValue, nil
	}
	n, ok, err := jsontext.Find(value.Text(v), path)
	if err != nil || !ok {
		return model.NullValue, err
	}
	return nodeValue(n, o.FixedJSONExtract), nil
}

func nodeValue(n jsontext.Node, fixed bool) model.Value {
	if n.Kind == jsontext.Null && !fixed {
		return model.TextValue("null")
	}
	return n.SQL()
}

// memberText is v -> key. The legacy rule gives JSON null as NULL.
func memberText(v model.Value, path []string, o Options) (model.Value, error) {
	if v.IsNull() {
		return model.NullValue, nil
	}
	n, ok, err := jsontext.Find(value.Text(v), path)
	if err != nil || !ok || n.Kind == jsontext.Null && !o.FixedJSONExtract {
		return model.NullValue, err
	}
	return model.TextValue(n.Text()), nil
}

var errPath = &Error{Msg: "A JSON path must start with $"}

// jsonExtract is json_extract(v, path): v ->> path with a path that is one.
func jsonExtract(v, path model.Value, o Options) (model.Value, error) {
	if v.IsNull() || path.IsNull() {
		return model.NullValue, nil
	}
	if !strings.HasPrefix(value.Text(path), "$") {
		return model.Value{}, errPath
	}
	return member(v, pathOf(value.CastText(path), o), o)
}

// jsonArrayLength is json_array_length(v[, path]). What the path leads to is
// read as JSON text again, so that a JSON string there is an error.
func jsonArrayLength(v, path model.Value) (model.Value, error) {
	if !path.IsNull() {
		// JSON null is not an array, in every edition.
		var err error
		if v, err = jsonExtract(v, path, Options{}); err != nil {
			return model.Value{}, err
		}
	}
	if v.IsNull() {
		return model.NullValue, nil
	}
	n, err := jsontext.Parse(value.Text(v))
	if err != nil {
		return model.Value{}, err
	}
	if n.Kind != jsontext.Array {
		return model.IntegerValue(0), nil
	}
	return model.IntegerValue(int64(len(n.Elems))), nil
}

func jsonValid(v model.Value) (model.Value, error) {
	if v.IsNull() {
		return model.BoolValue(false), nil
	}
	_, err := jsontext.Parse(value.Text(v))
	return model.BoolValue(err == nil), nil
}

var errKeys = &Error{Msg: "json_keys needs a JSON object"}

func jsonKeys(v model.Value) (model.Value, error) {
	if v.IsNull() {
		return model.NullValue, nil
	}
	n, err := jsontext.Parse(value.Text(v))
	if err != nil {
		return model.Value{}, err
	}
	if n.Kind != jsontext.Object {
		return model.Value{}, errKeys
	}
	return model.TextValue(jsontext.TextArray(n.Keys)), nil
}

// JSONEach appends the rows that json_each(v) gives to dst: one for each
// element of an array or member of an object, one for a scalar, none for NULL.
// In editions 1 and 2 a JSON null is the text null.
func JSONEach(v model.Value, o Options, dst []EachRow) ([]EachRow, error) {
	if v.IsNull() {
		return dst, nil
	}
	n, err := jsontext.Parse(value.Text(v))
	if err != nil {
		return dst, err
	}
	fixed := o.Edition >= 3
	switch n.Kind {
	case jsontext.Array:
		for i, e := range n.Elems {
			dst = append(dst, EachRow{Key: model.IntegerValue(int64(i)), Value: nodeValue(e, fixed)})
		}
	case jsontext.Object:
		for i, e := range n.Elems {
			dst = append(dst, EachRow{Key: model.TextValue(n.Keys[i]), Value: nodeValue(e, fixed)})
		}
	default:
		dst = append(dst, EachRow{Key: model.NullValue, Value: nodeValue(n, fixed)})
	}
	return dst, nil
}
