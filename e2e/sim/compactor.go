package sim

import (
	"errors"
	"slices"

	"github.com/sluicesync/sluice/libs/core/compact"
	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// compaction is a compactor's work on one bucket, one store call a step. It may
// be dropped after any of them, and another may be at the same bucket.
type compaction struct {
	w          *stream
	bucket     string
	checkpoint model.OpID
	below      model.OpID // ops not read yet
	plan       *compact.Plan
	due        []compact.Move
	clears     []compact.Clear
	read       bool
	alone      bool // no other was at this bucket meanwhile
	done       bool
}

func (w *stream) startCompaction() {
	head, err := w.store.Head(w.ctx, w.id)
	w.must(err, "head")
	dirty, err := w.store.Dirtiest(w.ctx, w.id, store.DirtyQuery{Limit: 5, MinChanges: 1})
	w.must(err, "dirtiest")
	if len(dirty) == 0 || head.Checkpoint.Op == 0 {
		return
	}
	c := &compaction{
		w: w, bucket: dirty[w.rnd.IntN(len(dirty))].Bucket, checkpoint: head.Checkpoint.Op, below: head.Checkpoint.Op + 1, alone: true,
		plan: compact.New(compact.Limits{Memory: []int{200, 1000, 1 << 20}[w.rnd.IntN(3)], Moves: 1 + w.rnd.IntN(6), Clear: 2 + w.rnd.IntN(8), Held: []int{-1, 5, 1000}[w.rnd.IntN(3)], Worth: 1}),
	}
	for _, other := range w.compactions {
		if other.bucket == c.bucket {
			c.alone, other.alone = false, false
		}
	}
	w.logf("compaction of %s from checkpoint %d", c.bucket, c.checkpoint)
	w.compactions = append(w.compactions, c)
}

func (c *compaction) step() {
	w := c.w
	switch {
	case c.due != nil:
		moves := c.due
		if c.due = c.plan.Moves(); c.due == nil && c.read {
			c.due = c.plan.Rest()
		}
		c.replace(store.Replacement{}, moves)
	case !c.read:
		n := 1 + w.rnd.IntN(10)
		for op, err := range w.store.Scan(w.ctx, w.id, c.bucket, 0, c.below-1, false) {
			w.must(err, "scan")
			if op.ID >= c.below {
				w.failf("scan of %s: op %d is not below %d", c.bucket, op.ID, c.below)
			}
			c.below = op.ID
			c.plan.Add(&op)
			n--
			if c.due = c.plan.Moves(); c.due != nil || n == 0 {
				return
			}
		}
		c.read = true
		c.due, c.clears = c.plan.Rest(), c.plan.Clears()
	case len(c.clears) > 0:
		next := c.clears[0]
		c.clears = c.clears[1:]
		c.replace(store.Replacement{ClearTo: next.To}, next.Moves)
	default:
		c.replace(store.Replacement{Finished: true}, nil)
		c.done = true
		if ops, _ := c.plan.Reemit(); len(ops) > 0 {
			w.reemits = append(w.reemits, ledger.Reemit{Bucket: c.bucket, Checkpoint: c.checkpoint, Ops: ops, Bytes: []int{50, 1000, 1 << 20}[w.rnd.IntN(3)]})
		}
	}
}

// reemit asks for what a compaction has found worth to be put again: soon or
// late, once or twice.
func (w *stream) reemit() {
	if len(w.reemits) == 0 {
		return
	}
	i := w.rnd.IntN(len(w.reemits))
	w.pickWriter().step(w.reemits[i])
	if w.rnd.IntN(3) > 0 {
		w.reemits = slices.Delete(w.reemits, i, i+1)
	}
}

func (c *compaction) replace(r store.Replacement, moves []compact.Move) {
	w := c.w
	r.Bucket, r.Checkpoint = c.bucket, c.checkpoint
	for _, m := range moves {
		r.Moves = append(r.Moves, store.Move(m))
	}
	before := w.bucketStates(c.bucket)
	removed, err := w.store.Replace(w.ctx, w.id, r)
	var overtaken *store.ReplaceError
	if errors.As(err, &overtaken) && !c.alone {
		w.count("overtaken compactions")
		c.done = true
	} else {
		w.must(err, "replace")
	}
	w.count("compaction steps")
	w.logf("compaction of %s: %d moves, clear to %d, %d removed", c.bucket, len(r.Moves), r.ClearTo, removed)
	w.sameStates(c.bucket, c.checkpoint, before)
}

// compactLookups compacts the parameter index a little.
func (w *stream) compactLookups() {
	head, err := w.store.Head(w.ctx, w.id)
	w.must(err, "head")
	if head.Checkpoint.Op == 0 {
		return
	}
	_, next, err := w.store.CompactLookups(w.ctx, w.id, head.Checkpoint.Op, w.lookupsNext, 1+w.rnd.IntN(6))
	w.must(err, "compact lookups")
	w.lookupsNext = next
	w.checkLookups(head.Checkpoint)
}
