package scan

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// RequestStore is what expiring checkpoint requests needs of bucket-store.
type RequestStore interface {
	ExpireRequests(context.Context, *pb.ExpireRequestsRequest, ...grpc.CallOption) (*pb.ExpireRequestsReply, error)
}

// Requests drops the checkpoint requests of that age that the stream's
// checkpoint has reached (spec/05 §8) and returns how many, also when it fails.
func Requests(ctx context.Context, store RequestStore, stream model.StreamID, age time.Duration, step Step) (removed uint64, err error) {
	req := &pb.ExpireRequestsRequest{Stream: int64(stream), AgeMs: age.Milliseconds(), Limit: entriesAtOnce}
	for {
		start := time.Now()
		reply, err := store.ExpireRequests(ctx, req)
		if err != nil {
			return removed, fmt.Errorf("expire checkpoint requests of stream %d: %w", stream, err)
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
