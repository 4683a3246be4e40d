// Package backend is the gateway's side of bucket-store and replicator: their
// calls in the words of libs/model. No proto type leaves it.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
)

// Store reads one replication stream from bucket-store.
type Store struct {
	stream model.StreamID
	reader pb.ReaderClient
	writes pb.WriteCheckpointsClient
}

// NewStore returns the reads of a stream; reads counts the calls.
func NewStore(conn grpc.ClientConnInterface, stream model.StreamID, reads *atomic.Uint64) *Store {
	conn = counted{conn, reads}
	return &Store{stream: stream, reader: pb.NewReaderClient(conn), writes: pb.NewWriteCheckpointsClient(conn)}
}

// counted counts calls.
type counted struct {
	grpc.ClientConnInterface
	calls *atomic.Uint64
}

func (c counted) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c.calls.Add(1)
	return c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

func (c counted) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c.calls.Add(1)
	return c.ClientConnInterface.NewStream(ctx, desc, method, opts...)
}

// Head is the newest checkpoint and the notice that belongs to it.
type Head struct {
	Checkpoint model.Checkpoint
	Run        uint64
	Sequence   uint64
	State      model.StreamHead
}

// Head reads the newest checkpoint.
func (s *Store) Head(ctx context.Context) (Head, error) {
	r, err := s.reader.Head(ctx, &pb.HeadRequest{Stream: int64(s.stream)}, grpc.WaitForReady(true))
	if err != nil {
		return Head{}, fmt.Errorf("read head of stream %d: %w", s.stream, err)
	}
	h := wire.ModelStreamHead(r.GetHead())
	return Head{Checkpoint: h.Checkpoint, Run: r.GetRun(), Sequence: r.GetSequence(), State: h}, nil
}

// Lookups returns the values under each key.
func (s *Store) Lookups(ctx context.Context, checkpoint model.OpID, keys []string, limit int) ([][]string, error) {
	in := make([][]byte, len(keys))
	for i, k := range keys {
		in[i] = []byte(k)
	}
	r, err := s.reader.Lookups(ctx, &pb.LookupsRequest{
		Stream: int64(s.stream), Checkpoint: uint64(checkpoint), Lookups: in, Limit: uint32(limit),
	}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("read %d lookups: %w", len(keys), err)
	}
	if r.GetInvalid() {
		return nil, ErrInvalid
	}
	if len(r.GetResults()) != len(keys) {
		return nil, fmt.Errorf("read %d lookups: got %d", len(keys), len(r.GetResults()))
	}
	out := make([][]string, len(keys))
	for i, v := range r.GetResults() {
		out[i] = v.GetValues()
	}
	return out, nil
}

// ErrInvalid says that compaction has passed the checkpoint of a read.
var ErrInvalid = errors.New("checkpoint is older than a compaction")

// Checksums returns the state of each bucket.
func (s *Store) Checksums(ctx context.Context, checkpoint model.OpID, buckets []string) ([]model.BucketState, error) {
	r, err := s.reader.Checksums(ctx, &pb.ChecksumsRequest{
		Stream: int64(s.stream), Checkpoint: uint64(checkpoint), Buckets: buckets,
	}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("read %d checksums: %w", len(buckets), err)
	}
	if r.GetInvalid() {
		return nil, ErrInvalid
	}
	if len(r.GetChecksums()) != len(buckets) || len(r.GetCounts()) != len(buckets) {
		return nil, fmt.Errorf("read %d checksums: got %d", len(buckets), len(r.GetChecksums()))
	}
	out := make([]model.BucketState, len(buckets))
	for i := range out {
		out[i] = model.BucketState{Checksum: model.Checksum(r.GetChecksums()[i]), Count: r.GetCounts()[i]}
	}
	return out, nil
}

// Reached returns the write checkpoint of each user key at a position.
func (s *Store) Reached(ctx context.Context, position model.Position, userKeys []string) ([]uint64, error) {
	r, err := s.writes.Reached(ctx, &pb.ReachedRequest{
		Stream: int64(s.stream), Position: string(position), UserKeys: userKeys,
	}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("read %d write checkpoints: %w", len(userKeys), err)
	}
	if len(r.GetIds()) != len(userKeys) {
		return nil, fmt.Errorf("read %d write checkpoints: got %d", len(userKeys), len(r.GetIds()))
	}
	return r.GetIds(), nil
}

// Ops implements chunk.Reader.
func (s *Store) Ops(ctx context.Context, checkpoint model.OpID, positions []chunk.Position, maxChunks int, yield func(chunk.Raw) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := make([]*pb.BucketPosition, len(positions))
	flat := make([]pb.BucketPosition, len(positions))
	for i, p := range positions {
		flat[i].Bucket, flat[i].After = p.Bucket, uint64(p.After)
		in[i] = &flat[i]
	}
	stream, err := s.reader.Ops(ctx, &pb.OpsRequest{
		Stream: int64(s.stream), Checkpoint: uint64(checkpoint), Positions: in, MaxChunks: uint32(maxChunks),
	}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("read ops: %w", err)
	}
	for {
		c, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read ops: %w", err)
		}
		if err := yield(chunk.Raw{
			Bucket: c.GetBucket(),
			Chunk: session.Chunk{
				After: model.OpID(c.GetAfter()), NextAfter: model.OpID(c.GetNextAfter()), HasMore: c.GetHasMore(),
				Count: int(c.GetCount()), Target: model.OpID(c.GetTarget()), Invalid: c.GetInvalid(),
			},
			Ops: c.GetOps(),
		}); err != nil {
			return err
		}
	}
}

// Request asks for a number of a user key: the next one if ID is 0, else at
// least ID.
type Request struct {
	UserKey string
	ID      uint64
}

// Create stores numbers bound to a position of the source and returns what each
// key has now. They are durable when it returns.
func (s *Store) Create(ctx context.Context, head model.Position, rs []Request) ([]uint64, error) {
	in := make([]*pb.CheckpointRequest, len(rs))
	for i, r := range rs {
		in[i] = &pb.CheckpointRequest{UserKey: r.UserKey, Id: r.ID}
	}
	r, err := s.writes.Create(ctx, &pb.CreateWriteCheckpointsRequest{Stream: int64(s.stream), Head: string(head), Requests: in})
	if err != nil {
		return nil, fmt.Errorf("store %d write checkpoints: %w", len(rs), err)
	}
	if len(r.GetIds()) != len(rs) {
		return nil, fmt.Errorf("store %d write checkpoints: got %d", len(rs), len(r.GetIds()))
	}
	return r.GetIds(), nil
}

// Source is the replicator's side of the source database.
type Source struct{ client pb.SourceClient }

// NewSource returns the calls to a source.
func NewSource(conn grpc.ClientConnInterface) *Source { return &Source{pb.NewSourceClient(conn)} }

// Position returns the end of the source's log now.
func (s *Source) Position(ctx context.Context) (model.Position, error) {
	r, err := s.client.Position(ctx, &pb.PositionRequest{})
	if err != nil {
		return "", fmt.Errorf("read the source's position: %w", err)
	}
	return model.Position(r.GetPosition()), nil
}

// Mark makes the source's log move on.
func (s *Source) Mark(ctx context.Context) error {
	if _, err := s.client.Mark(ctx, &pb.MarkRequest{}); err != nil {
		return fmt.Errorf("mark the source's log: %w", err)
	}
	return nil
}

// WatchStreams calls yield with all live streams, now and after every change,
// until ctx ends or the watch breaks.
func WatchStreams(ctx context.Context, conn grpc.ClientConnInterface, yield func([]model.Stream)) error {
	w, err := pb.NewCatalogClient(conn).Watch(ctx, &pb.WatchRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("watch streams: %w", err)
	}
	for {
		r, err := w.Recv()
		if err != nil {
			return fmt.Errorf("watch streams: %w", err)
		}
		out := make([]model.Stream, 0, len(r.GetStreams()))
		for _, s := range r.GetStreams() {
			out = append(out, wire.ModelStream(s))
		}
		yield(out)
	}
}
