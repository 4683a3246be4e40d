package rules

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
)

func mustCompile(t testing.TB, yaml string) *Plan {
	t.Helper()
	p, ds := Compile(yaml, Options{Version: 1})
	if p == nil {
		t.Fatalf("%s\n%v", yaml, ds)
	}
	return p
}

// tenColumns is a row of the size that the goals name.
func tenColumns() (*model.SourceTable, []model.Value) {
	t := &model.SourceTable{Connection: "default", Schema: "public", Name: "t"}
	values := []model.Value{
		model.TextValue("4f6e3c1a-0b52-4a8e-9d57-1f0c9b7a2e11"), model.TextValue("owner-17"), model.TextValue("Buy milk and bread"),
		model.IntegerValue(42), model.RealValue(2.5), model.IntegerValue(1), model.NullValue,
		model.TextValue("2024-02-29T12:34:56.123456Z"), model.TextValue("eu-west"), model.IntegerValue(1709210096),
	}
	for _, n := range strings.Fields("id owner_id title count weight done note created_at region version") {
		t.Columns = append(t.Columns, model.Column{Name: n})
	}
	return t, values
}

const byOwner = `
bucket_definitions:
  by_owner:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT * FROM t WHERE owner_id = bucket.user_id
`

// BenchmarkEvaluateRow is a whole row: bucket id, JSON text and checksum.
func BenchmarkEvaluateRow(b *testing.B) {
	table, row := tenColumns()
	te := mustCompile(b, byOwner).Table(table)
	var out RowResult
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		te.EvaluateRow(row, &out)
	}
	if len(out.Puts) != 1 {
		b.Fatal(out.Puts)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkMatch is the row without its JSON text: which buckets it is in.
func BenchmarkMatch(b *testing.B) {
	table, row := tenColumns()
	te := mustCompile(b, byOwner).Table(table)
	q := &te.puts[0]
	var out RowResult
	s := &out.scratch
	s.env.Row = row
	b.ReportAllocs()
	found := 0
	for b.Loop() {
		found1 := func(keys []byte) error {
			s.buf = append(append(append(s.buf[:0], q.prefix...), keys...), ']')
			found++
			return nil
		}
		if err := q.match.run(s, found1); err != nil {
			b.Fatal(err)
		}
	}
	if found == 0 {
		b.Fatal("no match")
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkFiftyStreams is a table that fifty streams read, of which a row
// matches two.
func BenchmarkFiftyStreams(b *testing.B) {
	yaml := "config:\n  edition: 3\nstreams:\n"
	for i := range 50 {
		yaml += fmt.Sprintf("  s%d:\n    query: SELECT * FROM t WHERE owner_id = auth.user_id() AND count = %d\n", i, 41+i%25)
	}
	table, row := tenColumns()
	te := mustCompile(b, yaml).Table(table)
	var out RowResult
	b.ReportAllocs()
	for b.Loop() {
		out.Reset()
		te.EvaluateRow(row, &out)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(len(out.Puts)), "puts")
}

// BenchmarkResolve is a client with 1,000 buckets, from warm lookups.
func BenchmarkResolve(b *testing.B) {
	p := mustCompile(b, `
config:
  edition: 3
streams:
  s:
    auto_subscribe: true
    query: SELECT * FROM t WHERE list_id IN (SELECT list_id FROM members WHERE user_id = auth.user_id())
`)
	var values []string
	for i := range 1000 {
		values = append(values, fmt.Sprintf(`[{"0":"list-%d"}]`, i))
	}
	q, err := p.Querier(Request{Token: json.RawMessage(`{"sub":"u"}`), IncludeDefaults: true})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r, err := q.Resolve(func(keys []string) ([][]string, error) { return [][]string{values}, nil })
		if err != nil || len(r.Buckets) != 1000 {
			b.Fatal(err, len(r.Buckets))
		}
	}
}
