package resolve

import (
	"slices"
	"strconv"

	"github.com/sluicesync/sluice/libs/rules/plan"
)

// maxVariants bounds the alternatives of one condition.
const maxVariants = 100

// bucketVariant is a branch as rows and querier: what becomes, perhaps
// together with others, a bucket source.
type bucketVariant struct {
	rows    plan.Rows
	querier plan.Querier
	indexes []plan.Index // that the querier's steps count from
	// order of the keys: the texts of their request sides.
	keys []string
}

// compiler turns one branch into a bucketVariant.
type compiler struct {
	*scope
	primary    *source
	definition int
	filters    map[*source][]*term
	matches    []*term
	used       []bool // matches
	tables     []*source
	requests   []*source // json_each of the request
	each       map[*source][]*source
	steps      map[*source]int
	out        bucketVariant
	outputs    []map[string]int // by step: key of expression → output
}

func (s *scope) compile(b branch, primary *source, columns []plan.Output, definition int) *bucketVariant {
	c := &compiler{
		scope: s, primary: primary, definition: definition,
		filters: map[*source][]*term{}, each: map[*source][]*source{}, steps: map[*source]int{},
	}
	c.collect(b)
	c.sortTerms(b)
	for _, src := range c.requests {
		c.addEach(src)
	}
	for {
		src := c.next()
		if src == nil {
			break
		}
		if !c.addLookup(src) {
			return nil
		}
	}
	c.finish()
	for _, o := range columns {
		if o.Expr != nil {
			o.Expr = local(o.Expr, c.each[primary])
		}
		c.out.rows.Columns = append(c.out.rows.Columns, o)
	}
	return &c.out
}

// collect finds the sources of a branch: those brought in and those of terms.
func (c *compiler) collect(b branch) {
	seen := map[*source]bool{}
	var add func(src *source)
	add = func(src *source) {
		if src == nil || src == requestSource || seen[src] {
			return
		}
		seen[src] = true
		switch {
		case src.table != nil:
			if src != c.primary {
				c.tables = append(c.tables, src)
			}
		case src.host != nil:
			add(src.host)
			c.each[src.host] = append(c.each[src.host], src)
		default:
			c.requests = append(c.requests, src)
		}
	}
	add(c.primary)
	for _, src := range b.sources {
		add(src)
	}
	leaves := func(e *plan.Expr) {
		if e == nil {
			return
		}
		e.Walk(func(n *plan.Expr) {
			if r := leafRef(n); r != nil {
				if src, ok := r.of.(*source); ok {
					add(src)
				}
			}
		})
	}
	for _, t := range b.terms {
		leaves(t.x)
		leaves(t.y)
	}
}

func (c *compiler) sortTerms(b branch) {
	for _, t := range b.terms {
		if t.match() {
			c.matches = append(c.matches, t)
			continue
		}
		base := baseOf(t.x)
		if base == nil || base == requestSource {
			c.out.querier.Filters = append(c.out.querier.Filters, local(t.x, nil))
			continue
		}
		c.filters[base] = append(c.filters[base], t)
	}
	c.used = make([]bool, len(c.matches))
}

// sides returns the sides of a match seen from a source: its own, the other,
// and the source of the other; own is nil if it is no match of src.
func sides(t *term, src *source) (own, other *plan.Expr, of *source) {
	switch src {
	case baseOf(t.x):
		return t.x, t.y, baseOf(t.y)
	case baseOf(t.y):
		return t.y, t.x, baseOf(t.x)
	}
	return nil, nil, nil
}

// bound tells whether values of a source are known when the next step runs.
func (c *compiler) bound(src *source) bool {
	_, ok := c.steps[src]
	return ok || src == requestSource || src == nil
}

// next returns the table to look up next: one that has keys for it, by text
// order, or else the first.
func (c *compiler) next() *source {
	var first *source
	for _, src := range c.tables {
		if c.bound(src) {
			continue
		}
		for _, t := range c.matches {
			if own, _, of := sides(t, src); own != nil && of != c.primary && c.bound(of) {
				return src
			}
		}
		if first == nil {
			first = src
		}
	}
	return first
}

// addEach adds the step of a json_each of the request.
func (c *compiler) addEach(src *source) {
	step := plan.QueryStep{Each: local(src.each, nil)}
	c.steps[src] = len(c.out.querier.Steps)
	c.outputs = append(c.outputs, nil)
	c.out.querier.Steps = append(c.out.querier.Steps, step)
	st := &c.out.querier.Steps[c.steps[src]]
	for _, t := range c.filters[src] {
		st.Filters = append(st.Filters, c.request(t.x))
	}
	for i, t := range c.matches {
		if own, other, of := sides(t, src); own != nil && of != src && of != c.primary && (of == nil || of.table == nil) && c.bound(of) {
			c.used[i] = true
			st.Filters = append(st.Filters, &plan.Expr{Op: plan.Binary, Name: "=", Args: []*plan.Expr{c.request(own), c.request(other)}})
		}
	}
}

// addLookup adds the step of a table: an index with the keys that are known.
func (c *compiler) addLookup(src *source) bool {
	if !c.connected(src) {
		at := src.at
		for _, t := range c.filters[src] {
			at = t.at
		}
		if len(c.filters[src]) > 0 || c.hasMatch(src) {
			c.fatal("unrelated", at, "this condition is unrelated to the request and to the table being synced")
			return false
		}
	}
	index := plan.Index{Definition: c.definition, Table: src.table.pattern, SkipNull: true}
	match := c.rowMatch(src, &index.Each)
	step := plan.QueryStep{Index: len(c.out.indexes)}
	seen := map[string]bool{}
	for i, t := range c.matches {
		own, other, of := sides(t, src)
		if own == nil || of == c.primary || !c.bound(of) {
			continue
		}
		c.used[i] = true
		e, in := local(own, c.each[src]), c.request(other)
		if k := e.Key() + in.Key(); !seen[k] {
			seen[k] = true
			match = append(match, &plan.Match{Op: plan.Equal, Key: len(step.Inputs), Expr: e})
			step.Inputs = append(step.Inputs, in)
		}
	}
	index.Keys = len(step.Inputs)
	if len(match) > 0 {
		index.Match = &plan.Match{Op: plan.All, Args: match}
	}
	c.steps[src] = len(c.out.querier.Steps)
	outputs := map[string]int{}
	for i, t := range c.matches {
		// What other sources compare with is an output.
		own, _, _ := sides(t, src)
		if own == nil || c.used[i] {
			continue
		}
		e := local(own, c.each[src])
		if _, ok := outputs[e.Key()]; !ok {
			outputs[e.Key()] = len(index.Outputs)
			index.Outputs = append(index.Outputs, plan.Output{Name: strconv.Itoa(len(index.Outputs)), Expr: e})
		}
	}
	c.outputs = append(c.outputs, outputs)
	c.out.querier.Steps = append(c.out.querier.Steps, step)
	c.out.indexes = append(c.out.indexes, index)
	return true
}

func (c *compiler) hasMatch(src *source) bool {
	for _, t := range c.matches {
		if own, _, _ := sides(t, src); own != nil {
			return true
		}
	}
	return false
}

// connected tells whether matches lead from a table to the request or to the
// primary table.
func (c *compiler) connected(src *source) bool {
	seen := map[*source]bool{}
	var visit func(src *source) bool
	visit = func(src *source) bool {
		if src == nil || src == requestSource || src == c.primary || src.table == nil {
			return true
		}
		if seen[src] {
			return false
		}
		seen[src] = true
		for _, t := range c.matches {
			if own, _, of := sides(t, src); own != nil && visit(of) {
				return true
			}
		}
		return false
	}
	return visit(src)
}

// rowMatch returns the conditions on a table's own rows.
func (c *compiler) rowMatch(src *source, each *[]*plan.Expr) []*plan.Match {
	for _, e := range c.each[src] {
		*each = append(*each, local(e.each, c.each[src]))
	}
	var match []*plan.Match
	for _, t := range c.filters[src] {
		match = append(match, &plan.Match{Op: plan.Where, Expr: local(t.x, c.each[src])})
	}
	return match
}

// finish makes the rows and keys of the primary table.
func (c *compiler) finish() {
	rows := &c.out.rows
	match := c.rowMatch(c.primary, &rows.Each)
	type key struct {
		row     *plan.Expr
		sources []*plan.Expr
		order   string
	}
	var keys []*key
	for _, t := range c.matches {
		own, other, _ := sides(t, c.primary)
		if own == nil {
			continue
		}
		e, src := local(own, c.each[c.primary]), c.request(other)
		i := slices.IndexFunc(keys, func(k *key) bool { return k.row.Key() == e.Key() })
		if i < 0 {
			i = len(keys)
			keys = append(keys, &key{row: e})
		}
		k := keys[i]
		if !slices.ContainsFunc(k.sources, func(o *plan.Expr) bool { return o.Key() == src.Key() }) {
			k.sources = append(k.sources, src)
			k.order += src.Key()
		}
	}
	// Queries with equal request sides share buckets, in whatever order they
	// name them.
	slices.SortStableFunc(keys, func(a, b *key) int {
		switch {
		case a.order < b.order:
			return -1
		case a.order > b.order:
			return 1
		}
		return 0
	})
	for i, k := range keys {
		match = append(match, &plan.Match{Op: plan.Equal, Key: i, Expr: k.row})
		c.out.querier.Params = append(c.out.querier.Params, plan.Param{Sources: k.sources})
		c.out.keys = append(c.out.keys, k.row.Key())
	}
	rows.Table = c.primary.table.pattern
	rows.Output = c.primary.table.output()
	rows.StarAll = true
	if len(match) > 0 {
		rows.Match = &plan.Match{Op: plan.All, Args: match}
	}
}

// local returns an expression over one table's rows, or over the request
// alone, without references; each are the table's json_each.
func local(e *plan.Expr, each []*source) *plan.Expr {
	return e.Map(func(n *plan.Expr) *plan.Expr {
		if r := leafRef(n); r != nil && (n.Op == plan.EachKey || n.Op == plan.EachValue) {
			n.Index = slices.Index(each, r.of.(*source))
		}
		n.From = nil
		return n
	})
}

// request returns an expression as a querier computes it: of the request, of
// a json_each of it, or an output of a lookup.
func (c *compiler) request(e *plan.Expr) *plan.Expr {
	base := baseOf(e)
	if base != nil && base.table != nil {
		step := c.steps[base]
		return &plan.Expr{Op: plan.Step, Index: step, Index2: c.outputs[step][local(e, c.each[base]).Key()]}
	}
	return e.Map(func(n *plan.Expr) *plan.Expr {
		if r := leafRef(n); r != nil && (n.Op == plan.EachKey || n.Op == plan.EachValue) {
			i := 0
			if n.Op == plan.EachValue {
				i = 1
			}
			return &plan.Expr{Op: plan.Step, Index: c.steps[r.of.(*source)], Index2: i}
		}
		n.From = nil
		return n
	})
}
