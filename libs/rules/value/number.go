package value

import (
	"math"
	"math/big"
	"strconv"

	"github.com/sluicesync/sluice/libs/model"
)

// AppendReal appends f as ECMAScript's Number::toString writes it: 2, 0.1,
// 1e+21, 1e-7, Infinity, NaN; minus zero is 0.
func AppendReal(dst []byte, f float64) []byte {
	switch {
	case f == 0:
		return append(dst, '0')
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	}
	if a := math.Abs(f); a >= 1e-6 && a < 1e21 {
		return strconv.AppendFloat(dst, f, 'f', -1, 64)
	}
	dst = strconv.AppendFloat(dst, f, 'e', -1, 64)
	// Go pads the exponent to two digits.
	if n := len(dst); dst[n-2] == '0' && (dst[n-3] == '-' || dst[n-3] == '+') {
		dst[n-2] = dst[n-1]
		dst = dst[:n-1]
	}
	return dst
}

// AppendJSONReal appends f as row JSON has it: as AppendReal, with .0 if it
// would look like an integer.
func AppendJSONReal(dst []byte, f float64) []byte {
	dst = AppendReal(dst, f)
	if f == math.Trunc(f) && math.Abs(f) < 1e21 {
		dst = append(dst, '.', '0')
	}
	return dst
}

// Integer returns the INTEGER with these decimal digits (a minus allowed), of
// any size.
func Integer(digits string) model.Value {
	if i, err := strconv.ParseInt(digits, 10, 64); err == nil {
		return model.IntegerValue(i)
	}
	b, ok := new(big.Int).SetString(digits, 10)
	if !ok {
		return model.IntegerValue(0)
	}
	return bigInteger(b)
}

func bigInteger(b *big.Int) model.Value {
	if b.IsInt64() {
		return model.IntegerValue(b.Int64())
	}
	return model.BigIntegerValue(b.String())
}

// toBig returns the value of an Integer or BigInteger.
func toBig(v model.Value) *big.Int {
	if v.Kind() == model.Integer {
		return big.NewInt(v.Int())
	}
	b, ok := new(big.Int).SetString(v.Str(), 10)
	if !ok {
		return new(big.Int)
	}
	return b
}

// toFloat returns a number's nearest real.
func toFloat(v model.Value) float64 {
	switch v.Kind() {
	case model.Integer:
		return float64(v.Int())
	case model.Real:
		return v.Float()
	}
	f, _ := strconv.ParseFloat(v.Str(), 64) // out of range: ±Inf, as wanted
	return f
}
