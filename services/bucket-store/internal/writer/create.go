package writer

import (
	"context"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// createCall is one call of CreateWriteCheckpoints.
type createCall struct {
	writer   *Writer
	requests []store.WriteCheckpointRequest
	made     []model.WriteCheckpoint
	err      error
	done     chan struct{} // closed when made or err is set
}

// createLimit bounds the requests of one durable write.
const createLimit = 1000

// CreateWriteCheckpoints stores the numbers of requests and has them announced
// when they are reached. Calls that arrive while one is being stored share the
// next write.
func (h *Hub) CreateWriteCheckpoints(ctx context.Context, id model.StreamID, requests []store.WriteCheckpointRequest) ([]model.WriteCheckpoint, error) {
	w, err := h.Writer(id)
	if err != nil {
		return nil, err
	}
	call := &createCall{writer: w, requests: requests, done: make(chan struct{})}
	select {
	case h.creates <- call:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.ctx.Done():
		return nil, h.ctx.Err()
	}
	select {
	case <-call.done:
		return call.made, call.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.ctx.Done():
		return nil, h.ctx.Err()
	}
}

// create takes calls until the hub ends.
func (h *Hub) create() {
	var held *createCall // taken, but of another stream than the ones before
	for {
		var calls []*createCall
		if held == nil {
			select {
			case held = <-h.creates:
			case <-h.ctx.Done():
				return
			}
		}
		calls, held = append(calls, held), nil
		n := len(calls[0].requests)
	collect:
		for n < createLimit {
			select {
			case c := <-h.creates:
				if c.writer != calls[0].writer {
					held = c
					break collect
				}
				calls = append(calls, c)
				n += len(c.requests)
			default:
				break collect
			}
		}
		h.storeTogether(calls, n)
	}
}

// storeTogether stores calls of one stream together.
func (h *Hub) storeTogether(calls []*createCall, n int) {
	w := calls[0].writer
	requests := make([]store.WriteCheckpointRequest, 0, n)
	for _, c := range calls {
		requests = append(requests, c.requests...)
	}
	head, _, _ := w.Head()
	made, err := h.store.CreateWriteCheckpoints(context.WithoutCancel(h.ctx), w.Place(head.Checkpoint.Position), requests)
	if err != nil {
		err = fmt.Errorf("create write checkpoints: %w", err)
	} else {
		w.announce(requests, made)
	}
	for _, c := range calls {
		if c.err = err; err == nil {
			c.made, made = made[:len(c.requests):len(c.requests)], made[len(c.requests):]
		}
		close(c.done)
	}
}

// announce has write checkpoints announced when they are reached, or now.
func (w *Writer) announce(requests []store.WriteCheckpointRequest, made []model.WriteCheckpoint) {
	for i := range made {
		// One that was there before waits already, or was announced.
		if made[i].Head == requests[i].Head {
			w.hub.waiting.add(made[i])
		}
	}
	// A checkpoint may have reached them before they were in waiting.
	w.view.mu.Lock()
	defer w.view.mu.Unlock()
	if w.hub.waiting.near(w.Place(w.view.head.Checkpoint.Position)) {
		h := &w.view.head
		w.publish(&model.CheckpointNotice{Stream: w.id, Checkpoint: h.Checkpoint, CommitTime: h.CommitTime, Heartbeat: h.Heartbeat}, "")
	}
}
