package syntax

import (
	"math"
	"strconv"
	"strings"
)

// unary parses an operand with its signs and what follows it tightly.
func (p *parser) unary() Expr {
	t := p.peek()
	if t.kind != op || t.value != "-" && t.value != "+" {
		return p.postfix(p.primary())
	}
	p.enter()
	defer func() { p.depth-- }()
	p.pos++
	if number := p.peek(); t.value == "-" && (number.kind == digits || number.kind == decimal) {
		return p.postfix(p.number(t.span))
	}
	x := p.unary()
	return &Unary{Loc{t.span.Cover(x.At())}, t.value, t.span, x}
}

// number parses a number; minus is the span of its sign, if any.
func (p *parser) number(minus Span) Expr {
	t := p.next()
	negative := minus != Span{}
	loc := Loc{t.span}
	if negative {
		loc.Span = minus.Cover(t.span)
	}
	if t.kind == digits {
		text := strings.TrimLeft(t.text, "0")
		switch {
		case text == "":
			text = "0"
		case negative:
			text = "-" + text
		}
		return &Integer{loc, text}
	}
	// Out of range gives infinity, as it does in the reference.
	f, err := strconv.ParseFloat(t.text, 64)
	if err != nil && !math.IsInf(f, 0) {
		p.fail(t.span, "Not a number: %s", t.text)
	}
	if negative {
		f = -f
	}
	return &Real{loc, f}
}

// postfix parses ::type, -> key, ->> key and [index]. The arrows bind as tight
// as a cast, since their right side is a literal: 'x' || j ->> 'k' takes the
// member first.
func (p *parser) postfix(x Expr) Expr {
	for {
		t := p.peek()
		switch {
		case p.op("::"):
			typ := p.typeName()
			x = &Cast{Loc{x.At().Cover(typ.At())}, x, typ}
		case p.op("->"), p.op("->>"):
			key := p.memberKey()
			x = &Member{Loc{x.At().Cover(key.At())}, x, t.value, key}
		case p.op("["):
			i := p.expr()
			p.expectOp("]")
			x = &Index{Loc{x.At().Cover(p.last())}, x, i}
		default:
			return x
		}
	}
}

func (p *parser) memberKey() Expr {
	t := p.peek()
	switch {
	case t.kind == text:
		p.pos++
		return &String{Loc{t.span}, t.value}
	case t.kind == digits:
		return p.number(Span{})
	case p.isOp("-") && p.peekAt(1).kind == digits:
		p.pos++
		return p.number(t.span)
	}
	p.unexpected()
	return nil
}

func (p *parser) typeName() Type {
	start := p.peek().span
	name := p.ident(true)
	typ := Type{Name: name.Name, Plain: true}
	more := func(w string) {
		if p.words(w) {
			typ.Name += " " + w
		}
	}
	for p.op(".") {
		typ.Name += "." + p.ident(true).Name
		typ.Plain = false
	}
	more("precision")
	more("varying")
	if p.isOp("(") {
		p.parenthesized(func() { p.exprs() })
		typ.Plain = false
	}
	if typ.Name == "timestamp" || typ.Name == "time" {
		if p.words("with", "time", "zone") {
			typ.Name += " with time zone"
		} else if p.words("without", "time", "zone") {
			typ.Name += " without time zone"
		}
	}
	for p.op("[") {
		if p.peek().kind == digits {
			p.pos++
		}
		p.expectOp("]")
		typ.Plain = false
	}
	typ.Loc.Span = start.Cover(p.last())
	return typ
}

// specialWords are calls without parentheses.
var specialWords = map[string]bool{
	"current_date": true, "current_time": true, "current_timestamp": true, "localtime": true, "localtimestamp": true,
	"current_user": true, "session_user": true, "current_role": true, "current_catalog": true,
}

func (p *parser) primary() Expr {
	t := p.peek()
	loc := Loc{t.span}
	switch t.kind {
	case text:
		p.pos++
		return &String{loc, t.value}
	case digits, decimal:
		return p.number(Span{})
	case param:
		p.pos++
		return &Param{loc, t.text}
	case quoted:
		return p.reference()
	case op:
		if t.value != "(" {
			break
		}
		p.pos++
		if p.isSubquery(0) {
			s := p.statement()
			p.expectOp(")")
			return &Subquery{Loc{s.At()}, s}
		}
		elems := p.exprs()
		p.expectOp(")")
		if len(elems) == 1 {
			return elems[0]
		}
		return &List{Loc{elems[0].At().Cover(elems[len(elems)-1].At())}, elems}
	case word:
		return p.wordPrimary(t, loc)
	}
	p.unexpected()
	return nil
}

// wordPrimary parses an operand that starts with a word.
func (p *parser) wordPrimary(t *token, loc Loc) Expr {
	following := p.peekAt(1)
	opens := following.kind == op && following.value == "("
	switch {
	case t.value == "null":
		p.pos++
		return &Null{loc}
	case t.value == "true", t.value == "false":
		p.pos++
		return &Bool{loc, t.value == "true"}
	case t.value == "case":
		return p.caseExpr()
	case t.value == "cast":
		p.pos++
		var x Expr
		var typ Type
		p.parenthesized(func() {
			x = p.expr()
			p.expectWord("as")
			typ = p.typeName()
		})
		return &Cast{Loc{t.span.Cover(p.last())}, x, typ}
	case t.value == "array":
		return p.array()
	case specialWords[t.value] && !opens:
		p.pos++
		return &Other{loc, strings.ToUpper(t.value)}
	case t.value == "exists" && opens && p.isSubquery(2):
		name := p.ident(true)
		p.pos++
		s := p.statement()
		p.expectOp(")")
		return &Call{Loc: Loc{t.span.Cover(p.last())}, Name: name, Args: []Expr{&Subquery{Loc{s.At()}, s}}}
	case (t.value == "extract" || t.value == "overlay" || t.value == "position") && opens:
		p.pos++
		p.parenthesized(func() { p.skipBalanced(func() bool { return false }) })
		return &Other{Loc{t.span.Cover(p.last())}, strings.ToUpper(t.value)}
	case (t.value == "any" || t.value == "some" || t.value == "all") && opens:
		// x = ANY (…): parses as a call, which no edition knows.
		return p.call([]Ident{p.ident(true)})
	case reserved[t.value] && !((t.value == "left" || t.value == "right") && opens):
		p.unexpected()
	case following.kind == text:
		p.pos++
		typ := Type{loc, t.value, true}
		p.pos++
		x := &String{Loc{following.span}, following.value}
		return &Cast{Loc{t.span.Cover(following.span)}, x, typ}
	}
	return p.reference()
}

// reference parses a column, t.* or a call.
func (p *parser) reference() Expr {
	names := []Ident{p.ident(true)}
	for p.op(".") {
		if at := p.peek().span; p.op("*") {
			if len(names) > 1 {
				p.fail(at, "A star takes one table name")
			}
			return &Star{Loc{names[0].At().Cover(at)}, &names[0]}
		}
		names = append(names, p.ident(true))
	}
	if p.isOp("(") {
		return p.call(names)
	}
	n := len(names) - 1
	c := &Column{Loc: Loc{names[0].At().Cover(names[n].At())}, Name: names[n]}
	switch n {
	case 0:
	case 1:
		c.Table = &names[0]
	case 2:
		c.Schema, c.Table = &names[0], &names[1]
	default:
		p.fail(c.At(), "A column reference has three names at most")
	}
	return c
}

// call parses the arguments of a call of names, and what may follow them.
func (p *parser) call(names []Ident) Expr {
	start := names[0].At()
	nameLoc := Loc{start.Cover(names[len(names)-1].At())}
	c := &Call{Name: names[len(names)-1]}
	switch len(names) {
	case 1:
	case 2:
		c.Namespace = &names[0]
	default:
		p.fail(nameLoc.At(), "A function has two names at most")
	}
	unsupported := func(what string) { c.Unsupported = append(c.Unsupported, Unsupported{nameLoc, what}) }
	p.expectOp("(")
	if p.words("distinct") {
		unsupported("DISTINCT")
	} else {
		p.words("all")
	}
	substring := len(names) == 1 && c.Name.Name == "substring"
	switch t := p.peek(); {
	case p.isOp(")"):
	case p.isSubquery(0):
		s := p.statement()
		c.Args = []Expr{&Subquery{Loc{s.At()}, s}}
	case p.op("*"):
		c.Args = []Expr{&Star{Loc: Loc{t.span}}}
	default:
		c.Args = p.exprs()
		if substring && len(c.Args) == 1 && (p.isWord("from") || p.isWord("for")) {
			s := &Substring{X: c.Args[0]}
			if p.words("from") {
				s.From = p.expr()
			}
			if p.words("for") {
				s.For = p.expr()
			}
			p.expectOp(")")
			s.Loc.Span = start.Cover(p.last())
			return s
		}
		if p.words("order", "by") {
			p.orderBy()
			unsupported("ORDER BY")
		}
	}
	p.expectOp(")")
	c.Loc.Span = start.Cover(p.last())
	skip := func() { p.parenthesized(func() { p.skipBalanced(func() bool { return false }) }) }
	if p.words("within", "group") {
		skip()
		unsupported("WITHIN GROUP")
	}
	if p.isWord("filter") && p.peekAt(1).value == "(" {
		p.pos++
		skip()
		unsupported("FILTER")
	}
	if p.isWord("over") && (p.peekAt(1).value == "(" || p.isName(p.peekAt(1))) {
		p.pos++
		if p.isOp("(") {
			skip()
		} else {
			p.pos++
		}
		unsupported("OVER")
	}
	return c
}

func (p *parser) caseExpr() Expr {
	start := p.next().span
	c := &Case{}
	if !p.isWord("when") {
		c.Operand = p.expr()
	}
	for p.words("when") {
		cond := p.expr()
		p.expectWord("then")
		c.Whens = append(c.Whens, When{cond, p.expr()})
	}
	if len(c.Whens) == 0 {
		p.unexpected()
	}
	if p.words("else") {
		c.Else = p.expr()
	}
	p.expectWord("end")
	c.Loc.Span = start.Cover(p.last())
	return c
}

func (p *parser) array() Expr {
	start := p.next().span
	if p.isOp("(") {
		p.pos++
		p.statement()
		p.expectOp(")")
		return &Other{Loc{start.Cover(p.last())}, "ARRAY(SELECT)"}
	}
	a := &Array{}
	p.expectOp("[")
	if !p.isOp("]") {
		a.Elems = p.exprs()
	}
	p.expectOp("]")
	a.Loc.Span = start.Cover(p.last())
	return a
}
