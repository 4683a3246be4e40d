package evaluate

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
)

// plan is a Plan with one put per row: bucket "b", data = the row as text. It
// panics on the row whose title is "panic", and has a row error for "error".
type plan struct{ unused string }

func (p plan) Table(t *model.SourceTable) *Table {
	if t.Name == p.unused {
		return NewTable(t, nil)
	}
	return NewTable(t, p)
}

func (plan) EvaluateRow(row []model.Value, out *rules.RowResult) {
	out.Puts = append(out.Puts, model.Put{Bucket: "half"})
	for _, v := range row {
		switch v.Str() {
		case "panic":
			panic("on purpose")
		case "error":
			out.Errors = append(out.Errors, rules.RowError{Definition: "d", Err: fmt.Errorf("bad row")})
		}
	}
	out.Puts[len(out.Puts)-1] = model.Put{Bucket: "b", ObjectType: "t", ObjectID: text(row[:1]), Data: text(row)}
	out.Lookups = append(out.Lookups, model.ParameterEntry{Lookup: text(row[:1]), Values: "[]"})
}

func text(row []model.Value) string {
	var parts []string
	for _, v := range row {
		switch v.Kind() {
		case model.Integer:
			parts = append(parts, fmt.Sprint(v.Int()))
		case model.Text:
			parts = append(parts, v.Str())
		default:
			parts = append(parts, v.Kind().String())
		}
	}
	return strings.Join(parts, ",")
}

func sourceTable(name string, columns ...string) *model.SourceTable {
	t := &model.SourceTable{ID: model.TableID{byte(len(name)), name[0]}, Schema: "public", Name: name}
	for i, c := range columns {
		t.Columns = append(t.Columns, model.Column{Name: c, Key: i == 0})
	}
	return t
}

// row makes values: ints, texts, nil for Absent.
func row(vs ...any) []model.Value {
	out := make([]model.Value, len(vs))
	for i, v := range vs {
		switch v := v.(type) {
		case int:
			out[i] = model.IntegerValue(int64(v))
		case string:
			out[i] = model.TextValue(v)
		}
	}
	return out
}

func id(t *model.SourceTable, key any) model.RowID {
	id, ok, _ := model.RowIdentity(t, append(row(key), make([]model.Value, len(t.Columns)-1)...), nil)
	if !ok {
		panic("no identity")
	}
	return id
}

// run evaluates changes; stored has the ledger's rows.
func run(t *testing.T, stored map[model.RowKey]string, changes ...model.Change) ([]model.EvaluatedRow, []Problem) {
	t.Helper()
	b := &model.ChangeBatch{Previous: model.Cursor{Position: "P", Offset: 7}, Changes: changes}
	p := Prepare(b, plan{unused: "unused"})
	var rows []string
	for _, k := range p.Missing() {
		rows = append(rows, stored[k])
	}
	if err := p.Fill(rows); err != nil {
		t.Fatal(err)
	}
	var problems []Problem
	return new(Worker).Evaluate(p, plan{unused: "unused"}, func(p Problem) { problems = append(problems, p) }), problems
}

func data(r model.EvaluatedRow) string {
	var out []string
	for _, p := range r.Puts {
		out = append(out, p.Data)
	}
	return strings.Join(out, ";")
}

// TestAlone: what is copied for a layer alone is never taken for all that the row
// is in, whatever becomes of it.
func TestAlone(t *testing.T) {
	table := sourceTable("t", "id", "v")
	b := &model.ChangeBatch{Layer: 2, Alone: true}
	for _, v := range []any{"x", "panic", strings.Repeat("x", MaxRow+1)} {
		b.Changes = append(b.Changes, model.Change{Table: table, Op: model.SnapshotRow, Row: row(len(b.Changes), v)})
	}
	p := Prepare(b, plan{unused: "unused"})
	rows := new(Worker).Evaluate(p, plan{unused: "unused"}, func(Problem) {})
	if len(rows) != 3 || len(rows[0].Puts) != 1 || len(rows[1].Puts) != 0 || len(rows[2].Puts) != 0 {
		t.Fatalf("rows %+v", rows)
	}
	for _, r := range rows {
		if r.Kind != model.RowLayer {
			t.Errorf("row %+v", r)
		}
	}
}

func TestKinds(t *testing.T) {
	todos, unused := sourceTable("todos", "id", "title"), sourceTable("unused", "id")
	rows, problems := run(t, nil,
		model.Change{Table: todos, Op: model.Insert, Row: row(1, "a")},
		model.Change{Table: todos, Op: model.Update, Row: row(1, "b")},
		model.Change{Table: todos, Op: model.Update, Row: row(2, "c"), Before: row(1, nil)},
		model.Change{Table: todos, Op: model.Delete, Before: row(2, nil)},
		model.Change{Table: todos, Op: model.SnapshotRow, Row: row(3, "d")},
		model.Change{Table: unused, Op: model.Insert, Row: row(1)},
		model.Change{Table: unused, Op: model.Delete, Before: row(1)},
		model.Change{Table: todos, Op: model.Truncate},
		model.Change{Table: unused, Op: model.DropTable},
		model.Change{Table: todos, Op: model.Sweep},
		model.Change{Table: unused, Op: model.Sweep},
	)
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	want := []struct {
		kind   model.RowKind
		id     model.RowID
		before *model.RowID
		data   string
	}{
		{model.RowPut, id(todos, 1), nil, "1,a"},
		{model.RowPut, id(todos, 1), nil, "1,b"},
		{model.RowPut, id(todos, 2), new(id(todos, 1)), "2,c"},
		{model.RowDelete, id(todos, 2), nil, ""},
		{model.RowSnapshot, id(todos, 3), nil, "3,d"},
		{model.RowTruncate, model.RowID{}, nil, ""},
		{model.RowTruncate, model.RowID{}, nil, ""},
		{model.RowSweep, model.RowID{}, nil, ""},
		{model.RowSweep, model.RowID{}, nil, ""},
	}
	if len(rows) != len(want) {
		t.Fatalf("%d rows, not %d: %+v", len(rows), len(want), rows)
	}
	for i, w := range want {
		r := rows[i]
		if r.Kind != w.kind || r.Key.Row != w.id || !reflect.DeepEqual(r.Before, w.before) || data(r) != w.data {
			t.Errorf("row %d: %+v, want %+v", i, r, w)
		}
		if w.data != "" && len(r.Lookups) != 1 {
			t.Errorf("row %d: lookups %+v", i, r.Lookups)
		}
	}
	if rows[5].Key.Table != todos.ID || rows[6].Key.Table != unused.ID {
		t.Errorf("truncated tables: %+v", rows[5:])
	}
}

var (
	large   = strings.Repeat("x", 5000)
	larger  = strings.Repeat("y", 6000)
	another = strings.Repeat("z", 4000)
)

func stored(t *model.SourceTable, r []model.Value) string {
	return string(appendSource(nil, columnNames(t), r))
}

// A value that the source left out is what the row had: in the ledger, or
// earlier in the batch, under its former identity if that changed.
func TestUnchangedValues(t *testing.T) {
	docs := sourceTable("docs", "id", "body", "n")
	key := func(k any) model.RowKey { return model.RowKey{Table: docs.ID, Row: id(docs, k)} }
	ledger := map[model.RowKey]string{key(1): stored(docs, row(1, large, 0)), key(9): stored(docs, row(9, another, 0))}
	rows, problems := run(t, ledger,
		model.Change{Table: docs, Op: model.Update, Row: row(1, nil, 1)},                           // from the ledger
		model.Change{Table: docs, Op: model.Update, Row: row(1, nil, 2)},                           // from the row before
		model.Change{Table: docs, Op: model.Update, Row: row(2, nil, 3), Before: row(1, nil, nil)}, // moves
		model.Change{Table: docs, Op: model.Update, Row: row(2, nil, 4)},                           // under its new key
		model.Change{Table: docs, Op: model.Insert, Row: row(3, larger, 5)},
		model.Change{Table: docs, Op: model.Update, Row: row(3, nil, 6)}, // from an insert of this batch
		model.Change{Table: docs, Op: model.Update, Row: row(9, nil, 7), Before: row(9, nil, nil)},
	)
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	want := []string{"1," + large + ",1", "1," + large + ",2", "2," + large + ",3", "2," + large + ",4", "3," + larger + ",5", "3," + larger + ",6", "9," + another + ",7"}
	for i, w := range want {
		if data(rows[i]) != w {
			t.Errorf("row %d: %.60q", i, data(rows[i]))
		}
		v, err := readSource(rows[i].Source)
		if err != nil || text(v.row) != w {
			t.Errorf("row %d is stored as %.60q, %v", i, rows[i].Source, err)
		}
	}
	if rows[6].Before != nil {
		t.Error("an unchanged identity counts as changed")
	}
}

// Only rows that can have values out of line are stored.
func TestSourceOnlyIfNeeded(t *testing.T) {
	docs, full := sourceTable("docs", "id", "body"), sourceTable("full", "id", "body")
	full.CompleteRows = true
	rows, _ := run(t, nil,
		model.Change{Table: docs, Op: model.Insert, Row: row(1, "small")},
		model.Change{Table: docs, Op: model.Insert, Row: row(2, strings.Repeat("x", 256))},
		model.Change{Table: full, Op: model.Insert, Row: row(3, large)},
		model.Change{Table: full, Op: model.Update, Row: row(4, nil), Before: row(3, large)},
	)
	if rows[0].Source != "" || rows[1].Source == "" || rows[2].Source != "" {
		t.Errorf("sources: %.20q %.20q %.20q", rows[0].Source, rows[1].Source, rows[2].Source)
	}
	if data(rows[3]) != "4,"+large {
		t.Errorf("the old row's value was not used: %.60q", data(rows[3]))
	}
}

// Columns that were added or dropped since do not mix up the others.
func TestUnchangedValuesAfterAlter(t *testing.T) {
	before := sourceTable("docs", "id", "gone", "body")
	now := sourceTable("docs", "id", "body", "added")
	k := model.RowKey{Table: now.ID, Row: id(now, 1)}
	rows, problems := run(t, map[model.RowKey]string{k: stored(before, row(1, "old", large))},
		model.Change{Table: now, Op: model.Update, Row: row(1, nil, 5)})
	if len(problems) > 0 || data(rows[0]) != "1,"+large+",5" {
		t.Errorf("%v %.60q", problems, data(rows[0]))
	}
}

// INV-13: a row whose missing values nobody knows leaves its buckets, and is
// itself again when the values come.
func TestUnresolvableRowLeavesItsBuckets(t *testing.T) {
	docs := sourceTable("docs", "id", "body", "other", "n")
	change := func(r []model.Value) model.Change { return model.Change{Table: docs, Op: model.Update, Row: r} }
	for name, changes := range map[string][]model.Change{
		"not stored":  {change(row(1, nil, large, 1))},
		"deleted":     {{Table: docs, Op: model.Delete, Before: row(1, nil, nil, nil)}, change(row(1, nil, large, 1))},
		"truncated":   {{Table: docs, Op: model.Truncate}, change(row(1, nil, large, 1))},
		"failed once": {change(row(1, "panic", large, 1)), change(row(1, nil, large, 1))},
	} {
		rows, problems := run(t, nil, changes...)
		last := rows[len(rows)-1]
		if last.Kind != model.RowPut || len(last.Puts)+len(last.Lookups) > 0 {
			t.Errorf("%s: %+v", name, last)
		}
		p := problems[len(problems)-1]
		if !p.Removed || p.Table != docs || p.Key != "id=1" || !strings.Contains(p.Err.Error(), "body") {
			t.Errorf("%s: %+v", name, p)
		}
	}
	// What is known is stored, so that an update with the missing value completes it.
	rows, _ := run(t, nil, change(row(1, nil, large, 1)), change(row(1, larger, nil, 2)))
	if data(rows[1]) != "1,"+larger+","+large+",2" {
		t.Errorf("%.60q", data(rows[1]))
	}
}

// D9: a poison row is reported, taken out, and stops nothing.
func TestPoisonRow(t *testing.T) {
	todos := sourceTable("todos", "id", "title")
	rows, problems := run(t, nil,
		model.Change{Table: todos, Op: model.Insert, Row: row(1, "a")},
		model.Change{Table: todos, Op: model.Update, Row: row(2, "panic"), Before: row(5, nil)},
		model.Change{Table: todos, Op: model.Insert, Row: row(3, "error")},
		model.Change{Table: todos, Op: model.Insert, Row: row(4, strings.Repeat("x", MaxRow))},
		model.Change{Table: todos, Op: model.Insert, Row: row(nil, "no key")},
		model.Change{Table: todos, Op: model.Insert, Row: row(6, "b")},
	)
	var got []string
	for _, r := range rows {
		got = append(got, data(r))
	}
	if strings.Join(got, "|") != "1,a||3,error||6,b" {
		t.Fatalf("rows %q", got)
	}
	if rows[1].Before == nil || *rows[1].Before != id(todos, 5) {
		t.Errorf("the poison row's former identity is lost: %+v", rows[1])
	}
	if len(problems) != 4 || !problems[0].Removed || problems[0].Key != "id=2" || problems[1].Removed || problems[1].Definition != "d" ||
		!problems[2].Removed || problems[3].Removed {
		t.Errorf("problems: %+v", problems)
	}
	if _, ok := problems[2].Err.(*TooLargeError); !ok {
		t.Errorf("a row of %d bytes: %v", MaxRow, problems[2].Err)
	}
}

// D4, D6: rows without identity get one from their place, the same each time,
// and no two the same.
func TestDeterministic(t *testing.T) {
	logs := sourceTable("logs", "line")
	logs.Columns[0].Key = false
	changes := func() []model.Change {
		return []model.Change{{Table: logs, Op: model.Insert, Row: row("a")}, {Table: logs, Op: model.Insert, Row: row("a")}}
	}
	first, problems := run(t, nil, changes()...)
	again, _ := run(t, nil, changes()...)
	if !reflect.DeepEqual(first, again) || len(problems) > 0 {
		t.Errorf("%+v\n%+v\n%v", first, again, problems)
	}
	if first[0].Key == first[1].Key || first[0].Key.Row == (model.RowID{}) {
		t.Errorf("keys: %v %v", first[0].Key, first[1].Key)
	}
	if _, problems := run(t, nil, model.Change{Table: logs, Op: model.Delete, Before: row(nil)}); len(problems) != 1 {
		t.Errorf("a delete of a row without identity: %v", problems)
	}
}

func TestFillRefuses(t *testing.T) {
	docs := sourceTable("docs", "id", "body")
	p := Prepare(&model.ChangeBatch{Changes: []model.Change{{Table: docs, Op: model.Update, Row: row(1, nil)}}}, plan{})
	for _, rows := range [][]string{nil, {"", ""}, {"garbage"}, {string(wire.AppendRow(nil, row(1, "x")))}} {
		if err := p.Fill(rows); err == nil {
			t.Errorf("Fill(%q) succeeded", rows)
		}
	}
}

// Evaluating a usual row allocates nothing of its own.
func TestAllocations(t *testing.T) {
	todos := sourceTable("todos", "id", "title")
	b := &model.ChangeBatch{}
	for i := range 1000 {
		b.Changes = append(b.Changes, model.Change{Table: todos, Op: model.Insert, Row: row(i, strings.Repeat("t", 300))})
	}
	w := &Worker{}
	p := Prepare(b, quiet{})
	w.Evaluate(p, quiet{}, nil)
	if n := testing.AllocsPerRun(10, func() { w.Evaluate(Prepare(b, quiet{}), quiet{}, nil) }); n > 20 {
		t.Errorf("%v allocations for 1000 rows", n)
	}
}

// quiet makes no strings.
type quiet struct{}

func (q quiet) Table(t *model.SourceTable) *Table { return NewTable(t, q) }
func (quiet) EvaluateRow(row []model.Value, out *rules.RowResult) {
	out.Puts = append(out.Puts, model.Put{Bucket: "b", Data: row[1].Str()})
}
