package jsontext

import (
	"slices"
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
	return p.document()
}

func (p *parser) document() (Node, error) {
	p.space()
	n := p.node(0)
	p.space()
	if p.err == nil && p.i < len(p.s) {
		p.err = errSyntax
	}
	if p.err != nil {
		return Node{}, p.err
	}
	return n, nil
}

// ParseHost reads s as the reference's host language does, which decodes tokens
// and parameters: all numbers are reals, and of a key that an object has twice
// the last value counts, in the first's place.
func ParseHost(s string) (Node, error) {
	p := parser{s: value.FromBytes(s), host: true}
	return p.document()
}

type parser struct {
	s    string
	i    int
	err  error // the first; the input is then at its end
	host bool  // ParseHost
	// keys of the objects that are being read, outermost first
	keys []string
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
	p.elements(func() { n.Elems = append(n.Elems, p.node(depth+1)) })
	return n
}

// elements reads an array; each reads an element.
func (p *parser) elements(each func()) {
	p.i++
	p.space()
	if p.peek() == ']' {
		p.i++
		return
	}
	for {
		each()
		p.space()
		switch p.peek() {
		case ',':
			p.i++
			p.space()
		case ']':
			p.i++
			return
		default:
			p.fail(errSyntax)
			return
		}
	}
}

func (p *parser) object(depth int) Node {
	n := Node{Kind: Object}
	p.members(func(key string) {
		n.Keys = append(n.Keys, key)
		n.Elems = append(n.Elems, p.node(depth+1))
	})
	if p.host {
		n.mergeKeys()
	}
	n.sortIndexKeys()
	return n
}

// members reads an object; each reads the value of a key. The keys so far are
// on p.keys, from the ninth on in a map.
func (p *parser) members(each func(key string)) {
	base := len(p.keys)
	defer func() { p.keys = p.keys[:base] }()
	var seen map[string]bool
	p.i++
	p.space()
	if p.peek() == '}' {
		p.i++
		return
	}
	for {
		if p.peek() != '"' {
			p.fail(errSyntax)
			return
		}
		key, ok := p.str()
		p.space()
		if !ok || p.peek() != ':' {
			p.fail(errSyntax)
			return
		}
		p.i++
		p.space()
		if !p.host && (seen[key] || seen == nil && slices.Contains(p.keys[base:], key)) {
			p.fail(errDuplicate)
			return
		}
		p.keys = append(p.keys, key)
		if seen == nil && len(p.keys)-base == 9 {
			seen = make(map[string]bool, 32)
			for _, k := range p.keys[base:] {
				seen[k] = true
			}
		} else if seen != nil {
			seen[key] = true
		}
		each(key)
		p.space()
		switch p.peek() {
		case ',':
			p.i++
			p.space()
		case '}':
			p.i++
			return
		default:
			p.fail(errSyntax)
			return
		}
	}
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
	if whole && !p.host {
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
