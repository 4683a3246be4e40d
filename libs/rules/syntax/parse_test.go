package syntax

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestParse holds what the parser makes of a text: a tree with every node's
// span as the text it covers, or the error with its place.
func TestParse(t *testing.T) {
	datadriven.RunTest(t, "testdata/parse", func(t *testing.T, d *datadriven.TestData) string {
		s, errs := Parse(d.Input)
		if len(errs) > 0 {
			var b strings.Builder
			for _, e := range errs {
				fmt.Fprintf(&b, "%s⟦%s⟧%s ### %q\n", d.Input[:e.Start], d.Input[e.Start:e.End], d.Input[e.End:], e.Msg)
			}
			return b.String()
		}
		checkSpans(t, d.Input, s)
		return dump(d.Input, s)
	})
}

// dump writes the tree: the type, the plain fields, ⟦the text⟧.
func dump(sql string, n any) string {
	var b strings.Builder
	dumpValue(&b, sql, "", reflect.ValueOf(n), 0)
	return b.String()
}

func dumpValue(b *strings.Builder, sql, label string, v reflect.Value, depth int) {
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			dumpValue(b, sql, label, v.Index(i), depth)
		}
		return
	}
	if v.Kind() != reflect.Struct {
		return
	}
	fmt.Fprintf(b, "%s%s", strings.Repeat("  ", depth), label)
	if label != v.Type().Name() {
		fmt.Fprintf(b, " %s", v.Type().Name())
	}
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch {
		case name == "Loc":
			s := f.Interface().(Loc).Span
			fmt.Fprintf(b, " ⟦%s⟧", sql[s.Start:s.End])
		case f.Type() == reflect.TypeFor[Span]():
			if s := f.Interface().(Span); s != (Span{}) {
				fmt.Fprintf(b, " %s=⟦%s⟧", name, sql[s.Start:s.End])
			}
		case f.IsZero():
		case f.Kind() == reflect.String:
			fmt.Fprintf(b, " %s=%q", name, f.String())
		case f.Kind() == reflect.Bool, f.Kind() == reflect.Uint8, f.Kind() == reflect.Float64:
			fmt.Fprintf(b, " %s=%v", name, f.Interface())
		}
	}
	b.WriteByte('\n')
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; name != "Loc" && v.Field(i).Type() != reflect.TypeFor[Span]() {
			dumpValue(b, sql, name, v.Field(i), depth+1)
		}
	}
}

// checkSpans checks that every node lies in the text and in its parent.
func checkSpans(t *testing.T, sql string, s *Select) {
	t.Helper()
	var walk func(v reflect.Value, within Span)
	walk = func(v reflect.Value, within Span) {
		switch v.Kind() {
		case reflect.Interface, reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem(), within)
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i), within)
			}
		case reflect.Struct:
			if f := v.FieldByName("Loc"); f.IsValid() {
				at := f.Interface().(Loc).Span
				if at.Start < within.Start || at.End > within.End || at.Start > at.End {
					t.Errorf("%s at %v is not within %v of %q", v.Type().Name(), at, within, sql)
				}
				within = at
			}
			for i := range v.NumField() {
				name := v.Type().Field(i).Name
				// More statements and a call's unsupported clauses lie outside.
				if name == "Loc" || name == "More" || v.Field(i).Type() == reflect.TypeFor[Span]() {
					continue
				}
				if name == "On" || name == "Using" {
					walk(v.Field(i), Span{0, len(sql)})
					continue
				}
				walk(v.Field(i), within)
			}
		}
	}
	for _, s := range append([]*Select{s}, s.More...) {
		walk(reflect.ValueOf(s), Span{0, len(sql)})
	}
}

// FuzzParse: no panic, spans in order, and a nil tree exactly with errors.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`SELECT * FROM t WHERE a = 1`,
		`SELECT t.*, upper(x) AS y FROM "s"."T%" AS t, json_each(t.j) e WHERE e.value IN (SELECT id FROM u) ORDER BY 1`,
		`SELECT CASE a WHEN 1 THEN 'x' ELSE E'\n\x41' END::text -> 'k' ->> 0 FROM a INNER JOIN b ON a.x = b.y LIMIT 1`,
		`SELECT substring(a from 1 for 2), -1, .5, x NOT BETWEEN -1 AND +2 AND NOT y IS NOT TRUE /* c */ -- d`,
		strings.Repeat("(", 300), strings.Repeat("NOT ", 300),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		s, errs := Parse(sql)
		if (s == nil) != (len(errs) > 0) {
			t.Fatalf("tree %v with errors %v", s, errs)
		}
		for _, e := range errs {
			if e.Start < 0 || e.Start > e.End || e.End > len(sql) {
				t.Errorf("error at %v of %d bytes", e.Span, len(sql))
			}
		}
		if s != nil {
			checkSpans(t, sql, s)
		}
	})
}

// TestDepth: nesting has a bound, chains have not.
func TestDepth(t *testing.T) {
	deep := func(n int) string { return "SELECT " + strings.Repeat("(", n) + "1" + strings.Repeat(")", n) }
	if _, errs := Parse(deep(MaxDepth - 5)); len(errs) > 0 {
		t.Error(errs)
	}
	for _, sql := range []string{
		deep(MaxDepth + 1), "SELECT " + strings.Repeat("NOT ", 2*MaxDepth) + "a", "SELECT " + strings.Repeat("- ", 2*MaxDepth) + "a",
		strings.Repeat("SELECT (", 2*MaxDepth), "SELECT 1 FROM " + strings.Repeat("(SELECT 1 FROM ", 2*MaxDepth),
		strings.Repeat("(", 2*MaxDepth), "SELECT " + strings.Repeat("a IN (", 2*MaxDepth), "SELECT " + strings.Repeat("f(", 2*MaxDepth),
	} {
		if _, errs := Parse(sql); len(errs) != 1 || !strings.Contains(errs[0].Msg, "nests deeper") {
			t.Errorf("%.20s…: %v", sql, errs)
		}
	}
	if _, errs := Parse("SELECT 1" + strings.Repeat(" + 1", 10000)); len(errs) > 0 {
		t.Error(errs)
	}
	if _, errs := Parse(strings.Repeat(" ", MaxLength+1)); len(errs) != 1 {
		t.Error("text too long passes")
	}
}
