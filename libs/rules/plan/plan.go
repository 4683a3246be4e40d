package plan

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strconv"

	"github.com/sluicesync/sluice/libs/model"
)

// Plan is a whole config.
type Plan struct {
	Edition     int
	FixedJSON   bool
	Definitions []Definition
	Sources     []Source
	Indexes     []Index
	Events      []Event
}

// Definition is a bucket definition or stream.
type Definition struct {
	Name          string
	Stream        bool
	AutoSubscribe bool // always for bucket definitions
	Priority      int
	Queriers      []Querier
}

// Source is a set of buckets that differ in their keys only.
type Source struct {
	Name       string // what bucket ids begin with, without a version
	Definition int    // that first needed it
	Keys       int    // how many parameters a bucket id has
	Rows       []Rows
}

// Rows is a query that puts rows of a table into the buckets of a Source.
type Rows struct {
	Table   model.TablePattern
	Output  string // table name that clients see; "" = the source table's
	Each    []*Expr
	Match   *Match
	Columns []Output
	// StarAll: * copies every column and overwrites (edition 3) rather than
	// those without _ that have no value yet.
	StarAll bool
}

// Output is a column of the result. Expr is nil for *.
type Output struct {
	Name string
	Expr *Expr
}

// MatchOp is the kind of a Match.
type MatchOp uint8

const (
	Where MatchOp = iota // true if Expr is
	Equal                // key Key is Expr, which must not be null or a blob
	Among                // key Key is any element of the JSON array Expr
	All                  // every one of Args, whose keys must agree
	Any                  // one of Args
)

// Match says for which keys a row counts. Its meaning is a list of
// assignments of keys: none means that the row does not count.
type Match struct {
	Op     MatchOp
	Key    int
	Expr   *Expr
	Strict bool // Among: a null array is an error (&&)
	Args   []*Match
}

// Among tells which keys of a row may be elements of an array.
func (s *Source) Among() []bool {
	keys := make([]bool, s.Keys)
	for i := range s.Rows {
		s.Rows[i].Match.among(keys)
	}
	return keys
}

func (m *Match) among(keys []bool) {
	if m == nil {
		return
	}
	for _, a := range m.Args {
		a.among(keys)
	}
	if m.Op == Among {
		keys[m.Key] = true
	}
}

// Index is a set of parameter rows, found by their keys.
type Index struct {
	Definition int
	Table      model.TablePattern
	Each       []*Expr
	Match      *Match
	Keys       int
	Outputs    []Output
	// SkipNull: a row with an output that is null makes no entry (edition 3).
	SkipNull bool
}

// Querier is how a request finds its buckets of one Source.
type Querier struct {
	Source   int
	Priority int     // of bucket definitions' queries; streams have their own
	Filters  []*Expr // on the request; all must be true
	Steps    []QueryStep
	Params   []Param // the keys of the bucket
	// NullKeys: a null key makes a bucket all the same (rules and edition 2).
	// It holds no data, unless keys are elements of arrays (Among): then it is
	// not given, for null equals nothing.
	NullKeys bool
}

// Param is a key of a bucket: the value of all Sources, which must agree.
type Param struct{ Sources []*Expr }

// QueryStep gives rows, which later steps and parameters use. It is either a
// json_each or a lookup in an index.
type QueryStep struct {
	Each    *Expr
	RawEach bool    // elements are used as JSON, not as SQL values; what is no array is empty
	Index   int     // of the plan
	Inputs  []*Expr // keys to look up
	Filters []*Expr // on this step's outputs and earlier ones
}

// Event is an entry of event_definitions.
type Event struct {
	Name     string
	Payloads []Rows
}

// The events that carry write checkpoints, and what their payloads must have.
// Events of other names have no effect.
const (
	WriteCheckpoints   = "write_checkpoints"
	CheckpointRequests = "checkpoint_requests"

	CheckpointUser   = "user_id"
	CheckpointClient = "client_id"
	CheckpointNumber = "checkpoint"
)

// CarriesCheckpoints tells whether events of a name carry write checkpoints.
func CarriesCheckpoints(event string) bool {
	return event == WriteCheckpoints || event == CheckpointRequests
}

// AppendKey appends a text that is equal for matches that mean the same.
func (m *Match) AppendKey(b []byte) []byte {
	if m == nil {
		return append(b, '_')
	}
	b = append(b, '[')
	b = strconv.AppendInt(b, int64(m.Op), 10)
	b = append(b, '=')
	b = strconv.AppendInt(b, int64(m.Key), 10)
	b = strconv.AppendBool(b, m.Strict)
	b = m.Expr.AppendKey(b)
	for _, a := range m.Args {
		b = a.AppendKey(b)
	}
	return append(b, ']')
}

// AppendKey appends a text that is equal for rows that mean the same.
func (r *Rows) AppendKey(b []byte) []byte {
	b = appendTableKey(b, r.Table)
	b = strconv.AppendQuote(b, r.Output)
	b = appendExprs(b, r.Each)
	b = r.Match.AppendKey(b)
	b = strconv.AppendBool(b, r.StarAll)
	return appendOutputs(b, r.Columns)
}

// AppendKey appends a text that is equal for indexes that mean the same.
func (x *Index) AppendKey(b []byte) []byte {
	b = appendTableKey(b, x.Table)
	b = appendExprs(b, x.Each)
	b = x.Match.AppendKey(b)
	b = strconv.AppendInt(b, int64(x.Keys), 10)
	b = strconv.AppendBool(b, x.SkipNull)
	return appendOutputs(b, x.Outputs)
}

// AppendKey appends a text that is equal for events that mean the same.
func (e *Event) AppendKey(b []byte) []byte {
	b = strconv.AppendQuote(append(b, '*'), e.Name)
	for i := range e.Payloads {
		b = e.Payloads[i].AppendKey(b)
	}
	return b
}

func appendTableKey(b []byte, t model.TablePattern) []byte {
	b = strconv.AppendQuote(b, t.Connection)
	b = strconv.AppendQuote(b, t.Schema)
	return strconv.AppendQuote(b, t.Name)
}

func appendExprs(b []byte, es []*Expr) []byte {
	b = append(b, '{')
	for _, e := range es {
		b = e.AppendKey(b)
	}
	return append(b, '}')
}

func appendOutputs(b []byte, os []Output) []byte {
	b = append(b, '{')
	for _, o := range os {
		b = strconv.AppendQuote(b, o.Name)
		b = o.Expr.AppendKey(b)
	}
	return append(b, '}')
}

// appendKey of a querier, with the sources and indexes it uses written out.
func (p *Plan) AppendQuerier(b []byte, q *Querier) []byte {
	s := &p.Sources[q.Source]
	b = strconv.AppendQuote(b, s.Name)
	for i := range s.Rows {
		b = s.Rows[i].AppendKey(b)
	}
	b = strconv.AppendInt(b, int64(q.Priority), 10)
	b = strconv.AppendBool(b, q.NullKeys)
	b = appendExprs(b, q.Filters)
	for _, st := range q.Steps {
		b = append(b, ';')
		if st.Each != nil {
			b = strconv.AppendBool(b, st.RawEach)
			b = st.Each.AppendKey(b)
		} else {
			b = p.Indexes[st.Index].AppendKey(b)
			b = appendExprs(b, st.Inputs)
		}
		b = appendExprs(b, st.Filters)
	}
	for _, pm := range q.Params {
		b = appendExprs(b, pm.Sources)
	}
	return b
}

// Identity is equal for definitions that mean the same, in whatever plans.
func (p *Plan) Identity(definition int) [32]byte {
	d := &p.Definitions[definition]
	b := strconv.AppendQuote(nil, d.Name)
	b = strconv.AppendInt(b, int64(p.Edition), 10)
	b = strconv.AppendBool(b, p.FixedJSON)
	b = strconv.AppendBool(b, d.Stream)
	b = strconv.AppendBool(b, d.AutoSubscribe)
	b = strconv.AppendInt(b, int64(d.Priority), 10)
	for i := range d.Queriers {
		b = p.AppendQuerier(append(b, '/'), &d.Queriers[i])
	}
	return sha256.Sum256(b)
}

// Tables returns the tables that the plan reads, sorted, each once.
func (p *Plan) Tables() []model.TablePattern {
	seen := map[model.TablePattern]bool{}
	var out []model.TablePattern
	add := func(t model.TablePattern) {
		if !seen[t] {
			seen[t] = true
			out = append(out, t)
		}
	}
	for i := range p.Sources {
		for j := range p.Sources[i].Rows {
			add(p.Sources[i].Rows[j].Table)
		}
	}
	for i := range p.Indexes {
		add(p.Indexes[i].Table)
	}
	for i := range p.Events {
		for j := range p.Events[i].Payloads {
			add(p.Events[i].Payloads[j].Table)
		}
	}
	slices.SortFunc(out, func(a, b model.TablePattern) int {
		return cmp.Or(cmp.Compare(a.Connection, b.Connection), cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// Reads calls f for each expression over the rows of each table, nil for *.
func (p *Plan) Reads(f func(t model.TablePattern, e *Expr)) {
	rows := func(r *Rows) {
		each(f, r.Table, r.Each, r.Match, r.Columns)
	}
	for i := range p.Sources {
		for j := range p.Sources[i].Rows {
			rows(&p.Sources[i].Rows[j])
		}
	}
	for i := range p.Indexes {
		x := &p.Indexes[i]
		each(f, x.Table, x.Each, x.Match, x.Outputs)
	}
	for i := range p.Events {
		for j := range p.Events[i].Payloads {
			rows(&p.Events[i].Payloads[j])
		}
	}
}

func each(f func(t model.TablePattern, e *Expr), t model.TablePattern, es []*Expr, m *Match, os []Output) {
	for _, e := range es {
		f(t, e)
	}
	for _, o := range os {
		f(t, o.Expr)
	}
	var match func(m *Match)
	match = func(m *Match) {
		if m == nil {
			return
		}
		if m.Expr != nil {
			f(t, m.Expr)
		}
		for _, a := range m.Args {
			match(a)
		}
	}
	match(m)
}
