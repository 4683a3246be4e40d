package harness

import (
	"fmt"
	"testing"
	"time"
)

// pollEvery is the pace of Eventually: short against what is awaited, long
// enough to leave the machine to the processes under test.
const pollEvery = 15 * time.Millisecond

// Eventually calls try until it returns nil, and fails the test with its last
// error when the deadline passes. It returns how long it took.
func Eventually(t testing.TB, within time.Duration, what string, try func() error) time.Duration {
	t.Helper()
	start := time.Now()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return time.Since(start)
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, within, err)
		case <-t.Context().Done():
			t.Fatalf("%s: the test ended: %v", what, err)
		case <-tick.C:
		}
	}
}

// Patience is how long the processes under test may take for what users wait
// for at most within: the race detector makes them slower.
func Patience(within time.Duration) time.Duration {
	if raceEnabled {
		return 3 * within
	}
	return within
}

// Equal is a try function's result for two values that must be the same.
func Equal[T comparable](got, want T) error {
	if got != want {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

// use sets a holder's test and puts the old one back when the new one ends.
func use(holder *testing.TB, t testing.TB) {
	before := *holder
	*holder = t
	t.Cleanup(func() { *holder = before })
}
