// Package gather shares reads and calls among those who want them at the same
// time.
//
// Invariants:
//
//   - Every caller gets the values of its own keys (TestGather).
//   - A Fresh value was read after its caller asked (TestFresh).
package gather

import (
	"context"
	"sync"
)

// Gather makes one call of many that are wanted at the same time: while as many
// calls as allowed are under way, the keys of those who come are put together,
// by group (a checkpoint), and go with the next call.
type Gather[G comparable, K, V any] struct {
	// Call returns the values of keys, in their order.
	Call  func(ctx context.Context, g G, keys []K) ([]V, error)
	Calls int // at the same time
	Keys  int // of one call, unless one caller has more
	// Carriers counts the goroutines that make calls.
	Carriers *sync.WaitGroup

	mu      sync.Mutex
	running int
	groups  []*gathered[G, K, V]
}

type gathered[G comparable, K, V any] struct {
	group   G
	keys    []K
	waiters []waiter[V]
}

type waiter[V any] struct {
	from, to int
	ctx      context.Context
	answer   chan answer[V]
}

type answer[V any] struct {
	values []V
	err    error
}

// Do returns the values of keys, in their order.
func (g *Gather[G, K, V]) Do(ctx context.Context, group G, keys []K) ([]V, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	ch := make(chan answer[V], 1) // the one answer, so that the caller may leave
	g.mu.Lock()
	var t *gathered[G, K, V]
	for _, w := range g.groups {
		if w.group == group && len(w.keys)+len(keys) <= g.Keys {
			t = w
			break
		}
	}
	if t == nil {
		t = &gathered[G, K, V]{group: group}
		g.groups = append(g.groups, t)
	}
	t.waiters = append(t.waiters, waiter[V]{len(t.keys), len(t.keys) + len(keys), ctx, ch})
	t.keys = append(t.keys, keys...)
	if g.running < g.Calls {
		g.running++
		g.Carriers.Go(g.carry)
	}
	g.mu.Unlock()
	select {
	case a := <-ch:
		return a.values, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// carry makes calls until nobody waits.
func (g *Gather[G, K, V]) carry() {
	for {
		g.mu.Lock()
		if len(g.groups) == 0 {
			g.running--
			g.mu.Unlock()
			return
		}
		t := g.groups[0]
		g.groups = append(g.groups[:0], g.groups[1:]...)
		g.mu.Unlock()
		// The call serves several: it ends with the last of them, not the first.
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.waiters[0].ctx))
		stop := whenAllDone(t.waiters, cancel)
		values, err := g.Call(ctx, t.group, t.keys)
		stop()
		cancel()
		for _, w := range t.waiters {
			a := answer[V]{err: err}
			if err == nil {
				a.values = values[w.from:w.to:w.to]
			}
			w.answer <- a
		}
	}
}

// whenAllDone calls cancel when the contexts of all waiters have ended.
func whenAllDone[V any](ws []waiter[V], cancel func()) (stop func()) {
	var mu sync.Mutex
	left := len(ws)
	stops := make([]func() bool, len(ws))
	for i, w := range ws {
		stops[i] = context.AfterFunc(w.ctx, func() {
			mu.Lock()
			defer mu.Unlock()
			if left--; left == 0 {
				cancel()
			}
		})
	}
	return func() {
		for _, s := range stops {
			s()
		}
	}
}

// Fresh shares reads among callers such that nobody gets one that started
// before the call.
type Fresh[V any] struct {
	Read    func(ctx context.Context) (V, error)
	Readers *sync.WaitGroup // counts the goroutines that read

	mu   sync.Mutex
	now  *read[V] // under way: too late to join
	next *read[V]
}

type read[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// Do returns a value that was read after Do was called.
func (f *Fresh[V]) Do(ctx context.Context) (V, error) {
	f.mu.Lock()
	r := f.next
	if r == nil {
		r = &read[V]{done: make(chan struct{})}
		f.next = r
		if f.now == nil {
			f.now, f.next = r, nil
			ctx := context.WithoutCancel(ctx) // others may wait for it too
			f.Readers.Go(func() { f.run(ctx) })
		}
	}
	f.mu.Unlock()
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

func (f *Fresh[V]) run(ctx context.Context) {
	for {
		r := f.now
		r.value, r.err = f.Read(ctx)
		close(r.done)
		f.mu.Lock()
		f.now, f.next = f.next, nil
		more := f.now != nil
		f.mu.Unlock()
		if !more {
			return
		}
	}
}
