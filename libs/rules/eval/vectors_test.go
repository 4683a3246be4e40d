package eval

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
	"github.com/sluicesync/sluice/libs/rules/syntax"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// vector is a conformance vector with one SELECT.
type vector struct {
	Name    string
	Config  string
	Suspect string
	Rows    []struct {
		Record map[string]json.RawMessage
	}
	Disputed []struct {
		Row    int
		SQLite json.RawMessage
	}
	Expect struct {
		Accepted    bool
		OracleCrash string `json:"oracle_crash"`
		Diagnostics []struct{ Level, Class string }
		Rows        []struct {
			Data   []struct{ Data string }
			Errors []json.RawMessage
		}
	}
}

// TestVectors evaluates the one expression of each vector of four areas over
// its rows; the whole way through a config is for the conformance runner.
func TestVectors(t *testing.T) {
	for _, area := range []string{"functions", "operators", "json", "casts_dates_geo"} {
		text, err := os.ReadFile(filepath.Join("..", "testdata", "conformance", area+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var file struct{ Vectors []vector }
		if err := json.Unmarshal(text, &file); err != nil {
			t.Fatal(err)
		}
		for _, v := range file.Vectors {
			t.Run(v.Name, func(t *testing.T) { v.run(t) })
		}
	}
}

func (v *vector) run(t *testing.T) {
	sql, o := v.query(t)
	q, faults := syntax.Parse(sql)
	b := builder{options: o, columns: map[string]int{}}
	var columns []Expr
	var names []string
	var where Expr
	if len(faults) == 0 {
		for i, c := range q.Columns {
			names = append(names, fmt.Sprint("column", i))
			if c.Alias != nil {
				names[i] = c.Alias.Name
			} else if col, ok := c.Expr.(*syntax.Column); ok {
				names[i] = col.Name.Name
			}
			columns = append(columns, b.expr(c.Expr))
		}
		if q.Where != nil {
			before := b.reads
			where = b.expr(q.Where)
			if b.reads == before && o.Edition == 3 { // a condition on the request alone
				where = nil
			}
		}
	}
	if !v.Expect.Accepted {
		for _, d := range v.Expect.Diagnostics {
			switch d.Class {
			case "unknown-function", "arguments", "cast", "syntax":
				if len(faults) == 0 && b.fault == "" {
					t.Errorf("accepted: %s", sql)
				}
			}
		}
		return
	}
	if v.Expect.OracleCrash != "" {
		return
	}
	if len(faults) > 0 || b.fault != "" {
		t.Fatalf("%s: %v %s", sql, faults, b.fault)
	}
	disputed := map[int]bool{}
	for _, d := range v.Disputed {
		disputed[d.Row] = true
	}
	for i, row := range v.Rows {
		env := Env{Row: make([]model.Value, len(b.columns))}
		for name, raw := range row.Record {
			if at, ok := b.columns[name]; ok {
				env.Row[at] = recordValue(t, raw)
			}
		}
		got, err := output(&env, names, columns, where)
		want := v.Expect.Rows[i]
		wantData := ""
		if len(want.Data) > 0 {
			wantData = want.Data[0].Data
		}
		if (err != nil) != (len(want.Errors) > 0) || got != wantData {
			if disputed[i] || v.Suspect != "" && len(v.Disputed) == 0 {
				t.Logf("row %d differs, as it may: %s gives %s, %v; recorded: %s", i, sql, got, err, wantData)
				continue
			}
			t.Errorf("row %d: %s gives %s, %v; want %s, %d errors", i, sql, got, err, wantData, len(want.Errors))
		}
	}
}

// query finds the SELECT and the edition.
func (v *vector) query(t *testing.T) (string, Options) {
	var config struct {
		Config struct {
			Edition int
		}
		Buckets map[string]struct{ Data []string } `yaml:"bucket_definitions"`
		Streams map[string]struct{ Query string }
	}
	if err := yaml.Unmarshal([]byte(v.Config), &config); err != nil {
		t.Fatal(err)
	}
	o := Options{Edition: max(1, config.Config.Edition)}
	o.FixedJSONExtract = o.Edition >= 2
	for _, b := range config.Buckets {
		return b.Data[0], o
	}
	for _, s := range config.Streams {
		return s.Query, o
	}
	t.Fatal("no query")
	return "", o
}

func output(e *Env, names []string, columns []Expr, where Expr) (string, error) {
	if where != nil {
		if ok, err := where(e); err != nil || !value.Truthy(ok) {
			return "", err
		}
	}
	out := []byte{'{'}
	for i, c := range columns {
		v, err := c(e)
		if err != nil {
			return "", err
		}
		if v.Kind() == model.Absent || v.Kind() == model.Blob {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = model.AppendJSONString(out, names[i])
		out = append(out, ':')
		out = model.AppendJSON(out, v)
	}
	return string(append(out, '}')), nil
}

func recordValue(t *testing.T, raw json.RawMessage) model.Value {
	if bytes.HasPrefix(raw, []byte("{")) {
		var special struct {
			Blob *string `json:"$blob"`
			Real string  `json:"$real"`
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
		return model.RealValue(map[string]float64{"NaN": math.NaN(), "Infinity": math.Inf(1), "-Infinity": math.Inf(-1)}[special.Real])
	}
	n, err := jsontext.Parse(string(raw))
	if err != nil {
		t.Fatal(err)
	}
	return n.SQL()
}

// builder makes expressions of a tree without resolving names.
type builder struct {
	options Options
	columns map[string]int
	reads   int
	fault   string
}

func (b *builder) fail(format string, args ...any) Expr {
	b.fault = fmt.Sprintf(format, args...)
	return Const(model.NullValue)
}

func (b *builder) exprs(es []syntax.Expr) []Expr {
	var xs []Expr
	for _, e := range es {
		xs = append(xs, b.expr(e))
	}
	return xs
}

func (b *builder) expr(e syntax.Expr) Expr {
	switch e := e.(type) {
	case *syntax.Null:
		return Const(model.NullValue)
	case *syntax.Bool:
		return Const(model.BoolValue(e.Value))
	case *syntax.Integer:
		return Const(value.Integer(e.Digits))
	case *syntax.Real:
		return Const(model.RealValue(e.Value))
	case *syntax.String:
		return Const(model.TextValue(e.Value))
	case *syntax.Column:
		b.reads++
		if _, ok := b.columns[e.Name.Name]; !ok {
			b.columns[e.Name.Name] = len(b.columns)
		}
		return Column(b.columns[e.Name.Name])
	case *syntax.Unary:
		switch e.Op {
		case "NOT":
			return Not(b.expr(e.X))
		case "+":
			return Plus(b.expr(e.X))
		}
	case *syntax.Binary:
		if f, ok := Binary(e.Op, b.options); ok {
			return f(b.expr(e.X), b.expr(e.Y))
		}
	case *syntax.Is:
		return []func(Expr, bool) Expr{IsNull, IsTrue, IsFalse}[e.What](b.expr(e.X), e.Not)
	case *syntax.In:
		x := b.expr(e.X)
		switch y := e.Y.(type) {
		case *syntax.Array:
			return In(x, b.exprs(y.Elems), e.Not)
		case *syntax.Call:
			if y.Name.Name == "row" && b.options.Edition == 3 {
				return In(x, b.exprs(y.Args), e.Not)
			}
		case *syntax.String:
			return InConstJSON(x, model.TextValue(y.Value), e.Not, b.options)
		}
		return InJSON(x, b.expr(e.Y), e.Not, b.options)
	case *syntax.Between:
		return Between(b.expr(e.X), b.expr(e.Low), b.expr(e.High), e.Not)
	case *syntax.Case:
		var operand, els Expr
		var whens []When
		if e.Operand != nil {
			operand = b.expr(e.Operand)
		}
		if e.Else != nil {
			els = b.expr(e.Else)
		}
		for _, w := range e.Whens {
			whens = append(whens, When{b.expr(w.Cond), b.expr(w.Then)})
		}
		return Case(operand, whens, els)
	case *syntax.Cast:
		if typ, ok := CastType(e.Type.Name); ok && e.Type.Plain {
			return Cast(b.expr(e.X), typ)
		}
		return b.fail("no type %s", e.Type.Name)
	case *syntax.Member:
		var key model.Value
		switch k := e.Key.(type) {
		case *syntax.String:
			key = model.TextValue(k.Value)
		case *syntax.Integer:
			key = value.Integer(k.Digits)
		}
		return Member(b.expr(e.X), e.Op, key, b.options)
	case *syntax.Call:
		f, ok := Function(e.Name.Name, b.options)
		if !ok || e.Namespace != nil {
			return b.fail("no function %s", e.Name.Name)
		}
		if msg := f.Arity(len(e.Args)); msg != "" {
			return b.fail("%s", msg)
		}
		return f.Apply(b.exprs(e.Args))
	}
	return b.fail("no %T", e)
}

// TestCompareDoesNotAllocate holds the cost of the usual conditions.
func TestCompareDoesNotAllocate(t *testing.T) {
	b := builder{options: Options{Edition: 3, FixedJSONExtract: true}, columns: map[string]int{}}
	q, faults := syntax.Parse(`SELECT 1 FROM t WHERE owner_id = 'u1' AND n > 5 AND (region != 'eu' OR deleted IS NULL) AND n BETWEEN 1 AND 9`)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	where := b.expr(q.Where)
	match, _ := Binary("=", b.options)
	param := match(Column(0), Request(0))
	env := &Env{Row: make([]model.Value, len(b.columns)), Request: []model.Value{model.TextValue(strings.Clone("u1"))}}
	env.Row[b.columns["owner_id"]] = model.TextValue("u1")
	env.Row[b.columns["n"]] = model.IntegerValue(7)
	env.Row[b.columns["region"]] = model.TextValue("us")
	if n := testing.AllocsPerRun(100, func() {
		for _, x := range []Expr{where, param} {
			if v, err := x(env); err != nil || !value.Truthy(v) {
				t.Fatal(v, err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFilter(b *testing.B) {
	eq, _ := Binary("=", Options{Edition: 3})
	and, _ := Binary("AND", Options{Edition: 3})
	x := and(eq(Column(0), Request(0)), IsNull(Column(1), false))
	env := &Env{Row: []model.Value{model.TextValue("4b2c6a1e-5d1f-4c0e-9a5e-0242ac120002"), model.NullValue},
		Request: []model.Value{model.TextValue("4b2c6a1e-5d1f-4c0e-9a5e-0242ac120002")}}
	b.ReportAllocs()
	for b.Loop() {
		if v, err := x(env); err != nil || v.Int() != 1 {
			b.Fatal(v, err)
		}
	}
}
