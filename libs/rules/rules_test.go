package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
)

// client resolves a request against an index of given entries.
func client(t *testing.T, p *Plan, r Request, index map[string][]string) (*Querier, *Buckets, error) {
	t.Helper()
	q, err := p.Querier(r)
	if err != nil {
		t.Fatal(err)
	}
	b, err := q.Resolve(func(keys []string) ([][]string, error) {
		out := make([][]string, len(keys))
		for i, k := range keys {
			out[i] = index[k]
		}
		return out, nil
	})
	return q, b, err
}

// indexOf evaluates rows of one table, columns in order.
func indexOf(p *Plan, table string, columns string, rows ...[]model.Value) map[string][]string {
	t := &model.SourceTable{Connection: "default", Schema: "public", Name: table}
	for _, c := range strings.Fields(columns) {
		t.Columns = append(t.Columns, model.Column{Name: c})
	}
	index := map[string][]string{}
	te := p.Table(t)
	for _, row := range rows {
		var out RowResult
		te.EvaluateRow(row, &out)
		for _, l := range out.Lookups {
			index[l.Lookup] = append(index[l.Lookup], l.Values)
		}
	}
	return index
}

const memberLists = `
config:
  edition: 3
streams:
  s:
    auto_subscribe: true
    query: SELECT * FROM todos WHERE list_id IN (SELECT list_id FROM members WHERE user_id = auth.user_id())
`

// TestLimits holds that Resolve stops at its bounds and says who passed them.
// TestRequestJSON holds that objects of a request keep their order, as far as
// the host language does, and their numbers are reals.
func TestRequestJSON(t *testing.T) {
	p := mustCompile(t, `
config: {edition: 3}
streams:
  s:
    auto_subscribe: true
    queries:
      - SELECT id FROM t WHERE a = auth.parameter('o')
      - SELECT id FROM t WHERE b = connection.parameters()
      - SELECT id FROM t WHERE c = auth.parameter('sub')
`)
	_, b, err := client(t, p, Request{
		Token:      json.RawMessage(`{"sub":true,"o":{"z":1,"a":[2.5],"1":"\ud83d"}}`),
		Parameters: json.RawMessage(`{"y":null,"x":false}`), IncludeDefaults: true,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range b.Buckets {
		got = append(got, b.ID)
	}
	want := []string{
		`1#s|0["{\"1\":\"\\ud83d\",\"z\":1.0,\"a\":[2.5]}"]`, `1#s|1["{\"y\":null,\"x\":false}"]`, `1#s|2[1]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, r := range []Request{{Token: json.RawMessage(`[]`)}, {Token: json.RawMessage(`{`)}, {Parameters: json.RawMessage(`1`)}} {
		if _, err := p.Querier(r); err == nil {
			t.Errorf("%s %s is taken", r.Token, r.Parameters)
		}
	}
}

func TestLimits(t *testing.T) {
	p := mustCompile(t, memberLists)
	var rows [][]model.Value
	for i := range 10 {
		rows = append(rows, []model.Value{model.TextValue(fmt.Sprint(i)), model.TextValue("u")})
	}
	index := indexOf(p, "members", "list_id user_id", rows...)
	token := json.RawMessage(`{"sub":"u"}`)
	for _, r := range []Request{{MaxResults: 9}, {MaxBuckets: 9}} {
		r.Token, r.IncludeDefaults = token, true
		_, _, err := client(t, p, r, index)
		var limit *LimitError
		if !errors.As(err, &limit) || limit.ByDefinition["s"] != 10 || !strings.Contains(limit.Message, "10 (limit of 9)") {
			t.Errorf("%+v: %v", r, err)
		}
	}
	_, b, err := client(t, p, Request{Token: token, IncludeDefaults: true, MaxResults: 10, MaxBuckets: 10}, index)
	if err != nil || len(b.Buckets) != 10 || b.Results != 10 || len(b.Lookups) != 1 {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestCombinations holds that a client cannot make the server combine arrays
// without end.
func TestCombinations(t *testing.T) {
	p := mustCompile(t, `
config:
  edition: 3
streams:
  s:
    query: SELECT * FROM t WHERE a IN subscription.parameter('x') AND b IN subscription.parameter('x') AND owner = auth.user_id()
`)
	list := "[" + strings.Repeat("1,", 2000) + "1]"
	_, b, err := client(t, p, Request{Token: json.RawMessage(`{"sub":"u"}`), Subscriptions: []Subscription{
		{Stream: "s", Parameters: json.RawMessage(`{"x": ` + list + `}`)}, {Stream: "s", Parameters: json.RawMessage(`{"x": [1]}`)},
	}}, nil)
	if err != nil || len(b.Errors) != 1 || b.Errors[0].Subscription != 0 || len(b.Buckets) != 1 {
		t.Errorf("%v %v %v", b.Buckets, b.Errors, err)
	}
}

// TestLookupsWake holds that Lookups has every key that buckets depend on, also
// those under which nothing was found.
func TestLookupsWake(t *testing.T) {
	p := mustCompile(t, memberLists)
	q, b, err := client(t, p, Request{Token: json.RawMessage(`{"sub":"u"}`), IncludeDefaults: true}, nil)
	if err != nil || len(b.Buckets) != 0 || len(b.Lookups) != 1 || q.Static() {
		t.Fatalf("%+v, %v, static %v", b, err, q.Static())
	}
	index := indexOf(p, "members", "list_id user_id", []model.Value{model.TextValue("l"), model.TextValue("u")})
	if index[b.Lookups[0]] == nil {
		t.Errorf("%v does not lead to %v", b.Lookups, index)
	}
}

// TestReasons holds that a bucket reached in several ways appears once, with
// the smallest priority and every reason, each naming its own stream.
func TestReasons(t *testing.T) {
	p := mustCompile(t, `
config:
  edition: 3
streams:
  quiet:
    query: SELECT * FROM other
  a:
    auto_subscribe: true
    priority: 2
    query: SELECT * FROM t WHERE owner = auth.user_id()
  b:
    auto_subscribe: true
    priority: 1
    query: SELECT * FROM t WHERE auth.user_id() = owner
`)
	urgent, wrong := 0, 4
	q, b, err := client(t, p, Request{Token: json.RawMessage(`{"sub":"u"}`), IncludeDefaults: true, Subscriptions: []Subscription{
		{Stream: "a", Priority: &urgent}, {Stream: "nothing"}, {Stream: "a", Priority: &wrong},
		{Stream: "a", Parameters: json.RawMessage("[1]")},
	}}, nil)
	if err != nil || !q.Static() {
		t.Fatal(err, q.Static())
	}
	if got := fmt.Sprint(q.Streams()); got != "[{a true} {b true}]" {
		t.Errorf("streams %s", got)
	}
	want := `[{1#a|0["u"] 0 a [{true 0} {false 0} {true 1}] false}]`
	if got := fmt.Sprint(b.Buckets); got != want {
		t.Errorf("buckets %s, want %s", got, want)
	}
	var failed []int
	for _, e := range b.Errors {
		failed = append(failed, e.Subscription)
	}
	if !slices.Equal(failed, []int{2, 3}) {
		t.Errorf("errors %v", b.Errors)
	}
}

// TestIdentity holds that a definition has the same identity in any config
// that gives it the same meaning, and another one if its meaning changes.
func TestIdentity(t *testing.T) {
	identity := func(streams string) [32]byte {
		p := mustCompile(t, "config:\n  edition: 3\nstreams:\n"+streams)
		for _, d := range p.Definitions() {
			if d.Name == "s" {
				return d.Identity
			}
		}
		t.Fatal("no stream s")
		return [32]byte{}
	}
	s := "  s:\n    query: SELECT * FROM t WHERE owner IN (SELECT id FROM u WHERE uid = auth.user_id())\n"
	base := identity(s)
	for name, same := range map[string]string{
		"beside another":  "  a:\n    query: SELECT * FROM v WHERE x IN (SELECT y FROM w WHERE z = auth.user_id())\n" + s,
		"written anew":    "  s:\n    queries:\n      - |\n        SELECT  *  FROM t\n        WHERE owner IN (SELECT m.id FROM u AS m WHERE m.uid = auth.user_id())\n",
		"default written": "  s:\n    auto_subscribe: false\n    priority: 3\n" + strings.TrimPrefix(s, "  s:\n"),
	} {
		if identity(same) != base {
			t.Errorf("%s: the identity changes", name)
		}
	}
	for name, other := range map[string]string{
		"column":    strings.Replace(s, "owner", "owner2", 1),
		"output":    strings.Replace(s, "*", "id", 1),
		"priority":  s + "    priority: 1\n",
		"subscribe": s + "    auto_subscribe: true\n",
		"index":     strings.Replace(s, "uid", "uid2", 1),
	} {
		if identity(other) == base {
			t.Errorf("%s: the identity stays", name)
		}
	}
}

// TestPlanIdentity holds what of a config changes what it means, as a whole.
func TestPlanIdentity(t *testing.T) {
	head := "config:\n  edition: 3\n"
	a := "  a:\n    query: SELECT * FROM t WHERE owner IN (SELECT id FROM u WHERE uid = auth.user_id())\n"
	b := "  b:\n    auto_subscribe: true\n    query: SELECT id, name FROM v WHERE owner IN (SELECT id FROM w WHERE uid = auth.user_id())\n"
	events := "event_definitions:\n  write_checkpoints:\n    payloads: [\"SELECT user_id, client_id, checkpoint FROM checkpoints\"]\n"
	base := mustCompile(t, head+"streams:\n"+a+b+events).Identity()
	for name, same := range map[string]string{
		"reordered":     events + "streams:\n" + b + a + head,
		"commented":     "# why\n" + head + "streams: # which\n" + a + "\n\n" + b + events,
		"renamed alias": head + "streams:\n" + strings.Replace(a, "SELECT id FROM u WHERE uid", "SELECT x.id FROM u AS x WHERE x.uid", 1) + b + events,
		"named query":   head + "with:\n  mine: SELECT id FROM u WHERE uid = auth.user_id()\nstreams:\n" + strings.Replace(a, "(SELECT id FROM u WHERE uid = auth.user_id())", "mine", 1) + b + events,
		"default given": head + "  timestamps_iso8601: true\nstreams:\n" + a + b + events,
	} {
		if mustCompile(t, same).Identity() != base {
			t.Errorf("%s: the identity changes", name)
		}
	}
	for name, other := range map[string]string{
		"stream added":   head + "streams:\n" + a + b + strings.Replace(b, "b:", "c:", 1) + events,
		"stream dropped": head + "streams:\n" + a + events,
		"stream renamed": head + "streams:\n" + strings.Replace(a, "a:", "c:", 1) + b + events,
		"column":         head + "streams:\n" + a + strings.Replace(b, "name", "nam", 1) + events,
		"values":         head + "  timestamps_iso8601: false\nstreams:\n" + a + b + events,
		"no event":       head + "streams:\n" + a + b,
		"event's table":  head + "streams:\n" + a + b + strings.Replace(events, "FROM checkpoints", "FROM cp", 1),
		"priority":       head + "streams:\n" + a + "    priority: 1\n" + b + events,
	} {
		if mustCompile(t, other).Identity() == base {
			t.Errorf("%s: the identity stays", name)
		}
	}
}

// TestColumns holds which columns of a table a config needs.
func TestColumns(t *testing.T) {
	p := mustCompile(t, `
config:
  edition: 3
streams:
  s:
    query: SELECT id, upper(name) AS n FROM t WHERE owner IN (SELECT uid FROM u WHERE NOT gone)
  all:
    query: SELECT * FROM v
`)
	for table, want := range map[string]string{"t": "id name owner false", "u": "gone uid false", "v": " true", "w": " false"} {
		columns, all := p.Columns(&model.SourceTable{Connection: "default", Schema: "public", Name: table})
		slices.Sort(columns)
		if got := fmt.Sprintf("%s %v", strings.Join(columns, " "), all); got != want {
			t.Errorf("%s: %s, want %s", table, got, want)
		}
	}
}

// TestConnection holds that the tag before a schema changes nothing: there is one
// connection.
func TestConnection(t *testing.T) {
	p := mustCompile(t, `
bucket_definitions:
  b:
    data:
      - SELECT id FROM t
      - SELECT id FROM "app.public".t
      - SELECT id FROM "app.other".u
`)
	want := []model.TablePattern{{Connection: "default", Schema: "other", Name: "u"}, {Connection: "default", Schema: "public", Name: "t"}}
	if got := p.SourceTables(); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestLastPutWins holds that a row is put once into a bucket, and that a query
// that fails for it leaves what others put.
func TestLastPutWins(t *testing.T) {
	p := mustCompile(t, `
bucket_definitions:
  b:
    data:
      - SELECT id, a FROM t
      - SELECT id, b FROM t
      - SELECT id, json_keys(a) AS c FROM t
`)
	table := &model.SourceTable{Connection: "default", Schema: "public", Name: "t", Columns: []model.Column{{Name: "id"}, {Name: "a"}, {Name: "b"}}}
	var out RowResult
	row := []model.Value{model.TextValue("x"), model.TextValue("1"), model.TextValue("2")}
	p.Table(table).EvaluateRow(row, &out)
	if len(out.Puts) != 1 || out.Puts[0].Data != `{"id":"x","b":"2"}` || out.Puts[0].Bucket != "1#b[]" || len(out.Errors) != 1 {
		t.Errorf("%+v", out)
	}
	sum, _ := model.PutChecksum("t", "x", `{"id":"x","b":"2"}`, nil)
	if out.Puts[0].Checksum != sum {
		t.Errorf("checksum %d, want %d", out.Puts[0].Checksum, sum)
	}
	// What a result refers to stays when it is used again.
	first := out.Puts[0]
	data := strings.Clone(first.Data)
	for range 10000 {
		out.Reset()
		p.Table(table).EvaluateRow(row, &out)
	}
	if first.Data != data || len(out.Puts) != 1 {
		t.Errorf("%+v", first)
	}
}

// FuzzEntries holds that whatever stands in the parameter index, decoding it
// fails or gives rows of the right width, without a panic.
func FuzzEntries(f *testing.F) {
	for _, s := range []string{`[{"0":"x","1":1.5}]`, `[{}, {"1":null}]`, `[{"0":"a\"\u00e9\ud83d\ude00\ud800"}]`, `[{"0":12345678901234567890}]`, `[`, `{}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := entryDecoder{names: []string{"0", "1"}}
		if d.decode(text) != nil {
			return
		}
		for _, r := range d.rows {
			if len(r) != 2 {
				t.Fatal(r)
			}
		}
	})
}

// TestEntriesRoundTrip holds that lookups find what rows put: text with
// anything in it, and numbers exactly.
func TestEntriesRoundTrip(t *testing.T) {
	p := mustCompile(t, memberLists)
	for _, v := range []model.Value{
		model.TextValue("plain"), model.TextValue("q\"\\\n\x01é😀"), model.TextValue("\xed\xa0\x80"), model.IntegerValue(9007199254740993),
		model.RealValue(1.5), model.RealValue(1e21), model.BigIntegerValue("123456789012345678901"), model.TextValue(""),
	} {
		index := indexOf(p, "members", "list_id user_id", []model.Value{v, model.TextValue("u")})
		_, b, err := client(t, p, Request{Token: json.RawMessage(`{"sub":"u"}`), IncludeDefaults: true}, index)
		if err != nil || len(b.Buckets) != 1 {
			t.Errorf("%v: %+v, %v", v, b, err)
			continue
		}
		want, _ := appendFragment([]byte("1#s|0["), v)
		if b.Buckets[0].ID != string(want)+"]" {
			t.Errorf("%v: bucket %s, want %s]", v, b.Buckets[0].ID, want)
		}
	}
}

// TestConcurrent holds (with -race) that a plan and its evaluators are shared
// by goroutines.
func TestConcurrent(t *testing.T) {
	p := mustCompile(t, memberLists)
	table := &model.SourceTable{Connection: "default", Schema: "public", Name: "todos", Columns: []model.Column{{Name: "id"}, {Name: "list_id"}}}
	te := p.Table(table)
	var done sync.WaitGroup
	for i := range 4 {
		done.Go(func() {
			id := fmt.Sprint(i)
			var out RowResult
			for range 100 {
				out.Reset()
				te.EvaluateRow([]model.Value{model.TextValue(id), model.TextValue("l")}, &out)
				if len(out.Puts) != 1 || out.Puts[0].ObjectID != id {
					t.Errorf("%+v", out.Puts)
					return
				}
				if _, err := p.Querier(Request{Token: fmt.Appendf(nil, `{"sub":%q}`, id), IncludeDefaults: true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done.Wait()
}

// TestManyElements holds that a row in very many buckets is put once into
// each, and takes no more than linear time.
func TestManyElements(t *testing.T) {
	p := mustCompile(t, `
config:
  edition: 3
streams:
  s:
    queries:
      - SELECT id FROM t WHERE auth.user_id() IN tags
      - SELECT * FROM t WHERE auth.user_id() IN tags
  lists:
    query: SELECT id FROM u WHERE id IN (SELECT id FROM t WHERE auth.user_id() IN tags)
`)
	table := &model.SourceTable{Connection: "default", Schema: "public", Name: "t", Columns: []model.Column{{Name: "id"}, {Name: "tags"}}}
	te := p.Table(table)
	var out RowResult
	for _, n := range []int{20000, 40, 33, 32, 31, 5} {
		var tags []string
		for i := range n {
			tags = append(tags, fmt.Sprintf(`"u%d","u%d"`, i, i/2))
		}
		out.Reset()
		te.EvaluateRow([]model.Value{model.TextValue("x"), model.TextValue("[" + strings.Join(tags, ",") + "]")}, &out)
		if len(out.Puts) != n || len(out.Lookups) != n || !strings.Contains(out.Puts[n-1].Data, "tags") {
			t.Errorf("%d: %d puts, %d lookups", n, len(out.Puts), len(out.Lookups))
		}
	}
}

// TestRowCombinations holds the same for the arrays of a row, which is then an
// error of its query.
func TestRowCombinations(t *testing.T) {
	p := mustCompile(t, `
config:
  edition: 3
streams:
  s:
    query: SELECT t.id FROM t, json_each(t.a) AS x, json_each(t.a) AS y WHERE x.value = auth.user_id() AND y.value = auth.parameter('p')
  plain:
    query: SELECT id FROM t
`)
	table := &model.SourceTable{Connection: "default", Schema: "public", Name: "t", Columns: []model.Column{{Name: "id"}, {Name: "a"}}}
	var out RowResult
	p.Table(table).EvaluateRow([]model.Value{model.TextValue("x"), model.TextValue("[" + strings.Repeat("1,", 500) + "1]")}, &out)
	if len(out.Errors) != 1 || out.Errors[0].Definition != "s" || len(out.Puts) != 1 {
		t.Errorf("%d puts, errors %v", len(out.Puts), out.Errors)
	}
}

// TestEachColumn holds that a column of json_each can be selected: the last
// element counts, as one row is one row to clients.
func TestEachColumn(t *testing.T) {
	p := mustCompile(t, `
config:
  edition: 3
streams:
  s:
    query: SELECT t.id, b.value AS v FROM t, json_each(t.x) AS a, json_each(t.y) AS b WHERE a.value = auth.user_id()
`)
	table := &model.SourceTable{Connection: "default", Schema: "public", Name: "t", Columns: []model.Column{{Name: "id"}, {Name: "x"}, {Name: "y"}}}
	var out RowResult
	p.Table(table).EvaluateRow([]model.Value{model.TextValue("r"), model.TextValue(`["u","v"]`), model.TextValue(`[1,2]`)}, &out)
	if len(out.Puts) != 2 || out.Puts[0].Data != `{"id":"r","v":2}` || out.Puts[1].Bucket != `1#s|0["v"]` {
		t.Errorf("%+v", out.Puts)
	}
}

// TestUses holds that a plan says what it reads a table for.
func TestUses(t *testing.T) {
	p, _ := Compile("bucket_definitions:\n  b:\n    parameters: SELECT id FROM lists WHERE owner = request.user_id()\n    data: [SELECT * FROM todos WHERE l = bucket.id]\n", Options{})
	for name, want := range map[string][2]bool{"lists": {false, true}, "todos": {true, false}, "other": {}} {
		data, parameters := p.Table(&model.SourceTable{Schema: "public", Name: name}).Uses()
		if data != want[0] || parameters != want[1] {
			t.Errorf("%s: %v %v", name, data, parameters)
		}
	}
}
