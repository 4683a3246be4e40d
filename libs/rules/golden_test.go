package rules

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/sluicesync/sluice/libs/model"
)

// TestGolden holds plans, findings with their places, and explanations.
// Commands:
//
//	plan         the compiled plan, or the findings that prevent it
//	diagnostics  all findings, each under the line that it is about
//	explain      what user=… gets with subscribe=… to a stream, and where
//	             row=(table, column, value, …) goes, with
//	             index=(table, column, value, …) replicated before
func TestGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/golden", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			p, ds := Compile(d.Input+"\n", Options{Schema: goldenSchema})
			switch d.Cmd {
			case "plan":
				if p == nil {
					return underline(d.Input, ds)
				}
				return p.String()
			case "diagnostics":
				return underline(d.Input, ds)
			case "explain":
				return explainGolden(t, p, d)
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

// goldenSchema is the source schema of golden cases.
var goldenSchema = &Schema{Connections: map[string]map[string]map[string]SchemaTable{"default": {"public": {
	"todos":   columnsOf("id", "list_id", "owner_id", "title", "tags", "archived"),
	"lists":   columnsOf("id", "owner_id", "org_id", "kind"),
	"members": columnsOf("id", "org_id", "user_id", "role"),
	"logs_a":  columnsOf("id", "at"),
	"noid":    columnsOf("x"),
}}}}

func columnsOf(names ...string) (t SchemaTable) {
	for _, n := range names {
		t.Columns = append(t.Columns, SchemaColumn{Name: n, Type: "text"})
	}
	return t
}

// underline shows findings under their lines.
func underline(text string, ds []Diagnostic) string {
	var b strings.Builder
	lines := strings.Split(text, "\n")
	for _, d := range ds {
		kind := "warning"
		if d.Fatal {
			kind = "error"
		}
		if d.Line == 0 {
			fmt.Fprintf(&b, "%s: %s (%s)\n", kind, d.Message, d.Class)
			continue
		}
		line := ""
		if d.Line <= len(lines) {
			line = lines[d.Line-1]
		}
		length := 1
		if d.EndLine == d.Line {
			length = max(1, d.EndColumn-d.Column)
		} else {
			length = max(1, len(line)-d.Column+1)
		}
		fmt.Fprintf(&b, "%4d | %s\n     | %s%s\n%s: %s (%s)\n", d.Line, line,
			strings.Repeat(" ", d.Column-1), strings.Repeat("^", length), kind, d.Message, d.Class)
	}
	if len(ds) == 0 {
		return "ok\n"
	}
	return b.String()
}

// explainGolden explains the first row given as arguments (row=(table,
// column, value, …)) to the user given (user=…).
func explainGolden(t *testing.T, p *Plan, d *datadriven.TestData) string {
	if p == nil {
		t.Fatalf("%s: the config is rejected", d.Pos)
	}
	var q Question
	var user string
	if d.HasArg("user") {
		d.ScanArgs(t, "user", &user)
		q.Request = &Request{Token: fmt.Appendf(nil, `{"sub":%q}`, user), IncludeDefaults: true}
	}
	index := map[string][]string{}
	for _, a := range d.CmdArgs {
		if a.Key == "subscribe" {
			q.Request.Subscriptions = append(q.Request.Subscriptions, Subscription{Stream: a.Vals[0]})
		}
		if a.Key != "row" && a.Key != "index" {
			continue
		}
		table := &model.SourceTable{Connection: "default", Schema: "public", Name: a.Vals[0]}
		var row []model.Value
		for i := 1; i+1 < len(a.Vals); i += 2 {
			table.Columns = append(table.Columns, model.Column{Name: a.Vals[i]})
			row = append(row, model.TextValue(a.Vals[i+1]))
			if a.Vals[i+1] == "null" {
				row[len(row)-1] = model.NullValue
			}
		}
		if a.Key == "row" {
			q.Table, q.Row = table, row
			continue
		}
		var out RowResult
		p.Table(table).EvaluateRow(row, &out)
		for _, l := range out.Lookups {
			index[l.Lookup] = append(index[l.Lookup], l.Values)
		}
	}
	q.Lookup = func(keys []string) ([][]string, error) { return [][]string{index[keys[0]]}, nil }
	answer, err := p.Explain(q)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Text
}
