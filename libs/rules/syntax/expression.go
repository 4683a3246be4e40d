package syntax

import "strings"

// The binary operators' levels, loosest first; Postgres' precedence.
const (
	levelOr = iota
	levelAnd
	levelNot
	levelIs
	levelCompare
	levelRange // BETWEEN, IN, LIKE
	levelOther // || && …
	levelAdd
	levelMultiply
	levelPower
	levelZone // AT TIME ZONE
	levelUnary
)

var binaryLevels = map[string]int{
	"=": levelCompare, "!=": levelCompare, "<>": levelCompare, "<": levelCompare, ">": levelCompare, "<=": levelCompare,
	">=": levelCompare, "+": levelAdd, "-": levelAdd, "*": levelMultiply, "/": levelMultiply, "%": levelMultiply,
	"^": levelPower, "||": levelOther, "&&": levelOther, "&": levelOther, "|": levelOther, "#": levelOther,
	"<<": levelOther, ">>": levelOther, "~": levelOther, "~*": levelOther, "!~": levelOther, "!~*": levelOther,
	"@>": levelOther, "<@": levelOther, "@@": levelOther, "?": levelOther, "?|": levelOther, "?&": levelOther,
	"#-": levelOther,
}

func (p *parser) exprs() []Expr {
	es := []Expr{p.expr()}
	for p.op(",") {
		es = append(es, p.expr())
	}
	return es
}

func (p *parser) expr() Expr { return p.binary(levelOr) }

// binary parses an expression whose operators all bind at level or tighter.
func (p *parser) binary(level int) Expr {
	p.enter()
	defer func() { p.depth-- }()
	var x Expr
	if t := p.peek(); level <= levelNot && p.words("not") {
		y := p.binary(levelNot)
		x = &Unary{Loc{t.span.Cover(y.At())}, "NOT", t.span, y}
	} else {
		x = p.unary()
	}
	for {
		y := p.infix(x, level)
		if y == nil {
			return x
		}
		x = y
	}
}

// infix continues x with one operator that binds at level or tighter; nil if
// there is none.
func (p *parser) infix(x Expr, level int) Expr {
	t := p.peek()
	join := func(name string, operator Span, y Expr) Expr {
		return &Binary{Loc{x.At().Cover(y.At())}, name, operator, x, y}
	}
	if t.kind == op {
		l, ok := binaryLevels[t.value]
		if !ok || l < level {
			return nil
		}
		p.pos++
		name := t.value
		if name == "<>" {
			name = "!="
		}
		return join(name, t.span, p.binary(l+1))
	}
	if t.kind != word {
		return nil
	}
	not := t.value == "not"
	key := t.value
	if not {
		key = p.peekAt(1).value
		if p.peekAt(1).kind != word {
			return nil
		}
	}
	switch {
	case !not && key == "or" && level <= levelOr:
		p.pos++
		return join("OR", t.span, p.binary(levelAnd))
	case !not && key == "and" && level <= levelAnd:
		p.pos++
		return join("AND", t.span, p.binary(levelNot))
	case !not && (key == "is" || key == "isnull" || key == "notnull") && level <= levelIs:
		return p.is(x)
	case key == "in" && level <= levelRange:
		p.skipNot(not)
		operator := t.span.Cover(p.last())
		y := p.inOperand()
		return &In{Loc{x.At().Cover(y.At())}, x, not, y, operator}
	case key == "between" && level <= levelRange:
		p.skipNot(not)
		low := p.binary(levelOther)
		p.expectWord("and")
		high := p.binary(levelOther)
		return &Between{Loc{x.At().Cover(high.At())}, x, low, high, not}
	case (key == "like" || key == "ilike" || key == "similar") && level <= levelRange:
		p.skipNot(not)
		name := strings.ToUpper(key)
		if key == "similar" {
			p.expectWord("to")
			name = "SIMILAR TO"
		}
		if not {
			name = "NOT " + name
		}
		operator := t.span.Cover(p.last())
		y := p.binary(levelOther)
		if p.words("escape") {
			p.binary(levelOther)
		}
		return join(name, operator, y)
	case !not && key == "at" && p.peekAt(1).isWord("time") && p.peekAt(2).isWord("zone") && level <= levelZone:
		p.pos += 3
		y := p.binary(levelUnary)
		return &Other{Loc{x.At().Cover(y.At())}, "AT TIME ZONE"}
	}
	return nil
}

// skipNot skips the operator's word and the NOT before it.
func (p *parser) skipNot(not bool) {
	p.pos++
	if not {
		p.pos++
	}
}

func (p *parser) is(x Expr) Expr {
	is := &Is{X: x}
	start := p.peek().span
	switch p.next().value {
	case "isnull":
	case "notnull":
		is.Not = true
	default:
		is.Not = p.words("not")
		switch {
		case p.words("null"):
		case p.words("true"):
			is.What = IsTrue
		case p.words("false"):
			is.What = IsFalse
		case p.words("distinct", "from"):
			name := "IS DISTINCT FROM"
			if is.Not {
				name = "IS NOT DISTINCT FROM"
			}
			operator := start.Cover(p.last())
			y := p.binary(levelCompare)
			return &Binary{Loc{x.At().Cover(y.At())}, name, operator, x, y}
		default:
			p.unexpected()
		}
	}
	is.Loc.Span = x.At().Cover(p.last())
	return is
}

// inOperand parses the right side of IN.
func (p *parser) inOperand() Expr {
	if !p.isOp("(") || p.isSubquery(1) {
		return p.binary(levelOther)
	}
	p.pos++
	elems := p.exprs()
	p.expectOp(")")
	return &List{Loc{elems[0].At().Cover(elems[len(elems)-1].At())}, elems}
}

// isSubquery reports whether the token n places ahead starts a statement.
func (p *parser) isSubquery(n int) bool {
	t := p.peekAt(n)
	return t.isWord("select") || t.isWord("with") || t.isWord("values")
}
