package plan

import (
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
)

// Binder says where the leaves of an expression are found when it is
// evaluated. A nil function gives Absent.
type Binder struct {
	Options eval.Options
	Leaf    func(e *Expr) eval.Expr // for Column, Request, Step, Each…, Table…
}

// Bind makes the function that computes e.
func (e *Expr) Bind(b Binder) eval.Expr {
	switch e.Op {
	case Const:
		return eval.Const(e.Value)
	case Column, Request, Step, EachKey, EachValue, TableName, TableSchema, TableSuffix:
		return b.Leaf(e)
	}
	args := make([]eval.Expr, len(e.Args))
	for i, a := range e.Args {
		args[i] = a.Bind(b)
	}
	switch e.Op {
	case Call:
		f, _ := eval.Function(e.Name, b.Options)
		return f.Apply(args)
	case Binary:
		f, _ := eval.Binary(e.Name, b.Options)
		return f(args[0], args[1])
	case Not:
		return eval.Not(args[0])
	case Plus:
		return eval.Plus(args[0])
	case IsNull:
		return eval.IsNull(args[0], e.Negate)
	case IsTrue:
		return eval.IsTrue(args[0], e.Negate)
	case IsFalse:
		return eval.IsFalse(args[0], e.Negate)
	case In:
		return eval.In(args[0], args[1:], e.Negate)
	case InJSON:
		if a := e.Args[1]; a.Op == Const {
			return eval.InConstJSON(args[0], a.Value, e.Negate, b.Options)
		}
		return eval.InJSON(args[0], args[1], e.Negate, b.Options)
	case Overlap:
		return eval.Overlap(args[0], args[1], b.Options)
	case Between:
		return eval.Between(args[0], args[1], args[2], e.Negate)
	case Case:
		return bindCase(e, args)
	case Cast:
		t, _ := eval.CastType(e.Name)
		return eval.Cast(args[0], t)
	case Member:
		o := b.Options
		if e.Negate {
			o.FixedJSONExtract = true
		}
		return eval.Member(args[0], e.Name, e.Value, o)
	}
	if e.Op == Fail {
		return fail(args[0], e.Name)
	}
	panic("plan: unknown op")
}

func bindCase(e *Expr, args []eval.Expr) eval.Expr {
	var operand, els eval.Expr
	if e.Index == 1 {
		operand, args = args[0], args[1:]
	}
	if e.Negate {
		els, args = args[len(args)-1], args[:len(args)-1]
	}
	var whens []eval.When
	for i := 0; i+1 < len(args); i += 2 {
		whens = append(whens, eval.When{Cond: args[i], Then: args[i+1]})
	}
	return eval.Case(operand, whens, els)
}

func fail(x eval.Expr, msg string) eval.Expr {
	return func(env *eval.Env) (model.Value, error) {
		if _, err := x(env); err != nil {
			return model.Value{}, err
		}
		return model.Value{}, &eval.Error{Msg: msg}
	}
}
