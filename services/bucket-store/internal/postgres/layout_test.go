package postgres

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
)

// BenchmarkBucketRange reads pages of a bucket's ops, and reports the blocks that
// the server looks at for each op: as an initial copy leaves them, and as
// transactions do that each touch a thousand buckets, which is the worst there
// is.
func BenchmarkBucketRange(b *testing.B) {
	pg := pgtest.Start(b)
	const ops = 1_000_000
	for _, x := range []struct {
		name    string
		buckets int
		order   string
	}{
		{"one bucket", 1, "op"},
		{"1000 buckets, copied", 1000, "bucket, op"},
		{"1000 buckets, a thousand in each transaction", 1000, "op"},
	} {
		b.Run(x.name, func(b *testing.B) {
			s := owning(b, pg.Config(), Options{Schema: fmt.Sprintf("b%d%d", x.buckets, len(x.order))})
			defer s.Close()
			id, _ := deploy(b, s)
			load := of(id, `INSERT INTO ops@ (op, bucket, checksum, kind, name, data)
				SELECT op, 1 + (op - 1) % $2 AS bucket, op, $3, '\x00'::bytea || decode(repeat(md5(op::text), 2), 'hex') || '\x047461736b31', decode(repeat(md5(op::text), 12), 'hex')
				FROM generate_series(1, $1::int8) op ORDER BY `+x.order)
			if _, err := s.write.Exec(b.Context(), load, int64(ops), x.buckets, int16(model.OpPut)); err != nil {
				b.Fatal(err)
			}
			for n := range x.buckets {
				if _, err := s.write.Exec(b.Context(), of(id, `INSERT INTO buckets@ (hash, id, name) VALUES ($1, $2, $3)`), [16]byte(hashOf(fmt.Sprint(n))), n+1, []byte(fmt.Sprint(n))); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := s.write.Exec(b.Context(), of(id, `VACUUM (ANALYZE) ops@`)); err != nil {
				b.Fatal(err)
			}
			blocks, rows := 0, 0
			for b.Loop() {
				var plan []byte
				err := s.read.QueryRow(b.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+of(id, opsPage), pgx.QueryExecModeExec,
					[16]byte(hashOf("0")), int64(ops/3), int64(ops), s.options.pageOps, s.options.pageBytes).Scan(&plan)
				if err != nil {
					b.Fatal(err)
				}
				var e []struct {
					Plan struct {
						Hit  int     `json:"Shared Hit Blocks"`
						Read int     `json:"Shared Read Blocks"`
						Rows float64 `json:"Actual Rows"`
					}
				}
				if err := json.Unmarshal(plan, &e); err != nil {
					b.Fatal(err)
				}
				blocks += e[0].Plan.Hit + e[0].Plan.Read
				rows += int(e[0].Plan.Rows)
			}
			if rows == 0 {
				b.Fatal("nothing was read")
			}
			b.ReportMetric(float64(blocks)/float64(rows), "blocks/op")
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}
