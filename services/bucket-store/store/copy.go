package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// Export reads out everything that a store keeps, so that Copy can bring it to a
// store of another kind. Nobody may write meanwhile. An error of an iterator comes
// last.
type Export interface {
	Streams(ctx context.Context) ([]model.Stream, error)
	Tables(ctx context.Context, id model.StreamID) ([]model.TableProgress, error)
	// LastStream is the highest id that a stream may have had.
	LastStream(ctx context.Context) (model.StreamID, error)
	// Counts says how much the others yield.
	Counts(ctx context.Context, id model.StreamID) (Counts, error)
	// AllRecords yields the records of a stream.
	AllRecords(ctx context.Context, id model.StreamID) iter.Seq2[ledger.KeyedRecord, error]
	// AllEntries yields the parameter index: all that was ever visible at the
	// checkpoint cleared or later, in any order.
	AllEntries(ctx context.Context, id model.StreamID) (cleared model.OpID, entries iter.Seq2[ledger.EntryWrite, error], err error)
	// AllUsers yields the custom write checkpoints of a stream, or, of stream 0,
	// those handed out.
	AllUsers(ctx context.Context, id model.StreamID) iter.Seq2[User, error]
	// AllOps yields the ops of each bucket together, in op id order. What it
	// yields is valid until the next iteration.
	AllOps(ctx context.Context, id model.StreamID) iter.Seq2[ExportedOp, error]
}

// Sequence is what read yields, and its error last.
func Sequence[T any](read func(yield func(T) bool) error) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		stopped := false
		err := read(func(v T) bool {
			stopped = !yield(v, nil)
			return !stopped
		})
		if err != nil && !stopped {
			var none T
			yield(none, err)
		}
	}
}

// Counts are how many of each there are, so that a copy knows how far it is.
type Counts struct {
	Ops, Records, Entries, Users uint64
}

func (c Counts) sum() uint64 { return c.Ops + c.Records + c.Entries + c.Users }

// User is what is kept for one user key.
type User struct {
	Key string
	UserCheckpoints
}

// ExportedOp is an op with its bucket, and the bucket's ops since its last
// compaction.
type ExportedOp struct {
	Bucket  string
	Changes uint64
	Op      model.Op
}

// Import fills an empty store. Nobody else sees any of it before Finish.
type Import interface {
	// Add stores a part.
	Add(ctx context.Context, p *Part) error
	// Finish makes the whole durable, in one atomic step that makes it a store.
	Finish(ctx context.Context, c *ImportedCatalog) error
	// Close releases everything. What was added and not finished is left, which
	// the next import at this place removes, and nothing else takes for a store.
	Close() error
}

// Part is a part of a stream's data.
type Part struct {
	Stream  model.StreamID // 0: Users are those handed out
	Tables  []model.TableProgress
	Records []ledger.KeyedRecord
	Entries []ledger.EntryWrite
	Users   []User
	Buckets []ImportedBucket  // those of Ops, as they are after this part
	Ops     []ledger.BucketOp // in the order of buckets and op ids
}

// ImportedBucket is a bucket so far.
type ImportedBucket struct {
	Bucket string
	Number uint64 // 1, 2, … within the stream
	// Head is the sum of all ops, Base of those up to the checkpoint, First the
	// first op after it.
	Head, Base BucketTotal
	First      model.OpID
	Cleared    model.OpID // id of the CLEAR
	Changes    uint64     // since the last compaction
}

// BucketTotal is a bucket's checksum and count up to and with op Last.
type BucketTotal struct {
	Checksum model.Checksum
	Count    uint64
	Last     model.OpID
}

func (t *BucketTotal) add(op *model.Op) {
	t.Checksum += op.Checksum
	t.Count++
	t.Last = op.ID
}

// ImportedCatalog is the rest of a store.
type ImportedCatalog struct {
	Streams    []ImportedStream
	LastStream model.StreamID
}

// ImportedStream is a stream with its head.
type ImportedStream struct {
	model.Stream
	Buckets        uint64     // the highest number of one
	LookupsCleared model.OpID // see Export.AllEntries
}

var (
	// ErrNotEmpty: an import where something is.
	ErrNotEmpty = errors.New("there is something already")
	// ErrUnfinished: what is there is part of a copy that was cut short.
	ErrUnfinished = errors.New("a copy into this storage was cut short, or is under way: copy again")
)

// CopyProgress is how far a copy is.
type CopyProgress struct {
	Stream      string // its name; "" = the write checkpoints handed out
	Doing       string // records, parameters, write checkpoints, operations
	Done, Total uint64 // of all of them, in all streams
}

// A part of a copy is not larger than this, but for one thing that is.
const (
	partItems = 2000
	partBytes = 4 << 20
)

// Copy brings everything from one store to another: streams with their ids,
// names, heads and progress, records, the parameter index, write checkpoints, and
// the ops of all buckets under their ids. So clients go on with what they hold,
// and replication from where it was. Of a stopped stream, which waits to be
// cleared, only the stream itself is copied.
//
// progress is called often. Copy does not close to.
func Copy(ctx context.Context, from Export, to Import, progress func(CopyProgress)) error {
	streams, err := from.Streams(ctx)
	if err != nil {
		return fmt.Errorf("read streams: %w", err)
	}
	c := copying{ctx: ctx, from: from, to: to, report: progress}
	whole := ImportedCatalog{}
	if whole.LastStream, err = from.LastStream(ctx); err != nil {
		return fmt.Errorf("read the last stream: %w", err)
	}
	counts, err := from.Counts(ctx, 0)
	if err != nil {
		return fmt.Errorf("count write checkpoints: %w", err)
	}
	c.state.Total = counts.sum()
	for i := range streams {
		if hasData(&streams[i]) {
			if counts, err = from.Counts(ctx, streams[i].ID); err != nil {
				return fmt.Errorf("count what stream %d has: %w", streams[i].ID, err)
			}
			c.state.Total += counts.sum()
		}
	}
	if err := c.users(); err != nil {
		return err
	}
	for i := range streams {
		st := ImportedStream{Stream: streams[i]}
		if hasData(&st.Stream) {
			if err := c.stream(&st); err != nil {
				return fmt.Errorf("copy stream %d: %w", st.ID, err)
			}
		}
		whole.Streams = append(whole.Streams, st)
	}
	if err := to.Finish(ctx, &whole); err != nil {
		return fmt.Errorf("finish: %w", err)
	}
	return nil
}

func hasData(st *model.Stream) bool { return st.State != model.Stopped && st.State != model.Terminated }

// copying is a copy under way.
type copying struct {
	ctx    context.Context
	from   Export
	to     Import
	report func(CopyProgress)
	state  CopyProgress
	part   Part
	items  int
	bytes  int
}

// begin turns to something else.
func (c *copying) begin(id model.StreamID, name, doing string) {
	c.part.Stream, c.state.Stream, c.state.Doing = id, name, doing
	c.report(c.state)
}

// added counts what was added to the part, and stores it when it is full.
func (c *copying) added(bytes int) error {
	c.items++
	c.bytes += bytes
	if c.items < partItems && c.bytes < partBytes {
		return nil
	}
	return c.flush()
}

func (c *copying) flush() error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if c.items > 0 {
		if err := c.to.Add(c.ctx, &c.part); err != nil {
			return err
		}
		c.state.Done += uint64(c.items)
		c.report(c.state)
	}
	p := &c.part
	*p = Part{Stream: p.Stream, Records: p.Records[:0], Entries: p.Entries[:0], Users: p.Users[:0], Buckets: p.Buckets[:0], Ops: p.Ops[:0]}
	c.items, c.bytes = 0, 0
	return nil
}

func (c *copying) users() error {
	c.begin(c.part.Stream, c.state.Stream, "write checkpoints")
	for u, err := range c.from.AllUsers(c.ctx, c.part.Stream) {
		if err != nil {
			return err
		}
		c.part.Users = append(c.part.Users, u)
		if err := c.added(64 + len(u.Key)); err != nil {
			return err
		}
	}
	return c.flush()
}

func (c *copying) stream(st *ImportedStream) error {
	c.begin(st.ID, st.Name, "records")
	var err error
	if c.part.Tables, err = c.from.Tables(c.ctx, st.ID); err != nil {
		return err
	}
	// Also a stream without anything has tables.
	if err := c.to.Add(c.ctx, &c.part); err != nil {
		return err
	}
	c.part.Tables = nil
	for r, err := range c.from.AllRecords(c.ctx, st.ID) {
		if err != nil {
			return err
		}
		c.part.Records = append(c.part.Records, r)
		if err := c.added(64 + len(r.Record.Source) + 64*len(r.Record.Buckets) + 64*len(r.Record.Lookups)); err != nil {
			return err
		}
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.begin(st.ID, st.Name, "parameters")
	cleared, entries, err := c.from.AllEntries(c.ctx, st.ID)
	if err != nil {
		return err
	}
	st.LookupsCleared = cleared
	for e, err := range entries {
		if err != nil {
			return err
		}
		c.part.Entries = append(c.part.Entries, e)
		if err := c.added(64 + len(e.Lookup) + len(e.Values)); err != nil {
			return err
		}
	}
	if err := c.flush(); err != nil {
		return err
	}
	if err := c.users(); err != nil {
		return err
	}
	return c.ops(st)
}

func (c *copying) ops(st *ImportedStream) error {
	c.begin(st.ID, st.Name, "operations")
	at := st.Head.Checkpoint.Op
	var b ImportedBucket
	for op, err := range c.from.AllOps(c.ctx, st.ID) {
		if err != nil {
			return err
		}
		if b.Number == 0 || op.Bucket != b.Bucket {
			st.Buckets++
			b = ImportedBucket{Bucket: strings.Clone(op.Bucket), Number: st.Buckets, Changes: op.Changes}
		}
		if op.Op.ID <= b.Head.Last || op.Op.ID > st.Head.Persisted {
			return fmt.Errorf("op %s of bucket %q after op %s, the highest is %s: %w", op.Op.ID, op.Bucket, b.Head.Last, st.Head.Persisted, ErrDamaged)
		}
		b.Head.add(&op.Op)
		switch {
		case op.Op.ID <= at:
			b.Base.add(&op.Op)
		case b.First == 0:
			b.First = op.Op.ID
		}
		if op.Op.Kind == model.OpClear {
			b.Cleared = op.Op.ID
		}
		op.Op.ObjectType, op.Op.ObjectID, op.Op.Data = strings.Clone(op.Op.ObjectType), strings.Clone(op.Op.ObjectID), strings.Clone(op.Op.Data)
		p := &c.part
		if n := len(p.Buckets); n == 0 || p.Buckets[n-1].Number != b.Number {
			p.Buckets = append(p.Buckets, b)
		} else {
			p.Buckets[n-1] = b
		}
		p.Ops = append(p.Ops, ledger.BucketOp{Bucket: len(p.Buckets) - 1, Op: op.Op})
		if err := c.added(64 + len(op.Op.ObjectType) + len(op.Op.ObjectID) + len(op.Op.Data)); err != nil {
			return err
		}
	}
	return c.flush()
}
