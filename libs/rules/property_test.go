package rules

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/jsontext"
)

var (
	propertySeeds = flag.Int("property.n", 3000, "how many random configs TestNaive tries")
	propertySeed  = flag.Uint64("property.seed", 0, "try this one only")
)

// TestNaive holds D6 and INV-31 for random configs, rows and tokens: a row is synced
// to a user exactly when the query, evaluated naively over all rows at once, says so.
func TestNaive(t *testing.T) {
	accepted := 0
	for seed := range uint64(*propertySeeds) {
		if *propertySeed != 0 && seed+1 != *propertySeed {
			continue
		}
		w := newWorld(seed + 1)
		plan, ds := Compile(w.yaml, Options{})
		if plan == nil {
			continue // not every random query is one that is supported
		}
		accepted++
		w.check(t, plan, seed+1)
		if t.Failed() {
			t.Fatalf("seed %d\n%s\n%v", seed+1, w.yaml, ds)
		}
	}
	if *propertySeed == 0 && accepted < *propertySeeds/4 {
		t.Errorf("only %d of %d configs are accepted", accepted, *propertySeeds)
	}
}

// world is a random config with data.
type world struct {
	*rand.Rand
	yaml   string
	tables map[string][]map[string]any
	tokens []map[string]any
	// naive tells whether a row of t is synced to a token.
	naive func(row map[string]any, token map[string]any) bool
}

// A condition is rendered as SQL and evaluated naively, over rows by the name
// of their source.
type condition struct {
	sql  string
	eval func(rows map[string]map[string]any, token map[string]any) bool
}

type operand struct {
	sql  string
	eval func(rows map[string]map[string]any, token map[string]any) any
}

func newWorld(seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 7)), tables: map[string][]map[string]any{}}
	for _, name := range []string{"t", "u", "v"} {
		for i := range 2 + w.IntN(5) {
			row := map[string]any{"id": fmt.Sprintf("%s%d", name, i)}
			for _, c := range []string{"a", "b", "c"} {
				row[c] = w.data()
			}
			row["tags"] = w.array()
			w.tables[name] = append(w.tables[name], row)
		}
	}
	for range 4 {
		token := map[string]any{"sub": w.pick("x", "y", "z")}
		if w.IntN(4) > 0 {
			token["p"] = w.data()
		}
		if w.IntN(4) > 0 {
			token["list"] = w.array()
		}
		w.tokens = append(w.tokens, token)
	}
	if w.IntN(3) == 0 {
		w.rules()
	} else {
		w.stream()
	}
	return w
}

func (w *world) pick(s ...string) string { return s[w.IntN(len(s))] }

// data is a value of a small domain, so that values often meet.
func (w *world) data() any {
	switch w.IntN(6) {
	case 0:
		return nil
	case 1:
		return 1
	case 2:
		return 2
	}
	return w.pick("x", "y", "z")
}

func (w *world) array() []any {
	out := []any{}
	for range w.IntN(3) {
		out = append(out, w.data())
	}
	return out
}

func (w *world) column(source string) operand {
	c := w.pick("a", "b", "c")
	return operand{source + "." + c, func(rows map[string]map[string]any, _ map[string]any) any { return rows[source][c] }}
}

func (w *world) literal() operand {
	v := w.data()
	return operand{sqlLiteral(v), func(map[string]map[string]any, map[string]any) any { return v }}
}

func sqlLiteral(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case string:
		return "'" + v + "'"
	}
	return fmt.Sprint(v)
}

func (w *world) request() operand {
	if w.IntN(2) == 0 {
		return operand{"auth.user_id()", func(_ map[string]map[string]any, token map[string]any) any { return token["sub"] }}
	}
	return operand{"auth.parameter('p')", func(_ map[string]map[string]any, token map[string]any) any { return token["p"] }}
}

func equals(x, y any) bool { return x != nil && y != nil && x == y }

func equality(x, y operand) condition {
	return condition{x.sql + " = " + y.sql, func(rows map[string]map[string]any, token map[string]any) bool {
		return equals(x.eval(rows, token), y.eval(rows, token))
	}}
}

func contains(list any, v any) bool {
	elems, _ := list.([]any)
	for _, e := range elems {
		if equals(e, v) {
			return true
		}
	}
	return false
}

// plainAtom is a condition over one source, which can be negated.
func (w *world) plainAtom(source string) condition {
	x := w.column(source)
	if w.IntN(4) == 0 {
		x = w.request()
	}
	if w.IntN(4) == 0 {
		return condition{x.sql + " IS NULL", func(rows map[string]map[string]any, token map[string]any) bool {
			return x.eval(rows, token) == nil
		}}
	}
	return equality(x, w.literal())
}

// cond is a random condition over the sources in scope.
func (w *world) cond(sources []string, depth int) condition {
	source := sources[w.IntN(len(sources))]
	n := w.IntN(10)
	if depth <= 0 {
		n = 5 + n%5
	}
	switch n {
	case 0, 1:
		return join(" AND ", w.cond(sources, depth-1), w.cond(sources, depth-1), func(x, y bool) bool { return x && y })
	case 2, 3:
		return join(" OR ", w.cond(sources, depth-1), w.cond(sources, depth-1), func(x, y bool) bool { return x || y })
	case 4:
		c := w.plainAtom(source)
		if w.IntN(2) == 0 {
			c = join(" AND ", c, w.plainAtom(source), func(x, y bool) bool { return x && y })
		}
		return condition{"NOT (" + c.sql + ")", func(rows map[string]map[string]any, token map[string]any) bool { return !c.eval(rows, token) }}
	case 5:
		return w.plainAtom(source)
	case 6, 7:
		return equality(w.column(source), w.request())
	case 8:
		return w.arrayAtom(source)
	}
	return w.subquery(sources, depth)
}

func join(op string, x, y condition, f func(x, y bool) bool) condition {
	return condition{"(" + x.sql + op + y.sql + ")", func(rows map[string]map[string]any, token map[string]any) bool {
		return f(x.eval(rows, token), y.eval(rows, token))
	}}
}

func (w *world) arrayAtom(source string) condition {
	switch w.IntN(3) {
	case 0:
		x := w.column(source)
		return condition{x.sql + " IN auth.parameter('list')", func(rows map[string]map[string]any, token map[string]any) bool {
			return contains(token["list"], x.eval(rows, token))
		}}
	case 1:
		x := w.request()
		return condition{x.sql + " IN " + source + ".tags", func(rows map[string]map[string]any, token map[string]any) bool {
			return contains(rows[source]["tags"], x.eval(rows, token))
		}}
	}
	return condition{source + ".tags && auth.parameter('list')", func(rows map[string]map[string]any, token map[string]any) bool {
		for _, e := range rows[source]["tags"].([]any) {
			if contains(token["list"], e) {
				return true
			}
		}
		return false
	}}
}

func (w *world) subquery(sources []string, depth int) condition {
	x := w.column(sources[w.IntN(len(sources))])
	if w.IntN(4) == 0 {
		x = w.request()
	}
	table := w.pick("u", "v")
	alias := fmt.Sprintf("%s%d", table, w.IntN(1000))
	out := w.column(alias)
	inner := []string{alias}
	if w.IntN(5) == 0 {
		inner = append(inner, sources[0]) // correlated
	}
	where := w.cond(inner, depth-1)
	sql := fmt.Sprintf("%s IN (SELECT %s FROM %s AS %s WHERE %s)", x.sql, out.sql, table, alias, where.sql)
	return condition{sql, func(rows map[string]map[string]any, token map[string]any) bool {
		v := x.eval(rows, token)
		for _, r := range w.tables[table] {
			scope := map[string]map[string]any{}
			for k, v := range rows {
				scope[k] = v
			}
			scope[alias] = r
			if equals(v, out.eval(scope, token)) && where.eval(scope, token) {
				return true
			}
		}
		return false
	}}
}

// stream makes a config of edition 2 or 3 with one stream.
func (w *world) stream() {
	if w.IntN(3) == 0 {
		on := equality(w.column("t"), w.column("u"))
		where := w.cond([]string{"t", "u"}, 2)
		w.yaml = fmt.Sprintf("config:\n  edition: 3\nstreams:\n  s:\n    auto_subscribe: true\n    query: |\n      SELECT t.* FROM t JOIN u ON %s WHERE %s\n", on.sql, where.sql)
		w.naive = func(row, token map[string]any) bool {
			for _, r := range w.tables["u"] {
				rows := map[string]map[string]any{"t": row, "u": r}
				if on.eval(rows, token) && where.eval(rows, token) {
					return true
				}
			}
			return false
		}
		return
	}
	where := w.cond([]string{"t"}, 3)
	w.yaml = fmt.Sprintf("config:\n  edition: %d\nstreams:\n  s:\n    auto_subscribe: true\n    query: |\n      SELECT t.* FROM t WHERE %s\n", 2+w.IntN(2), where.sql)
	w.naive = func(row, token map[string]any) bool {
		return where.eval(map[string]map[string]any{"t": row}, token)
	}
}

// rules makes a config of edition 1 with one bucket definition.
func (w *world) rules() {
	where := join(" AND ", w.match("u"), w.plainRow("u"), func(x, y bool) bool { return x && y })
	out, key := w.column("u"), w.column("t")
	filter := w.plainRow("t")
	w.yaml = fmt.Sprintf("bucket_definitions:\n  b:\n    parameters: SELECT %s AS k FROM u WHERE %s\n    data:\n      - SELECT * FROM t WHERE %s = bucket.k AND %s\n",
		out.sql, rulesText(where.sql), key.sql, filter.sql)
	w.naive = func(row, token map[string]any) bool {
		for _, r := range w.tables["u"] {
			rows := map[string]map[string]any{"t": row, "u": r}
			if where.eval(rows, token) && equals(out.eval(rows, token), key.eval(rows, token)) && filter.eval(rows, token) {
				return true
			}
		}
		return false
	}
}

func (w *world) match(source string) condition {
	if w.IntN(3) == 0 {
		return w.arrayAtom(source)
	}
	return equality(w.column(source), w.request())
}

func (w *world) plainRow(source string) condition {
	return equality(w.column(source), w.literal())
}

// rulesText writes request functions as rules have them.
func rulesText(sql string) string {
	return strings.NewReplacer("auth.user_id()", "request.user_id()", "auth.parameter('p')", "(request.jwt() ->> 'p')",
		"auth.parameter('list')", "(request.jwt() -> 'list')").Replace(sql)
}

func (w *world) check(t *testing.T, p *Plan, seed uint64) {
	index := map[string][]string{}
	in := map[string]map[string]bool{} // row of t → buckets
	for name, rows := range w.tables {
		table := &model.SourceTable{Connection: "default", Schema: "public", Name: name}
		for _, c := range []string{"id", "a", "b", "c", "tags"} {
			table.Columns = append(table.Columns, model.Column{Name: c})
		}
		te := p.Table(table)
		if te == nil {
			continue
		}
		for _, row := range rows {
			values := make([]model.Value, 0, 5)
			for _, c := range table.Columns {
				values = append(values, sqlValue(t, row[c.Name]))
			}
			var out RowResult
			te.EvaluateRow(values, &out)
			for _, e := range out.Errors {
				t.Errorf("row %v: %v", row, e.Err)
			}
			for _, put := range out.Puts {
				if in[put.ObjectID] == nil {
					in[put.ObjectID] = map[string]bool{}
				}
				in[put.ObjectID][put.Bucket] = true
			}
			for _, l := range out.Lookups {
				index[l.Lookup] = append(index[l.Lookup], l.Values)
			}
		}
	}
	for _, token := range w.tokens {
		q, err := p.Querier(Request{Token: jsonText(t, token), IncludeDefaults: true})
		if err != nil {
			t.Fatal(err)
		}
		got, err := q.Resolve(func(keys []string) ([][]string, error) {
			out := make([][]string, len(keys))
			for i, k := range keys {
				out[i] = index[k]
			}
			return out, nil
		})
		if err != nil || len(got.Errors) > 0 {
			t.Errorf("token %v: %v %v", token, err, got)
			continue
		}
		for _, row := range w.tables["t"] {
			synced := false
			for _, b := range got.Buckets {
				synced = synced || in[row["id"].(string)][b.ID]
			}
			if want := w.naive(row, token); synced != want {
				t.Errorf("seed %d: row %v, token %v: synced %v, want %v", seed, row, token, synced, want)
			}
		}
	}
}

// sqlValue is a value of a row or token as a source or service decodes it.
func sqlValue(t *testing.T, v any) model.Value {
	n, err := jsontext.ParseHost(string(jsonText(t, v)))
	if err != nil {
		t.Fatal(err)
	}
	return n.SQL()
}

func jsonText(t *testing.T, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
