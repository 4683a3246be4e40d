package config

import (
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Text is a scalar of the document, usually SQL.
type Text struct {
	Value string
	// Node is the place of the whole scalar, with its quotes or indicator.
	Node Span
	// runs say where the bytes of Value came from, in increasing order.
	runs []run
}

// run: from Value offset "to" on, bytes come one to one from YAML offset
// "from" on, until the next run. A fixed run stays at its place (an escape, a
// folded line break).
type run struct {
	to, from int
	fixed    bool
}

// Offset returns the place in the YAML text of the i-th byte of Value.
func (t Text) Offset(i int) int {
	lo, hi := 0, len(t.runs)
	for lo < hi {
		if mid := (lo + hi) / 2; t.runs[mid].to <= i {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return t.Node.Start
	}
	r := t.runs[lo-1]
	if r.fixed {
		return r.from
	}
	return min(r.from+i-r.to, t.Node.End)
}

// Span translates a range of Value.
func (t Text) Span(start, end int) Span {
	s := t.Offset(start)
	if end <= start {
		return Span{s, s}
	}
	// The place after the last byte, not the place of the byte after it: a
	// line break may lie between.
	e := t.Offset(end-1) + 1
	for e < t.Node.End && end < len(t.Value) && !utf8.RuneStart(t.Value[end-1]) && e < s {
		e++
	}
	return Span{s, max(s, e)}
}

// decoder reads a scalar's source again, noting where each byte came from.
type decoder struct {
	src  string
	out  strings.Builder
	runs []run
}

func (d *decoder) copy(from, to int) {
	if from >= to {
		return
	}
	d.runs = append(d.runs, run{d.out.Len(), from, false})
	d.out.WriteString(d.src[from:to])
}

func (d *decoder) insert(s string, at int) {
	if s == "" {
		return
	}
	d.runs = append(d.runs, run{d.out.Len(), at, true})
	d.out.WriteString(s)
}

// newText makes the Text of a scalar that starts at offset start. If the
// second reading disagrees with the parser's (which no known input achieves),
// offsets fall back to the start of the scalar.
func newText(src string, n *yaml.Node, start int) Text {
	d := decoder{src: src}
	start = d.skipProperties(start, n)
	var end int
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		end = d.quoted(start, '"')
	case n.Style&yaml.SingleQuotedStyle != 0:
		end = d.quoted(start, '\'')
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		_, content := d.lineEnd(start)
		end = d.align(content, n.Value)
	default:
		end = d.align(start, n.Value)
	}
	t := Text{Value: n.Value, Node: Span{start, end}, runs: d.runs}
	if d.out.String() != n.Value {
		t.runs = nil
	}
	return t
}

// lineEnd returns the offset of the line break at or after i, and of the
// next line.
func (d *decoder) lineEnd(i int) (end, next int) {
	j := strings.IndexByte(d.src[i:], '\n')
	if j < 0 {
		return len(d.src), len(d.src)
	}
	end, next = i+j, i+j+1
	if end > i && d.src[end-1] == '\r' {
		end--
	}
	return end, next
}

// skipSpace returns the first offset from i that is not a space or tab.
func (d *decoder) skipSpace(i int) int {
	for i < len(d.src) && (d.src[i] == ' ' || d.src[i] == '\t') {
		i++
	}
	return i
}

// trimEnd returns the end of d.src[from:to] without trailing spaces and tabs.
func (d *decoder) trimEnd(from, to int) int {
	for to > from && (d.src[to-1] == ' ' || d.src[to-1] == '\t') {
		to--
	}
	return to
}

// skipProperties returns where the scalar itself begins, after tag and anchor.
func (d *decoder) skipProperties(i int, n *yaml.Node) int {
	for (n.Anchor != "" || n.Style&yaml.TaggedStyle != 0) && i < len(d.src) && (d.src[i] == '!' || d.src[i] == '&') {
		for i < len(d.src) && !white(d.src[i]) {
			i++
		}
		for i < len(d.src) && white(d.src[i]) {
			i++
		}
	}
	return i
}

// fold reads the line breaks at end (the end of a line) as flow scalars do:
// one break is a space, n are n-1 newlines. It returns where the text goes on.
func (d *decoder) fold(end, next int) int {
	breaks := 1
	for {
		i := d.skipSpace(next)
		e, n := d.lineEnd(i)
		if e != i || n == len(d.src) && n == e {
			if breaks == 1 {
				d.insert(" ", end)
			} else {
				d.insert(strings.Repeat("\n", breaks-1), end)
			}
			return i
		}
		breaks++
		next = n
	}
}

func (d *decoder) quoted(start int, quote byte) (end int) {
	i := start + 1
	from := i
	for i < len(d.src) {
		switch c := d.src[i]; {
		case c == quote && quote == '\'' && i+1 < len(d.src) && d.src[i+1] == '\'':
			d.copy(from, i+1)
			i += 2
			from = i
		case c == quote:
			d.copy(from, i)
			return i + 1
		case c == '\\' && quote == '"':
			d.copy(from, i)
			i = d.escape(i)
			from = i
		case c == '\n' || c == '\r' && i+1 < len(d.src) && d.src[i+1] == '\n':
			e, next := d.lineEnd(i)
			d.copy(from, d.trimEnd(from, e))
			i = d.fold(e, next)
			from = i
		default:
			i++
		}
	}
	d.copy(from, i)
	return i
}

var escapes = map[byte]string{
	'0': "\x00", 'a': "\a", 'b': "\b", 't': "\t", '\t': "\t", 'n': "\n", 'v': "\v", 'f': "\f", 'r': "\r",
	'e': "\x1b", ' ': " ", '"': `"`, '/': "/", '\\': `\`, 'N': "\u0085", '_': "\u00a0", 'L': "\u2028", 'P': "\u2029",
}

// escape reads the escape at i (a backslash) and returns where the text goes on.
func (d *decoder) escape(i int) int {
	if i+1 >= len(d.src) {
		return i + 1
	}
	c := d.src[i+1]
	if s, ok := escapes[c]; ok {
		d.insert(s, i)
		return i + 2
	}
	if digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]; digits > 0 && i+2+digits <= len(d.src) {
		var r rune
		for _, h := range []byte(d.src[i+2 : i+2+digits]) {
			r = r<<4 | rune(strings.IndexByte("0123456789abcdef", h|0x20)&15)
			if h >= '0' && h <= '9' {
				r = r&^15 | rune(h-'0')
			}
		}
		d.insert(string(r), i)
		return i + 2 + digits
	}
	if e, next := d.lineEnd(i + 1); e == i+1 { // an escaped line break joins lines
		i = d.skipSpace(next)
		for e, next = d.lineEnd(i); e == i && next > e; e, next = d.lineEnd(i) {
			d.insert("\n", i)
			i = d.skipSpace(next)
		}
		return i
	}
	return i + 2
}

// align reads a plain or block scalar, whose rules of indentation, folding and
// ending only the parser knows, beside its value: words are equal in both, and
// so the white space between them corresponds, whatever was made of it.
func (d *decoder) align(i int, value string) (end int) {
	for k := 0; k < len(value); {
		if white(value[k]) || i < len(d.src) && white(d.src[i]) {
			vs, ss := k, i
			for k < len(value) && white(value[k]) {
				k++
			}
			for i < len(d.src) && white(d.src[i]) {
				i++
			}
			if k == len(value) {
				i = min(i, ss+max(1, k-vs))
			}
			if d.src[ss:i] == value[vs:k] {
				d.copy(ss, i)
			} else {
				d.insert(value[vs:k], ss)
			}
			continue
		}
		from := i
		for k < len(value) && i < len(d.src) && d.src[i] == value[k] && !white(value[k]) {
			i++
			k++
		}
		if i == from {
			return i
		}
		d.copy(from, i)
	}
	return i
}

func white(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
