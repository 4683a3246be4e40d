package resolve

import (
	"strconv"

	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// stream2 resolves a stream of edition 2: one query of one table, whose ORs
// become separate buckets.
func (r *resolver) stream2(c *config.Stream) {
	d := len(r.plan.Definitions)
	// The priority of the definition has never had an effect in edition 2.
	r.plan.Definitions = append(r.plan.Definitions, plan.Definition{
		Name: c.Name.Text, Stream: true, AutoSubscribe: c.AutoSubscribe, Priority: 3,
	})
	for _, t := range c.Queries {
		if r.config.Options.Edition != 2 {
			r.fatal("edition", t.Node, "streams need edition 2 or 3: config: {edition: 3}")
			continue
		}
		r.stream2Query(t, c, d)
	}
}

func (r *resolver) stream2Query(t config.Text, c *config.Stream, d int) {
	q, s := r.parse(t)
	if s == nil {
		return
	}
	if len(s.From) > 1 {
		q.fatal("single-table", s.At(), "only one table is supported; joins need edition 3")
		return
	}
	tbl := q.onlyTable(s)
	if tbl == nil {
		return
	}
	l := &oldLeaves{query: q, table: tbl}
	l.fns = q.streamFunction
	st := &stream2{query: q, leaves: l, definition: d, sides: map[syntax.Expr]sides2{}}
	columns := q.columns(s, l, tbl, true)
	variants := []*variant2{{clauses: st.clauses()}}
	if s.Where != nil {
		variants = st.variants(s.Where)
	}
	if q.bad {
		return
	}
	untrusted := false
	for i, v := range variants {
		src := plan.Source{
			Name: c.Name.Text + "|" + strconv.Itoa(i), Definition: d, Keys: len(v.params),
			Rows: []plan.Rows{{Table: tbl.pattern, Output: tbl.output(), Match: v.match(), Columns: columns}},
		}
		querier := plan.Querier{
			Source: len(r.plan.Sources), Priority: 3, Filters: v.filters, Steps: v.steps, NullKeys: true,
		}
		for _, p := range v.params {
			querier.Params = append(querier.Params, plan.Param{Sources: []*plan.Expr{p}})
			p.Walk(func(e *plan.Expr) { untrusted = untrusted || e.Op == plan.Request && e.Name == plan.SubscriptionArgs })
		}
		r.plan.Sources = append(r.plan.Sources, src)
		def := &r.plan.Definitions[d]
		def.Queriers = append(def.Queriers, querier)
	}
	if untrusted && c.AutoSubscribe {
		q.warn("auto-subscribe-with-parameters", q.whole(), "the stream is subscribed automatically, without parameters, but uses subscription parameters")
	}
}

// stream2 resolves the condition of one query.
type stream2 struct {
	*query
	leaves     *oldLeaves
	definition int
	sides      map[syntax.Expr]sides2 // by condition, as plain found them
}

// sides2 tells what a condition is over; mixed: it is no value.
type sides2 struct {
	side  side
	mixed bool
}

// variant2 is one branch of the condition: a bucket of its own.
type variant2 struct {
	clauses *clauses
	matches []*plan.Match
	filters []*plan.Expr
	steps   []plan.QueryStep
	params  []*plan.Expr // beside the keys of matches
}

func (s *stream2) clauses() *clauses {
	return &clauses{query: s.query, leaves: s.leaves, separate: true}
}

func (v *variant2) match() *plan.Match {
	if len(v.matches) == 0 {
		return nil
	}
	return &plan.Match{Op: plan.All, Args: v.matches}
}

// variants brings a condition to disjunctive form, where parameters are
// concerned.
func (s *stream2) variants(e syntax.Expr) []*variant2 {
	b, ok := e.(*syntax.Binary)
	if !ok || b.Op != "AND" && b.Op != "OR" || s.plain(e) {
		return s.term(e)
	}
	xs, ys := s.variants(b.X), s.variants(b.Y)
	if b.Op == "OR" {
		return append(xs, ys...)
	}
	if len(xs)*len(ys) > maxVariants {
		s.fatal("too-many", e.At(), "the condition has more than %d alternatives", maxVariants)
		return nil
	}
	if len(ys) == 1 { // a chain of ANDs: nothing is copied
		for _, x := range xs {
			s.and(x, ys[0])
		}
		return xs
	}
	var out []*variant2
	for _, x := range xs {
		for _, y := range ys {
			v := &variant2{}
			s.and(v, x)
			s.and(v, y)
			out = append(out, v)
		}
	}
	return out
}

// plain tells whether a condition is over the row or the request alone.
func (s *stream2) plain(e syntax.Expr) bool { return !s.sidesOf(e).mixed }

func (s *stream2) sidesOf(e syntax.Expr) sides2 {
	if known, ok := s.sides[e]; ok {
		return known
	}
	var out sides2
	if b, ok := e.(*syntax.Binary); ok && (b.Op == "AND" || b.Op == "OR") {
		x, y := s.sidesOf(b.X), s.sidesOf(b.Y)
		out.side = max(x.side, y.side)
		out.mixed = x.mixed || y.mixed || x.side != static && y.side != static && x.side != y.side
	} else {
		out = s.probe(e)
	}
	s.sides[e] = out
	return out
}

// probe resolves a condition as a value, and reports nothing.
func (s *stream2) probe(e syntax.Expr) sides2 {
	probe := *s.resolver
	probe.findings = nil
	probe.plan = &plan.Plan{}
	q := *s.query
	q.resolver = &probe
	l := *s.leaves
	l.query = &q
	l.fns = q.streamFunction
	if l.table != nil {
		t := *l.table
		t.query = &q
		l.table = &t
	}
	v, ok := (&clauses{query: &q, leaves: &l}).value(e)
	return sides2{v.side, !ok}
}

// and makes v hold only where y does, too.
func (s *stream2) and(v, y *variant2) {
	before, keys := len(v.steps), len(v.params)
	steps := func(e *plan.Expr) *plan.Expr {
		return e.Map(func(n *plan.Expr) *plan.Expr {
			if n.Op == plan.Step {
				n.Index += before
			}
			return n
		})
	}
	for _, st := range y.steps {
		// A step may be part of several variants: each has its own copy.
		inputs := make([]*plan.Expr, len(st.Inputs))
		for i, in := range st.Inputs {
			inputs[i] = steps(in)
		}
		st.Inputs = inputs
		v.steps = append(v.steps, st)
	}
	if lookups(y.steps) > 0 && lookups(v.steps) > 1 {
		s.fatal("subquery", s.whole(), "only one subquery is supported in each alternative; more need edition 3")
	}
	v.filters = append(v.filters, y.filters...)
	for _, p := range y.params {
		v.params = append(v.params, steps(p))
	}
	for _, m := range y.matches {
		v.matches = append(v.matches, shiftKeys(m, keys))
	}
}

func lookups(steps []plan.QueryStep) int {
	n := 0
	for _, s := range steps {
		if s.Each == nil {
			n++
		}
	}
	return n
}

func shiftKeys(m *plan.Match, by int) *plan.Match {
	c := *m
	c.Key += by
	c.Args = make([]*plan.Match, len(m.Args))
	for i, a := range m.Args {
		c.Args[i] = shiftKeys(a, by)
	}
	return &c
}

// term resolves a condition that is no AND or OR of variants.
func (s *stream2) term(e syntax.Expr) []*variant2 {
	v := &variant2{}
	c := s.clauses()
	c.subquery = func(in *syntax.In, x clause) (clause, bool) { return s.subquery(v, in, x) }
	w, ok := c.where(e)
	if !ok {
		return nil
	}
	switch {
	case w.expr != nil && w.side == paramSide:
		v.filters = append(v.filters, w.expr)
	case w.expr != nil:
		v.matches = append(v.matches, &plan.Match{Op: plan.Where, Expr: w.expr})
	case w.match != nil:
		v.matches = append(v.matches, w.match)
		for _, in := range w.inputs {
			switch {
			case !in.expanding:
				v.params = append(v.params, in.expr)
			default:
				v.params = append(v.params, &plan.Expr{Op: plan.Step, Index: len(v.steps), Index2: 1})
				v.steps = append(v.steps, plan.QueryStep{Each: in.expr})
			}
		}
	}
	return []*variant2{v}
}

// subquery resolves x IN (SELECT column FROM table WHERE …): a lookup whose
// result is the key, or, if x is of the request, must exist.
func (s *stream2) subquery(v *variant2, in *syntax.In, x clause) (clause, bool) {
	sel := in.Y.(*syntax.Subquery).Select
	s.unsupported(sel)
	switch {
	case in.Not:
		s.fatal("unsupported", in.At(), "NOT IN (SELECT …) is not supported")
		return clause{}, false
	case len(sel.Columns) != 1:
		s.fatal("subquery", sel.At(), "a subquery must select one column")
		return clause{}, false
	}
	tbl := s.onlyTable(sel)
	if tbl == nil || s.bad {
		return clause{}, false
	}
	l := &oldLeaves{query: s.query, table: tbl}
	l.fns = s.streamFunction
	c := &clauses{query: s.query, leaves: l}
	out, ok := c.value(sel.Columns[0].Expr)
	if !ok || out.side == paramSide {
		s.fatal("subquery", sel.Columns[0].At(), "a subquery must select a column of its table")
		return clause{}, false
	}
	index := plan.Index{Definition: s.definition, Table: tbl.pattern, Outputs: []plan.Output{{Name: "result", Expr: out.expr}}}
	if x.side != rowSide {
		k := c.input(x.expr, false)
		index.Match = &plan.Match{Op: plan.Equal, Key: k.index, Expr: out.expr}
	}
	if m := c.match(sel.Where); m != nil {
		if hasAny(m) {
			s.fatal("subquery", sel.Where.At(), "OR with parameters is not supported in a subquery")
			return clause{}, false
		}
		if index.Match != nil {
			m = &plan.Match{Op: plan.All, Args: []*plan.Match{index.Match, m}}
		}
		index.Match = m
	}
	if s.bad {
		return clause{}, false
	}
	index.Keys = len(c.inputs)
	steps, inputs, ok := s.inputSteps(c)
	if !ok {
		return clause{}, false
	}
	v.steps = append(steps, plan.QueryStep{Index: len(s.plan.Indexes), Inputs: inputs})
	s.plan.Indexes = append(s.plan.Indexes, index)
	if x.side != rowSide {
		return clause{at: in.At()}, true
	}
	v.params = []*plan.Expr{{Op: plan.Step, Index: len(v.steps) - 1}}
	return clause{at: in.At(), match: &plan.Match{Op: plan.Equal, Key: 0, Expr: x.expr}}, true
}

func hasAny(m *plan.Match) bool {
	if m.Op == plan.Any {
		return true
	}
	for _, a := range m.Args {
		if hasAny(a) {
			return true
		}
	}
	return false
}
