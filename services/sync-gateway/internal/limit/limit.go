// Package limit bounds what one user, or one address, may have of a gateway:
// streams at once, and requests in a minute.
//
// Invariants:
//
//   - Nobody has more streams than the limit, and who gives one back may have
//     another (TestStreams).
//   - In any minute at most twice the limit of requests is let through, and over
//     time the limit (TestRequests).
//   - Memory is bounded whatever keys come: what is forgotten are requests, never
//     streams (TestBounded).
package limit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// most is how many keys without a stream a table keeps, about 10 MB.
const most = 100_000

// Table has the users, or the addresses. A nil Table limits nothing.
type Table struct {
	what    string        // user, address
	streams int           // 0 = no limit
	each    time.Duration // what a request takes of a minute; 0 = no limit
	refused *atomic.Uint64
	most    int

	mu  sync.Mutex
	all map[string]*entry // of keys that are not as if they were new; guarded by mu
}

type entry struct {
	streams int
	// used is until when the requests so far would have taken, had they come evenly;
	// they may come as much earlier as a minute.
	used time.Time
}

// New returns a table of keys that are each a what, for the log. Streams are at
// once, requests in a minute; 0 = no limit. It counts in refused.
func New(what string, streams, requests int, refused *atomic.Uint64) *Table {
	if streams == 0 && requests == 0 {
		return nil
	}
	t := &Table{what: what, streams: streams, refused: refused, most: most, all: map[string]*entry{}}
	if requests > 0 {
		t.each = time.Minute / time.Duration(requests)
	}
	return t
}

// Request takes one of key's requests, or says how long it should wait for one.
func (t *Table) Request(key string) (wait time.Duration, err error) {
	if t == nil || t.each == 0 {
		return 0, nil
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(key, now)
	used := e.used.Add(t.each)
	if e.used.Before(now) {
		used = now.Add(t.each)
	}
	if wait = used.Sub(now) - time.Minute; wait <= 0 {
		e.used = used
		return 0, nil
	}
	t.refused.Add(1)
	return wait, errs.Wrap(errs.S2304, fmt.Errorf("%s %s has had too many in a minute", t.what, key), "Too many requests of this %s", t.what)
}

// Open takes one of key's streams, which Close gives back.
func (t *Table) Open(key string) error {
	if t == nil || t.streams == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(key, time.Now())
	if e.streams >= t.streams {
		t.refused.Add(1)
		return errs.Wrap(errs.S2304, fmt.Errorf("%s %s has %d", t.what, key, e.streams), "Too many sync streams of this %s", t.what)
	}
	e.streams++
	return nil
}

// Close gives back what Open has taken.
func (t *Table) Close(key string) {
	if t == nil || t.streams == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.all[key]
	if e.streams--; e.streams == 0 && !e.used.After(time.Now()) {
		delete(t.all, key)
	}
}

// entry returns the entry of key, and makes room for it. t.mu is held.
func (t *Table) entry(key string, now time.Time) *entry {
	e := t.all[key]
	if e != nil {
		return e
	}
	if len(t.all) >= t.most {
		t.forget(now)
	}
	e = &entry{used: now}
	t.all[key] = e
	return e
}

// forget makes room: first what is as if it were new, then of the others, without
// streams, any, down to three quarters, so that it is seldom done. t.mu is held.
func (t *Table) forget(now time.Time) {
	for key, e := range t.all {
		if e.streams == 0 && !e.used.After(now) {
			delete(t.all, key)
		}
	}
	for key, e := range t.all {
		if len(t.all) <= t.most*3/4 {
			return
		}
		if e.streams == 0 {
			delete(t.all, key)
		}
	}
}
