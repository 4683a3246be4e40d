// Package flow carries change batches from JetStream through evaluation to
// bucket-store, and acknowledges each when the ledger has it.
//
// Invariants:
//
//   - A message is acknowledged only after bucket-store has answered COMMITTED
//     or OBSOLETE for it (TestAckAfterCommit).
//   - A message is held under pings or given back; none is forgotten while the
//     process lives (TestStoreRestart, TestDrain).
//   - D8: the bytes in flight are bounded; at the bound nothing more is fetched
//     (TestBound), and what the ledger waits for is not kept out by what is
//     ahead of it (TestGapBehindBudget).
//   - D9: a batch that cannot be decoded is reported and taken out of the stream,
//     so that its gap shows and the replicator reads again (TestPoisonBatch).
//
// A crash anywhere here leaves messages unacknowledged: JetStream delivers them
// again to any evaluator after stream.AckWait, and the ledger drops what it
// already has.
package flow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/catalog"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/evaluate"
)

const (
	// pingEvery is how often JetStream hears that a message is still held; a
	// third of stream.AckWait.
	pingEvery = time.Second
	// planTimeout bounds a question about an unknown stream.
	planTimeout = 2 * time.Second
	// previousTimeout bounds the wait for previous rows: the ledger may be
	// waiting for a batch that waits behind this one, which is then given back.
	previousTimeout = 5 * time.Second
	// drainTimeout is how long Run waits for answers at its end.
	drainTimeout = 2 * time.Second
	// Delays before a message that is given back is delivered again.
	retryDelay = 50 * time.Millisecond
	waitDelay  = time.Second
	// roomWait is how long nothing may be settled while the budget is used up
	// before the batches furthest ahead are given back.
	roomWait = 2 * time.Second
)

// Config bounds a Flow.
type Config struct {
	Workers  int   // batches evaluated at once
	MaxBytes int64 // message bytes in flight
}

// Observer is told what happens; every function must be set.
type Observer struct {
	// Batch was evaluated; trace is the id of its trace, or "".
	Batch   func(changes, rows int, bytes int64, took time.Duration, trace string)
	Settled func(result pb.ApplyResult)
	Poison  func(err error)
	Problem func(p evaluate.Problem)
	// Pending: so many messages wait in JetStream behind the one that just came.
	Pending  func(messages uint64)
	InFlight func(messages int, bytes int64)
	// Fetching and Applying tell whether the two ends work: nil, or why not.
	Fetching func(error)
	Applying func(error)
	// Alive is called on each message and each idle round.
	Alive func()
	// Trace makes the span of each batch that is part of a trace; nil = none.
	Trace *trace.Tracer
}

// Plans finds the plan of a stream; nil if it is not replicated any more.
type Plans interface {
	Plan(ctx context.Context, id model.StreamID, layer uint32, alone bool) (*catalog.Plan, error)
}

// Flow is one evaluator's share of the pipeline.
type Flow struct {
	cfg      Config
	nc       *nats.Conn
	appender pb.AppenderClient
	plans    Plans
	obs      Observer
	log      *slog.Logger

	budget  *semaphore.Weighted
	workers chan *evaluate.Worker // tokens: who has one may compute
	buffers sync.Pool             // of *[]byte, for encoded rows

	mu     sync.Mutex
	held   map[uint64]*message // guarded by mu; every message not settled
	nextID uint64              // guarded by mu
	inUse  int64               // guarded by mu; bytes counted
	ended  uint64              // guarded by mu; messages no longer held, in all
	link   *link               // guarded by mu; nil while there is none
	up     chan struct{}       // guarded by mu; closed when link is set
	empty  chan struct{}       // guarded by mu; set while draining, closed when held is empty

	sending sync.Mutex // one Send at a time

	stuck   bool   // owned by fetch: nothing was settled for roomWait …
	stuckAt uint64 // … since this many had ended
}

// message is a JetStream message that this process has and has not settled.
type message struct {
	id     uint64
	seq    uint64 // in JetStream: the order of the chain
	msg    jetstream.Msg
	size   int64
	pinged time.Time
	link   *link // on which it was sent; nil before
	span   *trace.Span
	// counted: size has been taken from the budget.
	counted bool
}

// link is one Apply stream.
type link struct {
	stream pb.Appender_ApplyClient
}

// New returns a Flow.
func New(cfg Config, nc *nats.Conn, appender pb.AppenderClient, plans Plans, obs Observer, log *slog.Logger) *Flow {
	f := &Flow{
		cfg: cfg, nc: nc, appender: appender, plans: plans, obs: obs, log: log,
		budget:  semaphore.NewWeighted(cfg.MaxBytes),
		workers: make(chan *evaluate.Worker, cfg.Workers),
		held:    map[uint64]*message{},
		up:      make(chan struct{}),
	}
	f.buffers.New = func() any { return new([]byte) }
	for range cfg.Workers {
		f.workers <- &evaluate.Worker{}
	}
	return f
}

// Run carries batches until ctx ends. Then it fetches no more, waits shortly
// for the answers to what it has sent and gives everything else back.
func (f *Flow) Run(ctx context.Context) error {
	// work outlives ctx by the time to drain.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, work := errgroup.WithContext(work)
	g.Go(func() error { f.apply(work); return nil })
	g.Go(func() error { f.ping(work); return nil })
	var batches sync.WaitGroup
	f.fetch(ctx, work, &batches)
	select {
	case <-f.drained():
	case <-time.After(drainTimeout):
	}
	stop()
	batches.Wait()
	err := g.Wait()
	f.giveBack(nil)
	return err
}

// drained returns a channel that is closed when nothing is held.
func (f *Flow) drained() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.empty = make(chan struct{})
	if len(f.held) == 0 {
		close(f.empty)
	}
	return f.empty
}

// hold takes charge of a message.
func (f *Flow) hold(m jetstream.Msg) *message {
	h := &message{msg: m, size: min(int64(len(m.Data()))+1, f.cfg.MaxBytes), pinged: time.Now()}
	if f.obs.Trace != nil {
		h.span = f.obs.Trace.Child(m.Headers().Get(trace.Header), "evaluate batch", trace.Consumer)
	}
	if meta, err := m.Metadata(); err == nil { // always there on a message of a consumer
		h.seq = meta.Sequence.Stream
		f.obs.Pending(meta.NumPending)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nextID++
	h.id = f.nextID
	f.held[h.id] = h
	return h
}

// take ends the charge of message id and returns it; nil if it has ended.
func (f *Flow) take(id uint64) *message {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.held[id]
	if h == nil {
		return nil
	}
	f.dropped(h)
	return h
}

// count takes h's size from the budget, waiting if there is too little; false
// if h was given back instead.
//
// All that is held may be waiting in the ledger for a batch that another
// evaluator had when it died, and which now stands behind h. So when nothing
// moves, what is furthest ahead makes room.
func (f *Flow) count(ctx context.Context, h *message) bool {
	for !f.budget.TryAcquire(h.size) {
		f.mu.Lock()
		before, linked := f.ended, f.link != nil
		f.mu.Unlock()
		if !f.stuck || f.stuckAt != before || !linked {
			wait, cancel := context.WithTimeout(ctx, roomWait)
			err := f.budget.Acquire(wait, h.size)
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return false // h is given back at the end of Run
			}
			f.mu.Lock()
			f.stuck, f.stuckAt = f.ended == before && f.link != nil, f.ended
			f.mu.Unlock()
			if !f.stuck {
				continue
			}
		}
		furthest := f.furthest()
		f.settle(furthest, nak(waitDelay))
		f.mu.Lock()
		f.stuckAt = f.ended // what was just given back is no progress
		f.mu.Unlock()
		if furthest == h {
			return false
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[h.id] == nil {
		f.budget.Release(h.size)
		return false
	}
	h.counted = true
	f.inUse += h.size
	f.obs.InFlight(len(f.held), f.inUse)
	return true
}

// furthest is the held message that is last in the chain; there is one.
func (f *Flow) furthest() *message {
	f.mu.Lock()
	defer f.mu.Unlock()
	var last *message
	for _, h := range f.held {
		if last == nil || h.seq > last.seq {
			last = h
		}
	}
	return last
}

// dropped removes h; f.mu is held.
func (f *Flow) dropped(h *message) {
	delete(f.held, h.id)
	h.span.End()
	f.ended++
	if h.counted {
		f.budget.Release(h.size)
		f.inUse -= h.size
		f.obs.InFlight(len(f.held), f.inUse)
	}
	if f.empty != nil && len(f.held) == 0 {
		select {
		case <-f.empty:
		default:
			close(f.empty)
		}
	}
}

// settle ends the charge of h by one of a message's answers. An answer that
// does not arrive means a redelivery, which the ledger recognises.
func (f *Flow) settle(h *message, answer func(jetstream.Msg) error) {
	if f.take(h.id) == nil {
		return
	}
	if err := answer(h.msg); err != nil {
		f.log.Debug("answering JetStream failed; the message will be delivered again", "error", err)
	}
}

func ack(m jetstream.Msg) error { return m.Ack() }

func nak(delay time.Duration) func(jetstream.Msg) error {
	return func(m jetstream.Msg) error { return m.NakWithDelay(delay) }
}

// giveBack returns the messages that were sent on l, or all if l is nil.
func (f *Flow) giveBack(l *link) {
	f.mu.Lock()
	var back []*message
	for _, h := range f.held {
		if l == nil || h.link == l {
			back = append(back, h)
			f.dropped(h)
		}
	}
	f.mu.Unlock()
	delay := retryDelay
	if l == nil {
		delay = 0
	}
	for _, h := range back {
		if err := nak(delay)(h.msg); err != nil {
			f.log.Debug("giving a message back failed; it will be delivered again", "error", err)
		}
	}
	if len(back) > 0 {
		f.log.Info("batches given back", "batches", len(back))
	}
}

// ping keeps JetStream from delivering again what is held.
func (f *Flow) ping(ctx context.Context) {
	tick := time.NewTicker(pingEvery / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.obs.Alive()
		now := time.Now()
		var due []jetstream.Msg
		f.mu.Lock()
		for _, h := range f.held {
			if now.Sub(h.pinged) >= pingEvery {
				h.pinged = now
				due = append(due, h.msg)
			}
		}
		f.mu.Unlock()
		for _, m := range due {
			if err := m.InProgress(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
				f.log.Debug("ping of a held message failed", "error", err)
			}
		}
	}
}

// process carries one message to the Apply stream or settles it.
func (f *Flow) process(ctx context.Context, h *message) {
	select {
	case <-ctx.Done():
		return // given back at the end of Run
	case w := <-f.workers:
		p, plan := f.prepare(ctx, h)
		if p == nil {
			f.workers <- w
			return
		}
		if len(p.Missing()) > 0 {
			f.workers <- w // others work while this batch waits
			if !f.fill(ctx, h, p) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case w = <-f.workers:
			}
		}
		buf := f.buffers.Get().(*[]byte)
		defer f.buffers.Put(buf)
		h.span.Int("sluice.stream", int64(p.Stream))
		h.span.Int("sluice.changes", int64(len(p.Changes)))
		m := f.evaluate(w, p, plan, h, buf)
		f.workers <- w
		f.send(ctx, h, m)
	}
}

// prepare decodes a message; nil if that has settled it.
func (f *Flow) prepare(ctx context.Context, h *message) (*evaluate.Batch, *catalog.Plan) {
	b, err := wire.DecodeChangeBatch(h.msg.Data())
	if err != nil {
		h.span.Error(errs.Wrap(errs.S9002, err, "batch cannot be decoded"))
		f.obs.Poison(fmt.Errorf("subject %s: %w", h.msg.Subject(), err))
		f.settle(h, func(m jetstream.Msg) error { return m.TermWithReason("batch cannot be decoded") })
		return nil, nil
	}
	pctx, cancel := context.WithTimeout(ctx, planTimeout)
	plan, err := f.plans.Plan(pctx, b.Stream, b.Layer, b.Alone)
	cancel()
	switch {
	case err != nil:
		f.log.Warn("a batch waits for its stream's sync config", "stream", b.Stream, "error", err)
		f.settle(h, nak(waitDelay))
		return nil, nil
	case plan == nil:
		f.obs.Settled(pb.ApplyResult_APPLY_RESULT_OBSOLETE)
		f.settle(h, ack)
		return nil, nil
	case plan.Err != nil:
		f.settle(h, nak(waitDelay))
		return nil, nil
	}
	return evaluate.Prepare(b, plan), plan
}

// fill asks for the previous versions that p needs; false if that failed and h
// was given back.
func (f *Flow) fill(ctx context.Context, h *message, p *evaluate.Batch) bool {
	keys := p.Missing()
	q := &pb.PreviousRowsRequest{Stream: int64(p.Stream), At: wire.Cursor(p.Previous), Keys: make([][]byte, len(keys))}
	for i, k := range keys {
		q.Keys[i] = append(append(make([]byte, 0, 32), k.Table[:]...), k.Row[:]...)
	}
	ctx, cancel := context.WithTimeout(ctx, previousTimeout)
	defer cancel()
	r, err := f.appender.PreviousRows(h.span.In(ctx), q)
	if err == nil {
		rows := make([]string, len(r.GetRows()))
		for i, b := range r.GetRows() {
			rows[i] = string(b)
		}
		err = p.Fill(rows)
	}
	if err != nil {
		level := slog.LevelWarn
		if errs.IsRetry(err) || ctx.Err() != nil {
			level = slog.LevelDebug // the ledger is not there yet
		}
		f.log.Log(ctx, level, "previous rows are not to be had; the batch is given back", "stream", p.Stream, "position", p.Previous, "error", err)
		f.settle(h, nak(retryDelay))
		return false
	}
	return true
}

func (f *Flow) evaluate(w *evaluate.Worker, p *evaluate.Batch, plan *catalog.Plan, h *message, buf *[]byte) *pb.EvaluatedBatch {
	start := time.Now()
	rows := w.Evaluate(p, plan, f.obs.Problem)
	*buf = wire.AppendEvaluatedRows((*buf)[:0], rows)
	now := time.Now()
	p.Meta.EvaluatedAt = model.Micros(now.UnixMicro())
	plan.Saw(p.Meta.Heartbeat)
	f.obs.Batch(len(p.Changes), len(rows), h.size, now.Sub(start), h.span.TraceID())
	return &pb.EvaluatedBatch{
		Stream:   int64(p.Stream),
		Epoch:    uint64(p.Epoch),
		Previous: wire.Cursor(p.Previous),
		End:      wire.Cursor(p.End),
		Meta:     wire.BatchMeta(&p.Meta),
		Rows:     *buf,

		Checkpoints: wire.CustomCheckpoints(w.Checkpoints()),
	}
}
