package rules

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
)

// configs returns the configs of all conformance vectors.
func configs(t testing.TB) []string {
	files, err := filepath.Glob("testdata/conformance/*.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ Vectors []struct{ Config string } }
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		for _, c := range v.Vectors {
			if c.Config != "" {
				out = append(out, c.Config)
			}
		}
	}
	return out
}

// FuzzCompile holds that no config makes the compiler or what it makes panic,
// that findings lie within the text, and that row data is valid JSON.
func FuzzCompile(f *testing.F) {
	for _, c := range configs(f) {
		f.Add(c)
	}
	var table model.SourceTable
	var row []model.Value
	for name, v := range map[string]model.Value{
		"id": model.TextValue("a"), "owner": model.TextValue("u1"), "n": model.IntegerValue(1), "tags": model.TextValue(`["u1",2,null]`),
		"note": model.NullValue, "blob": model.BlobValue("\x00\xff"), "r": model.RealValue(1.5), "t": model.TextValue("\xed\xa0\x80\"\\\n"),
	} {
		table.Columns = append(table.Columns, model.Column{Name: name})
		row = append(row, v)
	}
	f.Fuzz(func(t *testing.T, config string) {
		p, ds := Compile(config, Options{Version: 1})
		for _, d := range ds {
			if d.Start < 0 || d.End < d.Start || d.End > len(config) {
				t.Fatalf("%+v is not within the text", d)
			}
		}
		if p == nil {
			return
		}
		index := map[string][]string{}
		for _, pattern := range p.SourceTables() {
			table.Connection, table.Schema, table.Name = pattern.Connection, pattern.Schema, pattern.Name
			te := p.Table(&table)
			if te == nil {
				continue
			}
			var out RowResult
			te.EvaluateRow(row, &out)
			for _, put := range out.Puts {
				if !json.Valid([]byte(put.Data)) {
					t.Fatalf("invalid JSON: %s", put.Data)
				}
			}
			for _, l := range out.Lookups {
				index[l.Lookup] = append(index[l.Lookup], l.Values)
			}
		}
		q, err := p.Querier(Request{Token: json.RawMessage(`{"sub":"u1","ids":["a","u1"]}`), IncludeDefaults: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = q.Resolve(func(keys []string) ([][]string, error) {
			out := make([][]string, len(keys))
			for i, k := range keys {
				out[i] = index[k]
			}
			return out, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
