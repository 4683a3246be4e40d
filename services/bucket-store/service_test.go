package bucketstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bus starts a NATS server and connects to it.
func bus(t testing.TB) *nats.Conn {
	t.Helper()
	_, nc := busAt(t)
	return nc
}

// busAt is bus, and where other processes find it.
func busAt(t testing.TB) (url string, nc *nats.Conn) {
	t.Helper()
	s, err := server.NewServer(&server.Options{ServerName: "test", Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS does not start")
	}
	if nc, err = nats.Connect("", nats.InProcessServer(s)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		nc.Close()
		s.Shutdown()
		s.WaitForShutdown()
	})
	return s.ClientURL(), nc
}

// instance is a running bucket-store and its clients.
type instance struct {
	t       testing.TB
	address string
	conn    *grpc.ClientConn
	connect func()
	stop    func()
	health  *service.Health
	metrics *prometheus.Registry
	append  grpc.BidiStreamingClient[pb.ApplyRequest, pb.ApplyReply]
	lastID  uint64
	repl    pb.ReplicationClient
	catalog pb.CatalogClient
	reader  pb.ReaderClient
	writes  pb.WriteCheckpointsClient
	compact pb.CompactionClient
}

func run(t testing.TB, dir string, nc *nats.Conn) *instance {
	t.Helper()
	i := launch(t, Config{Dir: dir}, nc)
	i.connect()
	return i
}

// launch starts a bucket-store; connect waits until it serves.
func launch(t testing.TB, cfg Config, nc *nats.Conn) *instance {
	t.Helper()
	cfg.Stall = 300 * time.Millisecond
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := prometheus.NewRegistry()
	env := service.Env{Log: slog.New(slog.DiscardHandler), Metrics: metrics, Health: &service.Health{}, Instance: "test"}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, cfg, Conns{NATS: nc, Listener: lis}, env)
	}()
	i, hangUp := callers(t, lis.Addr().String(), env)
	i.health, i.metrics = env.Health, metrics
	stopped := false
	i.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		hangUp()
	}
	t.Cleanup(i.stop)
	return i
}

// callers are the clients of the bucket-store at address.
func callers(t testing.TB, address string, env service.Env) (i *instance, hangUp func()) {
	t.Helper()
	conn, err := rpc.Dial(address, certificate.BucketStore, env)
	if err != nil {
		t.Fatal(err)
	}
	i = &instance{
		t: t, address: address, conn: conn,
		repl: pb.NewReplicationClient(conn), catalog: pb.NewCatalogClient(conn), reader: pb.NewReaderClient(conn),
		writes: pb.NewWriteCheckpointsClient(conn), compact: pb.NewCompactionClient(conn),
	}
	ctx, cancel := context.WithCancel(context.Background())
	i.connect = func() {
		if i.append, err = pb.NewAppenderClient(conn).Apply(ctx, grpc.WaitForReady(true)); err != nil {
			t.Fatal(err)
		}
	}
	return i, func() {
		cancel()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// labelled returns the values of the label of a metric.
func (i *instance) labelled(name string) string {
	i.t.Helper()
	families, err := i.metrics.Gather()
	if err != nil {
		i.t.Fatal(err)
	}
	var values []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				values = append(values, m.GetLabel()[0].GetValue())
			}
		}
	}
	return strings.Join(values, " ")
}

// send hands a batch in and returns its number.
func (i *instance) send(b *model.EvaluatedBatch) uint64 {
	i.t.Helper()
	i.lastID++
	if err := i.append.Send(&pb.ApplyRequest{Id: i.lastID, Batch: wire.EvaluatedBatch(b)}); err != nil {
		i.t.Fatal(err)
	}
	return i.lastID
}

// answer receives the answer to one request.
func (i *instance) answer(id uint64, want pb.ApplyResult) {
	i.t.Helper()
	r, err := i.append.Recv()
	if err != nil {
		i.t.Fatal(err)
	}
	if r.GetId() != id || r.GetResult() != want {
		i.t.Fatalf("answer %v, want %v to request %d", r, want, id)
	}
}

func (i *instance) apply(b *model.EvaluatedBatch) {
	i.t.Helper()
	i.answer(i.send(b), pb.ApplyResult_APPLY_RESULT_COMMITTED)
}

func (i *instance) deploy(config string) *pb.DeployReply {
	i.t.Helper()
	r, err := i.catalog.Deploy(i.t.Context(), &pb.DeployRequest{Config: config, Tables: []*pb.TablePattern{{Connection: "default", Schema: "public", Name: "t"}}})
	if err != nil {
		i.t.Fatal(err)
	}
	return r
}

func (i *instance) open(id int64, holder string) *pb.OpenSessionReply {
	i.t.Helper()
	r, err := i.repl.OpenSession(i.t.Context(), &pb.OpenSessionRequest{Stream: id, Holder: holder, TtlMs: 60_000})
	if err != nil {
		i.t.Fatal(err)
	}
	return r
}

func (i *instance) head(id int64) *pb.HeadReply {
	i.t.Helper()
	r, err := i.reader.Head(i.t.Context(), &pb.HeadRequest{Stream: id})
	if err != nil {
		i.t.Fatal(err)
	}
	return r
}

// ops reads all ops of a bucket as text.
func (i *instance) ops(id int64, checkpoint uint64, bucket string) (text string, chunks []*pb.OpsChunk) {
	i.t.Helper()
	s, err := i.reader.Ops(i.t.Context(), &pb.OpsRequest{Stream: id, Checkpoint: checkpoint, Positions: []*pb.BucketPosition{{Bucket: bucket}}})
	if err != nil {
		i.t.Fatal(err)
	}
	var b strings.Builder
	for {
		c, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return strings.TrimSpace(b.String()), chunks
		}
		if err != nil {
			i.t.Fatal(err)
		}
		chunks = append(chunks, c)
		for op, err := range wire.Ops(c.GetOps()) {
			if err != nil {
				i.t.Fatal(err)
			}
			fmt.Fprintf(&b, "%d %s %s %s\n", op.ID, op.Kind, op.ObjectID, op.Data)
		}
	}
}

func (i *instance) sum(id int64, checkpoint uint64, bucket string) (uint32, uint64) {
	i.t.Helper()
	r, err := i.reader.Checksums(i.t.Context(), &pb.ChecksumsRequest{Stream: id, Checkpoint: checkpoint, Buckets: []string{bucket}})
	if err != nil {
		i.t.Fatal(err)
	}
	return r.GetChecksums()[0], r.GetCounts()[0]
}

// chain makes the batches of one session.
type chain struct {
	stream model.StreamID
	epoch  model.Epoch
	at     model.Cursor
}

func position(n int) model.Position { return model.Position(fmt.Sprintf("00000000/%08X", n)) }

// next is a batch with one transaction that ends at position n.
func (c *chain) next(n int, rows ...model.EvaluatedRow) *model.EvaluatedBatch {
	b := &model.EvaluatedBatch{Stream: c.stream, Epoch: c.epoch, Previous: c.at, End: model.Cursor{Position: c.at.Position.Mark() + position(n)}, Rows: rows}
	b.Meta.Transactions = 1
	c.at = b.End
	return b
}

func put(n byte, data string, buckets ...string) model.EvaluatedRow {
	r := model.EvaluatedRow{Kind: model.RowPut, Key: model.RowKey{Table: model.TableID{1}, Row: model.RowID{n}}, Source: "source " + data}
	for _, b := range buckets {
		sum, _ := model.PutChecksum("t", fmt.Sprint(n), data, nil)
		r.Puts = append(r.Puts, model.Put{Bucket: b, ObjectType: "t", ObjectID: fmt.Sprint(n), Data: data, Checksum: sum})
	}
	return r
}

// begin deploys, opens a session and finishes an empty initial copy.
func (i *instance) begin(config string) *chain {
	i.t.Helper()
	return i.chain(i.deploy(config).GetStream().GetId())
}

// chain begins the chain of a stream that was just made, or of another log.
func (i *instance) chain(id int64) *chain {
	i.t.Helper()
	s := i.open(id, "r1")
	c := &chain{stream: model.StreamID(id), epoch: model.Epoch(s.GetEpoch()), at: wire.ModelStreamHead(s.GetHead()).Applied}
	b := c.next(1)
	b.End.Offset = 1
	c.at = b.End
	b.Meta.SnapshotDone = true
	b.Meta.NoCheckpointBefore = c.at.Position.Mark() + position(5)
	b.Meta.Progress = []model.TableProgress{{Table: model.SourceTable{ID: model.TableID{1}, Name: "t", Columns: []model.Column{}}, Done: true}}
	i.apply(b)
	return c
}

// notices subscribes to a stream's notices.
func notices(t testing.TB, nc *nats.Conn) func() model.CheckpointNotice {
	t.Helper()
	sub, err := nc.SubscribeSync(stream.AllCheckpoints)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() model.CheckpointNotice {
		t.Helper()
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var n pb.CheckpointNotice
		if err := proto.Unmarshal(m.Data, &n); err != nil {
			t.Fatal(err)
		}
		return wire.ModelNotice(&n)
	}
}

// TestPipeline shows D1, D3 and D4 through the service: deploy, initial copy,
// changes out of order and twice, checkpoint, read.
func TestPipeline(t *testing.T) {
	nc := bus(t)
	i := run(t, t.TempDir(), nc)
	notice := notices(t, nc)
	c := i.begin("config 1")
	id := int64(c.stream)
	b1 := c.next(2, put(1, `{"v":1}`, "a"), put(2, `{"v":1}`, "a", "b"))
	b2 := c.next(6, put(1, `{"v":2}`, "b"))
	first := i.send(b2)
	second := i.send(b1)
	i.answer(second, pb.ApplyResult_APPLY_RESULT_COMMITTED)
	i.answer(first, pb.ApplyResult_APPLY_RESULT_COMMITTED)
	i.apply(b1)
	i.apply(b2)

	n := notice()
	h := i.head(id)
	if n.Checkpoint != wire.ModelCheckpoint(h.GetHead().GetCheckpoint()) || n.Checkpoint.Position != position(6) || n.Run != h.GetRun() || n.Sequence != h.GetSequence() {
		t.Fatalf("notice %+v, head %v", n, h)
	}
	if !n.Everything {
		t.Error("the first notice of a run must say that everything may have changed (INV-29)")
	}
	checkpoint := h.GetHead().GetCheckpoint().GetOp()
	text, _ := i.ops(id, checkpoint, "a")
	if want := "1 PUT 1 {\"v\":1}\n2 PUT 2 {\"v\":1}\n4 REMOVE 1"; text != want {
		t.Errorf("bucket a:\n%s\nwant\n%s", text, want)
	}
	sum, count := i.sum(id, checkpoint, "b")
	want := put(2, `{"v":1}`, "b").Puts[0].Checksum + put(1, `{"v":2}`, "b").Puts[0].Checksum
	if sum != uint32(want) || count != 2 {
		t.Errorf("bucket b: checksum %d count %d, want %d 2 (D7)", sum, count, want)
	}
	i.apply(c.next(7, put(3, `{}`, "b")))
	if n := notice(); n.Everything || !slices.Equal(n.Buckets, []string{"b"}) || n.Sequence != h.GetSequence()+1 {
		t.Errorf("second notice: %+v", n)
	}
	rows, err := pb.NewAppenderClient(i.conn).PreviousRows(t.Context(), &pb.PreviousRowsRequest{
		Stream: id, At: wire.Cursor(c.at), Keys: [][]byte{append(slices.Repeat([]byte{1}, 1), append(make([]byte, 15), append([]byte{3}, make([]byte, 15)...)...)...), make([]byte, 32)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%q", rows.GetRows()); got != `["source {}" ""]` {
		t.Errorf("previous rows: %s", got)
	}
	if s := i.health.Snapshot(); !s.Ready {
		t.Errorf("not ready: %v", s.Reason)
	}
}

// TestRestart: what was acknowledged is there after a new start, and the
// holder of the lease goes on with its epoch.
func TestRestart(t *testing.T) {
	nc := bus(t)
	dir := t.TempDir()
	i := run(t, dir, nc)
	c := i.begin("config 1")
	id := int64(c.stream)
	i.apply(c.next(6, put(1, `{"v":1}`, "a")))
	before := i.head(id)
	i.stop()

	i = run(t, dir, nc)
	after := i.head(id)
	if !proto.Equal(before.GetHead(), after.GetHead()) {
		t.Errorf("head %v after the restart, %v before", after.GetHead(), before.GetHead())
	}
	if after.GetRun() == before.GetRun() {
		t.Error("a new run must have a new number")
	}
	if _, err := i.repl.RenewLease(t.Context(), &pb.RenewLeaseRequest{Stream: id, Holder: "r1", Epoch: uint64(c.epoch), TtlMs: 60_000}); err != nil {
		t.Errorf("the holder cannot renew after a restart: %v", err)
	}
	if _, err := i.repl.OpenSession(t.Context(), &pb.OpenSessionRequest{Stream: id, Holder: "r2", TtlMs: 60_000}); errs.CodeOf(err) != errs.S1003 {
		t.Errorf("second holder: %v, want PSYNC_S1003", err)
	}
	i.apply(c.next(7, put(1, `{"v":2}`, "a")))
	if text, _ := i.ops(id, i.head(id).GetHead().GetCheckpoint().GetOp(), "a"); text != "1 PUT 1 {\"v\":1}\n2 PUT 1 {\"v\":2}" {
		t.Errorf("D2: ops after the restart:\n%s", text)
	}
	if tables := i.open(id, "r1").GetTables(); len(tables) != 1 || !tables[0].GetDone() {
		t.Errorf("tables %v", tables)
	}
}

// TestFencing: D5, a second holder is refused, an older epoch is dropped.
func TestFencing(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	c := i.begin("config 1")
	id := int64(c.stream)
	if _, err := i.repl.OpenSession(t.Context(), &pb.OpenSessionRequest{Stream: id, Holder: "r2", TtlMs: 1000}); errs.CodeOf(err) != errs.S1003 || status.Code(errors.Unwrap(err)) != codes.FailedPrecondition {
		t.Fatalf("second holder: %v", err)
	}
	if _, err := i.repl.CloseSession(t.Context(), &pb.CloseSessionRequest{Stream: id, Holder: "r1", Epoch: uint64(c.epoch)}); err != nil {
		t.Fatal(err)
	}
	s := i.open(id, "r2")
	if s.GetEpoch() <= uint64(c.epoch) {
		t.Fatalf("epoch %d after %d", s.GetEpoch(), c.epoch)
	}
	i.answer(i.send(c.next(6, put(1, `{}`, "a"))), pb.ApplyResult_APPLY_RESULT_OBSOLETE)
	if _, err := i.repl.RenewLease(t.Context(), &pb.RenewLeaseRequest{Stream: id, Holder: "r1", Epoch: uint64(c.epoch)}); errs.CodeOf(err) != errs.S1003 {
		t.Errorf("old holder renews: %v", err)
	}
}

// TestGap: D4, a gap that stays ends the session, and a new one begins at the
// committed cursor.
func TestGap(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	c := i.begin("config 1")
	id := int64(c.stream)
	applied := c.at
	c.next(6)
	i.answer(i.send(c.next(7, put(1, `{}`, "a"))), pb.ApplyResult_APPLY_RESULT_OBSOLETE)
	if _, err := i.repl.RenewLease(t.Context(), &pb.RenewLeaseRequest{Stream: id, Holder: "r1", Epoch: uint64(c.epoch)}); errs.CodeOf(err) != errs.S1003 {
		t.Errorf("a broken session is renewed: %v", err)
	}
	s := i.open(id, "r1")
	if got := wire.ModelCursor(s.GetHead().GetApplied()); got != applied {
		t.Errorf("applied %s, want %s", got, applied)
	}
	c.epoch, c.at = model.Epoch(s.GetEpoch()), applied
	i.apply(c.next(8, put(1, `{}`, "a")))
}

// TestDeploys follows the states of streams (spec/05 §1, INV-36, INV-37).
func TestDeploys(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	watch, err := i.catalog.Watch(t.Context(), &pb.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	states := func() string {
		t.Helper()
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, s := range wire.ModelStreams(m.GetStreams()) {
			fmt.Fprintf(&b, "%d %s ", s.ID, s.State)
		}
		return strings.TrimSpace(b.String())
	}
	expect := func(want string) {
		t.Helper()
		for got := states(); got != want; got = states() { // Watch coalesces, or shows a state on the way
			if len(got) > len(want)+40 {
				t.Fatalf("states %q, want %q", got, want)
			}
		}
	}
	expect("")
	c1 := i.begin("config 1")
	expect("1 PROCESSING")
	if r := i.deploy("config 1"); r.GetCreated() || r.GetStream().GetId() != 1 || !strings.HasPrefix(r.GetStream().GetName(), "powersync_1_") || len(r.GetStream().GetName()) != len("powersync_1_abcd") {
		t.Errorf("same content: %v", r)
	}
	i.apply(c1.next(6, put(1, `{}`, "1#a")))
	expect("1 ACTIVE")
	if r := i.deploy("config 2"); !r.GetCreated() || r.GetStream().GetId() != 2 {
		t.Errorf("new content: %v", r)
	}
	expect("1 ACTIVE 2 PROCESSING")
	c3 := i.begin("config 3")
	expect("1 ACTIVE 2 STOP 3 PROCESSING")
	i.apply(c1.next(7, put(1, `{}`, "1#a"))) // INV-37
	i.apply(c3.next(7, put(1, `{}`, "3#a")))
	expect("1 STOP 2 STOP 3 ACTIVE")
	i.answer(i.send(c1.next(8)), pb.ApplyResult_APPLY_RESULT_OBSOLETE)
	if _, err := i.repl.Terminate(t.Context(), &pb.TerminateRequest{Stream: 3}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("an active stream is cleared: %v", err)
	}
	if all := i.labelled("sluice_store_failures_total"); all != "1 3" { // stream 2 was never written
		t.Errorf("metrics of streams %s", all)
	}
	if _, err := i.repl.Terminate(t.Context(), &pb.TerminateRequest{Stream: 1}); err != nil {
		t.Fatal(err)
	}
	expect("2 STOP 3 ACTIVE")
	// What metrics say of a stream goes with it. The writer looks a moment later.
	for deadline := time.Now().Add(10 * time.Second); i.labelled("sluice_store_failures_total") != "3" || i.labelled("sluice_store_reorder_buffer_bytes") != "3"; {
		if time.Now().After(deadline) {
			t.Fatalf("metrics of streams %s", i.labelled("sluice_store_failures_total"))
		}
		runtime.Gosched()
	}
	if text, _ := i.ops(3, 1, "3#a"); text != "1 PUT 1 {}" {
		t.Errorf("INV-41: stream 3 after clearing 1: %q", text)
	}
	if _, err := i.repl.Restart(t.Context(), &pb.RestartRequest{Stream: 3, Epoch: uint64(c3.epoch) - 1, Reason: "slot lost"}); errs.CodeOf(err) != errs.S1003 {
		t.Errorf("D5: a session that is over says that the slot is lost: %v", err)
	}
	if _, err := i.repl.Restart(t.Context(), &pb.RestartRequest{Stream: 3, Epoch: uint64(c3.epoch), Reason: "slot lost"}); err != nil {
		t.Fatalf("restart: %v", err)
	}
	list, err := i.catalog.List(t.Context(), &pb.ListRequest{IncludeTerminated: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := list.GetStreams()[2]; len(list.GetStreams()) != 3 || s.GetState() != pb.StreamState_STREAM_STATE_ACTIVE || s.GetHead().GetLastError() != "slot lost" || s.GetHead().GetSnapshotDone() || list.GetSize() == nil {
		t.Errorf("list: %v", list)
	}
	// What is stored is served meanwhile; then the error is over.
	if text, _ := i.ops(3, 1, "3#a"); text != "1 PUT 1 {}" {
		t.Errorf("while tables are compared there is %q", text)
	}
	i.answer(i.send(c3.next(9)), pb.ApplyResult_APPLY_RESULT_OBSOLETE)
	i.apply(i.chain(3).next(6))
	if h := i.head(3).GetHead(); h.GetLastError() != "" || !h.GetSnapshotDone() || h.GetCheckpoint().GetPosition() != "}"+string(position(6)) {
		t.Errorf("when they are: %v", h)
	}
}

// TestWriteCheckpointNotices: INV-27 and INV-28.
func TestWriteCheckpointNotices(t *testing.T) {
	nc := bus(t)
	i := run(t, t.TempDir(), nc)
	notice := notices(t, nc)
	c := i.begin("config 1")
	id := int64(c.stream)
	i.apply(c.next(6))
	notice()
	create := func(head int, key string, want uint64) {
		t.Helper()
		r, err := i.writes.Create(t.Context(), &pb.CreateWriteCheckpointsRequest{Stream: id, Head: string(position(head)), Requests: []*pb.CheckpointRequest{{UserKey: key}}})
		if err != nil || len(r.GetIds()) != 1 || r.GetIds()[0] != want {
			t.Fatalf("create: %v %v, want %d", r, err, want)
		}
	}
	reached := func(n model.CheckpointNotice, want ...model.WriteCheckpoint) {
		t.Helper()
		if !slices.Equal(n.Reached, want) {
			t.Errorf("reached %v, want %v", n.Reached, want)
		}
	}
	create(8, "u/1", 1)
	create(5, "u/2", 1) // reached before it was made: announced at once
	reached(notice(), model.WriteCheckpoint{UserKey: "u/2", ID: 1, Head: position(5)})
	i.apply(c.next(7))
	reached(notice())
	i.apply(c.next(9))
	reached(notice(), model.WriteCheckpoint{UserKey: "u/1", ID: 1, Head: position(8)})
	create(12, "u/1", 2)
	r, err := i.writes.Reached(t.Context(), &pb.ReachedRequest{Stream: id, Position: string(position(9)), UserKeys: []string{"u/1", "u/2", "u/3"}})
	if err != nil || !slices.Equal(r.GetIds(), []uint64{1, 1, 0}) {
		t.Errorf("INV-26: reached %v %v, want 1 1 0", r, err)
	}
}

// TestOtherHistory: when the source has another history, its positions begin
// anew. What clients wait for in the earlier one they see with the first
// checkpoint of the later one, and what they write meanwhile not before. Where
// only the log had a gap, they wait for what they have written.
func TestOtherHistory(t *testing.T) {
	nc := bus(t)
	dir := t.TempDir()
	i := run(t, dir, nc)
	notice := notices(t, nc)
	c := i.begin("config 1")
	i.apply(c.next(60))
	notice()
	create := func(head int, key string, want uint64) {
		t.Helper()
		r, err := i.writes.Create(t.Context(), &pb.CreateWriteCheckpointsRequest{Stream: 1, Head: string(position(head)), Requests: []*pb.CheckpointRequest{{UserKey: key}}})
		if err != nil || len(r.GetIds()) != 1 || r.GetIds()[0] != want {
			t.Fatalf("create: %v %v, want %d", r, err, want)
		}
	}
	reached := func(at model.Position, want ...uint64) {
		t.Helper()
		r, err := i.writes.Reached(t.Context(), &pb.ReachedRequest{Stream: 1, Position: string(at), UserKeys: []string{"u/1", "u/2"}})
		if err != nil || !slices.Equal(r.GetIds(), want) {
			t.Errorf("reached at %s: %v %v, want %v", at, r.GetIds(), err, want)
		}
	}
	told := func(want ...string) {
		t.Helper()
		var got []string
		for _, w := range notice().Reached {
			got = append(got, fmt.Sprint(w.UserKey, " ", w.ID))
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("told of %q, want %q", got, want)
		}
	}
	create(100, "u/1", 1)
	restart := func(other bool) {
		t.Helper()
		if _, err := i.repl.Restart(t.Context(), &pb.RestartRequest{Stream: 1, Epoch: uint64(c.epoch), Reason: "restored", OtherHistory: other}); err != nil {
			t.Fatalf("restart: %v", err)
		}
	}
	restart(true)
	create(5, "u/2", 1)
	reached(position(60), 0, 0)
	c = i.chain(1)
	i.apply(c.next(6))
	told("u/1 1", "u/2 1")
	reached("~"+position(6), 1, 1)
	create(8, "u/1", 2)
	reached("~"+position(6), 1, 1)
	i.apply(c.next(9))
	told("u/1 2")
	reached("~"+position(9), 2, 1)
	// A stream made since is of the same history.
	if s := wire.ModelStream(i.deploy("config 2").GetStream()); s.Era != 1 {
		t.Errorf("era %d", s.Era)
	}
	// In the same history positions mean what they meant.
	create(20, "u/1", 3)
	restart(false)
	create(30, "u/2", 2)
	reached("~"+position(9), 2, 1)
	c = i.chain(1)
	i.apply(c.next(19))
	told()
	reached("~}"+position(19), 2, 1)
	i.apply(c.next(21))
	told("u/1 3")
	i.apply(c.next(30))
	told("u/2 2")
	reached("~}"+position(30), 3, 2)
	// A new start of the service knows it all.
	create(40, "u/1", 4)
	restart(true)
	i.stop()
	i = run(t, dir, nc)
	create(7, "u/2", 3)
	c = i.chain(1)
	i.apply(c.next(6))
	told("u/1 4")
	i.apply(c.next(7))
	told("u/2 3")
	reached("~}~"+position(7), 4, 3)
}

// TestCustomCheckpoints: D1 and D4 of the write checkpoints that rows carry, and
// where they are none are handed out.
func TestCustomCheckpoints(t *testing.T) {
	nc := bus(t)
	i := run(t, t.TempDir(), nc)
	notice := notices(t, nc)
	made, err := i.catalog.Deploy(t.Context(), &pb.DeployRequest{Config: "config 1", CustomCheckpoints: true})
	if err != nil || !made.GetStream().GetCustomCheckpoints() {
		t.Fatalf("deploy: %v %v", made, err)
	}
	c := i.chain(made.GetStream().GetId())
	id := int64(c.stream)
	i.apply(c.next(5))
	notice() // everything may have changed
	reached := func(at int, want ...uint64) {
		t.Helper()
		r, err := i.writes.Reached(t.Context(), &pb.ReachedRequest{Stream: id, Position: string(position(at)), UserKeys: []string{"u/1", "u/2"}})
		if err != nil || !slices.Equal(r.GetIds(), want) {
			t.Errorf("D1: reached at %d: %v %v, want %v", at, r, err, want)
		}
	}
	b := c.next(6, put(1, "{}", "a"))
	b.Checkpoints = []model.CustomCheckpoint{{UserKey: "u/1", ID: 7}, {UserKey: "u/2", ID: 1, Requested: true}}
	i.apply(b)
	if n, want := notice(), []model.WriteCheckpoint{{UserKey: "u/1", ID: 7, Head: position(6)}, {UserKey: "u/2", ID: 1, Head: position(6)}}; !slices.Equal(n.Reached, want) || !slices.Equal(n.Buckets, []string{"a"}) {
		t.Errorf("notice %+v, want reached %v", n, want)
	}
	reached(5, 0, 0)
	reached(6, 7, 1)
	i.apply(b) // D4
	b = c.next(7)
	i.apply(b)
	if n := notice(); n.Reached != nil {
		t.Errorf("D4: reached %v by a batch that carries none", n.Reached)
	}
	_, err = i.writes.Create(t.Context(), &pb.CreateWriteCheckpointsRequest{Stream: id, Head: string(position(7)), Requests: []*pb.CheckpointRequest{{UserKey: "u/1"}}})
	if errs.CodeOf(err) != errs.S2001 {
		t.Errorf("a managed write checkpoint beside custom ones: %v", err)
	}

	expire := func(age time.Duration, want uint64) {
		t.Helper()
		r, err := i.compact.ExpireRequests(t.Context(), &pb.ExpireRequestsRequest{Stream: id, AgeMs: age.Milliseconds()})
		if err != nil || r.GetRemoved() != want {
			t.Errorf("requests of %s ago expired: %v %v, want %d", age, r, err, want)
		}
	}
	expire(time.Hour, 0)
	reached(7, 7, 1)
	expire(-time.Hour, 1)
	reached(7, 7, 0)

	// What a config gives was not looked at before: it is replicated anew.
	plain := i.deploy("config 2")
	again, err := i.catalog.Deploy(t.Context(), &pb.DeployRequest{Config: "config 2", Tables: wire.TablePatterns(wire.ModelTablePatterns(plain.GetStream().GetTables())), CustomCheckpoints: true})
	if err != nil || !again.GetCreated() {
		t.Errorf("deploy with custom write checkpoints of what had none: %v %v", again, err)
	}
}

// TestTurns: compactors get the dirtiest bucket that nobody is at, once it is
// visible.
func TestTurns(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	c := i.begin("config 1")
	id := int64(c.stream)
	hold := func(holder, bucket string) string {
		t.Helper()
		r, err := i.compact.Hold(t.Context(), &pb.HoldRequest{Stream: id, Holder: holder, TtlMs: 60_000, Bucket: bucket, MinChanges: 2})
		if err != nil {
			t.Fatal(err)
		}
		if head := i.head(id).GetHead().GetCheckpoint().GetOp(); r.GetCheckpoint() != head {
			t.Errorf("checkpoint %d, the head has %d", r.GetCheckpoint(), head)
		}
		return r.GetBucket().GetBucket()
	}
	i.apply(c.next(6, put(1, "{}", "a"), put(1, "{}", "b"), put(2, "{}", "b"), put(3, "{}", "b"), put(4, "{}", "b")))
	for _, step := range []struct{ holder, bucket, want string }{
		{"x", "", "b"}, {"y", "", "a"}, {"y", "b", ""}, {"x", "b", "b"}, {"x", "", ""},
	} {
		if got := hold(step.holder, step.bucket); got != step.want {
			t.Errorf("%+v: %q", step, got)
		}
	}
	if _, err := i.compact.Release(t.Context(), &pb.ReleaseRequest{Stream: id, Holder: "x", Bucket: "b", RestMs: 60_000}); err != nil {
		t.Fatal(err)
	}
	if got := hold("y", "b"); got != "b" {
		t.Errorf("a bucket that was given back: %q", got)
	}
	if _, err := i.compact.Hold(t.Context(), &pb.HoldRequest{Stream: 99, Holder: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("no such stream: %v", err)
	}
}

// TestCompactOverAPI: INV-17 and the flags that readers live by.
func TestCompactOverAPI(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	c := i.begin("config 1")
	id := int64(c.stream)
	for n := range 4 {
		i.apply(c.next(6+n, put(1, fmt.Sprintf(`{"v":%d}`, n), "a")))
	}
	i.apply(c.next(20, model.EvaluatedRow{Kind: model.RowDelete, Key: put(1, "").Key}))
	sum, count := i.sum(id, 5, "a")
	d, err := i.compact.Dirtiest(t.Context(), &pb.DirtiestRequest{Stream: id, MinChanges: 1, Limit: 10})
	if err != nil || d.GetCheckpoint() != 5 || len(d.GetBuckets()) != 1 || d.GetBuckets()[0].GetChanges() != 5 {
		t.Fatalf("dirtiest: %v %v", d, err)
	}
	scan, err := i.compact.Scan(t.Context(), &pb.ScanRequest{Stream: id, Bucket: "a", UpTo: 5})
	if err != nil {
		t.Fatal(err)
	}
	m, err := scan.Recv()
	if err != nil || m.GetCount() != 5 {
		t.Fatalf("scan: %v %v", m, err)
	}
	if _, err := i.compact.Replace(t.Context(), &pb.ReplaceRequest{Stream: id, Bucket: "a", Checkpoint: 5, ClearTo: 2}); status.Code(err) != codes.Aborted {
		t.Errorf("a PUT is cleared: %v", err)
	}
	moves := []*pb.MoveOp{{Id: 1, Target: 5}, {Id: 2, Target: 5}, {Id: 3, Target: 5}, {Id: 4, Target: 5}}
	r, err := i.compact.Replace(t.Context(), &pb.ReplaceRequest{Stream: id, Bucket: "a", Checkpoint: 5, Moves: moves, ClearTo: 4, Finished: true})
	if err != nil || r.GetCleared() != 3 {
		t.Fatalf("replace: %v %v", r, err)
	}
	if s, n := i.sum(id, 5, "a"); s != sum || n != count-3 {
		t.Errorf("INV-17: checksum %d count %d, was %d %d", s, n, sum, count)
	}
	text, chunks := i.ops(id, 5, "a")
	if text != "4 CLEAR  \n5 REMOVE 1" || chunks[0].GetTarget() != 5 {
		t.Errorf("ops %q, target %d", text, chunks[0].GetTarget())
	}
	_, chunks = i.ops(id, 3, "a")
	if len(chunks) != 1 || !chunks[0].GetInvalid() {
		t.Errorf("INV-19: a read below the CLEAR: %v", chunks)
	}
	cs, err := i.reader.Checksums(t.Context(), &pb.ChecksumsRequest{Stream: id, Checkpoint: 3, Buckets: []string{"a"}})
	if err != nil || !cs.GetInvalid() {
		t.Errorf("INV-19: checksums below the CLEAR: %v %v", cs, err)
	}
}

// TestChunksAreTheSame: the bounds of chunks do not depend on how often the
// caller came back.
func TestChunksAreTheSame(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	c := i.begin("config 1")
	id := int64(c.stream)
	var rows []model.EvaluatedRow
	for n := range 100 {
		rows = append(rows, put(byte(n), `"`+strings.Repeat("x", n*7%50)+`"`, "a"))
	}
	i.apply(c.next(6, rows...))
	read := func(after uint64, maxChunks uint32) (bounds []string, last *pb.OpsChunk) {
		t.Helper()
		s, err := i.reader.Ops(t.Context(), &pb.OpsRequest{Stream: id, Checkpoint: 100, Positions: []*pb.BucketPosition{{Bucket: "a", After: after}}, MaxBytes: 100, MaxOps: 7, MaxChunks: maxChunks})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return bounds, last
			}
			if err != nil {
				t.Fatal(err)
			}
			bounds, last = append(bounds, fmt.Sprintf("%d-%d %d %v", m.GetAfter(), m.GetNextAfter(), m.GetCount(), m.GetHasMore())), m
		}
	}
	all, _ := read(0, 0)
	var single []string
	for after := uint64(0); ; {
		b, m := read(after, 1)
		single = append(single, b...)
		if !m.GetHasMore() {
			break
		}
		after = m.GetNextAfter()
	}
	if len(all) < 10 || !slices.Equal(all, single) {
		t.Errorf("chunks\n%v\none by one\n%v", all, single)
	}
	if b, _ := read(100, 0); !slices.Equal(b, []string{"100-100 0 false"}) {
		t.Errorf("at the end: %v", b)
	}
}

// TestFolderInUse: a second process is refused with a clear error.
func TestFolderInUse(t *testing.T) {
	dir := t.TempDir()
	nc := bus(t)
	i := run(t, dir, nc)
	i.begin("config 1")
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	env := service.Env{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: &service.Health{}, Instance: "second"}
	err = Run(t.Context(), Config{Dir: dir}, Conns{NATS: nc, Listener: lis}, env)
	if errs.CodeOf(err) != errs.S2402 || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second process: %v", err)
	}
	if env.Health.Snapshot().Ready {
		t.Error("ready without a store")
	}
}

// TestLookupsOverAPI: parameter lookups at old checkpoints, their limit, and
// compaction of them.
func TestLookupsOverAPI(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	c := i.begin("config 1")
	id := int64(c.stream)
	entry := func(n byte, values string) model.EvaluatedRow {
		return model.EvaluatedRow{Kind: model.RowPut, Key: put(n, "").Key, Lookups: []model.ParameterEntry{{Lookup: "l\x00\xff", Values: values}}}
	}
	i.apply(c.next(6, entry(1, "[1]"), entry(2, "[2]")))
	i.apply(c.next(7, entry(1, "[10]")))
	read := func(checkpoint uint64, limit uint32) (string, error) {
		t.Helper()
		r, err := i.reader.Lookups(t.Context(), &pb.LookupsRequest{Stream: id, Checkpoint: checkpoint, Lookups: [][]byte{[]byte("l\x00\xff"), []byte("none")}, Limit: limit})
		if err != nil {
			return "", err
		}
		if r.GetInvalid() {
			return "invalid", nil
		}
		return fmt.Sprint(r.GetResults()[0].GetValues(), r.GetResults()[1].GetValues()), nil
	}
	expect := func(checkpoint uint64, want string) {
		t.Helper()
		if got, err := read(checkpoint, 10); err != nil || got != want {
			t.Errorf("lookups at %d: %s %v, want %s", checkpoint, got, err, want)
		}
	}
	expect(2, "[[1] [2]] []")
	expect(3, "[[10] [2]] []")
	if _, err := read(3, 1); errs.CodeOf(err) != errs.S2305 || status.Code(errors.Unwrap(err)) != codes.ResourceExhausted {
		t.Errorf("more than the limit: %v", err)
	}
	r, err := i.compact.CompactLookups(t.Context(), &pb.CompactLookupsRequest{Stream: id, Checkpoint: 3})
	if err != nil || r.GetRemoved() != 1 || len(r.GetNext()) != 0 {
		t.Errorf("compaction of lookups: %v %v", r, err)
	}
	expect(3, "[[10] [2]] []")
	expect(2, "invalid")
}

// TestCommitted: heads come one after another, and the stream ends with its
// replication stream.
func TestCommitted(t *testing.T) {
	i := run(t, t.TempDir(), bus(t))
	c := i.begin("config 1")
	id := int64(c.stream)
	s, err := i.repl.Committed(t.Context(), &pb.CommittedRequest{Stream: id})
	if err != nil {
		t.Fatal(err)
	}
	wait := func(want model.Cursor) {
		t.Helper()
		for {
			m, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if got := wire.ModelCursor(m.GetHead().GetApplied()); got == want {
				return
			} else if got.Compare(want) > 0 {
				t.Fatalf("applied %s, want %s", got, want)
			}
		}
	}
	wait(c.at)
	i.apply(c.next(6))
	wait(c.at)
	for n := 7; n < 20; n++ {
		i.apply(c.next(n))
	}
	wait(c.at)
	other := i.begin("config 2")
	i.apply(other.next(30)) // active now; config 1 is stopped
	if _, err := i.repl.Terminate(t.Context(), &pb.TerminateRequest{Stream: id}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Errorf("Committed of a terminated stream ends with %v", err)
	}
	i.answer(i.send(c.next(20)), pb.ApplyResult_APPLY_RESULT_OBSOLETE)
	if _, err := i.reader.Head(t.Context(), &pb.HeadRequest{Stream: id}); status.Code(err) != codes.NotFound {
		t.Errorf("head of a terminated stream: %v", err)
	}
}
