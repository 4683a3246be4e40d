// Package writer drives the ledgers: it hands them what arrives, does what
// they say against the store, answers, and tells readers.
//
// Invariants:
//
//   - A batch is answered committed only after the store has it (D3; INV-7).
//   - Readers hear of a checkpoint after it is durable (INV-5), and the place
//     in the notice feed that Head returns belongs to the checkpoint that it
//     returns (TestHeadBelongsToFeed).
//   - A write checkpoint is announced in the notice of the first checkpoint
//     that reaches it, or at once if one had before it was created (INV-28,
//     TestWriteCheckpointNotices).
//   - A lone batch is committed at once; batches that arrive during a commit
//     share the next one.
package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Options of a Hub; zero means default.
type Options struct {
	Ledger ledger.Options
	// Stall is how long a gap in the chain may last before the session is
	// ended. 0 = 15 s, longer than several redeliveries take.
	Stall time.Duration
	// Publish hands a notice to the readers, with the traceparent of a batch that
	// it tells of, or ""; it must not block.
	Publish func(n *model.CheckpointNotice, traceparent string)
	// Sure tells whether this process is still the one that writes to the
	// storage. It may take a while; nil = there is no other.
	Sure func() bool
	// Revoke takes the lease of an epoch away.
	Revoke func(model.StreamID, model.Epoch)
	// Catalog is called when a stream became the active one.
	Catalog  func()
	Observer Observer
	Log      *slog.Logger
	Now      func() time.Time
}

// Observer watches; each function may be nil.
type Observer struct {
	// Began: a stream is written from now on. Ended: it is terminated, and not
	// heard of again.
	Began func(*model.Stream)
	Ended func(model.StreamID)
	// Committed: a commit took that long.
	Committed func(c *ledger.Commit, took time.Duration)
	// Failed: a commit or read failed.
	Failed func(model.StreamID)
	// Buffered: bytes in the reorder buffer of a stream.
	Buffered func(id model.StreamID, bytes int)
	// Answered: a batch was answered, so long after it came; trace is the id of its
	// trace, or "".
	Answered func(r ledger.Result, took time.Duration, trace string)
}

// Hub has a writer for each stream that is replicated.
type Hub struct {
	options Options
	store   store.Store
	run     uint64
	waiting *waiting
	creates chan *createCall // never closed. 64: calls that share a write

	ctx    context.Context // of Run; ends the writers
	cancel context.CancelFunc
	wg     sync.WaitGroup // of the writers' goroutines

	mu      sync.Mutex
	closed  bool                       // guarded by mu
	writers map[model.StreamID]*Writer // guarded by mu
	era     uint32                     // of the newest log; guarded by mu
}

// New returns a hub over s. Close ends it.
func New(ctx context.Context, s store.Store, o Options) (*Hub, error) {
	if o.Stall == 0 {
		o.Stall = 15 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	ctx, cancel := context.WithCancel(ctx)
	h := &Hub{options: o, store: s, run: rand.Uint64(), ctx: ctx, cancel: cancel, writers: map[model.StreamID]*Writer{}, waiting: newWaiting(), creates: make(chan *createCall, 64)}
	if err := h.begin(); err != nil {
		h.Close()
		return nil, err
	}
	h.wg.Go(h.create)
	return h, nil
}

// begin starts a writer for each stream there is, and learns of the write
// checkpoints that no checkpoint has reached.
func (h *Hub) begin() error {
	streams, err := h.store.Streams(h.ctx)
	if err != nil {
		return fmt.Errorf("read streams: %w", err)
	}
	var position model.Position
	for i := range streams {
		if s := &streams[i]; s.State != model.Terminated {
			h.start(s)
		}
		if streams[i].State == model.Active || streams[i].State == model.Errored {
			position = max(position, streams[i].Place(streams[i].Head.Checkpoint.Position))
		}
	}
	for w, err := range h.store.Unreached(h.ctx, position) {
		if err != nil {
			return err
		}
		h.waiting.add(w)
	}
	return nil
}

// Close ends the writers and waits for them.
func (h *Hub) Close() {
	h.cancel()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.wg.Wait()
}

func (h *Hub) start(s *model.Stream) *Writer {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.writers[s.ID]; w != nil {
		return w
	}
	if h.closed {
		return nil
	}
	live, end := context.WithCancel(h.ctx)
	w := &Writer{
		hub: h, id: s.ID, custom: s.CustomCheckpoints, era: s.Era, live: live, end: end, ledger: ledger.New(s, h.options.Ledger), tickets: map[uint64]ticket{}, reemits: map[uint64]chan<- ledger.Reemitted{}, relogs: map[uint64]chan<- ledger.Relogged{},
		in: make(chan any, 64), work: make(chan ledger.Action, 1), done: make(chan ledger.Event, 1), states: make(chan struct{}, 1),
		view: view{head: s.Head, moved: make(chan struct{})},
	}
	w.over.Store(over(s.State))
	h.writers[s.ID] = w
	h.era = max(h.era, s.EraNow())
	if began := h.options.Observer.Began; began != nil {
		began(s)
	}
	h.wg.Go(w.loop)
	h.wg.Go(w.perform)
	return w
}

// over reports whether nobody waits for the data of a stream in this state.
func over(s model.StreamState) bool { return s == model.Stopped || s == model.Terminated }

// Beats are the newest heartbeats that are stored of the live streams.
func (h *Hub) Beats() []freshness.Beat {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []freshness.Beat
	for _, w := range h.writers {
		if !w.over.Load() {
			head, _, _ := w.Head()
			all = append(all, freshness.Beat{Stage: freshness.Stored, Stream: int64(w.id), At: int64(head.Heartbeat)})
		}
	}
	return all
}

// Writer returns the writer of a stream, store.ErrNoStream if there is none.
func (h *Hub) Writer(id model.StreamID) (*Writer, error) {
	h.mu.Lock()
	w := h.writers[id]
	h.mu.Unlock()
	if w != nil {
		return w, nil
	}
	streams, err := h.store.Streams(h.ctx)
	if err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	for i := range streams {
		if s := &streams[i]; s.ID == id && s.State != model.Terminated {
			if w := h.start(s); w != nil {
				return w, nil
			}
			return nil, context.Canceled
		}
	}
	return nil, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
}

// remove takes the writer of a terminated stream out of sight. It goes on, idle,
// to answer the batches that were on their way to it.
func (h *Hub) remove(w *Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.writers, w.id)
	w.end()
	if ended := h.options.Observer.Ended; ended != nil {
		ended(w.id)
	}
}

// StatesChanged makes every writer look at its stream's state again.
func (h *Hub) StatesChanged() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.writers {
		select {
		case w.states <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// Writer is one stream's ledger and the two goroutines around it: loop steps
// it, perform does what takes time.
type Writer struct {
	hub    *Hub
	id     model.StreamID
	custom bool // the write checkpoints of its clients are the ledger's
	era    uint32
	live   context.Context // ends with the hub, or when the stream is terminated
	end    context.CancelFunc

	in     chan any           // *arrival, *reemission, *relog or ledger.Event; never closed. 64: some batches while a step runs
	work   chan ledger.Action // to perform; closed by loop. One action is under way at most
	done   chan ledger.Event  // from perform; one event an action
	states chan struct{}      // 1: a signal

	// owned by loop
	ledger     *ledger.Ledger
	tickets    map[uint64]ticket
	reemits    map[uint64]chan<- ledger.Reemitted // by ticket
	relogs     map[uint64]chan<- ledger.Relogged  // by ticket
	lastTicket uint64
	traced     *trace.Span // of the newest batch committed that no notice has told of

	view view
	over atomic.Bool // the stream is stopped or terminated
}

type arrival struct {
	batch *model.EvaluatedBatch
	size  int
	ticket
}

// CustomCheckpoints tells whether rows of the source carry the write checkpoints
// of the stream's clients.
func (w *Writer) CustomCheckpoints() bool { return w.custom }

// Place is a position of the stream as write checkpoints know it.
func (w *Writer) Place(p model.Position) model.Position { return model.PlaceIn(w.era, p) }

// Place is a position of the source now, as write checkpoints know it: while what
// is served is of a history that the source has no more, it is a place that only
// what comes of the comparison will reach.
func (h *Hub) Place(p model.Position) model.Position {
	h.mu.Lock()
	defer h.mu.Unlock()
	return model.PlaceIn(h.era, p)
}

// ticket is what becomes of a batch's answer.
type ticket struct {
	reply func(ledger.Result, string)
	span  *trace.Span
	at    time.Time // when it came
}

// Arrive hands in a batch, and the span of it if it is traced. reply is called once, from another goroutine, and
// must not block; it is not called if the hub is closed first. Arrive blocks
// while the writer is busy with earlier arrivals.
func (w *Writer) Arrive(ctx context.Context, b *model.EvaluatedBatch, size int, span *trace.Span, reply func(ledger.Result, string)) error {
	return w.send(ctx, &arrival{b, size, ticket{reply, span, w.hub.options.Now()}})
}

// SessionOpened tells of a new epoch, before anyone can use it.
func (w *Writer) SessionOpened(ctx context.Context, head model.StreamHead) error {
	return w.send(ctx, ledger.SessionOpened{Head: head})
}

func (w *Writer) send(ctx context.Context, message any) error {
	select {
	case w.in <- message:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-w.hub.ctx.Done():
		return w.hub.ctx.Err()
	}
}

// gone says why the writer has ended.
func (w *Writer) gone() error {
	if err := w.hub.ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("stream %d: %w", w.id, store.ErrNoStream)
}

func (w *Writer) loop() {
	defer close(w.work)
	defer w.end()
	stall := time.NewTimer(w.hub.options.Stall)
	defer stall.Stop()
	var stuck model.Cursor // where the ledger waited when the timer was set
	waits := false
	for {
		select {
		case <-w.hub.ctx.Done():
			return
		case m := <-w.in:
			w.take(m)
		case e := <-w.done:
			w.step(e)
		case <-w.states:
			w.look()
		case <-stall.C:
			if waits && w.ledger.Waiting() && w.ledger.Head().Applied == stuck && w.hub.sure() {
				w.step(ledger.Stalled{})
			}
			waits, stuck = w.ledger.Waiting(), w.ledger.Head().Applied
			stall.Reset(w.hub.options.Stall)
		}
	}
}

// sure: what is missing may have gone to another process that writes now. Then
// the chain is not broken.
func (h *Hub) sure() bool { return h.options.Sure == nil || h.options.Sure() }

func (w *Writer) take(message any) {
	w.lastTicket++
	switch m := message.(type) {
	case *arrival:
		w.tickets[w.lastTicket] = m.ticket
		w.step(ledger.Arrived{Ticket: w.lastTicket, Batch: m.batch, Size: m.size})
	case *reemission:
		m.Ticket = w.lastTicket
		w.reemits[m.Ticket] = m.done
		w.step(m.Reemit)
	case *relog:
		m.Ticket = w.lastTicket
		w.relogs[m.Ticket] = m.done
		w.step(m.Relog)
	default:
		w.step(message.(ledger.Event))
	}
}

// look reads the stream's state.
func (w *Writer) look() {
	streams, err := w.hub.store.Streams(w.hub.ctx)
	if err != nil {
		w.hub.options.Log.Error("read streams", "stream", w.id, "error", err)
		return
	}
	for i := range streams {
		if streams[i].ID == w.id {
			w.over.Store(over(streams[i].State))
			w.step(ledger.StateChanged{State: streams[i].State})
			if streams[i].State == model.Terminated {
				w.hub.remove(w)
			}
		}
	}
}

func (w *Writer) step(e ledger.Event) {
	actions := w.ledger.Step(e)
	o := &w.hub.options.Observer
	notified := false
	for _, a := range actions { // before the notice, which may stand before the answers
		if a, ok := a.(ledger.Answer); ok && a.Result == ledger.ResultCommitted && w.tickets[a.Ticket].span != nil {
			w.traced = w.tickets[a.Ticket].span
		}
	}
	for _, a := range actions {
		switch a := a.(type) {
		case ledger.Answer:
			t := w.tickets[a.Ticket]
			delete(w.tickets, a.Ticket)
			t.span.Text("sluice.result", a.Result.String())
			t.span.End()
			t.reply(a.Result, a.Message)
			if o.Answered != nil {
				o.Answered(a.Result, w.hub.options.Now().Sub(t.at), t.span.TraceID())
			}
		case ledger.Reemitted:
			w.reemits[a.Ticket] <- a // never blocks: one answer, and there is room for it
			delete(w.reemits, a.Ticket)
		case ledger.Relogged:
			w.hub.begun(w)
			w.relogs[a.Ticket] <- a // never blocks: as above
			delete(w.relogs, a.Ticket)
		case ledger.Notify:
			w.notify(&a.Notice)
			notified = true
			if a.Activated {
				w.hub.options.Log.Info("replication stream is active", "stream", w.id, "checkpoint", a.Notice.Checkpoint.Op, "position", a.Notice.Checkpoint.Position)
				w.hub.StatesChanged()
				w.hub.options.Catalog()
			}
			if a.Layer > 0 {
				w.hub.options.Log.Info("what was added to the stream is copied", "stream", w.id, "layers", a.Layer, "checkpoint", a.Notice.Checkpoint.Op, "position", a.Notice.Checkpoint.Position)
				w.hub.options.Catalog()
			}
		case ledger.Broken:
			w.hub.options.Log.Error("the chain of batches is broken, replication begins again from what is applied", "stream", w.id, "position", w.ledger.Head().Applied, "reason", a.Reason)
			w.hub.options.Revoke(w.id, a.Epoch)
		default:
			w.work <- a // never blocks: the ledger has one action under way
		}
	}
	if !notified {
		w.view.set(w.ledger.Head())
	}
	if o.Buffered != nil && w.live.Err() == nil {
		o.Buffered(w.id, w.ledger.Buffered())
	}
}

// notify publishes the checkpoint of n and makes it the head, in one step.
func (w *Writer) notify(n *model.CheckpointNotice) {
	v := &w.view
	v.mu.Lock()
	defer v.mu.Unlock()
	v.replace(w.ledger.Head())
	w.publish(n, w.traced.Traceparent())
	w.traced = nil
}

// publish numbers and publishes a notice of the view's head, and more of them
// if the write checkpoints that it reaches do not fit in one. The caller holds
// view.mu.
func (w *Writer) publish(n *model.CheckpointNotice, traceparent string) {
	w.publishOne(n, traceparent)
	for !w.custom && w.hub.waiting.near(w.Place(n.Checkpoint.Position)) {
		w.publishOne(&model.CheckpointNotice{Stream: n.Stream, Checkpoint: n.Checkpoint, CommitTime: n.CommitTime, Heartbeat: n.Heartbeat}, "")
	}
}

func (w *Writer) publishOne(n *model.CheckpointNotice, traceparent string) {
	v := &w.view
	v.sequence++
	n.Run, n.Sequence, n.StoredAt = w.hub.run, v.sequence, v.head.StoredAt
	if !w.custom {
		var overflow bool
		n.Reached, overflow = w.hub.waiting.reached(w.Place(n.Checkpoint.Position))
		if overflow {
			n.Buckets, n.Lookups, n.Everything = nil, nil, true
		}
	}
	w.hub.options.Publish(n, traceparent)
}

// perform does what the ledger says, one thing at a time.
func (w *Writer) perform() {
	for a := range w.work {
		w.done <- w.do(a) // never blocks: one event an action, and loop has room for it
	}
}

// retryPause is how long a failed store is left alone.
const retryPause = 100 * time.Millisecond

func (w *Writer) do(a ledger.Action) ledger.Event {
	// A commit under way is ended, not cut: its outcome would be unknown.
	ctx := context.WithoutCancel(w.hub.ctx)
	s := w.hub.store
	var err error
	switch a := a.(type) {
	case ledger.Load:
		var records []*ledger.Record
		if records, err = s.Records(ctx, w.id, a.Keys); err == nil {
			return ledger.Loaded{Records: records}
		}
	case ledger.LoadTable:
		var e ledger.TableLoaded
		if e.Rows, e.More, err = s.Table(ctx, w.id, a.Table, a.After, a.Limit); err == nil {
			return e
		}
	case ledger.LoadOps:
		var e ledger.OpsLoaded
		if e, err = store.LoadOps(ctx, s, w.id, a); err == nil {
			return e
		}
	case *ledger.Commit:
		start := w.hub.options.Now()
		a.Head.StoredAt = model.Micros(start.UnixMicro())
		if err = s.Commit(ctx, a); err == nil {
			if observe := w.hub.options.Observer.Committed; observe != nil {
				observe(a, w.hub.options.Now().Sub(start))
			}
			return ledger.Committed{}
		}
	default:
		panic(fmt.Sprintf("writer: unknown action %T", a))
	}
	return w.failed(ctx, err)
}

// failed reads what the store has after a failure, until it can be read.
func (w *Writer) failed(ctx context.Context, cause error) ledger.Event {
	var fenced *store.FencedError
	if errors.As(cause, &fenced) || errors.Is(cause, store.ErrNotReplicated) || errors.Is(cause, store.ErrNotOwner) {
		w.hub.options.Log.Info("commit refused", "stream", w.id, "reason", cause)
	} else {
		w.hub.options.Log.Error("commit failed", "stream", w.id, "error", cause)
	}
	if f := w.hub.options.Observer.Failed; f != nil && w.live.Err() == nil && !errors.Is(cause, store.ErrNotOwner) {
		f(w.id)
	}
	for {
		head, err := w.hub.store.Head(ctx, w.id)
		if err == nil || errors.Is(err, store.ErrNoStream) {
			w.lookSoon()
			return ledger.Failed{Head: head}
		}
		w.hub.options.Log.Error("read head after a failed commit", "stream", w.id, "error", err)
		select {
		case <-w.hub.ctx.Done():
			return ledger.Failed{Head: head}
		case <-time.After(retryPause):
		}
	}
}

// lookSoon makes loop look at the stream's state.
func (w *Writer) lookSoon() {
	select {
	case w.states <- struct{}{}:
	default:
	}
}
