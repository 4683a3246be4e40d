package api

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

type writeCheckpoints struct {
	pb.UnimplementedWriteCheckpointsServer
	*API
}

// Create stores numbers; calls that arrive together share one durable write.
func (w *writeCheckpoints) Create(ctx context.Context, m *pb.CreateWriteCheckpointsRequest) (*pb.CreateWriteCheckpointsReply, error) {
	requests := make([]store.WriteCheckpointRequest, len(m.GetRequests()))
	for i, r := range m.GetRequests() {
		if r.GetUserKey() == "" {
			return nil, status.Error(codes.InvalidArgument, "a write checkpoint needs a user key")
		}
		requests[i] = store.WriteCheckpointRequest{UserKey: r.GetUserKey(), ID: r.GetId(), Head: model.Position(m.GetHead())}
	}
	made, err := w.Hub.CreateWriteCheckpoints(ctx, model.StreamID(m.GetStream()), requests)
	if err != nil {
		return nil, mapped(err)
	}
	reply := &pb.CreateWriteCheckpointsReply{Ids: make([]uint64, len(made))}
	for i := range made {
		reply.Ids[i] = made[i].ID
	}
	return reply, nil
}

// Reached tells what a position has reached.
func (w *writeCheckpoints) Reached(ctx context.Context, m *pb.ReachedRequest) (*pb.ReachedReply, error) {
	ids, err := w.Store.Reached(ctx, model.Position(m.GetPosition()), m.GetUserKeys())
	if err != nil {
		return nil, mapped(fmt.Errorf("reached: %w", err))
	}
	return &pb.ReachedReply{Ids: ids}, nil
}
