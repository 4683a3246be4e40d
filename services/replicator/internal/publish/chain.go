// Package publish turns transactions into the chain of change batches and
// keeps them under way until the ledger has them.
//
// Invariants:
//
//   - Each batch begins where the one before ended (TestChain).
//   - D4: after a restart at any cursor of the chain, the same changes follow,
//     none twice and none left out, however they were packed (TestResumeAnywhere).
//   - A batch that ends at offset 0 ends a source transaction, and no other does
//     (D1; TestChain).
//   - What is under way is bounded (TestBackpressure).
//   - Positions come as the source knows them; those of batches bear the mark of
//     the stream's log, so that each batch is after all of an earlier log
//     (TestMark).
package publish

import (
	"context"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// FullBytes is the size at which a batch is closed.
const FullBytes = 512 << 10

// A cursor's offset counts row changes, and below them batches that the copy of
// a table put in between: so both orders are those of the chain.
const (
	insertBits = 24
	insertMask = 1<<insertBits - 1
)

// transport is what a chain needs of a Publisher.
type transport interface {
	send(id string, end model.Cursor, body []byte, heartbeat model.Micros, span *trace.Span)
	quiet() bool
	acknowledged() bool
	Wait(ctx context.Context) error
	MaxRow() int
}

// Observer is told of what is published.
type Observer struct {
	Batch func(rows, transactions int, sourceBytes uint64, size int)
	Read  func(heartbeat model.Micros)
	// Published: JetStream has a batch, with this heartbeat unless that is 0.
	Published func(heartbeat model.Micros)
	// Trouble: nothing can be published at present.
	Trouble func(err error)
	// Trace makes the span of each batch that has changes, with which a trace
	// begins; nil = none.
	Trace *trace.Tracer
}

// Chain makes batches of transactions (as source.Sink, but for Table) and of
// copied rows (Insert). The two do not run at the same time, except that Insert
// may be called between changes by the goroutine that adds them.
type Chain struct {
	out    transport
	stream model.StreamID
	epoch  model.Epoch
	layer  uint32                                 // last one of the stream
	known  map[model.TableID]*model.TableProgress // written under mu, read by the reader of the log
	obs    Observer
	now    func() time.Time
	full   int // FullBytes, but in tests

	mark model.Position // of the log, see model.Position

	mu   sync.Mutex
	prev model.Cursor // where the last batch ended
	rows *source.Rows // changes that wait

	at      model.Position // end of the last transaction
	changes uint64         // of the open transaction, published or not
	inserts uint64         // batches put in since
	skip    uint64         // changes of the open or next transaction that are stored
	open    bool           // within a transaction: rows are the reader's
	marked  bool           // the open transaction has a marker

	until model.Position // CopiedUntil; written under mu
	hold  model.Position // for the next batch
	// origin is for the next batch: what bucket-store does not have yet.
	origin string

	// Whole transactions that wait: the first `whole` of rows, up to wholeAt.
	waiting bool
	whole   int
	wholeAt model.Position
	meta    model.BatchMeta
	beat    model.Micros // of the open transaction
}

// NewChain returns a chain that goes on at applied. If nothing of the log is
// applied, it begins at start.
func NewChain(p *Publisher, stream model.StreamID, epoch model.Epoch, applied model.Cursor, start model.Position, known []model.TableProgress, obs Observer) *Chain {
	c := newChain(p, stream, epoch, applied, start, known, obs)
	p.progress = c.progress
	if obs.Published != nil {
		p.published = obs.Published
	}
	if obs.Trouble != nil {
		p.trouble = obs.Trouble
	}
	return c
}

func newChain(out transport, stream model.StreamID, epoch model.Epoch, applied model.Cursor, start model.Position, known []model.TableProgress, obs Observer) *Chain {
	c := &Chain{
		out: out, stream: stream, epoch: epoch, obs: obs, now: time.Now, full: FullBytes, known: map[model.TableID]*model.TableProgress{},
		mark: applied.Position.Mark(), prev: applied, at: applied.Position, changes: 0, skip: applied.Offset >> insertBits, inserts: applied.Offset & insertMask,
		rows: &source.Rows{Limit: out.MaxRow()},
	}
	if applied.Position.Source() == "" {
		c.at = c.mark + start
	}
	for i := range known {
		c.known[known[i].Table.ID] = &known[i]
	}
	return c
}

// Layered says how many layers the stream has. It is called before anything is
// published.
func (c *Chain) Layered(layers uint32) { c.layer = layers }

// Copied says that rows were copied up to a position of the source.
func (c *Chain) Copied(until model.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = max(c.until, c.mark+until)
}

// CopiedUntil is for the goroutine that adds changes.
func (c *Chain) CopiedUntil() model.Position { return c.until.Source() }

// Hold keeps checkpoints back until position.
func (c *Chain) Hold(position model.Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = max(c.hold, c.mark+position)
}

// From says that positions are of another origin than bucket-store has.
func (c *Chain) From(origin string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.origin = origin
}

// Known returns the tables of the stream.
func (c *Chain) Known() map[model.TableID]*model.TableProgress { return c.known }

// Rows has the memory for the next change.
func (c *Chain) Rows() *source.Rows { return c.rows }

// MaxRow is the size above which a row must not be inserted.
func (c *Chain) MaxRow() int { return c.out.MaxRow() }

// Begin opens a transaction.
func (c *Chain) Begin(position model.Position) (skip bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mark+position < c.at {
		return true
	}
	c.open, c.changes, c.marked, c.beat = true, 0, false, 0
	return false
}

// Skip reports whether the next change is stored already.
func (c *Chain) Skip() bool {
	if c.skip == 0 {
		return false
	}
	c.skip--
	c.changes++
	return true
}

// Added counts a change and publishes a part of the transaction if it is big.
func (c *Chain) Added(ctx context.Context) error {
	c.changes++
	if c.rows.Bytes < c.full {
		return nil
	}
	if err := c.out.Wait(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flush()
	return nil
}

// Heartbeat notes a marker in the open transaction.
func (c *Chain) Heartbeat(at model.Micros) {
	c.marked = true
	c.beat = max(c.beat, at)
	if at != 0 && c.obs.Read != nil {
		c.obs.Read(at)
	}
}

// Commit ends the open transaction.
func (c *Chain) Commit(ctx context.Context, t source.Transaction) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = false
	if c.skip > 0 && c.changes > 0 {
		return errs.New(errs.S1101, "the transaction at %s has %d changes, of which %d are said to be stored", t.Position, c.changes, c.changes+c.skip)
	}
	at := c.at
	c.at, c.inserts = c.mark+t.Position, 0
	if c.changes == 0 && !c.marked && (c.prev.Offset == 0 || c.waiting || c.skip > 0) {
		if c.skip > 0 {
			// The transaction that is stored in part comes later.
			c.at, c.inserts = at, c.prev.Offset&insertMask
		}
		return nil // nothing for us
	}
	if c.skip > 0 {
		return errs.New(errs.S1101, "the transaction at %s precedes one that is stored in part", t.Position)
	}
	c.changes = 0
	c.waiting, c.whole, c.wholeAt = true, len(c.rows.Changes), c.at
	c.meta.Transactions++
	c.meta.SourceBytes += t.Bytes
	c.meta.CommitTime = max(c.meta.CommitTime, t.Time)
	c.meta.Heartbeat = max(c.meta.Heartbeat, c.beat)
	if c.rows.Bytes >= c.full {
		c.mu.Unlock()
		err := c.out.Wait(ctx)
		c.mu.Lock()
		if err != nil {
			return err
		}
		c.flush()
	} else if c.out.quiet() || c.beat != 0 && c.out.acknowledged() {
		// A heartbeat does not wait for what is behind JetStream: if that is stuck,
		// it shall show there and not here.
		c.flush()
	}
	return nil
}

// Idle moves the chain to a place up to which the log has nothing.
func (c *Chain) Idle(_ context.Context, position model.Position) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	position = c.mark + position
	if c.open || c.skip > 0 || position <= c.at || !c.out.quiet() {
		return nil
	}
	c.at, c.inserts = position, 0
	c.waiting, c.whole, c.wholeAt = true, len(c.rows.Changes), position
	c.flush()
	return nil
}

// progress publishes what waits, now that something got through.
func (c *Chain) progress() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting && !c.open && c.out.quiet() {
		c.flush()
	}
}

// flush publishes whole transactions that wait, then the part of the open one:
// never both in one batch. The caller holds mu.
func (c *Chain) flush() {
	changes := c.rows.Changes
	if c.waiting {
		meta := c.meta
		c.meta = model.BatchMeta{}
		c.emit(changes[:c.whole], model.Cursor{Position: c.wholeAt}, meta)
		changes = changes[c.whole:]
		c.waiting, c.whole = false, 0
	}
	if len(changes) > 0 {
		c.emit(changes, model.Cursor{Position: c.at, Offset: c.changes<<insertBits | c.inserts}, model.BatchMeta{})
	}
	c.rows.Reset()
}

// Insert publishes a batch of its own: rows that were copied, with what meta
// says of them. rows is reset. It may be called concurrently while no
// transaction is open.
func (c *Chain) Insert(ctx context.Context, rows *source.Rows, meta model.BatchMeta) error {
	return c.insert(ctx, rows, meta, c.layer, false)
}

// InsertAlone is Insert of rows that were copied for one layer alone.
func (c *Chain) InsertAlone(ctx context.Context, rows *source.Rows, meta model.BatchMeta, layer uint32) error {
	return c.insert(ctx, rows, meta, layer, true)
}

func (c *Chain) insert(ctx context.Context, rows *source.Rows, meta model.BatchMeta, layer uint32, alone bool) error {
	if err := c.out.Wait(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting || len(c.rows.Changes) > 0 {
		c.flush()
	}
	c.inserts++
	if c.inserts > insertMask {
		return errs.New(errs.S1101, "too many batches in one place of the chain")
	}
	if meta.NoCheckpointBefore != "" {
		meta.NoCheckpointBefore = c.mark + meta.NoCheckpointBefore
	}
	changes := c.changes
	if c.skip > 0 && !c.open {
		changes = c.skip // of the transaction that comes next
	}
	for i := range meta.Progress {
		p := meta.Progress[i]
		c.known[p.Table.ID] = &p
	}
	c.emitFor(layer, alone, rows.Changes, model.Cursor{Position: c.at, Offset: changes<<insertBits | c.inserts}, meta)
	rows.Reset()
	return nil
}

// emit publishes one batch. The caller holds mu.
func (c *Chain) emit(changes []model.Change, end model.Cursor, meta model.BatchMeta) {
	c.emitFor(c.layer, false, changes, end, meta)
}

// emitFor is emit of what is for one layer alone, or for all up to it.
func (c *Chain) emitFor(layer uint32, alone bool, changes []model.Change, end model.Cursor, meta model.BatchMeta) {
	meta.NoCheckpointBefore = max(meta.NoCheckpointBefore, c.hold)
	meta.Origin = c.origin
	c.hold, c.origin = "", ""
	c.until = max(c.until, meta.NoCheckpointBefore)
	meta.PublishedAt = model.Micros(c.now().UnixMicro())
	b := model.ChangeBatch{Stream: c.stream, Epoch: c.epoch, Layer: layer, Alone: alone, Previous: c.prev, End: end, Changes: changes, Meta: meta}
	var span *trace.Span
	if len(changes) > 0 { // not of each heartbeat
		span = c.obs.Trace.Root("publish batch", trace.Producer, "")
	}
	body := wire.EncodeChangeBatch(&b)
	if span != nil {
		span.Int("sluice.stream", int64(c.stream))
		span.Text("sluice.position", end.String())
		span.Int("sluice.changes", int64(len(changes)))
		span.Int("sluice.transactions", int64(meta.Transactions))
		span.Int("messaging.message.body.size", int64(len(body)))
		if meta.CommitTime != 0 {
			span.Int("sluice.commit_age_us", int64(meta.PublishedAt-meta.CommitTime))
		}
	}
	c.out.send(messageID(c.stream, c.epoch, end), end, body, meta.Heartbeat, span)
	c.prev = end
	if c.obs.Batch != nil {
		c.obs.Batch(len(changes), int(meta.Transactions), meta.SourceBytes, len(body))
	}
}
