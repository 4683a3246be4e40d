// Package follow is what a process knows of a shared storage that another one
// may be writing to.
//
// Invariants:
//
//   - The place in the notice feed that Head returns is not later than the
//     checkpoint that it returns: the notice was heard before the head was read,
//     and is published after the checkpoint is durable (TestHeadAfterNotice).
//   - What is followed never goes back (TestFollow).
package follow

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

const (
	// interval is how often the storage is looked at when no notice says that
	// something has changed.
	interval = 100 * time.Millisecond
	// pause is between two looks when notices come fast.
	pause = 20 * time.Millisecond
)

// Options of a Follower.
type Options struct {
	Store store.Shared
	NATS  *nats.Conn
	// Owner is told who the owner is, Catalog that streams or states changed,
	// Ready whether the storage can be read.
	Owner   func(store.Overview)
	Catalog func()
	Ready   func(error)
	Log     *slog.Logger
}

// Follower follows a storage. It is safe for concurrent use.
type Follower struct {
	options Options
	wake    chan struct{} // 1: a signal

	mu     sync.Mutex
	places map[model.StreamID]place            // of the notices heard; guarded by mu
	heads  map[model.StreamID]model.StreamHead // guarded by mu
	moved  chan struct{}                       // closed when heads change; guarded by mu
	owned  bool                                // guarded by mu
}

// place is one in the notice feed.
type place struct{ run, sequence uint64 }

// New returns a follower; Run makes it follow.
func New(o Options) *Follower {
	return &Follower{options: o, wake: make(chan struct{}, 1), places: map[model.StreamID]place{}, heads: map[model.StreamID]model.StreamHead{}, moved: make(chan struct{})}
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	sub, err := f.options.NATS.Subscribe(stream.AllCheckpoints, f.hear)
	if err != nil {
		return fmt.Errorf("subscribe to checkpoint notices: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only if the connection is closed
	var last store.Overview
	said := ""
	for {
		v, err := f.options.Store.Overview(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.options.Ready(err)
		if text := errs.Cause(err); text != said {
			if said = text; err != nil {
				f.options.Log.Warn("storage cannot be read", "error", text)
			} else {
				f.options.Log.Info("storage can be read again")
			}
		}
		if err == nil {
			f.take(&v)
			f.options.Owner(v)
			if v.Catalog != last.Catalog {
				f.options.Catalog()
			}
			last = v
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-time.After(interval - pause):
		}
	}
}

// hear takes a notice.
func (f *Follower) hear(m *nats.Msg) {
	var n pb.CheckpointNotice
	if err := proto.Unmarshal(m.Data, &n); err != nil {
		f.options.Log.Warn("checkpoint notice cannot be decoded", "error", err)
		return
	}
	f.mu.Lock()
	f.places[model.StreamID(n.GetStream())] = place{n.GetRun(), n.GetSequence()}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (f *Follower) take(v *store.Overview) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owned = v.Owned
	changed := len(v.Heads) != len(f.heads)
	for id, h := range v.Heads {
		changed = changed || f.heads[id] != h
	}
	if !changed {
		return
	}
	f.heads = v.Heads
	for id := range f.places {
		if _, ok := v.Heads[id]; !ok {
			delete(f.places, id)
		}
	}
	close(f.moved)
	f.moved = make(chan struct{})
}

// Owned tells whether there was an owner when the storage was last looked at.
func (f *Follower) Owned() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.owned
}

// StoredAt is when the newest head that is known was stored; 0 = there is none.
func (f *Follower) StoredAt() model.Micros {
	f.mu.Lock()
	defer f.mu.Unlock()
	var at model.Micros
	for _, h := range f.heads {
		at = max(at, h.StoredAt)
	}
	return at
}

// Head reads a stream's head now, and returns the place in the feed that it
// contains.
func (f *Follower) Head(ctx context.Context, id model.StreamID) (head model.StreamHead, run, sequence uint64, err error) {
	f.mu.Lock()
	p := f.places[id] // before the read
	f.mu.Unlock()
	head, err = f.options.Store.Head(ctx, id)
	return head, p.run, p.sequence, err
}

// errUnseen is what a read at a checkpoint is told that this process cannot see.
var errUnseen = errs.New(errs.S2003, "the checkpoint is not in the storage that this bucket-store reads").Retryable()

// Sees returns an error unless everything up to c is in what this process reads.
func (f *Follower) Sees(ctx context.Context, id model.StreamID, c model.OpID) error {
	f.mu.Lock()
	known := f.heads[id].Checkpoint.Op
	f.mu.Unlock()
	if c <= known {
		return nil
	}
	head, err := f.options.Store.Head(ctx, id)
	if err != nil {
		return err
	}
	if c > head.Checkpoint.Op {
		return errUnseen
	}
	return nil
}

// Follow calls yield with the head of a stream now, and with each newer one that
// is seen, until ctx ends, yield fails or the stream's data is gone.
func (f *Follower) Follow(ctx context.Context, id model.StreamID, yield func(model.StreamHead) error) error {
	head, err := f.options.Store.Head(ctx, id)
	if err != nil {
		return err
	}
	if err := yield(head); err != nil {
		return err
	}
	for was := false; ; {
		f.mu.Lock()
		moved := f.moved
		now, there := f.heads[id]
		f.mu.Unlock()
		switch {
		case was && !there:
			return fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
		case there && later(now, head):
			head = now
			if err := yield(head); err != nil {
				return err
			}
		}
		was = there
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// later tells whether a is another head than b and not one before it: what was
// looked at may be older than what was read.
func later(a, b model.StreamHead) bool {
	return a != b && a.Epoch >= b.Epoch && a.Persisted >= b.Persisted && a.Applied.Compare(b.Applied) >= 0 && a.StoredAt >= b.StoredAt
}
