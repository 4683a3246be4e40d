package value

import (
	"math"
	"math/big"
	"math/bits"

	"github.com/sluicesync/sluice/libs/model"
)

// numbers casts both operands to numeric; ok is false if one is NULL.
func numbers(a, b model.Value) (x, y model.Value, ok bool) {
	if a.IsNull() || b.IsNull() {
		return x, y, false
	}
	return CastNumeric(a), CastNumeric(b), true
}

// Add is a + b. Integers do not overflow: they grow.
func Add(a, b model.Value) model.Value {
	x, y, ok := numbers(a, b)
	if !ok {
		return model.NullValue
	}
	if x.Kind() == model.Integer && y.Kind() == model.Integer {
		i, j := x.Int(), y.Int()
		if s := i + j; (s > i) == (j > 0) {
			return model.IntegerValue(s)
		}
	}
	if x.Kind() == model.Real || y.Kind() == model.Real {
		return model.RealValue(toFloat(x) + toFloat(y))
	}
	return bigInteger(new(big.Int).Add(toBig(x), toBig(y)))
}

// Subtract is a - b.
func Subtract(a, b model.Value) model.Value {
	x, y, ok := numbers(a, b)
	if !ok {
		return model.NullValue
	}
	if x.Kind() == model.Integer && y.Kind() == model.Integer {
		i, j := x.Int(), y.Int()
		if d := i - j; (d < i) == (j > 0) {
			return model.IntegerValue(d)
		}
	}
	if x.Kind() == model.Real || y.Kind() == model.Real {
		return model.RealValue(toFloat(x) - toFloat(y))
	}
	return bigInteger(new(big.Int).Sub(toBig(x), toBig(y)))
}

// Multiply is a * b.
func Multiply(a, b model.Value) model.Value {
	x, y, ok := numbers(a, b)
	if !ok {
		return model.NullValue
	}
	if x.Kind() == model.Real || y.Kind() == model.Real {
		return model.RealValue(toFloat(x) * toFloat(y))
	}
	if x.Kind() == model.Integer && y.Kind() == model.Integer {
		i, j := x.Int(), y.Int()
		if high, low := bits.Mul64(magnitude(i), magnitude(j)); high == 0 && low <= math.MaxInt64 {
			return model.IntegerValue(i * j)
		}
	}
	return bigInteger(new(big.Int).Mul(toBig(x), toBig(y)))
}

func magnitude(i int64) uint64 {
	if i < 0 {
		return -uint64(i)
	}
	return uint64(i)
}

// Divide is a / b: integers truncate, and division by zero is NULL.
func Divide(a, b model.Value) model.Value {
	x, y, ok := numbers(a, b)
	if !ok || isZero(y) {
		return model.NullValue
	}
	if x.Kind() == model.Real || y.Kind() == model.Real {
		return model.RealValue(toFloat(x) / toFloat(y))
	}
	if x.Kind() == model.Integer && y.Kind() == model.Integer && (x.Int() != math.MinInt64 || y.Int() != -1) {
		return model.IntegerValue(x.Int() / y.Int())
	}
	return bigInteger(new(big.Int).Quo(toBig(x), toBig(y)))
}

func isZero(v model.Value) bool {
	return v.Kind() == model.Integer && v.Int() == 0 || v.Kind() == model.Real && v.Float() == 0
}

// toInt64 casts to a 64-bit integer as SQLite does for % and the bit operators:
// towards zero, out of range to the nearest.
func toInt64(v model.Value) int64 {
	n := CastNumeric(v)
	switch n.Kind() {
	case model.Integer:
		return n.Int()
	case model.BigInteger:
		if n.Str()[0] == '-' {
			return math.MinInt64
		}
		return math.MaxInt64
	}
	switch f := n.Float(); {
	case math.IsNaN(f):
		return 0
	case f >= math.MaxInt64:
		return math.MaxInt64
	case f <= math.MinInt64:
		return math.MinInt64
	default:
		return int64(f)
	}
}

// Remainder is a % b as SQLite computes it: on integers, real if an operand is.
func Remainder(a, b model.Value) model.Value {
	x, y, ok := numbers(a, b)
	if !ok {
		return model.NullValue
	}
	j := toInt64(y)
	if j == 0 {
		return model.NullValue
	}
	r := int64(0)
	if j != -1 { // MinInt64 % -1 traps on some machines
		r = toInt64(x) % j
	}
	if x.Kind() == model.Real || y.Kind() == model.Real {
		return model.RealValue(float64(r))
	}
	return model.IntegerValue(r)
}

// BitAnd is a & b as SQLite computes it.
func BitAnd(a, b model.Value) model.Value {
	if a.IsNull() || b.IsNull() {
		return model.NullValue
	}
	return model.IntegerValue(toInt64(a) & toInt64(b))
}

// BitOr is a | b as SQLite computes it.
func BitOr(a, b model.Value) model.Value {
	if a.IsNull() || b.IsNull() {
		return model.NullValue
	}
	return model.IntegerValue(toInt64(a) | toInt64(b))
}

// ShiftLeft is a << b as SQLite computes it: a negative b shifts right, keeping
// the sign.
func ShiftLeft(a, b model.Value) model.Value {
	if a.IsNull() || b.IsNull() {
		return model.NullValue
	}
	return model.IntegerValue(shift(toInt64(a), toInt64(b)))
}

// ShiftRight is a >> b.
func ShiftRight(a, b model.Value) model.Value {
	if a.IsNull() || b.IsNull() {
		return model.NullValue
	}
	n := toInt64(b)
	if n == math.MinInt64 {
		n++
	}
	return model.IntegerValue(shift(toInt64(a), -n))
}

func shift(i, left int64) int64 {
	if left >= 0 {
		if left > 63 {
			return 0
		}
		return i << uint(left)
	}
	if left < -63 {
		left = -63
	}
	return i >> uint(-left)
}
