package rules

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// TableEvaluator evaluates the rows of one source table. It is immutable and
// safe for concurrent use.
type TableEvaluator struct {
	puts    []putQuery // those of one source together
	outputs []*output
	indexes []indexQuery
	events  []eventQuery
}

type putQuery struct {
	definition string
	source     int
	prefix     string // of the bucket id
	constant   string // the whole bucket id, if it has no keys
	match      *matcher
	output     int
}

type indexQuery struct {
	definition string
	prefix     string // of the lookup key
	match      *matcher
	outputs    []indexOutput
	skipNull   bool
	unique     bool
}

type indexOutput struct {
	key  string // "name":
	expr eval.Expr
}

type eventQuery struct {
	name    string
	columns []plan.Output
	output  *output
}

// RowResult is what a row gives. Reset it before each row, or not, to gather
// several. It must not be shared by goroutines.
type RowResult struct {
	Puts    []model.Put
	Lookups []model.ParameterEntry
	Events  []Event
	Errors  []RowError
	scratch scratch
}

// Reset empties r and keeps its memory. What the puts and lookups refer to
// stays valid.
func (r *RowResult) Reset() {
	r.Puts, r.Lookups, r.Events, r.Errors = r.Puts[:0], r.Lookups[:0], r.Events[:0], r.Errors[:0]
}

// scratch is the memory of an evaluation.
type scratch struct {
	env    eval.Env
	keys   []byte
	buf    []byte
	hash   []byte
	values []model.Value
	cached []cachedOutput // by output
	arena  strings.Builder
	seen   entries
	// products counts the combinations of a row's json_each.
	products int
}

// entries finds what a query has given for a row already, when that is much
// (arrays with many elements): the places of texts. Nil before each query's
// first.
type entries map[string]int

// manyEntries is from how many on a map is faster than looking through all.
const manyEntries = 32

// find returns the place of key among n texts from first on, the i-th of which
// is keyOf(i); -1 if it is not there.
func (e *entries) find(first, n int, key []byte, keyOf func(i int) []byte) int {
	if *e == nil {
		*e = make(entries, 2*n)
	}
	for i := len(*e); i < n; i++ {
		(*e)[string(keyOf(first+i))] = first + i
	}
	if i, ok := (*e)[string(key)]; ok {
		return i
	}
	return -1
}

// cachedOutput is an output of the current row; several buckets share it.
type cachedOutput struct {
	done     bool
	id, data string
	sum      model.Checksum
	err      error
}

// arenaSize is the size of the pieces of memory that texts are cut from.
const arenaSize = 32 << 10

// keep copies b to memory that is never written again.
func (s *scratch) keep(b []byte) string {
	if s.arena.Cap()-s.arena.Len() < len(b) {
		s.arena = strings.Builder{}
		s.arena.Grow(max(arenaSize, len(b)))
	}
	start := s.arena.Len()
	s.arena.Write(b)
	return s.arena.String()[start:]
}

// Table returns the evaluator of a source table's rows, with its columns
// resolved to offsets; nil if the config does not use the table. Callers keep
// it as long as they keep t.
func (p *Plan) Table(t *model.SourceTable) *TableEvaluator {
	te := &TableEvaluator{}
	shared := map[string]int{}
	for i := range p.plan.Sources {
		src := &p.plan.Sources[i]
		for j := range src.Rows {
			r := &src.Rows[j]
			if !Matches(r.Table, t) || p.made != nil && p.made[p.sourcePart(i)] {
				continue
			}
			b := p.rowBinder(r.Table, t)
			q := putQuery{
				definition: p.plan.Definitions[src.Definition].Name, source: i, prefix: p.bucketPrefix(i),
				match: newMatcher(r.Match, r.Each, src.Keys, b),
			}
			if src.Keys == 0 {
				q.constant = q.prefix + "]"
			}
			out := *r
			out.Match, out.Table = nil, model.TablePattern{}
			key := string(out.AppendKey(nil)) + r.Table.Name
			id, ok := shared[key]
			if !ok {
				id = len(te.outputs)
				shared[key] = id
				te.outputs = append(te.outputs, newOutput(r, t, b))
			}
			q.output = id
			te.puts = append(te.puts, q)
		}
	}
	for i := range p.plan.Indexes {
		x := &p.plan.Indexes[i]
		if !Matches(x.Table, t) || p.made != nil && p.made[p.indexPart(i)] {
			continue
		}
		b := p.rowBinder(x.Table, t)
		q := indexQuery{
			definition: p.plan.Definitions[x.Definition].Name, prefix: p.lookupPrefix(i),
			match: newMatcher(x.Match, x.Each, x.Keys, b), skipNull: x.SkipNull, unique: !x.SkipNull,
		}
		for _, o := range x.Outputs {
			key := model.AppendJSON(nil, model.TextValue(o.Name))
			q.outputs = append(q.outputs, indexOutput{string(key) + ":", o.Expr.Bind(b)})
		}
		te.indexes = append(te.indexes, q)
	}
	for i := range p.plan.Events {
		if p.made != nil {
			break
		}
		e := &p.plan.Events[i]
		for j := range e.Payloads {
			if r := &e.Payloads[j]; Matches(r.Table, t) {
				te.events = append(te.events, eventQuery{e.Name, r.Columns, newOutput(r, t, p.rowBinder(r.Table, t))})
				break // only the first that matches fires
			}
		}
	}
	if len(te.puts)+len(te.indexes)+len(te.events) == 0 {
		return nil
	}
	return te
}

// Uses tells what the config makes of the table's rows: data of buckets,
// entries of the parameter index. It may be called on nil.
func (te *TableEvaluator) Uses() (data, parameters bool) {
	return te != nil && len(te.puts) > 0, te != nil && len(te.indexes) > 0
}

// Matches tells whether a pattern names a table.
func Matches(p model.TablePattern, t *model.SourceTable) bool {
	if p.Connection != "" && t.Connection != "" && p.Connection != t.Connection {
		return false
	}
	if strings.HasSuffix(p.Schema, "%") && (strings.HasPrefix(t.Schema, "pg_") || t.Schema == "information_schema") {
		return false
	}
	return matchName(p.Schema, t.Schema) && matchName(p.Name, t.Name)
}

func matchName(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "%"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// bucketPrefix is what the ids of a source's buckets begin with.
func (p *Plan) bucketPrefix(source int) string {
	if p.buckets != nil {
		return p.buckets[source]
	}
	return p.prefix + p.plan.Sources[source].Name + "["
}

// lookupPrefix is what the lookup keys of an index begin with.
func (p *Plan) lookupPrefix(index int) string {
	if p.lookups != nil {
		return p.lookups[index]
	}
	return p.layer + strconv.FormatInt(int64(index), 36) + "["
}

// rowBinder finds columns by their place in the table.
func (p *Plan) rowBinder(pattern model.TablePattern, t *model.SourceTable) plan.Binder {
	return plan.Binder{Options: p.language, Leaf: func(e *plan.Expr) eval.Expr {
		switch e.Op {
		case plan.Column:
			for i := range t.Columns {
				if t.Columns[i].Name == e.Name {
					return eval.Column(i)
				}
			}
		case plan.EachKey:
			return eval.EachKey(e.Index)
		case plan.EachValue:
			return eval.EachValue(e.Index)
		case plan.TableName:
			return eval.Const(model.TextValue(t.Name))
		case plan.TableSchema:
			return eval.Const(model.TextValue(t.Schema))
		case plan.TableSuffix:
			suffix := ""
			if prefix, ok := strings.CutSuffix(pattern.Name, "%"); ok {
				suffix = strings.TrimPrefix(t.Name, prefix)
			}
			return eval.Const(model.TextValue(suffix))
		}
		return eval.Const(model.Value{})
	}}
}

// EvaluateRow appends to out what row gives: at most one put per bucket, table
// and id.
func (te *TableEvaluator) EvaluateRow(row []model.Value, out *RowResult) {
	s := &out.scratch
	s.env.Row = row
	if cap(s.cached) < len(te.outputs) {
		s.cached = make([]cachedOutput, len(te.outputs))
	}
	s.cached = s.cached[:len(te.outputs)]
	clear(s.cached)
	s.seen = nil
	first := len(out.Puts)
	for i := range te.puts {
		q := &te.puts[i]
		if i > 0 && te.puts[i-1].source != q.source {
			first = len(out.Puts)
			s.seen = nil
		}
		before := len(out.Puts)
		err := q.match.run(s, func(keys []byte) error { return te.put(q, keys, first, out) })
		if err != nil {
			out.Puts, s.seen = out.Puts[:before], nil
			out.Errors = append(out.Errors, RowError{Definition: q.definition, Err: err})
		}
	}
	for i := range te.indexes {
		if err := te.indexes[i].evaluate(out); err != nil {
			out.Errors = append(out.Errors, RowError{te.indexes[i].definition, true, err})
		}
	}
	for i := range te.events {
		te.events[i].evaluate(out)
	}
	s.env.Row = nil
}

// put appends one put, replacing an earlier one of the same bucket, table and
// id. Puts of the same source start at first.
func (te *TableEvaluator) put(q *putQuery, keys []byte, first int, out *RowResult) error {
	s := &out.scratch
	o := te.outputs[q.output]
	c := &s.cached[q.output]
	if !c.done || o.each {
		c.done = true
		c.encode(o, s)
	}
	if c.err != nil {
		return c.err
	}
	bucket := q.constant
	if bucket == "" {
		s.buf = append(append(append(s.buf[:0], q.prefix...), keys...), ']')
	} else {
		s.buf = append(s.buf[:0], bucket...)
	}
	if i := out.findPut(first, s.buf, o.name, c.id); i >= 0 {
		out.Puts[i].Data, out.Puts[i].Checksum = c.data, c.sum
		return nil
	}
	if bucket == "" {
		bucket = s.keep(s.buf)
	}
	out.Puts = append(out.Puts, model.Put{Bucket: bucket, ObjectType: o.name, ObjectID: c.id, Data: c.data, Checksum: c.sum})
	return nil
}

// findPut returns the place of a put among those from first on, -1 if there is
// none.
func (r *RowResult) findPut(first int, bucket []byte, typ, id string) int {
	if n := len(r.Puts) - first; n >= manyEntries {
		key := func(p *model.Put) []byte {
			return fmt.Appendf(nil, "%s\x00%s\x00%s", p.Bucket, p.ObjectType, p.ObjectID)
		}
		want := key(&model.Put{Bucket: string(bucket), ObjectType: typ, ObjectID: id})
		return r.scratch.seen.find(first, n, want, func(i int) []byte { return key(&r.Puts[i]) })
	}
	for i := first; i < len(r.Puts); i++ {
		if p := &r.Puts[i]; p.Bucket == string(bucket) && p.ObjectID == id && p.ObjectType == typ {
			return i
		}
	}
	return -1
}

func (c *cachedOutput) encode(o *output, s *scratch) {
	var id model.Value
	s.buf, id, c.err = o.encode(s, s.buf[:0])
	if c.err != nil {
		return
	}
	c.data = s.keep(s.buf)
	c.id = ""
	switch id.Kind() {
	case model.Absent, model.Null:
	case model.Text:
		c.id = id.Str()
	default:
		c.id = value.Text(id)
	}
	c.sum, s.hash = model.PutChecksum(o.name, c.id, c.data, s.hash)
}

// evaluate appends a row's entries of the index; rows of one key become one.
func (q *indexQuery) evaluate(out *RowResult) error {
	s := &out.scratch
	first := len(out.Lookups)
	s.seen = nil
	err := q.match.run(s, func(keys []byte) error {
		s.buf = append(s.buf[:0], '{')
		for i := range q.outputs {
			v, err := q.outputs[i].expr(&s.env)
			if err != nil {
				return err
			}
			if v.Kind() == model.Absent || v.Kind() == model.Blob || q.skipNull && v.Kind() == model.Null {
				if q.skipNull {
					return nil
				}
				continue
			}
			if len(s.buf) > 1 {
				s.buf = append(s.buf, ',')
			}
			s.buf = append(s.buf, q.outputs[i].key...)
			s.buf = model.AppendJSON(s.buf, v)
		}
		s.buf = append(s.buf, '}')
		if i := out.findLookup(first, len(q.prefix), keys); i >= 0 {
			if l := &out.Lookups[i]; !q.unique {
				l.Values = l.Values[:len(l.Values)-1] + "," + string(s.buf) + "]"
			}
			return nil
		}
		values := s.keep([]byte("[" + string(s.buf) + "]"))
		s.buf = append(append(append(s.buf[:0], q.prefix...), keys...), ']')
		out.Lookups = append(out.Lookups, model.ParameterEntry{Lookup: s.keep(s.buf), Values: values})
		return nil
	})
	if err != nil {
		out.Lookups = out.Lookups[:first]
	}
	return err
}

// findLookup returns the place of a lookup with these keys among those from
// first on, which have one prefix; -1 if there is none.
func (r *RowResult) findLookup(first, prefix int, keys []byte) int {
	keyOf := func(i int) string { k := r.Lookups[i].Lookup; return k[prefix : len(k)-1] }
	if n := len(r.Lookups) - first; n >= manyEntries {
		return r.scratch.seen.find(first, n, keys, func(i int) []byte { return []byte(keyOf(i)) })
	}
	for i := first; i < len(r.Lookups); i++ {
		if keyOf(i) == string(keys) {
			return i
		}
	}
	return -1
}

var errEvent = errors.New("the payload cannot be evaluated")

// evaluate appends the event that a row fires.
func (q *eventQuery) evaluate(out *RowResult) {
	s := &out.scratch
	var err error
	s.buf, _, err = q.output.encode(s, s.buf[:0])
	if err != nil {
		out.Events = append(out.Events, Event{Name: q.name, Err: fmt.Errorf("%w: %w", errEvent, err)})
		return
	}
	e := Event{Name: q.name, Data: string(s.buf)}
	for i := range q.output.assigns {
		a := &q.output.assigns[i]
		if v, err := a.value(&s.env); err == nil && v.Kind() != model.Absent && v.Kind() != model.Blob {
			e.Columns = append(e.Columns, q.output.slots[a.slot].name)
			e.Values = append(e.Values, v)
		}
	}
	out.Events = append(out.Events, e)
}
