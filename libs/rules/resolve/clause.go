package resolve

import (
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// side is what a value depends on.
type side uint8

const (
	static    side = iota // constants: counts as whatever is needed
	rowSide               // the row
	paramSide             // bucket parameters, or the request
)

// clause is a part of a WHERE of rules and edition 2 (spec/03 §5.3): either a
// value (expr) or a match of row values with parameters (match).
type clause struct {
	at        syntax.Span
	expr      *plan.Expr
	side      side
	match     *plan.Match
	inputs    []*input // that match has keys of
	unbounded bool     // several assignments for one row
}

// input is a parameter that rows are matched with.
type input struct {
	index     int // key of the match
	expr      *plan.Expr
	expanding bool // one of the elements of the array expr
}

// clauses resolves the WHERE of one query.
type clauses struct {
	*query
	leaves leaves
	inputs []*input
	// separate makes every match an input of its own (edition 2); otherwise
	// equal parameters are one input, whose matches must agree.
	separate bool
	// data: parameters are those of the bucket, which have no values but in
	// matches.
	data bool
	// subquery resolves x IN (SELECT …), where that is supported.
	subquery func(e *syntax.In, x clause) (clause, bool)
}

// value resolves an expression that must not mix sides.
func (c *clauses) value(e syntax.Expr) (clause, bool) {
	x := c.scalar(e, c.leaves)
	if x == nil {
		return clause{}, false
	}
	out := clause{at: e.At(), expr: x}
	ok := true
	var param *ref
	x.Walk(func(n *plan.Expr) {
		r := leafRef(n)
		if r == nil {
			return
		}
		s := rowSide
		if n.Op == plan.Request || n.Op == plan.Step {
			s, param = paramSide, r
		}
		if out.side != static && out.side != s && ok {
			ok = false
			c.fatal("parameter-use", r.at, "row values and parameters are compared with = and IN only, not combined")
		}
		out.side = s
	})
	if ok && c.data && param != nil && leafRef(x) == nil {
		c.fatal("parameter-use", param.at, "a bucket parameter is compared with = and IN only, not used in an expression")
		return out, false
	}
	return out, ok
}

// where resolves a condition.
func (c *clauses) where(e syntax.Expr) (clause, bool) {
	switch e := e.(type) {
	case *syntax.Binary:
		switch e.Op {
		case "AND", "OR":
			x, okX := c.where(e.X)
			y, okY := c.where(e.Y)
			if !okX || !okY {
				return clause{}, false
			}
			if e.Op == "AND" {
				return c.and(e.At(), x, y)
			}
			return c.or(e.At(), x, y)
		case "=":
			return c.equal(e)
		case "&&":
			return c.overlap(e)
		}
	case *syntax.In:
		if _, isSub := e.Y.(*syntax.Subquery); !isSub || c.subquery != nil {
			return c.in(e)
		}
	case *syntax.Unary:
		if e.Op == "NOT" {
			x, ok := c.where(e.X)
			if !ok {
				return clause{}, false
			}
			if x.match != nil {
				c.fatal("parameter-use", e.X.At(), "a match with parameters cannot be negated")
				return clause{}, false
			}
			x.at, x.expr = e.At(), &plan.Expr{Op: plan.Not, Args: []*plan.Expr{x.expr}}
			return x, true
		}
	}
	return c.value(e)
}

// both resolves two operands as values.
func (c *clauses) both(x, y syntax.Expr) (a, b clause, ok bool) {
	a, okA := c.value(x)
	b, okB := c.value(y)
	return a, b, okA && okB
}

func (c *clauses) equal(e *syntax.Binary) (clause, bool) {
	a, b, ok := c.both(e.X, e.Y)
	if !ok {
		return clause{}, false
	}
	if b.side == paramSide {
		a, b = b, a
	}
	// A parameter beside a constant is a match in data queries, where the
	// parameter has no value yet.
	if a.side == paramSide && (b.side == rowSide || b.side == static && c.data) {
		in := c.input(a.expr, false)
		return clause{at: e.At(), match: &plan.Match{Op: plan.Equal, Key: in.index, Expr: b.expr}, inputs: []*input{in}}, true
	}
	return c.combine(e.At(), plan.Expr{Op: plan.Binary, Name: "="}, e.X, e.Y)
}

// combine makes a value of two operands.
func (c *clauses) combine(at syntax.Span, node plan.Expr, x, y syntax.Expr) (clause, bool) {
	a, b, ok := c.both(x, y)
	if !ok {
		return clause{}, false
	}
	if a.side != static && b.side != static && a.side != b.side || c.data && (a.side == paramSide || b.side == paramSide) {
		c.fatal("parameter-use", y.At(), "row values and parameters cannot be combined here")
		return clause{}, false
	}
	node.Args = []*plan.Expr{a.expr, b.expr}
	return clause{at: at, expr: &node, side: max(a.side, b.side)}, true
}

func (c *clauses) in(e *syntax.In) (clause, bool) {
	if _, ok := e.Y.(*syntax.Subquery); ok {
		x, ok := c.value(e.X)
		if !ok {
			return clause{}, false
		}
		return c.subquery(e, x)
	}
	switch y := e.Y.(type) {
	case *syntax.List:
		if len(y.Elems) != 1 {
			return c.value(e)
		}
	case *syntax.Array:
		return c.value(e)
	}
	a, b, ok := c.both(e.X, e.Y)
	if !ok {
		return clause{}, false
	}
	switch {
	case a.side == paramSide && b.side == rowSide:
		if e.Not {
			c.fatal("parameter-use", e.At(), "a match with parameters cannot be negated")
			return clause{}, false
		}
		in := c.input(a.expr, false)
		return clause{
			at: e.At(), match: &plan.Match{Op: plan.Among, Key: in.index, Expr: b.expr},
			inputs: []*input{in}, unbounded: true,
		}, true
	case b.side == paramSide && (a.side == rowSide || c.data):
		switch {
		case c.data:
			c.fatal("parameter-use", e.Y.At(), "a bucket parameter cannot be on the right of IN")
			return clause{}, false
		case e.Not:
			c.fatal("parameter-use", e.At(), "a match with parameters cannot be negated")
			return clause{}, false
		}
		in := c.input(b.expr, true)
		return clause{at: e.At(), match: &plan.Match{Op: plan.Equal, Key: in.index, Expr: a.expr}, inputs: []*input{in}}, true
	}
	return c.combine(e.At(), plan.Expr{Op: plan.InJSON, Negate: e.Not}, e.X, e.Y)
}

// overlap is row && parameter: one of the row's elements is one of the
// parameter's.
func (c *clauses) overlap(e *syntax.Binary) (clause, bool) {
	a, b, ok := c.both(e.X, e.Y)
	if !ok {
		return clause{}, false
	}
	if a.side == paramSide {
		a, b = b, a
	}
	if a.side == rowSide && b.side == paramSide && !c.data {
		in := c.input(b.expr, true)
		return clause{
			at: e.At(), match: &plan.Match{Op: plan.Among, Key: in.index, Expr: a.expr, Strict: true},
			inputs: []*input{in}, unbounded: true,
		}, true
	}
	c.fatal("operator", e.At(), "&& is supported between an array of the row and one of the request, in streams, only")
	return clause{}, false
}

// input returns the input of a parameter, a new one if need be.
func (c *clauses) input(e *plan.Expr, expanding bool) *input {
	if c.data {
		for _, in := range c.inputs {
			if in.index == e.Index {
				return in
			}
		}
		in := &input{index: e.Index, expr: e}
		c.inputs = append(c.inputs, in)
		return in
	}
	if !c.separate {
		key := e.Key()
		for _, in := range c.inputs {
			if in.expanding == expanding && in.expr.Key() == key {
				return in
			}
		}
	}
	in := &input{index: len(c.inputs), expr: e, expanding: expanding}
	c.inputs = append(c.inputs, in)
	return in
}

// asMatch makes a match of a value: a row's condition, or a parameter that
// must be true.
func (c *clauses) asMatch(x clause) clause {
	if x.match != nil {
		return x
	}
	if x.side != paramSide {
		x.match, x.expr = &plan.Match{Op: plan.Where, Expr: x.expr}, nil
		return x
	}
	e := x.expr
	if !c.data {
		e = &plan.Expr{Op: plan.Not, Args: []*plan.Expr{{Op: plan.Not, Args: []*plan.Expr{e}}}}
	}
	in := c.input(e, false)
	x.match = &plan.Match{Op: plan.Equal, Key: in.index, Expr: plan.Constant(model.IntegerValue(1))}
	x.inputs, x.expr = []*input{in}, nil
	return x
}

// sameSide tells whether two values combine to a value.
func (c *clauses) sameSide(x, y clause) bool {
	if x.match != nil || y.match != nil || c.data && (x.side == paramSide || y.side == paramSide) {
		return false
	}
	return x.side == y.side || x.side == static || y.side == static
}

func (c *clauses) and(at syntax.Span, x, y clause) (clause, bool) {
	if c.sameSide(x, y) {
		return clause{at: at, expr: plan.And([]*plan.Expr{x.expr, y.expr}), side: max(x.side, y.side)}, true
	}
	x, y = c.asMatch(x), c.asMatch(y)
	if x.unbounded && y.unbounded {
		c.fatal("unsupported", at, "two conditions with several values a row (IN of a row's array) cannot be combined with AND")
		return clause{}, false
	}
	return clause{
		at: at, match: &plan.Match{Op: plan.All, Args: []*plan.Match{x.match, y.match}},
		inputs: union(x.inputs, y.inputs), unbounded: x.unbounded || y.unbounded,
	}, true
}

func (c *clauses) or(at syntax.Span, x, y clause) (clause, bool) {
	if c.sameSide(x, y) {
		return clause{at: at, expr: plan.Or([]*plan.Expr{x.expr, y.expr}), side: max(x.side, y.side)}, true
	}
	x, y = c.asMatch(x), c.asMatch(y)
	if both := union(x.inputs, y.inputs); len(both) != len(x.inputs) || len(both) != len(y.inputs) {
		c.fatal("or-parameters", at, "both sides of OR must use the same parameters; use separate queries instead")
		return clause{}, false
	}
	return clause{
		at: at, match: &plan.Match{Op: plan.Any, Args: []*plan.Match{x.match, y.match}},
		inputs: x.inputs, unbounded: true,
	}, true
}

func union(a, b []*input) []*input {
	out := append([]*input(nil), a...)
	for _, in := range b {
		found := false
		for _, o := range out {
			found = found || o == in
		}
		if !found {
			out = append(out, in)
		}
	}
	return out
}
