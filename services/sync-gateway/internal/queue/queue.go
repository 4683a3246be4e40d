// Package queue bounds how many requests of a kind are served at once, and how
// many wait for that (spec/06 §4).
//
// Invariants:
//
//   - Never more are served than places, and never more wait than the queue
//     holds; who is refused or gives up leaves no trace (TestQueue).
package queue

import (
	"context"
	"errors"
	"sync/atomic"
)

// ErrFull refuses a request: all places are taken, and so is the queue. It is
// answered with 429 and an empty body.
var ErrFull = errors.New("too many concurrent requests")

// Queue has places, and a queue before them.
type Queue struct {
	places  chan struct{} // as many as are served at once
	length  int64
	waiting atomic.Int64
}

// New returns a queue.
func New(places int, length int64) *Queue {
	return &Queue{places: make(chan struct{}, places), length: length}
}

// Enter takes a place, which Leave gives back. It waits for one while the queue
// has room.
func (q *Queue) Enter(ctx context.Context) error {
	select {
	case q.places <- struct{}{}:
		return nil
	default:
	}
	defer q.waiting.Add(-1)
	if q.waiting.Add(1) > q.length {
		return ErrFull
	}
	select {
	case q.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Leave gives a place back.
func (q *Queue) Leave() { <-q.places }
