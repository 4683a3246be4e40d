package jsontext

import (
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// MaxDepth is how deep a text may nest.
const MaxDepth = 1000

var (
	errSyntax    = &value.Error{Msg: "Invalid JSON"}
	errDuplicate = &value.Error{Msg: "Invalid JSON: an object has a key twice"}
	errDepth     = &value.Error{Msg: "Invalid JSON: it nests too deep"}
)

// Parse reads s, all of it. Beyond JSON it takes numbers such as .5, for the
// reference does. A key that an object has twice is an error.
func Parse(s string) (Node, error) {
	p := parser{s: s}
	p.space()
	n := p.node(0)
	p.space()
	if p.err == nil && p.i < len(s) {
		p.err = errSyntax
	}
	if p.err != nil {
		return Node{}, p.err
	}
	return n, nil
}

type parser struct {
	s   string
	i   int
	err error // the first; the input is then at its end
}

func (p *parser) fail(err error) Node {
	if p.err == nil {
		p.err = err
	}
	p.i = len(p.s)
	return Node{}
}

func (p *parser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *parser) space() {
	for p.i < len(p.s) {
		switch p.s[p.i] {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return
		}
	}
}

func (p *parser) node(depth int) Node {
	if depth > MaxDepth {
		return p.fail(errDepth)
	}
	rest := p.s[p.i:]
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		s, ok := p.str()
		if !ok {
			return p.fail(errSyntax)
		}
		return Node{Kind: String, Value: model.TextValue(s)}
	case c == 'n' && strings.HasPrefix(rest, "null"):
		p.i += 4
		return Node{}
	case c == 't' && strings.HasPrefix(rest, "true"):
		p.i += 4
		return Node{Kind: Bool, Value: model.IntegerValue(1)}
	case c == 'f' && strings.HasPrefix(rest, "false"):
		p.i += 5
		return Node{Kind: Bool, Value: model.IntegerValue(0)}
	}
	return p.number()
}

func (p *parser) array(depth int) Node {
	n := Node{Kind: Array}
	p.i++
	p.space()
	if p.peek() == ']' {
		p.i++
		return n
	}
	for {
		n.Elems = append(n.Elems, p.node(depth+1))
		p.space()
		switch p.peek() {
		case ',':
			p.i++
			p.space()
		case ']':
			p.i++
			return n
		default:
			return p.fail(errSyntax)
		}
	}
}

func (p *parser) object(depth int) Node {
	n := Node{Kind: Object}
	var seen map[string]bool // from the ninth key on
	p.i++
	p.space()
	if p.peek() == '}' {
		p.i++
		return n
	}
	for {
		if p.peek() != '"' {
			return p.fail(errSyntax)
		}
		key, ok := p.str()
		p.space()
		if !ok || p.peek() != ':' {
			return p.fail(errSyntax)
		}
		p.i++
		p.space()
		if n.has(key, seen) {
			return p.fail(errDuplicate)
		}
		n.Keys = append(n.Keys, key)
		n.Elems = append(n.Elems, p.node(depth+1))
		switch {
		case seen != nil:
			seen[key] = true
		case len(n.Keys) == 8:
			seen = make(map[string]bool, 32)
			for _, k := range n.Keys {
				seen[k] = true
			}
		}
		p.space()
		switch p.peek() {
		case ',':
			p.i++
			p.space()
		case '}':
			p.i++
			n.sortIndexKeys()
			return n
		default:
			return p.fail(errSyntax)
		}
	}
}

func (n *Node) has(key string, seen map[string]bool) bool {
	if seen != nil {
		return seen[key]
	}
	for _, k := range n.Keys {
		if k == key {
			return true
		}
	}
	return false
}

func (p *parser) number() Node {
	start := p.i
	digits := func() bool {
		from := p.i
		for c := p.peek(); c >= '0' && c <= '9'; c = p.peek() {
			p.i++
		}
		return p.i > from
	}
	negative := p.peek() == '-'
	if negative {
		p.i++
	}
	whole := true
	switch {
	case p.peek() == '0':
		p.i++
	case !digits():
		if negative || p.peek() != '.' {
			return p.fail(errSyntax)
		}
	}
	if p.peek() == '.' {
		whole = false
		p.i++
		if !digits() {
			return p.fail(errSyntax)
		}
	}
	if p.peek()|0x20 == 'e' {
		whole = false
		p.i++
		if c := p.peek(); c == '+' || c == '-' {
			p.i++
		}
		if !digits() {
			return p.fail(errSyntax)
		}
	}
	text := p.s[start:p.i]
	if whole {
		return Node{Kind: Number, Value: value.Integer(text)}
	}
	f, _ := strconv.ParseFloat(text, 64) // out of range: ±Inf, as the reference has it
	return Node{Kind: Number, Value: model.RealValue(f)}
}

// str reads a string from its opening quote.
func (p *parser) str() (string, bool) {
	p.i++
	start := p.i
	for p.i < len(p.s) {
		switch c := p.s[p.i]; {
		case c == '"':
			s := p.s[start:p.i]
			p.i++
			return s, true
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			return "", false
		}
		p.i++
	}
	return "", false
}

// escaped reads on in a string that has an escape at p.i.
func (p *parser) escaped(start int) (string, bool) {
	b := append(make([]byte, 0, p.i-start+32), p.s[start:p.i]...)
	for p.i < len(p.s) {
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			return string(b), true
		case c < 0x20:
			return "", false
		case c != '\\':
			b = append(b, c)
			continue
		}
		c = p.peek()
		p.i++
		switch c {
		case '"', '\\', '/':
			b = append(b, c)
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			if p.i+4 > len(p.s) {
				return "", false
			}
			u, err := strconv.ParseUint(p.s[p.i:p.i+4], 16, 16)
			if err != nil {
				return "", false
			}
			p.i += 4
			if u >= 0xd800 && u <= 0xdfff {
				b = value.AppendUnit(b, uint16(u))
			} else {
				b = append(b, string(rune(u))...)
			}
		default:
			return "", false
		}
	}
	return "", false
}
