package api

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

type replication struct {
	pb.UnimplementedReplicationServer
	*API
}

// ttl is a request's lease time, within reason.
func ttl(ms int64) time.Duration {
	return min(max(time.Duration(ms)*time.Millisecond, 100*time.Millisecond), 10*time.Minute)
}

// OpenSession takes the lease, then raises the epoch. A crash between the two
// leaves nothing: leases do not outlive the process.
func (r *replication) OpenSession(ctx context.Context, m *pb.OpenSessionRequest) (*pb.OpenSessionReply, error) {
	id := model.StreamID(m.GetStream())
	if m.GetHolder() == "" {
		return nil, status.Error(codes.InvalidArgument, "a session needs a holder")
	}
	writing, err := r.writes()
	if err != nil {
		return nil, err
	}
	w, err := writing.Hub.Writer(id)
	if err != nil {
		return nil, mapped(err)
	}
	if other, ok := writing.Leases.Take(id, m.GetHolder(), ttl(m.GetTtlMs())); !ok {
		return nil, errs.New(errs.S1003, "replication stream %d is locked by %s", id, other)
	}
	head, err := r.Store.OpenSession(ctx, id)
	if err != nil {
		writing.Leases.Release(id, m.GetHolder(), 0)
		return nil, mapped(err)
	}
	writing.Leases.Opened(id, m.GetHolder(), head.Epoch)
	if err := w.SessionOpened(ctx, head); err != nil {
		return nil, r.ended(ctx, err)
	}
	tables, err := r.Store.Tables(ctx, id)
	if err != nil {
		return nil, mapped(err)
	}
	// After the epoch is raised: whatever is added from here on is for the next one.
	streams, err := r.Store.Streams(ctx)
	if err != nil {
		return nil, mapped(err)
	}
	i := slices.IndexFunc(streams, func(s model.Stream) bool { return s.ID == id })
	if i < 0 {
		return nil, mapped(store.ErrNoStream)
	}
	r.Log.Info("replication session opened", "stream", id, "holder", m.GetHolder(), "epoch", head.Epoch, "position", head.Applied)
	return &pb.OpenSessionReply{Epoch: uint64(head.Epoch), Head: wire.StreamHead(&head), Tables: wire.TablesProgress(tables), Definition: wire.Stream(&streams[i])}, nil
}

// RenewLease extends the lease.
func (r *replication) RenewLease(ctx context.Context, m *pb.RenewLeaseRequest) (*pb.RenewLeaseReply, error) {
	id := model.StreamID(m.GetStream())
	writing, err := r.writes()
	if err != nil {
		return nil, err
	}
	head, err := r.Store.Head(ctx, id)
	if err != nil {
		return nil, mapped(err)
	}
	if !writing.Leases.Renew(id, m.GetHolder(), model.Epoch(m.GetEpoch()), head.Epoch, ttl(m.GetTtlMs())) {
		return nil, errs.New(errs.S1003, "replication stream %d: the session of epoch %d is over, open a new one", id, m.GetEpoch())
	}
	return &pb.RenewLeaseReply{}, nil
}

// CloseSession gives the lease back.
func (r *replication) CloseSession(_ context.Context, m *pb.CloseSessionRequest) (*pb.CloseSessionReply, error) {
	writing, err := r.writes()
	if err != nil {
		return nil, err
	}
	writing.Leases.Release(model.StreamID(m.GetStream()), m.GetHolder(), model.Epoch(m.GetEpoch()))
	return &pb.CloseSessionReply{}, nil
}

// Committed sends heads; one that is replaced before it is sent is left out.
func (r *replication) Committed(m *pb.CommittedRequest, stream grpc.ServerStreamingServer[pb.CommittedReply]) error {
	id := model.StreamID(m.GetStream())
	if r.Heads != nil {
		return r.follow(id, stream)
	}
	writing, err := r.writes()
	if err != nil {
		return err
	}
	w, err := writing.Hub.Writer(id)
	if err != nil {
		return mapped(err)
	}
	for {
		head, moved := w.Moved()
		if err := stream.Send(&pb.CommittedReply{Head: wire.StreamHead(&head)}); err != nil {
			return err
		}
		if err := w.WaitMoved(stream.Context(), moved); err != nil {
			return r.ended(stream.Context(), err)
		}
	}
}

func (r *replication) follow(id model.StreamID, stream grpc.ServerStreamingServer[pb.CommittedReply]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-r.Done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return r.ended(stream.Context(), r.Heads.Follow(ctx, id, func(head model.StreamHead) error {
		return stream.Send(&pb.CommittedReply{Head: wire.StreamHead(&head)})
	}))
}

// ReportError keeps an error of replication.
func (r *replication) ReportError(ctx context.Context, m *pb.ReportErrorRequest) (*pb.ReportErrorReply, error) {
	err := r.Store.ReportError(ctx, model.StreamID(m.GetStream()), model.Epoch(m.GetEpoch()), m.GetMessage(), model.Micros(r.Now().UnixMicro()))
	if err != nil {
		return nil, mapped(err)
	}
	return &pb.ReportErrorReply{}, nil
}

// Restart begins another log of a stream. Its reason is what status shows until a
// checkpoint is published.
func (r *replication) Restart(ctx context.Context, m *pb.RestartRequest) (*pb.RestartReply, error) {
	id, epoch := model.StreamID(m.GetStream()), model.Epoch(m.GetEpoch())
	writing, err := r.writes()
	if err != nil {
		return nil, err
	}
	w, err := writing.Hub.Writer(id)
	if err != nil {
		return nil, mapped(err)
	}
	switch refused, err := w.Relog(ctx, epoch, m.GetOtherHistory()); {
	case err != nil:
		return nil, r.ended(ctx, err)
	case refused != "":
		return nil, errs.New(errs.S1003, "replication stream %d does not begin again: %s", id, refused)
	}
	r.Log.Warn("replication begins again", "stream", id, "reason", m.GetReason())
	err = r.Store.ReportError(ctx, id, epoch, m.GetReason(), model.Micros(r.Now().UnixMicro()))
	if fenced := (*store.FencedError)(nil); err != nil && !errors.As(err, &fenced) {
		return nil, mapped(err)
	}
	r.Catalog.Wake()
	return &pb.RestartReply{Stream: int64(id)}, nil
}

// Terminate clears a stopped stream.
func (r *replication) Terminate(ctx context.Context, m *pb.TerminateRequest) (*pb.TerminateReply, error) {
	id := model.StreamID(m.GetStream())
	streams, err := r.Store.Streams(ctx)
	if err != nil {
		return nil, mapped(err)
	}
	for i := range streams {
		if s := &streams[i]; s.ID == id && s.State != model.Stopped && s.State != model.Terminated {
			return nil, status.Errorf(codes.FailedPrecondition, "stream %d is %s: only a stopped one may be cleared", id, s.State)
		}
	}
	if err := r.Store.Clear(ctx, id); err != nil {
		return nil, mapped(err)
	}
	r.Log.Info("replication stream cleared", "stream", id)
	r.statesChanged()
	return &pb.TerminateReply{}, nil
}
