package backend

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// other is bucket-store and replicator: it answers what a test sets and notes
// what it was asked.
type other struct {
	pb.UnimplementedReaderServer
	pb.UnimplementedWriteCheckpointsServer
	pb.UnimplementedCatalogServer
	pb.UnimplementedSourceServer

	asked     proto.Message
	fail      error
	lookups   *pb.LookupsReply
	checksums *pb.ChecksumsReply
	reached   *pb.ReachedReply
	created   *pb.CreateWriteCheckpointsReply
	ops       []*pb.OpsChunk
	streams   []*pb.WatchReply
	ended     chan struct{} // closed when a read of ops was given up
}

func (o *other) Head(_ context.Context, r *pb.HeadRequest) (*pb.HeadReply, error) {
	o.asked = r
	h := model.StreamHead{Checkpoint: model.Checkpoint{Op: 7, Position: "0/7"}, SnapshotDone: true}
	return &pb.HeadReply{Head: wire.StreamHead(&h), Run: 3, Sequence: 4}, o.fail
}

func (o *other) Lookups(_ context.Context, r *pb.LookupsRequest) (*pb.LookupsReply, error) {
	o.asked = r
	return o.lookups, o.fail
}

func (o *other) Checksums(_ context.Context, r *pb.ChecksumsRequest) (*pb.ChecksumsReply, error) {
	o.asked = r
	return o.checksums, o.fail
}

func (o *other) Reached(_ context.Context, r *pb.ReachedRequest) (*pb.ReachedReply, error) {
	o.asked = r
	return o.reached, o.fail
}

func (o *other) Create(_ context.Context, r *pb.CreateWriteCheckpointsRequest) (*pb.CreateWriteCheckpointsReply, error) {
	o.asked = r
	return o.created, o.fail
}

func (o *other) Ops(r *pb.OpsRequest, out grpc.ServerStreamingServer[pb.OpsChunk]) error {
	o.asked = r
	for _, c := range o.ops {
		if err := out.Send(c); err != nil {
			return err
		}
	}
	if o.ended != nil {
		<-out.Context().Done()
		close(o.ended)
	}
	return o.fail
}

func (o *other) Watch(r *pb.WatchRequest, out grpc.ServerStreamingServer[pb.WatchReply]) error {
	o.asked = r
	for _, s := range o.streams {
		if err := out.Send(s); err != nil {
			return err
		}
	}
	return o.fail
}

func (o *other) Position(_ context.Context, r *pb.PositionRequest) (*pb.PositionReply, error) {
	o.asked = r
	return &pb.PositionReply{Position: "0/9"}, o.fail
}

func (o *other) Mark(_ context.Context, r *pb.MarkRequest) (*pb.MarkReply, error) {
	o.asked = r
	return &pb.MarkReply{}, o.fail
}

func serve(t *testing.T, o *other) grpc.ClientConnInterface {
	t.Helper()
	lis, conn := rpc.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- rpc.Serve(ctx, lis, service.Env{Log: slog.New(slog.DiscardHandler)}, func(r grpc.ServiceRegistrar) {
			pb.RegisterReaderServer(r, o)
			pb.RegisterWriteCheckpointsServer(r, o)
			pb.RegisterCatalogServer(r, o)
			pb.RegisterSourceServer(r, o)
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

// was fails unless the last call was want.
func (o *other) was(t *testing.T, want proto.Message) {
	t.Helper()
	if !proto.Equal(o.asked, want) {
		t.Errorf("asked %v, want %v", o.asked, want)
	}
}

// TestReads: what each read asks for and makes of the answer. An answer that
// does not fit the question is an error, never a shifted result.
func TestReads(t *testing.T) {
	o := &other{}
	var reads atomic.Uint64
	s := NewStore(serve(t, o), 5, &reads)
	ctx := t.Context()

	h, err := s.Head(ctx)
	if err != nil || h.Checkpoint != (model.Checkpoint{Op: 7, Position: "0/7"}) || h.Run != 3 || h.Sequence != 4 || !h.State.SnapshotDone {
		t.Errorf("head %+v, %v", h, err)
	}
	o.was(t, &pb.HeadRequest{Stream: 5})

	o.lookups = &pb.LookupsReply{Results: []*pb.LookupValues{{Values: []string{"[1]", "[2]"}}, {}}}
	values, err := s.Lookups(ctx, 7, []string{"a", "\xff"}, 9)
	if err != nil || !reflect.DeepEqual(values, [][]string{{"[1]", "[2]"}, nil}) {
		t.Errorf("lookups %q, %v", values, err)
	}
	o.was(t, &pb.LookupsRequest{Stream: 5, Checkpoint: 7, Lookups: [][]byte{[]byte("a"), {0xff}}, Limit: 9})
	if _, err := s.Lookups(ctx, 7, []string{"a"}, 9); err == nil {
		t.Error("two answers to one lookup")
	}
	o.lookups = &pb.LookupsReply{Invalid: true}
	if _, err := s.Lookups(ctx, 7, []string{"a"}, 9); !errors.Is(err, ErrInvalid) {
		t.Errorf("lookups of a compacted checkpoint: %v", err)
	}

	o.checksums = &pb.ChecksumsReply{Checksums: []uint32{1 << 31, 2}, Counts: []uint64{3, 4}}
	states, err := s.Checksums(ctx, 7, []string{"x", "y"})
	if err != nil || !slices.Equal(states, []model.BucketState{{Checksum: 1 << 31, Count: 3}, {Checksum: 2, Count: 4}}) {
		t.Errorf("checksums %v, %v", states, err)
	}
	o.was(t, &pb.ChecksumsRequest{Stream: 5, Checkpoint: 7, Buckets: []string{"x", "y"}})
	for _, bad := range []*pb.ChecksumsReply{{Checksums: []uint32{1}, Counts: []uint64{1, 2}}, {Checksums: []uint32{1, 2}, Counts: []uint64{1}}, {}} {
		o.checksums = bad
		if _, err := s.Checksums(ctx, 7, []string{"x", "y"}); err == nil || errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	o.checksums = &pb.ChecksumsReply{Invalid: true}
	if _, err := s.Checksums(ctx, 7, []string{"x"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("checksums of a compacted checkpoint: %v", err)
	}

	o.reached = &pb.ReachedReply{Ids: []uint64{6, 0}}
	ids, err := s.Reached(ctx, "0/7", []string{"u/c", "v"})
	if err != nil || !slices.Equal(ids, []uint64{6, 0}) {
		t.Errorf("reached %v, %v", ids, err)
	}
	o.was(t, &pb.ReachedRequest{Stream: 5, Position: "0/7", UserKeys: []string{"u/c", "v"}})
	if _, err := s.Reached(ctx, "0/7", []string{"u"}); err == nil {
		t.Error("two answers to one user")
	}

	o.created = &pb.CreateWriteCheckpointsReply{Ids: []uint64{1, 9}}
	ids, err = s.Create(ctx, "0/8", []Request{{UserKey: "u"}, {UserKey: "v", ID: 9}})
	if err != nil || !slices.Equal(ids, []uint64{1, 9}) {
		t.Errorf("created %v, %v", ids, err)
	}
	o.was(t, &pb.CreateWriteCheckpointsRequest{Stream: 5, Head: "0/8", Requests: []*pb.CheckpointRequest{{UserKey: "u"}, {UserKey: "v", Id: 9}}})
	if _, err := s.Create(ctx, "0/8", []Request{{UserKey: "u"}}); err == nil {
		t.Error("two answers to one request")
	}

	source := NewSource(serve(t, o))
	if at, err := source.Position(ctx); at != "0/9" || err != nil {
		t.Errorf("position %s, %v", at, err)
	}
	if err := source.Mark(ctx); err != nil {
		t.Error(err)
	}

	// A failure keeps its code, and is not taken for an answer.
	o.fail = errs.New(errs.S2302, "no such stream")
	for name, f := range map[string]func() error{
		"head":      func() error { _, err := s.Head(ctx); return err },
		"lookups":   func() error { _, err := s.Lookups(ctx, 7, nil, 0); return err },
		"checksums": func() error { _, err := s.Checksums(ctx, 7, nil); return err },
		"reached":   func() error { _, err := s.Reached(ctx, "", nil); return err },
		"create":    func() error { _, err := s.Create(ctx, "", nil); return err },
		"ops":       func() error { return s.Ops(ctx, 7, nil, 0, nil) },
		"position":  func() error { _, err := source.Position(ctx); return err },
		"mark":      func() error { return source.Mark(ctx) },
	} {
		if err := f(); errs.CodeOf(err) != errs.S2302 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOps(t *testing.T) {
	op := wire.AppendOp(nil, &model.Op{ID: 2, Kind: model.OpMove, Checksum: 5})
	o := &other{ops: []*pb.OpsChunk{
		{Bucket: "a", After: 1, NextAfter: 2, HasMore: true, Count: 1, Target: 9, Ops: op},
		{Bucket: "b", Invalid: true},
	}}
	var reads atomic.Uint64
	s := NewStore(serve(t, o), 5, &reads)
	var got []chunk.Raw
	err := s.Ops(t.Context(), 7, []chunk.Position{{Bucket: "a", After: 1}, {Bucket: "b"}}, 3, func(r chunk.Raw) error {
		got = append(got, r)
		return nil
	})
	want := []chunk.Raw{
		{Bucket: "a", Chunk: session.Chunk{After: 1, NextAfter: 2, HasMore: true, Count: 1, Target: 9}, Ops: op},
		{Bucket: "b", Chunk: session.Chunk{Invalid: true}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	o.was(t, &pb.OpsRequest{Stream: 5, Checkpoint: 7, MaxChunks: 3, Positions: []*pb.BucketPosition{{Bucket: "a", After: 1}, {Bucket: "b"}}})
	// Who has enough ends the read on the other side too.
	o.ended = make(chan struct{})
	enough := errors.New("enough")
	if err := s.Ops(t.Context(), 7, nil, 0, func(chunk.Raw) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
	<-o.ended
	if n := reads.Load(); n != 2 {
		t.Errorf("%d reads are counted, want 2", n)
	}
}

func TestWatchStreams(t *testing.T) {
	one := model.Stream{ID: 1, Name: "one", State: model.Active, Config: "x"}
	o := &other{streams: []*pb.WatchReply{{}, {Streams: wire.Streams([]model.Stream{one})}}, fail: errs.New(errs.S2003, "restarting")}
	var got [][]model.Stream
	err := WatchStreams(t.Context(), serve(t, o), func(s []model.Stream) { got = append(got, s) })
	if errs.CodeOf(err) != errs.S2003 {
		t.Errorf("the end of the watch: %v", err)
	}
	if len(got) != 2 || len(got[0]) != 0 || len(got[1]) != 1 || got[1][0].Name != "one" || got[1][0].State != model.Active {
		t.Errorf("%+v", got)
	}
}

// TestNotices: INV-29. Notices come in order; one that cannot be read, and a
// connection that was away, are told as a loss; after stop nothing comes.
func TestNotices(t *testing.T) {
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	defer func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	}()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS is not ready")
	}
	connect := func() *nats.Conn {
		c, err := nats.Connect("", nats.InProcessServer(ns), nats.ReconnectWait(time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	nc, out := connect(), connect()
	defer nc.Close()
	defer out.Close()
	heard := make(chan string, 16)
	stop, err := Notices{NATS: nc, Log: slog.New(slog.DiscardHandler)}.Subscribe(5, func(n model.CheckpointNotice, _ *trace.Span) {
		heard <- strings.Repeat("i", int(n.Sequence)) + " " + strings.Join(n.Buckets, " ")
	}, func() { heard <- "lost" })
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil { // the subscription is there
		t.Fatal(err)
	}
	publish := func(id model.StreamID, b []byte) {
		t.Helper()
		if err := errors.Join(out.Publish(stream.CheckpointSubject(id), b), out.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	notice := func(sequence uint64, buckets ...string) []byte {
		b, err := proto.Marshal(wire.Notice(&model.CheckpointNotice{Stream: 5, Run: 1, Sequence: sequence, Buckets: buckets}))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := func(what string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != what {
				t.Fatalf("heard %q, want %q", got, what)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("heard nothing, want %q", what)
		}
	}
	publish(6, notice(9)) // of another stream
	publish(5, notice(1, "a", "b"))
	publish(5, notice(2))
	want("i a b")
	want("ii ")
	publish(5, []byte("\xff\xff"))
	want("lost")
	if err := nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	want("lost")
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	publish(5, notice(3))
	want("iii ")
	stop()
	publish(5, notice(4))
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-heard:
		t.Errorf("heard %q after stop", got)
	default:
	}
	nc.Close()
	if _, err := (Notices{NATS: nc}).Subscribe(5, nil, nil); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("on a closed connection: %v", err)
	}
}
