package bucketstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
)

// BenchmarkReplicas reads buckets of 1,000 ops by 32 callers from one, two and
// four bucket-stores on one Postgres. All are in one process, so on a machine
// whose cores one of them uses up more of them read no faster.
func BenchmarkReplicas(b *testing.B) {
	pg, nc := pgtest.Start(b), bus(b)
	cfg := Config{Postgres: &Postgres{Connection: pg.Config()}}
	first := launch(b, cfg, nc)
	first.reason(nil)
	first.connect()
	c := first.begin("config 1")
	const buckets, each = 100, 1000
	for n := range each / 10 {
		var rows []model.EvaluatedRow
		for k := range 10 {
			for bucket := range buckets {
				r := put(0, strings.Repeat("x", 170), fmt.Sprint(bucket))
				r.Key.Row = model.RowID{byte(n), byte(k), byte(bucket)}
				rows = append(rows, r)
			}
		}
		first.insist(c.next(10+n, rows...))
	}
	head := first.head(int64(c.stream)).GetHead().GetCheckpoint().GetOp()
	first.stop()
	for _, n := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var addresses []string
			for range n {
				i := launch(b, cfg, nc)
				i.reason(nil)
				addresses = append(addresses, i.address)
			}
			env := service.Env{Log: slog.New(slog.DiscardHandler)}
			conn, err := rpc.DialReplicas(strings.Join(addresses, ","), certificate.BucketStore, env)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			reader := pb.NewReaderClient(conn)
			var next, ops atomic.Int64
			b.ResetTimer()
			var all sync.WaitGroup
			for range 32 {
				all.Go(func() {
					for at := next.Add(1); at <= int64(b.N); at = next.Add(1) {
						got, err := readBucket(b.Context(), reader, int64(c.stream), head, fmt.Sprint(at%buckets))
						if err != nil || got != each {
							b.Errorf("%d ops, %v", got, err)
						}
						ops.Add(int64(got))
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(ops.Load())/b.Elapsed().Seconds(), "ops/s")
		})
	}
}

func readBucket(ctx context.Context, reader pb.ReaderClient, stream int64, checkpoint uint64, bucket string) (ops int, err error) {
	s, err := reader.Ops(ctx, &pb.OpsRequest{Stream: stream, Checkpoint: checkpoint, Positions: []*pb.BucketPosition{{Bucket: bucket}}}, grpc.WaitForReady(true))
	if err != nil {
		return 0, err
	}
	for {
		chunk, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return ops, nil
		}
		if err != nil {
			return ops, err
		}
		ops += int(chunk.GetCount())
	}
}
