// Package resolve turns a sync config into a plan: it parses the SQL, finds
// what each name means, and brings the clauses of each edition into the one
// form that package plan describes.
//
//	legacy.go, clause.go   bucket definitions, events: the clause model of spec/03 §5.3
//	stream2.go             edition 2 streams, on the same model
//	scope.go, cond.go,
//	variant.go, stream3.go edition 3: sources, conditions in disjunctive form,
//	                       one variant of them, what streams share
//	danger.go              who chooses the buckets of a variant
//
// Invariants:
//
//   - Every problem is reported, with its place in the YAML, whatever the style
//     of the scalar that the SQL stands in (TestGolden of package rules).
//   - What a plan gives is what the config says: as recorded (TestVectors of
//     package conformance), and as a naive evaluation has it (TestNaive of
//     package rules).
//   - What a config costs grows with its length (TestHostile of package rules).
//
// All of its tests are in those packages, which see what its plans do.
package resolve

import (
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// Options of a resolution.
type Options struct {
	DefaultSchema string
	Schema        Schema // nil = unknown
}

// Schema answers for the source database.
type Schema interface {
	// Tables returns the columns of the tables that match a pattern: for each
	// table a map from column to SQLite type.
	Tables(p model.TablePattern) []map[string]string
	// Names returns the names of tables in a schema, for suggestions.
	Names(connection, schema string) []string
}

// Resolve makes the plan of a config. The plan is of use only if no finding is
// fatal.
func Resolve(c *config.Config, o Options) (*plan.Plan, []config.Finding) {
	r := &resolver{
		config:   c,
		options:  o,
		language: eval.Options{Edition: min(max(int(c.Options.Edition), 1), 3), FixedJSONExtract: c.Options.FixedJSONExtract},
		plan:     &plan.Plan{Edition: int(c.Options.Edition), FixedJSON: c.Options.FixedJSONExtract},
		sources:  map[string]int{},
		indexes:  map[string]int{},
	}
	if c.Options.Compiler3() {
		if c.HasRules {
			r.fatal("unsupported", c.RulesAt, "bucket_definitions are not part of edition 3; use streams")
		}
		r.streams3()
	} else {
		for i := range c.Buckets {
			r.bucketDefinition(&c.Buckets[i])
		}
		for i := range c.Streams {
			r.stream2(&c.Streams[i])
		}
	}
	for i := range c.Events {
		r.event(&c.Events[i])
	}
	return r.plan, r.findings
}

type resolver struct {
	config   *config.Config
	options  Options
	language eval.Options
	plan     *plan.Plan
	findings []config.Finding
	// Places in the plan of sources and indexes of edition 3, by their keys.
	sources, indexes map[string]int
}

func (r *resolver) fatal(class string, at config.Span, format string, args ...any) {
	r.findings = append(r.findings, config.Finding{Fatal: true, Class: class, Message: fmt.Sprintf(format, args...), At: at})
}

func (r *resolver) warn(class string, at config.Span, format string, args ...any) {
	r.findings = append(r.findings, config.Finding{Class: class, Message: fmt.Sprintf(format, args...), At: at})
}

// query is one SQL text being resolved.
type query struct {
	*resolver
	text config.Text
	bad  bool // something fatal was found in it
}

func (q *query) fatal(class string, at syntax.Span, format string, args ...any) {
	q.bad = true
	q.resolver.fatal(class, q.text.Span(at.Start, at.End), format, args...)
}

func (q *query) warn(class string, at syntax.Span, format string, args ...any) {
	q.resolver.warn(class, q.text.Span(at.Start, at.End), format, args...)
}

func (q *query) whole() syntax.Span { return syntax.Span{Start: 0, End: len(q.text.Value)} }

// parse parses a text; nil if it has syntax errors or is not a SELECT.
func (r *resolver) parse(t config.Text) (*query, *syntax.Select) {
	q := &query{resolver: r, text: t}
	s, errs := syntax.Parse(t.Value)
	for _, e := range errs {
		q.fatal("syntax", e.Span, "%s", e.Msg)
	}
	if s == nil {
		return q, nil
	}
	if s.NotSelect {
		q.fatal("not-a-select", s.At(), "only SELECT is supported, not %s", s.Unsupported[0].What)
		return q, nil
	}
	q.unsupported(s)
	return q, s
}

// unsupported reports clauses that no edition has.
func (q *query) unsupported(s *syntax.Select) {
	for _, u := range s.Unsupported {
		q.fatal("unsupported-clause", u.At(), "%s is not supported", u.What)
	}
}

// tablePattern finds what a table name means.
func (q *query) tablePattern(t *syntax.Table) model.TablePattern {
	p := model.TablePattern{Connection: model.DefaultConnection, Schema: q.options.DefaultSchema, Name: t.Name.Name}
	if len(t.Extra) > 0 {
		q.fatal("unsupported", t.At(), "a table name has two parts at most: schema and table")
	}
	if t.Schema != nil {
		p.Schema = t.Schema.Name
		dots := 0
		for i := range p.Schema {
			if p.Schema[i] == '.' {
				dots++
			}
		}
		switch {
		case dots > 1:
			q.fatal("unsupported", t.Schema.At(), "a schema is \"schema\" or \"connection.schema\"")
		case dots == 1:
			p.Schema = p.Schema[indexByte(p.Schema, '.')+1:]
		}
	}
	return p
}

func indexByte(s string, c byte) int {
	for i := range len(s) {
		if s[i] == c {
			return i
		}
	}
	return -1
}
