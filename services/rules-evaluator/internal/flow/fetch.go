package flow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluicesync/sluice/libs/kit/stream"
)

const (
	// Of one pull: JetStream sends up to this many messages, or this many bytes,
	// ahead of what was taken. Nobody pings for them, so they should not wait
	// until stream.AckWait is over.
	aheadMessages = 128
	aheadBytes    = 4 << 20
	// heartbeat of an idle pull; twice this without a word, and the consumer is
	// looked for again.
	heartbeat  = time.Second
	pullExpiry = 5 * time.Second
	fetchPause = 200 * time.Millisecond
	setupTime  = 3 * time.Second
)

// fetch takes messages and processes each in a goroutine of its own, joined by
// batches, until ctx ends. A stream or consumer that is not there, or was lost
// with NATS's disk, is made.
func (f *Flow) fetch(ctx, work context.Context, batches *sync.WaitGroup) {
	for ctx.Err() == nil {
		err := f.pull(ctx, work, batches)
		if ctx.Err() != nil {
			return
		}
		f.obs.Fetching(err)
		f.log.Warn("fetching batches is interrupted", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(fetchPause):
		}
	}
}

// consumer returns the shared consumer, which it makes if need be, with the
// stream. A stream that is there keeps its settings: they are the replicator's.
func (f *Flow) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	js, err := jetstream.New(f.nc)
	if err != nil {
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	if _, err := js.Stream(ctx, stream.Name); errors.Is(err, jetstream.ErrStreamNotFound) {
		if _, err := stream.Changes(ctx, js, stream.Options{}); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("look for JetStream stream %s: %w", stream.Name, err)
	}
	return stream.Consumer(ctx, js)
}

func (f *Flow) pull(ctx, work context.Context, batches *sync.WaitGroup) error {
	c, err := f.consumer(ctx)
	if err != nil {
		return err
	}
	it, err := c.Messages(
		jetstream.PullMaxMessagesWithBytesLimit(aheadMessages, aheadBytes),
		jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(heartbeat),
		jetstream.WithMessagesErrOnMissingHeartbeat(true),
	)
	if err != nil {
		return fmt.Errorf("pull from JetStream: %w", err)
	}
	defer f.empties(it)
	next, stop := f.untilReconnect(ctx)
	defer stop()
	f.obs.Fetching(nil)
	for {
		m, err := it.Next(jetstream.NextContext(next))
		if err != nil {
			if cause := context.Cause(next); cause != nil {
				err = cause
			}
			return fmt.Errorf("pull from JetStream: %w", err)
		}
		h := f.hold(m)
		if !f.count(next, h) {
			continue
		}
		batches.Go(func() { f.process(work, h) })
	}
}

var errReconnected = errors.New("NATS was away")

// untilReconnect returns a context that ends when NATS has been away: it may
// have come back without its consumer, which only silence would tell.
func (f *Flow) untilReconnect(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	status := f.nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED)
	var watch sync.WaitGroup
	watch.Go(func() {
		away := false
		for s := range status { // closed by stop
			if away && s == nats.CONNECTED {
				cancel(errReconnected)
			}
			away = away || s == nats.RECONNECTING
		}
	})
	return ctx, func() {
		f.nc.RemoveStatusListener(status)
		watch.Wait()
		cancel(nil)
	}
}

// empties ends a pull and gives back what was sent ahead, so that others need
// not wait until it times out.
func (f *Flow) empties(it jetstream.MessagesContext) {
	it.Drain()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			it.Stop()
			return
		}
		if err := m.Nak(); err != nil {
			f.log.Debug("giving a message back failed; it will be delivered again", "error", err)
		}
	}
}
