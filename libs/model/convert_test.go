package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConvert holds the recorded conversions of source values under all
// compatibility options.
func TestConvert(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "rules", "testdata", "conformance", "editions_types.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name, Config string
			Rows         []struct{ Record map[string]json.RawMessage }
			Expect       struct {
				Rows []struct {
					Record map[string]any `json:"sqlite_record"`
					Errors []any
				}
			}
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, v := range file.Vectors {
		o := ValueOptions{ISO8601: !strings.Contains(v.Config, "edition: 1") && strings.Contains(v.Config, "edition:")}
		o.ISO8601 = (o.ISO8601 || strings.Contains(v.Config, "timestamps_iso8601: true")) &&
			!strings.Contains(v.Config, "timestamps_iso8601: false")
		for digits, name := range []string{"seconds", "", "", "milliseconds", "", "", "microseconds", "", "", "nanoseconds"} {
			if name != "" && strings.Contains(v.Config, "timestamp_max_precision: "+name) {
				o.MaxDigits = uint8(digits + 1)
			}
		}
		for i, want := range v.Expect.Rows {
			for name, raw := range v.Rows[i].Record {
				if !bytes.Contains(raw, []byte(`"$source"`)) {
					continue
				}
				checked++
				got, err := convertSource(raw, o)
				if len(want.Errors) > 0 {
					if !errors.Is(err, ErrNesting) {
						t.Errorf("%s: %s converts to %v, %v; want an error", v.Name, raw, got, err)
					}
					continue
				}
				text := got.Str()
				if got.Kind() == Integer {
					text = string(AppendJSON(nil, got))
				}
				expected := want.Record[name]
				if f, ok := expected.(float64); ok {
					expected = string(AppendReal(nil, f))
				}
				// The vectors do not say which whole numbers in arrays are reals.
				plain := func(s any) string {
					return strings.NewReplacer("1.0,", "1,", "2.0,", "2,").Replace(s.(string))
				}
				if err != nil || plain(text) != plain(expected) {
					t.Errorf("%s: %s converts to %s, %v; want %v", v.Name, raw, text, err, expected)
				}
			}
		}
	}
	if checked < 200 {
		t.Errorf("only %d values", checked)
	}
}

// convertSource converts a {"$source": …}.
func convertSource(raw json.RawMessage, o ValueOptions) (Value, error) {
	var b NestedBuilder
	v, nested, err := convertNested(&b, raw, o)
	if err != nil || !nested {
		return v, err
	}
	return b.Result()
}

// convertNested returns a scalar, or writes an array or object to b.
func convertNested(b *NestedBuilder, raw json.RawMessage, o ValueOptions) (v Value, nested bool, err error) {
	switch raw[0] {
	case '[':
		var elems []json.RawMessage
		if err := json.Unmarshal(raw, &elems); err != nil {
			return v, false, err
		}
		b.BeginArray()
		for _, e := range elems {
			v, nested, err := convertNested(b, e, o)
			if err != nil {
				return v, false, err
			}
			if !nested {
				b.Value(v)
			}
		}
		b.End()
		return v, true, nil
	case '{':
		d := json.NewDecoder(bytes.NewReader(raw))
		d.Token()
		begun := false
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return v, false, err
			}
			var member json.RawMessage
			if err := d.Decode(&member); err != nil {
				return v, false, err
			}
			switch key {
			case "$blob":
				return BlobValue("x"), false, nil
			case "$source":
				return convertKind(b, member, o)
			}
			if !begun {
				b.BeginObject()
				begun = true
			}
			b.Key(key.(string))
			v, nested, err := convertNested(b, member, o)
			if err != nil {
				return v, false, err
			}
			if !nested {
				b.Value(v)
			}
		}
		if !begun {
			b.BeginObject()
		}
		b.End()
		return v, true, nil
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return TextValue(s), false, err
	case 'n':
		return NullValue, false, nil
	case 't', 'f':
		return BoolValue(raw[0] == 't'), false, nil
	}
	if bytes.ContainsAny(raw, ".e") {
		var f float64
		err := json.Unmarshal(raw, &f)
		return RealValue(f), false, err
	}
	var i int64
	err = json.Unmarshal(raw, &i)
	return IntegerValue(i), false, err
}

func convertKind(b *NestedBuilder, raw json.RawMessage, o ValueOptions) (Value, bool, error) {
	var s struct {
		Kind    string
		Value   json.RawMessage
		ISO     string
		Text    string
		Source  int `json:"source_digits"`
		Default int `json:"default_digits"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return Value{}, false, err
	}
	switch s.Kind {
	case "timestamp":
		return o.Timestamp(s.ISO, s.Source, s.Default), false, nil
	case "time":
		return o.Time(s.Text, s.Source, s.Default), false, nil
	}
	return convertNested(b, s.Value, o)
}

func TestTimestamp(t *testing.T) {
	iso := ValueOptions{ISO8601: true}
	milli := ValueOptions{ISO8601: true, MaxDigits: 4}
	for _, c := range []struct {
		o                ValueOptions
		in               string
		source, defaultD int
		want             string
	}{
		{iso, "2024-02-29T12:34:56.5+02:00", 6, 6, "2024-02-29T12:34:56.500000+02:00"},
		{iso, "2024-02-29T12:34:56-05:30", 6, 3, "2024-02-29T12:34:56.000-05:30"},
		{iso, "2024-02-29T12:34:56.1234567Z", 7, 9, "2024-02-29T12:34:56.123456700Z"},
		{milli, "2024-02-29T12:34:56.9999-05:30", 7, 9, "2024-02-29T12:34:56.999-05:30"},
		{milli, "-0044-03-15T12:34:56Z", 6, 6, "-0044-03-15T12:34:56.000Z"},
		{ValueOptions{}, "2024-02-29T12:34:56.5+02:00", 6, 6, "2024-02-29 12:34:56.5+02:00"},
	} {
		if got := c.o.Timestamp(c.in, c.source, c.defaultD).Str(); got != c.want {
			t.Errorf("%s is %s, want %s", c.in, got, c.want)
		}
	}
}

func TestNestedBuilder(t *testing.T) {
	var b NestedBuilder
	b.BeginObject()
	b.Key("b")
	b.Value(BlobValue("x"))
	b.Key("z")
	b.BeginArray()
	b.Value(BlobValue("x"))
	b.Value(BoolValue(true))
	b.JSON(`{"a": 1}`)
	b.End()
	b.Key("10")
	b.Value(RealValue(1))
	b.Key("2")
	b.Value(TextValue("x,y"))
	b.Key("y")
	b.Value(Value{})
	b.Key("01")
	b.BeginObject()
	b.End()
	b.End()
	if v, err := b.Result(); err != nil || v.Str() != `{"2":"x,y","10":1.0,"z":[null,1,{"a": 1}],"01":{}}` {
		t.Errorf("%s, %v", v.Str(), err)
	}
	for range MaxNesting + 1 {
		b.BeginArray()
	}
	for range MaxNesting + 1 {
		b.End()
	}
	if _, err := b.Result(); !errors.Is(err, ErrNesting) {
		t.Errorf("too deep: %v", err)
	}
	b.BeginArray()
	b.End()
	if v, err := b.Result(); err != nil || v.Str() != "[]" {
		t.Errorf("used again: %s, %v", v.Str(), err)
	}
}
