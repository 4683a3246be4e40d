package sim

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// committed checks what the store has just committed, and that it has.
func (w *stream) committed(before model.StreamHead, c *ledger.Commit) {
	after := w.head()
	if !w.replicated() {
		w.failf("D5: stream %d is %s and took a commit", w.id, w.state)
	}
	if c.Head.Epoch != before.Epoch {
		w.failf("D5: a commit of epoch %d was taken, the stream's is %d", c.Head.Epoch, before.Epoch)
	}
	if after.Applied != c.Head.Applied || after.Persisted != c.Head.Persisted || after.Checkpoint != c.Head.Checkpoint {
		w.failf("D3: committed %+v, the head is %+v", c.Head, after)
	}
	if after.Applied.Compare(before.Applied) < 0 || after.Checkpoint.Op < before.Checkpoint.Op || after.Checkpoint.Position < before.Checkpoint.Position {
		w.failf("INV-3: the head goes from %+v to %+v", before, after)
	}
	last := before.Persisted
	ids := make([]model.OpID, 0, len(c.Ops)+len(c.Entries))
	for i := range c.Ops {
		ids = append(ids, c.Ops[i].Op.ID)
		w.known[c.Buckets[c.Ops[i].Bucket].Bucket] = true
	}
	for i := range c.Entries {
		ids = append(ids, c.Entries[i].ID)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if id <= last {
			w.failf("D2: op id %d after %d", id, last)
		}
		last = id
	}
	if last > after.Persisted {
		w.failf("D2: op id %d was used, the highest is %d", last, after.Persisted)
	}
	w.logBegun(before.Applied.Position, after.Applied.Position)
	w.layersCopied(c.Layer)
	w.logf("committed up to %s, ops up to %d, checkpoint %d", after.Applied, after.Persisted, after.Checkpoint.Op)
	w.count("commits")
}

func (w *stream) unchanged(before model.StreamHead, what string) {
	if after := w.head(); after != before {
		w.failf("D3: %s changed the head from %+v to %+v", what, before, after)
	}
	w.count("refused commits")
}

// published checks a checkpoint as a new client would see it.
func (w *stream) published(c model.Checkpoint) {
	if n := len(w.checkpoints); n > 0 && (c.Op < w.checkpoints[n-1].Op || c.Position < w.checkpoints[n-1].Position) && len(w.writers) == 1 {
		w.failf("INV-3: checkpoint %+v after %+v", c, w.checkpoints[n-1])
	}
	w.checkpoints = append(w.checkpoints, c)
	w.count("checkpoints")
	if head := w.head(); head.Checkpoint != c {
		return // told late, by a writer that is not the only one
	}
	want := w.contentAt(c.Position)
	for name := range w.known {
		if w.visible(name) {
			w.checkBucket(name, c, want[name])
		}
	}
	for name := range want {
		if !w.known[name] && w.visible(name) {
			w.failf("D1: bucket %s has rows at %s, and never had an op", name, c.Position)
		}
	}
	w.checkLookups(c)
}

// checkBucket: D1, D7, INV-10, INV-16.
func (w *stream) checkBucket(name string, c model.Checkpoint, want map[objectKey]string) {
	h := held{rows: map[objectKey]model.Op{}}
	var state model.BucketState
	for op, err := range w.opsOf(name, 0, c.Op) {
		w.must(err, "ops of "+name)
		if op.ID <= h.op || op.ID > c.Op {
			w.failf("INV-24: bucket %s: op %d after %d, checkpoint %d", name, op.ID, h.op, c.Op)
		}
		h.apply(op)
		state.Checksum += op.Checksum
		state.Count++
	}
	got, err := w.store.Checksums(w.ctx, w.id, c.Op, []string{name})
	w.must(err, "checksums")
	if got[0] != state {
		w.failf("D7: bucket %s at %d: reported %+v, the ops make %+v", name, c.Op, got[0], state)
	}
	w.sameContent(want, h.rows, "D1: bucket %s at checkpoint %d (%s)", name, c.Op, c.Position)
}

func (w *stream) checkLookups(c model.Checkpoint) {
	s := w.stateAt(c.Position)
	for u := range users {
		user := string(rune('a' + u))
		buckets, err := w.resolve(user, w.served, c.Op)
		w.must(err, "resolve")
		got := map[string]bool{}
		for _, b := range buckets.Buckets {
			got[b.ID] = true
		}
		if want := w.bucketsFor(s, user, w.served); !maps.Equal(got, want) {
			w.failf("D1: user %s at checkpoint %d (%s): buckets %v, want %v", user, c.Op, c.Position, sorted(got), sorted(want))
		}
	}
}

// bucketStates are the checksum and rows of a bucket at the present checkpoint
// and at the end.
func (w *stream) bucketStates(name string) map[model.OpID]*held {
	head := w.head()
	states := map[model.OpID]*held{}
	for _, c := range []model.OpID{head.Checkpoint.Op, head.Persisted} {
		h := &held{rows: map[objectKey]model.Op{}}
		for op, err := range w.opsOf(name, 0, c) {
			w.must(err, "ops of "+name)
			h.apply(op)
		}
		states[c] = h
	}
	return states
}

// sameStates: INV-17, INV-20, after one step of a compaction.
func (w *stream) sameStates(name string, from model.OpID, before map[model.OpID]*held) {
	for c, got := range w.bucketStates(name) {
		want := before[c]
		if c < from {
			w.failf("INV-3: checkpoint %d after compaction began at %d", c, from)
		}
		if got.checksum() != want.checksum() || !maps.Equal(got.rows, want.rows) {
			w.failf("INV-17: compaction from %d changed %s at %d: %+v, was %+v", from, name, c, got, want)
		}
	}
}

func (w *stream) contentAt(p model.Position) content {
	c, ok := w.contents[p]
	if !ok {
		c = w.contentOf(w.stateAt(p))
		w.contents[p] = c
	}
	return c
}

func (w *World) sameContent(want map[objectKey]string, got map[objectKey]model.Op, format string, args ...any) {
	same := len(want) == len(got)
	for k, op := range got {
		same = same && want[k] == op.Data
	}
	if same {
		return
	}
	var diff []string
	for k, op := range got {
		if d, ok := want[k]; !ok {
			diff = append(diff, fmt.Sprintf("op %d %s/%s %s is too much", op.ID, k.objectType, k.objectID, op.Data))
		} else if d != op.Data {
			diff = append(diff, fmt.Sprintf("op %d %s/%s is %s, want %s", op.ID, k.objectType, k.objectID, op.Data, d))
		}
	}
	for k, d := range want {
		if _, ok := got[k]; !ok {
			diff = append(diff, fmt.Sprintf("%s/%s %s is missing", k.objectType, k.objectID, d))
		}
	}
	slices.Sort(diff)
	w.failf("%s: %v", fmt.Sprintf(format, args...), diff)
}

// opsOf yields the ops of a bucket. The store's are valid until the next one
// only, these for good.
func (w *stream) opsOf(bucket string, after, upTo model.OpID) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		for op, err := range w.store.Ops(w.ctx, w.id, bucket, after, upTo) {
			op.ObjectType, op.ObjectID, op.Data = strings.Clone(op.ObjectType), strings.Clone(op.ObjectID), strings.Clone(op.Data)
			if !yield(op, err) {
				return
			}
		}
	}
}
