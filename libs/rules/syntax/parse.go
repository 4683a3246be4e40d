package syntax

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxDepth is how deep expressions and subqueries may nest.
const MaxDepth = 200

// Parse parses one SQL text. The Select is nil exactly if there are errors.
func Parse(sql string) (*Select, []Error) {
	tokens, fault := lex(sql)
	if fault != nil {
		return nil, []Error{*fault}
	}
	p := &parser{tokens: tokens}
	s, fault := p.text()
	if fault != nil {
		return nil, []Error{*fault}
	}
	return s, nil
}

// parser reads tokens by recursive descent. A method that fails panics with
// *Error; text, the only entry, recovers it.
type parser struct {
	tokens []token
	pos    int
	depth  int
}

func (p *parser) text() (s *Select, fault *Error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *Error:
			s, fault = nil, r
		default:
			panic(r)
		}
	}()
	for p.isOp(";") {
		p.pos++
	}
	s = p.statement()
	for p.isOp(";") {
		p.pos++
		if p.peek().kind == end || p.isOp(";") {
			continue
		}
		s.More = append(s.More, p.statement())
	}
	if p.peek().kind != end {
		p.unexpected()
	}
	return s, nil
}

func (p *parser) peek() *token { return &p.tokens[p.pos] }

func (p *parser) peekAt(n int) *token { return &p.tokens[min(p.pos+n, len(p.tokens)-1)] }

// last is the token just read.
func (p *parser) last() Span { return p.tokens[max(p.pos-1, 0)].span }

func (p *parser) next() *token {
	t := &p.tokens[p.pos]
	if t.kind != end {
		p.pos++
	}
	return t
}

func (p *parser) fail(at Span, format string, args ...any) {
	panic(&Error{fmt.Sprintf(format, args...), at})
}

func (p *parser) unexpected() {
	t := p.peek()
	if t.kind == end {
		p.fail(t.span, "Syntax error: unexpected end of the query")
	}
	p.fail(t.span, "Syntax error: unexpected %s", strconv.Quote(t.text))
}

func (t *token) isWord(w string) bool { return t.kind == word && t.value == w }

func (p *parser) isWord(w string) bool { return p.peek().isWord(w) }

func (p *parser) isOp(o string) bool { t := p.peek(); return t.kind == op && t.value == o }

// words consumes ws if they come next, all of them.
func (p *parser) words(ws ...string) bool {
	for i, w := range ws {
		if !p.peekAt(i).isWord(w) {
			return false
		}
	}
	p.pos += len(ws)
	return true
}

func (p *parser) op(o string) bool {
	if !p.isOp(o) {
		return false
	}
	p.pos++
	return true
}

func (p *parser) expectOp(o string) {
	if !p.op(o) {
		p.unexpected()
	}
}

func (p *parser) expectWord(w string) {
	if !p.words(w) {
		p.unexpected()
	}
}

// enter counts nesting; the caller leaves with p.depth--.
func (p *parser) enter() {
	p.depth++
	if p.depth > MaxDepth {
		p.fail(p.peek().span, "The query nests deeper than %d levels", MaxDepth)
	}
}

// otherStatements start a statement that is not a SELECT.
var otherStatements = map[string]bool{
	"with": true, "values": true, "insert": true, "update": true, "delete": true, "create": true, "drop": true,
	"alter": true, "truncate": true, "begin": true, "start": true, "commit": true, "rollback": true, "set": true,
	"show": true, "explain": true, "grant": true, "revoke": true, "call": true, "do": true, "prepare": true,
	"deallocate": true, "comment": true, "copy": true, "merge": true, "refresh": true, "raise": true, "table": true,
	"tablespace": true, "vacuum": true, "analyze": true, "lock": true, "declare": true, "fetch": true, "reindex": true,
}

// statement parses up to a semicolon, a closing parenthesis or the end.
func (p *parser) statement() *Select {
	p.enter()
	defer func() { p.depth-- }()
	t := p.peek()
	if t.kind == word && otherStatements[t.value] {
		return p.otherStatement(t.span, strings.ToUpper(t.value))
	}
	if p.op("(") {
		s := p.statement()
		p.expectOp(")")
		if what, ok := p.setOperation(); ok {
			return p.otherStatement(t.span, what)
		}
		return s
	}
	s := p.selectStatement()
	if what, ok := p.setOperation(); ok {
		return p.otherStatement(s.Loc.Span, what)
	}
	return s
}

func (p *parser) setOperation() (string, bool) {
	for _, w := range [...]string{"union", "intersect", "except"} {
		if p.isWord(w) {
			return strings.ToUpper(w), true
		}
	}
	return "", false
}

// otherStatement skips the rest of a statement that starts at start.
func (p *parser) otherStatement(start Span, what string) *Select {
	p.skipBalanced(func() bool { return p.isOp(";") })
	loc := Loc{start.Cover(p.last())}
	return &Select{Loc: loc, NotSelect: true, Unsupported: []Unsupported{{loc, what}}}
}

// skipBalanced skips tokens until stop, a closing parenthesis of an outer
// level or the end.
func (p *parser) skipBalanced(stop func() bool) {
	for level := 0; p.peek().kind != end; p.pos++ {
		switch {
		case level == 0 && (stop() || p.isOp(")") || p.isOp("]")):
			return
		case p.isOp("("), p.isOp("["):
			level++
		case p.isOp(")"), p.isOp("]"):
			level--
		}
	}
}

func (p *parser) selectStatement() *Select {
	start := p.peek().span
	p.expectWord("select")
	s := &Select{}
	distinct := false
	if p.words("distinct") {
		distinct = true
		if p.words("on") {
			p.parenthesized(func() { p.exprs() })
		}
	} else {
		p.words("all")
	}
	if !p.endOfColumns() {
		s.Columns = append(s.Columns, p.resultColumn())
		for p.op(",") {
			s.Columns = append(s.Columns, p.resultColumn())
		}
	}
	if p.words("from") {
		s.From = p.sources()
	}
	if p.words("where") {
		s.Where = p.expr()
	}
	p.clauses(s)
	s.Loc.Span = start.Cover(p.last())
	if distinct {
		s.Unsupported = append([]Unsupported{{s.Loc, "DISTINCT"}}, s.Unsupported...)
	}
	return s
}

// endOfColumns reports whether a select list is empty.
func (p *parser) endOfColumns() bool {
	t := p.peek()
	return t.kind == end || p.isOp(")") || p.isOp(";") || t.isWord("from") || t.isWord("where")
}

// clauses parses what may follow WHERE; no edition supports any of it.
func (p *parser) clauses(s *Select) {
	unsupported := func(what string, from int) {
		loc := p.last() // the keyword, if nothing follows it
		if p.pos > from {
			loc = p.tokens[from].span.Cover(loc)
		}
		s.Unsupported = append(s.Unsupported, Unsupported{Loc{loc}, what})
	}
	for {
		start := p.pos
		switch {
		case p.words("group", "by"):
			p.exprs()
			unsupported("GROUP BY", start+2)
		case p.words("having"):
			p.expr()
			unsupported("HAVING", start+1)
		case p.words("order", "by"):
			p.orderBy()
			unsupported("ORDER BY", start+2)
		case p.words("limit"):
			if !p.words("all") {
				p.expr()
			}
			unsupported("LIMIT", start+1)
		case p.words("offset"):
			p.expr()
			_ = p.words("rows") || p.words("row")
			unsupported("OFFSET", start+1)
		case p.words("fetch"), p.words("for"), p.words("window"):
			what := strings.ToUpper(p.tokens[start].value)
			p.skipBalanced(func() bool {
				for _, w := range [...]string{"order", "limit", "offset", "union", "intersect", "except"} {
					if p.isWord(w) {
						return true
					}
				}
				return p.isOp(";")
			})
			unsupported(what, start+1)
		default:
			return
		}
	}
}

func (p *parser) orderBy() {
	for {
		p.expr()
		_ = p.words("asc") || p.words("desc")
		if p.words("nulls") && !p.words("first") {
			p.expectWord("last")
		}
		if !p.op(",") {
			return
		}
	}
}

func (p *parser) resultColumn() ResultColumn {
	var c ResultColumn
	if t := p.peek(); p.op("*") {
		c.Expr = &Star{Loc: Loc{t.span}}
	} else {
		c.Expr = p.expr()
	}
	c.Alias = p.alias(true)
	c.Loc = Loc{c.Expr.At()}
	if c.Alias != nil {
		c.Loc.Span = c.Loc.Span.Cover(c.Alias.At())
	}
	return c
}

// alias parses [AS] name. After AS a column's alias may be any word.
func (p *parser) alias(anyWord bool) *Ident {
	if p.words("as") {
		id := p.ident(anyWord)
		return &id
	}
	if p.isName(p.peek()) {
		id := p.ident(false)
		return &id
	}
	return nil
}

func (p *parser) isName(t *token) bool {
	return t.kind == quoted || t.kind == word && !reserved[t.value]
}

func (p *parser) ident(anyWord bool) Ident {
	t := p.peek()
	if !p.isName(t) && !(anyWord && t.kind == word) {
		p.unexpected()
	}
	p.pos++
	return Ident{
		Loc:    Loc{t.span},
		Name:   t.value,
		Quoted: t.kind == quoted,
		Folded: t.kind == word && t.value != t.text,
	}
}

func (p *parser) idents() []Ident {
	ids := []Ident{p.ident(false)}
	for p.op(",") {
		ids = append(ids, p.ident(false))
	}
	return ids
}

func (p *parser) parenthesized(inner func()) {
	p.expectOp("(")
	inner()
	p.expectOp(")")
}

func (p *parser) sources() []Source {
	sources := []Source{p.source()}
	for {
		if p.op(",") {
			s := p.source()
			s.Join = Comma
			sources = append(sources, s)
			continue
		}
		start := p.pos
		natural := p.words("natural")
		kind := Inner
		switch {
		case p.words("inner"):
		case p.words("cross"):
			kind = Cross
		case p.words("left"):
			kind = Left
		case p.words("right"):
			kind = Right
		case p.words("full"):
			kind = Full
		}
		if kind == Left || kind == Right || kind == Full {
			p.words("outer")
		}
		if !p.words("join") {
			if p.pos > start {
				p.unexpected()
			}
			return sources
		}
		joinLoc := p.tokens[start].span.Cover(p.last())
		s := p.source()
		s.Join, s.JoinLoc, s.Natural = kind, joinLoc, natural
		usingStart := p.peek().span
		switch {
		case p.words("on"):
			s.On = p.expr()
		case p.words("using"):
			p.parenthesized(func() { s.Using = p.idents() })
			s.UsingLoc = usingStart.Cover(p.last())
		}
		sources = append(sources, s)
	}
}

func (p *parser) source() Source {
	var s Source
	start := p.peek().span
	if p.words("lateral") {
		s.Unsupported = append(s.Unsupported, Unsupported{Loc{start}, "LATERAL"})
	}
	p.words("only")
	switch {
	case p.op("("):
		s.Subquery = p.statement()
		p.expectOp(")")
	default:
		names := []Ident{p.ident(false)}
		for p.op(".") {
			names = append(names, p.ident(true))
		}
		if p.isOp("(") {
			call, ok := p.call(names).(*Call)
			if !ok {
				p.fail(start.Cover(p.last()), "Not a table-valued function")
			}
			s.Call = call
			break
		}
		n := len(names) - 1
		s.Table = &Table{Loc: Loc{names[0].At().Cover(names[n].At())}, Name: names[n]}
		if n > 0 {
			s.Table.Schema = &names[n-1]
			s.Table.Extra = names[:n-1]
		}
	}
	if at := p.peek().span; p.words("with", "ordinality") {
		s.Unsupported = append(s.Unsupported, Unsupported{Loc{at.Cover(p.last())}, "WITH ORDINALITY"})
	}
	s.Alias = p.alias(false)
	if s.Alias != nil && p.isOp("(") {
		p.parenthesized(func() { s.Columns = p.idents() })
	}
	if at := p.peek().span; p.words("tablesample") {
		p.ident(false)
		p.parenthesized(func() { p.exprs() })
		s.Unsupported = append(s.Unsupported, Unsupported{Loc{at.Cover(p.last())}, "TABLESAMPLE"})
	}
	s.Loc.Span = start.Cover(p.last())
	return s
}
