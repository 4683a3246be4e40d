package bucketstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/mongodb"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pebble"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/internal/postgres"
	"github.com/sluicesync/sluice/services/bucket-store/internal/writer"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// rowsOf makes rows of about 200 bytes, each in one bucket of buckets.
func rowsOf(first, n, buckets int, kind model.RowKind) []model.EvaluatedRow {
	random := rand.New(rand.NewPCG(1, uint64(first)))
	rows := make([]model.EvaluatedRow, n)
	for i := range rows {
		id := first + i
		var name [8]byte
		binary.BigEndian.PutUint64(name[:], uint64(id))
		key := model.RowKey{Table: model.TableID{1, 2, 3, 4, 5, 6, 7, 8, 9}, Row: model.RowID(model.UUID5(name[:]))}
		object := fmt.Sprintf("%08x-7d7a-5d8f-9f4e-0c7b1d2e3f40", id)
		data := fmt.Sprintf(`{"id":"%s","owner":"user-%d","title":"%s","done":0,"created":"2026-11-22T03:00:00Z"}`, object, id%buckets, strings.Repeat("x", 60+random.IntN(40)))
		rows[i] = model.EvaluatedRow{Kind: kind, Key: key, Puts: []model.Put{{
			Bucket: fmt.Sprintf(`1#lists|0["user-%d"]`, id%buckets), ObjectType: "lists", ObjectID: object, Data: data, Checksum: model.Checksum(random.Uint32()),
		}}}
	}
	return rows
}

// encoded makes the messages that an evaluator sends: n batches of size rows.
func encoded(b *testing.B, stream model.StreamID, epoch model.Epoch, at model.Cursor, n, size, buckets int, kind model.RowKind) (messages [][]byte, end model.Cursor) {
	b.Helper()
	for i := range n {
		batch := &model.EvaluatedBatch{Stream: stream, Epoch: epoch, Previous: at, Rows: rowsOf(i*size, size, buckets, kind)}
		if kind == model.RowSnapshot {
			batch.End = model.Cursor{Position: position(1), Offset: at.Offset + 1}
		} else {
			batch.End = model.Cursor{Position: position(100 + i)}
		}
		at = batch.End
		m, err := proto.Marshal(&pb.ApplyRequest{Id: uint64(i + 1), Batch: wire.EvaluatedBatch(batch)})
		if err != nil {
			b.Fatal(err)
		}
		messages = append(messages, m)
	}
	return messages, at
}

// openStore opens an empty store: the embedded one, or with
// SLUICE_BENCH_STORAGE=postgresql one on Postgres, with mongodb one on the server
// that SLUICE_TEST_MONGODB_URI names.
func openStore(b *testing.B) store.Store {
	b.Helper()
	s := openStoreIn(b, b.TempDir())
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// openStoreIn opens the embedded store in a folder, or an empty one on Postgres;
// the caller closes it.
func openStoreIn(b *testing.B, dir string) store.Store {
	b.Helper()
	var s store.Store
	var err error
	switch os.Getenv("SLUICE_BENCH_STORAGE") {
	case "mongodb":
		c := &config.MongoDB{URI: os.Getenv("SLUICE_TEST_MONGODB_URI"), Database: fmt.Sprint("sluice_bench_", time.Now().UnixNano())}
		var m *mongodb.Store
		if m, err = mongodb.Open(b.Context(), c, mongodb.Options{}); err == nil {
			s = m
			_, err = m.Own(b.Context(), "", func(error) {})
		}
		b.Cleanup(func() {
			if err := mongodb.Migrate(context.Background(), c, mongodb.Options{}, true, true); err != nil {
				b.Error(err)
			}
		})
	case "postgresql":
		var pg *postgres.Store
		if pg, err = postgres.Open(b.Context(), pgtest.Start(b).Config(), postgres.Options{}); err == nil {
			s = pg
			_, err = pg.Own(b.Context(), "", func(error) {})
		}
	default:
		s, err = pebble.Open(dir, pebble.Options{})
	}
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func newStream(b *testing.B, s store.Store) *model.Stream {
	b.Helper()
	made, err := s.Change(b.Context(), func([]model.Stream) store.Change { return store.Change{New: &model.Stream{State: model.Processing}} })
	if err != nil {
		b.Fatal(err)
	}
	if made.Head, err = s.OpenSession(b.Context(), made.ID); err != nil {
		b.Fatal(err)
	}
	return made
}

// benchHub is a hub without readers.
func benchHub(b *testing.B, s store.Store) *writer.Hub {
	b.Helper()
	h, err := writer.New(b.Context(), s, writer.Options{
		Publish: func(*model.CheckpointNotice, string) {}, Revoke: func(model.StreamID, model.Epoch) { panic("revoked") }, Catalog: func() {}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(h.Close)
	return h
}

// applyAll decodes messages and hands them in, as the API does, and waits for
// the answers.
func applyAll(b *testing.B, h *writer.Hub, messages [][]byte, concurrency int) {
	b.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, concurrency)
	for _, data := range messages {
		var m pb.ApplyRequest
		if err := proto.Unmarshal(data, &m); err != nil {
			b.Fatal(err)
		}
		batch, err := wire.ModelEvaluatedBatch(m.GetBatch())
		if err != nil {
			b.Fatal(err)
		}
		w, err := h.Writer(batch.Stream)
		if err != nil {
			b.Fatal(err)
		}
		slots <- struct{}{}
		wg.Add(1)
		err = w.Arrive(b.Context(), batch, len(data), nil, func(r ledger.Result, msg string) {
			if r != ledger.ResultCommitted {
				b.Errorf("answered %s: %s", r, msg)
			}
			<-slots
			wg.Done()
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	wg.Wait()
}

// BenchmarkSnapshot is an initial copy: decode, ledger, the store with fsync.
func BenchmarkSnapshot(b *testing.B) {
	for _, buckets := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("buckets=%d", buckets), func(b *testing.B) {
			const rows, size = 300_000, 2000
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := openStore(b)
				st := newStream(b, s)
				h := benchHub(b, s)
				messages, _ := encoded(b, st.ID, st.Head.Epoch, model.Cursor{}, rows/size, size, buckets, model.RowSnapshot)
				runtime.GC()
				b.StartTimer()
				applyAll(b, h, messages, 32)
			}
			b.ReportMetric(rows*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

// BenchmarkTransactions is a flood of one-row transactions, one a batch, and
// small packs of them.
func BenchmarkTransactions(b *testing.B) {
	for _, size := range []int{1, 10} {
		b.Run(fmt.Sprintf("rows=%d", size), func(b *testing.B) {
			const batches = 20_000
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := openStore(b)
				st := newStream(b, s)
				h := benchHub(b, s)
				messages, _ := encoded(b, st.ID, st.Head.Epoch, model.Cursor{}, batches, size, 1000, model.RowPut)
				runtime.GC()
				b.StartTimer()
				applyAll(b, h, messages, 256)
			}
			b.ReportMetric(batches*float64(b.N)/b.Elapsed().Seconds(), "tx/s")
		})
	}
}

// watched is a store that says what a truncate asks of it.
type watched struct {
	store.Store
	begin       time.Time
	first       time.Duration // until the first write
	pages, rows int
	commits     int
}

func (w *watched) Table(ctx context.Context, id model.StreamID, table model.TableID, after model.RowID, limit int) ([]ledger.KeyedRecord, bool, error) {
	rows, more, err := w.Store.Table(ctx, id, table, after, limit)
	w.pages++
	w.rows += len(rows)
	return rows, more, err
}

func (w *watched) Commit(ctx context.Context, c *ledger.Commit) error {
	err := w.Store.Commit(ctx, c)
	if w.commits++; w.commits == 1 {
		w.first = time.Since(w.begin)
	}
	return err
}

// BenchmarkTruncate truncates a table of a million rows in 1,000 buckets, while
// another table's row waits behind it.
func BenchmarkTruncate(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		const rows, size = 1_000_000, 2000
		w := &watched{Store: openStore(b)}
		st := newStream(b, w)
		h := benchHub(b, w)
		messages, at := encoded(b, st.ID, st.Head.Epoch, model.Cursor{}, rows/size, size, 1000, model.RowPut)
		applyAll(b, h, messages, 32)
		table := rowsOf(0, 1, 1, model.RowPut)[0].Key.Table
		other := rowsOf(rows, 1, 1000, model.RowPut)
		other[0].Key.Table = model.TableID{9}
		messages = nil
		for n, rows := range [][]model.EvaluatedRow{{{Kind: model.RowTruncate, Key: model.RowKey{Table: table}}}, other} {
			batch := &model.EvaluatedBatch{Stream: st.ID, Epoch: st.Head.Epoch, Previous: at, End: model.Cursor{Position: position(1_000_000 + n)}, Rows: rows}
			at = batch.End
			m, err := proto.Marshal(&pb.ApplyRequest{Id: 1, Batch: wire.EvaluatedBatch(batch)})
			if err != nil {
				b.Fatal(err)
			}
			messages = append(messages, m)
		}
		w.pages, w.rows, w.commits = 0, 0, 0
		runtime.GC()
		b.StartTimer()
		w.begin = time.Now()
		applyAll(b, h, messages, 32)
		b.ReportMetric(time.Since(w.begin).Seconds(), "s")
		b.ReportMetric(float64(w.first.Microseconds())/1000, "ms-to-first-write")
		b.ReportMetric(float64(w.pages), "reads")
		b.ReportMetric(float64(w.rows), "rows-read")
		b.ReportMetric(float64(w.commits), "commits")
	}
}

// BenchmarkBytesPerOp is what an op takes on disk, beside the bytes of its row's
// data: rows of three sizes, each in one bucket or in several. Half of the data
// is random digits.
func BenchmarkBytesPerOp(b *testing.B) {
	for _, size := range []int{200, 2000, 20_000} {
		for _, shared := range []int{1, 5, 25} {
			b.Run(fmt.Sprintf("data=%d/buckets=%d", size, shared), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					dir := b.TempDir()
					s := openStoreIn(b, dir)
					st := newStream(b, s)
					h := benchHub(b, s)
					random := rand.New(rand.NewPCG(1, 2))
					c := chain{stream: st.ID, epoch: st.Head.Epoch}
					ops := 50_000_000 / (size + 200)
					data := 0
					var messages [][]byte
					for row := 0; row < ops/shared; {
						var rows []model.EvaluatedRow
						for ; row < ops/shared && len(rows) < max(1, 2_000_000/size/shared); row++ {
							r := rowsOf(row, 1, 1, model.RowPut)[0]
							text := []byte(strings.Repeat("text of a row, ", size/15+1)[:size])
							for i := range text[:size/2] {
								text[i] = "0123456789"[random.IntN(10)]
							}
							put := r.Puts[0]
							put.Data = fmt.Sprintf(`{"id":"%d","body":"%s"}`, row, text)
							r.Puts = nil
							for n := range shared {
								put.Bucket = fmt.Sprintf(`1#lists|0["user-%d"]`, (row+n*41)%1000)
								r.Puts = append(r.Puts, put)
								data += len(put.Data)
							}
							rows = append(rows, r)
						}
						m, err := proto.Marshal(&pb.ApplyRequest{Id: 1, Batch: wire.EvaluatedBatch(c.next(100+row, rows...))})
						if err != nil {
							b.Fatal(err)
						}
						messages = append(messages, m)
					}
					b.StartTimer()
					applyAll(b, h, messages, 32)
					b.StopTimer()
					h.Close()
					if p, ok := s.(*pebble.Store); ok { // what is only in its log is in no size
						if err := p.Close(); err != nil {
							b.Fatal(err)
						}
						s = openStoreIn(b, dir)
					}
					stored, err := s.Size(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					if err := s.Close(); err != nil {
						b.Fatal(err)
					}
					n := float64(ops / shared * shared)
					b.ReportMetric(float64(stored.Operations)/n, "B/op-stored")
					b.ReportMetric(float64(data)/n, "B/op-of-data")
					b.ReportMetric(float64(stored.Operations)/float64(data), "stored/data")
					b.StartTimer()
				}
			})
		}
	}
}

// BenchmarkLoneBatch is the latency of one batch on an idle store.
func BenchmarkLoneBatch(b *testing.B) {
	s := openStore(b)
	st := newStream(b, s)
	h := benchHub(b, s)
	w, err := h.Writer(st.ID)
	if err != nil {
		b.Fatal(err)
	}
	c := chain{stream: st.ID, epoch: st.Head.Epoch}
	n := 1
	done := make(chan ledger.Result, 1)
	for b.Loop() {
		n++
		if err := w.Arrive(context.Background(), c.next(n, rowsOf(n, 1, 10, model.RowPut)...), 300, nil, func(r ledger.Result, _ string) { done <- r }); err != nil {
			b.Fatal(err)
		}
		if r := <-done; r != ledger.ResultCommitted {
			b.Fatal(r)
		}
	}
}

// filled is a running instance whose bucket sizes are rows/buckets.
func filled(b *testing.B, rows, buckets int) (*instance, *chain, []string) {
	b.Helper()
	i := run(b, b.TempDir(), bus(b))
	c := i.begin("config 1")
	const size = 5000
	for n := 0; n < rows; n += size {
		i.apply(c.next(10+n, rowsOf(n, size, buckets, model.RowPut)...))
	}
	names := make([]string, buckets)
	for n := range names {
		names[n] = fmt.Sprintf(`1#lists|0["user-%d"]`, n)
	}
	return i, c, names
}

// BenchmarkOps reads a bucket over gRPC.
func BenchmarkOps(b *testing.B) {
	const rows = 200_000
	i, c, names := filled(b, rows, 1)
	checkpoint := i.head(int64(c.stream)).GetHead().GetCheckpoint().GetOp()
	read := 0
	for b.Loop() {
		s, err := i.reader.Ops(b.Context(), &pb.OpsRequest{Stream: int64(c.stream), Checkpoint: checkpoint, Positions: []*pb.BucketPosition{{Bucket: names[0]}}})
		if err != nil {
			b.Fatal(err)
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			read += int(m.GetCount())
		}
	}
	b.ReportMetric(float64(read)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkChecksums asks for 100 buckets at a time over gRPC.
func BenchmarkChecksums(b *testing.B) {
	i, c, names := filled(b, 20_000, 1000)
	checkpoint := i.head(int64(c.stream)).GetHead().GetCheckpoint().GetOp()
	n := 0
	for b.Loop() {
		at := n % 10 * 100
		if _, err := i.reader.Checksums(b.Context(), &pb.ChecksumsRequest{Stream: int64(c.stream), Checkpoint: checkpoint, Buckets: names[at : at+100]}); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(n*100)/b.Elapsed().Seconds(), "checksums/s")
}

// BenchmarkWriteCheckpoints creates them over gRPC by 32 callers.
func BenchmarkWriteCheckpoints(b *testing.B) {
	i := run(b, b.TempDir(), bus(b))
	c := i.begin("config 1")
	const callers, each = 32, 200
	start := time.Now()
	made := 0
	for b.Loop() {
		var wg sync.WaitGroup
		for n := range callers {
			wg.Go(func() {
				for range each {
					if _, err := i.writes.Create(b.Context(), &pb.CreateWriteCheckpointsRequest{Stream: int64(c.stream), Head: string(position(50)), Requests: []*pb.CheckpointRequest{{UserKey: fmt.Sprint("user/", n)}}}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		made += callers * each
	}
	b.ReportMetric(float64(made)/time.Since(start).Seconds(), "requests/s")
}
