package resolve

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// streams3 resolves the streams of edition 3.
func (r *resolver) streams3() {
	global := map[string]*cte{}
	r.checkCTEs(r.config.With, global)
	for i := range r.config.Streams {
		r.stream3(&r.config.Streams[i], global)
	}
}

// checkCTEs parses and checks named queries, whether they are used or not.
func (r *resolver) checkCTEs(list []config.CTE, ctes map[string]*cte) {
	for _, c := range list {
		q, sel := r.parse(c.Query)
		n := &cte{name: c.Name, query: q, sel: sel}
		ctes[c.Name.Text] = n
		if r.options.Schema != nil && len(r.options.Schema.Tables(r.pattern(c.Name.Text))) > 0 {
			r.warn("cte-shadows-table", c.Name.At, "the named query %s hides the table of that name", c.Name.Text)
		}
	}
	for _, c := range list {
		n := ctes[c.Name.Text]
		if n.sel == nil || n.query.bad {
			n.sel = nil
			continue
		}
		s := &scope{stream: &stream{query: n.query, ctes: ctes, inside: c.Name.Text, sources: new(int)}}
		ok := s.subselect(n.sel) != nil
		s.tooMany(n.sel)
		if !ok || s.bad {
			n.sel, n.wrong = nil, true
		}
	}
}

func (r *resolver) pattern(name string) (p model.TablePattern) {
	p.Connection, p.Schema, p.Name = model.DefaultConnection, r.options.DefaultSchema, name
	return p
}

// stream3 resolves a stream.
func (r *resolver) stream3(c *config.Stream, global map[string]*cte) {
	d := len(r.plan.Definitions)
	r.plan.Definitions = append(r.plan.Definitions, plan.Definition{
		Name: c.Name.Text, Stream: true, AutoSubscribe: c.AutoSubscribe, Priority: c.Priority,
	})
	ctes := global
	if len(c.With) > 0 {
		ctes = maps.Clone(global)
		r.checkCTEs(c.With, ctes)
	}
	b := &builder{resolver: r, config: c, definition: d}
	for _, t := range c.Queries {
		q, sel := r.parse(t)
		if sel != nil && len(b.buckets) <= maxVariants {
			b.query(&stream{query: q, config: c, ctes: ctes, warned: map[syntax.Span]bool{}, sources: new(int)}, sel)
		}
	}
	for _, w := range c.With {
		if n := ctes[w.Name.Text]; n.sel != nil && !n.used {
			r.warn("unused-cte", w.Name.At, "the named query %s is not used", w.Name.Text)
		}
	}
	b.finish()
}

// builder collects the bucket sources of one stream.
type builder struct {
	*resolver
	config     *config.Stream
	definition int
	number     int // of variants so far
	buckets    []*bucket3
}

// bucket3 is a bucket source being built: variants with the same querier.
type bucket3 struct {
	name    string
	key     string
	rows    []plan.Rows
	seen    map[string]bool // keys of rows
	querier plan.Querier
	indexes []plan.Index
}

// addRows adds rows, unless they are there already.
func (bk *bucket3) addRows(rows plan.Rows) {
	key := string(rows.AppendKey(nil))
	if !bk.seen[key] {
		bk.seen[key] = true
		bk.rows = append(bk.rows, rows)
	}
}

// query adds the variants of one query.
func (b *builder) query(st *stream, sel *syntax.Select) {
	s := &scope{stream: st}
	if len(sel.More) > 0 {
		s.warn("second-statement", sel.More[0].At(), "only the first statement is used")
	}
	sources, where := s.from(sel)
	columns, primary := s.columns3(sel)
	if sel.Where != nil {
		where = append(where, s.condition(sel.Where, false))
	}
	s.tooMany(sel)
	if primary == nil && !s.bad {
		s.fatal("no-table", sel.At(), "the query must select a column of a table")
	}
	if s.bad {
		return
	}
	root := allOf(where, sources)
	root.at = sel.At()
	if sel.Where != nil {
		root.at = sel.Where.At()
	}
	branches := s.branches(root)
	if s.bad {
		return
	}
	s.aliasWarning(sel, primary)
	for _, br := range variants(branches) {
		v := s.compile(br, primary, columns, b.definition)
		if v == nil {
			return
		}
		b.add(v)
		if len(b.buckets) > maxVariants {
			s.fatal("too-many", root.at, "the stream has more than %d kinds of buckets", maxVariants)
			return
		}
		if !b.config.AcceptDangerous {
			s.dangerous(br, primary)
		}
	}
}

// aliasWarning warns that an alias of the synced table in a join is also its
// name for clients.
func (s *scope) aliasWarning(sel *syntax.Select, primary *source) {
	if len(sel.From) < 2 {
		return
	}
	for i := range sel.From {
		f := &sel.From[i]
		if f.Table != nil && f.Alias != nil && !f.Alias.Quoted && s.items[i].source == primary {
			s.warn("alias-renames", f.At(), "clients see the table as %s; write AS \"%s\" if that is meant", f.Alias.Name, f.Alias.Name)
		}
	}
}

// columns3 resolves the select list and finds the table that is synced.
func (s *scope) columns3(sel *syntax.Select) (out []plan.Output, primary *source) {
	hasID, named := false, false
	take := func(e *plan.Expr, at syntax.Span) {
		e.Walk(func(n *plan.Expr) {
			src := sourceOf(n)
			switch {
			case src == nil:
			case src == requestSource:
				s.fatal("parameter-use", leafRef(n).at, "values of the request cannot be selected")
			case src.table == nil:
				s.fatal("single-table", at, "only columns of a table can be selected")
			case primary == nil:
				primary = src
			case src != primary:
				s.fatal("single-table", at, "a query can select from one table only: %s or %s", primary.name, src.name)
			}
		})
	}
	add := func(name string, e *plan.Expr, at syntax.Span) {
		take(e, at)
		hasID = hasID || name == "id"
		out = append(out, plan.Output{Name: name, Expr: e})
	}
	star := false
	for _, c := range sel.Columns {
		if st, ok := c.Expr.(*syntax.Star); ok {
			it := s.starItem(st)
			if it == nil {
				continue
			}
			if named {
				s.warn("star-overwrites", st.At(), "* overwrites the columns before it")
			}
			if it.derived {
				for _, col := range it.columns {
					add(col.name, moved(col.expr, st.At()), st.At())
				}
				continue
			}
			star = true
			if it.source.table == nil {
				s.fatal("single-table", st.At(), "only columns of a table can be selected")
				continue
			}
			take(&plan.Expr{Op: plan.Column, From: &ref{of: it.source, at: st.At()}}, st.At())
			out = append(out, plan.Output{})
			continue
		}
		name, ok := outputName(c)
		e := s.value(c.Expr)
		if e == nil {
			continue
		}
		if !ok {
			name = s.text.Value[c.Expr.At().Start:c.Expr.At().End]
			s.warn("alias-missing", c.Expr.At(), "the column is called %q; give it a name with AS", name)
		}
		named = named || c.Alias != nil
		add(name, e, c.Expr.At())
	}
	if !hasID && !star && primary != nil {
		s.warn("missing-id", sel.At(), "the query returns no column id, so that all rows of a bucket are one to clients")
	}
	return out, primary
}

// starItem returns what * stands for.
func (s *scope) starItem(st *syntax.Star) *item {
	if st.Table != nil {
		it := s.find(st.Table.Name)
		if it == nil {
			s.fatal("undefined-reference", st.At(), "%s is not defined here", st.Table.Name)
		}
		return it
	}
	if len(s.items) == 1 {
		return &s.items[0]
	}
	s.fatal("ambiguous", st.At(), "with several sources in FROM, write which one * is of: source.*")
	return nil
}

// add numbers a variant, and joins it to an earlier one whose buckets a
// request finds in the same way.
func (b *builder) add(v *bucketVariant) {
	n := b.number
	b.number++
	key := querierKey(&v.querier, v.indexes)
	for _, old := range b.buckets {
		if old.key == key {
			old.addRows(v.rows)
			return
		}
	}
	bk := &bucket3{
		name: b.config.Name.Text + "|" + strconv.Itoa(n), key: key,
		seen: map[string]bool{}, querier: v.querier, indexes: v.indexes,
	}
	bk.addRows(v.rows)
	b.buckets = append(b.buckets, bk)
}

// querierKey is equal for queriers that find the same keys.
func querierKey(q *plan.Querier, indexes []plan.Index) string {
	p := &plan.Plan{Sources: []plan.Source{{}}, Indexes: indexes}
	c := *q
	c.Source = 0
	return string(p.AppendQuerier(nil, &c))
}

// finish adds the stream's sources and queriers to the plan. A source that is
// equal to an earlier one, of whatever stream, is not added: it shares buckets.
func (b *builder) finish() {
	def := &b.plan.Definitions[b.definition]
	for _, bk := range b.buckets {
		bk.order()
		q := bk.querier
		q.Source = b.source(bk)
		for i := range q.Steps {
			if q.Steps[i].Each == nil {
				q.Steps[i].Index = b.index(bk.indexes[q.Steps[i].Index])
			}
		}
		def.Queriers = append(def.Queriers, q)
	}
}

// order brings the keys into an order that depends on the rows only, so that
// streams with the same rows can share buckets.
func (bk *bucket3) order() {
	n := len(bk.querier.Params)
	names := make([]string, n)
	for k := range n {
		var name strings.Builder
		for i := range bk.rows {
			name.WriteString(keyExpr(bk.rows[i].Match, k).Key() + "\n")
		}
		names[k] = name.String()
	}
	perm := make([]int, n)
	for i := range perm {
		perm[i] = i
	}
	slices.SortStableFunc(perm, func(a, b int) int {
		switch {
		case names[a] < names[b]:
			return -1
		case names[a] > names[b]:
			return 1
		}
		return 0
	})
	params := make([]plan.Param, n)
	place := make([]int, n)
	for to, from := range perm {
		params[to] = bk.querier.Params[from]
		place[from] = to
	}
	bk.querier.Params = params
	for i := range bk.rows {
		bk.rows[i].Match = rekeyed(bk.rows[i].Match, place)
	}
}

// keyExpr is the expression of a key. A variant's match is one conjunction.
func keyExpr(m *plan.Match, key int) *plan.Expr {
	for _, a := range m.Args {
		if a.Op == plan.Equal && a.Key == key {
			return a.Expr
		}
	}
	return nil
}

func rekeyed(m *plan.Match, place []int) *plan.Match {
	if m == nil {
		return nil
	}
	c := *m
	c.Args = nil
	for _, a := range m.Args {
		d := *a
		if d.Op == plan.Equal {
			d.Key = place[d.Key]
		}
		c.Args = append(c.Args, &d)
	}
	slices.SortStableFunc(c.Args, func(a, b *plan.Match) int {
		if a.Op == plan.Equal && b.Op == plan.Equal {
			return a.Key - b.Key
		}
		return int(a.Op) - int(b.Op)
	})
	return &c
}

// source returns the source of a bucket, an equal one if there is.
func (b *builder) source(bk *bucket3) int {
	key := func(rows []plan.Rows) string {
		var ks []string
		for i := range rows {
			ks = append(ks, string(rows[i].AppendKey(nil)))
		}
		slices.Sort(ks)
		return strings.Join(slices.Compact(ks), "\n") + "\n"
	}
	want := strconv.Itoa(len(bk.querier.Params)) + " " + key(bk.rows)
	i, ok := b.sources[want]
	if !ok {
		i = len(b.plan.Sources)
		b.sources[want] = i
		b.plan.Sources = append(b.plan.Sources, plan.Source{
			Name: bk.name, Definition: b.definition, Keys: len(bk.querier.Params), Rows: bk.rows,
		})
	}
	return i
}

// index returns the place of an index in the plan, of an equal one if there is.
func (b *builder) index(x plan.Index) int {
	want := string(x.AppendKey(nil))
	i, ok := b.indexes[want]
	if !ok {
		i = len(b.plan.Indexes)
		b.indexes[want] = i
		b.plan.Indexes = append(b.plan.Indexes, x)
	}
	return i
}
