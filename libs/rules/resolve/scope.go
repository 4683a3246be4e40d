package resolve

import (
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// source is where values come from while a query of edition 3 is resolved: a
// table, a json_each, or (requestSource) the request.
type source struct {
	name  string // by which columns refer to it
	at    syntax.Span
	table *table
	// A json_each: its argument, and the table of whose rows it is a part; nil
	// if it is of the request.
	each *plan.Expr
	host *source
}

// maxSources bounds the sources of a query, those of its subqueries included.
const maxSources = 200

func (s *scope) newSource(src source) *source {
	*s.sources++
	return &src
}

// requestSource stands for the request.
var requestSource = &source{name: "the request"}

// base is the source whose rows e's source belongs to.
func (s *source) base() *source {
	if s.host != nil {
		return s.host
	}
	return s
}

// describe names a source in messages.
func (s *source) describe() string {
	if s == requestSource {
		return s.name
	}
	return "the row of " + s.name
}

// sourceOf returns the source of a leaf, nil for other expressions.
func sourceOf(e *plan.Expr) *source {
	r := leafRef(e)
	switch {
	case r == nil:
		return nil
	case e.Op == plan.Request:
		return requestSource
	}
	return r.of.(*source).base()
}

// baseOf returns the only source that e depends on, nil for constants.
func baseOf(e *plan.Expr) (base *source) {
	e.Walk(func(n *plan.Expr) {
		if s := sourceOf(n); s != nil {
			base = s
		}
	})
	return base
}

// column is a column of a subquery: a name for an expression.
type column struct {
	name string
	expr *plan.Expr
}

// item is an entry of a FROM: a source, or a subquery with its columns.
type item struct {
	name    string
	source  *source
	columns []column // of a subquery
	derived bool
}

// scope is what names mean in one SELECT.
type scope struct {
	*stream
	parent *scope
	items  []item
}

// selection is a resolved SELECT.
type selection struct {
	scope   *scope
	columns []column
	where   *cond
	sources []*source // of FROM, with those of subqueries in it
}

// from resolves the FROM of a SELECT.
func (s *scope) from(sel *syntax.Select) (sources []*source, where []*cond) {
	for i := range sel.From {
		if *s.sources > maxSources {
			break
		}
		f := &sel.From[i]
		for _, u := range f.Unsupported {
			s.fatal("unsupported-clause", u.At(), "%s is not supported", u.What)
		}
		if f.Join > syntax.Inner && f.Join != syntax.Cross {
			s.fatal("unsupported-clause", f.JoinLoc, "%s is not supported; use INNER JOIN", f.Join)
		}
		if len(f.Using) > 0 || f.Natural {
			at := f.UsingLoc
			if f.Natural {
				at = f.JoinLoc
			}
			s.fatal("unsupported-clause", at, "USING and NATURAL are not supported; use ON")
		}
		it, more, cond := s.item(f)
		for _, other := range s.items {
			if it.name != "" && other.name == it.name {
				s.fatal("duplicate-name", f.At(), "there are two sources of the name %s; use AS", it.name)
			}
		}
		s.items = append(s.items, it)
		sources = append(sources, more...)
		if cond != nil {
			where = append(where, cond)
		}
	}
	for i := range sel.From {
		if on := sel.From[i].On; on != nil {
			where = append(where, s.condition(on, false))
		}
	}
	return sources, where
}

func (s *scope) item(f *syntax.Source) (item, []*source, *cond) {
	switch {
	case f.Table != nil:
		if c := s.cte(f.Table); c != nil {
			return s.subqueryItem(f, c, f.Table.Name.Name)
		}
		src := s.newSource(source{at: f.At(), table: s.newTable(f)})
		src.name = src.table.name
		return item{name: src.name, source: src}, []*source{src}, nil
	case f.Subquery != nil:
		return s.subqueryItem(f, f.Subquery, "")
	}
	return s.eachItem(f)
}

// subqueryItem resolves a subquery in FROM, or the use of a named query.
func (s *scope) subqueryItem(f *syntax.Source, sel *syntax.Select, name string) (item, []*source, *cond) {
	if f.Alias != nil {
		name = f.Alias.Name
	}
	it := item{name: name, derived: true}
	q := s
	if f.Table != nil {
		q = s.inCTE(f.Table.Name.Name)
	}
	sub := q.subselect(sel)
	if sub == nil {
		s.bad = true
		return it, nil, nil
	}
	it.columns = append(it.columns, sub.columns...)
	if len(f.Columns) > 0 && len(f.Columns) != len(it.columns) {
		s.fatal("subquery", f.At(), "%d names for %d columns", len(f.Columns), len(it.columns))
		return it, sub.sources, sub.where
	}
	for i := range f.Columns {
		it.columns[i].name = f.Columns[i].Name
	}
	return it, sub.sources, sub.where
}

// eachItem resolves json_each(…) in FROM.
func (s *scope) eachItem(f *syntax.Source) (item, []*source, *cond) {
	s.noColumnNames(f)
	call := f.Call
	src := s.newSource(source{at: f.At(), name: call.Name.Name})
	if f.Alias != nil {
		src.name = f.Alias.Name
	}
	it := item{name: src.name, source: src}
	if call.Namespace != nil || call.Name.Name != "json_each" {
		s.fatal("unknown-function", call.At(), "unknown table-valued function %s; there is json_each", call.Name.Name)
		src.each = plan.Constant(model.NullValue)
		return it, []*source{src}, nil
	}
	s.setEach(src, s.eachArgument(call))
	return it, []*source{src}, nil
}

func (s *scope) eachArgument(call *syntax.Call) *plan.Expr {
	switch len(call.Args) {
	case 1:
		if e := s.value(call.Args[0]); e != nil {
			return e
		}
		return plan.Constant(model.NullValue)
	case 2:
		// The reference takes a path and then fails for each request.
		if e := s.value(call.Args[0]); e != nil {
			return &plan.Expr{Op: plan.Fail, Name: "json_each with a path is not supported", Args: []*plan.Expr{e}}
		}
		return plan.Constant(model.NullValue)
	}
	s.fatal("arguments", call.At(), "json_each needs one argument")
	return plan.Constant(model.NullValue)
}

// setEach makes src a json_each over e.
func (s *scope) setEach(src *source, e *plan.Expr) {
	src.each = e
	if b := baseOf(e); b != nil && b != requestSource {
		src.host = b
	}
}

// find returns the item of a name, here or in the queries around.
func (s *scope) find(name string) *item {
	for sc := s; sc != nil; sc = sc.parent {
		for i := range sc.items {
			if sc.items[i].name == name {
				return &sc.items[i]
			}
		}
	}
	return nil
}

// column implements leaves.
func (s *scope) column(c *syntax.Column) *plan.Expr {
	if c.Table != nil {
		it := s.find(c.Table.Name)
		if it == nil {
			s.fatal("undefined-reference", c.At(), "%s is not defined here", c.Table.Name)
			return nil
		}
		return s.columnOf(it, c)
	}
	switch len(s.items) {
	case 1:
		return s.columnOf(&s.items[0], c)
	case 0:
		s.fatal("undefined-reference", c.At(), "%s is not defined: there is no FROM", c.Name.Name)
	default:
		s.fatal("ambiguous", c.At(), "with several sources in FROM, write which one %s is of: source.%s", c.Name.Name, c.Name.Name)
	}
	return nil
}

func (s *scope) columnOf(it *item, c *syntax.Column) *plan.Expr {
	name := c.Name.Name
	at := &ref{of: it.source, at: c.At()}
	switch {
	case it.derived:
		var names []string
		for _, col := range it.columns {
			if col.name == name {
				return moved(col.expr, c.At())
			}
			names = append(names, col.name)
		}
		s.fatal("undefined-reference", c.At(), "%s has no column %s%s", it.name, name, suggestion(name, names))
		return nil
	case it.source.table != nil:
		it.source.table.query = s.query
		it.source.table.has(c)
		return &plan.Expr{Op: plan.Column, Name: name, From: at}
	case name == "value":
		return &plan.Expr{Op: plan.EachValue, From: at}
	case name == "key":
		return &plan.Expr{Op: plan.EachKey, From: at}
	}
	s.fatal("undefined-reference", c.At(), "json_each has the columns key and value only")
	return nil
}

// moved returns e with its leaves at another place.
func moved(e *plan.Expr, at syntax.Span) *plan.Expr {
	return e.Map(func(n *plan.Expr) *plan.Expr {
		if r := leafRef(n); r != nil {
			n.From = &ref{of: r.of, at: at}
		}
		return n
	})
}

// call implements leaves: functions of the request, and of a source's table.
func (s *scope) call(c *syntax.Call) *plan.Expr {
	it := s.find(c.Namespace.Name)
	if it == nil || it.source == nil || it.source.table == nil {
		return s.streamFunction(c)
	}
	at := &ref{of: it.source, at: c.At()}
	if len(c.Args) > 0 {
		s.fatal("arguments", c.At(), "%s.%s has no arguments", c.Namespace.Name, c.Name.Name)
		return nil
	}
	switch c.Name.Name {
	case "table_name":
		return &plan.Expr{Op: plan.TableName, From: at}
	case "schema":
		return &plan.Expr{Op: plan.TableSchema, From: at}
	case "table_suffix":
		if !it.source.table.wildcard() {
			s.warn("table-suffix", c.At(), "%s is no wildcard table: its suffix is empty", it.name)
		}
		return &plan.Expr{Op: plan.TableSuffix, From: at}
	}
	s.fatal("unknown-function", c.Name.At(), "unknown function %s.%s%s", c.Namespace.Name, c.Name.Name,
		suggestion(c.Name.Name, []string{"table_name", "schema", "table_suffix"}))
	return nil
}

// value resolves an expression that depends on one source at most.
func (s *scope) value(e syntax.Expr) *plan.Expr {
	x := s.scalar(e, s)
	if x == nil || !s.oneSource(x) {
		return nil
	}
	return x
}

// oneSource reports an expression that combines values of several sources.
func (s *scope) oneSource(e *plan.Expr) bool {
	var first *source
	ok := true
	e.Walk(func(n *plan.Expr) {
		src := sourceOf(n)
		switch {
		case src == nil || src == first || !ok:
		case first == nil:
			first = src
		default:
			ok = false
			s.fatal("operator", leafRef(n).at, "this expression depends on %s already; what depends on %s can only be compared with it by =",
				first.describe(), src.describe())
		}
	})
	return ok
}

// subselect resolves a subquery.
func (s *scope) subselect(sel *syntax.Select) *selection {
	if sel.NotSelect {
		s.fatal("not-a-select", sel.At(), "only SELECT is supported")
		return nil
	}
	s.unsupported(sel)
	before := s.bad
	s.bad = false
	defer func() { s.bad = s.bad || before }()
	sub := &scope{stream: s.stream, parent: s}
	out := &selection{scope: sub}
	var where []*cond
	out.sources, where = sub.from(sel)
	for _, c := range sel.Columns {
		if _, ok := c.Expr.(*syntax.Star); ok {
			s.fatal("subquery", c.At(), "* is not supported in a subquery: name the columns")
			continue
		}
		name, ok := outputName(c)
		if !ok {
			name = s.text.Value[c.Expr.At().Start:c.Expr.At().End]
		}
		for _, other := range out.columns {
			if other.name == name {
				s.fatal("subquery", c.At(), "there are two columns of the name %s", name)
			}
		}
		if e := sub.value(c.Expr); e != nil {
			out.columns = append(out.columns, column{name, e})
		}
	}
	if sel.Where != nil {
		where = append(where, sub.condition(sel.Where, false))
	}
	out.where = allOf(where, out.sources)
	if s.bad {
		return nil
	}
	return out
}

// stream is a stream of edition 3 being resolved; its query is the text that
// findings are about at the moment.
type stream struct {
	*query
	config *config.Stream
	ctes   map[string]*cte
	inside string // name of the CTE being resolved
	warned map[syntax.Span]bool
	// sources counts those of the query, with the CTEs that it uses.
	sources *int
}

// fatal reports nothing that follows from too many sources.
func (s *stream) fatal(class string, at syntax.Span, format string, args ...any) {
	if s.bad = true; *s.sources <= maxSources {
		s.query.fatal(class, at, format, args...)
	}
}

// tooMany reports that a query has too many sources, once it is resolved.
func (s *stream) tooMany(sel *syntax.Select) {
	if *s.sources > maxSources {
		s.query.fatal("too-many", sel.At(), "the query has more than %d tables and arrays", maxSources)
	}
}

// cte is a named query.
type cte struct {
	name  config.Name
	query *query
	sel   *syntax.Select // nil if it is wrong
	used  bool
	wrong bool // parsed, but not resolved
}

// cte returns the named query that a table name means, nil if it means a
// table.
func (s *scope) cte(t *syntax.Table) *syntax.Select {
	if t.Schema != nil {
		return nil
	}
	return s.named(t.Name.Name, t.At())
}

func (s *scope) named(name string, at syntax.Span) *syntax.Select {
	c := s.ctes[name]
	if c == nil {
		return nil
	}
	if s.inside != "" {
		// Named queries do not see each other.
		s.warn("cte-hidden", at, "%s means a table here: named queries do not see each other", name)
		return nil
	}
	c.used = true
	return c.sel
}

// inCTE returns a scope in which the text of a named query is resolved, with
// its findings dropped: they were reported when it was checked.
func (s *scope) inCTE(name string) *scope {
	c := s.ctes[name]
	quiet := *s.resolver
	q := *c.query
	q.resolver = &quiet
	st := *s.stream
	st.query = &q
	st.inside = name
	return &scope{stream: &st}
}
