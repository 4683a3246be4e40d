package rules

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
)

// definitions to choose from: several that share buckets or make the same
// index, and some that stand alone.
var overStreams = []string{
	"  a:\n    query: SELECT * FROM t WHERE owner IN (SELECT id FROM u WHERE uid = auth.user_id())\n",
	"  b:\n    query: SELECT id FROM t WHERE owner IN (SELECT id FROM u WHERE uid = auth.user_id())\n",
	"  c:\n    query: SELECT * FROM t WHERE kind IN (SELECT kind FROM u WHERE uid = auth.user_id())\n",
	"  d:\n    query: SELECT * FROM t WHERE owner = auth.user_id()\n",
	"  e:\n    query: SELECT * FROM u\n",
	"  f:\n    query: SELECT * FROM v WHERE kind IN (SELECT kind FROM t WHERE owner IN (SELECT id FROM u WHERE uid = auth.user_id()))\n",
	"  g:\n    query: SELECT * FROM v WHERE kind = 'x' AND auth.user_id() IN (SELECT uid FROM u)\n",
}

// TestOver holds that a config whose parts others have gives every request, from
// the others' data, what it gives from its own (D6): the same buckets, but for the
// layer that their ids name, with the same rows in them. Of the others each makes
// only what those before it do not.
func TestOver(t *testing.T) {
	const head = "config:\n  edition: 3\nstreams:\n"
	source := func(name string) *model.SourceTable {
		s := &model.SourceTable{Connection: "default", Schema: "public", Name: name}
		for _, c := range []string{"id", "owner", "uid", "kind"} {
			s.Columns = append(s.Columns, model.Column{Name: c})
		}
		return s
	}
	fits := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		choose := func(from []string) []string {
			from = slices.Clone(from)
			r.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
			return from[:1+r.IntN(len(from))]
		}
		olds := [][]string{choose(overStreams)}
		news := choose(olds[0])
		for seed >= 100 && len(olds) < 3 { // layers, the last of the config itself
			news = choose(overStreams)
			for i := range news {
				if r.IntN(4) == 0 { // edited
					news[i] = strings.Replace(news[i], "SELECT *", "SELECT id, owner", 1)
				}
			}
			olds = append(olds, news)
		}
		news = slices.Clone(news)
		for i := range news {
			if r.IntN(3) == 0 {
				news[i] += "    priority: 1\n"
			}
			if r.IntN(2) == 0 {
				news[i] += "    auto_subscribe: true\n"
			}
		}
		var layers, making []*Plan
		for i, texts := range olds {
			l, _ := Compile(head+strings.Join(texts, ""), Options{Version: 7, Layer: uint32(i)})
			making = append(making, l.Less(layers...))
			layers = append(layers, l)
		}
		newer, _ := Compile(head+strings.Join(news, ""), Options{Version: 7})
		over, ok := newer.Over(layers...)
		if !ok {
			// Buckets that two streams share have the name of the first.
			continue
		}
		fits++
		type data struct {
			puts    map[string]string // bucket/type/id → row
			entries map[string][]string
		}
		make := func(p *Plan, rows map[*model.SourceTable][][]model.Value) data {
			d := data{map[string]string{}, map[string][]string{}}
			for s, all := range rows {
				e := p.Table(s)
				if e == nil {
					continue
				}
				for _, row := range all {
					var out RowResult
					e.EvaluateRow(row, &out)
					for _, x := range out.Puts {
						d.puts[x.Bucket+"/"+x.ObjectType+"/"+x.ObjectID] = x.Data
					}
					for _, x := range out.Lookups {
						d.entries[x.Lookup] = append(d.entries[x.Lookup], x.Values)
					}
				}
			}
			return d
		}
		rows := map[*model.SourceTable][][]model.Value{}
		for _, name := range []string{"t", "u", "v"} {
			s := source(name)
			for i := range 6 {
				row := []model.Value{model.TextValue(fmt.Sprint(i))}
				for range 3 {
					row = append(row, model.TextValue([]string{"x", "y", "0", "1"}[r.IntN(4)]))
				}
				rows[s] = append(rows[s], row)
			}
		}
		own, others := make(newer, rows), make(making[0], rows)
		for i, l := range making[1:] {
			part := make(l, rows)
			for k, v := range part.puts {
				if _, again := others.puts[k]; again || !strings.HasPrefix(k, fmt.Sprintf("7.%d#", i+1)) {
					t.Errorf("layer %d puts %s", i+1, k)
				}
				others.puts[k] = v
			}
			for k, v := range part.entries {
				if others.entries[k] != nil {
					t.Errorf("layer %d enters %s", i+1, k)
				}
				others.entries[k] = v
			}
		}
		for _, user := range []string{"x", "y", "0"} {
			request := Request{Token: []byte(fmt.Sprintf(`{"sub":%q}`, user)), IncludeDefaults: true}
			for _, n := range news {
				request.Subscriptions = append(request.Subscriptions, Subscription{Stream: strings.TrimSpace(n[:strings.Index(n, ":")])})
			}
			given := func(p *Plan, d data) string {
				q, err := p.Querier(request)
				if err != nil {
					t.Fatal(err)
				}
				b, err := q.Resolve(func(keys []string) ([][]string, error) {
					found := [][]string{}
					for _, k := range keys {
						found = append(found, d.entries[k])
					}
					return found, nil
				})
				if err != nil {
					t.Fatal(err)
				}
				var lines []string
				for _, x := range b.Buckets {
					_, name, _ := strings.Cut(x.ID, "#")
					lines = append(lines, fmt.Sprintf("%s %d %v %s", name, x.Priority, x.Reasons, x.Definition))
					for k, v := range d.puts {
						if strings.HasPrefix(k, x.ID+"/") {
							lines = append(lines, strings.TrimPrefix(k, x.ID)+" "+v)
						}
					}
				}
				slices.Sort(lines)
				return strings.Join(lines, "\n")
			}
			if got, want := given(over, others), given(newer, own); got != want {
				t.Fatalf("seed %d, %s of %s:\nfor %s\n%s\nwant\n%s", seed, news, olds, user, got, want)
			}
		}
	}
	if fits < 200 {
		t.Errorf("only %d of 300 fit", fits)
	}
}

// TestOverLacks: what needs something else does not fit.
func TestOverLacks(t *testing.T) {
	older := mustCompile(t, "config:\n  edition: 3\nstreams:\n"+overStreams[0]+overStreams[3])
	for name, yaml := range map[string]string{
		"another stream": "config:\n  edition: 3\nstreams:\n" + overStreams[0] + overStreams[4],
		"another column": "config:\n  edition: 3\nstreams:\n" + strings.Replace(overStreams[0], "*", "id", 1),
		"another index":  "config:\n  edition: 3\nstreams:\n" + strings.Replace(overStreams[0], "uid", "kind", 1),
		"other values":   "config:\n  edition: 3\n  timestamps_iso8601: false\nstreams:\n" + overStreams[0],
		"an event":       "config:\n  edition: 3\nstreams:\n" + overStreams[0] + "event_definitions:\n  write_checkpoints:\n    payloads: [\"SELECT user_id, client_id, checkpoint FROM c\"]\n",
		"another name":   "config:\n  edition: 3\nstreams:\n" + strings.Replace(overStreams[0], "a:", "z:", 1),
	} {
		if _, ok := mustCompile(t, yaml).Over(older); ok {
			t.Errorf("%s fits", name)
		}
	}
}
