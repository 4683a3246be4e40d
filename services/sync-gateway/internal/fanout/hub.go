// Package fanout wakes the sessions that a checkpoint concerns, and no others,
// and drives each of them with libs/core/session (DESIGN.md decision 4).
//
// A Hub serves one replication stream. It keeps an index from bucket, parameter
// lookup and user key to sessions. A checkpoint notice leads to one read of the
// checksums of those buckets it names that somebody holds; then the sessions
// concerned are marked, all at once, and woken. A session runs in a goroutine
// only while it has something to do.
//
// Invariants:
//
//   - INV-29: a notice is a hint. A gap, another run, silence or a new
//     connection to NATS leads to a read of the head and a comparison of
//     everything (TestGap, TestSilence).
//   - D1, INV-25: what a session is told of one checkpoint is whole: marks are
//     set and taken under one lock (TestWholeCheckpoint).
//   - A session misses nothing between the reads that it starts from and its
//     place in the index (TestRegisterLate).
//   - D8, INV-30: a slow session holds one batch of lines and one set of marks,
//     bounded by its buckets, and delays nobody (TestSlowClient). If slow ones
//     hold all the memory there is for chunks, the slowest go (TestRelieve).
//   - A client under steady writes begins at most ten checkpoints a second, after
//     a burst (TestPace).
//   - INV-33: no line but token_expires_in 0 after the token's expiry
//     (TestExpiry).
//   - The first checkpoint of a stream is read after the client came
//     (TestFreshHead).
//   - A heartbeat that is noticed goes through a session like any client's, and
//     shows in no count of clients (TestCanary).
package fanout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/gather"
)

// Reader reads one replication stream.
type Reader interface {
	Head(ctx context.Context) (backend.Head, error)
	Lookups(ctx context.Context, checkpoint model.OpID, keys []string, limit int) ([][]string, error)
	Checksums(ctx context.Context, checkpoint model.OpID, buckets []string) ([]model.BucketState, error)
	Reached(ctx context.Context, position model.Position, userKeys []string) ([]uint64, error)
}

// Plan finds the buckets of a request: a compiled sync config.
type Plan interface {
	Querier(rules.Request) (Querier, error)
}

// Querier finds the buckets of one connection.
type Querier interface {
	Streams() []rules.StreamInfo
	Static() bool
	Resolve(lookup func(keys []string) ([][]string, error)) (*rules.Buckets, error)
}

// Feed delivers the checkpoint notices of a stream, in order.
type Feed interface {
	// Subscribe calls deliver for each notice, with its span, which the hub ends,
	// and lost whenever notices may
	// have been lost, until stop is called.
	Subscribe(stream model.StreamID, deliver func(model.CheckpointNotice, *trace.Span), lost func()) (stop func(), err error)
}

// Limits of a session.
type Limits struct {
	Buckets int // unique buckets
	Results int // parameter results
}

// Stats count what hubs do. They outlive hubs.
type Stats struct {
	Sessions   atomic.Int64
	Notices    atomic.Uint64
	Reads      atomic.Uint64 // calls of bucket-store
	Compared   atomic.Uint64 // comparisons of everything
	Wakeups    atomic.Uint64 // of sessions, by notices
	Deliveries atomic.Uint64 // checkpoints completed
	Superseded atomic.Uint64 // checkpoints replaced while being sent
	Dropped    atomic.Uint64 // sessions cut off for being slow
	Vanished   atomic.Uint64 // connections whose client is not heard any more
	Ops        atomic.Uint64
	PlainBytes atomic.Uint64
	SentBytes  atomic.Uint64
	// Caught is called when a stream has told its client of what had changed, with
	// the time since then and the id of the change's trace, "" if it has none; Opened
	// at a stream's first checkpoint, with the time since the client came. nil = nobody
	// wants to know.
	Caught func(took time.Duration, trace string)
	Opened func(time.Duration)
}

// Hub serves the sessions of one replication stream.
type Hub struct {
	Stream model.StreamID

	plan   Plan
	reader Reader
	chunks *chunk.Cache
	limits Limits
	stats  *Stats
	log    *slog.Logger

	heads     gather.Fresh[backend.Head]
	lookups   gather.Gather[model.OpID, string, []string]
	checksums gather.Gather[model.OpID, string, model.BucketState]
	reached   gather.Gather[model.Position, string, uint64]

	running sync.WaitGroup // goroutines of sessions and of reads
	signal  chan struct{}  // capacity 1: there is something in the inbox

	mu       sync.Mutex
	ctx      context.Context // of Run: sessions read under it
	ended    error           // why no session is taken any more
	at       model.Checkpoint
	buckets  index
	keys     index
	users    index
	sessions map[*Session]struct{}
	recent   []change
	beat     model.Micros // newest heartbeat noticed
	canary   *Session     // nil until it is open
	inbox    inbox
	stale    map[*Session]struct{} // want a checkpoint newer than theirs
}

// inbox is what notices have said since the hub last looked.
type inbox struct {
	run, sequence uint64 // of the last notice seen
	known         bool   // run and sequence are set
	reread        bool   // the head must be read
	heard         time.Time
	span          *trace.Span // of the newest notice that has one
	change
}

// change is what one or several notices in a row say.
type change struct {
	at         model.Checkpoint
	any        bool
	everything bool
	buckets    map[string]struct{}
	lookups    map[string]struct{}
	reached    map[string]uint64
	beat       model.Micros
}

// maxChange is how many names a change may have before it counts as everything.
const maxChange = 200_000

// Options of a hub.
type Options struct {
	Stream model.StreamID
	Plan   Plan
	// From is a checkpoint that has all that Plan gives: none before it is read.
	From   model.Checkpoint
	Reader Reader
	Chunks *chunk.Cache
	Limits Limits
	Stats  *Stats
	Log    *slog.Logger
}

// NewHub returns a hub that serves once Run runs.
func NewHub(ctx context.Context, o Options) *Hub {
	h := &Hub{
		Stream: o.Stream, plan: o.Plan, reader: o.Reader, chunks: o.Chunks, limits: o.Limits, stats: o.Stats, log: o.Log,
		signal: make(chan struct{}, 1), ctx: ctx,
		buckets: index{}, keys: index{}, users: index{}, sessions: map[*Session]struct{}{}, stale: map[*Session]struct{}{},
	}
	h.heads.Readers = &h.running
	h.heads.Read = func(ctx context.Context) (backend.Head, error) {
		ctx, cancel := h.bound(ctx)
		defer cancel()
		for {
			head, err := h.reader.Head(ctx)
			if err != nil || !after(o.From, head.Checkpoint) {
				return head, err
			}
			// It is stored, and the store is about to tell of it.
			select {
			case <-time.After(headPause):
			case <-ctx.Done():
				return head, ctx.Err()
			}
		}
	}
	h.lookups.Calls, h.lookups.Keys, h.lookups.Carriers = 4, 2000, &h.running
	h.lookups.Call = h.readLookups
	h.checksums.Calls, h.checksums.Keys, h.checksums.Carriers = 4, 5000, &h.running
	h.checksums.Call = timed(h, h.reader.Checksums)
	h.reached.Calls, h.reached.Keys, h.reached.Carriers = 2, 5000, &h.running
	h.reached.Call = timed(h, h.reader.Reached)
	return h
}

// headPause is the wait for a checkpoint that is stored and not told of yet.
const headPause = 5 * time.Millisecond

// readTimeout bounds one read of the store.
const readTimeout = 15 * time.Second

// bound ends a read after readTimeout, and with the hub: a shared read has no
// other context than those of its callers, and a stop must not wait for a store
// that is away.
func (h *Hub) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	stop := context.AfterFunc(h.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

func timed[G, K, V any](h *Hub, do func(context.Context, G, []K) ([]V, error)) func(context.Context, G, []K) ([]V, error) {
	return func(ctx context.Context, g G, keys []K) ([]V, error) {
		ctx, cancel := h.bound(ctx)
		defer cancel()
		return do(ctx, g, keys)
	}
}

// readLookups bounds the answer by what all its callers may get, about: the
// querier of each counts exactly.
func (h *Hub) readLookups(ctx context.Context, at model.OpID, keys []string) ([][]string, error) {
	ctx, cancel := h.bound(ctx)
	defer cancel()
	limit := 0
	if h.limits.Results > 0 {
		limit = (h.limits.Results + 1) * max(len(keys), 2)
	}
	return h.reader.Lookups(ctx, at, keys, limit)
}

// ErrStreamReplaced ends the sessions of a stream that another has replaced:
// their clients come back and get the new one.
var ErrStreamReplaced = errors.New("another sync config has become active")

// Run follows the notices of the stream until ctx ends, then breaks off the
// sessions that are left.
func (h *Hub) Run(ctx context.Context, feed Feed) error {
	h.mu.Lock()
	h.inbox.reread, h.inbox.heard = true, time.Now()
	h.mu.Unlock()
	stop, err := feed.Subscribe(h.Stream, h.deliver, h.lost)
	if err != nil {
		return fmt.Errorf("subscribe to notices of stream %d: %w", h.Stream, err)
	}
	defer stop()
	tick := time.NewTicker(silence / 3)
	defer tick.Stop()
	h.poke()
	for {
		select {
		case <-h.signal:
		case now := <-tick.C:
			h.listen(now)
		case <-ctx.Done():
			h.End(context.Cause(ctx), 0)
			h.mu.Lock()
			left := make([]*Session, 0, len(h.sessions))
			for s := range h.sessions {
				if s.sink != nil {
					left = append(left, s)
				}
			}
			h.mu.Unlock()
			for _, s := range left {
				s.sink.Abort()
			}
			h.running.Wait()
			return nil
		}
		h.work(ctx)
	}
}

// silence is how long no notice may come before the head is read: the store
// sends one about every second.
const silence = 3 * time.Second

func (h *Hub) listen(now time.Time) {
	if h.chunks.Full() {
		h.relieve(now)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.inbox.heard) >= silence {
		h.inbox.heard = now
		h.inbox.reread = true
	}
}

// grace is how long a send may take while clients hold all the memory there is
// for them.
const grace = 5 * time.Second

// relieve cuts off the slowest half of the clients that are slow, so that the
// others get on (D8).
func (h *Hub) relieve(now time.Time) {
	type waiting struct {
		session *Session
		since   int64
	}
	var slow []waiting
	h.mu.Lock()
	for s := range h.sessions {
		if since := s.sending.Load(); since != 0 && now.UnixNano()-since >= int64(grace) {
			slow = append(slow, waiting{s, since})
		}
	}
	slices.SortFunc(slow, func(a, b waiting) int { return cmp.Compare(a.since, b.since) })
	slow = slow[:(len(slow)+1)/2]
	for _, w := range slow {
		w.session.close(ErrSlow)
	}
	h.mu.Unlock()
	for _, w := range slow {
		w.session.sink.Abort()
	}
}

func (h *Hub) poke() {
	select {
	case h.signal <- struct{}{}:
	default: // it is awake already
	}
}

func (h *Hub) lost() {
	h.mu.Lock()
	h.inbox.reread = true
	h.mu.Unlock()
	h.poke()
}

// deliver puts a notice into the inbox. It never blocks.
func (h *Hub) deliver(n model.CheckpointNotice, span *trace.Span) {
	h.stats.Notices.Add(1)
	h.mu.Lock()
	b := &h.inbox
	b.heard = time.Now()
	switch {
	case b.known && n.Run == b.run && n.Sequence <= b.sequence:
		h.mu.Unlock()
		span.End()
		return // contained in a head that was read, or sent twice
	case !b.known || n.Run != b.run || n.Sequence != b.sequence+1:
		n.Everything = true
	}
	b.run, b.sequence, b.known = n.Run, n.Sequence, true
	b.add(n)
	if span != nil {
		b.span.End() // told together with this one
		b.span = span
	}
	h.mu.Unlock()
	h.poke()
}

func (c *change) add(n model.CheckpointNotice) {
	c.any = true
	c.everything = c.everything || n.Everything
	c.at = later(c.at, n.Checkpoint)
	c.beat = max(c.beat, n.Heartbeat)
	if c.buckets == nil {
		c.buckets, c.lookups, c.reached = map[string]struct{}{}, map[string]struct{}{}, map[string]uint64{}
	}
	for _, b := range n.Buckets {
		c.buckets[b] = struct{}{}
	}
	for _, l := range n.Lookups {
		c.lookups[l] = struct{}{}
	}
	for _, w := range n.Reached {
		c.reached[w.UserKey] = max(c.reached[w.UserKey], w.ID)
	}
	if len(c.buckets)+len(c.lookups) > maxChange {
		c.everything, c.buckets, c.lookups = true, map[string]struct{}{}, map[string]struct{}{}
	}
}

// later is the later of two checkpoints of one stream, whose parts only grow.
func later(a, b model.Checkpoint) model.Checkpoint {
	return model.Checkpoint{Op: max(a.Op, b.Op), Position: max(a.Position, b.Position)}
}

// after reports whether a says anything that b does not.
func after(a, b model.Checkpoint) bool { return a.Op > b.Op || a.Position > b.Position }

// work applies what is in the inbox, until it is empty.
func (h *Hub) work(ctx context.Context) {
	pause := 20 * time.Millisecond
	for ctx.Err() == nil {
		h.mu.Lock()
		c, reread, waiting := h.inbox.change, h.inbox.reread, len(h.stale) > 0
		h.inbox.change, h.inbox.reread = change{}, false
		span := h.inbox.span
		h.inbox.span = nil
		h.mu.Unlock()
		if !c.any && !reread && !waiting {
			return
		}
		err := h.apply(span.In(ctx), c, reread || waiting)
		span.Error(err)
		span.End()
		if err == nil {
			h.mu.Lock()
			waiting = len(h.stale) > 0
			h.mu.Unlock()
			if !waiting {
				pause = 20 * time.Millisecond
				continue
			}
		} else {
			if ctx.Err() != nil {
				return
			}
			h.log.Warn("cannot follow checkpoints; trying again", "stream", int64(h.Stream), "error", err)
			h.mu.Lock()
			h.inbox.reread, h.inbox.everything, h.inbox.any = true, true, true
			h.inbox.at = later(h.inbox.at, c.at)
			h.mu.Unlock()
		}
		// Either the store is away, or a session waits for a checkpoint that is
		// not there yet.
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, time.Second)
	}
}

// apply brings the hub to the checkpoint of c, or to the head.
func (h *Hub) apply(ctx context.Context, c change, reread bool) error {
	if reread {
		head, err := h.heads.Do(ctx)
		if err != nil {
			return err
		}
		h.mu.Lock()
		b := &h.inbox
		if !b.known || b.run != head.Run || b.sequence < head.Sequence {
			// Notices were lost, or are yet to come and then are old.
			b.run, b.sequence, b.known = head.Run, head.Sequence, true
			c.any, c.everything = true, true
		}
		if c.everything {
			// Only then: a list of changes goes no further than its notice.
			c.at = later(c.at, head.Checkpoint)
			c.beat = max(c.beat, head.State.Heartbeat)
		}
		for s := range h.stale {
			if after(head.Checkpoint, s.at) {
				delete(h.stale, s)
				s.marks.all, s.marks.at = true, later(s.marks.at, head.Checkpoint)
				s.wake()
			}
		}
		h.mu.Unlock()
	}
	if !c.any {
		return nil
	}
	names, users := h.concerned(c)
	states := make(map[string]model.BucketState, len(names))
	for part := range chunks(names, 5000) {
		got, err := h.checksums.Do(ctx, c.at.Op, part)
		if errors.Is(err, backend.ErrInvalid) {
			// Compaction has passed this checkpoint: drop it, and compare
			// everything at a newer one (spec/02 §6).
			h.mu.Lock()
			h.inbox.reread, h.inbox.any, h.inbox.everything = true, true, true
			h.mu.Unlock()
			return fmt.Errorf("checkpoint %d: %w", c.at.Op, err)
		}
		if err != nil {
			return err
		}
		for i, name := range part {
			states[name] = got[i]
		}
	}
	if c.everything && len(users) > 0 {
		c.reached = map[string]uint64{}
		for part := range chunks(users, 5000) {
			got, err := h.reached.Do(ctx, c.at.Position, part)
			if err != nil {
				return err
			}
			for i, u := range part {
				c.reached[u] = got[i]
			}
		}
	}
	if c.everything {
		h.stats.Compared.Add(1)
	}
	h.mark(c, states, trace.From(ctx).TraceID())
	return nil
}

// concerned lists the held buckets, and with everything the user keys, that c
// may have changed.
func (h *Hub) concerned(c change) (buckets, users []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !c.everything {
		for b := range c.buckets {
			if h.buckets[b] != nil {
				buckets = append(buckets, b)
			}
		}
		return buckets, nil
	}
	for b := range h.buckets {
		buckets = append(buckets, b)
	}
	for u := range h.users {
		users = append(users, u)
	}
	return buckets, users
}

// mark tells the sessions concerned, all at once, and wakes them. trace is the id
// of what c is part of.
func (h *Hub) mark(c change, states map[string]model.BucketState, trace string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = later(h.at, c.at)
	now := time.Now()
	h.remember(c)
	woken := map[*Session]struct{}{}
	wake := func(s *Session) {
		if _, ok := woken[s]; !ok {
			woken[s] = struct{}{}
			s.marks.from(now.UnixNano(), trace)
			s.lag.concern(now)
		}
	}
	touch := func(s *Session) bool {
		if !after(c.at, s.at) {
			return false // it started from a later read
		}
		s.marks.at = later(s.marks.at, c.at)
		wake(s)
		return true
	}
	bucket := func(e *entry) {
		state, known := states[e.name]
		if known && c.everything && e.known && e.state == state {
			return // most are as they were
		}
		e.state, e.known = state, known
		e.sessions.each(func(s *Session) {
			if touch(s) {
				s.marks.set(e, mark{state, known})
			}
		})
	}
	resolve := func(e *entry) {
		e.sessions.each(func(s *Session) {
			if touch(s) {
				s.marks.resolve = true
			}
		})
	}
	if c.everything {
		for _, e := range h.buckets {
			bucket(e)
		}
		for _, e := range h.keys {
			resolve(e)
		}
	} else {
		for name := range c.buckets {
			if e := h.buckets[name]; e != nil {
				bucket(e)
			}
		}
		for name := range c.lookups {
			if e := h.keys[name]; e != nil {
				resolve(e)
			}
		}
	}
	for user, id := range c.reached {
		e := h.users[user]
		if e == nil {
			continue
		}
		e.sessions.each(func(s *Session) {
			if id > s.write {
				s.write = id
				// A write checkpoint holds for later checkpoints as well, so it
				// is told even to a session that is ahead of this notice.
				s.marks.at = later(later(s.marks.at, c.at), s.at)
				s.marks.write = true
				wake(s)
			}
		})
	}
	for s := range woken {
		s.wake()
		s.stats.Wakeups.Add(1)
	}
	if c.beat > h.beat {
		h.beat = c.beat
		h.canary.beats(c.at, c.beat)
	}
}

// chunks cuts a list into parts of at most n.
func chunks[T any](list []T, n int) func(func([]T) bool) {
	return func(yield func([]T) bool) {
		for len(list) > 0 {
			m := min(n, len(list))
			if !yield(list[:m:m]) {
				return
			}
			list = list[m:]
		}
	}
}

// End asks all sessions to end, spread over a time with some jitter: nil or
// ErrStreamReplaced as the reason is a clean end. They end at the end of a line,
// and with ErrDraining and a time, at the end of a checkpoint, if it takes longer
// than that; another End does not wait for it. No session is taken after it.
func (h *Hub) End(reason error, spread time.Duration) {
	if reason == nil {
		reason = ErrStreamReplaced
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended == nil {
		h.ended = reason
	}
	n, i := len(h.sessions), 0
	for s := range h.sessions {
		if spread <= 0 {
			s.close(reason)
		} else {
			s.endSoon(reason, time.Duration((float64(i)+rand.Float64())/float64(n)*float64(spread)))
		}
		i++
	}
}

func (h *Hub) replaced() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Is(h.ended, ErrStreamReplaced)
}

// Sessions is the number of sessions.
func (h *Hub) Sessions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.canary != nil {
		return len(h.sessions) - 1
	}
	return len(h.sessions)
}

// Applied is the checkpoint that sessions are told of.
func (h *Hub) Applied() model.Checkpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}
