package resolve

import (
	"slices"

	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// cond is a condition with NOT pushed down to its terms.
type cond struct {
	op   condOp
	args []*cond
	term *term
	// sources that the condition brings in: what a subquery selects from must
	// have rows even if nothing else is said of it.
	sources []*source
	at      syntax.Span
}

type condOp uint8

const (
	condTerm condOp = iota
	condAnd
	condOr
)

// term is a condition that is not taken apart: an expression over one source,
// or (y is set) an equality of two.
type term struct {
	x, y *plan.Expr
	at   syntax.Span
}

// match tells whether t compares two sources.
func (t *term) match() bool { return t.y != nil }

func allOf(cs []*cond, sources []*source) *cond {
	return &cond{op: condAnd, args: cs, sources: sources}
}

// nothing is what a condition with an error becomes.
var nothing = &cond{op: condAnd}

// condition resolves a condition, or its negation.
func (s *scope) condition(e syntax.Expr, negate bool) *cond {
	switch e := e.(type) {
	case *syntax.Unary:
		if e.Op == "NOT" {
			return s.condition(e.X, !negate)
		}
	case *syntax.Binary:
		switch e.Op {
		case "AND", "OR":
			op := condAnd
			if (e.Op == "OR") != negate {
				op = condOr
			}
			return &cond{op: op, at: e.At(), args: []*cond{s.condition(e.X, negate), s.condition(e.Y, negate)}}
		case "=", "!=": // x != y is NOT x = y
			return s.equality(e, negate != (e.Op == "!="))
		case "&&":
			return s.overlapping(e, negate)
		}
	case *syntax.In:
		if _, list := s.valueList(e.Y); !list {
			return s.membership(e, negate)
		}
	}
	return s.scalarTerm(s.value(e), e.At(), negate)
}

func (s *scope) scalarTerm(x *plan.Expr, at syntax.Span, negate bool) *cond {
	if x == nil {
		return nothing
	}
	if negate {
		x = &plan.Expr{Op: plan.Not, Args: []*plan.Expr{x}}
	}
	return &cond{term: &term{x: x, at: at}, at: at}
}

func (s *scope) equality(e *syntax.Binary, negate bool) *cond {
	x, y := s.value(e.X), s.value(e.Y)
	if x == nil || y == nil {
		return nothing
	}
	return s.equal(x, y, e.At(), negate)
}

// equal is x = y, a match if they are of different sources.
func (s *scope) equal(x, y *plan.Expr, at syntax.Span, negate bool) *cond {
	a, b := baseOf(x), baseOf(y)
	if a == nil || b == nil || a == b {
		return s.scalarTerm(&plan.Expr{Op: plan.Binary, Name: "=", Args: []*plan.Expr{x, y}}, at, negate)
	}
	if negate {
		s.oneSource(&plan.Expr{Op: plan.Binary, Name: "=", Args: []*plan.Expr{x, y}})
		return nothing
	}
	return &cond{term: &term{x: x, y: y, at: at}, at: at}
}

// elements are the values that an array, or a subquery, has: an expression,
// and the condition under which it exists.
type elements struct {
	expr  *plan.Expr
	where *cond
}

// subqueryOf returns the subquery that e is, or names.
func (s *scope) subqueryOf(e syntax.Expr) (*syntax.Select, *scope) {
	switch e := e.(type) {
	case *syntax.Subquery:
		return e.Select, s
	case *syntax.Column:
		if e.Table == nil && e.Schema == nil {
			if sel := s.named(e.Name.Name, e.At()); sel != nil {
				return sel, s.inCTE(e.Name.Name)
			}
		}
	}
	return nil, nil
}

// elements resolves the right side of IN, or a side of &&. It returns nil after
// reporting an error.
func (s *scope) elements(e syntax.Expr) *elements {
	if sel, in := s.subqueryOf(e); sel != nil {
		sub := in.subselect(sel)
		if in.query != s.query && (sub == nil || len(sub.columns) != 1) {
			s.fatal("subquery", e.At(), "a named query after IN must have one column")
			return nil
		}
		if sub == nil {
			return nil
		}
		if len(sub.columns) != 1 {
			s.fatal("subquery", sel.At(), "a subquery after IN must select one column")
			return nil
		}
		x := sub.columns[0].expr
		if in.query != s.query {
			x = moved(x, e.At())
		}
		return &elements{x, sub.where}
	}
	x := s.value(e)
	if x == nil {
		return nil
	}
	src := s.newSource(source{name: "json_each", at: e.At()})
	s.setEach(src, x)
	value := &plan.Expr{Op: plan.EachValue, From: &ref{of: src, at: e.At()}}
	return &elements{value, allOf(nil, []*source{src})}
}

// membership resolves x IN y.
func (s *scope) membership(e *syntax.In, negate bool) *cond {
	negate = negate != e.Not
	switch y := e.Y.(type) {
	case *syntax.List:
		if len(y.Elems) != 1 {
			s.scalar(e.Y, s)
			return nothing
		}
	case *syntax.Array:
		s.scalar(e.Y, s)
		return nothing
	}
	x := s.value(e.X)
	if col, ok := e.Y.(*syntax.Column); ok && col.Table == nil {
		if c := s.ctes[col.Name.Name]; c != nil && c.wrong {
			s.fatal("subquery", e.Y.At(), "the named query %s is wrong", col.Name.Name)
			return nothing
		}
	}
	sel, _ := s.subqueryOf(e.Y)
	if sel == nil {
		// An array of the same source, or a constant one, is looked into at once.
		y := s.value(e.Y)
		if x == nil || y == nil {
			return nothing
		}
		in := &plan.Expr{Op: plan.InJSON, Args: []*plan.Expr{x, y}}
		if a, b := baseOf(x), baseOf(y); a == nil || b == nil || a == b {
			return s.scalarTerm(in, e.At(), negate)
		}
		if negate {
			s.oneSource(in)
			return nothing
		}
	}
	el := s.elements(e.Y)
	if x == nil || el == nil {
		return nothing
	}
	if negate {
		// NOT (x = column AND condition): each part is negated, and none of
		// those that compare sources can be.
		s.equal(x, el.expr, e.At(), true)
		if !s.negatable(el.where) {
			return nothing
		}
		s.fatal("subquery", e.At(), "NOT IN (SELECT …) is not supported")
		return nothing
	}
	return allOf([]*cond{s.equal(x, el.expr, e.At(), false), el.where}, nil)
}

// negatable reports the matches in a condition, which cannot be negated.
func (s *scope) negatable(c *cond) bool {
	ok := true
	if c.term != nil && c.term.match() {
		s.oneSource(&plan.Expr{Op: plan.Binary, Name: "=", Args: []*plan.Expr{c.term.x, c.term.y}})
		ok = false
	}
	for _, a := range c.args {
		ok = s.negatable(a) && ok
	}
	return ok && !s.bad
}

// overlapping resolves x && y: an element of x is an element of y.
func (s *scope) overlapping(e *syntax.Binary, negate bool) *cond {
	subX, _ := s.subqueryOf(e.X)
	subY, _ := s.subqueryOf(e.Y)
	if subX == nil && subY == nil {
		x, y := s.value(e.X), s.value(e.Y)
		if x == nil || y == nil {
			return nothing
		}
		both := &plan.Expr{Op: plan.Overlap, Args: []*plan.Expr{x, y}}
		if a, b := baseOf(x), baseOf(y); a == nil || b == nil || a == b {
			return s.scalarTerm(both, e.At(), negate)
		}
		if negate {
			s.oneSource(both)
			return nothing
		}
	}
	if negate {
		s.fatal("operator", e.At(), "&& with a subquery cannot be negated")
		return nothing
	}
	x, y := s.elements(e.X), s.elements(e.Y)
	if x == nil || y == nil {
		return nothing
	}
	return allOf([]*cond{s.equal(x.expr, y.expr, e.At(), false), x.where, y.where}, nil)
}

// branch is one alternative of a condition: terms that must all hold.
type branch struct {
	terms   []*term
	sources []*source
}

// branches brings a condition to disjunctive normal form, in text order. Its
// work grows with the length of a chain of ANDs or ORs, not with the square.
func (s *scope) branches(c *cond) []branch {
	switch {
	case c == nil:
		return []branch{{}}
	case c.op == condTerm:
		return []branch{{terms: []*term{c.term}, sources: c.sources}}
	case c.op == condOr:
		var out []branch
		for _, a := range c.args {
			if out == nil {
				out = s.branches(a)
			} else {
				out = append(out, s.branches(a)...)
			}
		}
		return out
	}
	out := []branch{{}}
	for i, a := range c.args {
		more := s.branches(a)
		if i == 0 {
			out = more
			continue
		}
		if len(out)*len(more) > maxVariants {
			s.fatal("too-many", c.at, "the condition has more than %d alternatives", maxVariants)
			return nil
		}
		if len(more) == 1 {
			for j := range out {
				out[j].add(more[0])
			}
			continue
		}
		out = product(out, more)
	}
	if len(c.sources) > 0 {
		for j := range out {
			out[j].sources = append(slices.Clone(c.sources), out[j].sources...)
		}
	}
	return out
}

// add makes b hold only where x does, too. Branches own their slices.
func (b *branch) add(x branch) {
	b.terms = append(b.terms, x.terms...)
	b.sources = append(b.sources, x.sources...)
}

// product combines each of xs with each of ys.
func product(xs, ys []branch) []branch {
	out := make([]branch, 0, len(xs)*len(ys))
	for _, x := range xs {
		for _, y := range ys {
			var b branch
			b.add(x)
			b.add(y)
			out = append(out, b)
		}
	}
	return out
}

// variants orders and combines branches as bucket numbers need it: branches
// with several conditions first, then single matches, then one for all single
// conditions on the request, then one for those on each table.
func variants(branches []branch) []branch {
	var several, matches, request, rows []branch
	place := map[*source]int{}
	for _, b := range branches {
		b.terms = merged(b.terms)
		switch {
		case len(b.terms) != 1:
			several = append(several, b)
		case b.terms[0].match():
			matches = append(matches, b)
		default:
			base := baseOf(b.terms[0].x)
			if base == nil || base == requestSource {
				request = orInto(request, 0, b)
				continue
			}
			i, ok := place[base]
			if !ok {
				i = len(rows)
				place[base] = i
			}
			rows = orInto(rows, i, b)
		}
	}
	return append(append(append(several, matches...), request...), rows...)
}

func orInto(list []branch, i int, b branch) []branch {
	if i == len(list) {
		return append(list, b)
	}
	old := list[i].terms[0]
	list[i].terms = []*term{{x: plan.Or([]*plan.Expr{old.x, b.terms[0].x}), at: old.at}}
	list[i].sources = append(list[i].sources, b.sources...)
	return list
}

// merged combines the conditions on one source to one, at the place of the
// first.
func merged(terms []*term) []*term {
	var out []*term
	place := map[*source]int{}
	for _, t := range terms {
		if t.match() {
			out = append(out, t)
			continue
		}
		base := baseOf(t.x)
		if base == nil {
			base = requestSource
		}
		if i, ok := place[base]; ok {
			out[i] = &term{x: plan.And([]*plan.Expr{out[i].x, t.x}), at: out[i].at}
			continue
		}
		place[base] = len(out)
		out = append(out, t)
	}
	return out
}
