package compactor

import (
	"context"
	"sync"
	"time"
)

// pace keeps compaction that nobody waits for out of the way of what somebody
// does: it is at work for a share of the time only, so that it does less the
// slower bucket-store answers, and takes so many bytes a second.
type pace struct {
	busy float64 // share of the time; 1 = all
	rate float64 // bytes a second; 0 = no bound

	mu   sync.Mutex
	free time.Time // when the bytes taken are paid for; guarded by mu
}

// step waits for as long as a step of that size and duration asks for.
func (p *pace) step(ctx context.Context, bytes int, took time.Duration) error {
	wait := time.Duration(float64(took) * (1 - p.busy) / p.busy)
	if p.rate > 0 {
		now := time.Now()
		p.mu.Lock()
		if p.free.Before(now) {
			p.free = now
		}
		p.free = p.free.Add(time.Duration(float64(bytes) / p.rate * float64(time.Second)))
		wait = max(wait, p.free.Sub(now))
		p.mu.Unlock()
	}
	if wait <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// atOnce is the pace of what somebody waits for.
func atOnce(ctx context.Context, _ int, _ time.Duration) error { return ctx.Err() }
