package api

import (
	"context"
	"errors"
	"math"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

type reader struct {
	pb.UnimplementedReaderServer
	*API
}

// Head returns the newest checkpoint and its place in the notice feed.
func (r *reader) Head(ctx context.Context, m *pb.HeadRequest) (*pb.HeadReply, error) {
	head, run, sequence, err := r.head(ctx, model.StreamID(m.GetStream()))
	if err != nil {
		return nil, mapped(err)
	}
	return &pb.HeadReply{Head: wire.StreamHead(&head), Run: run, Sequence: sequence}, nil
}

func (r *reader) head(ctx context.Context, id model.StreamID) (head model.StreamHead, run, sequence uint64, err error) {
	if r.Heads != nil {
		return r.Heads.Head(ctx, id)
	}
	writing, err := r.writes()
	if err != nil {
		return head, 0, 0, err
	}
	w, err := writing.Hub.Writer(id)
	if err != nil {
		return head, 0, 0, err
	}
	head, run, sequence = w.Head()
	return head, run, sequence, nil
}

// Lookups reads the parameter index.
func (r *reader) Lookups(ctx context.Context, m *pb.LookupsRequest) (*pb.LookupsReply, error) {
	lookups := make([]string, len(m.GetLookups()))
	for i, l := range m.GetLookups() {
		lookups[i] = string(l)
	}
	limit := int(m.GetLimit())
	if limit == 0 {
		limit = math.MaxInt32
	}
	id, checkpoint := model.StreamID(m.GetStream()), model.OpID(m.GetCheckpoint())
	if err := r.sees(ctx, id, checkpoint); err != nil {
		return nil, mapped(err)
	}
	found, err := r.Store.Lookups(ctx, id, checkpoint, lookups, limit)
	if errors.Is(err, store.ErrInvalidated) {
		return &pb.LookupsReply{Invalid: true}, nil
	}
	if err != nil {
		return nil, mapped(err)
	}
	reply := &pb.LookupsReply{Results: make([]*pb.LookupValues, len(found))}
	for i, values := range found {
		reply.Results[i] = &pb.LookupValues{Values: values}
	}
	return reply, nil
}

// Checksums reads bucket states.
func (r *reader) Checksums(ctx context.Context, m *pb.ChecksumsRequest) (*pb.ChecksumsReply, error) {
	id, checkpoint := model.StreamID(m.GetStream()), model.OpID(m.GetCheckpoint())
	if err := r.sees(ctx, id, checkpoint); err != nil {
		return nil, mapped(err)
	}
	states, err := r.Store.Checksums(ctx, id, checkpoint, m.GetBuckets())
	if errors.Is(err, store.ErrInvalidated) {
		return &pb.ChecksumsReply{Invalid: true}, nil
	}
	if err != nil {
		return nil, mapped(err)
	}
	reply := &pb.ChecksumsReply{Checksums: make([]uint32, len(states)), Counts: make([]uint64, len(states))}
	for i, s := range states {
		reply.Checksums[i], reply.Counts[i] = uint32(s.Checksum), s.Count
	}
	return reply, nil
}

const (
	defaultChunkBytes = 1 << 20
	defaultChunkOps   = 1000
)

// Ops sends each bucket's ops in chunks. Each chunk is a read of its own, so a
// slow caller holds nothing in the store.
func (r *reader) Ops(m *pb.OpsRequest, stream grpc.ServerStreamingServer[pb.OpsChunk]) error {
	c := chunker{
		store: r.Store, stream: model.StreamID(m.GetStream()), checkpoint: model.OpID(m.GetCheckpoint()),
		bytes: int(m.GetMaxBytes()), ops: int(m.GetMaxOps()),
	}
	if c.bytes == 0 {
		c.bytes = defaultChunkBytes
	}
	if c.ops == 0 {
		c.ops = defaultChunkOps
	}
	if err := r.sees(stream.Context(), c.stream, c.checkpoint); err != nil {
		return mapped(err)
	}
	chunks := uint32(0)
	for _, p := range m.GetPositions() {
		for after, more := p.GetAfter(), true; more; {
			chunk, err := c.chunk(stream.Context(), p.GetBucket(), model.OpID(after))
			if err != nil {
				return mapped(err)
			}
			if err := stream.Send(chunk); err != nil {
				return err
			}
			if chunks++; chunks == m.GetMaxChunks() {
				return nil
			}
			after, more = chunk.GetNextAfter(), chunk.GetHasMore()
		}
	}
	return nil
}

type chunker struct {
	store      store.Reader
	stream     model.StreamID
	checkpoint model.OpID
	bytes, ops int
}

// chunk reads the ops that follow after: as many as fit, at least one.
func (c *chunker) chunk(ctx context.Context, bucket string, after model.OpID) (*pb.OpsChunk, error) {
	chunk := &pb.OpsChunk{Bucket: bucket, After: uint64(after), NextAfter: uint64(after)}
	var block []byte
	size := 0
	for op, err := range c.store.Ops(ctx, c.stream, bucket, after, c.checkpoint) {
		if errors.Is(err, store.ErrInvalidated) {
			chunk.Invalid = true
			break
		}
		if err != nil {
			return nil, err
		}
		if chunk.Count > 0 && (size >= c.bytes || size+len(op.Data) > c.bytes || int(chunk.Count) >= c.ops) {
			chunk.HasMore = true
			break
		}
		if block == nil {
			block = make([]byte, 0, 4<<10)
		}
		block = wire.AppendOp(block, &op)
		size += len(op.Data)
		chunk.Count++
		chunk.NextAfter = uint64(op.ID)
		chunk.Target = max(chunk.Target, uint64(op.Target))
	}
	chunk.Ops = block
	return chunk, nil
}
