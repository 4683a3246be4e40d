package pebble

import (
	"hash/maphash"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
)

// stateCache holds bucket states, at most a number of bytes, in shards of two
// generations: when the young one is full it becomes the old one, and the old
// one goes.
//
// It never serves a state older than what the writer last put: a reader that
// missed may add what it then found in the store only if nothing was put since
// its miss.
type stateCache struct {
	seed   maphash.Seed
	shards [16]stateShard
}

type stateShard struct {
	limit int // bytes of one generation

	mu         sync.Mutex
	young, old map[stateKey]bucketState // guarded by mu
	bytes      int                      // of young; guarded by mu
	puts       uint64                   // guarded by mu
}

type stateKey struct {
	stream model.StreamID
	bucket string
}

// stateCost is the memory of an entry, about.
const stateCost = 160

func newStateCache(bytes int) *stateCache {
	c := &stateCache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		s := &c.shards[i]
		s.limit = bytes / len(c.shards) / 2
		s.young, s.old = map[stateKey]bucketState{}, map[stateKey]bucketState{}
	}
	return c
}

func (c *stateCache) shard(bucket string) *stateShard {
	return &c.shards[maphash.String(c.seed, bucket)%uint64(len(c.shards))]
}

// get returns a state, or the mark that add needs.
func (c *stateCache) get(k stateKey) (s bucketState, ok bool, mark uint64) {
	h := c.shard(k.bucket)
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok = h.young[k]; ok {
		return s, true, 0
	}
	if s, ok = h.old[k]; ok {
		h.set(k, s)
		return s, true, 0
	}
	return s, false, h.puts
}

// put is for the writer of the bucket.
func (c *stateCache) put(k stateKey, s bucketState) {
	h := c.shard(k.bucket)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.puts++
	h.set(k, s)
}

// add keeps what a reader found, unless it may be outdated.
func (c *stateCache) add(k stateKey, s bucketState, mark uint64) {
	h := c.shard(k.bucket)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.puts == mark {
		h.set(k, s)
	}
}

// drop forgets a state, so that it is read again.
func (c *stateCache) drop(k stateKey) {
	h := c.shard(k.bucket)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.puts++
	delete(h.young, k)
	delete(h.old, k)
}

func (h *stateShard) set(k stateKey, s bucketState) {
	if _, ok := h.young[k]; !ok {
		cost := stateCost + len(k.bucket)
		if h.bytes+cost > h.limit {
			h.old, h.young = h.young, make(map[stateKey]bucketState, len(h.young))
			h.bytes = 0
		}
		h.bytes += cost
	}
	h.young[k] = s
}
