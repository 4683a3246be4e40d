package value

import (
	"math/big"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// Integer returns the INTEGER with these decimal digits (a minus allowed), of
// any size. It is linear in their number.
func Integer(digits string) model.Value {
	if i, err := strconv.ParseInt(digits, 10, 64); err == nil {
		return model.IntegerValue(i)
	}
	magnitude, negative := strings.CutPrefix(digits, "-")
	trimmed := strings.TrimLeft(magnitude, "0")
	if len(trimmed) < len(magnitude) {
		if digits = trimmed; negative {
			digits = "-" + trimmed
		}
		if i, err := strconv.ParseInt(digits, 10, 64); err == nil {
			return model.IntegerValue(i)
		}
	}
	return model.BigIntegerValue(digits)
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
