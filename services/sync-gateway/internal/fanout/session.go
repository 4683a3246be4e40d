package fanout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
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
	UserKey   string                // of its write checkpoints
	Positions map[string]model.OpID // what it holds
	Form      chunk.Form
	Expires   time.Time // of its token
	// Keepalive adds token_expires_in lines about every 20 s.
	Keepalive bool
	// Ended is called once, when nothing of the session runs any more.
	Ended func(Summary)
}

// Summary is what a session did.
type Summary struct {
	Reason     error // why it ended; io.EOF = the client went, nil = the token expired
	Counts     line.Counts
	PlainBytes int64
	SentBytes  int64
	Buckets    int
	Completed  int
	Superseded int
	Started    time.Time
}

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
	tick    bool   // the keepalive timer fired
	end     error
	ended   bool
}

func (m *marks) set(e *entry, x mark) {
	if m.changed == nil {
		m.changed = make(map[*entry]mark, 1)
	}
	m.changed[e] = x
}

// news reports whether there is something for a view.
func (m *marks) news() bool { return m.resolve || m.all || m.write || len(m.changed) > 0 }

// Session is one stream of lines.
type Session struct {
	hub     *Hub
	sink    Sink
	form    chunk.Form
	expires time.Time
	ticks   bool
	ended   func(Summary)
	done    chan struct{} // closed when it has ended
	quit    chan struct{} // closed when it shall end

	// Owned by the goroutine that runs.
	core    *session.Session
	querier Querier // nil once its answer cannot change
	streams []rules.StreamInfo
	chunk   *chunk.Chunk // of the data line that comes next
	summary Summary
	told    bool // token_expires_in 0 was sent

	// Guarded by hub.mu.
	at      model.Checkpoint // of the last view
	marks   marks
	redo    bool // a view was taken and not offered: the next must compare all
	running bool
	write   uint64
	user    *entry
	entries []*entry // buckets
	keys    []*entry // lookups
	timer   *time.Timer
}

// reserve is how much a client is warned before its token expires.
const reserve = 20 * time.Second

// Open reads the first checkpoint of a session. The session does nothing until
// it is started, and must be started or discarded.
func (h *Hub) Open(ctx context.Context, r Request) (*Session, error) {
	s := &Session{
		hub: h, form: r.Form, expires: r.Expires, ticks: r.Keepalive, ended: r.Ended,
		done: make(chan struct{}), quit: make(chan struct{}),
		core: session.New(r.Positions), summary: Summary{Started: time.Now()},
	}
	q, err := h.plan.Querier(r.Rules)
	if err != nil {
		return nil, limit(err)
	}
	s.querier = q
	s.streams = q.Streams()
	for attempt := 0; ; attempt++ {
		err := s.first(ctx, r.UserKey)
		if err == nil {
			break
		}
		if !errors.Is(err, backend.ErrInvalid) || attempt == 5 {
			return nil, err
		}
	}
	if q.Static() {
		s.querier = nil
	}
	return s, nil
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
	wg.Go(func() { write, writeErr = h.reached.Do(ctx, at.Position, []string{userKey}) })
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

	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended != nil {
		return errs.New(errs.S2003, "Service is restarting").Retryable()
	}
	s.at, s.write = at, write[0]
	s.user = h.users.add(userKey, s)
	h.sessions[s] = struct{}{}
	h.stats.Sessions.Add(1)
	s.place(at, view.Buckets, found.Lookups)
	if missed, ok := h.missed(at); ok {
		for _, c := range missed {
			if id := c.reached[userKey]; id > s.write {
				s.write, s.marks.write, s.marks.at = id, true, later(s.marks.at, h.at)
			}
		}
	}
	s.core.Offer(view)
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

func (s *Session) endSoon(reason error, after time.Duration) {
	s.hub.running.Add(1)
	go func() {
		defer s.hub.running.Done()
		select {
		case <-time.After(after):
			s.Close(reason)
		case <-s.done:
		case <-s.hub.ctx.Done():
		}
	}()
}

// wake makes the session run, unless it does. hub.mu is held.
func (s *Session) wake() {
	if s.running || s.sink == nil {
		return
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
		out.Reset()
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
			s.chunk = c
			continue
		case session.Wait:
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
	m.tick, m.end, m.ended = s.marks.tick, s.marks.end, s.marks.ended
	s.marks.tick = false
	if m.ended || !s.marks.news() || !s.core.Ready() {
		return m, !m.tick && !m.ended && !s.marks.news()
	}
	m.changed, m.resolve, m.all, m.write = s.marks.changed, s.marks.resolve, s.marks.all || s.redo, s.marks.write
	s.at = later(s.at, s.marks.at)
	m.at, m.id = s.at, s.write
	s.marks = marks{}
	s.redo = true // until the view was offered
	return m, false
}

// rest stops running, unless something has come up meanwhile.
func (s *Session) rest() bool {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.marks.tick || s.marks.ended || s.marks.news() {
		return false
	}
	if s.core.Stale() {
		// INV-19: a newer checkpoint is sent without waiting for the source.
		h.stale[s] = struct{}{}
		h.poke()
	}
	s.running = false
	return true
}

// look reads what the marks point to and offers it to the core.
func (s *Session) look(m marks) error {
	deadline := time.Now().Add(patience)
	pause := 20 * time.Millisecond
	for {
		err := s.view(s.hub.ctx, m)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, backend.ErrInvalid):
			// The checkpoint is dropped without a line; everything is read again
			// at the next (spec/02 §6).
			s.hub.mu.Lock()
			s.hub.stale[s] = struct{}{}
			s.hub.poke()
			s.hub.mu.Unlock()
			return nil
		case errs.CodeOf(err) == errs.S2305 || time.Now().After(deadline):
			return err
		}
		select {
		case <-time.After(pause):
		case <-s.quit:
			return nil
		case <-s.hub.ctx.Done():
			return s.hub.ctx.Err()
		}
		pause = min(2*pause, time.Second)
	}
}

// view builds the view of m and offers it.
func (s *Session) view(ctx context.Context, m marks) error {
	h := s.hub
	v := session.View{Checkpoint: m.at.Op, WriteCheckpoint: m.id}
	var unknown []string
	if (m.resolve || m.all) && s.querier != nil {
		found, err := s.resolve(ctx, m.at)
		if err != nil {
			return err
		}
		v.Full, v.Buckets = true, buckets(found.Buckets)
		known := make(map[string]model.BucketState, len(m.changed))
		for e, x := range m.changed {
			if x.known {
				known[e.name] = x.state
			} else {
				unknown = append(unknown, e.name)
			}
		}
		slices.Sort(unknown)
		var need []int
		for i := range v.Buckets {
			id := v.Buckets[i].ID
			if state, ok := known[id]; ok && !m.all {
				v.Buckets[i].State = state
				continue
			}
			if state, ok := s.core.State(id); ok && !m.all {
				if _, ask := slices.BinarySearch(unknown, id); !ask {
					v.Buckets[i].State = state
					continue
				}
			}
			need = append(need, i)
		}
		names := make([]string, len(need))
		for j, i := range need {
			names[j] = v.Buckets[i].ID
		}
		states, err := h.checksums.Do(ctx, m.at.Op, names)
		if err != nil {
			return err
		}
		for j, i := range need {
			v.Buckets[i].State = states[j]
		}
		h.mu.Lock()
		s.place(m.at, v.Buckets, found.Lookups)
		h.mu.Unlock()
		s.summary.Buckets = len(v.Buckets)
	} else {
		if m.all {
			unknown = s.core.IDs(nil)
		} else {
			for e, x := range m.changed {
				if x.known {
					v.Buckets = append(v.Buckets, session.Bucket{ID: e.name, State: x.state})
				} else {
					unknown = append(unknown, e.name)
				}
			}
		}
		states, err := h.checksums.Do(ctx, m.at.Op, unknown)
		if err != nil {
			return err
		}
		for i, id := range unknown {
			v.Buckets = append(v.Buckets, session.Bucket{ID: id, State: states[i]})
		}
	}
	sending := s.core.Sending()
	if s.core.Offer(v) && sending {
		s.summary.Superseded++
		h.stats.Superseded.Add(1)
	}
	h.mu.Lock()
	s.redo = false
	h.mu.Unlock()
	return nil
}

// resolve finds the session's buckets at a checkpoint.
func (s *Session) resolve(ctx context.Context, at model.Checkpoint) (*rules.Buckets, error) {
	found, err := s.querier.Resolve(func(keys []string) ([][]string, error) {
		return s.hub.lookups.Do(ctx, at.Op, keys)
	})
	if err != nil {
		return nil, limit(err)
	}
	if n := s.hub.limits.Buckets; n > 0 && len(found.Buckets) > n {
		by := map[string]int{}
		for i := range found.Buckets {
			by[found.Buckets[i].Definition]++
		}
		return nil, limit(&rules.LimitError{Message: fmt.Sprintf("Too many buckets: %d (limit of %d)", len(found.Buckets), n), ByDefinition: by})
	}
	return found, nil
}

// limit gives a bound's error its code, and the definitions that exceed it.
func limit(err error) error {
	var e *rules.LimitError
	if !errors.As(err, &e) {
		return err
	}
	type count struct {
		name string
		n    int
	}
	var counts []count
	for name, n := range e.ByDefinition {
		counts = append(counts, count{name, n})
	}
	slices.SortFunc(counts, func(a, b count) int {
		if a.n != b.n {
			return b.n - a.n
		}
		return strings.Compare(a.name, b.name)
	})
	msg := e.Message
	const most = 10
	for i, c := range counts {
		switch {
		case i == most:
			rest := 0
			for _, c := range counts[most:] {
				rest += c.n
			}
			msg += fmt.Sprintf("; and %d more from %d others", rest, len(counts)-most)
		case i > most:
		case i == 0:
			msg += fmt.Sprintf(": %s %d", c.name, c.n)
		default:
			msg += fmt.Sprintf(", %s %d", c.name, c.n)
		}
	}
	return errs.Wrap(errs.S2305, err, "%s", msg)
}

// place makes the session's entries in the index those of a list that was read
// at a checkpoint, and marks what may have changed between it and the hub's.
// hub.mu is held.
func (s *Session) place(at model.Checkpoint, list []session.Bucket, lookups []string) {
	h := s.hub
	missed, ok := h.missed(at)
	fresh := false
	old := make(map[string]*entry, len(s.entries))
	for _, e := range s.entries {
		old[e.name] = e
	}
	entries := make([]*entry, len(list))
	for i := range list {
		b := &list[i]
		e := old[b.ID]
		if e == nil {
			e = h.buckets.add(b.ID, s)
			fresh = true
			for _, c := range missed {
				if _, changed := c.buckets[b.ID]; changed {
					s.marks.set(e, mark{})
					s.marks.at = later(s.marks.at, h.at)
				}
			}
		} else {
			delete(old, b.ID)
		}
		if !e.known && !after(h.at, at) && !after(at, h.at) {
			e.state, e.known = b.State, true
		} else if e.state != b.State {
			e.known = false
		}
		b.ID = e.name // one copy of the text for all sessions
		entries[i] = e
	}
	for _, e := range old {
		h.buckets.remove(e, s)
		delete(s.marks.changed, e)
	}
	s.entries = entries

	clear(old)
	for _, e := range s.keys {
		old[e.name] = e
	}
	keys := make([]*entry, 0, len(lookups))
	for _, k := range lookups {
		e := old[k]
		if e == nil {
			e = h.keys.add(k, s)
			fresh = true
			for _, c := range missed {
				if _, changed := c.lookups[k]; changed {
					s.marks.resolve = true
					s.marks.at = later(s.marks.at, h.at)
				}
			}
		} else {
			delete(old, k)
		}
		keys = append(keys, e)
	}
	for _, e := range old {
		h.keys.remove(e, s)
	}
	s.keys = keys
	if fresh && !ok {
		s.marks.all = true
		s.marks.at = later(s.marks.at, h.at)
	}
}

// fetch returns the chunk that f asks for, or nil if the session was woken for
// something that comes first. Lines that wait go out before a long wait.
func (s *Session) fetch(f session.Fetch, out *Lines) (*chunk.Chunk, error) {
	h := s.hub
	deadline := time.Now().Add(patience)
	pause := 20 * time.Millisecond
	for {
		c, flight := h.chunks.Get(f, s.form, s.core.Ahead)
		if c != nil {
			return c, nil
		}
		if !out.Empty() {
			t := time.NewTimer(linger)
			select {
			case <-flight.Done():
				t.Stop()
			case <-t.C:
				if err := s.flush(out); err != nil {
					return nil, err
				}
			}
		}
		if woken, err := s.await(flight); woken || err != nil {
			return nil, err
		}
		c, err := flight.Result()
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, chunk.ErrAgain):
			continue
		case time.Now().After(deadline):
			return nil, errs.Wrap(errs.S2403, err, "Timeout while waiting for data")
		}
		select {
		case <-time.After(pause):
		case <-s.quit:
			return nil, nil
		case <-h.ctx.Done():
			return nil, h.ctx.Err()
		}
		pause = min(2*pause, time.Second)
	}
}

// await waits for a flight. It returns early if the session shall end or its
// timer has fired.
func (s *Session) await(f *chunk.Flight) (woken bool, err error) {
	select {
	case <-f.Done():
		return false, nil
	default:
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-f.Done():
			return false, nil
		case <-s.quit:
			return true, nil
		case <-s.hub.ctx.Done():
			return false, s.hub.ctx.Err()
		case <-tick.C:
			s.hub.mu.Lock()
			due := s.marks.tick
			s.hub.mu.Unlock()
			if due {
				return true, nil
			}
		}
	}
}

func (s *Session) add(out *Lines, l session.Line) {
	switch l.(type) {
	case session.Data:
		out.AddChunk(s.chunk)
		s.summary.Counts.Add(s.chunk.Counts)
		s.summary.PlainBytes += s.chunk.Plain.Len
		s.hub.stats.Ops.Add(uint64(s.chunk.Counts.Ops()))
		s.hub.stats.PlainBytes.Add(uint64(s.chunk.Plain.Len))
		s.chunk = nil
		return
	case session.Complete:
		s.summary.Completed++
		s.hub.stats.Deliveries.Add(1)
	}
	n := len(out.Plain)
	out.Add(s.form.Line, l)
	s.summary.PlainBytes += int64(len(out.Plain) - n)
	s.hub.stats.PlainBytes.Add(uint64(len(out.Plain) - n))
}

func (s *Session) flush(out *Lines) error {
	if out.Empty() {
		return nil
	}
	if !s.told && !time.Now().Before(s.expires) {
		// INV-33: what was not sent by now is not sent.
		out.Reset()
		s.add(out, session.TokenExpiresIn{})
		s.told = true
		if err := s.sink.Send(out); err != nil {
			return err
		}
		return errExpired
	}
	before := s.sink.Sent()
	err := s.sink.Send(out)
	s.hub.stats.SentBytes.Add(uint64(s.sink.Sent() - before))
	out.Reset()
	return err
}

// tick adds a keepalive line and sets the timer again. It reports whether the
// token has expired.
func (s *Session) tick(out *Lines) bool {
	now := time.Now()
	left := max(0, int((s.expires.Sub(now)+time.Second-1)/time.Second))
	if left == 0 {
		out.Reset()
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
		h.stats.Dropped.Add(1)
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
	h.stats.Sessions.Add(-1)
}

// Clean reports whether a summary's reason is a normal end, and what to call it.
func (s Summary) Clean() (string, bool) {
	switch {
	case s.Reason == nil || errors.Is(s.Reason, errExpired):
		return "token expired", true
	case errors.Is(s.Reason, ErrDraining):
		return "shutting down", true
	case errors.Is(s.Reason, ErrStreamReplaced):
		return "sync config replaced", true
	case errors.Is(s.Reason, io.EOF):
		return "client closed", true
	case errors.Is(s.Reason, ErrSlow):
		return "client too slow", false
	}
	return "error", false
}

func ids(list []rules.Bucket) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].ID
	}
	return out
}

func buckets(list []rules.Bucket) []session.Bucket {
	out := make([]session.Bucket, len(list))
	for i := range list {
		b := &list[i]
		reasons := make([]session.Reason, len(b.Reasons))
		for j, r := range b.Reasons {
			reasons[j] = session.Reason(r)
		}
		out[i] = session.Bucket{ID: b.ID, Priority: b.Priority, Reasons: reasons}
	}
	return out
}

func streams(list []rules.StreamInfo, failed []rules.SubscriptionError) []session.Stream {
	out := make([]session.Stream, len(list))
	for i, x := range list {
		out[i] = session.Stream{Name: x.Name, IsDefault: x.IsDefault}
		for _, f := range failed {
			if f.Definition == x.Name {
				out[i].Errors = append(out[i].Errors, session.StreamError{
					Default: f.Default, Subscription: f.Subscription, Message: f.Err.Error(),
				})
			}
		}
	}
	return out
}
