package sim

import (
	"maps"
	"slices"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
)

// client is a device: what it holds survives disconnects. It believes nothing:
// every line is checked against the protocol, every complete line against
// checksums and the oracle.
type client struct {
	w    *World
	id   int
	user string
	conn *connection     // nil while offline
	has  map[string]bool // the gateway's last full list for this connection
	// buckets is what is stored, also while offline.
	buckets  map[string]*held
	began    bool           // this connection's first line has come
	last     model.OpID     // of the last checkpoint line
	position model.Position // of the same
	complete bool           // since that line
	write    uint64
}

// held is one bucket.
type held struct {
	rows      map[objectKey]model.Op
	remainder model.Checksum
	at        model.OpID // resume position
	op        model.OpID // last op applied
	expected  model.BucketState
	priority  int
}

func (h *held) checksum() model.Checksum {
	sum := h.remainder
	for _, op := range h.rows {
		sum += op.Checksum
	}
	return sum
}

func (h *held) apply(op model.Op) {
	h.op = op.ID
	k := objectKey{op.ObjectType, op.ObjectID, op.Key}
	switch op.Kind {
	case model.OpPut, model.OpRemove:
		if old, ok := h.rows[k]; ok {
			h.remainder += old.Checksum
			delete(h.rows, k)
		}
		if op.Kind == model.OpPut {
			h.rows[k] = op
		} else {
			h.remainder += op.Checksum
		}
	case model.OpMove:
		h.remainder += op.Checksum
	case model.OpClear:
		clear(h.rows)
		h.remainder = op.Checksum
	}
}

func (w *World) newClient(id int) *client {
	return &client{w: w, id: id, user: string(rune('a' + id%users)), buckets: map[string]*held{}}
}

// receive takes the next line off the wire, if there is one.
func (c *client) receive() bool {
	if len(c.conn.lines) == 0 {
		return false
	}
	l := c.conn.lines[0]
	c.conn.lines = c.conn.lines[1:]
	w := c.w
	w.logf("client %d receives %T%+v", c.id, l.line, l.line)
	switch line := l.line.(type) {
	case session.Checkpoint:
		if c.began {
			w.failf("INV-21: client %d: a second checkpoint line", c.id)
		}
		c.began = true
		list := map[string]bool{}
		for _, b := range line.Buckets {
			list[b.ID] = true
			c.expect(b)
		}
		maps.DeleteFunc(c.buckets, func(name string, _ *held) bool { return !list[name] })
		c.checkpoint(line.LastOp, line.WriteCheckpoint, l.position)
	case session.CheckpointDiff:
		if !c.began {
			w.failf("INV-21: client %d: a diff before the first checkpoint line", c.id)
		}
		for _, name := range line.Removed {
			if c.buckets[name] == nil {
				w.failf("client %d: bucket %s, which it does not have, is removed", c.id, name)
			}
			delete(c.buckets, name)
		}
		for _, b := range line.Updated {
			c.expect(b)
		}
		if line.WriteCheckpoint < c.write {
			w.failf("INV-26: client %d: write checkpoint goes from %d to %d", c.id, c.write, line.WriteCheckpoint)
		}
		if line.LastOp < c.last {
			w.failf("INV-3: client %d: checkpoint goes from %d to %d", c.id, c.last, line.LastOp)
		}
		c.checkpoint(line.LastOp, line.WriteCheckpoint, l.position)
	case session.Data:
		h := c.buckets[line.Bucket]
		if h == nil {
			w.failf("INV-32: client %d: data of bucket %s, which it does not have", c.id, line.Bucket)
		}
		if line.After < h.op || line.NextAfter > c.last || line.Count != len(l.ops) {
			w.failf("INV-24: client %d at op %d: data %+v at checkpoint %d", c.id, h.op, line, c.last)
		}
		for _, op := range l.ops {
			if op.ID <= h.op || op.ID <= line.After || op.ID > line.NextAfter {
				w.failf("D2: client %d, bucket %s: op %d after %d in %+v", c.id, line.Bucket, op.ID, h.op, line)
			}
			h.apply(op)
		}
		h.at = line.NextAfter
		w.ops += len(l.ops)
	case session.PartialComplete:
		c.completed(line.LastOp, line.Priority)
	case session.Complete:
		c.completed(line.LastOp, 3)
		c.complete = true
		w.completes++
	}
	return true
}

func (c *client) expect(b session.Bucket) {
	h := c.buckets[b.ID]
	if h == nil {
		h = &held{rows: map[objectKey]model.Op{}}
		c.buckets[b.ID] = h
	}
	h.expected, h.priority = b.State, b.Priority
}

func (c *client) checkpoint(op model.OpID, write uint64, at model.Position) {
	c.last, c.write, c.position, c.complete = op, write, at, false
	if c.w.custom {
		if most := c.conn.w.carriedUpTo(c.user, at); write > most {
			c.w.failf("D1, INV-27: client %d: write checkpoint %d at checkpoint %d at %s, up to which rows carry %d", c.id, write, op, at, most)
		}
	} else if write > 0 && c.w.writes[c.user][write] > model.PlaceIn(c.conn.w.era, at) {
		c.w.failf("INV-27: client %d: write checkpoint %d is at %s, checkpoint %d at %s", c.id, write, c.w.writes[c.user][write], op, at)
	}
}

// completed: all buckets up to a priority are complete at the last checkpoint.
func (c *client) completed(op model.OpID, priority int) {
	w := c.w
	if op != c.last {
		w.failf("INV-22: client %d: complete for %d after checkpoint %d", c.id, op, c.last)
	}
	want := c.conn.w.contentAt(c.position)
	names := map[string]bool{}
	for name, h := range c.buckets {
		names[name] = true
		if h.priority > priority {
			continue
		}
		if got := h.checksum(); got != h.expected.Checksum {
			w.failf("D7: client %d, bucket %s at checkpoint %d: checksum %d, server says %d", c.id, name, op, got, h.expected.Checksum)
		}
		w.sameContent(want[name], h.rows, "D6: client %d, bucket %s at checkpoint %d (%s)", c.id, name, op, c.position)
		h.at = op
	}
	if oracle := c.conn.w.bucketsFor(c.conn.w.stateAt(c.position), c.user, c.conn.served); !maps.Equal(names, oracle) {
		w.failf("INV-25: client %d at checkpoint %d (%s) has buckets %v, want %v", c.id, op, c.position, sorted(names), sorted(oracle))
	}
}

func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
