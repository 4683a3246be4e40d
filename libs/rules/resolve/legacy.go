package resolve

import (
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// bucketDefinition resolves an entry of bucket_definitions.
func (r *resolver) bucketDefinition(b *config.Bucket) {
	d := len(r.plan.Definitions)
	source := len(r.plan.Sources)
	def := plan.Definition{Name: b.Name.Text, AutoSubscribe: true, Priority: 3}
	if b.HasPriority {
		def.Priority = b.Priority
	}
	r.plan.Definitions = append(r.plan.Definitions, def)
	r.plan.Sources = append(r.plan.Sources, plan.Source{Name: b.Name.Text, Definition: d})

	var params []string
	if !b.HasParameters {
		def.Queriers = append(def.Queriers, plan.Querier{Source: source, Priority: def.Priority, NullKeys: true})
	}
	for i, t := range b.Parameters {
		p := r.parameterQuery(t, b, d)
		if p == nil {
			continue
		}
		if params == nil {
			params = p.names
		} else if !sameNames(params, p.names) {
			r.fatal("parameter-use", t.Span(0, len(t.Value)), "all parameter queries of a bucket must give the same columns: %s, not %s",
				strings.Join(params, ", "), strings.Join(p.names, ", "))
		} else if i > 0 && !slices.Equal(params, p.names) {
			r.warn("parameter-order", t.Span(0, len(t.Value)), "the columns are in another order than in the first parameter query, so that the buckets of this one hold no data")
		}
		p.querier.Source = source
		def.Queriers = append(def.Queriers, p.querier)
	}
	r.plan.Definitions[d].Queriers = def.Queriers
	r.plan.Sources[source].Keys = len(params)
	for _, t := range b.Data {
		if rows := r.dataQuery(t, params); rows != nil {
			s := &r.plan.Sources[source]
			s.Rows = append(s.Rows, *rows)
		}
	}
}

// sameNames tells whether two lists have the same names, in whatever order.
func sameNames(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// single checks that a SELECT of rules is one statement over at most one
// source.
func (q *query) single(s *syntax.Select) *syntax.Source {
	for _, m := range s.More {
		q.fatal("unsupported", m.At(), "only one statement is supported")
	}
	if len(s.From) == 0 {
		return nil
	}
	for _, f := range s.From {
		for _, u := range f.Unsupported {
			q.fatal("unsupported-clause", u.At(), "%s is not supported", u.What)
		}
	}
	if len(s.From) > 1 {
		q.fatal("single-table", s.From[1].At(), "only one table is supported; joins need streams of edition 3")
		return nil
	}
	f := &s.From[0]
	if f.Subquery != nil {
		q.fatal("subquery", f.At(), "a subquery in FROM is not supported")
		return nil
	}
	return f
}

// dataQuery resolves a data query; nil if it cannot be used at all.
func (r *resolver) dataQuery(t config.Text, params []string) *plan.Rows {
	q, s := r.parse(t)
	if s == nil {
		return nil
	}
	tbl := q.onlyTable(s)
	if tbl == nil {
		return nil
	}
	l := &oldLeaves{query: q, table: tbl, bucket: map[string]int{}}
	for i, p := range params {
		l.bucket[p] = i
	}
	rows := &plan.Rows{Table: tbl.pattern, Output: tbl.output()}
	rows.Columns = q.columns(s, l, tbl, true)
	c := &clauses{query: q, leaves: l, data: true}
	rows.Match = c.match(s.Where)
	if rows.Match != nil && len(c.inputs) != len(params) || rows.Match == nil && len(params) > 0 && s.Where == nil {
		var got []string
		for _, in := range c.inputs {
			got = append(got, params[in.index])
		}
		q.fatal("parameter-coverage", q.whole(), "the query must use all bucket parameters: expected %s, got %s",
			bracket(params), bracket(got))
	}
	return rows
}

func bracket(names []string) string { return "[" + strings.Join(names, ", ") + "]" }

// onlyTable returns the one table of a query.
func (q *query) onlyTable(s *syntax.Select) *table {
	f := q.single(s)
	switch {
	case f != nil && f.Table != nil:
		return q.newTable(f)
	case f != nil:
		q.fatal("single-table", f.At(), "the query must select from a table")
	case len(s.From) == 0:
		q.fatal("single-table", q.whole(), "the query must have FROM and a table")
	}
	return nil
}

// match resolves a WHERE; nil without one, or if it is wrong.
func (c *clauses) match(where syntax.Expr) *plan.Match {
	if where == nil {
		return nil
	}
	w, ok := c.where(where)
	if !ok {
		return nil
	}
	return c.asMatch(w).match
}

// columns resolves the select list of a data query.
func (q *query) columns(s *syntax.Select, l *oldLeaves, t *table, needID bool) []plan.Output {
	var out []plan.Output
	hasID := false
	var star syntax.Expr
	for _, col := range s.Columns {
		if st, ok := col.Expr.(*syntax.Star); ok {
			if st.Table != nil && st.Table.Name != t.name {
				q.fatal("undefined-reference", st.At(), "%s is not defined here", st.Table.Name)
			}
			star = st
			out = append(out, plan.Output{})
			continue
		}
		name, ok := outputName(col)
		if !ok {
			q.fatal("alias-required", col.Expr.At(), "an expression needs a name: … AS name")
		}
		hasID = hasID || name == "id"
		c := &clauses{query: q, leaves: l, data: true}
		v, ok := c.value(col.Expr)
		if !ok {
			continue
		}
		if v.side == paramSide {
			q.fatal("parameter-use", col.Expr.At(), "bucket parameters cannot be selected")
			continue
		}
		out = append(out, plan.Output{Name: name, Expr: v.expr})
	}
	if needID && !hasID {
		at := s.At()
		if len(s.Columns) > 0 {
			at = s.Columns[0].At().Cover(s.Columns[len(s.Columns)-1].At())
		}
		if star == nil {
			q.fatal("missing-id", at, "the query must return a column id")
		} else if t.lacksID() {
			q.warn("missing-id", star.At(), "the query must return a column id, and the table has none")
		}
	}
	return out
}

// outputName is the name of a result column.
func outputName(c syntax.ResultColumn) (string, bool) {
	if c.Alias != nil {
		return c.Alias.Name, true
	}
	if col, ok := c.Expr.(*syntax.Column); ok {
		return col.Name.Name, true
	}
	return "", false
}

// parameterResult is a resolved parameter query.
type parameterResult struct {
	names   []string
	querier plan.Querier
}

// parameterQuery resolves a parameter query; nil if its shape is wrong, so
// that its columns are unknown.
func (r *resolver) parameterQuery(t config.Text, b *config.Bucket, definition int) *parameterResult {
	q, s := r.parse(t)
	if s == nil {
		return nil
	}
	l := &oldLeaves{query: q, values: true}
	l.fns = q.rulesFunction
	from := q.single(s)
	if from == nil && len(s.From) > 0 {
		return nil
	}
	p := &parameterQuery{query: q, leaves: l, bucket: b, definition: definition}
	p.out.querier = plan.Querier{NullKeys: true, Priority: 3}
	if b.HasPriority {
		p.out.querier.Priority = b.Priority
	}
	switch {
	case from == nil:
	case from.Call != nil:
		if !p.each(from) {
			return nil
		}
	default:
		if from.Alias != nil {
			q.fatal("parameter-use", from.At(), "a table alias is not supported in a parameter query")
		}
		l.table = q.newTable(from)
	}
	for _, c := range s.Columns {
		if _, ok := c.Expr.(*syntax.Star); ok {
			q.fatal("unsupported", c.At(), "* is not supported in a parameter query")
			return nil
		}
	}
	p.resolve(s)
	return &p.out
}

type parameterQuery struct {
	*query
	leaves     *oldLeaves
	bucket     *config.Bucket
	definition int
	out        parameterResult
	index      plan.Index
	trusted    bool // depends on what the token says
	untrusted  bool // depends on what the client says
}

// each resolves FROM json_each(…).
func (p *parameterQuery) each(f *syntax.Source) bool {
	p.noColumnNames(f)
	if f.Call.Namespace != nil || f.Call.Name.Name != "json_each" {
		p.fatal("unknown-function", f.Call.At(), "unknown table-valued function %s; there is json_each", f.Call.Name.Name)
		return false
	}
	arg := plan.Constant(model.NullValue)
	if len(f.Call.Args) == 0 {
		p.warn("arguments", f.Call.At(), "json_each needs an argument")
	} else {
		c := &clauses{query: p.query, leaves: p.leaves}
		if v, ok := c.value(f.Call.Args[0]); ok {
			arg = v.expr
		}
	}
	p.trust(arg, true)
	p.leaves.each = "json_each"
	if f.Alias != nil {
		p.leaves.each = f.Alias.Name
	}
	p.out.querier.Steps = []plan.QueryStep{{Each: arg}}
	return true
}

// trust notes what an expression depends on; auth: that it decides by itself
// which buckets are given, so that what the token says there is a restriction.
func (p *parameterQuery) trust(e *plan.Expr, auth bool) {
	e.Walk(func(n *plan.Expr) {
		if n.Op != plan.Request {
			return
		}
		switch n.Name {
		case plan.Parameters, plan.SubscriptionArgs:
			p.untrusted = true
		default:
			p.trusted = p.trusted || auth
		}
	})
}

func (p *parameterQuery) resolve(s *syntax.Select) {
	c := &clauses{query: p.query, leaves: p.leaves}
	var params []plan.Param
	for _, col := range s.Columns {
		name, ok := outputName(col)
		if !ok {
			p.fatal("alias-required", col.Expr.At(), "an expression needs a name: … AS name")
			continue
		}
		if name == "_priority" {
			p.priority(col)
			continue
		}
		i := slices.Index(p.out.names, name)
		if i < 0 {
			i = len(p.out.names)
			p.out.names = append(p.out.names, name)
			params = append(params, plan.Param{})
		}
		if e := p.output(c, name, col); e != nil {
			p.trust(e, true)
			params[i].Sources = []*plan.Expr{e} // the last of a name counts
		}
	}
	p.out.querier.Params = params
	if p.out.names == nil {
		p.out.names = []string{}
	}
	p.where(c, s.Where)
	if p.untrusted && !p.trusted && !p.bucket.AcceptDangerous && !p.bad {
		p.warn("dangerous-parameters", p.whole(), "the client chooses the buckets by parameters that nothing restricts to what its token allows")
	}
}

// output resolves a column: of the table, or of the request.
func (p *parameterQuery) output(c *clauses, name string, col syntax.ResultColumn) *plan.Expr {
	v, ok := c.value(col.Expr)
	if !ok {
		return nil
	}
	if v.side != rowSide {
		return v.expr
	}
	if v.expr.Op != plan.Column && v.expr.Op != plan.TableSuffix {
		p.fatal("parameter-use", col.Expr.At(), "a parameter query selects columns of the table as they are, or expressions of the request")
		return nil
	}
	i := slices.IndexFunc(p.index.Outputs, func(o plan.Output) bool { return o.Name == name })
	if i < 0 {
		i = len(p.index.Outputs)
		p.index.Outputs = append(p.index.Outputs, plan.Output{Name: name})
	}
	p.index.Outputs[i].Expr = v.expr
	return &plan.Expr{Op: plan.Step, Index: -1, Index2: i}
}

// priority resolves the column _priority.
func (p *parameterQuery) priority(col syntax.ResultColumn) {
	i, ok := col.Expr.(*syntax.Integer)
	if !ok || len(i.Digits) != 1 || i.Digits[0] > '3' {
		p.fatal("priority", col.Expr.At(), "_priority must be a number from 0 to 3")
		return
	}
	if p.bucket.HasPriority {
		p.fatal("priority", col.Expr.At(), "the priority is set already, by the key priority")
		return
	}
	p.out.querier.Priority = int(i.Digits[0] - '0')
}

// where resolves the condition and, for a query of a table, its index.
func (p *parameterQuery) where(c *clauses, where syntax.Expr) {
	q := &p.out.querier
	if p.leaves.table == nil {
		if where == nil {
			return
		}
		w, ok := c.where(where)
		if !ok {
			return
		}
		p.trust(w.expr, false)
		if len(q.Steps) > 0 {
			q.Steps[0].Filters = []*plan.Expr{w.expr}
		} else {
			q.Filters = []*plan.Expr{w.expr}
		}
		return
	}
	p.index.Definition = p.definition
	p.index.Table = p.leaves.table.pattern
	p.index.Match = c.match(where)
	p.index.Keys = len(c.inputs)
	lookup := plan.QueryStep{Index: len(p.plan.Indexes)}
	steps, inputs, ok := p.inputSteps(c)
	if !ok {
		return
	}
	for _, in := range c.inputs {
		p.trust(in.expr, in.expanding || isRowMatch(p.index.Match, in.index))
	}
	lookup.Inputs = inputs
	q.Steps = append(steps, lookup)
	p.plan.Indexes = append(p.plan.Indexes, p.index)
	for i := range q.Params {
		for _, e := range q.Params[i].Sources {
			if e.Op == plan.Step && e.Index < 0 {
				e.Index = len(q.Steps) - 1
			}
		}
	}
}

// inputSteps makes the keys to look up, with a json_each for an array.
func (q *query) inputSteps(c *clauses) (steps []plan.QueryStep, inputs []*plan.Expr, ok bool) {
	for _, in := range c.inputs {
		if !in.expanding {
			inputs = append(inputs, in.expr)
			continue
		}
		if len(steps) > 0 {
			q.fatal("unsupported", q.whole(), "only one array parameter is supported in a query")
			return nil, nil, false
		}
		inputs = append(inputs, &plan.Expr{Op: plan.Step, Index: len(steps), Index2: 1})
		steps = append(steps, plan.QueryStep{Each: in.expr, RawEach: true})
	}
	return steps, inputs, true
}

// isRowMatch tells whether a key is matched with what a row has, not with a
// constant.
func isRowMatch(m *plan.Match, key int) bool {
	if m == nil {
		return false
	}
	if m.Op == plan.Equal || m.Op == plan.Among {
		return m.Key == key && m.Expr.Op != plan.Const
	}
	for _, a := range m.Args {
		if isRowMatch(a, key) {
			return true
		}
	}
	return false
}

// event resolves an event definition.
func (r *resolver) event(e *config.Event) {
	ev := plan.Event{Name: e.Name.Text}
	for _, t := range e.Payloads {
		q, s := r.parse(t)
		if s == nil {
			continue
		}
		tbl := q.onlyTable(s)
		if tbl == nil {
			continue
		}
		l := &oldLeaves{query: q, table: tbl}
		rows := plan.Rows{Table: tbl.pattern, Output: tbl.output(), Columns: q.columns(s, l, tbl, false)}
		// The condition is checked and, as ever, not applied.
		(&clauses{query: q, leaves: l, data: true}).match(s.Where)
		if plan.CarriesCheckpoints(ev.Name) {
			for _, name := range []string{plan.CheckpointUser, plan.CheckpointClient, plan.CheckpointNumber} {
				// No name: the table's columns, *.
				if !slices.ContainsFunc(rows.Columns, func(o plan.Output) bool { return o.Name == "" || o.Name == name }) {
					q.warn("missing-checkpoint-column", q.whole(), "without a column %s the rows of %s carry no write checkpoint", name, ev.Name)
				}
			}
		}
		ev.Payloads = append(ev.Payloads, rows)
	}
	r.plan.Events = append(r.plan.Events, ev)
}
