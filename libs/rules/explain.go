package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// Question is what Explain answers: for a request, a row, or both.
type Question struct {
	// Request, and the parameter index to answer it from; nil Lookup = empty.
	Request *Request
	Lookup  func(keys []string) ([][]string, error)
	// Table and Row of the source.
	Table *model.SourceTable
	Row   []model.Value
}

// String describes the whole plan.
func (p *Plan) String() string { return p.plan.String() }

// Answer is what Explain answers.
type Answer struct {
	// Text is for people.
	Text string
	// Given are the buckets of the request, Holding those of the row, each sorted.
	Given, Holding []string
}

// Shared are the buckets by which the request gets the row.
func (a *Answer) Shared() []string {
	var both []string
	for _, id := range a.Holding {
		if slices.Contains(a.Given, id) {
			both = append(both, id)
		}
	}
	return both
}

// Explain says which buckets each definition gives to a request and a row, and
// why not where it gives none.
func (p *Plan) Explain(q Question) (*Answer, error) {
	e := &explainer{Plan: p, question: q, given: map[string]bool{}}
	if q.Request != nil {
		var err error
		if e.querier, err = p.Querier(*q.Request); err != nil {
			return nil, err
		}
	}
	for i := range p.plan.Definitions {
		if err := e.definition(i); err != nil {
			return nil, err
		}
	}
	slices.Sort(e.holding)
	a := &Answer{Given: slices.Sorted(maps.Keys(e.given)), Holding: slices.Compact(e.holding)}
	if q.Request != nil {
		e.strays()
	}
	if q.Request != nil && q.Table != nil {
		e.verdict(a)
	}
	a.Text = e.out.String()
	return a, nil
}

type explainer struct {
	*Plan
	question Question
	querier  *Querier
	given    map[string]bool // buckets of the request
	holding  []string        // buckets of the row
	out      strings.Builder
}

// strays are subscriptions to what there is not.
func (e *explainer) strays() {
	var names []string
	for i := range e.definitions {
		names = append(names, e.definitions[i].Name)
	}
	for i, s := range e.question.Request.Subscriptions {
		if slices.Contains(names, s.Stream) {
			continue
		}
		hint := ""
		if near := config.Nearest(s.Stream, names); near != "" {
			hint = "; is it " + near + "?"
		}
		e.line(0, "subscription %d: there is no stream %s%s", i, s.Stream, hint)
	}
}

// verdict says whether the request gets the row.
func (e *explainer) verdict(a *Answer) {
	both := a.Shared()
	switch {
	case len(both) > 0:
		e.line(0, "the user gets the row, in %s", strings.Join(both, ", "))
	case len(a.Holding) > 0:
		e.line(0, "the user does not get the row: none of the buckets that it is in is given to the user")
	default:
		e.line(0, "the user does not get the row: it is in no bucket")
	}
}

func (e *explainer) line(indent int, format string, args ...any) {
	e.out.WriteString(strings.Repeat("  ", indent))
	fmt.Fprintf(&e.out, format+"\n", args...)
}

func (e *explainer) definition(i int) error {
	d := &e.plan.Definitions[i]
	e.line(0, "%s %s", e.definitions[i].Kind, d.Name)
	if e.querier != nil {
		if err := e.runs(i); err != nil {
			return err
		}
	}
	if t := e.question.Table; t != nil {
		seen, read := map[int]bool{}, false
		for j := range d.Queriers {
			if s := d.Queriers[j].Source; !seen[s] {
				seen[s] = true
				read = e.source(s) || read
			}
		}
		if !read {
			e.line(1, "does not sync the table %s.%s", t.Schema, t.Name)
		}
	}
	return nil
}

// runs explains what the request gets of a definition.
func (e *explainer) runs(definition int) error {
	asked := false
	for _, r := range e.subscriptions(definition) {
		asked = true
		e.line(1, "%s:", r.name)
		if r.err != nil {
			e.line(2, "error: %v", r.err)
			continue
		}
		values := e.slots.values(&r.data)
		for j := range e.queriers[definition] {
			if err := e.part(definition, j, values); err != nil {
				return err
			}
		}
	}
	if !asked {
		e.line(1, "not subscribed to, and not subscribed automatically")
	}
	return nil
}

// explained is a subscription to a definition, explicit or not.
type explained struct {
	name string
	data requestData
	err  error
}

func (e *explainer) subscriptions(definition int) (out []explained) {
	r := e.question.Request
	d := &e.definitions[definition]
	data, err := r.decode()
	if d.AutoSubscribed && r.IncludeDefaults {
		data.subscription = jsontext.Node{}
		out = append(out, explained{"by default", data, err})
	}
	for i, s := range r.Subscriptions {
		if s.Stream == d.Name && (d.Kind == StreamDefinition || len(out) == 0) {
			var bad error
			data.subscription, bad = decodeObject(s.Parameters)
			out = append(out, explained{fmt.Sprintf("subscription %d", i), data, errors.Join(err, bad)})
		}
	}
	return out
}

// part explains one querier.
func (e *explainer) part(definition, j int, values []model.Value) error {
	q := &e.plan.Definitions[definition].Queriers[j]
	b := &e.queriers[definition][j]
	name := e.plan.Sources[q.Source].Name
	format := e.plan.Steps(q)
	env := eval.Env{Request: values}
	for k, f := range b.filters {
		v, err := f(&env)
		switch {
		case err != nil:
			e.line(2, "%s: error in %s: %v", name, format.Expr(q.Filters[k]), err)
			return nil
		case !value.Truthy(v):
			e.line(2, "%s: not given, for %s is not true", name, format.Expr(q.Filters[k]))
			return nil
		}
	}
	p := part{q: b, request: values, rows: [][]model.Value{nil}}
	for !p.done() {
		step := p.step
		if err := e.advance(&p); err != nil {
			e.line(2, "%s: error: %v", name, err)
			return nil
		}
		if len(p.rows) == 0 {
			e.line(2, "%s: not given, for there is nothing in %s", name, e.stepName(q, step, format))
			return nil
		}
	}
	ids, _, err := p.ids(nil, nil)
	if err != nil {
		e.line(2, "%s: error: %v", name, err)
		return nil
	}
	if len(ids) == 0 {
		e.line(2, "%s: not given, for a key is null", name)
	}
	for _, id := range ids {
		e.line(2, "%s", id.text)
		e.given[id.text] = true
	}
	return nil
}

// advance runs the next step of a part.
func (e *explainer) advance(p *part) error {
	s := &p.q.steps[p.step]
	if s.each != nil {
		return p.each()
	}
	keys, err := p.keys()
	if err != nil {
		return err
	}
	var out [][]model.Value
	for i, k := range keys {
		if k == "" || e.question.Lookup == nil {
			continue
		}
		found, err := e.question.Lookup([]string{k})
		if err != nil {
			return err
		}
		d := entryDecoder{names: s.names}
		for _, v := range found[0] {
			if err := d.decode(v); err != nil {
				return err
			}
		}
		if out, err = p.join(out, p.rows[i], d.rows); err != nil {
			return err
		}
	}
	p.rows = p.narrow(out)
	p.step++
	return nil
}

func (e *explainer) stepName(q *plan.Querier, step int, f plan.Format) string {
	s := &q.Steps[step]
	if s.Each != nil {
		return f.Expr(s.Each)
	}
	x := &e.plan.Indexes[s.Index]
	var inputs []string
	for i, in := range s.Inputs {
		inputs = append(inputs, fmt.Sprintf("#%d = %s", i, f.Expr(in)))
	}
	return fmt.Sprintf("%s where %s, with %s", plan.FormatTable(x.Table), plan.Format{}.Match(x.Match), strings.Join(inputs, ", "))
}

// source explains in which buckets of a source the row is, and returns whether
// the source reads the row's table.
func (e *explainer) source(source int) (read bool) {
	src := &e.plan.Sources[source]
	t := e.question.Table
	for i := range src.Rows {
		r := &src.Rows[i]
		if !Matches(r.Table, t) {
			continue
		}
		read = true
		b := e.rowBinder(r.Table, t)
		var out RowResult
		s := &out.scratch
		s.env.Row = e.question.Row
		found := false
		err := newMatcher(r.Match, r.Each, src.Keys, b).run(s, func(keys []byte) error {
			found = true
			id := fmt.Sprintf("%s%s]", e.bucketPrefix(source), keys)
			e.line(1, "the row is in %s", id)
			e.holding = append(e.holding, id)
			return nil
		})
		switch {
		case err != nil:
			e.line(1, "the row is not in %s: %v", src.Name, err)
		case !found:
			e.line(1, "the row is not in %s, for %s", src.Name, e.missing(r.Match, b, &s.env))
		}
	}
	return read
}

// missing finds the part of a match that a row fails.
func (e *explainer) missing(m *plan.Match, b plan.Binder, env *eval.Env) string {
	f := plan.Format{}
	if m.Op == plan.All {
		for _, a := range m.Args {
			if list, err := bindMatch(a, b).assignments(env, 1+maxKey(a)); err == nil && len(list) == 0 {
				return e.missing(a, b, env)
			}
		}
	}
	switch m.Op {
	case plan.Where:
		return f.Expr(m.Expr) + " is not true"
	case plan.Equal:
		return f.Expr(m.Expr) + " is null or a blob"
	case plan.Among:
		return f.Expr(m.Expr) + " has no elements"
	}
	return "no keys satisfy " + f.Match(m)
}

func maxKey(m *plan.Match) int {
	k := m.Key
	for _, a := range m.Args {
		k = max(k, maxKey(a))
	}
	return k
}

// Columns returns the columns of tables like t that the config reads; all if
// it reads every column.
func (p *Plan) Columns(t *model.SourceTable) (columns []string, all bool) {
	seen := map[string]bool{}
	read := func(e *plan.Expr) {
		e.Walk(func(n *plan.Expr) {
			if n.Op == plan.Column && !seen[n.Name] {
				seen[n.Name] = true
				columns = append(columns, n.Name)
			}
		})
	}
	p.plan.Reads(func(pattern model.TablePattern, e *plan.Expr) {
		switch {
		case !Matches(pattern, t):
		case e == nil:
			all = true
		default:
			read(e)
		}
	})
	return columns, all
}
