// Package turn gives compactors their turns at buckets.
//
// Turns live in memory: they keep compactors from doing the same work, and no
// more. What keeps two at one bucket from doing harm is that the store checks
// each step (INV-20).
//
// Invariants:
//
//   - A bucket is held by one at a time, until its time is over (TestOneAtATime).
//   - The dirtiest bucket that nobody holds and that does not rest comes next, as
//     of the last second (TestNext).
//   - Memory: a page of names, and a turn for each bucket that was given out and
//     whose time or rest is not over (TestNext).
package turn

import (
	"strings"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

const (
	// page is how many buckets are listed at once.
	page = 1000
	// look is the time between two lists that may find nothing new.
	look = time.Second
)

// Table has the turns of all streams. It is safe for concurrent use.
type Table struct {
	now func() time.Time

	mu      sync.Mutex
	streams map[model.StreamID]*queue // guarded by mu
}

// queue is what a stream's compactors are to do next.
type queue struct {
	turns  map[string]turn // by bucket
	next   []store.DirtyBucket
	listed time.Time // when next was asked for
}

type turn struct {
	holder string // "" = the bucket rests
	until  time.Time
}

// New returns an empty table that reads the time from now.
func New(now func() time.Time) *Table {
	return &Table{now: now, streams: map[model.StreamID]*queue{}}
}

func (t *Table) queue(id model.StreamID) *queue {
	q := t.streams[id]
	if q == nil {
		q = &queue{turns: map[string]turn{}}
		t.streams[id] = q
	}
	return q
}

// Next gives holder the next bucket for ttl; false: there is none now. list asks
// the store for the dirtiest buckets, at most limit.
func (t *Table) Next(id model.StreamID, holder string, ttl time.Duration, list func(limit int) ([]store.DirtyBucket, error)) (store.DirtyBucket, bool, error) {
	if b, ok, ask := t.pop(id, holder, ttl); ok || !ask {
		return b, ok, nil
	}
	buckets, err := list(page) // without the lock, which is not held across I/O
	if err != nil {
		return store.DirtyBucket{}, false, err
	}
	t.mu.Lock()
	t.queue(id).next = buckets
	t.mu.Unlock()
	b, ok, _ := t.pop(id, holder, ttl)
	return b, ok, nil
}

// pop takes the next bucket of the list. ask: there is none and the list is old,
// so the caller is to fetch another one.
func (t *Table) pop(id model.StreamID, holder string, ttl time.Duration) (b store.DirtyBucket, ok, ask bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q, now := t.queue(id), t.now()
	for len(q.next) > 0 {
		b, q.next = q.next[0], q.next[1:]
		if now.Before(q.turns[b.Bucket].until) {
			continue
		}
		q.turns[b.Bucket] = turn{holder, now.Add(ttl)}
		return b, true, false
	}
	if now.Sub(q.listed) < look {
		return store.DirtyBucket{}, false, false
	}
	q.listed = now
	for name, turn := range q.turns {
		if !now.Before(turn.until) {
			delete(q.turns, name)
		}
	}
	return store.DirtyBucket{}, false, true
}

// Take gives holder the bucket for ttl, or for longer if it has it, unless
// another has it. A bucket that rests can be taken.
func (t *Table) Take(id model.StreamID, bucket, holder string, ttl time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	q, now := t.queue(id), t.now()
	if other := q.turns[bucket]; other.holder != "" && other.holder != holder && now.Before(other.until) {
		return false
	}
	q.turns[strings.Clone(bucket)] = turn{holder, now.Add(ttl)}
	return true
}

// Release ends the turn of holder, if it has one, and lets the bucket rest.
func (t *Table) Release(id model.StreamID, bucket, holder string, rest time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.queue(id)
	if q.turns[bucket].holder != holder {
		return
	}
	if rest <= 0 {
		delete(q.turns, bucket)
		return
	}
	q.turns[bucket] = turn{until: t.now().Add(rest)}
}
