package compactor

import (
	"sync"
	"time"
)

// budget is how many bytes of rows may be put again: so many a day, of which an
// hour's worth is there at the start and a day's worth is kept at most.
type budget struct {
	daily float64

	mu   sync.Mutex
	left float64 // guarded by mu; below 0 if two buckets were at it
	at   time.Time
}

func newBudget(daily int64, now time.Time) *budget {
	return &budget{daily: float64(daily), left: float64(daily) / 24, at: now}
}

// bytes returns what is left; 0 = nothing.
func (b *budget) bytes(now time.Time) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.daily, b.left+b.daily*now.Sub(b.at).Hours()/24)
	b.at = now
	return uint64(max(0, b.left))
}

func (b *budget) spend(bytes uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left -= float64(bytes)
}
