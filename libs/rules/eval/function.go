package eval

import (
	"encoding/base64"
	"encoding/hex"
	"math"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// Func is a function of some edition.
type Func struct {
	name     string
	min, max int // arguments; max < 0: any number
	strict   bool
	options  Options
	impl     implementation
}

// implementation has one of these set, by how many arguments it reads. A
// missing argument reads as Absent.
type implementation struct {
	one   func(a model.Value) (model.Value, error)
	two   func(a, b model.Value, o Options) (model.Value, error)
	three func(a, b, c model.Value, given int) (model.Value, error)
	any   func(args []model.Value) (model.Value, error)
}

type entry struct {
	min, max int
	legacy   bool // not in edition 3
	implementation
}

var functions = map[string]entry{
	"upper":             {1, 1, false, implementation{one: mapText(value.ToUpper)}},
	"lower":             {1, 1, false, implementation{one: mapText(value.ToLower)}},
	"substring":         {2, 3, false, implementation{three: substring}},
	"hex":               {1, 1, false, implementation{one: hexText}},
	"base64":            {1, 1, false, implementation{one: base64Text}},
	"length":            {1, 1, false, implementation{one: length}},
	"typeof":            {1, 1, false, implementation{one: typeOf}},
	"ifnull":            {2, -1, false, implementation{two: ifNull}},
	"iif":               {3, 3, false, implementation{three: iif}},
	"instr":             {2, 2, false, implementation{two: instr}},
	"json_extract":      {2, -1, false, implementation{two: jsonExtract}},
	"json_array_length": {1, 2, false, implementation{two: func(a, b model.Value, _ Options) (model.Value, error) { return jsonArrayLength(a, b) }}},
	"json_valid":        {1, 1, true, implementation{one: jsonValid}},
	"json_keys":         {1, 1, false, implementation{one: jsonKeys}},
	"unixepoch":         {1, -1, false, implementation{any: unixEpoch}},
	"datetime":          {1, -1, false, implementation{any: dateTime}},
	"uuid_blob":         {1, 1, false, implementation{one: uuidBlob}},
	"st_asgeojson":      {1, 1, false, implementation{one: asGeoJSON}},
	"st_astext":         {1, 1, false, implementation{one: asText}},
	"st_x":              {1, 1, false, implementation{one: stX}},
	"st_y":              {1, 1, false, implementation{one: stY}},
}

// Function returns the function with a name in lower case; false if the edition
// has none.
func Function(name string, o Options) (Func, bool) {
	e, ok := functions[name]
	if !ok || e.legacy && o.Edition >= 3 {
		return Func{}, false
	}
	return Func{name: name, min: e.min, max: e.max, strict: o.Edition >= 3, options: o, impl: e.implementation}, true
}

// Arity says what is wrong with n arguments, "" if nothing. Editions 1 and 2
// take any number: a missing argument is NULL, more are ignored.
func (f Func) Arity(n int) string {
	switch {
	case !f.strict:
		return ""
	case n < f.min:
		return "Expected at least " + plural(f.min)
	case f.max >= 0 && n > f.max:
		return "Expected at most " + plural(f.max)
	}
	return ""
}

func plural(n int) string {
	if n == 1 {
		return "1 argument"
	}
	return strconv.Itoa(n) + " arguments"
}

// Apply returns the call of f with args.
func (f Func) Apply(args []Expr) Expr {
	arg := func(i int) Expr {
		if i < len(args) {
			return args[i]
		}
		return Const(model.Value{})
	}
	switch {
	case f.impl.one != nil:
		return unary(arg(0), f.impl.one)
	case f.impl.two != nil:
		two, o := f.impl.two, f.options
		return binary(func(a, b model.Value) (model.Value, error) { return two(a, b, o) })(arg(0), arg(1))
	case f.impl.three != nil:
		return ternary(arg(0), arg(1), arg(2), len(args), f.impl.three)
	}
	all := f.impl.any
	return func(e *Env) (model.Value, error) {
		values := make([]model.Value, len(args))
		for i, x := range args {
			var err error
			if values[i], err = x(e); err != nil {
				return model.Value{}, err
			}
		}
		return all(values)
	}
}

func ternary(x, y, z Expr, given int, f func(a, b, c model.Value, given int) (model.Value, error)) Expr {
	return func(e *Env) (model.Value, error) {
		a, err := x(e)
		if err != nil {
			return model.Value{}, err
		}
		b, err := y(e)
		if err != nil {
			return model.Value{}, err
		}
		c, err := z(e)
		if err != nil {
			return model.Value{}, err
		}
		return f(a, b, c, given)
	}
}

func mapText(f func(string) string) func(model.Value) (model.Value, error) {
	return func(v model.Value) (model.Value, error) {
		if v.IsNull() {
			return model.NullValue, nil
		}
		return model.TextValue(f(value.Text(v))), nil
	}
}

// bytesOf are the bytes of a blob, or of the text of something else.
func bytesOf(v model.Value) string {
	if v.Kind() == model.Blob {
		return v.Str()
	}
	return value.Bytes(value.Text(v))
}

// hexText is hex(v): "" for NULL.
func hexText(v model.Value) (model.Value, error) {
	return model.TextValue(strings.ToUpper(hex.EncodeToString([]byte(bytesOf(v))))), nil
}

// base64Text is base64(v): "" for NULL.
func base64Text(v model.Value) (model.Value, error) {
	return model.TextValue(base64.StdEncoding.EncodeToString([]byte(bytesOf(v)))), nil
}

func length(v model.Value) (model.Value, error) {
	switch {
	case v.IsNull():
		return model.NullValue, nil
	case v.Kind() == model.Blob:
		return model.IntegerValue(int64(len(v.Str()))), nil
	}
	return model.IntegerValue(int64(value.Length(value.Text(v)))), nil
}

func typeOf(v model.Value) (model.Value, error) {
	if v.IsNull() {
		return model.TextValue("null"), nil
	}
	return model.TextValue(v.Kind().String()), nil
}

func ifNull(a, b model.Value, _ Options) (model.Value, error) {
	if a.IsNull() {
		return b, nil
	}
	return a, nil
}

func iif(cond, then, els model.Value, _ int) (model.Value, error) {
	if value.Truthy(cond) {
		return then, nil
	}
	return els, nil
}

func instr(a, b model.Value, _ Options) (model.Value, error) {
	if a.IsNull() || b.IsNull() {
		return model.NullValue, nil
	}
	if a.Kind() == model.Blob && b.Kind() == model.Blob {
		return model.IntegerValue(int64(strings.Index(a.Str(), b.Str()) + 1)), nil
	}
	return model.IntegerValue(int64(value.Index(value.Text(a), value.Text(b)) + 1)), nil
}

// substring is substring(v, start[, count]), in UTF-16 units from 1. A negative
// start counts from the end; 0 is the place before the first unit; a negative
// count takes what is before start.
func substring(v, start, count model.Value, given int) (model.Value, error) {
	if v.IsNull() || start.IsNull() || given > 2 && count.IsNull() {
		return model.NullValue, nil
	}
	s := value.Text(v)
	from, err := offset(start)
	if err != nil {
		return model.Value{}, err
	}
	if from < 0 {
		from = max(from+int64(value.Length(s)), 0)
	} else {
		from--
	}
	to := int64(math.MaxInt64)
	if given > 2 {
		n, err := offset(count)
		if err != nil {
			return model.Value{}, err
		}
		to = from + n
		if n < 0 {
			from, to = to, from
		}
	}
	return model.TextValue(value.Slice(s, from, to)), nil
}

// offset casts to an integer, limited so that sums do not overflow.
func offset(v model.Value) (int64, error) {
	const limit = 1 << 40
	i, err := value.CastInteger(v)
	if err != nil {
		return 0, err
	}
	if i.Kind() == model.BigInteger {
		if i.Str()[0] == '-' {
			return -limit, nil
		}
		return limit, nil
	}
	return max(-limit, min(limit, i.Int())), nil
}

var errUUID = &Error{Msg: "Not a UUID"}

// uuidBlob is uuid_blob(v): the sixteen bytes of a UUID in its usual form.
func uuidBlob(v model.Value) (model.Value, error) {
	if v.IsNull() {
		return model.NullValue, nil
	}
	s := value.Text(v)
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return model.Value{}, errUUID
	}
	b, err := hex.DecodeString(s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil {
		return model.Value{}, errUUID
	}
	return model.BlobValue(string(b)), nil
}
