package api

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/kit/errs"
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
	id := model.StreamID(m.GetStream())
	writing, err := w.writes()
	if err != nil {
		return nil, err
	}
	switch stream, err := writing.Hub.Writer(id); {
	case err != nil:
		return nil, mapped(err)
	case stream.CustomCheckpoints():
		return nil, errs.New(errs.S2001, "the write checkpoints of stream %d are custom: rows of the source carry them", id)
	}
	now := model.Micros(w.Now().UnixMicro())
	requests := make([]store.WriteCheckpointRequest, len(m.GetRequests()))
	for i, r := range m.GetRequests() {
		if r.GetUserKey() == "" {
			return nil, status.Error(codes.InvalidArgument, "a write checkpoint needs a user key")
		}
		requests[i] = store.WriteCheckpointRequest{UserKey: r.GetUserKey(), ID: r.GetId(), Head: writing.Hub.Place(model.Position(m.GetHead()))}
		if r.GetId() != 0 {
			requests[i].Requested = now
		}
	}
	made, err := writing.Hub.CreateWriteCheckpoints(ctx, id, requests)
	if err != nil {
		return nil, w.ended(ctx, err)
	}
	reply := &pb.CreateWriteCheckpointsReply{Ids: make([]uint64, len(made))}
	for i := range made {
		reply.Ids[i] = made[i].ID
	}
	return reply, nil
}

// Reached tells what a position has reached, of the write checkpoints that the
// stream's clients have.
func (w *writeCheckpoints) Reached(ctx context.Context, m *pb.ReachedRequest) (*pb.ReachedReply, error) {
	id, position := model.StreamID(m.GetStream()), model.Position(m.GetPosition())
	stream, err := w.fixedOf(ctx, id)
	if err != nil {
		return nil, mapped(err)
	}
	var ids []uint64
	if stream.custom {
		ids, err = w.Store.CustomReached(ctx, id, position, m.GetUserKeys())
	} else {
		ids, err = w.Store.Reached(ctx, model.PlaceIn(stream.era, position), m.GetUserKeys())
	}
	if err != nil {
		return nil, mapped(fmt.Errorf("reached: %w", err))
	}
	return &pb.ReachedReply{Ids: ids}, nil
}
