package postgres

import (
	"strconv"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
)

// BenchmarkOps reads a bucket of 200,000 ops of about 200 bytes, as a client
// downloads it: 1,000 by 1,000.
func BenchmarkOps(b *testing.B) {
	s := owning(b, pgtest.Start(b).Config(), Options{})
	defer s.Close()
	id, head := deploy(b, s)
	const rows, each = 200_000, 20_000
	data := strings.Repeat("x", 170)
	for n := 0; n < rows; n += each {
		c := next(id, head, 0)
		c.Ops, c.Rows = nil, nil
		for i := range each {
			op := model.Op{ID: head.Persisted + 1 + model.OpID(i), Kind: model.OpPut, Key: key(i), ObjectType: "rows", ObjectID: strconv.Itoa(n + i), Data: data}
			c.Ops = append(c.Ops, ledger.BucketOp{Op: op})
		}
		last := c.Ops[each-1].Op.ID
		c.Buckets[0].Count, c.Buckets[0].Last, c.Head.Persisted, c.Head.Checkpoint.Op = each, last, last, last
		if err := s.Commit(b.Context(), c); err != nil {
			b.Fatal(err)
		}
		head = c.Head
	}
	b.ReportAllocs()
	read := 0
	for b.Loop() {
		for after := model.OpID(0); after < rows; {
			n := 0
			for op, err := range s.Ops(b.Context(), id, "b", after, rows) {
				if err != nil {
					b.Fatal(err)
				}
				if n++; n > 1000 {
					break
				}
				after = op.ID
			}
			read += min(n, 1000)
		}
	}
	b.ReportMetric(float64(read)/b.Elapsed().Seconds(), "ops/s")
}
