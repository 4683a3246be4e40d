package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// fakeStore is bucket-store and source in memory, behind the same gRPC
// services. A test commits ops; every commit makes a checkpoint and a notice.
type fakeStore struct {
	pb.UnimplementedReaderServer
	pb.UnimplementedWriteCheckpointsServer
	pb.UnimplementedCatalogServer
	pb.UnimplementedSourceServer
	pb.UnimplementedCompactorServer

	nc *nats.Conn

	mu        sync.Mutex
	streams   []model.Stream
	watchers  map[chan struct{}]struct{}
	ops       map[string][]model.Op
	cleared   map[string]model.OpID
	lookups   map[string][]entry
	heartbeat model.Micros
	at        model.Checkpoint
	position  uint64 // of the source
	last      model.OpID
	sequence  uint64
	writes    map[string]model.WriteCheckpoint
	told      map[string]uint64
	mute      bool               // notices are lost
	held      func(stream int64) // called by Reached, which it may hold up; nil = none
	calls     map[string]int
	marks     int
	deployed  []*pb.DeployRequest
}

type entry struct {
	id     model.OpID
	values string
}

func lsn(n uint64) model.Position { return model.Position(fmt.Sprintf("%08X/%08X", n>>32, uint32(n))) }

func (f *fakeStore) called(name string) {
	f.calls[name]++
}

// commit applies changes as one transaction and publishes the checkpoint.
func (f *fakeStore) commit(change func(tx *tx)) model.Checkpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &tx{f: f, buckets: map[string]bool{}, lookups: map[string]bool{}}
	if change != nil {
		change(t)
	}
	f.position++
	f.at = model.Checkpoint{Op: f.last, Position: lsn(f.position)}
	f.publish(t)
	return f.at
}

// beat is a transaction with a heartbeat.
func (f *fakeStore) beat(at time.Time) {
	f.mu.Lock()
	f.heartbeat = model.Micros(at.UnixMicro())
	f.mu.Unlock()
	f.commit(nil)
}

func (f *fakeStore) publish(t *tx) {
	f.sequence++
	n := model.CheckpointNotice{Stream: f.streams[len(f.streams)-1].ID, Run: 7, Sequence: f.sequence, Checkpoint: f.at, Heartbeat: f.heartbeat}
	for b := range t.buckets {
		n.Buckets = append(n.Buckets, b)
	}
	for l := range t.lookups {
		n.Lookups = append(n.Lookups, l)
	}
	for key, w := range f.writes {
		if w.Head <= f.at.Position && f.told[key] < w.ID {
			f.told[key] = w.ID
			n.Reached = append(n.Reached, w)
		}
	}
	if f.mute {
		return
	}
	b, err := proto.Marshal(wire.Notice(&n))
	if err != nil {
		panic(err)
	}
	if err := f.nc.Publish(stream.CheckpointSubject(n.Stream), b); err != nil {
		panic(err)
	}
}

type tx struct {
	f                *fakeStore
	buckets, lookups map[string]bool
}

func (t *tx) op(bucket string, op model.Op) model.OpID {
	t.f.last++
	op.ID = t.f.last
	t.f.ops[bucket] = append(t.f.ops[bucket], op)
	t.buckets[bucket] = true
	return op.ID
}

func (t *tx) put(bucket, table, id, data string) model.OpID {
	sum, _ := model.PutChecksum(table, id, data, nil)
	return t.op(bucket, model.Op{Kind: model.OpPut, Checksum: sum, Key: rowKey(id), ObjectType: table, ObjectID: id, Data: data})
}

func rowKey(id string) model.RowKey {
	return model.RowKey{Table: model.TableID{1}, Row: model.RowID(model.UUID5([]byte(id)))}
}

func (f *fakeStore) Watch(_ *pb.WatchRequest, out grpc.ServerStreamingServer[pb.WatchReply]) error {
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	f.watchers[ch] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, ch)
	}()
	for {
		f.mu.Lock()
		reply := &pb.WatchReply{Streams: wire.Streams(f.streams)}
		f.mu.Unlock()
		if err := out.Send(reply); err != nil {
			return err
		}
		select {
		case <-ch:
		case <-out.Context().Done():
			return nil
		}
	}
}

// deactivate stops every stream.
func (f *fakeStore) deactivate() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop()
	f.changed()
}

func (f *fakeStore) stop() {
	for i := range f.streams {
		f.streams[i].State = model.Stopped
	}
}

// activate adds an active stream and stops the others. Its events, if it has
// any, are those of write checkpoints.
func (f *fakeStore) activate(id model.StreamID, config string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop()
	f.streams = append(f.streams, model.Stream{ID: id, Name: fmt.Sprintf("powersync_%d", id), Config: config, State: model.Active, CustomCheckpoints: strings.Contains(config, "event_definitions")})
	f.changed()
}

func (f *fakeStore) changed() {
	for ch := range f.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// serve makes the active stream serve clients by another config.
func (f *fakeStore) serve(config string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.streams[len(f.streams)-1]
	s.Edited, s.EditedContent = config, config
	for ch := range f.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// add is serve of a config once what it adds is copied for a layer, by the next
// checkpoint, which the store does not tell of yet.
func (f *fakeStore) add(config string) {
	f.mu.Lock()
	s := &f.streams[len(f.streams)-1]
	s.Layers, s.Layered = append(s.Layers, model.Layer{Config: config}), uint32(len(s.Layers))+1
	s.Head.Checkpoint.Op = f.last + 1
	f.mu.Unlock()
	f.serve(config)
}

func (f *fakeStore) List(context.Context, *pb.ListRequest) (*pb.ListReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &pb.ListReply{Streams: wire.Streams(f.streams)}, nil
}

func (f *fakeStore) Deploy(_ context.Context, r *pb.DeployRequest) (*pb.DeployReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deployed = append(f.deployed, r)
	s := model.Stream{ID: f.streams[len(f.streams)-1].ID + 1, Name: "powersync_new", Config: r.GetConfig(), State: model.Processing}
	return &pb.DeployReply{Stream: wire.Stream(&s), Created: true}, nil
}

func (f *fakeStore) Head(context.Context, *pb.HeadRequest) (*pb.HeadReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("Head")
	return &pb.HeadReply{Head: wire.StreamHead(&model.StreamHead{Checkpoint: f.at, Heartbeat: f.heartbeat}), Run: 7, Sequence: f.sequence}, nil
}

func (f *fakeStore) Lookups(_ context.Context, r *pb.LookupsRequest) (*pb.LookupsReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("Lookups")
	out := &pb.LookupsReply{}
	for _, l := range r.GetLookups() {
		v := &pb.LookupValues{}
		for _, e := range slices.Backward(f.lookups[string(l)]) {
			if e.id <= model.OpID(r.GetCheckpoint()) {
				if e.values != "[]" {
					v.Values = []string{e.values}
				}
				break
			}
		}
		out.Results = append(out.Results, v)
	}
	return out, nil
}

func (f *fakeStore) Checksums(_ context.Context, r *pb.ChecksumsRequest) (*pb.ChecksumsReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("Checksums")
	out := &pb.ChecksumsReply{}
	for _, b := range r.GetBuckets() {
		if model.OpID(r.GetCheckpoint()) < f.cleared[b] {
			return &pb.ChecksumsReply{Invalid: true}, nil
		}
		var sum, n uint32
		for _, op := range f.ops[b] {
			if op.ID <= model.OpID(r.GetCheckpoint()) {
				sum += uint32(op.Checksum)
				n++
			}
		}
		out.Checksums = append(out.Checksums, sum)
		out.Counts = append(out.Counts, uint64(n))
	}
	return out, nil
}

func (f *fakeStore) Ops(r *pb.OpsRequest, out grpc.ServerStreamingServer[pb.OpsChunk]) error {
	f.mu.Lock()
	f.called("Ops")
	f.mu.Unlock()
	const maxOps, maxBytes = 1000, 1 << 20
	chunks := 0
	for _, p := range r.GetPositions() {
		after := model.OpID(p.GetAfter())
		for more := true; more; {
			f.mu.Lock()
			ops := f.ops[p.GetBucket()]
			c := &pb.OpsChunk{Bucket: p.GetBucket(), After: uint64(after), NextAfter: uint64(after)}
			c.Invalid = model.OpID(r.GetCheckpoint()) < f.cleared[p.GetBucket()]
			i, _ := slices.BinarySearchFunc(ops, after+1, func(o model.Op, id model.OpID) int { return int(o.ID) - int(id) })
			bytes := 0
			more = false
			for ; i < len(ops) && ops[i].ID <= model.OpID(r.GetCheckpoint()) && !c.Invalid; i++ {
				if c.Count == maxOps || c.Count > 0 && bytes+len(ops[i].Data) > maxBytes {
					more = true
					break
				}
				bytes += len(ops[i].Data)
				c.Ops = wire.AppendOp(c.Ops, &ops[i])
				c.Count++
				c.NextAfter = uint64(ops[i].ID)
				c.Target = max(c.Target, uint64(ops[i].Target))
			}
			c.HasMore = more
			f.mu.Unlock()
			if c.Count == 0 && !c.Invalid {
				break
			}
			if err := out.Send(c); err != nil {
				return err
			}
			after = model.OpID(c.GetNextAfter())
			if chunks++; r.GetMaxChunks() > 0 && chunks == int(r.GetMaxChunks()) {
				return nil
			}
		}
	}
	return nil
}

func (f *fakeStore) Create(_ context.Context, r *pb.CreateWriteCheckpointsRequest) (*pb.CreateWriteCheckpointsReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("Create")
	out := &pb.CreateWriteCheckpointsReply{}
	reached := false
	for _, q := range r.GetRequests() {
		w := f.writes[q.GetUserKey()]
		switch {
		case q.GetId() == 0:
			w = model.WriteCheckpoint{UserKey: q.GetUserKey(), ID: w.ID + 1, Head: model.Position(r.GetHead())}
		case q.GetId() > w.ID:
			w = model.WriteCheckpoint{UserKey: q.GetUserKey(), ID: q.GetId(), Head: model.Position(r.GetHead())}
		}
		f.writes[q.GetUserKey()] = w
		out.Ids = append(out.Ids, w.ID)
		reached = reached || w.Head <= f.at.Position
	}
	if reached { // between the read of the head and here
		f.publish(&tx{f: f})
	}
	return out, nil
}

func (f *fakeStore) Reached(_ context.Context, r *pb.ReachedRequest) (*pb.ReachedReply, error) {
	f.mu.Lock()
	if held := f.held; held != nil {
		f.mu.Unlock()
		held(r.GetStream())
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	f.called("Reached")
	out := &pb.ReachedReply{}
	for _, k := range r.GetUserKeys() {
		w := f.writes[k]
		if string(w.Head) > r.GetPosition() {
			w.ID = 0
		}
		out.Ids = append(out.Ids, w.ID)
	}
	return out, nil
}

func (f *fakeStore) Position(context.Context, *pb.PositionRequest) (*pb.PositionReply, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("Position")
	f.position++ // as if something had been written since
	return &pb.PositionReply{Position: string(lsn(f.position))}, nil
}

func (f *fakeStore) Mark(context.Context, *pb.MarkRequest) (*pb.MarkReply, error) {
	f.commit(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marks++
	return &pb.MarkReply{}, nil
}

// house is a gateway and what it stands on.
type house struct {
	store *fakeStore
	env   service.Env
	url   string
	http  *http.Client // nil = the default one
	stop  context.CancelFunc
	done  chan error
}

func (h *house) client() *http.Client {
	if h.http != nil {
		return h.http
	}
	return http.DefaultClient
}

func startNATS(t testing.TB) *nats.Conn {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS is not ready")
	}
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		nc.Close()
		s.Shutdown()
		s.WaitForShutdown()
	})
	return nc
}

func newFakeStore(nc *nats.Conn) *fakeStore {
	return &fakeStore{
		nc: nc, watchers: map[chan struct{}]struct{}{}, ops: map[string][]model.Op{}, cleared: map[string]model.OpID{},
		lookups: map[string][]entry{}, writes: map[string]model.WriteCheckpoint{}, told: map[string]uint64{}, calls: map[string]int{},
	}
}

// serveStore serves the fake over gRPC in memory.
func serveStore(t testing.TB, f *fakeStore, env service.Env) grpc.ClientConnInterface {
	t.Helper()
	lis, conn := rpc.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- rpc.Serve(ctx, lis, env, func(r grpc.ServiceRegistrar) {
			pb.RegisterReaderServer(r, f)
			pb.RegisterWriteCheckpointsServer(r, f)
			pb.RegisterCatalogServer(r, f)
			pb.RegisterSourceServer(r, f)
			pb.RegisterCompactorServer(r, f)
		})
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return lis
}
