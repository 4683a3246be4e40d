package value

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sluicesync/sluice/libs/model"
)

// Text is in WTF-8: UTF-8, and a lone surrogate as the three bytes ED A0..BF xx.
const (
	surrogateLead = 0xed
	replacement   = "\ufffd"
)

// AppendUnit appends a UTF-16 code unit that is a surrogate as text; a low one
// joins a high one that dst ends with.
func AppendUnit(dst []byte, u uint16) []byte {
	if n := len(dst); u >= 0xdc00 && n >= 3 {
		if high := model.Surrogate(string(dst[n-3:])); high != 0 && high < 0xdc00 {
			return utf8.AppendRune(dst[:n-3], 0x10000+rune(high-0xd800)<<10+rune(u-0xdc00))
		}
	}
	return append(dst, surrogateLead, byte(u>>6)&0x3f|0x80, byte(u)&0x3f|0x80)
}

// Concat joins two texts; surrogate halves that meet become one character.
func Concat(a, b string) string {
	if low := model.Surrogate(b); low >= 0xdc00 && len(a) >= 3 {
		if high := model.Surrogate(a[len(a)-3:]); high != 0 && high < 0xdc00 {
			dst := make([]byte, 0, len(a)+len(b))
			dst = append(dst, a...)
			return string(append(AppendUnit(dst, low), b[3:]...))
		}
	}
	return a + b
}

// Length counts s in UTF-16 code units.
func Length(s string) int {
	n := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 0xf0:
			n += 2
		case c < 0x80 || c >= 0xc0:
			n++
		}
	}
	return n
}

// Slice returns the UTF-16 code units [start, end) of s, limited to s. A
// character cut in two leaves a lone surrogate.
func Slice(s string, start, end int64) string {
	start = max(start, 0)
	if start >= end || start >= int64(len(s)) {
		return ""
	}
	from, i, unit := -1, 0, int64(0)
	cutFirst := uint16(0) // low half at the start
	for i < len(s) && unit < end {
		if unit == start && from < 0 {
			from = i
		}
		size, units := charAt(s, i)
		if units == 2 {
			if unit+1 == start { // starts inside
				from = i + size
				cutFirst = lowHalf(s, i)
			}
			if unit+1 == end { // ends inside
				dst := append([]byte(nil), s[from:i]...)
				if cutFirst != 0 && from <= i {
					dst = append(AppendUnit(nil, cutFirst), dst...)
				}
				return string(AppendUnit(dst, highHalf(s, i)))
			}
		}
		i += size
		unit += units
	}
	if from < 0 {
		return ""
	}
	if cutFirst != 0 {
		return string(append(AppendUnit(nil, cutFirst), s[from:i]...))
	}
	return s[from:i]
}

// charAt returns the bytes and UTF-16 units of the character at i.
func charAt(s string, i int) (size int, units int64) {
	c := s[i]
	switch {
	case c < 0xc0:
		return 1, 1
	case c < 0xe0:
		size, units = 2, 1
	case c < 0xf0:
		size, units = 3, 1
	default:
		size, units = 4, 2
	}
	return min(size, len(s)-i), units
}

func highHalf(s string, i int) uint16 {
	r, _ := utf8.DecodeRuneInString(s[i:])
	return 0xd800 + uint16((r-0x10000)>>10&0x3ff)
}

func lowHalf(s string, i int) uint16 {
	r, _ := utf8.DecodeRuneInString(s[i:])
	return 0xdc00 + uint16((r-0x10000)&0x3ff)
}

// compareText orders texts by UTF-16 code units. That is the order of their
// bytes, except that characters beyond U+FFFF sort as surrogates do.
func compareText(a, b string) int {
	n := min(len(a), len(b))
	i := 0
	for i < n && a[i] == b[i] {
		i++
	}
	if i == n {
		return len(a) - len(b)
	}
	x, y := a[i], b[i]
	if x < 0x80 || y < 0x80 || x >= 0x80 && x < 0xc0 && y < 0xc0 {
		// ASCII, or the same lead byte: byte order is unit order.
		return int(x) - int(y)
	}
	for i > 0 && a[i]&0xc0 == 0x80 && b[i]&0xc0 == 0x80 {
		i--
	}
	if u, v := firstUnit(a, i), firstUnit(b, i); u != v {
		return int(u) - int(v)
	}
	return int(x) - int(y)
}

// firstUnit returns the first UTF-16 unit of the character at i.
func firstUnit(s string, i int) uint16 {
	if u := model.Surrogate(s[i:]); u != 0 {
		return u
	}
	if s[i] >= 0xf0 {
		return highHalf(s, i)
	}
	r, _ := utf8.DecodeRuneInString(s[i:])
	return uint16(r)
}

// Index returns the offset in UTF-16 units of sub in s, or -1. A surrogate half
// is found inside a character.
func Index(s, sub string) int {
	if i := strings.Index(s, sub); i >= 0 {
		return Length(s[:i])
	}
	if !hasSurrogate(sub) {
		return -1
	}
	units, wanted := utf16(s), utf16(sub)
	for from := 0; ; from++ {
		i := strings.Index(units[from:], wanted)
		if i < 0 {
			return -1
		}
		if from += i; from%2 == 0 {
			return from / 2
		}
	}
}

// utf16 is s in UTF-16, two bytes a unit.
func utf16(s string) string {
	b := make([]byte, 0, 2*len(s))
	for i := 0; i < len(s); {
		u := firstUnit(s, i)
		b = append(b, byte(u>>8), byte(u))
		if s[i] >= 0xf0 {
			u = lowHalf(s, i)
			b = append(b, byte(u>>8), byte(u))
		}
		size, _ := charAt(s, i)
		i += size
	}
	return string(b)
}

func hasSurrogate(s string) bool {
	for i := strings.IndexByte(s, surrogateLead); i >= 0; {
		if model.Surrogate(s[i:]) != 0 {
			return true
		}
		next := strings.IndexByte(s[i+1:], surrogateLead)
		if next < 0 {
			return false
		}
		i += 1 + next
	}
	return false
}

// FromBytes decodes bytes as UTF-8, lossily: each maximal part of a character
// that is not valid becomes U+FFFD.
func FromBytes(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		if r, size := utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || size > 1 {
			b.WriteString(s[i : i+size])
			i += size
			continue
		}
		b.WriteString(replacement)
		i += badLength(s[i:])
	}
	return b.String()
}

// badLength is how many bytes of s, which does not start with a character, are
// the beginning of one, at least 1.
func badLength(s string) int {
	need, low, high := 0, byte(0x80), byte(0xbf)
	switch c := s[0]; {
	case c >= 0xc2 && c <= 0xdf:
		need = 1
	case c >= 0xe0 && c <= 0xef:
		need = 2
		if c == 0xe0 {
			low = 0xa0
		} else if c == 0xed {
			high = 0x9f
		}
	case c >= 0xf0 && c <= 0xf4:
		need = 3
		if c == 0xf0 {
			low = 0x90
		} else if c == 0xf4 {
			high = 0x8f
		}
	}
	n := 1
	for n <= need && n < len(s) && s[n] >= low && s[n] <= high {
		low, high = 0x80, 0xbf
		n++
	}
	return n
}

// Bytes returns text as UTF-8: lone surrogates become U+FFFD.
func Bytes(s string) string {
	if !hasSurrogate(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if model.Surrogate(s[i:]) != 0 {
			b.WriteString(replacement)
			i += 3
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

// Text returns v as CAST(v AS text) has it; v is not NULL.
func Text(v model.Value) string {
	switch v.Kind() {
	case model.Text, model.BigInteger:
		return v.Str()
	case model.Integer:
		return strconv.FormatInt(v.Int(), 10)
	case model.Real:
		var b [32]byte
		return string(model.AppendReal(b[:0], v.Float()))
	case model.Blob:
		return FromBytes(v.Str())
	}
	return ""
}
