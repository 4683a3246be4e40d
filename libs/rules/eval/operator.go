package eval

import (
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// binary makes an expression of a function of two values.
func binary(f func(a, b model.Value) (model.Value, error)) func(x, y Expr) Expr {
	return func(x, y Expr) Expr {
		return func(e *Env) (model.Value, error) {
			a, err := x(e)
			if err != nil {
				return model.Value{}, err
			}
			b, err := y(e)
			if err != nil {
				return model.Value{}, err
			}
			return f(a, b)
		}
	}
}

// infallible is binary of a function that has no error.
func infallible(f func(a, b model.Value) model.Value) func(x, y Expr) Expr {
	return binary(func(a, b model.Value) (model.Value, error) { return f(a, b), nil })
}

// comparison is a comparison that is NULL if an operand is.
func comparison(holds func(c int) bool) func(x, y Expr) Expr {
	return binary(func(a, b model.Value) (model.Value, error) {
		if a.IsNull() || b.IsNull() {
			return model.NullValue, nil
		}
		c, err := value.Compare(a, b)
		return model.BoolValue(holds(c)), err
	})
}

func equal(a, b model.Value) (model.Value, error) {
	if a.IsNull() || b.IsNull() {
		return model.NullValue, nil
	}
	ok, err := value.Equal(a, b)
	return model.BoolValue(ok), err
}

// operators of all editions. AND and OR compute both sides, so that an error on
// either one shows.
var operators = map[string]func(x, y Expr) Expr{
	"=":  binary(equal),
	"!=": comparison(func(c int) bool { return c != 0 }),
	"<":  comparison(func(c int) bool { return c < 0 }),
	">":  comparison(func(c int) bool { return c > 0 }),
	"<=": comparison(func(c int) bool { return c <= 0 }),
	">=": comparison(func(c int) bool { return c >= 0 }),
	"+":  infallible(value.Add),
	"-":  infallible(value.Subtract),
	"*":  infallible(value.Multiply),
	"/":  infallible(value.Divide),
	"AND": infallible(func(a, b model.Value) model.Value {
		return model.BoolValue(value.Truthy(a) && value.Truthy(b))
	}),
	"OR": infallible(func(a, b model.Value) model.Value {
		return model.BoolValue(value.Truthy(a) || value.Truthy(b))
	}),
	"||": infallible(func(a, b model.Value) model.Value {
		if a.IsNull() || b.IsNull() {
			return model.NullValue
		}
		return model.TextValue(value.Concat(value.Text(a), value.Text(b)))
	}),
}

// operators3 are of edition 3 only. The reference takes these and then fails on
// each row; here they compute what SQLite computes.
var operators3 = map[string]func(x, y Expr) Expr{
	"%":  infallible(value.Remainder),
	"&":  infallible(value.BitAnd),
	"|":  infallible(value.BitOr),
	"<<": infallible(value.ShiftLeft),
	">>": infallible(value.ShiftRight),
	// In edition 3 x != y is NOT (x = y), so it is 1 for NULL.
	"!=": func(x, y Expr) Expr { return Not(binary(equal)(x, y)) },
}

// Binary returns the operator, named as in syntax.Binary; false if the edition
// has none of that name.
func Binary(op string, o Options) (func(x, y Expr) Expr, bool) {
	if o.Edition >= 3 {
		if f, ok := operators3[op]; ok {
			return f, true
		}
	}
	f, ok := operators[op]
	return f, ok
}

// unary makes an expression of a function of one value.
func unary(x Expr, f func(model.Value) (model.Value, error)) Expr {
	return func(e *Env) (model.Value, error) {
		v, err := x(e)
		if err != nil {
			return model.Value{}, err
		}
		return f(v)
	}
}

func test(x Expr, not bool, f func(model.Value) bool) Expr {
	return unary(x, func(v model.Value) (model.Value, error) { return model.BoolValue(f(v) != not), nil })
}

// Not is NOT x, 1 or 0: NULL counts as false.
func Not(x Expr) Expr { return test(x, true, value.Truthy) }

// Plus is +x, which is x.
func Plus(x Expr) Expr { return x }

// IsNull is x IS [NOT] NULL.
func IsNull(x Expr, not bool) Expr { return test(x, not, model.Value.IsNull) }

// IsTrue is x IS [NOT] TRUE: whether x equals 1.
func IsTrue(x Expr, not bool) Expr {
	return test(x, not, func(v model.Value) bool { return isNumber(v, 1) })
}

// IsFalse is x IS [NOT] FALSE: whether x equals 0.
func IsFalse(x Expr, not bool) Expr {
	return test(x, not, func(v model.Value) bool { return isNumber(v, 0) })
}

func isNumber(v model.Value, n int64) bool {
	return v.Kind() == model.Integer && v.Int() == n || v.Kind() == model.Real && v.Float() == float64(n)
}

// In is x [NOT] IN ROW(…) or ARRAY[…]: NULL if nothing matches and a NULL is
// involved; NOT of NULL is 1.
func In(x Expr, list []Expr, not bool) Expr {
	in := func(e *Env) (model.Value, error) {
		v, err := x(e)
		if err != nil {
			return model.Value{}, err
		}
		result := model.BoolValue(false)
		if v.IsNull() && len(list) > 0 {
			result = model.NullValue
		}
		found := false
		for _, item := range list {
			w, err := item(e)
			if err != nil {
				return model.Value{}, err
			}
			r, err := equal(v, w)
			if err != nil {
				return model.Value{}, err
			}
			if r.IsNull() {
				result = model.NullValue
			} else if r.Int() == 1 {
				found = true
			}
		}
		if found {
			result = model.BoolValue(true)
		}
		return result, nil
	}
	if not {
		return Not(in)
	}
	return in
}

var errNotArray = &Error{Msg: "An operand of IN or && is not a JSON array"}

// InJSON is x [NOT] IN array, a JSON array as text: NULL if either is NULL, 1
// or 0 otherwise.
func InJSON(x, array Expr, not bool, o Options) Expr {
	in := binary(func(v, a model.Value) (model.Value, error) {
		if v.IsNull() || a.IsNull() {
			return model.NullValue, nil
		}
		elems, err := arrayElems(a)
		if err != nil {
			return model.Value{}, err
		}
		return contains(elems, v)
	})(x, array)
	if not {
		return Not(in)
	}
	return in
}

// InConstJSON is InJSON for an array that is the same for all rows.
func InConstJSON(x Expr, array model.Value, not bool, o Options) Expr {
	elems, err := arrayElems(array)
	if array.IsNull() || err != nil { // NULL or an error, once x is there
		return InJSON(x, Const(array), not, o)
	}
	in := unary(x, func(v model.Value) (model.Value, error) {
		if v.IsNull() {
			return model.NullValue, nil
		}
		return contains(elems, v)
	})
	if not {
		return Not(in)
	}
	return in
}

// arrayElems returns the elements of a JSON array, as text, but for its nulls.
func arrayElems(v model.Value) ([]model.Value, error) {
	n, err := jsontext.Parse(value.Text(v))
	if err != nil {
		return nil, err
	}
	if n.Kind != jsontext.Array {
		return nil, errNotArray
	}
	elems := make([]model.Value, 0, len(n.Elems))
	for _, e := range n.Elems {
		if e.Kind != jsontext.Null {
			elems = append(elems, e.SQL())
		}
	}
	return elems, nil
}

// contains says whether an element equals v.
func contains(elems []model.Value, v model.Value) (model.Value, error) {
	for _, e := range elems {
		if ok, err := value.Equal(v, e); ok || err != nil {
			return model.BoolValue(ok), err
		}
	}
	return model.BoolValue(false), nil
}

var errOverlapNull = &Error{Msg: "An operand of && is NULL"}

// Overlap is x && y: whether two JSON arrays, as text, have an element in
// common. With NULL it is NULL, and in edition 2 an error.
func Overlap(x, y Expr, o Options) Expr {
	return binary(func(a, b model.Value) (model.Value, error) {
		if a.IsNull() || b.IsNull() {
			if o.Edition < 3 {
				return model.Value{}, errOverlapNull
			}
			return model.NullValue, nil
		}
		left, err := arrayElems(a)
		if err != nil {
			return model.Value{}, err
		}
		right, err := arrayElems(b)
		if err != nil {
			return model.Value{}, err
		}
		for _, v := range left {
			if found, err := contains(right, v); err != nil || found.Int() == 1 {
				return found, err
			}
		}
		return model.BoolValue(false), nil
	})(x, y)
}

// Between is x [NOT] BETWEEN low AND high: NULL if an operand is; NOT of NULL
// is 1.
func Between(x, low, high Expr, not bool) Expr {
	between := func(e *Env) (model.Value, error) {
		v, err := x(e)
		if err != nil {
			return model.Value{}, err
		}
		l, err := low(e)
		if err != nil {
			return model.Value{}, err
		}
		h, err := high(e)
		if err != nil {
			return model.Value{}, err
		}
		if v.IsNull() || l.IsNull() || h.IsNull() {
			return model.NullValue, nil
		}
		c, err := value.Compare(v, l)
		if err != nil {
			return model.Value{}, err
		}
		d, err := value.Compare(v, h)
		return model.BoolValue(c >= 0 && d <= 0), err
	}
	if not {
		return Not(between)
	}
	return between
}

// When is one branch of a Case.
type When struct{ Cond, Then Expr }

// Case is CASE: without operand the first branch whose condition is true, with
// one the first that equals it; els (or NULL if that is nil) if there is none.
func Case(operand Expr, whens []When, els Expr) Expr {
	return func(e *Env) (model.Value, error) {
		var subject model.Value
		var err error
		if operand != nil {
			if subject, err = operand(e); err != nil {
				return model.Value{}, err
			}
		}
		for _, w := range whens {
			v, err := w.Cond(e)
			if err == nil && operand != nil {
				v, err = equal(subject, v)
			}
			if err != nil {
				return model.Value{}, err
			}
			if value.Truthy(v) {
				return w.Then(e)
			}
		}
		if els == nil {
			return model.NullValue, nil
		}
		return els(e)
	}
}

// Type is a type that CAST knows.
type Type uint8

const (
	TypeText Type = iota + 1
	TypeNumeric
	TypeInteger
	TypeReal
	TypeBlob
)

// CastType returns the type with a name in lower case; false if CAST knows
// none.
func CastType(name string) (Type, bool) {
	t, ok := map[string]Type{
		"text": TypeText, "numeric": TypeNumeric, "integer": TypeInteger, "real": TypeReal, "blob": TypeBlob,
	}[name]
	return t, ok
}

// Cast is CAST(x AS t).
func Cast(x Expr, t Type) Expr {
	pure := func(f func(model.Value) model.Value) Expr {
		return unary(x, func(v model.Value) (model.Value, error) { return f(v), nil })
	}
	switch t {
	case TypeText:
		return pure(value.CastText)
	case TypeNumeric:
		return pure(value.CastNumeric)
	case TypeReal:
		return pure(value.CastReal)
	case TypeBlob:
		return pure(value.CastBlob)
	}
	return unary(x, value.CastInteger)
}
