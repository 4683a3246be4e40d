// Package schedule says when to compact what: everything worth it once an
// interval, and in between what has become very dirty, which a cheap look
// finds.
//
// Invariants:
//
//   - Rounds never overlap; a slow one delays the next (TestNoOverlap).
//   - A failed round is tried again with growing pauses, never in a tight loop
//     and never later than the next look (TestBackoff).
//   - Alive is called often enough for a liveness probe, also during a long
//     round (TestAlive).
package schedule

import (
	"context"
	"time"
)

// Round is how thorough a round is.
type Round int

const (
	// Look compacts only what is very dirty.
	Look Round = iota + 1
	// Full compacts whatever is worth it, and the parameter index.
	Full
)

func (r Round) String() string {
	switch r {
	case Look:
		return "look"
	case Full:
		return "full"
	}
	return "Round"
}

// Plan is the timetable.
type Plan struct {
	// Full is the time from one full round's start to the next one's. The first
	// comes after one such interval; zero or less: none.
	Full time.Duration
	// Look is the pause between looks; the first comes at once.
	Look time.Duration
}

const (
	aliveEvery = 5 * time.Second
	firstPause = 500 * time.Millisecond
)

// Run calls do for each round until ctx ends, and alive every 5 s. It returns
// nil; rounds that fail are the business of do, which says so by its error.
func Run(ctx context.Context, p Plan, do func(context.Context, Round) error, alive func()) {
	beat := time.NewTicker(aliveEvery)
	defer beat.Stop()
	done := make(chan error, 1) // one round at a time
	next := time.NewTimer(0)
	defer next.Stop()
	lastFull := time.Now()
	pause := firstPause
	running := false
	var round Round
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
			round = Look
			if p.Full > 0 && time.Since(lastFull) >= p.Full {
				round, lastFull = Full, time.Now()
			}
			running = true
			go func(r Round) { done <- do(ctx, r) }(round)
		case err := <-done:
			running = false
			alive()
			if err == nil {
				pause = firstPause
				next.Reset(p.wait(lastFull))
				continue
			}
			if round == Full {
				lastFull = time.Now().Add(-p.Full) // still due
			}
			next.Reset(min(pause, p.Look))
			pause = min(2*pause, p.Look)
		}
	}
}

// wait is the time until the next round.
func (p Plan) wait(lastFull time.Time) time.Duration {
	if p.Full <= 0 {
		return p.Look
	}
	return max(0, min(p.Look, time.Until(lastFull.Add(p.Full))))
}
