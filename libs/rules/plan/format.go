package plan

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// Format writes expressions as SQL, for people. Step says what an output of a
// step is called; nil: step.output.
type Format struct {
	Step func(step, output int) string
}

var requestNames = map[string]string{
	UserID: "auth.user_id()", Token: "auth.parameters()", TokenParameters: "token_parameters",
	Parameters: "connection.parameters()", SubscriptionArgs: "subscription.parameters()",
}

// Expr returns the text of an expression.
func (f Format) Expr(e *Expr) string {
	arg := func(i int) string { return f.operand(e.Args[i]) }
	not := func(words string) string {
		if e.Negate {
			return strings.Replace(words, "#", "NOT ", 1)
		}
		return strings.Replace(words, "#", "", 1)
	}
	switch e.Op {
	case Const:
		return formatValue(e.Value)
	case Column:
		return formatName(e.Name)
	case Request:
		if e.Index == 1 {
			return requestNames[e.Name] + "." + e.Value.Str()
		}
		return requestNames[e.Name]
	case Step:
		if f.Step != nil {
			return f.Step(e.Index, e.Index2)
		}
		return fmt.Sprintf("step%d.%d", e.Index, e.Index2)
	case EachKey:
		return fmt.Sprintf("each%d.key", e.Index)
	case EachValue:
		return fmt.Sprintf("each%d.value", e.Index)
	case TableName:
		return "table_name()"
	case TableSchema:
		return "schema()"
	case TableSuffix:
		return "table_suffix()"
	case Call:
		return e.Name + "(" + f.list(e.Args) + ")"
	case Fail:
		return "fail(" + f.list(e.Args) + ")"
	case Binary:
		return arg(0) + " " + e.Name + " " + arg(1)
	case Not:
		return "NOT " + arg(0)
	case Plus:
		return "+" + arg(0)
	case IsNull:
		return arg(0) + not(" IS #NULL")
	case IsTrue:
		return arg(0) + not(" IS #TRUE")
	case IsFalse:
		return arg(0) + not(" IS #FALSE")
	case In:
		return arg(0) + not(" #IN ARRAY[") + f.list(e.Args[1:]) + "]"
	case InJSON:
		return arg(0) + not(" #IN ") + arg(1)
	case Overlap:
		return arg(0) + " && " + arg(1)
	case Between:
		return arg(0) + not(" #BETWEEN ") + arg(1) + " AND " + arg(2)
	case Case:
		return f.caseText(e)
	case Cast:
		return "CAST(" + f.Expr(e.Args[0]) + " AS " + e.Name + ")"
	case Member:
		return arg(0) + " " + e.Name + " " + formatValue(e.Value)
	}
	return "?"
}

// operand is an expression in parentheses where it needs them.
func (f Format) operand(e *Expr) string {
	switch e.Op {
	case Binary, Not, In, InJSON, Overlap, Between, IsNull, IsTrue, IsFalse, Member:
		return "(" + f.Expr(e) + ")"
	}
	return f.Expr(e)
}

func (f Format) list(es []*Expr) string {
	out := make([]string, len(es))
	for i, e := range es {
		out[i] = f.Expr(e)
	}
	return strings.Join(out, ", ")
}

func (f Format) caseText(e *Expr) string {
	args := e.Args
	out := "CASE"
	if e.Index == 1 {
		out += " " + f.Expr(args[0])
		args = args[1:]
	}
	for len(args) > 1 {
		out += " WHEN " + f.Expr(args[0]) + " THEN " + f.Expr(args[1])
		args = args[2:]
	}
	if len(args) == 1 {
		out += " ELSE " + f.Expr(args[0])
	}
	return out + " END"
}

func formatName(name string) string {
	for i, c := range []byte(name) {
		if c == '_' || c >= 'a' && c <= 'z' || i > 0 && c >= '0' && c <= '9' {
			continue
		}
		return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
	}
	return name
}

func formatValue(v model.Value) string {
	switch v.Kind() {
	case model.Absent, model.Null:
		return "NULL"
	case model.Text:
		return "'" + strings.ReplaceAll(v.Str(), "'", "''") + "'"
	case model.Blob:
		return fmt.Sprintf("x'%x'", v.Str())
	}
	return string(model.AppendJSON(nil, v))
}

// Match returns the text of a match; keys are written #0, #1, ….
func (f Format) Match(m *Match) string {
	if m == nil {
		return "true"
	}
	key := "#" + strconv.Itoa(m.Key)
	switch m.Op {
	case Where:
		return f.Expr(m.Expr)
	case Equal:
		return key + " = " + f.Expr(m.Expr)
	case Among:
		return key + " IN " + f.Expr(m.Expr)
	}
	op := " AND "
	if m.Op == Any {
		op = " OR "
	}
	parts := make([]string, len(m.Args))
	for i, a := range m.Args {
		parts[i] = f.Match(a)
		if a.Op == All || a.Op == Any {
			parts[i] = "(" + parts[i] + ")"
		}
	}
	if len(parts) == 0 {
		return "true"
	}
	return strings.Join(parts, op)
}

// FormatTable returns the text of a pattern.
func FormatTable(t model.TablePattern) string { return formatName(t.Schema) + "." + formatName(t.Name) }

// Steps names the outputs of a querier's steps.
func (p *Plan) Steps(q *Querier) Format {
	return Format{Step: func(step, output int) string {
		s := q.Steps[step]
		if s.Each != nil {
			return fmt.Sprintf("each%d.%s", step, [...]string{"key", "value"}[output])
		}
		x := &p.Indexes[s.Index]
		return fmt.Sprintf("%s%d.%s", x.Table.Name, step, strings.Trim(Format{}.Expr(x.Outputs[output].Expr), `"`))
	}}
}

// String describes the plan: definitions with their queriers, sources with
// their rows, indexes.
func (p *Plan) String() string {
	var b strings.Builder
	for i := range p.Definitions {
		d := &p.Definitions[i]
		kind, auto := "bucket definition", ""
		if d.Stream {
			kind = "stream"
			if d.AutoSubscribe {
				auto = ", auto-subscribed"
			}
		}
		fmt.Fprintf(&b, "%s %s (priority %d%s)\n", kind, d.Name, d.Priority, auto)
		for j := range d.Queriers {
			p.describeQuerier(&b, &d.Queriers[j])
		}
	}
	for i := range p.Sources {
		s := &p.Sources[i]
		fmt.Fprintf(&b, "source %s, %d keys\n", s.Name, s.Keys)
		for j := range s.Rows {
			b.WriteString("  " + s.Rows[j].String() + "\n")
		}
	}
	for i := range p.Indexes {
		x := &p.Indexes[i]
		fmt.Fprintf(&b, "index %d, %d keys: %s%s where %s\n", i, x.Keys, FormatTable(x.Table), formatEach(x.Each), Format{}.Match(x.Match))
		for _, o := range x.Outputs {
			fmt.Fprintf(&b, "  %s: %s\n", o.Name, Format{}.Expr(o.Expr))
		}
	}
	for i := range p.Events {
		fmt.Fprintf(&b, "event %s\n", p.Events[i].Name)
		for j := range p.Events[i].Payloads {
			b.WriteString("  " + p.Events[i].Payloads[j].String() + "\n")
		}
	}
	return b.String()
}

func (p *Plan) describeQuerier(b *strings.Builder, q *Querier) {
	f := p.Steps(q)
	fmt.Fprintf(b, "  buckets of %s\n", p.Sources[q.Source].Name)
	for _, e := range q.Filters {
		fmt.Fprintf(b, "    if %s\n", f.Expr(e))
	}
	for i, s := range q.Steps {
		switch {
		case s.Each != nil:
			fmt.Fprintf(b, "    for each%d in %s\n", i, f.Expr(s.Each))
		default:
			fmt.Fprintf(b, "    for %s%d in index %d of (%s)\n", p.Indexes[s.Index].Table.Name, i, s.Index, f.list(s.Inputs))
		}
		for _, e := range s.Filters {
			fmt.Fprintf(b, "      if %s\n", f.Expr(e))
		}
	}
	for i, pm := range q.Params {
		fmt.Fprintf(b, "    #%d = %s\n", i, strings.ReplaceAll(f.list(pm.Sources), ", ", " = "))
	}
}

func formatEach(each []*Expr) string {
	out := ""
	for i, e := range each {
		out += fmt.Sprintf(", json_each(%s) each%d", Format{}.Expr(e), i)
	}
	return out
}

// String describes a query of rows.
func (r *Rows) String() string {
	columns := make([]string, len(r.Columns))
	for i, c := range r.Columns {
		switch {
		case c.Expr == nil:
			columns[i] = "*"
		case c.Expr.Op == Column && c.Expr.Name == c.Name:
			columns[i] = Format{}.Expr(c.Expr)
		default:
			columns[i] = Format{}.Expr(c.Expr) + " AS " + formatName(c.Name)
		}
	}
	as := ""
	if r.Output != "" {
		as = " AS " + formatName(r.Output)
	}
	return fmt.Sprintf("%s%s%s: %s where %s", FormatTable(r.Table), as, formatEach(r.Each), strings.Join(columns, ", "), Format{}.Match(r.Match))
}
