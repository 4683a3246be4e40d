// Package checkpoint hands out write checkpoints (spec/02 §10): requests that
// come together share one read of the source's position and one write to the
// store, and the source's log is then made to pass that position.
//
// Invariants:
//
//   - INV-27: the position is read after the request came (TestPositionIsFresh).
//   - INV-28: the marker is written after the numbers are stored, and again
//     until it is written (TestMarkAfterStore, TestMarkRetries). Only positions
//     that a checkpoint has reached need none (TestReachedNeedsNoMark).
package checkpoint

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/gather"
)

// Source is the source database.
type Source interface {
	Position(ctx context.Context) (model.Position, error)
	Mark(ctx context.Context) error
}

// Stream keeps the numbers of one replication stream.
type Stream interface {
	Create(ctx context.Context, head model.Position, rs []backend.Request) ([]uint64, error)
	// Reached is the source's position of a checkpoint that clients are told of.
	Reached() model.Position
}

const (
	// batches under way at the same time. Those who come meanwhile make the next
	// one: the busier it is, the more share a round trip and an fsync.
	batches = 1
	// batchSize bounds one batch.
	batchSize = 1000
	timeout   = 15 * time.Second
	// markInterval is the least time between two markers: each costs the source
	// a commit and sends a batch through the whole pipeline.
	markInterval = 5 * time.Millisecond
)

// Keeper hands out numbers.
type Keeper struct {
	source Source
	log    *slog.Logger
	calls  gather.Gather[Stream, backend.Request, uint64]
	going  sync.WaitGroup
	marks  chan struct{} // capacity 1: the source must be marked
}

// New returns a Keeper whose Run must run.
func New(source Source, log *slog.Logger) *Keeper {
	k := &Keeper{source: source, log: log, marks: make(chan struct{}, 1)}
	k.calls.Calls, k.calls.Keys, k.calls.Carriers = batches, batchSize, &k.going
	k.calls.Call = k.batch
	return k
}

// Request stores a number for a user key and returns what the key has now.
func (k *Keeper) Request(ctx context.Context, s Stream, userKey string, id uint64) (uint64, error) {
	ids, err := k.calls.Do(ctx, s, []backend.Request{{UserKey: userKey, ID: id}})
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}

func (k *Keeper) batch(ctx context.Context, s Stream, rs []backend.Request) ([]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at, err := k.source.Position(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := s.Create(ctx, at, rs)
	if err != nil {
		return nil, err
	}
	if k.log.Enabled(ctx, slog.LevelDebug) {
		for i, r := range rs {
			k.log.Debug("Write checkpoint", "user", r.UserKey, "id", ids[i], "head", string(at))
		}
	}
	// A crash here leaves numbers that are acknowledged when the source moves on
	// by itself, which a heartbeat makes it do.
	if s.Reached() < at {
		k.Mark()
	}
	return ids, nil
}

// Mark makes the source's log pass the positions that were read before.
func (k *Keeper) Mark() {
	select {
	case k.marks <- struct{}{}:
	default: // a marker that is still to be written will do
	}
}

// Run writes markers until ctx ends, then waits for the batches under way.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.going.Wait()
	pause := 50 * time.Millisecond
	for {
		select {
		case <-k.marks:
		case <-ctx.Done():
			return nil
		}
		for {
			call, cancel := context.WithTimeout(ctx, timeout)
			err := k.source.Mark(call)
			cancel()
			if err == nil {
				pause = 50 * time.Millisecond
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			k.log.Warn("cannot mark the source; trying again", "error", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
			pause = min(2*pause, 2*time.Second)
		}
		select {
		case <-time.After(markInterval):
		case <-ctx.Done():
			return nil
		}
	}
}
