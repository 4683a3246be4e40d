package flow

import (
	"context"
	"time"

	"google.golang.org/grpc"

	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// linkPause is the wait before the Apply stream is opened again.
const linkPause = 100 * time.Millisecond

// apply keeps an Apply stream open until ctx ends, and settles messages as
// their answers come.
func (f *Flow) apply(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.oneLink(ctx)
		if ctx.Err() != nil {
			return
		}
		f.obs.Applying(err)
		f.log.Warn("the connection to bucket-store is lost", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(linkPause):
		}
	}
}

// oneLink opens an Apply stream and reads its answers until it breaks. What was
// sent on it without an answer is given back then: whether the ledger has it is
// unknown, and it will say so when it comes again.
func (f *Flow) oneLink(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := f.appender.Apply(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	l := &link{stream: s}
	f.mu.Lock()
	f.link = l
	close(f.up)
	f.mu.Unlock()
	f.obs.Applying(nil)
	for {
		r, err := s.Recv()
		if err != nil {
			f.mu.Lock()
			f.link, f.up = nil, make(chan struct{})
			f.mu.Unlock()
			f.giveBack(l)
			return err
		}
		f.answer(r)
	}
}

func (f *Flow) answer(r *pb.ApplyReply) {
	f.mu.Lock()
	h := f.held[r.GetId()]
	f.mu.Unlock()
	if h == nil {
		return
	}
	f.obs.Settled(r.GetResult())
	if h.span != nil {
		h.span.Text("sluice.result", r.GetResult().String())
	}
	switch r.GetResult() {
	case pb.ApplyResult_APPLY_RESULT_COMMITTED:
		f.settle(h, ack)
	case pb.ApplyResult_APPLY_RESULT_OBSOLETE:
		f.log.Debug("batch is obsolete", "message", r.GetMessage())
		f.settle(h, ack)
	default:
		f.log.Debug("bucket-store wants the batch again", "message", r.GetMessage())
		f.settle(h, nak(retryDelay))
	}
}

// send sends m, waiting for an Apply stream if there is none. If it fails, the
// end of that stream gives h back.
func (f *Flow) send(ctx context.Context, h *message, m *pb.EvaluatedBatch) {
	for {
		f.mu.Lock()
		l, up := f.link, f.up
		if f.held[h.id] == nil {
			f.mu.Unlock()
			return
		}
		h.link = l // with f.mu held: either this link's end sees h, or h sees its end
		f.mu.Unlock()
		if l == nil {
			select {
			case <-ctx.Done():
				return
			case <-up:
				continue
			}
		}
		f.sending.Lock()
		err := l.stream.Send(&pb.ApplyRequest{Id: h.id, Batch: m, Traceparent: h.span.Traceparent()})
		f.sending.Unlock()
		if err != nil {
			f.log.Debug("sending a batch failed", "error", err)
		}
		return
	}
}
