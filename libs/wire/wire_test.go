package wire

import (
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

const rounds = 300

func same(t *testing.T, seed uint64, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("seed %d:\n got %+v\nwant %+v", seed, got, want)
	}
}

func TestChangeBatch(t *testing.T) {
	for seed := range uint64(rounds) {
		want := newGen(seed).changeBatch()
		got, err := DecodeChangeBatch(EncodeChangeBatch(want))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		same(t, seed, got, want)
	}
}

// Changes of one table share the decoded table: evaluators keep plans by
// pointer.
func TestTablesAreShared(t *testing.T) {
	table := &model.SourceTable{Name: "t"}
	row := []model.Value{model.IntegerValue(1)}
	got, err := DecodeChangeBatch(EncodeChangeBatch(&model.ChangeBatch{Changes: []model.Change{
		{Table: table, Op: model.Insert, Row: row}, {Table: table, Op: model.Insert, Row: row},
	}}))
	if err != nil {
		t.Fatal(err)
	}
	if got.Changes[0].Table != got.Changes[1].Table {
		t.Error("two changes of one table have two tables")
	}
}

func TestEvaluatedBatch(t *testing.T) {
	for seed := range uint64(rounds) {
		want := newGen(seed).evaluatedBatch()
		body, err := proto.Marshal(EvaluatedBatch(want))
		if err != nil {
			t.Fatal(err)
		}
		var m pb.EvaluatedBatch
		if err := proto.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		if size, bound := len(m.GetRows()), EvaluatedSize(want.Rows); size > bound {
			t.Fatalf("seed %d: %d bytes, but EvaluatedSize says at most %d", seed, size, bound)
		}
		got, err := ModelEvaluatedBatch(&m)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		same(t, seed, got, want)
	}
}

// A row in many buckets costs its data once.
func TestDataIsWrittenOnce(t *testing.T) {
	data := string(make([]byte, 1000))
	r := model.EvaluatedRow{Kind: model.RowPut}
	for _, b := range []string{"a", "b", "c", "d"} {
		r.Puts = append(r.Puts, model.Put{Bucket: b, Data: data})
	}
	if n := len(AppendEvaluatedRows(nil, []model.EvaluatedRow{r})); n > 1100 {
		t.Errorf("%d bytes for 1000 bytes of data in four buckets", n)
	}
}

func TestOps(t *testing.T) {
	for seed := range uint64(rounds) {
		g := newGen(seed)
		var want, got []model.Op
		var block []byte
		for range g.IntN(10) {
			op := g.op()
			want = append(want, op)
			block = AppendOp(block, &op)
		}
		for op, err := range Ops(block) {
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			got = append(got, op)
		}
		same(t, seed, got, want)
	}
}

func TestOpsStop(t *testing.T) {
	op := newGen(1).op()
	block := AppendOp(AppendOp(nil, &op), &op)
	n := 0
	for range Ops(block) {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d ops after a break", n)
	}
}

func TestRow(t *testing.T) {
	for seed := range uint64(rounds) {
		g := newGen(seed)
		want := g.row(g.IntN(20))
		got, err := Row(string(AppendRow(nil, want)), make([]model.Value, 0, 4))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		same(t, seed, got, want)
	}
}

func TestMessages(t *testing.T) {
	for seed := range uint64(rounds) {
		g := newGen(seed)
		stream, notice, progress := g.stream(), g.notice(), g.progress()
		var s pb.Stream
		through(t, Stream(&stream), &s)
		same(t, seed, ModelStream(&s), stream)
		var n pb.CheckpointNotice
		through(t, Notice(&notice), &n)
		same(t, seed, ModelNotice(&n), notice)
		got, err := ModelTablesProgress(TablesProgress(progress))
		if err != nil {
			t.Fatal(err)
		}
		same(t, seed, got, progress)
	}
}

func through(t *testing.T, in, out proto.Message) {
	t.Helper()
	b, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
}

// Names that are not UTF-8 must not make a message that cannot be sent; a
// bucket that cannot be named in a notice must wake everybody.
func TestInvalidText(t *testing.T) {
	bad := "a\xffb"
	table := &model.SourceTable{Name: bad, Columns: []model.Column{{Name: bad}}}
	got, err := DecodeChangeBatch(EncodeChangeBatch(&model.ChangeBatch{
		End:     model.Cursor{Position: model.Position(bad)},
		Changes: []model.Change{{Table: table, Op: model.Insert, Row: []model.Value{model.TextValue(bad)}}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if name := got.Changes[0].Table.Name; name != "a\uFFFDb" {
		t.Errorf("table name %q", name)
	}
	if v := got.Changes[0].Row[0].Str(); v != bad {
		t.Errorf("value %q was changed", v)
	}
	n := Notice(&model.CheckpointNotice{Buckets: []string{"ok", bad}, Lookups: []string{"l"}})
	if !n.Everything || len(n.Buckets) != 0 {
		t.Errorf("notice of a bucket that is not UTF-8: %v", n)
	}
}

func TestNilMessages(t *testing.T) {
	same(t, 0, ModelCursor(nil), model.Cursor{})
	same(t, 0, ModelStreamHead(nil), model.StreamHead{})
	same(t, 0, ModelStream(nil), model.Stream{})
	if _, err := ModelSourceTable(nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("a table without id gave %v", err)
	}
}

// A few hostile bytes that announce a lot must not make a lot of memory.
func TestHostileCounts(t *testing.T) {
	huge := binary.AppendUvarint(nil, 1<<62)
	big := binary.AppendUvarint(nil, 1<<20)
	pad := make([]byte, 64)
	cat := func(bs ...[]byte) []byte {
		var out []byte
		for _, b := range bs {
			out = append(out, b...)
		}
		return out
	}
	blocks := [][]byte{
		huge, big, cat(huge, pad), cat(big, pad), cat([]byte{0}, huge, pad), cat([]byte{1}, big, pad),
		cat([]byte{1, 0, 0}, big, pad), cat([]byte{1, 0, 0, 0}, huge), cat([]byte{2}, huge, huge, huge, pad),
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, b := range blocks {
		body, err := proto.Marshal(&pb.ChangeBatch{Changes: b, Tables: []*pb.SourceTable{{Id: make([]byte, 16)}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeChangeBatch(body); !errors.Is(err, ErrMalformed) {
			t.Errorf("change block %x: %v", b, err)
		}
		if _, err := evaluatedRows(string(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("evaluated block %x: %v", b, err)
		}
		if _, err := Row(string(b), nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("row %x: %v", b, err)
		}
	}
	runtime.ReadMemStats(&after)
	if made := after.TotalAlloc - before.TotalAlloc; made > 1<<20 {
		t.Errorf("%d bytes allocated for a few hostile bytes", made)
	}
}

func FuzzDecodeChangeBatch(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(EncodeChangeBatch(newGen(seed).changeBatch()))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := DecodeChangeBatch(body)
		if err != nil {
			return
		}
		again, err := DecodeChangeBatch(EncodeChangeBatch(b))
		if err != nil {
			t.Fatal(err)
		}
		same(t, 0, again.Changes, b.Changes)
		same(t, 0, again.End, b.End)
	})
}

func FuzzEvaluatedRows(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(string(AppendEvaluatedRows(nil, newGen(seed).evaluatedBatch().Rows)))
	}
	f.Fuzz(func(t *testing.T, block string) {
		rows, err := evaluatedRows(block)
		if err != nil {
			return
		}
		again, err := evaluatedRows(string(AppendEvaluatedRows(nil, rows)))
		if err != nil {
			t.Fatal(err)
		}
		same(t, 0, again, rows)
	})
}

func FuzzOps(f *testing.F) {
	for seed := range uint64(20) {
		op := newGen(seed).op()
		f.Add(AppendOp(AppendOp(nil, &op), &op))
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		var ops, again []model.Op
		var out []byte
		for op, err := range Ops(block) {
			if err != nil {
				return
			}
			ops = append(ops, op)
			out = AppendOp(out, &op)
		}
		for op, err := range Ops(out) {
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, op)
		}
		same(t, 0, again, ops)
	})
}

func FuzzRow(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(string(AppendRow(nil, newGen(seed).row(5))))
	}
	f.Fuzz(func(t *testing.T, src string) {
		row, err := Row(src, nil)
		if err != nil {
			return
		}
		again, err := Row(string(AppendRow(nil, row)), nil)
		if err != nil {
			t.Fatal(err)
		}
		same(t, 0, again, row)
	})
}

func benchBatch() *model.ChangeBatch {
	table := &model.SourceTable{ID: model.TableID{1}, Schema: "public", Name: "todos", Columns: []model.Column{
		{Name: "id", Key: true}, {Name: "list_id"}, {Name: "description"}, {Name: "completed"}, {Name: "created_at"},
	}}
	b := &model.ChangeBatch{}
	for range 1000 {
		b.Changes = append(b.Changes, model.Change{Table: table, Op: model.Insert, Row: []model.Value{
			model.TextValue("7c1f4c2e-1f0d-4a7e-8a3a-0f1b2c3d4e5f"), model.TextValue("0b9c1d2e-3f4a-5b6c-7d8e-9f0a1b2c3d4e"),
			model.TextValue("a description of about a hundred bytes, as it is common in lists of things to do, to buy, to send"),
			model.IntegerValue(0), model.TextValue("2026-01-01 00:00:00.000000Z"),
		}})
	}
	return b
}

func BenchmarkDecodeChangeBatch(b *testing.B) {
	body := EncodeChangeBatch(benchBatch())
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeChangeBatch(body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "rows/s")
}

func BenchmarkEncodeChangeBatch(b *testing.B) {
	batch := benchBatch()
	b.ReportAllocs()
	for b.Loop() {
		EncodeChangeBatch(batch)
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "rows/s")
}
