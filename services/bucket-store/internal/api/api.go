// Package api serves what bucketstore.proto says, one type a service.
//
// Invariants:
//
//   - A read that compaction has passed is answered with invalid, never with
//     wrong sums or a gap (INV-19).
//   - The chunks of a bucket depend on where they begin and on the checkpoint
//     only, so gateways may share them (TestChunksAreTheSame).
//   - What a client of the service does not read costs it one chunk of memory
//     (D8): every stream is written one message at a time.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/lease"
	"github.com/sluicesync/sluice/services/bucket-store/internal/turn"
	"github.com/sluicesync/sluice/services/bucket-store/internal/writer"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// API is what the services share.
type API struct {
	Store store.Store
	// Heads are the heads of a storage that other processes write to, too; nil =
	// there are none but the ones that are written here.
	Heads Heads
	Log   *slog.Logger
	Now   func() time.Time
	// Done ends the streams that would go on for ever; it closes when the
	// service stops.
	Done <-chan struct{}
	// Catalog is woken by every change of streams and states.
	Catalog *Signal
	// MakeBackup makes a backup of that name; nil = this storage does not.
	MakeBackup func(name string) (*Backup, error)
	backingUp  sync.Mutex // held while one is made
	// Trace makes the span of each batch that is part of a trace; nil = none.
	Trace *trace.Tracer

	writing atomic.Pointer[Writing]
	fixed   sync.Map // of fixed by model.StreamID
}

// Writing is what the process has besides that writes to the storage.
type Writing struct {
	Hub    *writer.Hub
	Leases *lease.Table
	// Done closes when it does not write any more.
	Done <-chan struct{}
}

// Heads are heads that may be written by another process.
type Heads interface {
	// Head reads a head, and the place in the notice feed that it contains.
	Head(ctx context.Context, id model.StreamID) (head model.StreamHead, run, sequence uint64, err error)
	// Sees returns an error unless what is read has everything up to c.
	Sees(ctx context.Context, id model.StreamID, c model.OpID) error
	// Follow calls yield with the head, and with each newer one.
	Follow(ctx context.Context, id model.StreamID, yield func(model.StreamHead) error) error
}

// Writes says what this process writes with from now on.
func (a *API) Writes(w *Writing) { a.writing.Store(w) }

// errElsewhere: this process has stopped to be the one that writes while the
// call was on its way to it.
var errElsewhere = errs.New(errs.S2003, "this bucket-store does not write to the storage").Retryable()

func (a *API) writes() (*Writing, error) {
	if w := a.writing.Load(); w != nil {
		return w, nil
	}
	return nil, errElsewhere
}

// statesChanged tells the writers and those who watch the catalog.
func (a *API) statesChanged() {
	if w := a.writing.Load(); w != nil {
		w.Hub.StatesChanged()
	}
	a.Catalog.Wake()
}

// fixed is what never changes of a stream.
type fixed struct {
	custom bool
	era    uint32
}

// fixedOf returns it; store.ErrNoStream if the stream's data is gone.
func (a *API) fixedOf(ctx context.Context, id model.StreamID) (fixed, error) {
	if f, ok := a.fixed.Load(id); ok {
		return f.(fixed), nil
	}
	streams, err := a.Store.Streams(ctx)
	if err != nil {
		return fixed{}, err
	}
	for i := range streams {
		if s := &streams[i]; s.ID == id && s.State != model.Terminated {
			f := fixed{s.CustomCheckpoints, s.Era}
			a.fixed.Store(id, f)
			return f, nil
		}
	}
	return fixed{}, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
}

// sees returns an error unless this process reads everything up to c.
func (a *API) sees(ctx context.Context, id model.StreamID, c model.OpID) error {
	if a.Heads == nil {
		return nil
	}
	return a.Heads.Sees(ctx, id, c)
}

// Register registers all services.
func (a *API) Register(r grpc.ServiceRegistrar) {
	pb.RegisterAppenderServer(r, &appender{API: a})
	pb.RegisterReplicationServer(r, &replication{API: a})
	pb.RegisterCatalogServer(r, &catalog{API: a})
	pb.RegisterReaderServer(r, &reader{API: a})
	pb.RegisterWriteCheckpointsServer(r, &writeCheckpoints{API: a})
	pb.RegisterCompactionServer(r, &compaction{API: a, turns: turn.New(a.Now)})
	pb.RegisterStorageServer(r, &storage{API: a})
}

// Signal wakes everyone who waits for the next change.
type Signal struct {
	mu sync.Mutex
	c  chan struct{} // closed by Wake; guarded by mu
}

// Wait returns a channel that the next Wake closes.
func (s *Signal) Wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

// Wake wakes who waits.
func (s *Signal) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}

// errStopping ends calls that would go on for ever.
var errStopping = errs.New(errs.S2003, "bucket-store is shutting down, or another one writes now").Retryable()

// ended is what a caller whose wait failed with err is told.
func (a *API) ended(ctx context.Context, err error) error {
	if ctx.Err() == nil && errors.Is(err, context.Canceled) {
		return errStopping // of the hub, not of the call
	}
	return mapped(err)
}

// mapped gives an error of the store the status that callers branch on.
func mapped(err error) error {
	var (
		limit   *store.LimitError
		fenced  *store.FencedError
		replace *store.ReplaceError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &limit):
		return errs.Wrap(errs.S2305, err, "Too many parameter query results (limit of %d)", limit.Limit)
	case errors.Is(err, store.ErrFull):
		return errs.Wrap(errs.S2404, err, "no space is left in the storage: nothing is written until there is").Retryable()
	case errors.Is(err, store.ErrDamaged):
		return errs.Wrap(errs.S2404, err, "the storage is damaged: restore a backup of it, or let it be replicated anew into an empty folder")
	case errors.Is(err, store.ErrNotOwner):
		return errElsewhere
	case errors.Is(err, store.ErrNoStream):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, store.ErrInvalidated), errors.Is(err, store.ErrNotReplicated), errors.As(err, &fenced):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.As(err, &replace):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	return err
}
