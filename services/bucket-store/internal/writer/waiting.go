package writer

import (
	"container/heap"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
)

// waitingLimit bounds the write checkpoints that wait to be announced. Beyond
// it the next notice says that everything changed, and gateways ask for their
// clients' numbers.
const waitingLimit = 500_000

// waiting has the write checkpoints that no checkpoint has reached, the
// nearest first.
type waiting struct {
	mu       sync.Mutex
	heap     checkpointHeap // guarded by mu
	overflow bool           // guarded by mu
}

func newWaiting() *waiting { return &waiting{} }

func (w *waiting) add(c model.WriteCheckpoint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.heap) >= waitingLimit {
		w.overflow = true
		return
	}
	heap.Push(&w.heap, c)
}

// reachedBytes bounds the write checkpoints of one notice, whose message has a
// size limit.
const reachedBytes = 256 << 10

// reached takes out what position has reached, as much as fits in a notice, and
// tells whether some were not kept.
func (w *waiting) reached(position model.Position) (reached []model.WriteCheckpoint, overflow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for bytes := 0; len(w.heap) > 0 && w.heap[0].Head <= position && bytes < reachedBytes; {
		c := heap.Pop(&w.heap).(model.WriteCheckpoint)
		bytes += 16 + len(c.UserKey) + len(c.Head)
		reached = append(reached, c)
	}
	overflow, w.overflow = w.overflow, w.overflow && len(w.heap) > 0
	return reached, overflow
}

// near tells whether position has reached any.
func (w *waiting) near(position model.Position) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.heap) > 0 && w.heap[0].Head <= position
}

// checkpointHeap is a heap by Head.
type checkpointHeap []model.WriteCheckpoint

func (h checkpointHeap) Len() int           { return len(h) }
func (h checkpointHeap) Less(i, j int) bool { return h[i].Head < h[j].Head }
func (h checkpointHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *checkpointHeap) Push(x any)        { *h = append(*h, x.(model.WriteCheckpoint)) }
func (h *checkpointHeap) Pop() any {
	last := (*h)[len(*h)-1]
	(*h)[len(*h)-1] = model.WriteCheckpoint{}
	*h = (*h)[:len(*h)-1]
	return last
}
