package resolve

import (
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/config"
	"github.com/sluicesync/sluice/libs/rules/plan"
	"github.com/sluicesync/sluice/libs/rules/syntax"
)

// table is a source table in a FROM, and what is known of its columns.
type table struct {
	*query
	name    string // by which columns refer to it
	alias   *syntax.Ident
	pattern model.TablePattern
	at      syntax.Span
	known   []map[string]string // columns of the tables that match, if there is a schema
}

// newTable resolves a table name and warns if there is no such table.
func (q *query) newTable(s *syntax.Source) *table {
	t := &table{query: q, name: s.Table.Name.Name, alias: s.Alias, pattern: q.tablePattern(s.Table), at: s.Table.At()}
	q.noColumnNames(s)
	q.folds(&s.Table.Name)
	if s.Alias != nil {
		t.name = s.Alias.Name
	}
	if q.options.Schema == nil {
		return t
	}
	t.known = q.options.Schema.Tables(t.pattern)
	if len(t.known) == 0 {
		q.warn("unknown-table", t.at, "table %s.%s does not exist%s", t.pattern.Schema, t.pattern.Name,
			suggestion(t.pattern.Name, q.options.Schema.Names(t.pattern.Connection, t.pattern.Schema)))
	}
	return t
}

// noColumnNames reports t AS x(a, b): only the columns of a subquery can be
// given other names.
func (q *query) noColumnNames(s *syntax.Source) {
	if len(s.Columns) > 0 {
		q.fatal("unsupported", s.At(), "column names after an alias are supported for subqueries only")
	}
}

func suggestion(name string, known []string) string {
	if near := config.Nearest(name, known); near != "" {
		return "; is it " + near + "?"
	}
	return ""
}

// output is the table name that clients see, "" for the source table's own.
func (t *table) output() string {
	if t.alias != nil {
		return t.alias.Name
	}
	return ""
}

func (t *table) wildcard() bool { return strings.HasSuffix(t.pattern.Name, "%") }

// has warns of a column that no matching table has.
func (t *table) has(c *syntax.Column) {
	if len(t.known) == 0 {
		return
	}
	var names []string
	for _, cols := range t.known {
		if _, ok := cols[c.Name.Name]; ok {
			return
		}
		for n := range cols {
			names = append(names, n)
		}
	}
	t.warn("unknown-column", c.At(), "column %s does not exist%s", c.Name.Name, suggestion(c.Name.Name, names))
}

// lacksID tells whether the schema is known and has no column id.
func (t *table) lacksID() bool {
	for _, cols := range t.known {
		if _, ok := cols["id"]; ok {
			return false
		}
	}
	return len(t.known) > 0
}

// folds warns of an unquoted name with capitals, which means another name than
// it seems. Edition 3 is silent about it.
func (q *query) folds(i *syntax.Ident) {
	if i.Folded && q.language.Edition < 3 {
		q.warn("identifier-case", i.At(), "%s means %s here; write \"…\" around a name with capitals", q.text.Value[i.At().Start:i.At().End], i.Name)
	}
}

// oldLeaves resolves the leaves of rules and edition 2 streams.
type oldLeaves struct {
	*query
	table  *table         // nil without FROM
	each   string         // name of the json_each in FROM, or ""
	bucket map[string]int // parameters of the bucket, in data queries
	fns    func(c *syntax.Call) *plan.Expr
	values bool // token_parameters.x and user_parameters.x exist
}

func (l *oldLeaves) column(c *syntax.Column) *plan.Expr {
	name := c.Name.Name
	qualifier := ""
	if c.Table != nil {
		qualifier = c.Table.Name
	}
	at := &ref{at: c.At()}
	switch {
	case l.table != nil && (qualifier == "" || qualifier == l.table.name):
		if name == "_table_suffix" && l.table.wildcard() {
			return &plan.Expr{Op: plan.TableSuffix, From: at}
		}
		l.folds(&c.Name)
		l.table.has(c)
		return &plan.Expr{Op: plan.Column, Name: name, From: at}
	case l.each != "" && (qualifier == "" || qualifier == l.each):
		switch name {
		case "key":
			return &plan.Expr{Op: plan.Step, From: at}
		case "value":
			return &plan.Expr{Op: plan.Step, Index2: 1, From: at}
		}
		l.fatal("undefined-reference", c.At(), "json_each has the columns key and value only")
		return nil
	case l.bucket != nil && qualifier == "bucket":
		i, ok := l.bucket[name]
		if !ok {
			names := make([]string, 0, len(l.bucket))
			for n := range l.bucket {
				names = append(names, n)
			}
			l.fatal("parameter-coverage", c.At(), "no parameter %s%s", name, suggestion(name, names))
			return nil
		}
		return &plan.Expr{Op: plan.Step, Index: i, From: at}
	case l.values && qualifier == "token_parameters":
		return extract(plan.TokenParameters, name, at)
	case l.values && qualifier == "user_parameters":
		return extract(plan.Parameters, name, at)
	}
	if qualifier != "" {
		l.fatal("undefined-reference", c.At(), "%s is not defined here", qualifier)
	} else {
		l.fatal("undefined-reference", c.At(), "%s is not defined: there is no FROM", name)
	}
	return nil
}

// extract is a member of a request's object, by its exact name.
func extract(object, name string, at *ref) *plan.Expr {
	return &plan.Expr{
		Op: plan.Request, Name: object, Index: 1, Value: model.TextValue(name), From: at,
	}
}

func (l *oldLeaves) call(c *syntax.Call) *plan.Expr {
	if l.fns == nil {
		l.fatal("unknown-function", c.At(), "unknown function %s.%s", c.Namespace.Name, c.Name.Name)
		return nil
	}
	return l.fns(c)
}

// member checks the argument of parameter('…') and makes the access.
func (q *query) parameter(c *syntax.Call, object string) *plan.Expr {
	if len(c.Args) == 1 {
		if s, ok := c.Args[0].(*syntax.String); ok {
			return &plan.Expr{
				Op: plan.Member, Name: "->>", Value: model.TextValue(s.Value), Negate: true,
				Args: []*plan.Expr{request(object, c)},
			}
		}
	}
	q.fatal("arguments", c.At(), "%s.%s needs one text: the name of a parameter", c.Namespace.Name, c.Name.Name)
	return nil
}

func request(name string, c *syntax.Call) *plan.Expr {
	return &plan.Expr{Op: plan.Request, Name: name, From: &ref{at: c.At()}}
}

// rulesFunction resolves request.…() of bucket definitions.
func (q *query) rulesFunction(c *syntax.Call) *plan.Expr {
	if c.Namespace.Name != "request" {
		q.fatal("unknown-function", c.At(), "unknown function %s.%s", c.Namespace.Name, c.Name.Name)
		return nil
	}
	object := map[string]string{"user_id": plan.UserID, "jwt": plan.Token, "parameters": plan.Parameters}[c.Name.Name]
	switch {
	case c.Name.Name == "parameter":
		return q.parameter(c, plan.Parameters)
	case object == "":
		q.fatal("unknown-function", c.At(), "unknown function request.%s%s", c.Name.Name,
			suggestion(c.Name.Name, []string{"user_id", "jwt", "parameters", "parameter"}))
		return nil
	case len(c.Args) > 0:
		q.fatal("arguments", c.At(), "request.%s has no arguments", c.Name.Name)
		return nil
	}
	return request(object, c)
}

// streamFunction resolves auth.…(), connection.…() and subscription.…().
func (q *query) streamFunction(c *syntax.Call) *plan.Expr {
	object := map[string]string{
		"auth": plan.Token, "connection": plan.Parameters, "subscription": plan.SubscriptionArgs,
	}[c.Namespace.Name]
	known := []string{"parameters", "parameter"}
	if object == plan.Token {
		known = append(known, "user_id")
	}
	switch {
	case object != "" && c.Name.Name == "parameters":
		return request(object, c)
	case object != "" && c.Name.Name == "parameter":
		return q.parameter(c, object)
	case object == plan.Token && c.Name.Name == "user_id":
		return request(plan.UserID, c)
	case object != "":
		q.fatal("unknown-function", c.At(), "unknown function %s.%s%s", c.Namespace.Name, c.Name.Name, suggestion(c.Name.Name, known))
	default:
		q.fatal("unknown-function", c.At(), "unknown function %s.%s; streams have auth, connection and subscription", c.Namespace.Name, c.Name.Name)
	}
	return nil
}
