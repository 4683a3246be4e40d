package value

import (
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sluicesync/sluice/libs/model"
)

// CastText is CAST(v AS text).
func CastText(v model.Value) model.Value {
	switch v.Kind() {
	case model.Absent, model.Null:
		return model.NullValue
	case model.Text:
		return v
	}
	return model.TextValue(Text(v))
}

// CastBlob is CAST(v AS blob).
func CastBlob(v model.Value) model.Value {
	switch v.Kind() {
	case model.Absent, model.Null:
		return model.NullValue
	case model.Blob:
		return v
	}
	return model.BlobValue(Bytes(Text(v)))
}

// CastNumeric is CAST(v AS numeric): a number stays, text gives the number that
// it starts with, an integer unless it has a point or an exponent.
func CastNumeric(v model.Value) model.Value {
	switch v.Kind() {
	case model.Absent, model.Null:
		return model.NullValue
	case model.Integer, model.BigInteger, model.Real:
		return v
	}
	number, integer := numberPrefix(Text(v))
	switch {
	case number == "":
		return model.IntegerValue(0)
	case integer:
		return Integer(number)
	}
	f, _ := strconv.ParseFloat(number, 64) // out of range: ±Inf, as wanted
	return model.RealValue(f)
}

// CastReal is CAST(v AS real).
func CastReal(v model.Value) model.Value {
	n := CastNumeric(v)
	if n.IsNull() {
		return n
	}
	return model.RealValue(toFloat(n))
}

// CastInteger is CAST(v AS integer): a real is rounded down (not towards zero,
// as in SQLite), text gives the digits that it starts with.
func CastInteger(v model.Value) (model.Value, error) {
	switch v.Kind() {
	case model.Absent, model.Null:
		return model.NullValue, nil
	case model.Integer, model.BigInteger:
		return v, nil
	case model.Real:
		return floor(v.Float())
	}
	s := trimLeft(Text(v))
	n := signLength(s)
	end := n + digitCount(s[n:])
	if end == n {
		return model.IntegerValue(0), nil
	}
	return Integer(strings.TrimPrefix(s[:end], "+")), nil
}

func floor(f float64) (model.Value, error) {
	f = math.Floor(f)
	if f >= math.MinInt64 && f < math.MaxInt64 {
		return model.IntegerValue(int64(f)), nil
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return model.Value{}, &Error{"A real that is not finite has no integer value"}
	}
	b, _ := big.NewFloat(f).Int(nil)
	return bigInteger(b), nil
}

// Truthy says whether a condition holds: a number other than zero, or text that
// starts with such an integer (also in hexadecimal).
func Truthy(v model.Value) bool {
	switch v.Kind() {
	case model.Integer:
		return v.Int() != 0
	case model.BigInteger:
		return true
	case model.Real:
		return v.Float() != 0 // also NaN
	case model.Text:
		s := trimLeft(v.Str())
		s = s[signLength(s):]
		digits := "0123456789"
		if len(s) >= 2 && s[0] == '0' && s[1]|0x20 == 'x' {
			s, digits = s[2:], "0123456789abcdefABCDEF"
		}
		for i := 0; i < len(s) && strings.IndexByte(digits, s[i]) >= 0; i++ {
			if s[i] != '0' {
				return true
			}
		}
	}
	return false
}

// numberPrefix returns the number that s starts with after white space, and
// whether it is written as an integer; "" if there is none.
func numberPrefix(s string) (number string, integer bool) {
	s = trimLeft(s)
	i := signLength(s)
	sign := i
	whole := digitCount(s[i:])
	i += whole
	integer = true
	if i < len(s) && s[i] == '.' {
		fraction := digitCount(s[i+1:])
		if whole+fraction == 0 {
			return "", true
		}
		i += 1 + fraction
		integer = false
	} else if whole == 0 {
		return "", true
	}
	if i < len(s) && s[i]|0x20 == 'e' {
		j := i + 1
		j += signLength(s[j:])
		if n := digitCount(s[j:]); n > 0 {
			i = j + n
			integer = false
		}
	}
	if s[0] == '+' {
		return s[sign:i], integer
	}
	return s[:i], integer
}

func signLength(s string) int {
	if s != "" && (s[0] == '-' || s[0] == '+') {
		return 1
	}
	return 0
}

func digitCount(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// trimLeft drops what ECMAScript calls white space.
func trimLeft(s string) string {
	for s != "" {
		if s[0] < utf8.RuneSelf {
			if s[0] != ' ' && (s[0] < '\t' || s[0] > '\r') {
				return s
			}
			s = s[1:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == 0xa0, r == 0xfeff, r == 0x1680, r >= 0x2000 && r <= 0x200a, r == 0x2028, r == 0x2029, r == 0x202f,
			r == 0x205f, r == 0x3000:
			s = s[n:]
		default:
			return s
		}
	}
	return s
}
