package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

// ledger is a small bucket-store and evaluator: it takes batches from JetStream
// in any order, applies them in the order of the chain, and checks what the
// chain promises.
type ledger struct {
	pb.UnimplementedReplicationServer
	pb.UnimplementedCatalogServer

	mu      sync.Mutex
	changed chan struct{} // closed at each change; guarded by mu
	streams map[model.StreamID]*ledgerStream
	next    model.StreamID
	faults  []string // broken promises
	discard bool     // acknowledge without applying, as a bug would
	pause   bool     // take nothing
	left    int      // batches of a later log until discard; 0 = no end
}

type ledgerStream struct {
	model.Stream
	holder   string
	until    time.Time
	early    map[model.Cursor]*model.ChangeBatch
	progress map[model.TableID]model.TableProgress
	tables   map[string]map[string]map[string]string // schema.name -> row key -> column -> value
	logs     map[string]map[string]uint32            // the same, -> the last log that told of it
	diff     []string                                // what the comparison with a later log has changed
	skipped  int                                     // rows that it found to be the same
	names    map[model.TableID]string
	applied  int // rows
	batches  int
	restarts int
	// otherHistory and reason are what the last restart said.
	otherHistory bool
	reason       string
	reported     []string // errors
	countOnly    bool     // keep no rows
}

func newLedger() *ledger {
	return &ledger{changed: make(chan struct{}), streams: map[model.StreamID]*ledgerStream{}}
}

func (l *ledger) signal() { close(l.changed); l.changed = make(chan struct{}) }

// deploy adds a stream that reads tables.
func (l *ledger) deploy(values model.ValueOptions, tables ...string) model.StreamID {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	s := &ledgerStream{early: map[model.Cursor]*model.ChangeBatch{}, progress: map[model.TableID]model.TableProgress{}, tables: map[string]map[string]map[string]string{}, logs: map[string]map[string]uint32{}, names: map[model.TableID]string{}}
	s.ID, s.Name, s.State, s.Values = l.next, fmt.Sprintf("powersync_%d_abcd", l.next), model.Processing, values
	for _, t := range tables {
		schema, name, ok := strings.Cut(t, ".")
		if !ok {
			schema, name = "public", t
		}
		s.Tables = append(s.Tables, model.TablePattern{Connection: "default", Schema: schema, Name: name})
	}
	l.streams[s.ID] = s
	l.signal()
	return s.ID
}

func locked(format string, args ...any) error { return errs.New(errs.S1003, format, args...) }

func (l *ledger) OpenSession(_ context.Context, r *pb.OpenSessionRequest) (*pb.OpenSessionReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[model.StreamID(r.GetStream())]
	if s.holder != "" && s.holder != r.GetHolder() && time.Now().Before(s.until) {
		return nil, locked("held by %s", s.holder)
	}
	s.holder, s.until = r.GetHolder(), time.Now().Add(time.Duration(r.GetTtlMs())*time.Millisecond)
	s.Head.Epoch++
	clear(s.early)
	l.signal()
	reply := &pb.OpenSessionReply{Epoch: uint64(s.Head.Epoch), Head: wire.StreamHead(&s.Head)}
	for _, p := range s.progress {
		reply.Tables = append(reply.Tables, wire.TableProgress(&p))
	}
	return reply, nil
}

func (l *ledger) RenewLease(_ context.Context, r *pb.RenewLeaseRequest) (*pb.RenewLeaseReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[model.StreamID(r.GetStream())]
	if s.holder != r.GetHolder() || s.Head.Epoch != model.Epoch(r.GetEpoch()) {
		return nil, locked("lost to %s", s.holder)
	}
	s.until = time.Now().Add(time.Duration(r.GetTtlMs()) * time.Millisecond)
	return &pb.RenewLeaseReply{}, nil
}

func (l *ledger) CloseSession(_ context.Context, r *pb.CloseSessionRequest) (*pb.CloseSessionReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[model.StreamID(r.GetStream())]
	if s.holder == r.GetHolder() && s.Head.Epoch == model.Epoch(r.GetEpoch()) {
		s.holder = ""
	}
	return &pb.CloseSessionReply{}, nil
}

func (l *ledger) Committed(r *pb.CommittedRequest, out grpc.ServerStreamingServer[pb.CommittedReply]) error {
	for {
		l.mu.Lock()
		head, changed := l.streams[model.StreamID(r.GetStream())].Head, l.changed
		l.mu.Unlock()
		if err := out.Send(&pb.CommittedReply{Head: wire.StreamHead(&head)}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return nil
		}
	}
}

func (l *ledger) ReportError(_ context.Context, r *pb.ReportErrorRequest) (*pb.ReportErrorReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[model.StreamID(r.GetStream())]
	s.Head.LastError = r.GetMessage()
	s.reported = append(s.reported, r.GetMessage())
	return &pb.ReportErrorReply{}, nil
}

func (l *ledger) Restart(_ context.Context, r *pb.RestartRequest) (*pb.RestartReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[model.StreamID(r.GetStream())]
	if s.Head.Epoch != model.Epoch(r.GetEpoch()) {
		return nil, locked("epoch %d is over", r.GetEpoch())
	}
	s.restarts++
	s.otherHistory, s.reason = r.GetOtherHistory(), r.GetReason()
	s.diff, s.skipped = nil, 0
	s.Head.Applied, s.Head.SnapshotDone, s.Head.LastError = model.Cursor{Position: s.Head.Applied.Position.Next(s.otherHistory)}, false, r.GetReason()
	if s.otherHistory {
		s.Head.Origin = ""
	}
	clear(s.early)
	l.signal()
	return &pb.RestartReply{}, nil
}

func (l *ledger) Terminate(_ context.Context, r *pb.TerminateRequest) (*pb.TerminateReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams[model.StreamID(r.GetStream())].State = model.Terminated
	l.signal()
	return &pb.TerminateReply{}, nil
}

func (l *ledger) Watch(_ *pb.WatchRequest, out grpc.ServerStreamingServer[pb.WatchReply]) error {
	last := ""
	for {
		l.mu.Lock()
		reply, changed := &pb.WatchReply{}, l.changed
		state := ""
		for _, s := range l.streams {
			if s.State != model.Terminated {
				reply.Streams = append(reply.Streams, wire.Stream(&s.Stream))
				state += fmt.Sprint(s.ID, s.State, ";")
			}
		}
		l.mu.Unlock()
		if state != last || state == "" {
			last = state
			if err := out.Send(reply); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return nil
		}
	}
}

// take applies batches from JetStream until ctx ends.
func (l *ledger) take(ctx context.Context, js jetstream.JetStream) error {
	for ctx.Err() == nil {
		if err := l.takeSome(ctx, js); err != nil && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

func (l *ledger) takeSome(ctx context.Context, js jetstream.JetStream) error {
	attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := stream.Consumer(attempt, js)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		l.mu.Lock()
		paused := l.pause
		l.mu.Unlock()
		if paused {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		batch, err := c.Fetch(64, jetstream.FetchMaxWait(300*time.Millisecond))
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			b, err := wire.DecodeChangeBatch(m.Data())
			if err != nil {
				l.fault("decode: %v", err)
				continue
			}
			l.mu.Lock()
			if !l.discard {
				l.apply(b)
			}
			l.mu.Unlock()
			if err := m.Ack(); err != nil {
				return err
			}
		}
		if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
			return err
		}
	}
	return nil
}

func (l *ledger) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, fmt.Sprintf(format, args...))
}

// apply applies a batch and those that waited for it. The caller holds mu.
func (l *ledger) apply(b *model.ChangeBatch) {
	s := l.streams[b.Stream]
	if b.Epoch != s.Head.Epoch {
		return
	}
	if b.End.Compare(b.Previous) <= 0 {
		l.faults = append(l.faults, fmt.Sprintf("batch from %s to %s", b.Previous, b.End))
		return
	}
	if b.End.Compare(s.Head.Applied) <= 0 {
		return // redelivered
	}
	s.early[b.Previous] = b
	for {
		b := s.early[s.Head.Applied]
		if b == nil || l.discard {
			break
		}
		delete(s.early, s.Head.Applied)
		s.applyNow(l, b)
	}
	l.signal()
}

func (s *ledgerStream) applyNow(l *ledger, b *model.ChangeBatch) {
	bad := func(format string, args ...any) {
		l.faults = append(l.faults, fmt.Sprintf("%s: ", b.End)+fmt.Sprintf(format, args...))
	}
	for i := range b.Changes {
		c := &b.Changes[i]
		name := c.Table.Schema + "." + c.Table.Name
		if known, ok := s.names[c.Table.ID]; ok && known != name {
			bad("table id of %s and %s", known, name)
		}
		if s.countOnly {
			s.applied++
			continue
		}
		id := fmt.Sprintf("%x", c.Table.ID[:])
		if s.tables[id] == nil {
			s.tables[id] = map[string]map[string]string{}
		}
		if s.logs[id] == nil {
			s.logs[id] = map[string]uint32{}
		}
		s.names[c.Table.ID] = name
		rows, logs, log := s.tables[id], s.logs[id], b.End.Position.Log()
		key := func(row []model.Value) string {
			k := ""
			for i, col := range c.Table.Columns {
				if col.Key {
					if row[i].Kind() == model.Absent {
						bad("%s: key column %s absent in op %d", name, col.Name, c.Op)
					}
					k += show(row[i]) + "|"
				}
			}
			if k == "" {
				k = fmt.Sprintf("#%d", s.applied)
			}
			return k
		}
		put := func(k string, old map[string]string) {
			row := map[string]string{}
			for i, col := range c.Table.Columns {
				if c.Row[i].Kind() == model.Absent {
					if old == nil {
						bad("%s: %s absent without a previous row", name, col.Name)
					}
					row[col.Name] = old[col.Name]
				} else {
					row[col.Name] = show(c.Row[i])
				}
			}
			rows[k], logs[k] = row, log
		}
		switch c.Op {
		case model.Insert, model.Update:
			k := key(c.Row)
			old := rows[k]
			if c.Before != nil {
				before := key(c.Before)
				old = rows[before]
				delete(rows, before)
			}
			put(k, old)
		case model.SnapshotRow:
			k := key(c.Row)
			was := rows[k]
			if was != nil && logs[k] == log {
				break
			}
			put(k, nil)
			if log > 0 && maps.Equal(was, rows[k]) {
				s.skipped++
			} else if log > 0 {
				s.diff = append(s.diff, "put "+k)
			}
		case model.Sweep:
			for k := range rows {
				if logs[k] < log {
					s.diff = append(s.diff, "remove "+k)
					delete(rows, k)
				}
			}
		case model.Delete:
			delete(rows, key(c.Before))
		case model.Truncate, model.DropTable:
			clear(rows)
		}
		s.applied++
	}
	for _, p := range b.Meta.Progress {
		s.progress[p.Table.ID] = p
	}
	s.batches++
	if l.left > 0 && b.End.Position.Log() > 0 {
		l.left--
		l.discard = l.left == 0
	}
	s.Head.Applied = b.End
	if b.Meta.SnapshotDone {
		s.Head.SnapshotDone = true
	}
	s.Head.NoCheckpointBefore = max(s.Head.NoCheckpointBefore, b.Meta.NoCheckpointBefore)
	if b.Meta.Heartbeat != 0 {
		s.Head.Heartbeat = b.Meta.Heartbeat
	}
	s.Head.CommitTime = max(s.Head.CommitTime, b.Meta.CommitTime)
	s.Head.Origin = cmp.Or(b.Meta.Origin, s.Head.Origin)
	if b.End.AtTransactionEnd() && s.Head.SnapshotDone && b.End.Position >= s.Head.NoCheckpointBefore {
		s.Head.Checkpoint.Position = b.End.Position
		s.State = model.Active
	}
}

func show(v model.Value) string {
	switch v.Kind() {
	case model.Null:
		return "NULL"
	case model.Integer:
		return fmt.Sprint(v.Int())
	case model.Real:
		return fmt.Sprint(v.Float())
	}
	return v.Str()
}

// rows returns a table's rows, one text each, sorted.
func (l *ledger) rows(id model.StreamID, table string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[id]
	var out []string
	for tid, name := range s.names {
		if name != "public."+table {
			continue
		}
		for _, row := range s.tables[fmt.Sprintf("%x", tid[:])] {
			var columns []string
			for c := range row {
				columns = append(columns, c)
			}
			sort.Strings(columns)
			var b strings.Builder
			for _, c := range columns {
				b.WriteString(c + "=" + row[c] + " ")
			}
			out = append(out, strings.TrimSpace(b.String()))
		}
	}
	sort.Strings(out)
	return out
}

func (l *ledger) stream(id model.StreamID) ledgerStream {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.streams[id]
}

func (l *ledger) head(id model.StreamID) model.StreamHead {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.streams[id]; s != nil {
		return s.Head
	}
	return model.StreamHead{}
}

// suite is a replicator with everything around it.
type suite struct {
	t      testing.TB
	pg     *pgtest.Server
	nats   *server.Server
	dir    string
	port   int
	nc     *nats.Conn
	ledger *ledger
	store  grpc.ClientConnInterface
	log    *slog.Logger
	source pb.SourceClient
	tweak  func(*Config)
	// of the replicator that was started last
	metrics *prometheus.Registry
	health  *service.Health
}

func newSuite(t testing.TB, settings ...string) *suite {
	t.Helper()
	s := &suite{t: t, pg: pgtest.Start(t, settings...), dir: t.TempDir(), ledger: newLedger()}
	s.log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	s.startNATS(-1)
	env := service.Env{Log: s.log, Metrics: prometheus.NewRegistry(), Health: &service.Health{}, Instance: "test"}
	nc, err := stream.Connect(s.nats.ClientURL(), env)
	if err != nil {
		t.Fatal(err)
	}
	s.nc = nc
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	lis, conn := rpc.Pipe()
	s.store = conn
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() {
		if err := rpc.Serve(ctx, lis, env, func(g grpc.ServiceRegistrar) {
			pb.RegisterReplicationServer(g, s.ledger)
			pb.RegisterCatalogServer(g, s.ledger)
		}); err != nil {
			s.ledger.fault("serve: %v", err)
		}
		done <- struct{}{}
	}()
	go func() { s.ledger.take(ctx, js); done <- struct{}{} }()
	t.Cleanup(func() {
		cancel()
		conn.Close()
		<-done
		<-done
		nc.Close()
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		s.ledger.mu.Lock()
		defer s.ledger.mu.Unlock()
		for _, f := range s.ledger.faults {
			t.Error("ledger: " + f)
		}
	})
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (s *suite) startNATS(port int) {
	s.t.Helper()
	ns, err := server.NewServer(&server.Options{ServerName: "n1", Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: s.dir, NoSigs: true, NoLog: true, MaxPayload: 8 << 20})
	if err != nil {
		s.t.Fatal(err)
	}
	go ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		s.t.Fatal("NATS does not start")
	}
	s.nats = ns
	s.port = ns.Addr().(*net.TCPAddr).Port
}

// start runs a replicator; the returned function ends it and returns its error.
func (s *suite) start(instance string) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.metrics, s.health = prometheus.NewRegistry(), &service.Health{}
	env := service.Env{Log: s.log.With("instance", instance), Metrics: s.metrics, Health: s.health, Instance: instance}
	cfg := Config{Connection: config.Connection{Type: "postgresql", DebugAPI: true, Postgres: s.pg.Config("postgres")}, Heartbeat: 200 * time.Millisecond,
		Stream: stream.Options{Storage: jetstream.FileStorage}}
	if s.tweak != nil {
		s.tweak(&cfg)
	}
	lis, conn := rpc.Pipe()
	s.source = pb.NewSourceClient(conn)
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, Conns{Store: s.store, NATS: s.nc, Listener: lis}, env) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			conn.Close()
			if err := <-done; err != nil && !errors.Is(err, io.EOF) {
				s.t.Errorf("replicator: %v", err)
			}
		})
	}
	s.t.Cleanup(stop)
	return stop
}

// loaded is by how much longer a machine may take that is busy, or slowed down
// by the race detector.
const loaded = 10

// eventually waits until ok.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(loaded * within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", loaded*within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// caughtUp waits until the stream's checkpoint passed all that is committed.
func (s *suite) caughtUp(id model.StreamID, within time.Duration) {
	s.t.Helper()
	var position string
	conn := s.pg.Connect(s.t, "postgres")
	if err := conn.QueryRow(context.Background(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&position); err != nil {
		s.t.Fatal(err)
	}
	high, low, _ := strings.Cut(position, "/")
	want := model.Position(fmt.Sprintf("%08s/%08s", high, low))
	eventually(s.t, within, "checkpoint at "+string(want), func() bool {
		h := s.ledger.head(id)
		return h.SnapshotDone && h.Checkpoint.Position.Mark() == h.Applied.Position.Mark() && h.Checkpoint.Position.Source() >= want
	})
}
