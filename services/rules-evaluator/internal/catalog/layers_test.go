package catalog

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

// TestLayers: a batch is evaluated for the layers that it says, each of which makes
// what those before it do not.
func TestLayers(t *testing.T) {
	config := func(definitions ...string) string { return "bucket_definitions:\n" + strings.Join(definitions, "") }
	all := "  all:\n    data: [SELECT * FROM t]\n"
	some := "  some:\n    data: [SELECT id FROM t]\n"
	other := "  other:\n    parameters: SELECT kind FROM u WHERE id = request.user_id()\n    data: [SELECT * FROM t WHERE kind = bucket.kind]\n"
	s := &model.Stream{ID: 7, Config: config(all), Layers: []model.Layer{{Config: config(some, all)}, {Config: config(other, some)}}}
	compiled := Compile(s, "public")
	table := func(name string) *model.SourceTable {
		return &model.SourceTable{ID: model.TableID{name[0]}, Connection: model.DefaultConnection, Schema: "public", Name: name, Columns: []model.Column{{Name: "id"}, {Name: "kind"}}}
	}
	for _, c := range []struct {
		layer uint32
		alone bool
		t, u  string
	}{
		{0, false, "7#all[]", ""},
		{1, false, "7#all[] 7.1#some[]", ""},
		{1, true, "7.1#some[]", ""},
		{2, false, `7#all[] 7.1#some[] 7.2#other["k"]`, `2.0["i"]`},
		{2, true, `7.2#other["k"]`, `2.0["i"]`},
	} {
		p := compiled.Plan(c.layer, c.alone)
		if p.Err != nil || p != compiled.Plan(c.layer, c.alone) {
			t.Fatalf("%+v: %v", c, p.Err)
		}
		given := func(name string) string {
			e := p.Table(table(name)).Rows
			if e == nil {
				return ""
			}
			var out rules.RowResult
			e.EvaluateRow([]model.Value{model.TextValue("i"), model.TextValue("k")}, &out)
			var names []string
			for _, put := range out.Puts {
				names = append(names, put.Bucket)
			}
			for _, l := range out.Lookups {
				names = append(names, l.Lookup)
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		if tables := fmt.Sprint(given("t"), "; ", given("u")); tables != c.t+"; "+c.u {
			t.Errorf("layer %d, alone %v: %s", c.layer, c.alone, tables)
		}
	}
	// What does not compile holds up what needs it, and nothing else.
	s.Layers[1].Config = "nonsense"
	compiled = Compile(s, "public")
	if compiled.Plan(1, false).Err != nil || compiled.Plan(2, false).Err == nil || compiled.Plan(2, true).Err == nil {
		t.Error("the errors of layers")
	}
	// A catalog that learns of a layer keeps what it knows, and an older view of the
	// stream takes nothing from it.
	c := New(nil, "public", slog.New(slog.DiscardHandler))
	first := c.stream(&model.Stream{ID: 7, Config: config(all), Head: model.StreamHead{Heartbeat: 5}})
	first.Plan(0, false).Saw(9)
	s.Layers = s.Layers[:1]
	second := c.stream(s)
	if len(second.layers) != 2 || c.stream(&model.Stream{ID: 7, Config: config(all)}) != second || c.Beats()[0].At != 9 {
		t.Errorf("%d layers, beats %+v", len(second.layers), c.Beats())
	}
}
