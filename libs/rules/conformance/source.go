package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
)

// sourceValue is a value as the source database delivers it.
type sourceValue struct {
	Kind          string
	Value         json.RawMessage
	ISO, Text     string
	SourceDigits  int `json:"source_digits"`
	DefaultDigits int `json:"default_digits"`
}

// convertSource makes the SQLite value of what a source delivers.
func convertSource(raw json.RawMessage, o model.ValueOptions) (model.Value, error) {
	var v sourceValue
	if err := json.Unmarshal(raw, &v); err != nil {
		return model.Value{}, err
	}
	switch v.Kind {
	case "bool":
		return model.BoolValue(string(v.Value) == "true"), nil
	case "json":
		s, err := text(v.Value)
		return model.TextValue(s), err
	case "timestamp":
		return o.Timestamp(v.ISO, v.SourceDigits, v.DefaultDigits), nil
	case "time":
		return o.Time(v.Text, v.SourceDigits, v.DefaultDigits), nil
	case "array", "object":
		var b model.NestedBuilder
		if err := nest(&b, v.Value, o); err != nil {
			return model.Value{}, err
		}
		return b.Result()
	}
	return model.Value{}, fmt.Errorf("unknown source value %s", v.Kind)
}

// nest writes an array, an object or a value in one.
func nest(b *model.NestedBuilder, raw json.RawMessage, o model.ValueOptions) error {
	raw = bytes.TrimSpace(raw)
	switch raw[0] {
	case '[':
		var elems []json.RawMessage
		if err := json.Unmarshal(raw, &elems); err != nil {
			return err
		}
		b.BeginArray()
		for _, e := range elems {
			if err := nest(b, e, o); err != nil {
				return err
			}
		}
		b.End()
		return nil
	case '{':
		var members ordered
		if err := json.Unmarshal(raw, &members); err != nil {
			return err
		}
		if len(members) == 1 && (members[0].key == "$blob" || members[0].key == "$source" || members[0].key == "$real") {
			break
		}
		b.BeginObject()
		for _, m := range members {
			b.Key(m.key)
			if err := nest(b, m.value, o); err != nil {
				return err
			}
		}
		b.End()
		return nil
	case 't', 'f':
		b.Value(model.BoolValue(raw[0] == 't'))
		return nil
	}
	v, err := decodeValue(raw, o)
	if err != nil {
		return err
	}
	b.Value(v)
	return nil
}

// hasSource tells whether a row has arrays or objects of the source. Vectors
// write whole numbers in these alike, whether they are integers or reals, so
// that the converted value is known up to that only.
func hasSource(r ordered) bool {
	for _, m := range r {
		if bytes.Contains(m.value, []byte(`"$source"`)) {
			return true
		}
	}
	return false
}

// sameSource compares converted values up to what vectors leave open: 2.0 may
// be 2.
func sameSource(a, b model.Value) bool {
	plain := func(s string) string {
		for _, end := range []string{",", "]", "}"} {
			s = string(bytes.ReplaceAll([]byte(s), []byte(".0"+end), []byte(end)))
		}
		return s
	}
	return a.Kind() == b.Kind() && a.Int() == b.Int() && plain(a.Str()) == plain(b.Str())
}
