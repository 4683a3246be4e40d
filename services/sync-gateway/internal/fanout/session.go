package fanout

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
)

// Sink takes the lines of one session to its client. Abort may be called at any
// time; the others are called by one goroutine at a time.
type Sink interface {
	// Send writes lines at once. It blocks while the client is slow, for a
	// bounded time; an error ends the session.
	Send(l *Lines) error
	// End ends the stream: cleanly if err is nil, else in whatever way says
	// that it broke off.
	End(err error)
	// Abort breaks the connection, so that a Send returns.
	Abort()
	// Sent is the number of bytes sent.
	Sent() int64
}

// Request is what a client asks for, verified.
type Request struct {
	Rules     rules.Request
	Who       Who
	UserKey   string                // of its write checkpoints
	Positions map[string]model.OpID // what it holds
	Form      chunk.Form
	Expires   time.Time // of its token
	// Keepalive adds token_expires_in lines about every 20 s.
	Keepalive bool
	// Log gets a line for each checkpoint at level debug; nil = none.
	Log *slog.Logger
	// Ended is called once, when nothing of the session runs any more.
	Ended func(Summary)
}

const (
	large = 100
	// maxNamed is how many buckets a line of the log names.
	maxNamed = 20
)

// mark is the state of a bucket that may have changed.
type mark struct {
	state model.BucketState
	known bool
}

// marks say what a session has not looked at yet. They are guarded by the hub.
type marks struct {
	at      model.Checkpoint // all of it holds at this checkpoint
	changed map[*entry]mark
	resolve bool // its lookups changed
	all     bool // anything may have changed
	write   bool
	id      uint64 // the write checkpoint, as taken
	since   int64  // when the first of them was set, in Unix ns; 0 = not known
	trace   string // of that one
	tick    bool   // the keepalive timer fired
	drain   bool   // it shall end once no checkpoint is half told
	end     error
	ended   bool
}

func (m *marks) set(e *entry, x mark) {
	if m.changed == nil {
		m.changed = make(map[*entry]mark, 1)
	}
	m.changed[e] = x
}

// from notes when the first mark was set, and of which trace it is.
func (m *marks) from(nanos int64, trace string) {
	if m.since == 0 {
		m.since, m.trace = nanos, trace
	}
}

// news reports whether there is something for a view.
func (m *marks) news() bool { return m.resolve || m.all || m.write || len(m.changed) > 0 }

// Session is one stream of lines.
type Session struct {
	hub     *Hub
	who     Who
	started time.Time
	sink    Sink
	log     *slog.Logger
	form    chunk.Form
	expires time.Time
	ticks   bool
	ended   func(Summary)
	stats   *Stats        // the hub's, unless it is the canary
	done    chan struct{} // closed when it has ended
	quit    chan struct{} // closed when it shall end
	sending atomic.Int64  // when the Send under way began, in Unix ns; 0 = none

	// Owned by the goroutine that runs.
	core    *session.Session
	querier Querier // nil once its answer cannot change
	streams []rules.StreamInfo
	chunk   *chunk.Chunk // of the data line that comes next
	summary Summary
	row     row    // of ops of one bucket
	told    bool   // token_expires_in 0 was sent
	caught  bool   // a checkpoint was completed
	since   int64  // when what it is telling changed, in Unix ns; 0 = not known
	trace   string // of that change; "" = none
	// added and sent are the last line that completes a checkpoint, by what is in
	// its view: of those that were added, and of those that were sent.
	added, sent struct {
		viewed     uint64
		checkpoint model.OpID
	}

	// Guarded by hub.mu.
	lag     lag
	at      model.Checkpoint // of the last view
	marks   marks
	redo    bool // a view was taken and not offered: the next must compare all
	running bool
	pace    pace
	pacer   *time.Timer // runs while news wait for the pace
	write   uint64
	user    *entry   // nil if it is the canary
	entries []*entry // buckets
	keys    []*entry // lookups
	timer   *time.Timer
}

// reserve is how much a client is warned before its token expires.
const reserve = 20 * time.Second

// Open reads the first checkpoint of a session. The session does nothing until
// it is started, and must be started or discarded. ErrStreamReplaced says that
// another hub has taken over.
func (h *Hub) Open(ctx context.Context, r Request) (*Session, error) {
	s := h.session(r, h.stats)
	q, err := h.plan.Querier(r.Rules)
	if err != nil {
		return nil, limit(err)
	}
	s.querier = q
	s.streams = q.Streams()
	// In the index before anything is read: what a notice tells from here on is
	// kept, and what an earlier one told is in what is read.
	h.mu.Lock()
	s.user = h.users.add(r.UserKey, s)
	h.mu.Unlock()
	for attempt := 0; ; attempt++ {
		err := s.first(ctx, r.UserKey)
		if err == nil {
			break
		}
		if replaced := h.replaced(); replaced || !errors.Is(err, backend.ErrInvalid) || attempt == 5 {
			h.mu.Lock()
			h.users.remove(s.user, s)
			h.mu.Unlock()
			if replaced {
				return nil, ErrStreamReplaced // whatever failed with it
			}
			return nil, err
		}
	}
	if q.Static() {
		s.querier = nil
	}
	return s, nil
}

func (h *Hub) session(r Request, stats *Stats) *Session {
	now := time.Now()
	return &Session{
		hub: h, who: r.Who, started: now, log: r.Log, form: r.Form, expires: r.Expires, ticks: r.Keepalive, ended: r.Ended, stats: stats,
		done: make(chan struct{}), quit: make(chan struct{}),
		core: session.New(r.Positions), summary: Summary{Started: now},
	}
}

// first reads everything at a checkpoint read now and takes the session's place
// in the index.
func (s *Session) first(ctx context.Context, userKey string) error {
	h := s.hub
	head, err := h.heads.Do(ctx)
	if err != nil {
		return err
	}
	at := head.Checkpoint
	if at == (model.Checkpoint{}) {
		return errs.New(errs.S2302, "No active sync config: it has no checkpoint yet").Retryable()
	}
	found, err := s.resolve(ctx, at)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var write []uint64
	var writeErr error
	if s.user != nil {
		wg.Go(func() { write, writeErr = h.reached.Do(ctx, at.Position, []string{userKey}) })
	} else {
		write = []uint64{uint64(head.State.Heartbeat)}
	}
	states, err := h.checksums.Do(ctx, at.Op, ids(found.Buckets))
	wg.Wait()
	if err = errors.Join(err, writeErr); err != nil {
		return err
	}
	view := session.View{Checkpoint: at.Op, WriteCheckpoint: write[0], Full: true, Buckets: buckets(found.Buckets)}
	for i := range view.Buckets {
		view.Buckets[i].State = states[i]
	}
	view.Streams = streams(s.streams, found.Errors)
	s.streams = nil
	s.summary.Buckets = len(view.Buckets)
	s.checkpoint("New checkpoint", &view, found.Results)

	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended != nil {
		return errs.New(errs.S2003, "Service is restarting").Retryable()
	}
	s.at, s.write = at, max(s.write, write[0])
	h.sessions[s] = struct{}{}
	s.stats.Sessions.Add(1)
	s.place(at, view.Buckets, found.Lookups)
	s.lag.concern(s.started)
	s.lag.view()
	s.core.Offer(view)
	if s.user == nil {
		h.canary = s
		s.beats(h.at, h.beat) // what came since the head was read
	}
	return nil
}

// Start sends what Open has read to sink, and everything after it.
func (s *Session) Start(sink Sink) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	s.sink = sink
	s.timer = time.AfterFunc(s.untilTick(time.Now()), func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		s.marks.tick = true
		s.wake()
	})
	s.wake()
}

// Discard ends a session that was not started.
func (s *Session) Discard() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.leave()
	close(s.done)
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Close asks the session to end for a reason: nil or ErrStreamReplaced or
// ErrDraining end it cleanly at the end of a line.
func (s *Session) Close(reason error) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.close(reason)
}

// close is Close under hub.mu.
func (s *Session) close(reason error) {
	if s.marks.ended {
		return
	}
	s.marks.end, s.marks.ended = reason, true
	close(s.quit)
	s.wake()
}

// drain asks the session to end when no checkpoint is half told, and to begin none.
// hub.mu is held.
func (s *Session) drain() {
	s.marks.drain = true
	s.wake()
}

func (s *Session) endSoon(reason error, after time.Duration) {
	s.hub.running.Add(1)
	go func() {
		defer s.hub.running.Done()
		select {
		case <-time.After(after):
			if errors.Is(reason, ErrDraining) {
				s.hub.mu.Lock()
				s.drain()
				s.hub.mu.Unlock()
			} else {
				s.Close(reason)
			}
		case <-s.done:
		case <-s.hub.ctx.Done():
		}
	}()
}

// wake makes the session run, unless it does or only has news that are early.
// hub.mu is held.
func (s *Session) wake() {
	if s.running || s.sink == nil {
		return
	}
	if s.pacer != nil {
		if !s.marks.tick && !s.marks.ended && !s.marks.drain && s.early() > 0 {
			return
		}
		s.pacer.Stop()
		s.pacer = nil
	}
	select {
	case <-s.done:
		return
	default:
	}
	s.running = true
	s.hub.running.Add(1)
	go s.run()
}

// lines are at rest here between the runs of sessions.
var lines = sync.Pool{New: func() any { return new(Lines) }}

const (
	// flushAt is how much is put together before it is sent.
	flushAt = 256 << 10
	// linger is how long lines wait for a chunk to go with them.
	linger = 3 * time.Millisecond
	// patience is how long a session tries to read again before it breaks off.
	patience = 30 * time.Second
)

// ErrDraining ends sessions because the process stops.
var ErrDraining = errors.New("service is restarting")

// ErrSlow is what a sink's Send returns when its client takes nothing, or next
// to nothing.
var ErrSlow = errors.New("client is too slow")

// errExpired ends a session because its token has.
var errExpired = errors.New("token expired")

// run does what there is to do and returns.
func (s *Session) run() {
	defer s.hub.running.Done()
	out := lines.Get().(*Lines)
	defer func() {
		s.drop(out)
		if cap(out.Plain) <= 64<<10 {
			lines.Put(out)
		}
	}()
	for {
		m, idle := s.take()
		if m.ended {
			if err := s.flush(out); err != nil {
				s.finish(err)
			} else {
				s.finish(m.end)
			}
			return
		}
		if m.tick {
			if s.tick(out) {
				err := s.flush(out)
				if err == nil {
					err = errExpired
				}
				s.finish(err)
				return
			}
		}
		if m.news() {
			if err := s.look(m); err != nil {
				s.finish(err)
				return
			}
		}
		switch a := s.core.Next(); a.Kind {
		case session.Send:
			s.add(out, a.Line)
			if out.Len() < flushAt {
				continue
			}
		case session.Get:
			c, err := s.fetch(a.Fetch, out)
			if err != nil {
				s.finish(err)
				return
			}
			if c == nil {
				continue // woken for something else
			}
			s.core.Chunk(c.Chunk)
			if c.Count > 0 && !c.Invalid {
				s.hub.chunks.Pin(c)
				s.chunk = c
				s.tally(a.Fetch.Bucket, c.Counts.Ops())
			}
			continue
		case session.Wait:
			if m.drain {
				err := s.flush(out)
				if err == nil {
					err = ErrDraining
				}
				s.finish(err)
				return
			}
			if out.Empty() && idle {
				if s.rest() {
					return
				}
				continue
			}
		}
		if err := s.flush(out); err != nil {
			s.finish(err)
			return
		}
	}
}

// take takes the marks, those for a view only if the core can use one now. idle
// says that there were none.
func (s *Session) take() (m marks, idle bool) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	m.tick, m.end, m.ended, m.drain = s.marks.tick, s.marks.end, s.marks.ended, s.marks.drain
	s.marks.tick = false
	s.lag.complete(s.sent.viewed, s.sent.checkpoint)
	if m.ended || m.drain || !s.marks.news() || !s.core.Ready() || s.early() > 0 {
		return m, !m.tick && !m.ended && (!s.marks.news() || s.core.Ready())
	}
	if s.since == 0 {
		s.since, s.trace = s.marks.since, s.marks.trace
	}
	m.changed, m.resolve, m.all, m.write = s.marks.changed, s.marks.resolve, s.marks.all || s.redo, s.marks.write
	s.at = later(s.at, s.marks.at)
	m.at, m.id = s.at, s.write
	s.marks = marks{}
	if s.lag.marked == s.lag.viewed {
		s.lag.concern(time.Now()) // marked by other things than a notice
	}
	s.lag.view()
	s.redo = true // until the view was offered
	return m, false
}

// early is how long the pace keeps the news from being looked at. What a client
// has written itself is never late. hub.mu is held.
func (s *Session) early() time.Duration {
	if s.marks.write {
		return 0
	}
	return s.pace.wait(time.Now())
}

// rest stops running, unless something has come up meanwhile.
func (s *Session) rest() bool {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.marks.tick || s.marks.ended || s.marks.drain {
		return false
	}
	if !s.core.Stale() {
		// A view that changes nothing for the client has no line.
		s.lag.complete(s.lag.viewed, s.at.Op)
	}
	if s.marks.news() {
		early := s.early()
		if early == 0 {
			return false
		}
		s.pacer = time.AfterFunc(early, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			s.wake()
		})
		s.running = false
		return true
	}
	if s.core.Stale() {
		// INV-19: a newer checkpoint is sent without waiting for the source.
		h.stale[s] = struct{}{}
		h.poke()
	}
	s.running = false
	return true
}

func (s *Session) add(out *Lines, l session.Line) {
	switch l := l.(type) {
	case session.Data:
		out.AddChunk(s.chunk)
		s.chunk = nil
		return
	case session.Complete:
		out.completed++
		s.added.viewed, s.added.checkpoint = s.lag.viewed, l.LastOp // only this goroutine changes viewed
	}
	out.Add(s.form.Line, l)
}

func (s *Session) flush(out *Lines) error {
	if out.Empty() {
		return nil
	}
	now := time.Now()
	if !s.told && !now.Before(s.expires) {
		// INV-33: what was not sent by now is not sent.
		s.drop(out)
		s.add(out, session.TokenExpiresIn{})
		s.told = true
		s.count(out)
		if err := s.sink.Send(out); err != nil {
			return err
		}
		return errExpired
	}
	s.count(out)
	before := s.sink.Sent()
	s.sending.Store(now.UnixNano())
	err := s.sink.Send(out)
	s.sending.Store(0)
	s.stats.SentBytes.Add(uint64(s.sink.Sent() - before))
	if out.completed > 0 && err == nil {
		s.timed()
	}
	s.drop(out)
	s.sent = s.added
	return err
}

// drop empties out and lets go of its chunks.
func (s *Session) drop(out *Lines) {
	for _, p := range out.Parts {
		if p.Chunk != nil {
			s.hub.chunks.Unpin(p.Chunk)
		}
	}
	out.Reset()
}

// tick adds a keepalive line and sets the timer again. It reports whether the
// token has expired.
func (s *Session) tick(out *Lines) bool {
	now := time.Now()
	left := max(0, int((s.expires.Sub(now)+time.Second-1)/time.Second))
	if left == 0 {
		s.drop(out)
		s.told = true
	}
	s.add(out, session.TokenExpiresIn{Seconds: left})
	if left == 0 {
		return true
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.timer.Reset(s.untilTick(now))
	return false
}

// untilTick is how long from now to the next token_expires_in line.
func (s *Session) untilTick(now time.Time) time.Duration {
	left := s.expires.Sub(now)
	next := left
	if left > reserve+time.Second {
		next = left - reserve
	}
	if s.ticks {
		next = min(next, 18*time.Second+rand.N(4*time.Second))
	}
	return max(next, 0)
}

// finish ends the session.
func (s *Session) finish(reason error) {
	h := s.hub
	if s.chunk != nil {
		h.chunks.Unpin(s.chunk)
		s.chunk = nil
	}
	h.mu.Lock()
	if errors.Is(s.marks.end, ErrSlow) {
		reason = ErrSlow // whatever its Send said when it was cut off
	}
	h.mu.Unlock()
	clean := reason == nil || errors.Is(reason, errExpired) || errors.Is(reason, ErrDraining) || errors.Is(reason, ErrStreamReplaced)
	if clean {
		s.sink.End(nil)
	} else {
		s.sink.End(reason)
	}
	h.mu.Lock()
	s.leave()
	// running stays true: the session's timer may still fire and must not wake
	// it again before done is closed.
	if !s.marks.ended {
		s.marks.ended = true
		close(s.quit)
	}
	h.mu.Unlock()
	if errors.Is(reason, ErrSlow) {
		s.stats.Dropped.Add(1)
	}
	s.summary.Reason = reason
	s.summary.SentBytes = s.sink.Sent()
	if s.ended != nil {
		s.ended(s.summary)
	}
	close(s.done)
}

// leave takes the session out of the index. hub.mu is held.
func (s *Session) leave() {
	h := s.hub
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.pacer != nil {
		s.pacer.Stop()
		s.pacer = nil
	}
	for _, e := range s.entries {
		h.buckets.remove(e, s)
	}
	for _, e := range s.keys {
		h.keys.remove(e, s)
	}
	if s.user != nil {
		h.users.remove(s.user, s)
	}
	s.entries, s.keys, s.user = nil, nil, nil
	delete(h.stale, s)
	delete(h.sessions, s)
	if h.canary == s {
		h.canary = nil
	}
	s.stats.Sessions.Add(-1)
}
