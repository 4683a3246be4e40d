// Package ledger decides what one replication stream stores: it puts evaluated
// batches back in the order of their chain, gives out op ids, turns rows into
// PUTs and REMOVEs, and moves the checkpoint.
//
// Invariants:
//
//   - D1: a checkpoint is made only where a source transaction ends, the
//     initial copy is done and its position is past NoCheckpointBefore
//     (TestTranscripts, TestAnyOrder).
//   - D2: op ids strictly increase; what a failed commit has used is either
//     in the head that the store reports or was never stored (TestAnyOrder).
//   - D4: a batch that was applied is acknowledged and changes nothing; a gap
//     or an overlap in the chain ends the session (TestTranscripts).
//   - D1, D3: a custom write checkpoint is stored with the commit that moves the
//     cursor past its row, and is reached by the checkpoints that have all of
//     that row's transaction (TestTranscripts, TestAnyOrder).
//   - D5: a batch of a lower epoch is dropped (TestTranscripts).
//   - D1, D6: what is copied for a layer alone leaves what others made of the
//     row, and the layer is said to be copied with a checkpoint that has all of it
//     (TestTranscripts, TestAnyOrder).
//   - D2, D6: what is put again is the newest of its row, under new op ids, in a
//     commit of its own (TestTranscripts, TestAnyOrder).
//   - D1, D2, D6: when the source's log is lost, the next one begins above all op
//     ids and positions, what is copied again becomes ops only where it differs
//     from what is stored, and no checkpoint is made before all of it is compared
//     (TestTranscripts, TestCompare).
//   - INV-10, INV-11, INV-12, INV-15: after any interleaving, duplication or
//     crash the buckets hold what the last change of each row says, and a
//     key change leaves nothing under the former key (TestAnyOrder).
//
// A Ledger is a step function: no I/O, no clock, no goroutine. The shell does
// what the actions say and reports back by events. At most one Load, LoadTable,
// LoadOps or Commit is under way at a time.
package ledger

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// Options bound a Ledger.
type Options struct {
	// BufferBytes bounds the batches that wait for an earlier one (by their
	// encoded size). 0 = 64 MiB.
	BufferBytes int
	// GroupBytes and GroupRows bound what one commit takes, except that it
	// always takes one batch. 0 = 16 MiB, 20,000 rows.
	GroupBytes int
	GroupRows  int
	// TableRows is how many rows of a truncated table one commit removes at most,
	// fewer if they make more than GroupRows ops. 0 = 20,000.
	TableRows int
	// Listed bounds the buckets and lookups that a notice names. 0 = 1,000.
	Listed int
}

func (o *Options) defaults() {
	for _, d := range []struct {
		field *int
		value int
	}{{&o.BufferBytes, 64 << 20}, {&o.GroupBytes, 16 << 20}, {&o.GroupRows, 20_000}, {&o.TableRows, 20_000}, {&o.Listed, 1_000}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
}

// Ledger is the state of one replication stream. Not safe for concurrent use.
type Ledger struct {
	options Options
	stream  model.StreamID
	state   model.StreamState
	// head is what the store has. While a commit is under way it is the one
	// before it.
	head model.StreamHead
	// broken: the chain of head.Epoch has a gap or an overlap, so nothing of
	// it is taken until the next session.
	broken bool

	buffer []*pending // in order of Previous, not applied, not in the group
	bytes  int        // of buffer

	layered uint32 // layers that readers may see
	copied  uint32 // layers that are copied, perhaps beyond the checkpoint

	group  *group // being applied
	reemit *reemission
	relog  *Relog // asked for, not begun
	// changed since the last notice.
	changed changes
	builder builder // of the commit being made; its memory is reused
}

// pending is a batch whose fate is not known yet.
type pending struct {
	batch   *model.EvaluatedBatch
	size    int
	tickets []uint64
}

// group is a run of batches in line that one commit takes (several commits if
// a table is truncated or swept; then it is one batch alone). One without batches
// is the beginning of another log.
type group struct {
	batches []*pending
	// batch and row are the place up to which rows went into the builder.
	batch, row int
	// table is being truncated or swept, from after on.
	table *model.TableID
	sweep bool
	after model.RowID
	// last: the commit under way is the group's last, moving the cursor.
	last   bool
	commit *Commit // under way
	relog  *uint64 // the ticket, of a group without batches
}

// New returns the ledger of a stream as the store has it.
func New(stream *model.Stream, o Options) *Ledger {
	o.defaults()
	l := &Ledger{options: o, stream: stream.ID, state: stream.State, head: stream.Head, layered: stream.Layered}
	l.builder.init()
	// What changed between the checkpoint and here is not known.
	l.changed.everything = true
	return l
}

// Head returns what the ledger knows to be stored.
func (l *Ledger) Head() model.StreamHead { return l.head }

// Buffered returns the bytes of the batches that wait for an earlier one or
// for the commit under way.
func (l *Ledger) Buffered() int { return l.bytes }

// Waiting tells whether batches wait for one that has not arrived, and nothing
// is under way. If that lasts, the shell steps Stalled.
func (l *Ledger) Waiting() bool { return !l.busy() && len(l.buffer) > 0 }

// busy tells whether something is under way.
func (l *Ledger) busy() bool { return l.group != nil || l.reemits() }

// Step takes an event and returns what is to be done, in order.
func (l *Ledger) Step(e Event) []Action {
	var out []Action
	switch e := e.(type) {
	case Arrived:
		out = l.arrived(e)
	case Loaded:
		out = l.loaded(e)
	case TableLoaded:
		out = l.tableLoaded(e)
	case Reemit:
		out = l.reemitAsked(e)
	case OpsLoaded:
		out = l.opsLoaded(e)
	case Relog:
		out = l.relogAsked(e)
	case Committed:
		if l.reemits() {
			out = l.reemitCommitted()
		} else {
			out = l.committed()
		}
	case Failed:
		if l.reemits() {
			out = l.reemitFailed(e)
		} else {
			out = l.failed(e)
		}
	case SessionOpened:
		l.head.Epoch = e.Head.Epoch
		l.broken = false
		if !l.busy() {
			l.found(e.Head)
		}
		out = l.settle(nil)
	case StateChanged:
		l.state = e.State
		out = l.settle(nil)
	case Stalled:
		if l.Waiting() {
			p := l.buffer[0]
			out = l.breakChain(nil, fmt.Sprintf("gap in the chain of batches: %s is applied, the next to arrive begins at %s", l.head.Applied, p.batch.Previous))
		}
	default:
		panic(fmt.Sprintf("ledger: unknown event %T", e))
	}
	return l.begin(out)
}

// found takes the head that the store has. What another writer has committed is
// not known here, so readers cannot be told what it has changed.
func (l *Ledger) found(head model.StreamHead) {
	if head.Applied != l.head.Applied || head.Persisted != l.head.Persisted {
		l.changed.everything = true
	}
	l.head = head
}

// replicating tells whether batches of the stream are still wanted.
func (l *Ledger) replicating() bool {
	return l.state == model.Processing || l.state == model.Active
}

// verdict tells the fate of a batch that can be answered at once.
func (l *Ledger) verdict(b *model.EvaluatedBatch) (r Result, msg string, known bool) {
	switch {
	case !l.replicating():
		return ResultObsolete, "the stream is " + l.state.String(), true
	case b.End.Position.Log() < l.head.Applied.Position.Log():
		return ResultObsolete, "it is of a log that is lost", true
	case b.End.Compare(l.head.Applied) <= 0:
		return ResultCommitted, "", true
	case b.Epoch < l.head.Epoch:
		return ResultObsolete, fmt.Sprintf("epoch %d is over, it is %d now", b.Epoch, l.head.Epoch), true
	case b.Epoch > l.head.Epoch:
		return ResultRetry, fmt.Sprintf("epoch %d is not known yet", b.Epoch), true
	case l.broken:
		return ResultObsolete, fmt.Sprintf("the chain of epoch %d is broken", b.Epoch), true
	}
	return 0, "", false
}

func (l *Ledger) arrived(e Arrived) []Action {
	b := e.Batch
	if r, msg, known := l.verdict(b); known {
		return []Action{Answer{e.Ticket, r, msg}}
	}
	if l.group != nil {
		for _, p := range l.group.batches {
			if p.batch.Previous == b.Previous && p.batch.End == b.End && p.batch.Epoch == b.Epoch {
				p.tickets = append(p.tickets, e.Ticket)
				return nil
			}
		}
	}
	next := l.next()
	p := &pending{batch: b, size: e.Size, tickets: []uint64{e.Ticket}}
	if b.End.Compare(b.Previous) <= 0 || b.Previous.Compare(next) < 0 {
		return l.breakChain(p, fmt.Sprintf("batch %s to %s overlaps what leads to %s", b.Previous, b.End, next))
	}
	i, found := slices.BinarySearchFunc(l.buffer, b.Previous, func(p *pending, c model.Cursor) int { return p.batch.Previous.Compare(c) })
	if found {
		if l.buffer[i].batch.End != b.End {
			return l.breakChain(p, fmt.Sprintf("two batches begin at %s, they end at %s and %s", b.Previous, l.buffer[i].batch.End, b.End))
		}
		l.buffer[i].tickets = append(l.buffer[i].tickets, e.Ticket)
		return nil
	}
	l.buffer = slices.Insert(l.buffer, i, p)
	l.bytes += p.size
	return l.trim(l.begin(nil))
}

// next is where the batch in line begins.
func (l *Ledger) next() model.Cursor {
	if l.group != nil && len(l.group.batches) > 0 {
		// A group of an earlier session may not get in; the store decides.
		if p := l.group.batches[len(l.group.batches)-1]; p.batch.Epoch == l.head.Epoch {
			return p.batch.End
		}
	}
	return l.head.Applied
}

// trim answers RETRY for the batches furthest ahead until the buffer is within
// its bound. What follows next directly is kept, whatever its size, or the
// stream would never move again.
func (l *Ledger) trim(out []Action) []Action {
	next := l.next()
	for l.bytes > l.options.BufferBytes {
		i := len(l.buffer) - 1
		if i == 0 && l.buffer[0].batch.Previous == next {
			break
		}
		out = answer(out, l.buffer[i], ResultRetry, "the reorder buffer is full")
		l.bytes -= l.buffer[i].size
		l.buffer[i] = nil
		l.buffer = l.buffer[:i]
	}
	return out
}

// breakChain ends the session: everything of it that is not applied, and p, is
// answered, and the replicator will read again from the applied cursor (D4).
func (l *Ledger) breakChain(p *pending, reason string) []Action {
	l.broken = true
	out := []Action{Broken{Epoch: l.head.Epoch, Reason: reason}}
	if p != nil {
		out = answer(out, p, ResultObsolete, reason)
	}
	return l.settle(out)
}

// settle answers the buffered batches whose fate has become known.
func (l *Ledger) settle(out []Action) []Action {
	keep := l.buffer[:0]
	for _, p := range l.buffer {
		if r, msg, known := l.verdict(p.batch); known {
			out = answer(out, p, r, msg)
			l.bytes -= p.size
		} else {
			keep = append(keep, p)
		}
	}
	clear(l.buffer[len(keep):])
	l.buffer = keep
	return out
}

func answer(out []Action, p *pending, r Result, msg string) []Action {
	for _, t := range p.tickets {
		out = append(out, Answer{t, r, msg})
	}
	return out
}

// begin starts what waits: a reemission, another log, or the next group if the
// batch in line is there.
func (l *Ledger) begin(out []Action) []Action {
	if !l.busy() && l.reemit != nil {
		out = append(out, l.beginReemit()...)
	}
	if !l.busy() && l.relog != nil {
		out = append(out, l.beginRelog()...)
	}
	if l.busy() || len(l.buffer) == 0 || l.buffer[0].batch.Previous != l.head.Applied {
		return out
	}
	var size, rows, whole int
	n := 0
	for next := l.head.Applied; n < len(l.buffer) && l.buffer[n].batch.Previous == next; n++ {
		p := l.buffer[n]
		size += p.size
		rows += len(p.batch.Rows)
		alone := clears(p.batch)
		if n > 0 && (alone || size > l.options.GroupBytes || rows > l.options.GroupRows) {
			break
		}
		next = p.batch.End
		if next.AtTransactionEnd() {
			whole = n + 1
		}
		if alone {
			n++
			break
		}
	}
	// Either the group ends where a transaction ends, or it is inside one: so
	// the store sees the checkpoint move to the end of a commit or not at all.
	if whole > 0 {
		n = whole
	}
	g := &group{batches: slices.Clone(l.buffer[:n])}
	for _, p := range g.batches {
		l.bytes -= p.size
	}
	l.buffer = slices.Delete(l.buffer, 0, n)
	l.group = g
	l.builder.reset(l.head.Persisted)
	l.builder.log = g.batches[0].batch.End.Position.Log()
	return l.load(out)
}

// clears tells whether a batch removes rows that it does not name.
func clears(b *model.EvaluatedBatch) bool {
	for i := range b.Rows {
		if ofTable(b.Rows[i].Kind) {
			return true
		}
	}
	return false
}

func ofTable(k model.RowKind) bool { return k == model.RowTruncate || k == model.RowSweep }

// load asks for the records of the rows up to the next truncate or sweep.
func (l *Ledger) load(out []Action) []Action {
	g := l.group
	keys := l.builder.keys[:0]
	row := g.row
scan:
	for _, p := range g.batches[g.batch:] {
		for i := row; i < len(p.batch.Rows); i++ {
			r := &p.batch.Rows[i]
			if ofTable(r.Kind) {
				break scan
			}
			keys = l.builder.want(keys, r.Key)
			if r.Before != nil {
				keys = l.builder.want(keys, model.RowKey{Table: r.Key.Table, Row: *r.Before})
			}
		}
		row = 0
	}
	l.builder.keys = keys
	if len(keys) == 0 {
		return append(out, l.apply()...)
	}
	return append(out, Load{Keys: keys})
}

func (l *Ledger) loaded(e Loaded) []Action {
	if len(e.Records) != len(l.builder.keys) {
		panic(fmt.Sprintf("ledger: %d records loaded of %d", len(e.Records), len(l.builder.keys)))
	}
	l.builder.know(e.Records)
	return l.apply()
}

// apply takes rows into the builder until the group ends or a table is
// truncated or swept.
func (l *Ledger) apply() []Action {
	g := l.group
	for ; g.batch < len(g.batches); g.batch, g.row = g.batch+1, 0 {
		b := g.batches[g.batch].batch
		for ; g.row < len(b.Rows); g.row++ {
			r := &b.Rows[g.row]
			if ofTable(r.Kind) {
				table := r.Key.Table
				g.table, g.sweep, g.after = &table, r.Kind == model.RowSweep, model.RowID{}
				if l.builder.touches(table) {
					return l.commit(false) // so that the store lists them
				}
				return []Action{LoadTable{Table: table, Limit: l.options.TableRows}}
			}
			l.builder.row(r)
		}
	}
	return l.commit(true)
}

func (l *Ledger) tableLoaded(e TableLoaded) []Action {
	g := l.group
	var n int
	if g.sweep {
		n = l.builder.sweep(e.Rows, l.options.GroupRows)
	} else {
		n = l.builder.truncate(*g.table, g.after, e.Rows, l.options.GroupRows)
	}
	if e.More || n < len(e.Rows) {
		// A crash between these commits leaves part of the table removed
		// above the checkpoint, and the batch will come again: it removes the
		// rest.
		g.after = e.Rows[n-1].Key.Row
		if !l.builder.touches(*g.table) { // all of these stay
			return []Action{LoadTable{Table: *g.table, After: g.after, Limit: l.options.TableRows}}
		}
		return l.commit(false)
	}
	g.table = nil
	g.row++
	return l.load(nil)
}

// commit stores what the builder has; last moves the cursor past the group.
func (l *Ledger) commit(last bool) []Action {
	g := l.group
	g.last = last
	head := l.head
	head.Epoch = g.batches[0].batch.Epoch
	head.Persisted = l.builder.op
	c := &Commit{Stream: l.stream, Previous: l.head.Applied, PreviousOp: l.head.Persisted, copied: l.copied}
	if last {
		for _, p := range g.batches {
			m := &p.batch.Meta
			c.Progress = append(c.Progress, m.Progress...)
			head.SnapshotDone = head.SnapshotDone || m.SnapshotDone
			head.NoCheckpointBefore = max(head.NoCheckpointBefore, m.NoCheckpointBefore)
			head.Origin = cmp.Or(m.Origin, head.Origin)
			head.CommitTime = max(head.CommitTime, m.CommitTime)
			head.Heartbeat = max(head.Heartbeat, m.Heartbeat)
			head.PublishedAt = max(head.PublishedAt, m.PublishedAt)
			head.EvaluatedAt = max(head.EvaluatedAt, m.EvaluatedAt)
			c.copied = max(c.copied, m.Layer)
			c.Transactions += uint64(m.Transactions)
			c.SourceBytes += m.SourceBytes
			c.RowCount += len(p.batch.Rows)
		}
		c.Batches = len(g.batches)
		head.Applied = g.batches[len(g.batches)-1].batch.End
		c.Checkpoints, c.CheckpointsAt = checkpoints(g.batches), covering(head.Applied)
		if head.Applied.AtTransactionEnd() && head.SnapshotDone && head.Applied.Position >= head.NoCheckpointBefore {
			head.Checkpoint = model.Checkpoint{Op: head.Persisted, Position: head.Applied.Position}
			head.LastError, head.LastErrorAt = "", 0
			c.Published = true
			c.Activate = l.state == model.Processing
			if c.copied > l.layered {
				c.Layer = c.copied
			}
		}
	} else {
		// After a crash here the log may be cut into other batches, one of which
		// ends before the truncate whose first effects are stored now. That end
		// is no checkpoint (D1).
		head.NoCheckpointBefore = max(head.NoCheckpointBefore, covering(g.batches[len(g.batches)-1].batch.End))
	}
	c.Head = head
	l.builder.fill(c)
	g.commit = c
	return []Action{c}
}

// covering is the least position of a checkpoint that has all of the
// transaction that c is in, or at the end of.
func covering(c model.Cursor) model.Position {
	if !c.AtTransactionEnd() {
		return c.Position + "!" // just after it
	}
	return c.Position
}

// checkpoints are the custom write checkpoints of batches, of each key the
// highest: they only grow, and copied rows may be older or newer than the log.
func checkpoints(batches []*pending) []model.CustomCheckpoint {
	var all []model.CustomCheckpoint
	var index map[string]int
	for _, p := range batches {
		for _, c := range p.batch.Checkpoints {
			i, ok := index[c.UserKey]
			switch {
			case !ok:
				if index == nil {
					index = map[string]int{}
				}
				index[c.UserKey] = len(all)
				all = append(all, c)
			case c.ID > all[i].ID:
				all[i] = c
			}
		}
	}
	return all
}

// stored takes the head of a commit.
func (l *Ledger) stored(c *Commit) {
	epoch := l.head.Epoch
	l.head = c.Head
	l.head.Epoch = max(epoch, l.head.Epoch) // a session may have been opened meanwhile
	l.copied, l.layered = c.copied, max(l.layered, c.Layer)
	l.changed.add(c, l.options.Listed)
}

// is tells whether a head found in the store is that of c, which changed
// something. The time tells it apart from the commit of another writer that took
// as many ops for something else: for another part of a truncated table, say.
func (c *Commit) is(found model.StreamHead) bool {
	return found.Applied == c.Head.Applied && found.Persisted == c.Head.Persisted && found.StoredAt == c.Head.StoredAt && (c.Head.Applied != c.Previous || c.Head.Persisted != c.PreviousOp)
}

func (l *Ledger) committed() []Action {
	g, c := l.group, l.group.commit
	l.stored(c)
	g.commit = nil
	if !g.last {
		l.builder.reset(l.head.Persisted)
		if g.table == nil {
			panic("ledger: commit in the middle of a group that clears nothing")
		}
		return []Action{LoadTable{Table: *g.table, After: g.after, Limit: l.options.TableRows}}
	}
	var out []Action
	if c.Activate {
		l.state = model.Active
	}
	if c.Published {
		out = append(out, Notify{Notice: l.changed.notice(l.stream, &c.Head), Activated: c.Activate, Layer: c.Layer})
	}
	for _, p := range g.batches {
		out = answer(out, p, ResultCommitted, "")
	}
	if g.relog != nil {
		out = append(out, Relogged{Ticket: *g.relog})
	}
	l.group = nil
	return l.settle(out)
}

// failed takes the head found in the store after a Load or Commit has failed.
// A commit may have been stored although it failed.
func (l *Ledger) failed(e Failed) []Action {
	g := l.group
	if g == nil {
		l.found(e.Head)
		return l.settle(nil)
	}
	if c := g.commit; c != nil && c.is(e.Head) {
		l.head.Epoch = max(l.head.Epoch, e.Head.Epoch)
		return l.committed()
	}
	l.head = e.Head
	l.changed.everything = true
	l.group = nil
	var out []Action
	if g.relog != nil {
		out = append(out, Relogged{Ticket: *g.relog, Refused: "the commit failed"})
	}
	for _, p := range g.batches {
		r, msg, known := l.verdict(p.batch)
		if !known {
			r, msg = ResultRetry, "the commit failed"
		}
		out = answer(out, p, r, msg)
	}
	return l.settle(out)
}
