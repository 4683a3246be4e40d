// Package compactor rewrites the history of buckets so that new clients
// download less, and has old checkpoint requests dropped: all the time, the
// dirtiest bucket first, in small steps at a bounded pace, and on demand through
// its gRPC service.
//
// It owns no state. Any number of instances share the work, a bucket at a time
// (TestReplicas). Whatever instance runs, and wherever one stops, bucket-store
// refuses what would do harm and the next one goes on.
//
// Invariants:
//
//   - INV-17, INV-18: what clients end up with does not change (TestCompact
//     here; core/compact has the laws).
//   - INV-20: a run may stop at any call and be repeated, and two may run at
//     once (TestFaults, TestTwoAtOnce).
//   - D6: where old rows hold back much history they are put again as the newest
//     ops, within a budget; clients end up with the same (TestDefragment).
//   - A bucket that cannot be compacted is logged and counted and does not keep
//     the others from their turn (TestBadBucket).
package compactor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/core/compact"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/compactor/internal/schedule"
)

// Config is the compactor's part of the configuration. Zero means default.
type Config struct {
	// Interval from one walk over the parameter index, and over checkpoint requests
	// that are old, to the next. Default 1 h; negative: only what is asked for by
	// Compact, also of buckets.
	Interval time.Duration
	// RequestRetention is how long checkpoint requests are kept at least, those
	// made over HTTP and those of checkpoint_requests rows. Default 1 h.
	RequestRetention time.Duration
	// MinChanges new ops make a bucket worth compacting, if they are a tenth of its
	// ops. Default 10.
	MinChanges uint64
	// Rest is how long a bucket is left alone after it was compacted, so that
	// clients that read it at an older checkpoint come to their end. Default 1 min.
	Rest time.Duration
	// Rate bounds the bytes of history a second that are read and rewritten, Busy
	// the share of the time that is spent on it, unless somebody waits for it.
	// Default 16 MB and 0.1; negative Rate: no bound.
	Rate int64
	Busy float64
	// MemoryMB bounds what one bucket's compaction remembers. Buckets with more
	// rows than fit are compacted less. Default 64.
	MemoryMB int
	// MoveBatch is how many MOVEs bucket-store commits at once, ClearBatch how
	// many ops one CLEAR step folds. Default 2000 and 5000 (at least 2); of what
	// nobody waits for 500 and 1000 at most.
	MoveBatch  int
	ClearBatch int
	// Reemit is how many bytes of rows a day may be put again where they hold back
	// much history that could be folded; every client that has the bucket
	// downloads them again. Default 100 MB; negative: none.
	Reemit int64
	// Parallel is how many buckets are compacted at the same time, over all
	// runs. Default 2.
	Parallel int
}

// Validate returns every problem at once.
func (c Config) Validate() error {
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	check(c.RequestRetention >= 0, "request_retention must not be negative: %s", c.RequestRetention)
	check(c.Rest >= 0, "rest must not be negative: %s", c.Rest)
	check(c.Busy >= 0 && c.Busy <= 1, "busy must be from 0 to 1: %g", c.Busy)
	check(c.MemoryMB >= 0, "memory_mb must not be negative: %d", c.MemoryMB)
	check(c.MoveBatch >= 0, "move_batch must not be negative: %d", c.MoveBatch)
	check(c.ClearBatch == 0 || c.ClearBatch >= 2, "clear_batch must be at least 2: %d", c.ClearBatch)
	check(c.Parallel >= 0, "parallel must not be negative: %d", c.Parallel)
	return errors.Join(problems...)
}

func (c Config) withDefaults() Config {
	def(&c.Interval, time.Hour)
	def(&c.RequestRetention, time.Hour)
	def(&c.MinChanges, 10)
	def(&c.Rest, time.Minute)
	def(&c.Rate, 16_000_000)
	def(&c.Busy, 0.1)
	def(&c.MemoryMB, 64)
	def(&c.MoveBatch, 2000)
	def(&c.ClearBatch, 5000)
	def(&c.Reemit, 100_000_000)
	def(&c.Parallel, 2)
	return c
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Conns are the compactor's connections.
type Conns struct {
	// Store is bucket-store. The compactor may list streams, scan and replace;
	// it cannot append.
	Store grpc.ClientConnInterface
	// Listener takes the calls of the Compactor service; nil: none. Run owns it.
	Listener net.Listener
}

// Run compacts until ctx ends or a part fails, and leaves nothing running.
func Run(ctx context.Context, cfg Config, conns Conns, env service.Env) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("compactor config: %w", err)
	}
	cfg = cfg.withDefaults()
	links := freshness.NewLinks(env.Log, nil).Add("bucket-store", freshness.GRPC(conns.Store))
	m, err := newMetrics(env.Metrics, links)
	if err != nil {
		return err
	}
	m.interval.Set(max(cfg.Interval, 0).Seconds())
	c := &compactor{
		catalog: pb.NewCatalogClient(conns.Store),
		store:   pb.NewCompactionClient(conns.Store),
		cfg:     cfg,
		limits:  compact.Limits{Memory: cfg.MemoryMB << 20, Moves: cfg.MoveBatch, Clear: cfg.ClearBatch},
		small:   compact.Limits{Memory: cfg.MemoryMB << 20, Moves: min(cfg.MoveBatch, 500), Clear: min(cfg.ClearBatch, 1000)},
		budget:  newBudget(max(0, cfg.Reemit), time.Now()),
		pace:    &pace{busy: cfg.Busy, rate: float64(max(0, cfg.Rate))},
		slots:   semaphore.NewWeighted(int64(cfg.Parallel)),
		log:     env.Log,
		metrics: m,
		ready:   env.Health.SetReady,
		name:    fmt.Sprintf("%016x", rand.Uint64()),
	}
	eg, ctx := errgroup.WithContext(ctx)
	if conns.Listener != nil {
		eg.Go(func() error {
			return rpc.Serve(ctx, conns.Listener, env, func(r grpc.ServiceRegistrar) {
				pb.RegisterCompactorServer(r, server{compactor: c})
			})
		})
	}
	eg.Go(func() error { return links.Run(ctx) })
	env.Health.Start()
	eg.Go(func() error {
		schedule.Run(ctx, idle, c.sweep, env.Health.Touch)
		return nil
	})
	if cfg.Interval > 0 {
		eg.Go(func() error {
			schedule.Run(ctx, cfg.Interval, c.tidy, func() {})
			return nil
		})
	}
	return eg.Wait()
}
