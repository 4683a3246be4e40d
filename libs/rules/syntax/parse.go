package syntax

import (
	"fmt"
	"math"
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
