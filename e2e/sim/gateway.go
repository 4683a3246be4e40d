package sim

import (
	"errors"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// connection is one stream of lines: a session, and the gateway's knowledge on
// its behalf.
type connection struct {
	w      *stream
	client *client
	served *served
	s      *session.Session
	inbox  []model.CheckpointNotice // on the way
	gap    bool                     // a notice was lost: the next one shows it

	// From notices since the last view: the newest checkpoint, and what changed.
	newest     model.Checkpoint
	told       bool
	everything bool
	buckets    map[string]bool
	lookups    map[string]bool

	used map[string]bool // lookups that the buckets depend on

	offered model.Checkpoint // of the last view that gave a line
	chunk   []model.Op       // of the last chunk fetched
	lines   []sent           // on the way to the client
	ended   bool             // the stream's data is gone
}

// sent is a line, with the ops of a data line and the position of a checkpoint
// line's checkpoint.
type sent struct {
	line     session.Line
	ops      []model.Op
	position model.Position
}

// connect opens a stream of lines from the stream of the source that is served.
func (w *stream) connect(c *client) {
	positions := map[string]model.OpID{}
	for name, b := range c.buckets {
		positions[name] = b.at
	}
	g := &connection{w: w, client: c, served: w.served, s: session.New(positions)}
	g.forget()
	c.conn = g
	c.began = false
	w.logf("client %d connects", c.id)
}

func (c *client) disconnect() {
	c.w.logf("client %d disconnects with %d lines on the way", c.id, len(c.conn.lines))
	c.conn = nil
}

// notify puts a notice on the way to every connection, or loses it.
func (w *stream) notify(n model.CheckpointNotice) {
	w.logf("checkpoint %d at %s: buckets %v lookups %v everything %v", n.Checkpoint.Op, n.Checkpoint.Position, n.Buckets, n.Lookups, n.Everything)
	w.published(n.Checkpoint)
	for _, c := range w.clients {
		switch {
		case c.conn == nil || c.conn.w != w:
		case w.faults && w.rnd.IntN(20) == 0:
			c.conn.gap = true
		default:
			c.conn.inbox = append(c.conn.inbox, n)
		}
	}
}

// everything tells every connection that it may have missed anything.
func (w *stream) everything() {
	for _, c := range w.clients {
		if c.conn != nil && c.conn.w == w {
			c.conn.everything, c.conn.told = true, true
		}
	}
}

func (g *connection) forget() {
	g.told, g.everything = false, false
	g.buckets, g.lookups = map[string]bool{}, map[string]bool{}
}

// hear takes the next notice, if there is one.
func (g *connection) hear() bool {
	if len(g.inbox) == 0 {
		return false
	}
	n := g.inbox[0]
	g.inbox = g.inbox[1:]
	g.told = true
	if n.Checkpoint.Op > g.newest.Op || n.Checkpoint.Position > g.newest.Position {
		g.newest = n.Checkpoint
	}
	g.everything = g.everything || g.gap || n.Everything
	g.gap = false
	for _, b := range n.Buckets {
		g.buckets[b] = true
	}
	for _, l := range n.Lookups {
		g.lookups[l] = true
	}
	return true
}

// work does the next thing that the session wants, if there is any.
func (g *connection) work() bool {
	if len(g.lines) > 3 || g.ended {
		return false // the client is slow, or has to go
	}
	switch a := g.s.Next(); a.Kind {
	case session.Send:
		line := sent{line: a.Line}
		switch a.Line.(type) {
		case session.Checkpoint, session.CheckpointDiff:
			line.position = g.offered.Position
		case session.Data:
			line.ops = g.chunk
		}
		g.lines = append(g.lines, line)
	case session.Get:
		g.fetch(a.Fetch)
	case session.Wait:
		return g.offer()
	}
	return true
}

// offer reads a view, if there is reason to, and gives it to the session.
func (g *connection) offer() bool {
	w := g.w
	first := g.s.Checkpoint() == 0 && !g.client.began && g.offered == model.Checkpoint{}
	if !g.s.Ready() || !first && !g.told && !g.s.Stale() {
		return false
	}
	at := g.newest
	fresh := first || g.everything || g.s.Stale()
	if fresh {
		head, err := w.store.Head(w.ctx, w.id)
		if g.invalidated(err, "head") {
			return true
		}
		at = head.Checkpoint
	}
	if at.Position == "" || at.Op < g.s.Checkpoint() || at.Op == g.offered.Op && at.Position < g.offered.Position { // INV-3
		g.forget()
		return true
	}
	user := g.client.user
	v := session.View{Checkpoint: at.Op, Full: fresh}
	for l := range g.used {
		v.Full = v.Full || g.lookups[l]
	}
	ids := make([]string, 0, 8)
	priorities := map[string]int{}
	if v.Full {
		buckets, err := w.resolve(user, g.served, at.Op)
		if g.invalidated(err, "resolve") {
			return true
		}
		g.used = map[string]bool{}
		for _, l := range buckets.Lookups {
			g.used[l] = true
		}
		g.client.has = map[string]bool{}
		for _, b := range buckets.Buckets {
			ids = append(ids, b.ID)
			priorities[b.ID] = b.Priority
			g.client.has[b.ID] = true
		}
	} else {
		for _, id := range sorted(g.buckets) {
			if g.client.has[id] {
				ids = append(ids, id)
			}
		}
	}
	states, err := w.store.Checksums(w.ctx, w.id, at.Op, ids)
	if g.invalidated(err, "checksums") {
		return true
	}
	for i, id := range ids {
		v.Buckets = append(v.Buckets, session.Bucket{ID: id, Priority: priorities[id], State: states[i]})
	}
	if v.WriteCheckpoint, err = w.reached(user, at.Position); g.invalidated(err, "reached") {
		return true
	}
	g.forget()
	due := g.s.Offer(v)
	if due {
		g.offered = at
	}
	w.logf("client %d is offered checkpoint %d: full %v, buckets %v, a line is due: %v", g.client.id, at.Op, v.Full, ids, due)
	return true
}

// reached is a user's write checkpoint at a position.
func (w *stream) reached(user string, at model.Position) (uint64, error) {
	var ids []uint64
	var err error
	if w.custom {
		ids, err = w.store.CustomReached(w.ctx, w.id, at, []string{user + "/c"})
	} else {
		ids, err = w.store.Reached(w.ctx, model.PlaceIn(w.era, at), []string{user})
	}
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}

// invalidated: the checkpoint is dropped without a line, and everything is
// read again at the next.
func (g *connection) invalidated(err error, what string) bool {
	if err == nil {
		return false
	}
	if errors.Is(err, store.ErrNoStream) && g.w.state == model.Terminated {
		g.w.count("streams that end under a client")
		g.ended = true
		return true
	}
	if !errors.Is(err, store.ErrInvalidated) {
		g.w.must(err, what)
	}
	g.w.count("invalidated views")
	g.everything, g.told = true, true
	return true
}

// chunkKey names a chunk that gateways share and keep.
type chunkKey struct {
	bucket      string
	after, upTo model.OpID
}

type cached struct {
	chunk session.Chunk
	ops   []model.Op
}

func (g *connection) fetch(f session.Fetch) {
	w := g.w
	k := chunkKey{f.Bucket, f.After, f.UpTo}
	if old, ok := w.chunks[k]; ok && w.rnd.IntN(2) == 0 {
		g.chunk = old.ops
		g.s.Chunk(old.chunk)
		return
	}
	n := 1 + w.rnd.IntN(6)
	c := session.Chunk{After: f.After, NextAfter: f.After}
	g.chunk = nil
	for op, err := range w.opsOf(f.Bucket, f.After, f.UpTo) {
		if errors.Is(err, store.ErrInvalidated) {
			c.Invalid = true
			w.count("invalid chunks")
			break
		}
		if errors.Is(err, store.ErrNoStream) && g.invalidated(err, "ops") {
			return
		}
		w.must(err, "ops")
		if len(g.chunk) == n {
			c.HasMore = true
			break
		}
		g.chunk = append(g.chunk, op)
		c.Target = max(c.Target, op.Target)
		c.NextAfter = op.ID
		c.Count++
	}
	if !c.Invalid {
		w.chunks[k] = cached{c, g.chunk}
	}
	g.s.Chunk(c)
}
