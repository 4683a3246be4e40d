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
// An integer key is one key.
func Member(x Expr, op string, key model.Value, o Options) Expr {
	if op == "->" {
		return unary(x, func(v model.Value) (model.Value, error) { return memberText(v, key, o) })
	}
	return unary(x, func(v model.Value) (model.Value, error) { return member(v, key, o) })
}

// find looks a path up in the document v.
func find(v, key model.Value, o Options) (n jsontext.Node, ok bool, err error) {
	if v.IsNull() || key.IsNull() {
		return n, false, nil
	}
	n, err = jsontext.Parse(value.Text(v))
	if err != nil {
		return n, false, err
	}
	path := value.Text(key)
	root := strings.HasPrefix(path, "$")
	if key.Kind() != model.Text || o.FixedJSONExtract && !root {
		n, ok = n.Get(path)
		return n, ok, nil
	}
	for more, first := true, true; more; first = false {
		var part string
		part, path, more = strings.Cut(path, ".")
		if first && root {
			continue
		}
		if n, ok = n.Get(part); !ok {
			return n, false, nil
		}
	}
	return n, true, nil
}

// member is v ->> key. The legacy rule gives JSON null as the text null.
func member(v, key model.Value, o Options) (model.Value, error) {
	n, ok, err := find(v, key, o)
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
func memberText(v, key model.Value, o Options) (model.Value, error) {
	n, ok, err := find(v, key, o)
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
	return member(v, value.CastText(path), o)
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
