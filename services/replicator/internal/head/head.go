// Package head answers where the source's log ends now, and makes it pass that
// place, for any number of callers at the cost of few round trips.
//
// Invariant: an answer comes from a round trip that began after the call
// (TestFresh), so it is at or after every write the caller knows of.
package head

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/model"
)

// Source is what Head needs of the source.
type Source interface {
	Position(ctx context.Context) (model.Position, error)
	Mark(ctx context.Context) error
}

// Head coalesces calls.
type Head struct {
	source Source
	log    *slog.Logger

	positions chan struct{} // capacity 1: a round is wanted
	marks     chan struct{} // capacity 1

	mu   sync.Mutex
	next *round // the round that callers join; guarded by mu
}

// round is one round trip that several callers wait for.
type round struct {
	done     chan struct{} // closed when position and err are set
	position model.Position
	err      error
}

// New returns a Head; Run serves it.
func New(s Source, log *slog.Logger) *Head {
	return &Head{source: s, log: log, positions: make(chan struct{}, 1), marks: make(chan struct{}, 1), next: &round{done: make(chan struct{})}}
}

// timeout bounds a round trip.
const timeout = 5 * time.Second

// Run serves calls until ctx ends.
func (h *Head) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.runMarks(ctx)
	}()
	for {
		select {
		case <-h.positions:
			h.mu.Lock()
			r := h.next
			h.next = &round{done: make(chan struct{})}
			h.mu.Unlock()
			attempt, cancel := context.WithTimeout(ctx, timeout)
			r.position, r.err = h.source.Position(attempt)
			cancel()
			close(r.done)
		case <-ctx.Done():
			<-done
			return ctx.Err()
		}
	}
}

func (h *Head) runMarks(ctx context.Context) {
	for {
		select {
		case <-h.marks:
		case <-ctx.Done():
			return
		}
		for delay := 20 * time.Millisecond; ; delay = min(2*delay, time.Second) {
			attempt, cancel := context.WithTimeout(ctx, timeout)
			err := h.source.Mark(attempt)
			cancel()
			if err == nil || ctx.Err() != nil {
				break
			}
			h.log.Warn("cannot write marker", "error", err)
			select {
			case <-time.After(delay):
			case <-ctx.Done():
				return
			}
		}
	}
}

// Position returns the log's end, read after the call began.
func (h *Head) Position(ctx context.Context) (model.Position, error) {
	h.mu.Lock()
	r := h.next
	h.mu.Unlock()
	select {
	case h.positions <- struct{}{}:
	default:
	}
	select {
	case <-r.done:
		return r.position, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Mark makes a marker be written, soon and after the call began.
func (h *Head) Mark() {
	select {
	case h.marks <- struct{}{}:
	default: // one that has not begun is on order
	}
}
