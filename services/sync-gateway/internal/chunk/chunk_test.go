package chunk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/coding"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
)

func TestMain(m *testing.M) {
	// The encoder is shared; made within one bubble of time it could not be used
	// in another.
	coding.AppendSegment(nil, coding.Zstd, []byte("x"))
	goleak.VerifyTestMain(m)
}

// reader has buckets of n ops with ids 1 to n, in chunks of 10.
type reader struct {
	mu      sync.Mutex
	sizes   map[string]int
	calls   int
	chunks  map[Position]int
	pause   time.Duration
	fail    error
	invalid bool
	cutAt   int // chunks after which the read ends without an error
}

func (r *reader) Ops(ctx context.Context, upTo model.OpID, positions []Position, most int, yield func(Raw) error) error {
	r.mu.Lock()
	r.calls++
	fail, invalid := r.fail, r.invalid
	r.mu.Unlock()
	n := 0
	for _, p := range positions {
		after := p.After
		for {
			select {
			case <-time.After(r.pause):
			case <-ctx.Done():
				return ctx.Err()
			}
			if fail != nil {
				return fail
			}
			raw := Raw{Bucket: p.Bucket, Chunk: session.Chunk{After: after, NextAfter: after, Invalid: invalid}}
			r.mu.Lock()
			end := min(model.OpID(r.sizes[p.Bucket]), upTo)
			r.chunks[Position{p.Bucket, after}]++
			r.mu.Unlock()
			for id := after + 1; id <= end && raw.Count < 10 && !invalid; id++ {
				raw.Ops = wire.AppendOp(raw.Ops, &model.Op{ID: id, Kind: model.OpPut, ObjectType: "t", ObjectID: fmt.Sprint(id), Data: strings.Repeat("x", 100)})
				raw.Count++
				raw.NextAfter = id
			}
			raw.HasMore = raw.NextAfter < end && !invalid
			if err := yield(raw); err != nil {
				return err
			}
			after = raw.NextAfter
			if n++; n == most || n == r.cutAt {
				return nil
			}
			if !raw.HasMore {
				break
			}
		}
	}
	return nil
}

func (r *reader) reads(bucket string, after model.OpID) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.chunks[Position{bucket, after}]
}

var form = Form{Line: line.NDJSON}

func inCache(t *testing.T, r *reader, o Options, f func(c *Cache)) {
	synctest.Test(t, func(t *testing.T) {
		r.chunks = map[Position]int{}
		ctx, stop := context.WithCancel(t.Context())
		c := New(ctx, r, o)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		f(c)
		stop()
		wg.Wait()
	})
}

func get(c *Cache, f session.Fetch, form Form) (*Chunk, error) {
	chunk, flight := c.Get(f, form, nil)
	if chunk != nil {
		return chunk, nil
	}
	<-flight.Done()
	return flight.Result()
}

func TestSingleFlight(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 5}, pause: time.Millisecond}
	inCache(t, r, Options{}, func(c *Cache) {
		var wg sync.WaitGroup
		seen := make(chan *Chunk, 1000)
		for range 1000 {
			wg.Go(func() {
				chunk, err := get(c, session.Fetch{Bucket: "a", UpTo: 5, Count: 5}, form)
				if err != nil {
					t.Error(err)
				}
				seen <- chunk
			})
		}
		wg.Wait()
		first := <-seen
		for range 999 {
			if x := <-seen; x != first {
				t.Fatal("not the same chunk")
			}
		}
		if r.calls != 1 {
			t.Errorf("%d reads", r.calls)
		}
		if first.Count != 5 || first.HasMore || first.Counts.Put != 5 || int(first.Plain.Len) != len(first.Bytes) {
			t.Errorf("%+v", first.Chunk)
		}
	})
}

// TestBatch: what many ask for while reads are under way goes with one call.
func TestBatch(t *testing.T) {
	r := &reader{sizes: map[string]int{}, pause: time.Millisecond}
	for i := range 100 {
		r.sizes[fmt.Sprint(i)] = 3
	}
	inCache(t, r, Options{Reads: 2}, func(c *Cache) {
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				if chunk, err := get(c, session.Fetch{Bucket: fmt.Sprint(i), UpTo: 9, Count: 3}, form); err != nil || chunk.Count != 3 {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if r.calls > 4 {
			t.Errorf("%d calls", r.calls)
		}
	})
}

// TestAhead: the chunks that follow are read with the first, each once.
func TestAhead(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 2000}}
	inCache(t, r, Options{}, func(c *Cache) {
		after, n := model.OpID(0), 0
		for {
			chunk, err := get(c, session.Fetch{Bucket: "a", After: after, UpTo: 2000, Count: 2000}, form)
			if errors.Is(err, ErrAgain) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			n += chunk.Count
			after = chunk.NextAfter
			if !chunk.HasMore {
				break
			}
		}
		if n != 2000 || r.calls > 200/ahead+1 {
			t.Errorf("%d ops, %d calls", n, r.calls)
		}
		for p, k := range r.chunks {
			if k != 1 {
				t.Errorf("%v read %d times", p, k)
			}
		}
	})
}

// TestFullChunkBeyondCheckpoint: INV-24. A full chunk that was read for a later
// checkpoint is not given to a session at an earlier one.
func TestFullChunkBeyondCheckpoint(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 100}}
	inCache(t, r, Options{}, func(c *Cache) {
		if chunk, err := get(c, session.Fetch{Bucket: "a", UpTo: 100, Count: 100}, form); err != nil || chunk.NextAfter != 10 || !chunk.HasMore {
			t.Fatalf("%+v %v", chunk, err)
		}
		if chunk, err := get(c, session.Fetch{Bucket: "a", UpTo: 7, Count: 7}, form); err != nil || chunk.NextAfter != 7 || chunk.HasMore {
			t.Fatalf("%+v %v", chunk, err)
		}
		if n := r.reads("a", 0); n != 2 {
			t.Errorf("read %d times, want 2", n)
		}
		// For a later one it is.
		if chunk, err := get(c, session.Fetch{Bucket: "a", UpTo: 50, Count: 50}, form); err != nil || chunk.NextAfter != 10 {
			t.Fatalf("%+v %v", chunk, err)
		}
		if n := r.reads("a", 0); n != 2 {
			t.Errorf("read %d times, want 2", n)
		}
		// One that ended at its checkpoint is not.
		r.sizes["b"] = 5
		for upTo := range model.OpID(3) {
			if chunk, err := get(c, session.Fetch{Bucket: "b", UpTo: 3 + upTo, Count: 5}, form); err != nil || chunk.NextAfter != 3+upTo {
				t.Fatalf("%+v %v", chunk, err)
			}
		}
	})
}

func TestForms(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 5}}
	inCache(t, r, Options{}, func(c *Cache) {
		f := session.Fetch{Bucket: "a", UpTo: 5, Count: 5}
		var last *Chunk
		for _, form := range []Form{{Line: line.NDJSON}, {Line: line.Legacy}, {Line: line.BSON}, {Line: line.BSON, Coding: coding.Gzip}, {Line: line.NDJSON, Coding: coding.Zstd}} {
			chunk, err := get(c, f, form)
			if err != nil || chunk == last {
				t.Fatal(err)
			}
			last = chunk
			if form.Coding != coding.Identity && len(chunk.Bytes) >= int(chunk.Plain.Len) {
				t.Errorf("%v: %d of %d bytes", form, len(chunk.Bytes), chunk.Plain.Len)
			}
		}
	})
}

func TestBound(t *testing.T) {
	r := &reader{sizes: map[string]int{}}
	inCache(t, r, Options{MaxBytes: 20_000}, func(c *Cache) {
		for i := range 100 {
			b := fmt.Sprint(i)
			r.mu.Lock()
			r.sizes[b] = 5
			r.mu.Unlock()
			if _, err := get(c, session.Fetch{Bucket: b, UpTo: 5, Count: 5}, form); err != nil {
				t.Fatal(err)
			}
			if bytes := c.Bytes(); bytes > 20_000 {
				t.Fatalf("%d bytes", bytes)
			}
		}
		if len(c.kept) != c.order.Len() || len(c.kept) < 5 || len(c.flights) != 0 {
			t.Errorf("%d kept, %d in order, %d in the air", len(c.kept), c.order.Len(), len(c.flights))
		}
	})
}

func TestSweep(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 5, "b": 5}}
	inCache(t, r, Options{MaxAge: time.Minute}, func(c *Cache) {
		a, b := session.Fetch{Bucket: "a", UpTo: 5, Count: 5}, session.Fetch{Bucket: "b", UpTo: 5, Count: 5}
		for _, f := range []session.Fetch{a, b} {
			if _, err := get(c, f, form); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			time.Sleep(30 * time.Second)
			if _, err := get(c, a, form); err != nil {
				t.Fatal(err)
			}
		}
		if len(c.kept) != 1 || r.reads("a", 0) != 1 {
			t.Errorf("%d kept, a read %d times", len(c.kept), r.reads("a", 0))
		}
	})
}

func TestCutShort(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 2000}, cutAt: 2, pause: time.Millisecond}
	inCache(t, r, Options{}, func(c *Cache) {
		if _, err := get(c, session.Fetch{Bucket: "a", UpTo: 2000, Count: 2000}, form); err != nil {
			t.Fatal(err)
		}
		if _, err := get(c, session.Fetch{Bucket: "a", After: 10, UpTo: 2000, Count: 2000}, form); err != nil {
			t.Fatal(err)
		}
		// The third was expected and did not come: not the end of the bucket.
		chunk, err := get(c, session.Fetch{Bucket: "a", After: 20, UpTo: 2000, Count: 2000}, form)
		if errors.Is(err, ErrAgain) {
			chunk, err = get(c, session.Fetch{Bucket: "a", After: 20, UpTo: 2000, Count: 2000}, form)
		}
		if err != nil || chunk.Count != 10 {
			t.Fatalf("%+v %v", chunk, err)
		}
	})
}

func TestErrors(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 5}, fail: errors.New("away")}
	inCache(t, r, Options{}, func(c *Cache) {
		f := session.Fetch{Bucket: "a", UpTo: 5, Count: 5}
		if _, err := get(c, f, form); !errors.Is(err, r.fail) {
			t.Fatal(err)
		}
		r.mu.Lock()
		r.fail, r.invalid = nil, true
		r.mu.Unlock()
		if chunk, err := get(c, f, form); err != nil || !chunk.Invalid {
			t.Fatalf("%+v %v", chunk, err)
		}
		r.mu.Lock()
		r.invalid = false
		r.mu.Unlock()
		if chunk, err := get(c, f, form); err != nil || chunk.Invalid || chunk.Count != 5 {
			t.Fatalf("an invalid chunk was kept: %+v %v", chunk, err)
		}
	})
}

// TestPinned: D8. While clients hold too much, nothing more is read.
func TestPinned(t *testing.T) {
	r := &reader{sizes: map[string]int{"a": 5, "b": 5, "c": 5}}
	inCache(t, r, Options{MaxPinned: 1000}, func(c *Cache) {
		a, err := get(c, session.Fetch{Bucket: "a", UpTo: 5, Count: 5}, form)
		if err != nil {
			t.Fatal(err)
		}
		c.Pin(a)
		c.Pin(a)
		_, flight := c.Get(session.Fetch{Bucket: "b", UpTo: 5, Count: 5}, form, nil)
		synctest.Wait()
		c.Unpin(a)
		synctest.Wait()
		if r.reads("b", 0) != 0 {
			t.Fatal("read although too much is held")
		}
		c.Unpin(a)
		<-flight.Done()
		if b, err := flight.Result(); err != nil || b.Count != 5 || c.pinned != 0 {
			t.Fatalf("%+v %v, %d bytes held", b, err, c.pinned)
		}
	})
}
