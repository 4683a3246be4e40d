package postgres

import (
	"encoding/hex"
	"math"
	"strconv"
	"unsafe"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// converter makes SQLite values of the text forms of Postgres values: spec/04
// §2.7, exactly as testdata/pg_types.json (TestPgTypes). Texts live in its
// arena.
type converter struct {
	options model.ValueOptions
	arena   *source.Arena
}

// digits is the number of sub-second digits with ISO 8601 timestamps.
func (c *converter) digits() int {
	if c.options.MaxDigits == 0 {
		return 6
	}
	return min(int(c.options.MaxDigits)-1, 6)
}

// value converts the text b of type t.
func (c *converter) value(t *pgType, b []byte) model.Value {
	switch t.kind {
	case kindInteger:
		return integer(b)
	case kindReal:
		return model.RealValue(float(b))
	case kindBool:
		return model.BoolValue(len(b) == 1 && b[0] == 't')
	case kindBytes:
		return c.bytes(b)
	case kindDate:
		switch {
		case len(b) > 0 && b[0] == 'i':
			return model.TextValue("9999-12-31")
		case len(b) > 0 && b[0] == '-' && string(b) == "-infinity":
			return model.TextValue("0000-01-01")
		}
	case kindTimestamp, kindTimestampTZ:
		dst, ok := c.appendTimestamp(c.arena.Reserve(len(b)+16), b, t.kind == kindTimestampTZ)
		if !ok {
			return model.NullValue
		}
		return model.TextValue(c.arena.Take(dst))
	case kindTime:
		return model.TextValue(c.arena.Take(c.appendTime(c.arena.Reserve(len(b)+8), b)))
	case kindLSN:
		return model.TextValue(c.arena.Take(appendLSN(c.arena.Reserve(17), b)))
	case kindArray:
		if !t.custom || c.options.CustomTypes {
			return model.TextValue(c.arena.Take(c.appendArray(c.arena.Reserve(2*len(b)+16), t.elem, b)))
		}
	case kindDomain:
		if c.options.CustomTypes && t.elem != nil {
			return c.value(t.elem, b)
		}
	case kindComposite:
		if c.options.CustomTypes {
			return model.TextValue(c.arena.Take(c.appendComposite(c.arena.Reserve(4*len(b)+64), t, b)))
		}
	case kindRange:
		if c.options.CustomTypes && t.elem != nil && string(b) != "empty" {
			return model.TextValue(c.arena.Take(c.appendRange(c.arena.Reserve(4*len(b)+64), t.elem, b)))
		}
	case kindMultirange:
		if c.options.CustomTypes && t.elem != nil && t.elem.elem != nil {
			return model.TextValue(c.arena.Take(c.appendMultirange(c.arena.Reserve(4*len(b)+64), t.elem.elem, b)))
		}
	}
	return model.TextValue(c.arena.Text(b))
}

// integer parses what the server prints for an integer: digits that fit int64.
func integer(b []byte) model.Value {
	digits := b
	negative := false
	if len(digits) > 0 && digits[0] == '-' {
		negative = true
		digits = digits[1:]
	}
	if len(digits) == 0 || len(digits) > 19 {
		return model.NullValue
	}
	var n uint64
	for _, d := range digits {
		if d -= '0'; d > 9 {
			return model.NullValue
		}
		n = n*10 + uint64(d)
	}
	if negative {
		return model.IntegerValue(-int64(n))
	}
	return model.IntegerValue(int64(n))
}

func float(b []byte) float64 {
	if len(b) == 0 {
		return math.NaN()
	}
	f, err := strconv.ParseFloat(unsafe.String(&b[0], len(b)), 64)
	if err != nil && !math.IsInf(f, 0) {
		return math.NaN()
	}
	return f
}

// bytes decodes the hex form of bytea.
func (c *converter) bytes(b []byte) model.Value {
	if len(b) < 2 || b[0] != '\\' || b[1] != 'x' {
		return model.BlobValue(c.arena.Text(b))
	}
	b = b[2:]
	dst := c.arena.Reserve(len(b) / 2)[:len(b)/2]
	if _, err := hex.Decode(dst, b); err != nil {
		return model.NullValue
	}
	return model.BlobValue(c.arena.Take(dst))
}

// appendLSN pads both halves of a pg_lsn to eight upper-case digits, so that
// texts compare as positions do.
func appendLSN(dst, b []byte) []byte {
	pad := func(half []byte) {
		for i := len(half); i < 8; i++ {
			dst = append(dst, '0')
		}
		for _, d := range half {
			if 'a' <= d && d <= 'f' {
				d -= 'a' - 'A'
			}
			dst = append(dst, d)
		}
	}
	for i, d := range b {
		if d == '/' {
			pad(b[:i])
			dst = append(dst, '/')
			pad(b[i+1:])
			return dst
		}
	}
	return append(dst, b...)
}

// appendJSON appends a value inside an array, composite or range.
func (c *converter) appendJSON(dst []byte, t *pgType, b []byte) []byte {
	switch t.kind {
	case kindInteger:
		return append(dst, b...)
	case kindReal:
		return model.AppendJSONReal(dst, float(b))
	case kindBool:
		if len(b) == 1 && b[0] == 't' {
			return append(dst, '1')
		}
		return append(dst, '0')
	case kindBytes:
		return append(dst, "null"...) // JSON has no blobs
	case kindJSON:
		return append(dst, b...)
	case kindArray:
		if !t.custom || c.options.CustomTypes {
			return c.appendArray(dst, t.elem, b)
		}
	case kindDomain:
		if c.options.CustomTypes && t.elem != nil {
			return c.appendJSON(dst, t.elem, b)
		}
	case kindComposite:
		if c.options.CustomTypes {
			return c.appendComposite(dst, t, b)
		}
	case kindRange:
		if c.options.CustomTypes && t.elem != nil && string(b) != "empty" {
			return c.appendRange(dst, t.elem, b)
		}
	case kindMultirange:
		if c.options.CustomTypes && t.elem != nil && t.elem.elem != nil {
			return c.appendMultirange(dst, t.elem.elem, b)
		}
	case kindTimestamp, kindTimestampTZ:
		dst = append(dst, '"')
		with, ok := c.appendTimestamp(dst, b, t.kind == kindTimestampTZ)
		if !ok {
			return append(dst[:len(dst)-1], "null"...)
		}
		return append(with, '"')
	case kindTime:
		return append(c.appendTime(append(dst, '"'), b), '"')
	case kindLSN:
		return append(appendLSN(append(dst, '"'), b), '"')
	case kindDate:
		switch string(b) {
		case "infinity":
			return append(dst, `"9999-12-31"`...)
		case "-infinity":
			return append(dst, `"0000-01-01"`...)
		}
	}
	return appendQuoted(dst, b)
}

// appendQuoted appends b as a JSON string.
func appendQuoted(dst, b []byte) []byte {
	if len(b) == 0 {
		return append(dst, '"', '"')
	}
	return model.AppendJSONString(dst, unsafe.String(&b[0], len(b)))
}
