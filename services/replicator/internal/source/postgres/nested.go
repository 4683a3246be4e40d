package postgres

import "github.com/sluicesync/sluice/libs/model"

// Text forms of values that hold values: {a,b} arrays, (a,b) composites,
// [a,b) ranges. Quoted parts are unescaped into scratch memory; what cannot be
// parsed ends the value early, for the server never sends such text.

// part reads one element of text s, which ends at an unquoted delim or at one
// of the closing characters. It returns the element, whether it was quoted,
// and what follows the element.
func part(s []byte, delim byte, closing string) (elem []byte, quoted bool, rest []byte) {
	if len(s) == 0 || s[0] != '"' {
		for i := range s {
			if s[i] == delim || closing != "" && (s[i] == closing[0] || len(closing) > 1 && s[i] == closing[1]) {
				return s[:i], false, s[i:]
			}
			if s[i] == '"' || s[i] == '\\' {
				return partEscaped(s, delim, closing)
			}
		}
		return s, false, nil
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			return partEscaped(s, delim, closing)
		case '"':
			if i+1 < len(s) && (s[i+1] == delim || closing != "" && (s[i+1] == closing[0] || len(closing) > 1 && s[i+1] == closing[1])) {
				return s[1:i], true, s[i+1:]
			}
			return partEscaped(s, delim, closing)
		}
	}
	return s[1:], true, nil
}

// partEscaped is part for elements with escapes, or quotes in the middle.
func partEscaped(s []byte, delim byte, closing string) (elem []byte, quoted bool, rest []byte) {
	inside := false
	elem = make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case ch == '\\' && i+1 < len(s):
			i++
			elem = append(elem, s[i])
			quoted = true
		case ch == '"' && inside && i+1 < len(s) && s[i+1] == '"':
			i++
			elem = append(elem, '"')
		case ch == '"':
			inside = !inside
			quoted = true
		case !inside && (ch == delim || closing != "" && (ch == closing[0] || len(closing) > 1 && ch == closing[1])):
			return elem, quoted, s[i:]
		default:
			elem = append(elem, ch)
		}
	}
	return elem, quoted, nil
}

// appendArray appends an array as JSON.
func (c *converter) appendArray(dst []byte, elem *pgType, b []byte) []byte {
	if len(b) > 0 && b[0] == '[' { // bounds, as in [0:1]={5,6}
		for i := range b {
			if b[i] == '=' {
				b = b[i+1:]
				break
			}
		}
	}
	delim := byte(',')
	if c.options.CustomTypes {
		delim = elem.delim
	}
	if len(b) == 0 || b[0] != '{' {
		return append(dst, '[', ']')
	}
	dst, _ = c.appendDimension(dst, elem, delim, b)
	return dst
}

// appendDimension appends the array that begins with the brace at b[0] and
// returns what follows its closing brace.
func (c *converter) appendDimension(dst []byte, elem *pgType, delim byte, b []byte) ([]byte, []byte) {
	dst = append(dst, '[')
	b = b[1:]
	if len(b) > 0 && b[0] == '}' {
		return append(dst, ']'), b[1:]
	}
	for len(b) > 0 {
		if b[0] == '{' {
			dst, b = c.appendDimension(dst, elem, delim, b)
		} else {
			e, quoted, rest := part(b, delim, "}")
			if !quoted && string(e) == "NULL" {
				dst = append(dst, "null"...)
			} else {
				dst = c.appendJSON(dst, elem, e)
			}
			b = rest
		}
		if len(b) == 0 || b[0] != delim {
			break
		}
		dst = append(dst, ',')
		b = b[1:]
	}
	if len(b) > 0 {
		b = b[1:]
	}
	return append(dst, ']'), b
}

// appendComposite appends a composite as a JSON object. A text with fewer
// fields than the type has (written before ALTER TYPE) makes fewer members.
func (c *converter) appendComposite(dst []byte, t *pgType, b []byte) []byte {
	dst = append(dst, '{')
	if len(b) > 0 && b[0] == '(' {
		b = b[1:]
	}
	for i := range t.fields {
		e, quoted, rest := part(b, ',', ")")
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = model.AppendJSONString(dst, t.fields[i].name)
		dst = append(dst, ':')
		if len(e) == 0 && !quoted {
			dst = append(dst, "null"...)
		} else {
			dst = c.appendJSON(dst, t.fields[i].typ, e)
		}
		if len(rest) == 0 || rest[0] != ',' {
			break
		}
		b = rest[1:]
	}
	return append(dst, '}')
}

// appendRange appends a range that is not empty.
func (c *converter) appendRange(dst []byte, elem *pgType, b []byte) []byte {
	dst, _ = c.appendBounds(dst, elem, b)
	return dst
}

func (c *converter) appendBounds(dst []byte, elem *pgType, b []byte) ([]byte, []byte) {
	if len(b) == 0 {
		return append(dst, "null"...), nil
	}
	lowerExclusive := b[0] == '('
	lower, lowerQuoted, rest := part(b[1:], ',', "")
	if len(rest) > 0 {
		rest = rest[1:]
	}
	upper, upperQuoted, rest := part(rest, ']', ")")
	upperExclusive := len(rest) > 0 && rest[0] == ')'
	bound := func(e []byte, quoted bool) {
		if len(e) == 0 && !quoted {
			dst = append(dst, "null"...)
		} else {
			dst = c.appendJSON(dst, elem, e)
		}
	}
	flag := func(b bool) {
		if b {
			dst = append(dst, '1')
		} else {
			dst = append(dst, '0')
		}
	}
	dst = append(dst, `{"lower":`...)
	bound(lower, lowerQuoted)
	dst = append(dst, `,"upper":`...)
	bound(upper, upperQuoted)
	dst = append(dst, `,"lower_exclusive":`...)
	flag(lowerExclusive)
	dst = append(dst, `,"upper_exclusive":`...)
	flag(upperExclusive)
	if len(rest) > 0 {
		rest = rest[1:]
	}
	return append(dst, '}'), rest
}

// appendMultirange appends {[1,3),[5,7)} as an array of ranges.
func (c *converter) appendMultirange(dst []byte, elem *pgType, b []byte) []byte {
	dst = append(dst, '[')
	if len(b) > 0 {
		b = b[1:]
	}
	for len(b) > 0 && b[0] != '}' {
		dst, b = c.appendBounds(dst, elem, b)
		if len(b) > 0 && b[0] == ',' {
			dst = append(dst, ',')
			b = b[1:]
		}
	}
	return append(dst, ']')
}
