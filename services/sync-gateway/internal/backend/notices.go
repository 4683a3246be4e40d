package backend

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// Notices are the checkpoint notices on NATS.
type Notices struct {
	NATS  *nats.Conn
	Log   *slog.Logger
	Trace *trace.Tracer
}

// Subscribe calls deliver for each notice of a stream, in order, with its span if
// it is part of a trace, and lost when the connection came back or a notice could
// not be read.
func (n Notices) Subscribe(id model.StreamID, deliver func(model.CheckpointNotice, *trace.Span), lost func()) (stop func(), err error) {
	sub, err := n.NATS.Subscribe(stream.CheckpointSubject(id), func(m *nats.Msg) {
		var notice pb.CheckpointNotice
		if err := proto.Unmarshal(m.Data, &notice); err != nil {
			n.Log.Warn("checkpoint notice cannot be decoded", "stream", int64(id), "error", err)
			lost()
			return
		}
		var span *trace.Span
		if n.Trace != nil {
			span = n.Trace.Child(m.Header.Get(trace.Header), "tell checkpoint", trace.Consumer)
		}
		deliver(wire.ModelNotice(&notice), span)
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	back := n.NATS.StatusChanged(nats.CONNECTED)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case _, ok := <-back:
				if !ok {
					return // the connection was closed for good
				}
				lost()
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		_ = sub.Unsubscribe() // fails only if the connection is closed
		n.NATS.RemoveStatusListener(back)
		wg.Wait()
	}, nil
}
