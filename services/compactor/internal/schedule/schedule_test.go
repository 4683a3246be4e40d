package schedule

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

type call struct {
	at    time.Duration
	round Round
}

// record runs the plan for d of fake time and returns when do was called.
func record(t *testing.T, p Plan, d time.Duration, do func(ctx context.Context, n int) error, alive func()) []call {
	t.Helper()
	var calls []call
	synctest.Test(t, func(*testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		start := time.Now()
		Run(ctx, p, func(ctx context.Context, r Round) error {
			calls = append(calls, call{time.Since(start), r})
			return do(ctx, len(calls))
		}, alive)
	})
	return calls
}

func fine(context.Context, int) error { return nil }

func TestTimetable(t *testing.T) {
	calls := record(t, Plan{Full: 10 * time.Minute, Look: 3 * time.Minute}, 21*time.Minute, fine, func() {})
	want := []call{
		{0, Look}, {3 * time.Minute, Look}, {6 * time.Minute, Look}, {9 * time.Minute, Look}, {10 * time.Minute, Full},
		{13 * time.Minute, Look}, {16 * time.Minute, Look}, {19 * time.Minute, Look}, {20 * time.Minute, Full},
	}
	if !slices.Equal(calls, want) {
		t.Errorf("got %v", calls)
	}
}

func TestNeverFull(t *testing.T) {
	calls := record(t, Plan{Full: -1, Look: time.Minute}, 150*time.Second, fine, func() {})
	if want := []call{{0, Look}, {time.Minute, Look}, {2 * time.Minute, Look}}; !slices.Equal(calls, want) {
		t.Errorf("got %v", calls)
	}
}

func TestNoOverlap(t *testing.T) {
	running := false
	calls := record(t, Plan{Full: 3 * time.Minute, Look: time.Minute}, 19*time.Minute, func(context.Context, int) error {
		if running {
			t.Error("two rounds at once")
		}
		running = true
		time.Sleep(5 * time.Minute)
		running = false
		return nil
	}, func() {})
	if len(calls) != 4 || calls[1] != (call{5 * time.Minute, Full}) {
		t.Errorf("got %v", calls)
	}
}

func TestBackoff(t *testing.T) {
	calls := record(t, Plan{Full: 5 * time.Second, Look: 4 * time.Second}, 30*time.Second, func(_ context.Context, n int) error {
		if n >= 2 && n <= 7 {
			return errors.New("no store")
		}
		return nil
	}, func() {})
	// The look at 4 s fails; from 5 s on a full round is due until it succeeds.
	want := []call{
		{0, Look}, {4 * time.Second, Look}, {4500 * time.Millisecond, Look}, {5500 * time.Millisecond, Full},
		{7500 * time.Millisecond, Full}, {11500 * time.Millisecond, Full}, {15500 * time.Millisecond, Full},
		{19500 * time.Millisecond, Full}, {23500 * time.Millisecond, Look}, {24500 * time.Millisecond, Full}, {28500 * time.Millisecond, Look}, {29500 * time.Millisecond, Full},
	}
	if !slices.Equal(calls, want) {
		t.Errorf("got %v", calls)
	}
}

func TestAlive(t *testing.T) {
	beats := 0
	record(t, Plan{Full: time.Hour, Look: time.Minute}, 10*time.Minute+time.Second, func(ctx context.Context, _ int) error {
		<-ctx.Done()
		return nil
	}, func() { beats++ })
	if beats != 120 {
		t.Errorf("%d beats in 10 minutes of one long round", beats)
	}
}
