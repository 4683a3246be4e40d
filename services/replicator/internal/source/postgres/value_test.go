package postgres

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

var edition2 = model.ValueOptions{ISO8601: true, CustomTypes: true}

// customTypes are the types that the vectors name in words.
func customTypes() map[string]*pgType {
	b := func(oid uint32) *pgType { return new(types).known(oid) }
	float := &pgType{kind: kindDomain, custom: true, elem: b(701), delim: ','}
	address := &pgType{kind: kindComposite, custom: true, delim: ',', fields: []compositeField{{"street", b(25)}, {"number", b(23)}, {"ok", b(16)}}}
	int4 := &pgType{kind: kindRange, custom: true, elem: b(23), delim: ','}
	return map[string]*pgType{
		"DOMAIN over float8":                            float,
		"DOMAIN over int4[]":                            {kind: kindDomain, custom: true, elem: b(1007)},
		"COMPOSITE (street text, number int4, ok bool)": address,
		"array of the composite":                        {kind: kindArray, custom: true, elem: address},
		"RANGE over int4":                               int4,
		"MULTIRANGE over int4":                          {kind: kindMultirange, custom: true, elem: int4},
		"RANGE over timestamptz":                        {kind: kindRange, custom: true, elem: b(1184)},
		"COMPOSITE (where composite, tags text[], at timestamptz)": {kind: kindComposite, custom: true, fields: []compositeField{
			{"where", address}, {"tags", b(1009)}, {"at", b(1184)}}},
		"array of the float8 domain": {kind: kindArray, custom: true, elem: float},
	}
}

// TestPgTypes holds the conversion to the recorded one.
func TestPgTypes(t *testing.T) {
	dir := os.Getenv("SLUICE_CONFORMANCE") // another folder of vectors, of scripts/conformance
	least := 0
	if dir == "" {
		dir, least = "testdata", 105
	}
	file, err := os.ReadFile(filepath.Join(dir, "pg_types.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Vectors []struct {
			Name   string
			Type   string
			OID    uint32
			Custom bool
			Text   string
			Expect map[string]json.RawMessage
		}
	}
	if err := json.Unmarshal(file, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Vectors) < least {
		t.Fatalf("only %d vectors", len(doc.Vectors))
	}
	custom := customTypes()
	for _, v := range doc.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			typ := new(types).known(v.OID)
			if v.Custom {
				if typ = custom[v.Type]; typ == nil {
					t.Fatalf("%s: unknown type %s", v.Name, v.Type)
				}
			}
			for edition, options := range map[string]model.ValueOptions{"edition_1": {}, "edition_2": edition2} {
				c := converter{options: options, arena: new(source.Arena)}
				got := c.value(typ, []byte(v.Text))
				if bytes.Contains(v.Expect[edition], []byte(`"$error"`)) {
					continue // the reference fails; any value will do
				}
				if want := expected(t, v.Expect[edition]); !same(got, want) {
					t.Errorf("%s %s: %s %q became %v %q, want %s", v.Name, edition, v.Type, v.Text, got.Kind(), got.Str(), v.Expect[edition])
				}
			}
		})
	}
}

func expected(t *testing.T, raw json.RawMessage) model.Value {
	t.Helper()
	s := string(raw)
	switch {
	case s == "null":
		return model.NullValue
	case s[0] == '"':
		var text string
		if err := json.Unmarshal(raw, &text); err != nil {
			t.Fatal(err)
		}
		return model.TextValue(text)
	case s[0] == '{':
		var special struct {
			Real *string `json:"$real"`
			Blob *string `json:"$blob"`
		}
		if err := json.Unmarshal(raw, &special); err != nil {
			t.Fatal(err)
		}
		if special.Blob != nil {
			b, err := hex.DecodeString(*special.Blob)
			if err != nil {
				t.Fatal(err)
			}
			return model.BlobValue(string(b))
		}
		return model.RealValue(float([]byte(*special.Real)))
	case strings.ContainsAny(s, ".e"):
		return model.RealValue(float(raw))
	}
	return integer(raw)
}

func same(a, b model.Value) bool {
	if a.Kind() == model.Real && b.Kind() == model.Real {
		return math.Float64bits(a.Float()) == math.Float64bits(b.Float()) || math.IsNaN(a.Float()) && math.IsNaN(b.Float())
	}
	return a == b
}

// TestTimestampDigits: timestamp_max_precision cuts and pads.
func TestTimestampDigits(t *testing.T) {
	for _, tt := range []struct {
		digits  uint8
		oid     uint32
		in, out string
	}{
		{1, 1114, "2024-02-29 12:34:56.789", "2024-02-29T12:34:56"},
		{4, 1114, "2024-02-29 12:34:56.7891", "2024-02-29T12:34:56.789"},
		{4, 1114, "2024-02-29 12:34:56", "2024-02-29T12:34:56.000"},
		{10, 1184, "2024-02-29 12:34:56.5+05:30", "2024-02-29T07:04:56.500000Z"},
		{1, 1083, "12:34:56.5", "12:34:56"},
		{0, 1114, "infinity", "9999-12-31T23:59:59.000000"},
		{0, 1184, "-infinity", "0000-01-01T00:00:00.000000Z"},
		{0, 1184, "2024-02-29 12:34:56-00:00:30", "2024-02-29T12:35:26.000000Z"},
		{0, 1115, `{infinity,NULL,"0044-03-15 00:00:00 BC"}`, `["9999-12-31T23:59:59.000000",null,null]`},
	} {
		c := converter{options: model.ValueOptions{ISO8601: true, MaxDigits: tt.digits}, arena: new(source.Arena)}
		if got := c.value(new(types).known(tt.oid), []byte(tt.in)); got.Str() != tt.out {
			t.Errorf("%s with %d: %q, want %q", tt.in, tt.digits, got.Str(), tt.out)
		}
	}
}

// FuzzValue: whatever text comes, conversion neither panics nor makes broken
// JSON grow without bound.
func FuzzValue(f *testing.F) {
	for _, s := range []string{"{1,NULL}", `{"a\"b",{c}}`, `("x",,"a""b")`, "[1,2)", "{[1,3),(,)}", "2024-02-29 12:34:56.5-08", "\\x00f", "16/B3"} {
		f.Add(s)
	}
	var all []*pgType
	for _, t := range customTypes() {
		all = append(all, t)
	}
	for _, t := range builtins {
		all = append(all, t)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := converter{options: edition2, arena: new(source.Arena)}
		for _, typ := range all {
			if v := c.value(typ, []byte(s)); len(v.Str()) > 64*(len(s)+8) {
				t.Fatalf("%d bytes made %d", len(s), len(v.Str()))
			}
			c.arena.Reset()
		}
	})
}
