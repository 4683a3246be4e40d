package scan

import (
	"context"
	"fmt"
	"time"

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
const entriesAtOnce = 2_000

// entryBytes is what an entry or key that is looked at counts as.
const entryBytes = 50

// Lookups drops superseded parameter entries up to the checkpoint (spec/05 §7)
// and returns how many, also when it fails.
func Lookups(ctx context.Context, store LookupStore, stream model.StreamID, checkpoint model.OpID, step Step) (removed uint64, err error) {
	req := &pb.CompactLookupsRequest{Stream: int64(stream), Checkpoint: uint64(checkpoint), Limit: entriesAtOnce}
	for {
		start := time.Now()
		reply, err := store.CompactLookups(ctx, req)
		if err != nil {
			return removed, fmt.Errorf("compact parameter lookups of stream %d: %w", stream, err)
		}
		removed += reply.GetRemoved()
		if err := step(ctx, entriesAtOnce*entryBytes, time.Since(start)); err != nil {
			return removed, err
		}
		if len(reply.GetNext()) == 0 {
			return removed, nil
		}
		req.After = reply.GetNext()
	}
}
