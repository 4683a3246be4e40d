package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/writer"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

type appender struct {
	pb.UnimplementedAppenderServer
	*API
}

// Apply takes batches as they come and sends answers as they become known.
func (a *appender) Apply(stream grpc.BidiStreamingServer[pb.ApplyRequest, pb.ApplyReply]) error {
	writing, err := a.writes()
	if err != nil {
		return err
	}
	out := outbox{ready: make(chan struct{}, 1)}
	received := make(chan error, 1) // one value: why receiving ended
	// Not waited for: Recv returns only after this handler has, and then at
	// once.
	go func() { received <- a.receive(stream, writing.Hub, &out) }()
	for {
		select {
		case <-writing.Done:
			return errStopping
		case err := <-received:
			if !errors.Is(err, io.EOF) {
				return err
			}
			received = nil // the caller has said all; answer what is open
			out.end()
		case <-out.ready:
			replies, done := out.take()
			for _, r := range replies {
				if err := stream.Send(r); err != nil {
					return err
				}
			}
			if done {
				return nil
			}
		}
	}
}

// receive hands batches in until the caller ends the stream: then it returns
// io.EOF.
func (a *appender) receive(stream grpc.BidiStreamingServer[pb.ApplyRequest, pb.ApplyReply], hub *writer.Hub, out *outbox) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		id := m.GetId()
		out.expect()
		batch, err := wire.ModelEvaluatedBatch(m.GetBatch())
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "batch of request %d: %v", id, err)
		}
		w, err := hub.Writer(batch.Stream)
		if errors.Is(err, store.ErrNoStream) {
			out.put(id, ledger.ResultObsolete, "there is no such stream any more")
			continue
		}
		if err != nil {
			return mapped(err)
		}
		span := a.Trace.Child(m.GetTraceparent(), "commit batch", trace.Server)
		span.Int("sluice.stream", int64(batch.Stream))
		span.Int("sluice.rows", int64(len(batch.Rows)))
		err = w.Arrive(stream.Context(), batch, batchSize(m), span, func(r ledger.Result, msg string) { out.put(id, r, msg) })
		if err != nil {
			span.Error(err)
			span.End()
			return a.ended(stream.Context(), err)
		}
	}
}

// batchSize is what a batch costs in memory: its rows once encoded, which the
// decoded ones point into, and the decoded ones, and its few write checkpoints.
func batchSize(m *pb.ApplyRequest) int {
	b := m.GetBatch()
	return 1024 + 2*len(b.GetRows()) + 256*len(b.GetCheckpoints())
}

// outbox collects answers until they are sent. It is as long as the requests
// that are not answered yet, which the reorder buffer bounds.
type outbox struct {
	ready chan struct{} // 1: a signal

	mu      sync.Mutex
	replies []*pb.ApplyReply // guarded by mu
	open    int              // requests without an answer; guarded by mu
	ended   bool             // no request will follow; guarded by mu
}

func (o *outbox) expect() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open++
}

func (o *outbox) put(id uint64, r ledger.Result, msg string) {
	reply := &pb.ApplyReply{Id: id, Message: msg}
	switch r {
	case ledger.ResultCommitted:
		reply.Result = pb.ApplyResult_APPLY_RESULT_COMMITTED
	case ledger.ResultObsolete:
		reply.Result = pb.ApplyResult_APPLY_RESULT_OBSOLETE
	case ledger.ResultRetry:
		reply.Result = pb.ApplyResult_APPLY_RESULT_RETRY
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open--
	o.replies = append(o.replies, reply)
	o.signal()
}

func (o *outbox) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.ready <- struct{}{}:
	default: // signalled already
	}
}

// take returns the answers to send, and whether they are the last.
func (o *outbox) take() (replies []*pb.ApplyReply, done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	replies, o.replies = o.replies, nil
	return replies, o.ended && o.open == 0
}

// previousWait bounds how long PreviousRows waits for the ledger.
const previousWait = 2 * time.Second

// PreviousRows waits for the cursor and returns stored source rows.
func (a *appender) PreviousRows(ctx context.Context, m *pb.PreviousRowsRequest) (*pb.PreviousRowsReply, error) {
	id := model.StreamID(m.GetStream())
	keys := make([]model.RowKey, len(m.GetKeys()))
	for i, k := range m.GetKeys() {
		if len(k) != 32 {
			return nil, status.Errorf(codes.InvalidArgument, "key %d has %d bytes, not 32", i, len(k))
		}
		copy(keys[i].Table[:], k)
		copy(keys[i].Row[:], k[16:])
	}
	writing, err := a.writes()
	if err != nil {
		return nil, err
	}
	w, err := writing.Hub.Writer(id)
	if err != nil {
		return nil, mapped(err)
	}
	at := wire.ModelCursor(m.GetAt())
	waitCtx, cancel := context.WithTimeout(ctx, previousWait)
	defer cancel()
	if err := w.WaitApplied(waitCtx, at); err != nil {
		if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			head, _, _ := w.Head()
			return nil, errs.Wrap(errs.S2003, err, "stream %d is at %s, not yet at %s", id, head.Applied, at).Retryable()
		}
		return nil, a.ended(ctx, err)
	}
	records, err := a.Store.Records(ctx, id, keys)
	if err != nil {
		return nil, mapped(fmt.Errorf("previous rows: %w", err))
	}
	reply := &pb.PreviousRowsReply{Rows: make([][]byte, len(keys))}
	for i, r := range records {
		if r != nil {
			reply.Rows[i] = []byte(r.Source)
		}
	}
	return reply, nil
}
