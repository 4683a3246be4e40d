package compactor

import (
	"context"
	"strings"

	"github.com/sluicesync/sluice/libs/kit/errs"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// server is the Compactor service.
type server struct {
	pb.UnimplementedCompactorServer
	*compactor
}

// Compact runs now, beside whatever else runs, and returns when done.
func (s server) Compact(ctx context.Context, req *pb.CompactRequest) (*pb.CompactReply, error) {
	for _, b := range req.GetBuckets() {
		if !strings.Contains(b, "[") {
			return nil, errs.New(errs.S2001, "not a full bucket id: %q (they look like 1#definition[\"parameter\"])", b)
		}
	}
	t, err := s.now(ctx, req.GetBuckets(), !req.GetSkipBuckets(), !req.GetSkipLookups())
	if err == nil {
		err = t.err
	}
	if err != nil {
		s.log.Error("compaction on demand failed", "error", errs.Cause(err))
		return nil, err
	}
	return &pb.CompactReply{Buckets: t.buckets, OpsRead: t.ops.Read, OpsMoved: t.ops.Moved, OpsCleared: t.ops.Cleared, LookupsRemoved: t.lookups}, nil
}
