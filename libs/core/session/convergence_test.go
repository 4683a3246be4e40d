package session

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
)

// world is a store of buckets with compaction, and the truth at every
// checkpoint.
type world struct {
	r       *rand.Rand
	last    model.OpID
	ops     map[string][]model.Op
	cleared map[string]model.OpID
	history map[model.OpID]map[string]map[string]model.OpID // checkpoint → bucket → row → the op that it shows
	at      model.OpID
}

var bucketNames = []string{"a", "b", "c", "d"}

func priority(bucket string) int { return int(bucket[0]-'a') % 3 }

func (w *world) write(n int) {
	for range n {
		b := bucketNames[w.r.IntN(len(bucketNames))]
		w.last += model.OpID(1 + w.r.IntN(3))
		op := model.Op{ID: w.last, Kind: model.OpPut, ObjectID: fmt.Sprint(w.r.IntN(8)), Checksum: model.Checksum(w.r.Uint32())}
		if w.r.IntN(4) == 0 {
			op.Kind = model.OpRemove
		}
		w.ops[b] = append(w.ops[b], op)
	}
	w.at = w.last
	state := map[string]map[string]model.OpID{}
	for _, b := range bucketNames {
		state[b] = rows(w.full(b))
	}
	w.history[w.at] = state
}

// full is the truth of a bucket: MOVEs and CLEARs hide nothing that is shown.
func (w *world) full(b string) []model.Op { return w.ops[b] }

func rows(ops []model.Op) map[string]model.OpID {
	out := map[string]model.OpID{}
	for _, op := range ops {
		switch op.Kind {
		case model.OpPut:
			out[op.ObjectID] = op.ID
		case model.OpRemove:
			delete(out, op.ObjectID)
		case model.OpClear:
			clear(out)
		}
	}
	return out
}

func (w *world) state(b string, c model.OpID) (s model.BucketState, ok bool) {
	if c < w.cleared[b] {
		return s, false
	}
	for _, op := range w.ops[b] {
		if op.ID <= c {
			s.Checksum += op.Checksum
			s.Count++
		}
	}
	return s, true
}

// compact is spec/05 §6, up to the newest checkpoint.
func (w *world) compact(b string) {
	seen := map[string]model.OpID{}
	ops := w.ops[b]
	for i := range slices.Backward(ops) {
		op := &ops[i]
		if op.Kind != model.OpPut && op.Kind != model.OpRemove {
			continue
		}
		if newest, ok := seen[op.ObjectID]; ok {
			*op = model.Op{ID: op.ID, Kind: model.OpMove, Checksum: op.Checksum, Target: newest}
		} else {
			seen[op.ObjectID] = op.ID
		}
	}
	n := 0
	for n < len(ops) && ops[n].Kind != model.OpPut {
		n++
	}
	if n < 2 {
		return
	}
	clearing := model.Op{ID: ops[n-1].ID, Kind: model.OpClear}
	for _, op := range ops[:n] {
		clearing.Checksum += op.Checksum
		clearing.Target = max(clearing.Target, op.Target)
	}
	w.cleared[b] = clearing.ID
	w.ops[b] = append([]model.Op{clearing}, ops[n:]...)
}

func (w *world) chunk(f Fetch, most int) (Chunk, []model.Op) {
	c := Chunk{After: f.After, NextAfter: f.After}
	if f.UpTo < w.cleared[f.Bucket] {
		c.Invalid = true
		return c, nil
	}
	var ops []model.Op
	for _, op := range w.ops[f.Bucket] {
		if op.ID <= f.After || op.ID > f.UpTo {
			continue
		}
		if c.Count == most {
			c.HasMore = true
			break
		}
		ops = append(ops, op)
		c.Count++
		c.NextAfter = op.ID
		c.Target = max(c.Target, op.Target)
	}
	return c, ops
}

// client is a model of the SDK: it checks what the protocol promises, and keeps
// what the real one keeps.
type client struct {
	t          *testing.T
	w          *world
	seed       uint64
	held       map[string][]model.Op
	positions  map[string]model.OpID // of the next request
	stream     map[string]model.OpID // where the present stream is
	buckets    map[string]Bucket     // of the last checkpoint line
	checkpoint model.OpID
	first      bool
	completed  int
}

func (c *client) failf(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("seed %d: %s", c.seed, fmt.Sprintf(format, args...))
}

func (c *client) line(l Line, ops []model.Op) {
	c.t.Helper()
	switch l := l.(type) {
	case Checkpoint:
		if !c.first {
			c.failf("INV-21: a second checkpoint line")
		}
		c.first = false
		c.checkpoint, c.buckets = l.LastOp, map[string]Bucket{}
		for _, b := range l.Buckets {
			c.buckets[b.ID] = b
		}
		for b := range c.held {
			if _, ok := c.buckets[b]; !ok {
				delete(c.held, b)
				delete(c.positions, b)
			}
		}
		for b := range c.stream {
			if _, ok := c.buckets[b]; !ok {
				delete(c.stream, b)
			}
		}
	case CheckpointDiff:
		if c.first {
			c.failf("INV-21: the first line is a diff")
		}
		if l.LastOp < c.checkpoint {
			c.failf("INV-3: checkpoint %d after %d", l.LastOp, c.checkpoint)
		}
		c.checkpoint = l.LastOp
		for _, b := range l.Removed {
			delete(c.buckets, b)
			delete(c.held, b)
			delete(c.positions, b)
			delete(c.stream, b)
		}
		for _, b := range l.Updated {
			c.buckets[b.ID] = b
		}
	case Data:
		b, ok := c.buckets[l.Bucket]
		if !ok {
			c.failf("INV-32: data of bucket %s, which the client has not", l.Bucket)
		}
		if l.NextAfter > c.checkpoint {
			c.failf("INV-24: data of %s up to %d, checkpoint %d", b.ID, l.NextAfter, c.checkpoint)
		}
		if got := c.stream[l.Bucket]; l.After != got {
			c.failf("INV-24: data of %s after %d, the client is at %d", l.Bucket, l.After, got)
		}
		c.stream[l.Bucket], c.positions[l.Bucket] = l.NextAfter, l.NextAfter
		for _, op := range ops {
			if op.Kind == model.OpClear {
				c.held[l.Bucket] = nil
			}
			c.held[l.Bucket] = append(c.held[l.Bucket], op)
		}
	case PartialComplete:
		if l.LastOp != c.checkpoint {
			c.failf("INV-23: partial complete of %d, checkpoint %d", l.LastOp, c.checkpoint)
		}
		c.check(l.Priority)
	case Complete:
		if l.LastOp != c.checkpoint {
			c.failf("INV-22: complete of %d, checkpoint %d", l.LastOp, c.checkpoint)
		}
		c.check(3)
		c.completed++
		for b := range c.buckets {
			// As the SDK does: the next request counts from the checkpoint.
			c.positions[b] = max(c.positions[b], l.LastOp)
		}
	}
}

// check is what a client validates, and beyond it that the rows are those of
// the truth (D6).
func (c *client) check(most int) {
	c.t.Helper()
	for id, b := range c.buckets {
		if b.Priority > most {
			continue
		}
		var sum model.Checksum
		for _, op := range c.held[id] {
			sum += op.Checksum
		}
		if sum != b.State.Checksum {
			c.failf("INV-16: checksum of %s at %d is %d, want %d", id, c.checkpoint, sum, b.State.Checksum)
		}
		want := c.w.history[c.checkpoint][id]
		got := rows(c.held[id])
		for row, op := range want {
			if got[row] != op {
				c.failf("D6: row %s/%s at %d shows op %d, want %d", id, row, c.checkpoint, got[row], op)
			}
		}
		if len(got) != len(want) {
			c.failf("D6: bucket %s at %d has %d rows, want %d", id, c.checkpoint, len(got), len(want))
		}
	}
}

// TestConvergence drives sessions over random writes, compactions, lagging
// views, small chunks and reconnects.
func TestConvergence(t *testing.T) {
	completed := 0
	for seed := range uint64(3000) {
		completed += converge(t, seed)
	}
	if completed < 10_000 {
		t.Errorf("only %d checkpoints were completed: the test tests little", completed)
	}
}

func converge(t *testing.T, seed uint64) int {
	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{r: r, ops: map[string][]model.Op{}, cleared: map[string]model.OpID{}, history: map[model.OpID]map[string]map[string]model.OpID{}}
	w.write(1 + r.IntN(20))
	c := &client{t: t, w: w, seed: seed, held: map[string][]model.Op{}, positions: map[string]model.OpID{}}
	var s *Session
	member := map[string]bool{"a": true, "b": true, "c": r.IntN(2) == 0, "d": true}
	connect := func() {
		positions := maps.Clone(c.positions)
		c.stream = maps.Clone(c.positions)
		c.first, c.checkpoint = true, 0
		s = New(positions)
	}
	view := func(at model.OpID) (View, bool) {
		v := View{Checkpoint: at, Full: true}
		for _, b := range bucketNames {
			if !member[b] {
				continue
			}
			state, ok := w.state(b, at)
			if !ok {
				return v, false // an invalid checkpoint is dropped
			}
			v.Buckets = append(v.Buckets, Bucket{ID: b, Priority: priority(b), State: state})
		}
		return v, true
	}
	connect()
	seen := w.at
	for range 60 {
		switch r.IntN(10) {
		case 0, 1:
			w.write(1 + r.IntN(10))
		case 2:
			w.compact(bucketNames[r.IntN(len(bucketNames))])
		case 3:
			member["c"] = r.IntN(2) == 0
		case 4:
			if r.IntN(4) == 0 {
				connect()
			}
		}
		if s.Ready() {
			at := w.at // a new stream and one that is stale read the head
			if s.started && !s.Stale() && r.IntN(3) == 0 {
				at = max(seen, s.Checkpoint()) // a lagging notice
			}
			if v, ok := view(at); ok {
				s.Offer(v)
			}
			seen = w.at
		}
		for range r.IntN(6) {
			var ops []model.Op
			a := s.Next()
			if a.Kind == Get {
				var chunk Chunk
				chunk, ops = w.chunk(a.Fetch, 1+r.IntN(4))
				s.Chunk(chunk)
				if chunk.Count == 0 {
					continue
				}
				a = s.Next()
			}
			if a.Kind == Wait {
				break
			}
			c.line(a.Line, ops)
		}
	}
	// In the end every client arrives.
	for range 1000 {
		if s.Ready() {
			if v, ok := view(w.at); ok {
				s.Offer(v)
			}
		}
		a := s.Next()
		var ops []model.Op
		if a.Kind == Get {
			var chunk Chunk
			chunk, ops = w.chunk(a.Fetch, 4)
			s.Chunk(chunk)
			if chunk.Count == 0 {
				continue
			}
			a = s.Next()
		}
		if a.Kind == Wait {
			if s.Stale() || s.Checkpoint() != w.at && len(w.history) > 1 && !upToDate(s, w, member) {
				continue
			}
			c.check(3)
			return c.completed
		}
		c.line(a.Line, ops)
	}
	c.failf("the client does not arrive")
	return 0
}

func upToDate(s *Session, w *world, member map[string]bool) bool {
	for _, b := range bucketNames {
		state, _ := w.state(b, w.at)
		if told, ok := s.State(b); ok != member[b] || ok && told != state {
			return false
		}
	}
	return true
}
