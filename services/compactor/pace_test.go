package compactor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, x := range []struct {
			busy, rate float64
			bytes      int
			took, want time.Duration
		}{
			{1, 0, 1 << 30, time.Hour, 0},
			{0.25, 0, 1 << 30, time.Second, 3 * time.Second},
			{0.5, 1000, 100, time.Second, time.Second},
			{0.5, 1000, 3000, time.Second, 3 * time.Second},
		} {
			p := &pace{busy: x.busy, rate: x.rate}
			start := time.Now()
			if err := p.step(t.Context(), x.bytes, x.took); err != nil || time.Since(start) != x.want {
				t.Errorf("%+v: waited %s, %v", x, time.Since(start), err)
			}
		}
		// Workers share the rate, each pays for its own time.
		p := &pace{busy: 0.5, rate: 1000}
		start := time.Now()
		done := make(chan time.Duration, 2)
		for range 2 {
			go func() {
				if err := p.step(t.Context(), 1000, time.Millisecond); err != nil {
					t.Error(err)
				}
				done <- time.Since(start)
			}()
		}
		if a, b := <-done, <-done; a != time.Second || b != 2*time.Second {
			t.Errorf("waited %s and %s", a, b)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.step(ctx, 1<<20, 0); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("a wait is not cut short: %v", err)
		}
	})
}
