package writer

import (
	"context"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
)

// view is what others see of a writer: the head as of the last commit, and how
// many notices were published.
type view struct {
	mu       sync.Mutex
	head     model.StreamHead // guarded by mu
	sequence uint64           // of the last notice; guarded by mu
	moved    chan struct{}    // closed when head is replaced; guarded by mu
}

// replace sets the head and wakes who waits. The caller holds mu.
func (v *view) replace(head model.StreamHead) {
	if head == v.head {
		return
	}
	v.head = head
	close(v.moved)
	v.moved = make(chan struct{})
}

func (v *view) set(head model.StreamHead) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.replace(head)
}

// Head returns the stream's head with the run and number of the last notice
// that tells of it or of what came before it.
func (w *Writer) Head() (head model.StreamHead, run, sequence uint64) {
	w.view.mu.Lock()
	defer w.view.mu.Unlock()
	return w.view.head, w.hub.run, w.view.sequence
}

// Moved returns the head and a channel that is closed when there is another.
func (w *Writer) Moved() (model.StreamHead, <-chan struct{}) {
	w.view.mu.Lock()
	defer w.view.mu.Unlock()
	return w.view.head, w.view.moved
}

// WaitMoved waits until moved, which Moved has returned, is closed.
func (w *Writer) WaitMoved(ctx context.Context, moved <-chan struct{}) error {
	select {
	case <-moved:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-w.live.Done():
		return w.gone()
	}
}

// WaitApplied waits until c is applied.
func (w *Writer) WaitApplied(ctx context.Context, c model.Cursor) error {
	for {
		head, moved := w.Moved()
		if head.Applied.Compare(c) >= 0 {
			return nil
		}
		if err := w.WaitMoved(ctx, moved); err != nil {
			return err
		}
	}
}
