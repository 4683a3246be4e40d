package resolve

import (
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// leaves resolves what depends on the surroundings of an expression. Each
// method returns nil after reporting an error.
type leaves interface {
	column(c *syntax.Column) *plan.Expr
	// call resolves a call with a namespace (auth.user_id()).
	call(c *syntax.Call) *plan.Expr
}

// ref is put in the From of each leaf: what it belongs to, and where it is.
type ref struct {
	of any
	at syntax.Span
}

// isLeaf tells whether e refers to something; constants do not.
func leafRef(e *plan.Expr) *ref {
	r, _ := e.From.(*ref)
	return r
}

// scalar resolves an expression that is computed from values. It returns nil
// after reporting what is wrong.
func (q *query) scalar(e syntax.Expr, l leaves) *plan.Expr {
	switch e := e.(type) {
	case *syntax.Null:
		return plan.Constant(model.NullValue)
	case *syntax.Bool:
		return plan.Constant(model.BoolValue(e.Value))
	case *syntax.Integer:
		return plan.Constant(integer(e.Digits))
	case *syntax.Real:
		return plan.Constant(model.RealValue(e.Value))
	case *syntax.String:
		return plan.Constant(model.TextValue(e.Value))
	case *syntax.Column:
		if e.Schema != nil && q.language.Edition < 3 {
			q.fatal("unsupported", e.At(), "a column is written column or table.column, without a schema")
			return nil
		}
		return l.column(e)
	case *syntax.Unary:
		return q.unary(e, l)
	case *syntax.Binary:
		return q.binary(e, l)
	case *syntax.Is:
		return q.is(e, l)
	case *syntax.In:
		return q.in(e, l)
	case *syntax.Between:
		return q.between(e, l)
	case *syntax.Case:
		return q.caseExpr(e, l)
	case *syntax.Cast:
		return q.cast(e, l)
	case *syntax.Member:
		return q.member(e, l)
	case *syntax.Call:
		if e.Namespace != nil {
			return l.call(e)
		}
		return q.call(e, l)
	case *syntax.Substring:
		return q.substring(e, l)
	case *syntax.Subquery:
		q.fatal("subquery", e.At(), "a subquery is supported on the right of IN, and in FROM of streams, only")
	case *syntax.Param:
		q.fatal("parameter-use", e.At(), "%s has no meaning here", e.Text)
	case *syntax.Star:
		q.fatal("unsupported", e.At(), "* is not supported here")
	case *syntax.Index:
		q.fatal("unsupported", e.At(), "x[i] is not supported; use ->>")
	case *syntax.Array:
		q.fatal("unsupported", e.At(), "ARRAY[…] is supported on the right of IN in edition 3 only")
	case *syntax.List:
		if len(e.Elems) == 1 {
			return q.scalar(e.Elems[0], l)
		}
		q.fatal("unsupported", e.At(), "a list of values is not supported; in edition 3 use IN ARRAY[…]")
	case *syntax.Other:
		q.fatal("unsupported", e.At(), "%s is not supported", e.What)
	default:
		q.fatal("unsupported", e.At(), "this expression is not supported")
	}
	return nil
}

func integer(digits string) model.Value {
	if i, err := strconv.ParseInt(digits, 10, 64); err == nil {
		return model.IntegerValue(i)
	}
	digits = strings.TrimPrefix(digits, "+")
	return model.BigIntegerValue(digits)
}

// args resolves several expressions, all of them, so that each error shows.
func (q *query) args(es []syntax.Expr, l leaves) []*plan.Expr {
	out := make([]*plan.Expr, len(es))
	ok := true
	for i, e := range es {
		out[i] = q.scalar(e, l)
		ok = ok && out[i] != nil
	}
	if !ok {
		return nil
	}
	return out
}

// node makes an expression over resolved arguments, nil if they are.
func (q *query) node(e plan.Expr, args []*plan.Expr) *plan.Expr {
	if args == nil {
		return nil
	}
	e.Args = args
	return &e
}

func (q *query) unary(e *syntax.Unary, l leaves) *plan.Expr {
	args := q.args([]syntax.Expr{e.X}, l)
	switch {
	case e.Op == "NOT":
		return q.node(plan.Expr{Op: plan.Not}, args)
	case e.Op == "+" && q.language.Edition == 3:
		return q.node(plan.Expr{Op: plan.Plus}, args)
	}
	q.fatal("operator", e.At(), "unary %s is not supported before an expression", e.Op)
	return nil
}

func (q *query) binary(e *syntax.Binary, l leaves) *plan.Expr {
	if e.Op == "&&" {
		q.fatal("operator", e.At(), "&& is supported in WHERE of streams only")
		return nil
	}
	if _, ok := eval.Binary(e.Op, q.language); !ok {
		q.fatal("operator", e.At(), "the operator %s is not supported", e.Op)
		return nil
	}
	return q.node(plan.Expr{Op: plan.Binary, Name: e.Op}, q.args([]syntax.Expr{e.X, e.Y}, l))
}

func (q *query) is(e *syntax.Is, l leaves) *plan.Expr {
	op := plan.IsNull
	if e.What != syntax.IsNull {
		if q.language.Edition < 3 {
			q.fatal("operator", e.At(), "IS %s needs edition 3", e.What)
			return nil
		}
		op = plan.IsTrue
		if e.What == syntax.IsFalse {
			op = plan.IsFalse
		}
	}
	return q.node(plan.Expr{Op: op, Negate: e.Not}, q.args([]syntax.Expr{e.X}, l))
}

// in resolves IN as a value. In edition 3 an array on the right is a
// json_each, which is no value, unless it is the text of an array after NOT IN.
func (q *query) in(e *syntax.In, l leaves) *plan.Expr {
	if list, ok := q.valueList(e.Y); ok {
		return q.node(plan.Expr{Op: plan.In, Negate: e.Not}, q.args(append([]syntax.Expr{e.X}, list...), l))
	}
	switch y := e.Y.(type) {
	case *syntax.Subquery, *syntax.Array:
		return q.scalar(e.Y, l)
	case *syntax.List:
		if len(y.Elems) != 1 {
			return q.scalar(e.Y, l)
		}
	}
	if q.language.Edition == 3 && !e.Not {
		q.fatal("not-a-select", e.Y.At(), "IN is supported with ARRAY[…] and ROW(…) only, outside of WHERE")
		return nil
	}
	return q.node(plan.Expr{Op: plan.InJSON, Negate: e.Not}, q.args([]syntax.Expr{e.X, e.Y}, l))
}

// valueList returns the items of ARRAY[…] and ROW(…), which edition 3 allows
// after IN.
func (q *query) valueList(e syntax.Expr) ([]syntax.Expr, bool) {
	if q.language.Edition < 3 {
		return nil, false
	}
	switch e := e.(type) {
	case *syntax.Array:
		return e.Elems, true
	case *syntax.Call:
		if e.Namespace == nil && e.Name.Name == "row" {
			return e.Args, true
		}
	}
	return nil, false
}

func (q *query) between(e *syntax.Between, l leaves) *plan.Expr {
	if q.language.Edition < 3 {
		q.fatal("unsupported", e.At(), "BETWEEN needs edition 3")
		return nil
	}
	return q.node(plan.Expr{Op: plan.Between, Negate: e.Not}, q.args([]syntax.Expr{e.X, e.Low, e.High}, l))
}

func (q *query) caseExpr(e *syntax.Case, l leaves) *plan.Expr {
	if q.language.Edition < 3 {
		q.fatal("unsupported", e.At(), "CASE needs edition 3")
		return nil
	}
	out := plan.Expr{Op: plan.Case}
	var es []syntax.Expr
	if e.Operand != nil {
		out.Index = 1
		es = append(es, e.Operand)
	}
	for _, w := range e.Whens {
		es = append(es, w.Cond, w.Then)
	}
	if e.Else != nil {
		out.Negate = true
		es = append(es, e.Else)
	}
	return q.node(out, q.args(es, l))
}

func (q *query) cast(e *syntax.Cast, l leaves) *plan.Expr {
	args := q.args([]syntax.Expr{e.X}, l)
	if _, ok := eval.CastType(e.Type.Name); !ok || !e.Type.Plain {
		q.fatal("cast", e.Type.At(), "CAST is supported to text, numeric, integer, real and blob, not to %s", e.Type.Name)
		return nil
	}
	return q.node(plan.Expr{Op: plan.Cast, Name: e.Type.Name}, args)
}

func (q *query) member(e *syntax.Member, l leaves) *plan.Expr {
	var key model.Value
	switch k := e.Key.(type) {
	case *syntax.String:
		key = model.TextValue(k.Value)
	case *syntax.Integer:
		if q.language.Edition < 3 {
			q.fatal("unsupported", e.At(), "%s with a number needs edition 3; write the number as text", e.Op)
			return nil
		}
		key = integer(k.Digits)
	}
	return q.node(plan.Expr{Op: plan.Member, Name: e.Op, Value: key}, q.args([]syntax.Expr{e.X}, l))
}

func (q *query) call(e *syntax.Call, l leaves) *plan.Expr {
	at := e.Name.At()
	if q.language.Edition < 3 {
		at = e.At()
	}
	if len(e.Unsupported) > 0 {
		q.fatal("unsupported-clause", e.Unsupported[0].At(), "%s is not supported in a call", e.Unsupported[0].What)
		return nil
	}
	name := strings.ToLower(e.Name.Name)
	f, ok := eval.Function(name, q.language)
	if !ok {
		q.fatal("unknown-function", at, "unknown function %s", e.Name.Name)
		return nil
	}
	args := q.args(e.Args, l)
	if msg := f.Arity(len(e.Args)); msg != "" {
		q.fatal("arguments", at, "%s: %s", name, msg)
		return nil
	}
	if len(e.Args) == 0 {
		args = []*plan.Expr{}
	}
	return q.folded(q.node(plan.Expr{Op: plan.Call, Name: name}, args), e.At())
}

func (q *query) substring(e *syntax.Substring, l leaves) *plan.Expr {
	if q.language.Edition < 3 {
		q.fatal("unsupported", e.At(), "substring(… from … for …) needs edition 3; write substring(x, start, length)")
		return nil
	}
	from := e.From
	if from == nil {
		from = &syntax.Integer{Loc: e.Loc, Digits: "1"}
	}
	es := []syntax.Expr{e.X, from}
	if e.For != nil {
		es = append(es, e.For)
	}
	return q.node(plan.Expr{Op: plan.Call, Name: "substring"}, q.args(es, l))
}

// folded checks a call of constants: rules and edition 2 refuse it if it fails.
func (q *query) folded(e *plan.Expr, at syntax.Span) *plan.Expr {
	if e == nil || q.language.Edition == 3 {
		return e
	}
	for _, a := range e.Args {
		if a.Op != plan.Const {
			return e
		}
	}
	v, err := e.Bind(plan.Binder{Options: q.language})(&eval.Env{})
	if err != nil {
		q.fatal("evaluation", at, "%s", err.Error())
		return nil
	}
	return plan.Constant(v)
}
