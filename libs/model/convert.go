package model

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Timestamp converts a date and time of a source, in ISO 8601 with T, perhaps a
// fraction and perhaps Z or an offset. sourceDigits is how many sub-second
// digits the source can have, defaultDigits how many it has unless the options
// say otherwise (spec/03 §9).
func (o ValueOptions) Timestamp(iso string, sourceDigits, defaultDigits int) Value {
	if !o.ISO8601 {
		return TextValue(strings.Replace(iso, "T", " ", 1))
	}
	return TextValue(string(o.appendFraction(nil, iso, sourceDigits, defaultDigits)))
}

// Time converts a time of day of a source, written 12:34:56 with perhaps a
// fraction, in the same way.
func (o ValueOptions) Time(text string, sourceDigits, defaultDigits int) Value {
	if !o.ISO8601 {
		return TextValue(text)
	}
	return TextValue(string(o.appendFraction(nil, text, sourceDigits, defaultDigits)))
}

// appendFraction appends text with its fraction cut or padded.
func (o ValueOptions) appendFraction(dst []byte, text string, sourceDigits, defaultDigits int) []byte {
	clock := max(strings.IndexByte(text, 'T'), 0)
	start := len(text)
	if n := strings.IndexAny(text[clock:], ".Z+-"); n >= 0 {
		start = clock + n
	}
	rest := text[start:]
	fraction := ""
	if strings.HasPrefix(rest, ".") {
		n := 1
		for n < len(rest) && isDigit(rest[n]) {
			n++
		}
		fraction, rest = rest[1:n], rest[n:]
	}
	wanted, digits := defaultDigits, defaultDigits
	if o.MaxDigits > 0 {
		wanted = int(o.MaxDigits) - 1
		digits = min(wanted, sourceDigits)
	}
	dst = append(dst, text[:start]...)
	if wanted > 0 {
		// A source without fractions gets the point alone, as in the reference.
		dst = append(dst, '.')
		dst = append(dst, fraction[:min(digits, len(fraction))]...)
		for n := len(fraction); n < digits; n++ {
			dst = append(dst, '0')
		}
	}
	return append(dst, rest...)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// MaxNesting is how many levels of arrays and objects a source value may have.
const MaxNesting = 11

// ErrNesting is a source value that nests deeper than MaxNesting
// (PSYNC_S1004): its row is an error, replication goes on.
var ErrNesting = errors.New("a value nests too deep")

// NestedBuilder writes an array or object of a source as JSON text. Calls
// follow the structure: BeginArray, values, End; BeginObject, then Key before
// each value, End. The zero NestedBuilder is ready to use, and after Result
// again.
type NestedBuilder struct {
	buf    []byte
	levels []level
	err    error
}

// level is an array or object that is not at its end.
type level struct {
	object bool
	count  int
	// members of an object, to put keys that look like array indexes first:
	// where each starts, and its key as an index or -1.
	members []member
	indexed bool
}

type member struct {
	start int
	index int64
}

// BeginArray begins an array.
func (b *NestedBuilder) BeginArray() { b.begin(false) }

// BeginObject begins an object.
func (b *NestedBuilder) BeginObject() { b.begin(true) }

func (b *NestedBuilder) begin(object bool) {
	b.separate()
	if len(b.levels) == MaxNesting {
		b.err = ErrNesting
	}
	b.levels = append(b.levels, level{object: object})
	if object {
		b.buf = append(b.buf, '{')
	} else {
		b.buf = append(b.buf, '[')
	}
}

// End ends the innermost array or object.
func (b *NestedBuilder) End() {
	top := &b.levels[len(b.levels)-1]
	if !top.object {
		b.buf = append(b.buf, ']')
	} else {
		if top.indexed {
			b.sortMembers(top.members)
		}
		b.buf = append(b.buf, '}')
	}
	b.levels = b.levels[:len(b.levels)-1]
}

// sortMembers puts the keys that are array indexes first, ascending, as the
// reference's host language orders an object.
func (b *NestedBuilder) sortMembers(members []member) {
	if len(members) == 0 {
		return
	}
	first := members[0].start
	text := append([]byte(nil), b.buf[first:]...)
	ends := make(map[int]int, len(members))
	for i, m := range members {
		ends[m.start] = len(b.buf)
		if i+1 < len(members) {
			ends[m.start] = members[i+1].start - 1 // before the comma
		}
	}
	slices.SortStableFunc(members, func(x, y member) int {
		switch {
		case x.index >= 0 && y.index >= 0:
			return int(x.index - y.index)
		case x.index >= 0:
			return -1
		case y.index >= 0:
			return 1
		}
		return 0
	})
	b.buf = b.buf[:first]
	for i, m := range members {
		if i > 0 {
			b.buf = append(b.buf, ',')
		}
		b.buf = append(b.buf, text[m.start-first:ends[m.start]-first]...)
	}
}

// separate writes the comma before a value of an array, and counts it.
func (b *NestedBuilder) separate() {
	if len(b.levels) == 0 {
		return
	}
	top := &b.levels[len(b.levels)-1]
	if top.object {
		return // Key has done it
	}
	if top.count > 0 {
		b.buf = append(b.buf, ',')
	}
	top.count++
}

// Key begins a member of the innermost object.
func (b *NestedBuilder) Key(key string) {
	top := &b.levels[len(b.levels)-1]
	if top.count > 0 {
		b.buf = append(b.buf, ',')
	}
	top.count++
	m := member{start: len(b.buf), index: -1}
	if i, err := strconv.ParseUint(key, 10, 32); err == nil && i < 1<<32-1 && strconv.FormatUint(i, 10) == key {
		m.index = int64(i)
		top.indexed = true
	}
	top.members = append(top.members, m)
	b.buf = AppendJSONString(b.buf, key)
	b.buf = append(b.buf, ':')
}

// Value writes a value (a boolean as BoolValue). A blob or Absent has no JSON
// form: in an array it is null, and in an object its key goes too.
func (b *NestedBuilder) Value(v Value) {
	if v.kind == Absent || v.kind == Blob {
		if n := len(b.levels); n > 0 && b.levels[n-1].object {
			b.dropKey(&b.levels[n-1])
			return
		}
		v = NullValue
	}
	b.separate()
	b.buf = AppendJSON(b.buf, v)
}

// dropKey takes back the last Key.
func (b *NestedBuilder) dropKey(top *level) {
	last := len(top.members) - 1
	b.buf = b.buf[:top.members[last].start]
	top.members = top.members[:last]
	if top.count--; top.count > 0 {
		b.buf = b.buf[:len(b.buf)-1] // the comma
	}
}

// JSON writes a value that the source has as JSON text, verbatim.
func (b *NestedBuilder) JSON(text string) {
	b.separate()
	b.buf = append(b.buf, text...)
}

// Result returns the finished text, or ErrNesting.
func (b *NestedBuilder) Result() (Value, error) {
	v, err := TextValue(string(b.buf)), b.err
	b.buf, b.levels, b.err = b.buf[:0], b.levels[:0], nil
	if err != nil {
		return Value{}, err
	}
	return v, nil
}
