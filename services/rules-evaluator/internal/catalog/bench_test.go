package catalog

import (
	"fmt"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/evaluate"
)

// BenchmarkBatch is the whole way of a message of 1,000 rows of about 200 bytes
// on one core: decode, evaluate, encode.
func BenchmarkBatch(b *testing.B) {
	table := &model.SourceTable{ID: model.TableID{1}, Connection: "default", Schema: "public", Name: "todos", Columns: []model.Column{
		{Name: "id", Key: true}, {Name: "list_id"}, {Name: "owner"}, {Name: "title"}, {Name: "done"}, {Name: "created_at"},
	}}
	batch := &model.ChangeBatch{Stream: 1}
	for i := range 1000 {
		batch.Changes = append(batch.Changes, model.Change{Table: table, Op: model.Insert, Row: []model.Value{
			model.TextValue(fmt.Sprintf("7c1f4c2e-1f0d-4a7e-8a3a-%012d", i)), model.TextValue("0b9c1d2e-3f4a-5b6c-7d8e-9f0a1b2c3d4e"),
			model.TextValue(fmt.Sprintf("user-%d", i%100)),
			model.TextValue("a title of about seventy bytes, as people write them into lists"), model.IntegerValue(0), model.TextValue("2026-01-01 00:00:00.000000Z"),
		}})
	}
	body := wire.EncodeChangeBatch(batch)
	for name, config := range map[string]string{
		"global":  "bucket_definitions:\n  all:\n    data: [SELECT * FROM todos]\n",
		"byOwner": "bucket_definitions:\n  mine:\n    parameters: SELECT request.user_id() AS owner\n    data: [SELECT * FROM todos WHERE owner = bucket.owner]\n",
	} {
		b.Run(name, func(b *testing.B) {
			plan := Compile(&model.Stream{ID: 1, Config: config}, "public").Plan(0, false)
			if plan.Err != nil {
				b.Fatal(plan.Err)
			}
			w := &evaluate.Worker{}
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				m, err := wire.DecodeChangeBatch(body)
				if err != nil {
					b.Fatal(err)
				}
				rows := w.Evaluate(evaluate.Prepare(m, plan), plan, func(p evaluate.Problem) { b.Fatal(p.Err) })
				buf = wire.AppendEvaluatedRows(buf[:0], rows)
			}
			b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(float64(len(buf))/1000, "bytes/row")
		})
	}
}
