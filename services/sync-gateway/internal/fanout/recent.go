package fanout

import "github.com/sluicesync/sluice/libs/model"

// memory is how many changes are remembered for sessions that are starting.
const memory = 128

// maxRemembered is how many names a remembered change may have.
const maxRemembered = 10_000

func (h *Hub) remember(c change) {
	if len(c.buckets)+len(c.lookups)+len(c.reached) > maxRemembered {
		c = change{at: c.at, everything: true}
	}
	if len(h.recent) == memory {
		copy(h.recent, h.recent[1:])
		h.recent = h.recent[:memory-1]
	}
	h.recent = append(h.recent, c)
}

// missed returns the changes after a checkpoint; ok is false if they are not
// all remembered, or not known in detail. h.mu is held.
func (h *Hub) missed(at model.Checkpoint) (cs []change, ok bool) {
	if !after(h.at, at) {
		return nil, true
	}
	for i := len(h.recent) - 1; i >= 0; i-- {
		if !after(h.recent[i].at, at) {
			return h.recent[i+1:], true
		}
		if h.recent[i].everything {
			return nil, false
		}
	}
	return nil, false
}
