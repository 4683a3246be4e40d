package postgres

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// benchRelation has the shape of a usual table: rows of about 200 bytes.
var benchRelation = relation{oid: 16400, schema: "public", name: "todos", identity: 'd', columns: []relationColumn{
	{key: true, name: "id", typeOID: 2950}, {name: "list_id", typeOID: 2950}, {name: "description", typeOID: 25}, {name: "done", typeOID: 16},
	{name: "priority", typeOID: 23}, {name: "created_at", typeOID: 1184}, {name: "score", typeOID: 701}, {name: "note", typeOID: 25}}}

var benchFields = []string{"0b7e1c7c-7d7a-5d8f-9f4e-0c7b1d2e3f40", "1b7e1c7c-7d7a-5d8f-9f4e-0c7b1d2e3f41", strings.Repeat("buy milk ", 8), "t",
	"42", "2024-02-29 12:34:56.123456+00", "0.25", "some more text"}

// benchSink encodes what is added once it is as much as a message.
type benchSink struct {
	source.Sink
	rows  source.Rows
	known map[model.TableID]*model.TableProgress
	bytes int
}

func (s *benchSink) Rows() *source.Rows                            { return &s.rows }
func (s *benchSink) Begin(model.Position) bool                     { return false }
func (s *benchSink) Skip() bool                                    { return false }
func (s *benchSink) Known() map[model.TableID]*model.TableProgress { return s.known }
func (s *benchSink) Paused(context.Context, []byte) (bool, error)  { return false, nil }
func (s *benchSink) Full() bool                                    { return s.rows.Bytes >= 512<<10 }
func (s *benchSink) Flush(context.Context, []byte) error           { s.encode(); return nil }
func (s *benchSink) Added(context.Context) error {
	if s.Full() {
		s.encode()
	}
	return nil
}

func (s *benchSink) encode() {
	s.bytes += len(wire.EncodeChangeBatch(&model.ChangeBatch{Stream: 1, Epoch: 1, Changes: s.rows.Changes}))
	s.rows.Reset()
}

func benchReader() (*logReader, *benchSink) {
	src := &Source{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	table := benchRelation.sourceTable()
	sink := &benchSink{known: map[model.TableID]*model.TableProgress{table.ID: {Table: table, LastKey: place(benchRelation.oid, nil), Done: true}}}
	l := &logReader{source: src, version: 150000, stream: &model.Stream{Tables: []model.TablePattern{{Connection: "default", Schema: "public", Name: "todos"}}},
		sink: sink, relations: map[uint32]*relationState{}}
	return l, sink
}

// BenchmarkDecode: XLogData to encoded batch, all that happens to a streamed row.
func BenchmarkDecode(b *testing.B) {
	l, sink := benchReader()
	ctx := context.Background()
	rel := message{tag: 'R', rel: benchRelation}
	if err := l.data(ctx, rel.encode(nil)); err != nil {
		b.Fatal(err)
	}
	insert := message{tag: 'I', relation: benchRelation.oid}
	for _, f := range benchFields {
		insert.new = append(insert.new, text(f))
	}
	raw := append(make([]byte, 25), insert.encode(nil)...)
	raw[0] = 'w'
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if err := l.copyData(ctx, raw); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	if sink.bytes == 0 && b.N > 10000 {
		b.Fatal("nothing was encoded")
	}
}

// BenchmarkCopy: a line of COPY to encoded batch.
func BenchmarkCopy(b *testing.B) {
	l, sink := benchReader()
	st := benchRelation.sourceTable()
	types, err := l.source.columnTypes(context.Background(), &st)
	if err != nil {
		b.Fatal(err)
	}
	t := &table{oid: 1, types: types, key: []int{0}}
	w := &copyWriter{ctx: context.Background(), source: l.source, table: &st, t: t, copier: sink, key: make([][]byte, 1), keyIndex: make([]int, len(st.Columns))}
	w.keyIndex[0] = 1
	line := []byte(strings.Join(benchFields, "\t") + "\n")
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Write(line); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	if w.rows == 0 {
		b.Fatal("no rows")
	}
}
