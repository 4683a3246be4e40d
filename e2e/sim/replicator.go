package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// batch is a ChangeBatch; its changes are still the source's.
type batch struct {
	epoch         model.Epoch
	previous, end model.Cursor
	changes       []change
	layer         uint32 // the last for which they are
	alone         bool   // and the only one
	meta          model.BatchMeta
}

// replicator reads the source and publishes. It dies with its session; a new
// one begins where the store is. A replaced one may live on for a while.
type replicator struct {
	w        *stream
	source   *source
	mark     model.Position // of the log that it reads
	asking   bool           // it has found that the log is lost, and waits for an answer
	asked    int            // turns since
	epoch    model.Epoch
	cursor   model.Cursor // end of the last batch published
	dead     bool
	snapshot *snapshot // nil when streaming
	// Streaming: transactions up to next-1 are published, and so are offset
	// changes of the first after them that has any.
	next, offset int
	// layers are those of the stream when the session began, of which the first
	// copied are copied; and progress is what is published of the copy of each table.
	layers, copied uint32
	progress       [tableCount]model.TableProgress
}

// offsetBits are those of a cursor's offset below the changes of a transaction:
// they count pieces that were copied in between.
const offsetBits = 16

// snapshot is the initial copy in progress, or that which is compared with what is
// stored.
type snapshot struct {
	slot  int // the transaction after which streaming will begin
	table int
	after string
	begin bool // it is to be said first that nothing of any table is copied
}

// openSession starts the replicator as if its process came up now.
func (w *stream) openSession() *replicator {
	head, err := w.store.OpenSession(w.ctx, w.id)
	w.must(err, "open session")
	at := head.Applied.Position
	loss := w.findLoss(at)
	r := &replicator{w: w, source: w.sources[at.Mark()], mark: at.Mark(), epoch: head.Epoch, cursor: head.Applied, layers: uint32(w.layers), copied: w.layered}
	tables, err := w.store.Tables(w.ctx, w.id)
	w.must(err, "tables")
	for _, t := range tables {
		r.progress[slices.Index(tableNames[:], t.Table.Name)] = t
	}
	switch {
	case loss != model.NoLoss:
	case head.SnapshotDone:
		r.next, r.offset = indexOf(head.Applied.Position)+1, int(head.Applied.Offset>>offsetBits)
	case at.Source() == "":
		// Nothing of the log is stored: the slot is made anew.
		r.snapshot = &snapshot{slot: r.source.head(), begin: r.mark != ""}
	default:
		r.snapshot = &snapshot{slot: indexOf(head.Applied.Position)}
		for ; r.snapshot.table < tableCount && r.progress[r.snapshot.table].Done; r.snapshot.table++ {
		}
		if r.snapshot.table < tableCount {
			r.snapshot.after = string(r.progress[r.snapshot.table].LastKey)
		}
	}
	if r.snapshot != nil {
		w.slot = r.snapshot.slot
	}
	w.logf("session of epoch %d at %s", r.epoch, r.cursor)
	for _, b := range w.writers {
		b.sessionOpened()
	}
	if loss != model.NoLoss {
		r.tell(loss)
	}
	return r
}

// publish makes the next batch, if there is anything to publish. Its size, and
// so how the log is cut into batches, is chance.
func (r *replicator) publish() {
	w := r.w
	b := &batch{epoch: r.epoch, previous: r.cursor, layer: r.layers}
	if r.snapshot != nil {
		r.copy(b)
	} else if r.copied < r.layers && r.offset == 0 && (r.next == len(r.source.log) || w.rnd.IntN(4) == 0) {
		r.piece(b)
	} else if !r.stream(b, 1+w.rnd.IntN(8)) {
		return
	}
	if b.end.Compare(b.previous) <= 0 {
		w.failf("replicator made a batch from %s to %s", b.previous, b.end)
	}
	r.cursor = b.end
	w.logf("epoch %d publishes %s to %s, %d changes", b.epoch, b.previous, b.end, len(b.changes))
	w.queue = append(w.queue, &message{batch: b})
}

// copy takes the next chunk of the initial copy, as the source is now.
func (r *replicator) copy(b *batch) {
	s, source := r.snapshot, r.source
	b.end = model.Cursor{Position: r.mark + position(s.slot), Offset: r.cursor.Offset + 1}
	if s.begin {
		s.begin = false
		for table := range r.progress {
			r.progress[table] = model.TableProgress{Table: sourceTable(table)}
		}
		b.meta.Progress = slices.Clone(r.progress[:])
		return
	}
	if s.table == tableCount {
		b.meta.SnapshotDone = true
		b.meta.NoCheckpointBefore = r.mark + position(source.head())
		b.end = model.Cursor{Position: r.mark + position(s.slot) + "s"}
		r.snapshot, r.next, r.offset = nil, s.slot+1, 0
		return
	}
	limit := 1 + r.w.rnd.IntN(4)
	rows := source.rows(s.table, s.after, limit)
	for _, row := range rows {
		b.changes = append(b.changes, change{op: model.SnapshotRow, table: s.table, row: row})
		s.after = row[0]
	}
	done := len(rows) < limit
	if done && r.mark != "" {
		b.changes = append(b.changes, change{op: model.Sweep, table: s.table})
	}
	// For how many layers more an earlier session has copied what it has is not
	// known: those that are not copied yet are copied each by itself.
	p := &r.progress[s.table]
	p.Table, p.LastKey, p.Rows, p.Done = sourceTable(s.table), []byte(s.after), p.Rows+uint64(len(rows)), done
	if done {
		p.Layer = r.copied
	}
	b.meta.Progress = []model.TableProgress{*p}
	if done {
		s.table, s.after = s.table+1, ""
	}
}

// piece copies the next rows for the first layer that is not copied, as the source
// is now, or says that it is copied.
func (r *replicator) piece(b *batch) {
	w, source := r.w, r.source
	b.layer = r.copied + 1
	b.end = model.Cursor{Position: r.cursor.Position, Offset: r.cursor.Offset + 1}
	for table := range r.progress {
		p := &r.progress[table]
		if w.config.evaluators[b.layer][table] == nil || p.Layer > b.layer || p.Layer == b.layer && p.Done {
			continue
		}
		if p.Layer < b.layer {
			*p = model.TableProgress{Table: sourceTable(table), Layer: b.layer}
		}
		b.alone = true
		limit := 1 + w.rnd.IntN(4)
		rows := source.rows(table, string(p.LastKey), limit)
		for _, row := range rows {
			b.changes = append(b.changes, change{op: model.SnapshotRow, table: table, row: row})
			p.LastKey = []byte(row[0])
		}
		p.Rows += uint64(len(rows))
		p.Done = len(rows) < limit
		b.meta.Progress = []model.TableProgress{*p}
		return
	}
	b.meta.Layer, b.meta.NoCheckpointBefore = b.layer, r.mark+position(source.head())
	b.layer, r.copied = r.layers, b.layer
	source.write(0) // a mark, so that there is something to say for the log
}

// stream takes up to n changes of the log: whole transactions, or a part of
// one, whose last part may be followed by whole ones.
func (r *replicator) stream(b *batch, n int) bool {
	log := r.source.log
	b.end = r.cursor
	for r.next < len(log) {
		rest := log[r.next].changes
		if len(rest) > 0 {
			rest = rest[r.offset:]
		}
		if len(rest) > n {
			if len(b.changes) > 0 || b.end != r.cursor {
				break
			}
			b.changes = rest[:n]
			r.offset += n
			b.end.Offset += uint64(n) << offsetBits
			return true
		}
		b.changes = append(b.changes, rest...)
		n -= len(rest)
		if len(log[r.next].changes) > 0 {
			r.offset = 0
		}
		b.end = model.Cursor{Position: r.mark + position(r.next)}
		b.meta.Transactions++
		r.next++
		if n <= 0 {
			break
		}
	}
	return b.end != r.cursor
}

// message is a batch in the buffer between replicator and evaluators: it stays
// until it is acknowledged, and may be delivered any number of times.
type message struct {
	batch *batch
}

// deliver evaluates a message, any one, and hands it to a writer.
func (w *stream) deliver() {
	if len(w.queue) == 0 {
		return
	}
	// Mostly in order, as a queue does; sometimes not.
	i := min(w.rnd.IntN(4), len(w.queue)-1)
	if w.rnd.IntN(8) == 0 {
		i = w.rnd.IntN(len(w.queue))
	}
	m := w.queue[i]
	e := &model.EvaluatedBatch{Stream: w.id, Epoch: m.batch.epoch, Previous: m.batch.previous, End: m.batch.end, Meta: m.batch.meta}
	var out rules.RowResult
	for _, c := range m.batch.changes {
		e.Rows = append(e.Rows, w.evaluate(c, m.batch, &out))
	}
	if len(out.Errors) > 0 {
		w.failf("evaluate: %v", out.Errors)
	}
	if w.custom {
		var err error
		e.Checkpoints, err = carried(&out)
		w.must(err, "write checkpoints")
	}
	w.pickWriter().arrived(m, e)
}

// acknowledge takes a message off the queue.
func (w *stream) acknowledge(m *message) {
	for i, q := range w.queue {
		if q == m {
			w.queue = append(w.queue[:i], w.queue[i+1:]...)
			return
		}
	}
}

// loseLease ends the session of an epoch.
func (w *stream) loseLease(epoch model.Epoch, reason string) {
	w.logf("epoch %d is broken: %s", epoch, reason)
	for _, r := range w.replicators {
		if r.epoch == epoch {
			r.dead = true
		}
	}
}

// refused tells whether a store error is one that the contract allows a
// commit of a writer that is not the only one.
func refused(err error) bool {
	var fenced *store.FencedError
	var moved *store.MovedError
	return errors.As(err, &fenced) || errors.As(err, &moved) || errors.Is(err, store.ErrNotReplicated)
}

func (c change) String() string {
	return fmt.Sprintf("%d %s %v before %q", c.op, tableNames[c.table], c.row, c.before)
}
