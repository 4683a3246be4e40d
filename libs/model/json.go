package model

import (
	"math"
	"strconv"
)

// AppendJSON appends v as row JSON has it. Blobs and Absent have no JSON form:
// the caller leaves them out, and here they are null.
func AppendJSON(dst []byte, v Value) []byte {
	switch v.Kind() {
	case Integer:
		return strconv.AppendInt(dst, v.Int(), 10)
	case Text:
		return AppendJSONString(dst, v.Str())
	case Real:
		return AppendJSONReal(dst, v.Float())
	case BigInteger:
		return append(dst, v.Str()...)
	}
	return append(dst, "null"...)
}

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

// surrogateLead is the first byte of a lone surrogate in WTF-8, and of U+D000 to
// U+D7FF.
const surrogateLead = 0xed

// Surrogate returns the lone surrogate that the text s starts with, or 0.
func Surrogate(s string) uint16 {
	if len(s) < 3 || s[0] != surrogateLead || s[1]&0xe0 != 0xa0 || s[2]&0xc0 != 0x80 {
		return 0
	}
	return 0xd000 | uint16(s[1]&0x3f)<<6 | uint16(s[2]&0x3f)
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// zeroByte has the high bit set of the lowest byte of x that is zero (and
// perhaps of later ones); it is 0 exactly if no byte is.
func zeroByte(x uint64) uint64 { return (x - ones) &^ x & highs }

// AppendJSONString appends s as a JSON string, escaped as JSON.stringify does:
// quotes, backslashes, control characters and lone surrogates only.
func AppendJSONString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start, i := 0, 0
	for i < len(s) {
		// Eight bytes at a time while none of them may need an escape.
		if i+8 <= len(s) {
			w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
				uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
			control := (w - ones*0x20) &^ w & highs
			if control|zeroByte(w^ones*'"')|zeroByte(w^ones*'\\')|zeroByte(w^ones*surrogateLead) == 0 {
				i += 8
				continue
			}
		}
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c != surrogateLead {
			i++
			continue
		}
		if c == surrogateLead {
			u := Surrogate(s[i:])
			if u == 0 {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			dst = appendEscape(dst, u)
			i += 3
			start = i
			continue
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = appendEscape(dst, uint16(c))
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

func appendEscape(dst []byte, u uint16) []byte {
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[u>>12], hex[u>>8&15], hex[u>>4&15], hex[u&15])
}
