// Package chunk reads parts of buckets and keeps them as the bytes of a client's
// line, so that a part is read and encoded once, however many clients are at
// the same place of a bucket (DESIGN.md decision 3).
//
// A chunk that is full holds for every later checkpoint and is kept under its
// bucket and start alone; one that ends at its checkpoint is kept under that as
// well. Compaction does not make kept chunks wrong: a client may read the old
// form of a part and the new form of the next (D6).
//
// Invariants:
//
//   - A chunk that is answered for a checkpoint has no op beyond it, INV-24
//     (TestFullChunkBeyondCheckpoint).
//   - However many ask at once, a part is read once (TestSingleFlight).
//   - The memory of kept chunks is bounded, and what nobody asks for is dropped
//     after a while (TestBound, TestSweep); so is that of chunks which slow
//     clients hold (TestPinned).
//   - A read that ends early never looks like the end of a bucket
//     (TestCutShort).
package chunk

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/coding"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
)

// Position is a place in a bucket.
type Position struct {
	Bucket string
	After  model.OpID
}

// Raw is a chunk as the store sends it.
type Raw struct {
	Bucket string
	session.Chunk
	Ops []byte // op blocks; valid until yield returns
}

// Reader reads the ops of buckets up to a checkpoint, chunk after chunk, at
// most maxChunks of them (0 = no bound).
type Reader interface {
	Ops(ctx context.Context, checkpoint model.OpID, positions []Position, maxChunks int, yield func(Raw) error) error
}

// Form is how a chunk is written.
type Form struct {
	Line   line.Form
	Coding coding.Coding
}

// Chunk is a data line that is shared by all who send it.
type Chunk struct {
	session.Chunk
	Bytes  []byte     // the line, coded
	Plain  coding.Sum // of the line as it was before coding
	Counts line.Counts
	pins   int // guarded by the cache
}

// ErrAgain is a flight's error when the read ended before it came to the part:
// ask again.
var ErrAgain = errors.New("read ended early")

// Flight is a chunk that is being read.
type Flight struct {
	done  chan struct{}
	chunk *Chunk
	err   error
}

// Done is closed when the flight has ended.
func (f *Flight) Done() <-chan struct{} { return f.done }

// Result returns how the flight ended.
func (f *Flight) Result() (*Chunk, error) { return f.chunk, f.err }

type key struct {
	Position
	upTo model.OpID // 0 for a full chunk
	form Form
}

type kept struct {
	key   key
	chunk *Chunk
	used  time.Time
	place *list.Element
}

// request is one flight waiting to be read.
type request struct {
	key   key
	count uint64
}

// Options of a Cache. Zero fields have defaults.
type Options struct {
	MaxBytes int64         // of kept chunks; 64 MiB
	MaxAge   time.Duration // of a chunk that nobody asks for; 10 s
	Reads    int           // concurrent; 10
	Timeout  time.Duration // of a read; 30 s
	// MaxPinned bounds the bytes on their way to clients: beyond it nothing is
	// read until some of them have been taken or their clients were cut off.
	MaxPinned int64 // 256 MiB
	// Counts may be shared by caches, one after the other; nil = none.
	Counts *Counts
}

// Counts say how often a chunk was there, was read, or was being read already.
type Counts struct{ Hits, Misses, Shared atomic.Uint64 }

const (
	// small is the number of ops of a bucket that is surely one chunk, by ops.
	small = 1000
	// batch is how many such buckets are read with one call.
	batch = 128
	// ahead is how many chunks of a bigger bucket are read with one call.
	ahead = 8
	// lookAhead is how many buckets are read that a session will come to.
	lookAhead = 32
	// overhead is charged for a chunk besides its bytes.
	overhead = 400
)

// Cache reads and keeps chunks of one replication stream.
type Cache struct {
	reader Reader
	o      Options

	mu      sync.Mutex
	ctx     context.Context // ends the reads; set by Run
	kept    map[key]*kept
	order   *list.List // of *kept, the last used first
	bytes   int64
	pinned  int64 // bytes of chunks that somebody is sending
	flights map[key]*Flight
	queue   []request
	running int
	closed  bool
	readers sync.WaitGroup
}

// New returns a cache. Run must run while it is used.
func New(ctx context.Context, r Reader, o Options) *Cache {
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	if o.MaxAge == 0 {
		o.MaxAge = 10 * time.Second
	}
	if o.Reads == 0 {
		o.Reads = 10
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Counts == nil {
		o.Counts = new(Counts)
	}
	if o.MaxPinned == 0 {
		o.MaxPinned = 256 << 20
	}
	return &Cache{reader: r, o: o, ctx: ctx, kept: map[key]*kept{}, order: list.New(), flights: map[key]*Flight{}}
}

// Run drops what was not asked for until ctx ends, then waits for the reads.
func (c *Cache) Run(ctx context.Context) error {
	tick := time.NewTicker(c.o.MaxAge / 4)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			c.sweep(now)
		case <-ctx.Done():
			c.mu.Lock()
			c.closed = true
			for _, r := range c.queue {
				c.land(r.key, nil, ctx.Err())
			}
			c.queue = nil
			c.mu.Unlock()
			c.readers.Wait()
			return nil
		}
	}
}

func (c *Cache) sweep(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		e := c.order.Back()
		if e == nil || now.Sub(e.Value.(*kept).used) < c.o.MaxAge {
			return
		}
		c.drop(e.Value.(*kept))
	}
}

// Bytes is the memory of the chunks that are kept.
func (c *Cache) Bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// Pinned is the memory of the chunks that are on their way to clients.
func (c *Cache) Pinned() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pinned
}

// Get returns the chunk, or the flight that will bring it. If it has to be
// read, so is what ahead names: what will be asked for next.
func (c *Cache) Get(f session.Fetch, form Form, ahead func(dst []session.Fetch, n int) []session.Fetch) (*Chunk, *Flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	chunk, fl, started := c.get(f, form)
	if !started {
		return chunk, fl
	}
	if ahead != nil {
		var list [lookAhead]session.Fetch
		for _, a := range ahead(list[:0], lookAhead) {
			c.get(a, form)
		}
	}
	c.dispatch()
	return nil, fl
}

// get is Get for one chunk; started says that a read has to be dispatched. c.mu
// is held.
func (c *Cache) get(f session.Fetch, form Form) (_ *Chunk, _ *Flight, started bool) {
	at := Position{f.Bucket, f.After}
	if k := c.find(at, f.UpTo, form); k != nil {
		c.o.Counts.Hits.Add(1)
		k.used = time.Now()
		c.order.MoveToFront(k.place)
		return k.chunk, nil, false
	}
	k := key{at, f.UpTo, form}
	if fl := c.flights[k]; fl != nil {
		c.o.Counts.Shared.Add(1)
		return nil, fl, false
	}
	c.o.Counts.Misses.Add(1)
	fl := c.takeOff(k)
	if c.closed {
		c.land(k, nil, context.Canceled)
		return nil, fl, false
	}
	c.queue = append(c.queue, request{k, f.Count})
	return nil, fl, true
}

// Pin says that a chunk is about to be sent; Unpin that it was, or never will
// be. Slow clients hold chunks that may not be kept any more; this is what
// bounds them.
func (c *Cache) Pin(chunk *Chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if chunk.pins == 0 {
		c.pinned += int64(len(chunk.Bytes))
	}
	chunk.pins++
}

// Unpin undoes one Pin.
func (c *Cache) Unpin(chunk *Chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if chunk.pins--; chunk.pins == 0 {
		c.pinned -= int64(len(chunk.Bytes))
		c.dispatch()
	}
}

// Full reports whether so much is held that nothing more is read.
func (c *Cache) Full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pinned >= c.o.MaxPinned
}

// find looks for a kept chunk. c.mu is held.
func (c *Cache) find(at Position, upTo model.OpID, form Form) *kept {
	if k := c.kept[key{at, 0, form}]; k != nil && k.chunk.NextAfter <= upTo {
		return k
	}
	return c.kept[key{at, upTo, form}]
}

func (c *Cache) takeOff(k key) *Flight {
	fl := &Flight{done: make(chan struct{})}
	c.flights[k] = fl
	return fl
}

// land ends a flight, if it is still in the air. c.mu is held.
func (c *Cache) land(k key, chunk *Chunk, err error) {
	fl := c.flights[k]
	if fl == nil {
		return
	}
	delete(c.flights, k)
	fl.chunk, fl.err = chunk, err
	close(fl.done)
}

// dispatch starts reads while there is something to read and room for another.
// c.mu is held.
func (c *Cache) dispatch() {
	for c.running < c.o.Reads && len(c.queue) > 0 && c.pinned < c.o.MaxPinned && !c.closed {
		first := c.queue[0]
		rs := []request{first}
		rest := c.queue[1:]
		if first.count <= small {
			keep := rest[:0]
			for _, r := range rest {
				if len(rs) < batch && r.count <= small && r.key.upTo == first.key.upTo {
					rs = append(rs, r)
				} else {
					keep = append(keep, r)
				}
			}
			clear(rest[len(keep):])
			rest = keep
		}
		c.queue = rest
		c.running++
		c.readers.Add(1)
		go func() {
			defer c.readers.Done()
			c.read(rs)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.running--
			c.dispatch()
		}()
	}
}

var errEnough = errors.New("enough")

// read fetches what rs ask for with one call.
func (c *Cache) read(rs []request) {
	ctx, cancel := context.WithTimeout(c.ctx, c.o.Timeout)
	defer cancel()
	wanted := make(map[Position][]Form, len(rs))
	positions := make([]Position, 0, len(rs))
	for _, r := range rs {
		if wanted[r.key.Position] == nil {
			positions = append(positions, r.key.Position)
		}
		wanted[r.key.Position] = append(wanted[r.key.Position], r.key.form)
	}
	upTo := rs[0].key.upTo
	maxChunks := 0
	if rs[0].count > small {
		maxChunks = ahead
	}
	chunks, further, invalid := 0, 0, false
	err := c.reader.Ops(ctx, upTo, positions, maxChunks, func(raw Raw) error {
		at := Position{raw.Bucket, raw.After}
		forms := wanted[at]
		if forms == nil {
			return nil // a part that nobody has asked for
		}
		chunks++
		invalid = invalid || raw.Invalid
		// The next part comes now: whoever asks for it once this one has arrived
		// shall wait for it.
		more := raw.HasMore && !raw.Invalid && chunks != maxChunks
		var expected []Form
		next := Position{raw.Bucket, raw.NextAfter}
		if more && further+1 < ahead {
			further++
			if expected = c.expect(next, upTo, forms); len(expected) > 0 {
				wanted[next] = expected
			}
		}
		for _, f := range forms {
			chunk, err := encode(raw, f)
			if err != nil {
				return err
			}
			c.arrive(key{at, upTo, f}, chunk)
		}
		delete(wanted, at)
		if more && len(expected) == 0 {
			return errEnough
		}
		return nil
	})
	enough := errors.Is(err, errEnough)
	if enough {
		err = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := make(map[Position]bool, len(positions))
	for _, p := range positions {
		asked[p] = true
	}
	for at, forms := range wanted {
		for _, f := range forms {
			k := key{at, upTo, f}
			switch {
			case err != nil:
				c.land(k, nil, err)
			case invalid:
				c.land(k, &Chunk{Chunk: session.Chunk{After: at.After, NextAfter: at.After, Invalid: true}}, nil)
			case asked[at] && !enough:
				// The store has nothing to send for it.
				c.land(k, &Chunk{Chunk: session.Chunk{After: at.After, NextAfter: at.After}}, nil)
			default:
				c.land(k, nil, ErrAgain)
			}
		}
	}
}

// expect takes off for a part that is about to arrive, in the forms in which it
// is neither kept nor in the air.
func (c *Cache) expect(at Position, upTo model.OpID, forms []Form) []Form {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Form
	for _, f := range forms {
		k := key{at, upTo, f}
		if c.flights[k] == nil && c.find(at, upTo, f) == nil {
			c.takeOff(k)
			out = append(out, f)
		}
	}
	return out
}

func (c *Cache) arrive(k key, chunk *Chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.land(k, chunk, nil)
	if chunk.Invalid {
		return
	}
	if chunk.HasMore {
		k.upTo = 0
	}
	if old := c.kept[k]; old != nil {
		c.drop(old)
	}
	e := &kept{key: k, chunk: chunk, used: time.Now()}
	e.place = c.order.PushFront(e)
	c.kept[k] = e
	c.bytes += int64(len(chunk.Bytes)) + overhead
	for c.bytes > c.o.MaxBytes && c.order.Len() > 1 {
		c.drop(c.order.Back().Value.(*kept))
	}
}

func (c *Cache) drop(e *kept) {
	c.order.Remove(e.place)
	delete(c.kept, e.key)
	c.bytes -= int64(len(e.chunk.Bytes)) + overhead
}

// scratch is memory in which lines are put together before they are copied to
// their exact size.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// maxScratch bounds what a resting scratch may keep.
const maxScratch = 4 << 20

func encode(raw Raw, f Form) (*Chunk, error) {
	c := &Chunk{Chunk: raw.Chunk}
	if raw.Count == 0 {
		return c, nil
	}
	b := scratch.Get().(*[]byte)
	defer func() {
		if cap(*b) <= maxScratch {
			scratch.Put(b)
		}
	}()
	plain, counts, err := line.AppendChunk((*b)[:0], f.Line, session.Data{
		Bucket: raw.Bucket, After: raw.After, NextAfter: raw.NextAfter, HasMore: raw.HasMore, Count: raw.Count,
	}, raw.Ops)
	*b = plain
	if err != nil {
		return nil, err
	}
	c.Counts = counts
	if f.Coding == coding.Identity {
		c.Plain = coding.Sum{Len: int64(len(plain))}
		c.Bytes = append(make([]byte, 0, len(plain)), plain...)
		return c, nil
	}
	c.Plain = coding.SumOf(plain)
	z := scratch.Get().(*[]byte)
	defer func() {
		if cap(*z) <= maxScratch {
			scratch.Put(z)
		}
	}()
	*z = coding.AppendSegment((*z)[:0], f.Coding, plain)
	c.Bytes = append(make([]byte, 0, len(*z)), *z...)
	return c, nil
}
