package schedule

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// record runs for d of fake time and returns when do was called.
func record(t *testing.T, pause, d time.Duration, do func(ctx context.Context, n int) error, alive func()) []time.Duration {
	t.Helper()
	var calls []time.Duration
	synctest.Test(t, func(*testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		start := time.Now()
		Run(ctx, pause, func(ctx context.Context) error {
			calls = append(calls, time.Since(start))
			return do(ctx, len(calls))
		}, alive)
	})
	return calls
}

func TestNoOverlap(t *testing.T) {
	running := false
	calls := record(t, time.Minute, 19*time.Minute, func(context.Context, int) error {
		if running {
			t.Error("two rounds at once")
		}
		running = true
		time.Sleep(5 * time.Minute)
		running = false
		return nil
	}, func() {})
	if want := []time.Duration{0, 6 * time.Minute, 12 * time.Minute, 18 * time.Minute}; !slices.Equal(calls, want) {
		t.Errorf("got %v", calls)
	}
}

func TestBackoff(t *testing.T) {
	calls := record(t, time.Second, 3*time.Minute, func(_ context.Context, n int) error {
		if n >= 2 && n <= 10 {
			return errors.New("no store")
		}
		return nil
	}, func() {})
	want := []time.Duration{0, 1000, 1500, 2500, 4500, 8500, 16500, 32500, 64500, 124500}
	for i := range want {
		want[i] *= time.Millisecond
	}
	if !slices.Equal(calls, want) {
		t.Errorf("got %v", calls)
	}
}

func TestAlive(t *testing.T) {
	beats := 0
	record(t, time.Minute, 10*time.Minute+time.Second, func(ctx context.Context, _ int) error {
		<-ctx.Done()
		return nil
	}, func() { beats++ })
	if beats != 120 {
		t.Errorf("%d beats in 10 minutes of one long round", beats)
	}
}
