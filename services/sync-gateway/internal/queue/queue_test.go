package queue

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(2, 3)
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 {
			if err := q.Enter(ctx); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		entered := make(chan error, 3)
		for range 3 {
			wg.Go(func() { entered <- q.Enter(ctx) })
		}
		synctest.Wait()
		if err := q.Enter(ctx); !errors.Is(err, ErrFull) {
			t.Errorf("beyond the queue: %v", err)
		}
		q.Leave()
		synctest.Wait()
		if err := <-entered; err != nil || len(entered) != 0 {
			t.Errorf("a place was given back: %v, %d more", err, len(entered))
		}
		cancel()
		wg.Wait()
		for range 2 {
			if err := <-entered; !errors.Is(err, context.Canceled) {
				t.Errorf("given up: %v", err)
			}
		}
		q.Leave()
		q.Leave()
		if len(q.places) != 0 || q.waiting.Load() != 0 {
			t.Errorf("%d places taken, %d wait", len(q.places), q.waiting.Load())
		}
	})
}
