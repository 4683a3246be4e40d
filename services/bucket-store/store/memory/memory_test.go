package memory_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Instance {
		s := &breaking{Store: memory.New()}
		return storetest.Instance{Store: s, Reopen: func() store.Store {
			s.failure.Store(uint32(memory.Succeeds))
			return s
		}, Break: func(persisted bool) {
			s.failure.Store(uint32(memory.FailsBefore))
			if persisted {
				s.failure.Store(uint32(memory.FailsPersisted))
			}
		}, Survives: true, Small: true}
	})
}

// breaking is a store whose next step fails as failure says, but for those that
// return pages.
type breaking struct {
	*memory.Store
	failure atomic.Uint32 // a memory.Failure
}

func step[T any](s *breaking, do func() (T, error)) (T, error) {
	failure := memory.Failure(s.failure.Swap(uint32(memory.Succeeds)))
	var none T
	if failure == memory.FailsBefore {
		return none, memory.ErrFailed
	}
	made, err := do()
	if failure == memory.FailsPersisted && err == nil {
		return none, memory.ErrFailed
	}
	return made, err
}

func only(err error) (struct{}, error) { return struct{}{}, err }

func (s *breaking) Change(ctx context.Context, decide func([]model.Stream) store.Change) (*model.Stream, error) {
	return step(s, func() (*model.Stream, error) { return s.Store.Change(ctx, decide) })
}

func (s *breaking) OpenSession(ctx context.Context, id model.StreamID) (model.StreamHead, error) {
	return step(s, func() (model.StreamHead, error) { return s.Store.OpenSession(ctx, id) })
}

func (s *breaking) ReportError(ctx context.Context, id model.StreamID, epoch model.Epoch, message string, at model.Micros) error {
	_, err := step(s, func() (struct{}, error) { return only(s.Store.ReportError(ctx, id, epoch, message, at)) })
	return err
}

func (s *breaking) Clear(ctx context.Context, id model.StreamID) error {
	_, err := step(s, func() (struct{}, error) { return only(s.Store.Clear(ctx, id)) })
	return err
}

func (s *breaking) Commit(ctx context.Context, c *ledger.Commit) error {
	_, err := step(s, func() (struct{}, error) { return only(s.Store.Commit(ctx, c)) })
	return err
}

func (s *breaking) CreateWriteCheckpoints(ctx context.Context, at model.Position, requests []store.WriteCheckpointRequest) ([]model.WriteCheckpoint, error) {
	return step(s, func() ([]model.WriteCheckpoint, error) { return s.Store.CreateWriteCheckpoints(ctx, at, requests) })
}

func (s *breaking) Replace(ctx context.Context, id model.StreamID, r store.Replacement) (uint64, error) {
	return step(s, func() (uint64, error) { return s.Store.Replace(ctx, id, r) })
}
