package rules

import (
	"fmt"
	"math"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/value"
)

// boundQuerier is a plan.Querier as functions. While it runs, each partial
// result is one row: the outputs of all steps so far, side by side.
type boundQuerier struct {
	definition int
	priority   int
	nullKeys   []bool // by param: null names a bucket, too
	prefix     string // of bucket ids
	filters    []eval.Expr
	steps      []boundStep
	params     [][]eval.Expr
	raw        []bool // by param: fragments of rawElements
	dynamic    bool
	language   eval.Options
}

type boundStep struct {
	each    eval.Expr // or a lookup
	rawEach bool
	prefix  string // of lookup keys
	inputs  []eval.Expr
	raw     []bool // by input
	names   []string
	filters []eval.Expr
	// exists: no later step or parameter reads the outputs, so that one row is
	// as good as several.
	exists bool
	// live columns of the row after this step. If the step's own outputs do not
	// name buckets, rows that agree in them are one.
	live     []int
	distinct bool
}

// bindQueriers makes the functions of all queriers.
func (p *Plan) bindQueriers() {
	p.queriers = make([][]boundQuerier, len(p.plan.Definitions))
	for i := range p.plan.Definitions {
		d := &p.plan.Definitions[i]
		for j := range d.Queriers {
			p.queriers[i] = append(p.queriers[i], p.bindQuerier(i, &d.Queriers[j]))
		}
	}
}

func (p *Plan) bindQuerier(definition int, q *plan.Querier) boundQuerier {
	d := &p.plan.Definitions[definition]
	out := boundQuerier{
		definition: definition, priority: q.Priority, language: p.language,
		prefix: p.bucketPrefix(q.Source),
	}
	if d.Stream {
		out.priority = d.Priority
	}
	offsets := make([]int, len(q.Steps))
	width := 0
	for i, s := range q.Steps {
		offsets[i] = width
		if s.Each != nil {
			width += 2
		} else {
			width += len(p.plan.Indexes[s.Index].Outputs)
		}
	}
	b := p.requestBinder(offsets)
	bind := func(es []*plan.Expr) (out []eval.Expr, raw []bool) {
		for _, e := range es {
			out = append(out, e.Bind(b))
			raw = append(raw, e.Op == plan.Step && q.Steps[e.Index].RawEach)
		}
		return out, raw
	}
	out.filters, _ = bind(q.Filters)
	for _, s := range q.Steps {
		st := boundStep{rawEach: s.RawEach}
		st.filters, _ = bind(s.Filters)
		if s.Each != nil {
			st.each = s.Each.Bind(b)
		} else {
			out.dynamic = true
			st.prefix = p.lookupPrefix(s.Index)
			st.inputs, st.raw = bind(s.Inputs)
			for _, o := range p.plan.Indexes[s.Index].Outputs {
				st.names = append(st.names, o.Name)
			}
		}
		out.steps = append(out.steps, st)
	}
	out.liveness(q, offsets)
	among := p.plan.Sources[q.Source].Among()
	for i, pm := range q.Params {
		es, raw := bind(pm.Sources)
		out.params = append(out.params, es)
		out.raw = append(out.raw, raw[0])
		out.nullKeys = append(out.nullKeys, q.NullKeys && !among[i])
	}
	return out
}

// Querier finds the buckets of one connection. It is not safe for concurrent
// use.
type Querier struct {
	plan    *Plan
	streams []StreamInfo
	runs    []run
	errors  []SubscriptionError
	static  bool
	max     struct{ results, buckets int }
}

// run is the evaluation of one definition for one subscription.
type run struct {
	definition int
	reason     Reason
	priority   *int
	parts      []part
}

// part is a querier of a run, evaluated as far as the request alone goes.
type part struct {
	q       *boundQuerier
	request []model.Value
	rows    [][]model.Value // partial results after the first steps
	step    int             // the next step
}

// Querier evaluates what depends on the request alone.
func (p *Plan) Querier(r Request) (*Querier, error) {
	q := &Querier{plan: p, static: true}
	q.max.results, q.max.buckets = r.MaxResults, r.MaxBuckets
	data, err := r.decode()
	if err != nil {
		return nil, err
	}
	for i := range p.definitions {
		q.definition(i, &r, data)
	}
	return q, nil
}

// definition adds the runs of one definition.
func (q *Querier) definition(i int, r *Request, data requestData) {
	d := &q.plan.definitions[i]
	def := Reason{Default: true, Index: len(q.streams)}
	listed := d.AutoSubscribed && r.IncludeDefaults
	if listed {
		data.subscription = jsontext.Node{}
		q.run(run{definition: i, reason: def}, data)
	}
	for j, s := range r.Subscriptions {
		if s.Stream != d.Name {
			continue
		}
		if d.Kind == BucketDefinition {
			// A bucket definition has no parameters to subscribe with: it is
			// there or not.
			if !listed {
				q.run(run{definition: i, reason: def}, data)
			}
			listed = true
			continue
		}
		listed = true
		rn := run{definition: i, reason: Reason{Index: j}, priority: s.Priority}
		var err error
		data.subscription, err = decodeObject(s.Parameters)
		if err == nil && s.Priority != nil && (*s.Priority < 0 || *s.Priority > 3) {
			err = fmt.Errorf("the priority must be from 0 to 3")
		}
		if err != nil {
			q.fail(&rn, err)
			continue
		}
		q.run(rn, data)
	}
	if listed {
		q.streams = append(q.streams, StreamInfo{Name: d.Name, IsDefault: d.AutoSubscribed})
	}
}

func (q *Querier) fail(r *run, err error) {
	q.errors = append(q.errors, subscriptionError(q.plan, r, err))
}

func subscriptionError(p *Plan, r *run, err error) SubscriptionError {
	return SubscriptionError{
		Definition: p.definitions[r.definition].Name, Default: r.reason.Default, Subscription: r.reason.Index,
		Err: fmt.Errorf("Error evaluating bucket ids: %w", err), //nolint:staticcheck // shown to clients as the reference words it
	}
}

// run evaluates a definition up to its first lookups.
func (q *Querier) run(r run, data requestData) {
	values := q.plan.slots.values(&data)
	for i := range q.plan.queriers[r.definition] {
		p := part{q: &q.plan.queriers[r.definition][i], request: values}
		ok, err := p.start()
		if err != nil {
			q.fail(&r, err)
			return
		}
		if ok {
			r.parts = append(r.parts, p)
			q.static = q.static && p.done()
		}
	}
	q.runs = append(q.runs, r)
}

// start applies the filters and the steps before the first lookup.
func (p *part) start() (bool, error) {
	env := eval.Env{Request: p.request}
	if ok, err := all(p.q.filters, &env); !ok || err != nil {
		return false, err
	}
	p.rows = [][]model.Value{nil}
	for !p.done() && p.q.steps[p.step].each != nil {
		if err := p.each(); err != nil {
			return false, err
		}
	}
	return len(p.rows) > 0, nil
}

func all(filters []eval.Expr, env *eval.Env) (bool, error) {
	for _, f := range filters {
		v, err := f(env)
		if err != nil || !value.Truthy(v) {
			return false, err
		}
	}
	return true, nil
}

func (p *part) done() bool { return p.step == len(p.q.steps) }

// each joins the rows of a json_each.
func (p *part) each() error {
	s := &p.q.steps[p.step]
	env := eval.Env{Request: p.request}
	var out [][]model.Value
	for _, row := range p.rows {
		env.Row = row
		v, err := s.each(&env)
		if err != nil {
			return err
		}
		var rows [][]model.Value
		if s.rawEach {
			elems, err := rawElements(v, nil)
			if err != nil {
				return err
			}
			for _, e := range elems {
				rows = append(rows, []model.Value{model.NullValue, e})
			}
		} else {
			elems, err := eval.JSONEach(v, p.q.language, nil)
			if err != nil {
				return err
			}
			for _, e := range elems {
				rows = append(rows, []model.Value{e.Key, e.Value})
			}
		}
		if out, err = p.join(out, row, rows); err != nil {
			return err
		}
	}
	p.rows = p.narrow(out)
	p.step++
	return nil
}

// narrow drops rows that differ in nothing that is still read.
func (p *part) narrow(rows [][]model.Value) [][]model.Value {
	s := &p.q.steps[p.step]
	if !s.distinct || len(rows) < 2 {
		return rows
	}
	seen := make(map[string]bool, len(rows))
	out := rows[:0]
	var buf []byte
	for _, row := range rows {
		buf = buf[:0]
		for _, c := range s.live {
			buf = plan.AppendValueKey(buf, row[c])
		}
		if !seen[string(buf)] {
			seen[string(buf)] = true
			out = append(out, row)
		}
	}
	return out
}

// join appends a partial result with each of the step's rows that its filters
// let pass; with one of them if only existence matters.
func (p *part) join(out [][]model.Value, row []model.Value, rows [][]model.Value) ([][]model.Value, error) {
	s := &p.q.steps[p.step]
	env := eval.Env{Request: p.request}
	for _, r := range rows {
		joined := append(row[:len(row):len(row)], r...)
		if len(s.filters) > 0 {
			env.Row = joined
			ok, err := all(s.filters, &env)
			if err != nil {
				return nil, err
			}
			if !ok {
				continue
			}
		}
		if len(out) >= maxTuples {
			return nil, fmt.Errorf("more than %d combinations of parameters", maxTuples)
		}
		out = append(out, joined)
		if s.exists {
			break
		}
	}
	return out, nil
}

// Streams lists the definitions evaluated for this connection, as the
// checkpoint line does.
func (q *Querier) Streams() []StreamInfo { return q.streams }

// Static reports whether Resolve never calls lookup, so that its answer never
// changes.
func (q *Querier) Static() bool { return q.static }

// LimitError is returned by Resolve when a bound of the request is exceeded.
type LimitError struct {
	Message      string
	ByDefinition map[string]int
}

func (e *LimitError) Error() string { return e.Message }

// Resolve returns the buckets at one checkpoint. lookup returns for each key
// the model.ParameterEntry.Values found under it, and is called once per stage.
func (q *Querier) Resolve(lookup func(keys []string) ([][]string, error)) (*Buckets, error) {
	r := &resolution{Querier: q, lookup: lookup, found: map[string]*lookupResult{}, out: &Buckets{}}
	r.out.Errors = append(r.out.Errors, q.errors...)
	for i := range q.runs {
		w := &work{run: &q.runs[i], parts: append([]part(nil), q.runs[i].parts...)}
		r.work = append(r.work, w)
	}
	for {
		more, err := r.stage()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if err := r.buckets(); err != nil {
		return nil, err
	}
	return r.out, nil
}

// checkLimit fails if n is beyond a limit that is set.
func checkLimit(format string, n, limit int, by map[string]int) error {
	if limit <= 0 || n <= limit {
		return nil
	}
	return &LimitError{Message: fmt.Sprintf(format, n, limit), ByDefinition: by}
}

// maxTuples bounds the partial results of one querier, whatever the limits:
// clients choose the lengths of the arrays that are combined.
const maxTuples = 100_000

// liveness finds what later steps and parameters read of each step.
func (b *boundQuerier) liveness(q *plan.Querier, offsets []int) {
	last := map[int]int{} // column → last step that reads it; len(steps) = parameters
	named := map[int]bool{}
	read := func(e *plan.Expr, at int) {
		e.Walk(func(n *plan.Expr) {
			if n.Op == plan.Step {
				last[offsets[n.Index]+n.Index2] = at
				named[n.Index] = named[n.Index] || at == len(q.Steps)
			}
		})
	}
	for i := range q.Steps {
		for _, e := range q.Steps[i].Inputs {
			read(e, i)
		}
		for _, e := range q.Steps[i].Filters {
			read(e, i)
		}
		if q.Steps[i].Each != nil {
			read(q.Steps[i].Each, i)
		}
	}
	for _, p := range q.Params {
		for _, e := range p.Sources {
			read(e, len(q.Steps))
		}
	}
	for i := range b.steps {
		s := &b.steps[i]
		end := math.MaxInt
		if i+1 < len(offsets) {
			end = offsets[i+1]
		}
		s.exists, s.distinct = true, !named[i]
		for c, until := range last {
			if until <= i || c >= end {
				continue
			}
			s.live = append(s.live, c)
			if c >= offsets[i] {
				s.exists = false
			}
		}
		slices.Sort(s.live)
	}
}
