package scan

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// LookupStore is what compacting the parameter index needs of bucket-store.
type LookupStore interface {
	CompactLookups(context.Context, *pb.CompactLookupsRequest, ...grpc.CallOption) (*pb.CompactLookupsReply, error)
}

// entriesAtOnce is how many entries or keys one call looks at: a step short enough that
// writers do not notice.
const entriesAtOnce = 10_000

// Lookups drops superseded parameter entries up to the checkpoint (spec/05 §7)
// and returns how many, also when it fails.
func Lookups(ctx context.Context, store LookupStore, stream model.StreamID, checkpoint model.OpID) (removed uint64, err error) {
	req := &pb.CompactLookupsRequest{Stream: int64(stream), Checkpoint: uint64(checkpoint), Limit: entriesAtOnce}
	for {
		reply, err := store.CompactLookups(ctx, req)
		if err != nil {
			return removed, fmt.Errorf("compact parameter lookups of stream %d: %w", stream, err)
		}
		removed += reply.GetRemoved()
		if len(reply.GetNext()) == 0 {
			return removed, nil
		}
		req.After = reply.GetNext()
	}
}
