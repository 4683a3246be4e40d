package value

import (
	"cmp"
	"math"
	"math/big"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

var errBlobs = &Error{"Two blobs cannot be compared"}

// Compare orders two values that are not NULL: numbers before text before
// blobs. Integers and reals compare exactly, text by UTF-16 units. Two blobs
// are an error.
func Compare(a, b model.Value) (int, error) {
	ka, kb := a.Kind(), b.Kind()
	switch {
	case ka == model.Integer && kb == model.Integer:
		return cmp.Compare(a.Int(), b.Int()), nil
	case ka == model.Text && kb == model.Text:
		return compareText(a.Str(), b.Str()), nil
	}
	if ra, rb := rank(ka), rank(kb); ra != rb {
		return ra - rb, nil
	}
	if ka == model.Blob {
		return 0, errBlobs
	}
	return compareNumbers(a, b), nil
}

// Equal is a = b for values that are not NULL.
func Equal(a, b model.Value) (bool, error) {
	ka, kb := a.Kind(), b.Kind()
	if ka == kb {
		switch ka {
		case model.Integer:
			return a.Int() == b.Int(), nil
		case model.Text, model.BigInteger:
			return a.Str() == b.Str(), nil
		}
	}
	c, err := Compare(a, b)
	return c == 0, err
}

func rank(k model.Kind) int {
	switch k {
	case model.Absent, model.Null:
		return 0
	case model.Text:
		return 2
	case model.Blob:
		return 3
	}
	return 1
}

func compareNumbers(a, b model.Value) int {
	switch {
	case a.Kind() == model.Real && b.Kind() == model.Real:
		return cmp.Compare(a.Float(), b.Float())
	case a.Kind() == model.Real:
		return -compareIntegerReal(b, a.Float())
	case b.Kind() == model.Real:
		return compareIntegerReal(a, b.Float())
	}
	return compareIntegers(a, b)
}

// compareIntegers compares where at least one is beyond int64.
func compareIntegers(a, b model.Value) int {
	as, bs := Text(a), Text(b)
	an, bn := as[0] == '-', bs[0] == '-'
	switch {
	case an != bn && an:
		return -1
	case an != bn:
		return 1
	case an:
		as, bs = bs, as
	}
	if len(as) != len(bs) {
		return cmp.Compare(len(as), len(bs))
	}
	return strings.Compare(as, bs)
}

// compareIntegerReal compares exactly: 2^53+1 is not 2^53.0.
func compareIntegerReal(i model.Value, f float64) int {
	switch {
	case math.IsNaN(f):
		return 1 // as cmp.Compare: NaN before all
	case math.IsInf(f, 1):
		return -1
	case math.IsInf(f, -1):
		return 1
	}
	if i.Kind() == model.Integer {
		switch {
		case f >= math.MaxInt64:
			return -1
		case f < math.MinInt64:
			return 1
		}
		if c := cmp.Compare(i.Int(), int64(f)); c != 0 {
			return c
		}
		return cmp.Compare(0, f-math.Trunc(f))
	}
	const maxDigits = 310 // no finite real has more
	if digits := i.Str(); len(digits) > maxDigits+1 {
		if digits[0] == '-' {
			return -1
		}
		return 1
	}
	return new(big.Float).SetInt(toBig(i)).Cmp(big.NewFloat(f))
}
