package value

import (
	"strconv"

	"github.com/sluicesync/sluice/libs/model"
)

// AppendJSON appends v as row JSON has it. Blobs and Absent have no JSON form:
// the caller leaves them out, and here they are null.
func AppendJSON(dst []byte, v model.Value) []byte {
	switch v.Kind() {
	case model.Integer:
		return strconv.AppendInt(dst, v.Int(), 10)
	case model.Text:
		return AppendString(dst, v.Str())
	case model.Real:
		return AppendJSONReal(dst, v.Float())
	case model.BigInteger:
		return append(dst, v.Str()...)
	}
	return append(dst, "null"...)
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// zeroByte has the high bit set of the lowest byte of x that is zero (and
// perhaps of later ones); it is 0 exactly if no byte is.
func zeroByte(x uint64) uint64 { return (x - ones) &^ x & highs }

// AppendString appends s as a JSON string, escaped as JSON.stringify does:
// quotes, backslashes, control characters and lone surrogates only.
func AppendString(dst []byte, s string) []byte {
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
			u := surrogateAt(s[i:])
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
