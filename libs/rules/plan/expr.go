package plan

import (
	"strconv"

	"github.com/sluicesync/sluice/libs/model"
)

// Op is the kind of an Expr.
type Op uint8

const (
	Const       Op = iota // Value
	Column                // Name: a column of the row
	Request               // Name: one of the request values
	Step                  // output Index2 of step Index (for json_each: 0 is key, 1 is value)
	EachKey               // column key of the row's Index-th json_each
	EachValue             // column value of it
	TableName             // of the row's table
	TableSchema           //
	TableSuffix           // what the pattern's % stands for
	Call                  // Name of the function
	Binary                // Name of the operator
	Not                   //
	Plus                  //
	IsNull                // Negate
	IsTrue                // Negate
	IsFalse               // Negate
	In                    // first argument in the others; Negate
	InJSON                // first argument in the JSON array that is the second; Negate
	Overlap               // two JSON arrays have a common element
	Between               // Negate
	Case                  // Index 1: the first argument is the operand; Negate: the last is ELSE
	Cast                  // Name of the type
	Member                // Name is -> or ->>, Value the key; Negate: the path rule of parameter('…')
	Fail                  // computes its argument, and fails with the message Name
)

// Request values.
const (
	UserID           = "user_id"           // sub
	Token            = "token"             // the payload as JSON text
	TokenParameters  = "token_parameters"  // its parameters with user_id, as JSON text
	Parameters       = "parameters"        // of the connection, as JSON text
	SubscriptionArgs = "subscription_args" // of the subscription, as JSON text
)

// Expr is an expression over a row or a request.
type Expr struct {
	Op     Op
	Name   string
	Value  model.Value
	Index  int
	Index2 int
	Negate bool
	Args   []*Expr
	// From is the source that a column belongs to while a query is resolved;
	// nil in a finished plan.
	From any
}

// Walk calls f for e and all below it.
func (e *Expr) Walk(f func(*Expr)) {
	f(e)
	for _, a := range e.Args {
		a.Walk(f)
	}
}

// Map returns a copy of e in which f replaced nodes, from the leaves up.
func (e *Expr) Map(f func(*Expr) *Expr) *Expr {
	c := *e
	if len(e.Args) > 0 {
		c.Args = make([]*Expr, len(e.Args))
		for i, a := range e.Args {
			c.Args[i] = a.Map(f)
		}
	}
	return f(&c)
}

// Key is equal for expressions that mean the same.
func (e *Expr) Key() string { return string(e.AppendKey(nil)) }

// AppendKey appends Key.
func (e *Expr) AppendKey(b []byte) []byte {
	if e == nil {
		return append(b, '_')
	}
	b = append(b, '(')
	b = strconv.AppendInt(b, int64(e.Op), 10)
	b = append(b, ' ')
	b = strconv.AppendQuote(b, e.Name)
	b = AppendValueKey(b, e.Value)
	b = strconv.AppendInt(b, int64(e.Index), 10)
	b = append(b, ',')
	b = strconv.AppendInt(b, int64(e.Index2), 10)
	if e.Negate {
		b = append(b, '!')
	}
	for _, a := range e.Args {
		b = a.AppendKey(b)
	}
	return append(b, ')')
}

// AppendValueKey appends an injective text of a value.
func AppendValueKey(b []byte, v model.Value) []byte {
	b = strconv.AppendInt(b, int64(v.Kind()), 10)
	switch v.Kind() {
	case model.Integer:
		b = append(b, ':')
		b = strconv.AppendInt(b, v.Int(), 10)
	case model.Real:
		b = append(b, ':')
		b = strconv.AppendFloat(b, v.Float(), 'g', -1, 64)
	case model.Text, model.Blob, model.BigInteger:
		b = append(b, ':')
		b = strconv.AppendQuote(b, v.Str())
	}
	return append(b, ' ')
}

// Constant makes a literal.
func Constant(v model.Value) *Expr { return &Expr{Op: Const, Value: v} }

// And and Or combine conditions, of which there must be one at least.
func And(es []*Expr) *Expr { return fold("AND", es) }

// Or is true if one of es is.
func Or(es []*Expr) *Expr { return fold("OR", es) }

func fold(op string, es []*Expr) *Expr {
	e := es[0]
	for _, f := range es[1:] {
		e = &Expr{Op: Binary, Name: op, Args: []*Expr{e, f}}
	}
	return e
}
