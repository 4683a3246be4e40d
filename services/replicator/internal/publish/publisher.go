package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

const (
	// At most so much waits for JetStream's acknowledgement.
	maxUnackedBytes = 16 << 20
	// At most so much is published and not committed: beyond it the source is
	// not read.
	maxUncommittedBytes    = 64 << 20
	maxUncommittedMessages = 2048
	// With more messages than this under way, small transactions are gathered
	// into larger messages.
	busyMessages = 8

	publishTimeout = 2 * time.Second
	firstRetry     = 50 * time.Millisecond
	lastRetry      = time.Second

	checkInterval = time.Second
	// patience is how long nothing may be committed before it is checked
	// whether the messages still exist.
	patience = 4 * time.Second
)

// ErrLost means that messages were lost before they were committed: the
// session must begin anew at what is committed.
var ErrLost = errors.New("published batches were lost")

// sent is a message that is not committed yet.
type sent struct {
	end    model.Cursor
	size   int
	msg    *nats.Msg // nil once acknowledged
	future jetstream.PubAckFuture
	span   *trace.Span // ended when acknowledged
	beat   model.Micros
	seq    uint64 // once acknowledged
}

// Publisher sends the messages of one session to JetStream, and knows what
// became of them.
type Publisher struct {
	js      jetstream.JetStream
	options stream.Options
	subject string
	log     *slog.Logger
	created time.Time // of the JetStream stream

	// progress is called, by a goroutine of Run or by Committed, when something
	// was acknowledged or committed.
	progress func()
	// published is called with the heartbeat of each message, 0 = none, once it is
	// acknowledged.
	published func(model.Micros)
	// trouble is called when JetStream keeps refusing messages.
	trouble func(error)

	unsettled chan *sent // to settle, in order; capacity maxUncommittedMessages + slack

	mu           sync.Mutex
	changed      chan struct{} // closed and replaced when room may have come; guarded by mu
	queue        []*sent       // not committed, in order; guarded by mu
	queueBytes   int
	unacked      int
	unackedBytes int
	lastProgress time.Time // of commits
	answering    bool      // the ledger's head arrives
}

// slack is how many messages concurrent callers of Wait may send beyond the
// limit.
const slack = 64

// NewPublisher makes sure that the JetStream stream exists.
func NewPublisher(ctx context.Context, js jetstream.JetStream, o stream.Options, id model.StreamID, log *slog.Logger) (*Publisher, error) {
	s, err := stream.Changes(ctx, js, o)
	if err != nil {
		return nil, err
	}
	return &Publisher{
		js: js, options: o, subject: stream.ChangesSubject(id), log: log, created: s.CachedInfo().Created,
		progress: func() {}, published: func(model.Micros) {}, trouble: func(error) {}, unsettled: make(chan *sent, maxUncommittedMessages+slack),
		changed: make(chan struct{}), lastProgress: time.Now(),
	}, nil
}

// MaxRow is the size of the largest row that a message can carry beside the
// rest of a batch.
func (p *Publisher) MaxRow() int {
	return min(int(p.js.Conn().MaxPayload())-2*FullBytes, source.MaxRow)
}

// send publishes a message without waiting.
func (p *Publisher) send(id string, end model.Cursor, body []byte, heartbeat model.Micros, span *trace.Span) {
	s := &sent{end: end, size: len(body), beat: heartbeat, span: span, msg: &nats.Msg{Subject: p.subject, Data: body, Header: nats.Header{nats.MsgIdHdr: []string{id}}}}
	if span != nil {
		s.msg.Header[trace.Header] = []string{span.Traceparent()}
	}
	p.mu.Lock()
	if len(p.queue) == 0 {
		p.lastProgress = time.Now()
	}
	p.queue = append(p.queue, s)
	p.queueBytes += s.size
	p.unacked++
	p.unackedBytes += s.size
	p.mu.Unlock()
	// If this fails at once, settle publishes it again.
	s.future, _ = p.js.PublishMsgAsync(s.msg, jetstream.WithRetryAttempts(0))
	p.unsettled <- s
}

// quiet reports whether little enough is under way that a small message is
// worth sending.
func (p *Publisher) quiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unacked == 0 && len(p.queue) < busyMessages
}

// acknowledged reports whether JetStream has everything that was sent.
func (p *Publisher) acknowledged() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unacked == 0
}

// Wait waits until there is room for another message.
func (p *Publisher) Wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		room := p.unackedBytes < maxUnackedBytes && p.queueBytes < maxUncommittedBytes && len(p.queue) < maxUncommittedMessages
		changed := p.changed
		p.mu.Unlock()
		if room {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// InFlight is what is published and not committed.
func (p *Publisher) InFlight() (messages, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue), p.queueBytes
}

// signal wakes Wait. The caller holds mu.
func (p *Publisher) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Committed says how far the ledger is.
func (p *Publisher) Committed(applied model.Cursor) {
	p.mu.Lock()
	p.answering = true
	n := 0
	for n < len(p.queue) && p.queue[n].end.Compare(applied) <= 0 {
		p.queueBytes -= p.queue[n].size
		n++
	}
	if n > 0 {
		clear(p.queue[:n])
		p.queue = p.queue[n:]
		p.lastProgress = time.Now()
		p.signal()
	}
	p.mu.Unlock()
	if n > 0 {
		p.progress()
	}
}

// Silent says that the ledger does not answer: nothing is lost for that.
func (p *Publisher) Silent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answering = false
}

// Run settles messages until ctx ends, and returns ErrLost if it finds that some
// are lost.
func (p *Publisher) Run(ctx context.Context) error {
	errc := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { errc <- p.check(ctx); cancel() }()
	err := p.settleAll(ctx)
	cancel()
	return errors.Join(ignoreCanceled(err), ignoreCanceled(<-errc))
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (p *Publisher) settleAll(ctx context.Context) error {
	for {
		select {
		case s := <-p.unsettled:
			if err := p.settle(ctx, s); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settle waits until s is stored, and publishes it again, under the same id, as
// often as it takes.
func (p *Publisher) settle(ctx context.Context, s *sent) error {
	var ack *jetstream.PubAck
	var err error = nats.ErrTimeout
	if s.future != nil {
		timeout := time.NewTimer(publishTimeout)
		select {
		case ack = <-s.future.Ok():
			err = nil
		case err = <-s.future.Err():
		case <-timeout.C:
		case <-ctx.Done():
		}
		timeout.Stop()
	}
	for delay := firstRetry; err != nil; delay = min(2*delay, lastRetry) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, nats.ErrMaxPayload) {
			return fmt.Errorf("publish %d bytes: NATS takes messages of %d bytes: %w", s.size, p.js.Conn().MaxPayload(), err)
		}
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			// The stream may be gone, or the server just starting.
			if err := p.verify(ctx); err != nil {
				return err
			}
		}
		if delay == lastRetry {
			p.log.Warn("JetStream does not take batches", "error", err)
			p.trouble(fmt.Errorf("JetStream does not take batches: %w", err))
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
		attempt, cancel := context.WithTimeout(ctx, publishTimeout)
		ack, err = p.js.PublishMsg(attempt, s.msg, jetstream.WithRetryAttempts(0))
		cancel()
	}
	s.span.End()
	p.mu.Lock()
	s.seq, s.msg, s.future, s.span = ack.Sequence, nil, nil, nil
	p.unacked--
	p.unackedBytes -= s.size
	p.signal()
	p.mu.Unlock()
	p.published(s.beat)
	p.progress()
	return nil
}

// verify returns ErrLost if the JetStream stream is another than at the start,
// or there is none; an unreachable server proves nothing.
func (p *Publisher) verify(ctx context.Context) error {
	attempt, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	s, err := p.js.Stream(attempt, stream.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("%w: stream %s is gone", ErrLost, stream.Name)
	case err != nil:
		return nil
	case !s.CachedInfo().Created.Equal(p.created):
		return fmt.Errorf("%w: stream %s was made anew", ErrLost, stream.Name)
	}
	return nil
}

// check looks, while nothing is committed, whether what is published still
// exists.
func (p *Publisher) check(ctx context.Context) error {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.mu.Lock()
		stalled := time.Duration(0)
		seq := uint64(0)
		if len(p.queue) > 0 && p.answering {
			stalled = time.Since(p.lastProgress)
			seq = p.queue[0].seq
		}
		p.mu.Unlock()
		if stalled < checkInterval {
			continue
		}
		if err := p.verify(ctx); err != nil {
			return err
		}
		if stalled < patience || seq == 0 {
			continue
		}
		if p.missing(ctx, seq) {
			return fmt.Errorf("%w: message %d was taken and not committed within %s", ErrLost, seq, stalled.Round(time.Second))
		}
	}
}

// missing reports whether a message is certainly no longer in JetStream.
func (p *Publisher) missing(ctx context.Context, seq uint64) bool {
	attempt, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	s, err := p.js.Stream(attempt, stream.Name)
	if err != nil {
		return false
	}
	_, err = s.GetMsg(attempt, seq)
	return errors.Is(err, jetstream.ErrMsgNotFound)
}

// messageID is what JetStream recognises a message by.
func messageID(id model.StreamID, epoch model.Epoch, end model.Cursor) string {
	return strconv.FormatInt(int64(id), 10) + "/" + strconv.FormatUint(uint64(epoch), 10) + "/" + end.String()
}
