package api

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/turn"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

type compaction struct {
	pb.UnimplementedCompactionServer
	*API
	turns *turn.Table
}

// Dirtiest lists buckets and the checkpoint above which nothing may be
// touched.
func (c *compaction) Dirtiest(ctx context.Context, m *pb.DirtiestRequest) (*pb.DirtiestReply, error) {
	id := model.StreamID(m.GetStream())
	// The published head, so that no reader is at an older one for long.
	writing, err := c.writes()
	if err != nil {
		return nil, err
	}
	w, err := writing.Hub.Writer(id)
	if err != nil {
		return nil, mapped(err)
	}
	head, _, _ := w.Head()
	buckets, err := c.Store.Dirtiest(ctx, id, store.DirtyQuery{
		Limit: int(m.GetLimit()), MinChanges: m.GetMinChanges(), Only: m.GetOnly(), After: m.GetAfter(),
	})
	if err != nil {
		return nil, mapped(fmt.Errorf("dirtiest: %w", err))
	}
	reply := &pb.DirtiestReply{Checkpoint: uint64(head.Checkpoint.Op)}
	for _, b := range buckets {
		reply.Buckets = append(reply.Buckets, &pb.DirtyBucket{Bucket: b.Bucket, Ops: b.Ops, Changes: b.Changes})
	}
	return reply, nil
}

// Hold gives a compactor a turn at a bucket.
func (c *compaction) Hold(ctx context.Context, m *pb.HoldRequest) (*pb.HoldReply, error) {
	id, ttl := model.StreamID(m.GetStream()), time.Duration(m.GetTtlMs())*time.Millisecond
	writing, err := c.writes()
	if err != nil {
		return nil, err
	}
	w, err := writing.Hub.Writer(id)
	if err != nil {
		return nil, mapped(err)
	}
	// Before the bucket is listed, so that what has made it dirty is below it.
	head, _, _ := w.Head()
	reply := &pb.HoldReply{Checkpoint: uint64(head.Checkpoint.Op)}
	switch {
	case reply.GetCheckpoint() == 0: // nothing is visible yet
	case m.GetBucket() != "":
		if c.turns.Take(id, m.GetBucket(), m.GetHolder(), ttl) {
			reply.Bucket = &pb.DirtyBucket{Bucket: m.GetBucket()}
		}
	default:
		b, ok, err := c.turns.Next(id, m.GetHolder(), ttl, func(limit int) ([]store.DirtyBucket, error) {
			return c.Store.Dirtiest(ctx, id, store.DirtyQuery{Limit: limit, MinChanges: max(1, m.GetMinChanges())})
		})
		if err != nil {
			return nil, mapped(fmt.Errorf("dirtiest: %w", err))
		}
		if ok {
			reply.Bucket = &pb.DirtyBucket{Bucket: b.Bucket, Ops: b.Ops, Changes: b.Changes}
		}
	}
	return reply, nil
}

// Release ends a turn.
func (c *compaction) Release(_ context.Context, m *pb.ReleaseRequest) (*pb.ReleaseReply, error) {
	c.turns.Release(model.StreamID(m.GetStream()), m.GetBucket(), m.GetHolder(), time.Duration(m.GetRestMs())*time.Millisecond)
	return &pb.ReleaseReply{}, nil
}

// A block of Scan ends at either bound.
const (
	scanBytes = 64 << 10
	scanOps   = 1000
)

// Scan streams a bucket's ops without data.
func (c *compaction) Scan(m *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanReply]) error {
	var block []byte
	var count, all uint32
	for op, err := range c.Store.Scan(stream.Context(), model.StreamID(m.GetStream()), m.GetBucket(), model.OpID(m.GetDownTo()), model.OpID(m.GetUpTo()), m.GetAscending()) {
		if err != nil {
			return mapped(err)
		}
		block = wire.AppendOp(block, &op)
		count++
		all++
		if len(block) >= scanBytes || count >= scanOps {
			if err := stream.Send(&pb.ScanReply{Ops: block, Count: count}); err != nil {
				return err
			}
			block, count = nil, 0
		}
		if all == m.GetLimit() {
			break
		}
	}
	if count == 0 {
		return nil
	}
	return stream.Send(&pb.ScanReply{Ops: block, Count: count})
}

// Replace rewrites ops of a bucket. ABORTED: they are not what the caller has
// read.
func (c *compaction) Replace(ctx context.Context, m *pb.ReplaceRequest) (*pb.ReplaceReply, error) {
	r := store.Replacement{
		Bucket: m.GetBucket(), Checkpoint: model.OpID(m.GetCheckpoint()), ClearTo: model.OpID(m.GetClearTo()), Finished: m.GetFinished(),
		Moves: make([]store.Move, len(m.GetMoves())),
	}
	for i, v := range m.GetMoves() {
		r.Moves[i] = store.Move{ID: model.OpID(v.GetId()), Target: model.OpID(v.GetTarget())}
	}
	removed, err := c.Store.Replace(ctx, model.StreamID(m.GetStream()), r)
	if err != nil {
		return nil, mapped(fmt.Errorf("replace: %w", err))
	}
	return &pb.ReplaceReply{Cleared: removed}, nil
}

// maxReemit bounds the bytes of data that one call puts again.
const maxReemit = 16 << 20

// Reemit puts rows of a bucket again.
func (c *compaction) Reemit(ctx context.Context, m *pb.ReemitRequest) (*pb.ReemitReply, error) {
	ops := make([]model.OpID, len(m.GetOps()))
	for i, id := range m.GetOps() {
		ops[i] = model.OpID(id)
	}
	if len(ops) == 0 || !slices.IsSorted(ops) || ops[0] == 0 || ops[len(ops)-1] > model.OpID(m.GetCheckpoint()) {
		return nil, status.Error(codes.InvalidArgument, "ops must be ascending and not above the checkpoint")
	}
	writing, err := c.writes()
	if err != nil {
		return nil, err
	}
	w, err := writing.Hub.Writer(model.StreamID(m.GetStream()))
	if err != nil {
		return nil, mapped(err)
	}
	r, err := w.Reemit(ctx, ledger.Reemit{
		Bucket: m.GetBucket(), Checkpoint: model.OpID(m.GetCheckpoint()), Ops: ops, Bytes: int(min(m.GetBytes(), maxReemit)),
	})
	if err != nil {
		return nil, c.ended(ctx, fmt.Errorf("reemit: %w", err))
	}
	return &pb.ReemitReply{Ops: uint32(r.Ops), Bytes: uint64(r.Bytes), Checkpoint: uint64(r.Checkpoint), Reason: r.Reason}, nil
}

// CompactLookups drops superseded parameter entries.
func (c *compaction) CompactLookups(ctx context.Context, m *pb.CompactLookupsRequest) (*pb.CompactLookupsReply, error) {
	removed, next, err := c.Store.CompactLookups(ctx, model.StreamID(m.GetStream()), model.OpID(m.GetCheckpoint()), m.GetAfter(), int(m.GetLimit()))
	if err != nil {
		return nil, mapped(err)
	}
	return &pb.CompactLookupsReply{Removed: removed, Next: next}, nil
}

// ExpireRequests drops checkpoint requests of a certain age.
func (c *compaction) ExpireRequests(ctx context.Context, m *pb.ExpireRequestsRequest) (*pb.ExpireRequestsReply, error) {
	before := c.Now().Add(-time.Duration(m.GetAgeMs()) * time.Millisecond)
	removed, next, err := c.Store.ExpireRequests(ctx, model.StreamID(m.GetStream()), model.Micros(before.UnixMicro()), m.GetAfter(), int(m.GetLimit()))
	if err != nil {
		return nil, mapped(err)
	}
	return &pb.ExpireRequestsReply{Removed: removed, Next: next}, nil
}
