// Package schedule repeats a piece of work for ever.
//
// Invariants:
//
//   - Rounds never overlap; a slow one delays the next (TestNoOverlap).
//   - A failed round is tried again with growing pauses, never in a tight loop,
//     and after a minute at the latest (TestBackoff).
//   - Alive is called often enough for a liveness probe, also during a long
//     round (TestAlive).
package schedule

import (
	"context"
	"time"
)

const (
	aliveEvery = 5 * time.Second
	firstPause = 500 * time.Millisecond
	maxPause   = time.Minute
)

// Run calls do, and again after a pause, until ctx ends, and alive every 5 s. A
// round that fails is the business of do, which says so by its error.
func Run(ctx context.Context, pause time.Duration, do func(context.Context) error, alive func()) {
	beat := time.NewTicker(aliveEvery)
	defer beat.Stop()
	done := make(chan error, 1) // one round at a time
	next := time.NewTimer(0)
	defer next.Stop()
	retry := firstPause
	running := false
	for {
		select {
		case <-ctx.Done():
			if running {
				<-done
			}
			return
		case <-beat.C:
			alive()
		case <-next.C:
			running = true
			go func() { done <- do(ctx) }()
		case err := <-done:
			running = false
			alive()
			if err == nil {
				retry = firstPause
				next.Reset(pause)
				continue
			}
			next.Reset(retry)
			retry = min(2*retry, maxPause)
		}
	}
}
