package evaluator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

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

const syncConfig = `
bucket_definitions:
  by_owner:
    parameters: SELECT request.user_id() AS owner
    data:
      - SELECT id, title, owner FROM todos WHERE owner = bucket.owner
`

// log gathers what is logged.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newEnv(l *log) service.Env {
	return service.Env{
		Log:     slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: prometheus.NewRegistry(), Health: &service.Health{}, Instance: "test",
	}
}

// store is a bucket-store that answers as told.
type store struct {
	pb.UnimplementedAppenderServer
	pb.UnimplementedCatalogServer

	mu       sync.Mutex
	streams  []*pb.Stream
	deployed []*pb.DeployRequest
	applied  []*pb.EvaluatedBatch
	listed   int
	changed  chan struct{} // closed and replaced at each change

	watched []*pb.Stream                                       // what Watch says; nil = streams
	result  func(m *pb.EvaluatedBatch) (pb.ApplyResult, error) // nil = committed
	rows    func(q *pb.PreviousRowsRequest) ([][]byte, error)
}

func newStore(streams ...*pb.Stream) *store {
	return &store{streams: streams, changed: make(chan struct{})}
}

func (s *store) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *store) Apply(as grpc.BidiStreamingServer[pb.ApplyRequest, pb.ApplyReply]) error {
	for {
		r, err := as.Recv()
		if err != nil {
			return nil // the caller is gone
		}
		var result pb.ApplyResult
		s.change(func() {
			s.applied = append(s.applied, r.GetBatch())
			result = pb.ApplyResult_APPLY_RESULT_COMMITTED
			if s.result != nil {
				result, err = s.result(r.GetBatch())
			}
		})
		if err != nil {
			return err
		}
		if result == pb.ApplyResult_APPLY_RESULT_UNSPECIFIED {
			continue // no answer
		}
		if err := as.Send(&pb.ApplyReply{Id: r.GetId(), Result: result}); err != nil {
			return err
		}
	}
}

func (s *store) PreviousRows(_ context.Context, q *pb.PreviousRowsRequest) (*pb.PreviousRowsReply, error) {
	s.mu.Lock()
	f := s.rows
	s.mu.Unlock()
	rows, err := f(q)
	return &pb.PreviousRowsReply{Rows: rows}, err
}

func (s *store) Deploy(_ context.Context, r *pb.DeployRequest) (*pb.DeployReply, error) {
	s.change(func() { s.deployed = append(s.deployed, r) })
	return &pb.DeployReply{Stream: &pb.Stream{Id: 1}, Created: true}, nil
}

func (s *store) List(context.Context, *pb.ListRequest) (*pb.ListReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listed++
	return &pb.ListReply{Streams: s.streams}, nil
}

func (s *store) Watch(_ *pb.WatchRequest, ws grpc.ServerStreamingServer[pb.WatchReply]) error {
	s.mu.Lock()
	m := &pb.WatchReply{Streams: s.streams}
	if s.watched != nil {
		m.Streams = s.watched
	}
	s.mu.Unlock()
	if err := ws.Send(m); err != nil {
		return err
	}
	<-ws.Context().Done()
	return nil
}

// wait waits until ok, which is called with s.mu held, is true.
func (s *store) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s did not come", what)
		}
	}
}

// positions are the ends of the applied batches, each once, in order of their
// first coming.
func (s *store) positions() []string {
	var out []string
	for _, m := range s.applied {
		if p := m.GetEnd().GetPosition(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// world is an evaluator with what it needs.
type world struct {
	t      *testing.T
	dir    string
	ns     *server.Server
	nc     *nats.Conn
	js     jetstream.JetStream
	store  *store
	conn   *grpc.ClientConn
	log    *log
	env    service.Env
	stop   context.CancelFunc
	ended  chan error
	served chan error
	cut    context.CancelFunc // of the store's server
	redial func() net.Listener
}

func startNATS(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	ns, err := server.NewServer(&server.Options{
		ServerName: "n", Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS does not start")
	}
	return ns
}

func newWorld(t *testing.T, s *store) *world {
	w := &world{t: t, dir: t.TempDir(), store: s, log: &log{}}
	w.env = newEnv(w.log)
	w.ns = startNATS(t, w.dir, -1)
	var err error
	if w.nc, err = stream.Connect(w.ns.ClientURL(), w.env); err != nil {
		t.Fatal(err)
	}
	if w.js, err = jetstream.New(w.nc); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	w.redial = func() net.Listener {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if w.conn, err = rpc.Dial(address, certificate.BucketStore, w.env); err != nil {
		t.Fatal(err)
	}
	w.serve(lis)
	t.Cleanup(func() {
		w.end()
		w.cutStore()
		w.conn.Close()
		w.nc.Close()
		w.ns.Shutdown()
		w.ns.WaitForShutdown()
	})
	return w
}

// serve starts the store's server.
func (w *world) serve(lis net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cut, w.served = cancel, make(chan error, 1)
	go func() {
		g := grpc.NewServer()
		pb.RegisterAppenderServer(g, w.store)
		pb.RegisterCatalogServer(g, w.store)
		healthpb.RegisterHealthServer(g, health.NewServer())
		stop := context.AfterFunc(ctx, g.Stop) // as a crash would: running calls break
		defer stop()
		w.served <- g.Serve(lis)
	}()
}

func (w *world) cutStore() {
	if w.cut != nil {
		w.cut()
		<-w.served
		w.cut = nil
	}
}

func (w *world) run(cfg Config) {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- Run(ctx, cfg, Conns{Store: w.conn, NATS: w.nc}, w.env) }()
}

// end stops the evaluator and returns its error.
func (w *world) end() error {
	if w.stop == nil {
		return nil
	}
	w.stop()
	w.stop = nil
	select {
	case err := <-w.ended:
		return err
	case <-time.After(20 * time.Second):
		w.t.Error("the evaluator does not end")
		return errors.New("does not end")
	}
}

// eventually waits until ok is true.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(15 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%s did not come to be; log:\n%s", what, w.log)
		}
	}
}

func (w *world) ready() {
	w.t.Helper()
	w.eventually("readiness", func() bool { return w.env.Health.Snapshot().Ready })
}

// pending is how many messages JetStream still has.
func (w *world) pending() uint64 {
	s, err := w.js.Stream(context.Background(), stream.Name)
	if err != nil {
		return 1 << 60
	}
	return s.CachedInfo().State.Msgs
}

var todos = &model.SourceTable{ID: model.TableID{1}, Connection: "default", Schema: "public", Name: "todos", Columns: []model.Column{
	{Name: "id", Key: true}, {Name: "title"}, {Name: "owner"},
}}

// batch is batch number n of stream id.
func batch(id model.StreamID, n int, changes ...model.Change) *model.ChangeBatch {
	return &model.ChangeBatch{
		Stream: id, Epoch: 1, Previous: model.Cursor{Position: position(n - 1)}, End: model.Cursor{Position: position(n)}, Changes: changes,
	}
}

func position(n int) model.Position { return model.Position(fmt.Sprintf("%04d", n)) }

func insert(id, title, owner string) model.Change {
	return model.Change{Table: todos, Op: model.Insert, Row: []model.Value{model.TextValue(id), model.TextValue(title), model.TextValue(owner)}}
}

func (w *world) publish(b *model.ChangeBatch) {
	w.t.Helper()
	w.publishRaw(stream.ChangesSubject(b.Stream), wire.EncodeChangeBatch(b))
}

func (w *world) publishRaw(subject string, body []byte) {
	w.t.Helper()
	if _, err := w.js.Publish(context.Background(), subject, body); err != nil {
		w.t.Fatal(err)
	}
}

func live(id int64) *pb.Stream {
	return &pb.Stream{Id: id, Name: "s", Config: syncConfig, State: pb.StreamState_STREAM_STATE_ACTIVE}
}

var errBusy = errs.New(errs.S2003, "not there yet").Retryable()
