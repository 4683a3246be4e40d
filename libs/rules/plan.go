package rules

import "github.com/sluicesync/sluice/libs/model"

// Plan is a compiled sync config.
type Plan struct {
	tables      []model.TablePattern
	values      model.ValueOptions
	definitions []Definition
}

// Compile compiles a sync config. It reports everything that it finds; the
// plan is nil if any of it is fatal.
func Compile(yaml string, o Options) (*Plan, []Diagnostic) {
	return &Plan{}, nil
}

// SourceTables returns the tables that the config reads.
func (p *Plan) SourceTables() []model.TablePattern { return p.tables }

// Values says how source values must be converted for this config.
func (p *Plan) Values() model.ValueOptions { return p.values }

// Definitions returns the bucket definitions and streams in the config's order.
func (p *Plan) Definitions() []Definition { return p.definitions }

// TableEvaluator evaluates rows of one source table. It is immutable and safe
// for concurrent use.
type TableEvaluator struct{}

// Table returns the evaluator of a source table's rows, with its columns
// resolved to offsets; nil if the config does not use the table. Callers keep
// it as long as they keep t.
func (p *Plan) Table(t *model.SourceTable) *TableEvaluator { return nil }

// RowResult is what a row gives. Reset it before each row, or not, to gather
// several.
type RowResult struct {
	Puts    []model.Put
	Lookups []model.ParameterEntry
	Events  []Event
	Errors  []RowError
}

// Reset empties r and keeps its memory. What the puts and lookups refer to
// stays valid.
func (r *RowResult) Reset() {
	r.Puts, r.Lookups, r.Events, r.Errors = r.Puts[:0], r.Lookups[:0], r.Events[:0], r.Errors[:0]
}

// EvaluateRow appends to out what row gives: at most one put per bucket, table
// and id.
func (te *TableEvaluator) EvaluateRow(row []model.Value, out *RowResult) {}

// Querier finds the buckets of one connection. It is not safe for concurrent
// use.
type Querier struct{}

// Querier evaluates what depends on the request alone.
func (p *Plan) Querier(r Request) (*Querier, error) { return &Querier{}, nil }

// Streams lists the definitions evaluated for this connection, as the
// checkpoint line does.
func (q *Querier) Streams() []StreamInfo { return nil }

// Static reports whether Resolve never calls lookup, so that its answer never
// changes.
func (q *Querier) Static() bool { return true }

// Resolve returns the buckets at one checkpoint. lookup returns for each key
// the model.ParameterEntry.Values found under it, and is called once per stage.
func (q *Querier) Resolve(lookup func(keys []string) ([][]string, error)) (*Buckets, error) {
	return &Buckets{}, nil
}

// LimitError is returned by Resolve when a bound of the request is exceeded.
type LimitError struct {
	Message      string
	ByDefinition map[string]int
}

func (e *LimitError) Error() string { return e.Message }
