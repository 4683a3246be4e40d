package rules

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/resolve"
)

// Plan is a compiled sync config.
type Plan struct {
	plan        *plan.Plan
	language    eval.Options
	prefix      string // of bucket ids
	layer       string // of lookup keys, before the number of the index
	tables      []model.TablePattern
	values      model.ValueOptions
	definitions []Definition
	queriers    [][]boundQuerier // by definition
	slots       requestSlots
	// buckets and lookups are what the names of the data begin with that others
	// make and this plan reads (see Over), by source and by index; nil: its own.
	buckets, lookups []string
	// made are the parts that others make of rows (see Less), and no event is
	// made; nil: this plan makes all of its own.
	made map[string]bool
}

// Compile compiles a sync config. It reports everything that it finds; the
// plan is nil if any of it is fatal.
func Compile(yaml string, o Options) (*Plan, []Diagnostic) {
	if o.DefaultSchema == "" {
		o.DefaultSchema = "public"
	}
	c, findings := config.Parse(yaml)
	ro := resolve.Options{DefaultSchema: o.DefaultSchema}
	if o.Schema != nil {
		ro.Schema = o.Schema
	}
	compiled, more := resolve.Resolve(c, ro)
	diagnostics, fatal := diagnose(yaml, append(findings, more...))
	if fatal {
		return nil, diagnostics
	}
	return newPlan(c, compiled, o), diagnostics
}

func newPlan(c *config.Config, compiled *plan.Plan, o Options) *Plan {
	p := &Plan{
		plan:     compiled,
		language: eval.Options{Edition: compiled.Edition, FixedJSONExtract: compiled.FixedJSON},
		values: model.ValueOptions{
			ISO8601: c.Options.TimestampsISO8601, MaxDigits: c.Options.MaxDigits, CustomTypes: c.Options.CustomPostgresTypes,
		},
	}
	if o.Version != 0 {
		p.prefix = strconv.FormatInt(o.Version, 10) + "#"
	}
	if o.Layer != 0 {
		layer := strconv.FormatInt(int64(o.Layer), 10)
		p.prefix = strconv.FormatInt(o.Version, 10) + "." + layer + "#"
		p.layer = layer + "."
	}
	p.tables = compiled.Tables()
	for i, d := range compiled.Definitions {
		kind := BucketDefinition
		if d.Stream {
			kind = StreamDefinition
		}
		p.definitions = append(p.definitions, Definition{
			Name: d.Name, Kind: kind, Priority: d.Priority, AutoSubscribed: d.AutoSubscribe, Identity: compiled.Identity(i),
		})
	}
	p.bindQueriers()
	return p
}

// maxDiagnostics is how many findings are reported.
const maxDiagnostics = 200

// diagnose gives findings their lines and columns.
func diagnose(yaml string, findings []config.Finding) (ds []Diagnostic, fatal bool) {
	for i, f := range findings {
		fatal = fatal || f.Fatal
		if i >= maxDiagnostics {
			continue
		}
		d := Diagnostic{Fatal: f.Fatal, Message: f.Message, Class: f.Class}
		if f.At != config.None {
			d.Start, d.End = f.At.Start, f.At.End
			d.Line, d.Column = position(yaml, d.Start)
			d.EndLine, d.EndColumn = position(yaml, d.End)
		}
		ds = append(ds, d)
	}
	if n := len(findings) - maxDiagnostics; n > 0 {
		ds = append(ds, Diagnostic{Fatal: fatal, Message: fmt.Sprintf("and %d more", n), Class: "more"})
	}
	return ds, fatal
}

// position returns line and column (in characters) of an offset, from 1.
func position(text string, offset int) (line, column int) {
	before := text[:min(max(offset, 0), len(text))]
	start := strings.LastIndexByte(before, '\n') + 1
	column = 1
	for _, r := range strings.TrimPrefix(before[start:], "\ufeff") {
		column++
		if r > 0xffff {
			column++ // editors count UTF-16 units
		}
	}
	return 1 + strings.Count(before, "\n"), column
}

// Tables implements resolve.Schema.
func (s *Schema) Tables(p model.TablePattern) []map[string]string {
	var out []map[string]string
	for schema, tables := range s.Connections[p.Connection] {
		for name, t := range tables {
			if !Matches(p, &model.SourceTable{Connection: p.Connection, Schema: schema, Name: name}) {
				continue
			}
			columns := make(map[string]string, len(t.Columns))
			for _, c := range t.Columns {
				columns[c.Name] = c.Type
			}
			out = append(out, columns)
		}
	}
	return out
}

// Names implements resolve.Schema.
func (s *Schema) Names(connection, schema string) []string {
	var out []string
	for name := range s.Connections[connection][schema] {
		out = append(out, name)
	}
	return out
}

// SourceTables returns the tables that the config reads.
func (p *Plan) SourceTables() []model.TablePattern { return p.tables }

// Values says how source values must be converted for this config.
func (p *Plan) Values() model.ValueOptions { return p.values }

// Identity is equal for configs that mean the same: that have the same
// definitions, in whatever order, and the same events, and want the source's
// values converted alike. Their plans make the same buckets and rows; the lookups
// of one are not those of another.
func (p *Plan) Identity() [32]byte {
	all := make([][32]byte, len(p.definitions))
	for i := range p.definitions {
		all[i] = p.definitions[i].Identity
	}
	slices.SortFunc(all, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	b := fmt.Appendf(nil, "%t %d %t", p.values.ISO8601, p.values.MaxDigits, p.values.CustomTypes)
	for i := range all {
		b = append(b, all[i][:]...)
	}
	return sha256.Sum256(append(b, p.eventKey()...))
}

// eventKey is equal for plans with the same event definitions.
func (p *Plan) eventKey() string {
	var b []byte
	for i := range p.plan.Events {
		b = p.plan.Events[i].AppendKey(b)
	}
	return string(b)
}

// Definitions returns the bucket definitions and streams in the config's order.
func (p *Plan) Definitions() []Definition { return p.definitions }
