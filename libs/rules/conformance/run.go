package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

// Run runs all vectors. tests has, for areas whose code lies above this module
// (compaction, pg_types), the file with the output of their tests.
func Run(files []File, tests map[string]string) (*Report, error) {
	r := &Report{}
	for _, f := range files {
		var results map[string]string
		if file := tests[f.Area]; file != "" {
			var err error
			if results, err = testResults(file); err != nil {
				return nil, err
			}
		}
		for _, raw := range f.Vectors {
			switch f.Area {
			case "checksums":
				name, problem := checksum(raw)
				r.check(f.Area, name, Other, problem, "")
			case "compaction", "pg_types":
				r.external(f.Area, raw, results)
			default:
				runConfig(r, f.Area, raw)
			}
		}
	}
	return r, nil
}

// testResults reads the output of go test -json: what became of each subtest,
// "" if it passed.
func testResults(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	d := json.NewDecoder(bytes.NewReader(b))
	for d.More() {
		var e struct{ Action, Test, Output string }
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		_, name, ok := strings.Cut(e.Test, "/")
		if !ok {
			continue
		}
		switch e.Action {
		case "output":
			out[name] += e.Output
		case "pass":
			out[name] = ""
		}
	}
	return out, nil
}

// external counts a vector that a test of another module ran.
func (r *Report) external(area string, raw json.RawMessage, results map[string]string) {
	var v struct{ Name string }
	if err := json.Unmarshal(raw, &v); err != nil {
		r.check(area, "unreadable vector", Other, err.Error(), "")
		return
	}
	if results == nil {
		r.check(area, v.Name, Other, "", "run by the tests of another module")
		return
	}
	problem, ok := results[strings.ReplaceAll(v.Name, " ", "_")]
	if !ok {
		problem = "was not run"
	}
	r.check(area, v.Name, Other, strings.TrimSpace(problem), "")
}

// runner compares one config vector.
type runner struct {
	*Report
	area     string
	v        *Vector
	plan     *rules.Plan
	disputed map[int]bool
	free     string // why the vector is not enforced
	rows     []evaluated
	lookups  map[string][]string
}

func runConfig(r *Report, area string, raw json.RawMessage) {
	var v Vector
	if err := json.Unmarshal(raw, &v); err != nil {
		r.check(area, "unreadable vector", Acceptance, err.Error(), "")
		return
	}
	c := &runner{Report: r, area: area, v: &v, disputed: map[int]bool{}, lookups: map[string][]string{}}
	for _, d := range v.Disputed {
		c.disputed[d.Row] = true
	}
	if v.Suspect != "" && len(v.Disputed) == 0 {
		c.free = "suspect: " + v.Suspect
	}
	if v.Expect.OracleCrash != "" {
		c.free = "the reference crashed"
	}
	defer func() {
		if p := recover(); p != nil {
			c.Report.check(area, v.Name, Acceptance, fmt.Sprintf("panic: %v\n%s", p, debug.Stack()), "")
		}
	}()
	c.run()
}

func (c *runner) check(l Level, format string, args ...any) {
	problem := ""
	if format != "" {
		problem = fmt.Sprintf(format, args...)
	}
	c.Report.check(c.area, c.v.Name, l, problem, c.free)
}

func (c *runner) run() {
	o := rules.Options{DefaultSchema: c.v.Options.DefaultSchema, Schema: schema(c.v)}
	if c.v.Options.BucketVersion != nil {
		o.Version = *c.v.Options.BucketVersion
	}
	plan, diagnostics := rules.Compile(c.v.Config, o)
	c.plan = plan
	c.acceptance(plan != nil, diagnostics)
	if c.v.ParseOnly || !c.v.Expect.Accepted {
		return
	}
	if plan == nil {
		// Everything else that the vector has fails with it.
		for range c.v.Expect.Rows {
			c.check(RowData, "rejected")
		}
		for range c.v.Expect.Requests {
			c.check(Requests, "rejected")
		}
		return
	}
	c.tables()
	for i, row := range c.v.Rows {
		var want ExpectRow
		if i < len(c.v.Expect.Rows) {
			want = c.v.Expect.Rows[i]
		}
		e := c.evaluate(row, want)
		c.rows = append(c.rows, e)
		if i < len(c.v.Expect.Rows) {
			c.row(i, e, want)
		}
	}
	c.grouping()
	for i, q := range c.v.Requests {
		if i < len(c.v.Expect.Requests) {
			c.request(i, q, c.v.Expect.Requests[i])
		}
	}
}

func schema(v *Vector) *rules.Schema {
	if v.Options.Schema == nil {
		return nil
	}
	s := &rules.Schema{Connections: map[string]map[string]map[string]rules.SchemaTable{}}
	for tag, schemas := range v.Options.Schema {
		s.Connections[tag] = map[string]map[string]rules.SchemaTable{}
		for name, tables := range schemas {
			s.Connections[tag][name] = map[string]rules.SchemaTable{}
			for table, columns := range tables {
				var t rules.SchemaTable
				for _, m := range columns {
					var typ string
					if json.Unmarshal(m.value, &typ) == nil {
						t.Columns = append(t.Columns, rules.SchemaColumn{Name: m.key, Type: typ})
					}
				}
				s.Connections[tag][name][table] = t
			}
		}
	}
	return s
}

// ours are the warnings that we give and the reference does not: they are
// deliberate (docs/compatibility.md), and counted apart.
var ours = map[string]bool{
	"missing-id": true, "parameter-order": true, "cte-hidden": true, "second-statement": true,
	"sqlite-engine": true, "missing-checkpoint-column": true,
}

// acceptance compares level 1.
func (c *runner) acceptance(accepted bool, ds []rules.Diagnostic) {
	if accepted != c.v.Expect.Accepted {
		c.check(Acceptance, "accepted %v, expected %v: %s", accepted, c.v.Expect.Accepted, describe(ds))
		return
	}
	c.check(Acceptance, "")
	if !accepted {
		// A finding that the reference gave no place may have one here.
		got, want, placeless := lineSet{}, lineSet{}, false
		for _, d := range ds {
			if d.Fatal && d.Line > 0 {
				got[d.Line] = true
			}
		}
		for _, d := range c.v.Expect.Diagnostics {
			if d.Level == "fatal" && d.Line > 0 {
				want[d.Line] = true
			}
			placeless = placeless || d.Level == "fatal" && d.Line == 0
		}
		if got.equal(want) || placeless && got.has(want) {
			c.check(Acceptance, "")
		} else {
			c.check(Acceptance, "fatal lines %v, expected %v: %s", got.list(), want.list(), describe(ds))
		}
		return
	}
	want, wantClass := lineSet{}, map[string]bool{}
	for _, d := range c.v.Expect.Diagnostics {
		if d.Level == "warning" {
			want[d.Line] = true
			wantClass[d.Class] = true
		}
	}
	for _, d := range ds {
		if d.Fatal || want[d.Line] {
			continue
		}
		if ours[d.Class] && !wantClass[d.Class] {
			c.Report.check(c.area, c.v.Name, Acceptance, "own warning: "+d.Message, "a warning of our own")
			continue
		}
		c.check(Acceptance, "warning that is not recorded: %s", describe([]rules.Diagnostic{d}))
		return
	}
	c.check(Acceptance, "")
}

func describe(ds []rules.Diagnostic) string {
	var out []string
	for _, d := range ds {
		out = append(out, fmt.Sprintf("%d:%d %s (%s)", d.Line, d.Column, d.Message, d.Class))
	}
	return strings.Join(out, "; ")
}

// tables compares the source tables.
func (c *runner) tables() {
	if c.v.Expect.SourceTables == nil {
		return
	}
	got, want := multiset{}, multiset{}
	for _, t := range c.plan.SourceTables() {
		got.add(t.Connection + " " + t.Schema + " " + t.Name)
	}
	for _, t := range c.v.Expect.SourceTables {
		want.add(t.Connection + " " + t.Schema + " " + t.Table)
	}
	c.compare(Acceptance, "source tables", got, want)
}

func (c *runner) compare(l Level, what string, got, want multiset) {
	if d := got.diff(want); d != "" {
		c.check(l, "%s: %s", what, d)
	} else {
		c.check(l, "")
	}
}

// evaluated is a row with what our engine makes of it.
type evaluated struct {
	row    []model.Value
	table  *model.SourceTable
	result rules.RowResult
	failed string // the source value cannot be converted
}

// evaluate converts and evaluates a row. Where vectors leave a converted value
// open, the recorded one is evaluated.
func (c *runner) evaluate(row Row, want ExpectRow) evaluated {
	e := evaluated{table: &model.SourceTable{Connection: "default", Schema: c.v.Options.DefaultSchema, Name: row.Table}}
	if row.Schema != "" {
		e.table.Schema = row.Schema
	}
	if row.Connection != "" {
		e.table.Connection = row.Connection
	}
	for _, m := range row.Record {
		v, err := decodeValue(m.value, c.plan.Values())
		if err != nil {
			e.failed = err.Error()
			return e
		}
		e.table.Columns = append(e.table.Columns, model.Column{Name: m.key})
		e.row = append(e.row, v)
	}
	row2 := e.row
	if hasSource(row.Record) && len(want.SQLiteRecord) == len(row2) {
		row2 = append([]model.Value(nil), row2...)
		for i, m := range want.SQLiteRecord {
			if v, err := decodeValue(m.value, model.ValueOptions{}); err == nil {
				row2[i] = v
			}
		}
	}
	if te := c.plan.Table(e.table); te != nil {
		te.EvaluateRow(row2, &e.result)
	}
	for _, l := range e.result.Lookups {
		c.lookups[l.Lookup] = append(c.lookups[l.Lookup], l.Values)
	}
	return e
}
