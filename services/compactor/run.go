package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/core/compact"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/compactor/internal/scan"
	"github.com/sluicesync/sluice/services/compactor/internal/schedule"
)

const (
	// page is how many buckets are asked for at once.
	page = 1000
	// attempts at a bucket at which another compactor is as well; then it is left
	// to that one.
	attempts = 5
)

type compactor struct {
	catalog pb.CatalogClient
	store   pb.CompactionClient
	cfg     Config
	limits  compact.Limits
	budget  *budget
	slots   *semaphore.Weighted // one a bucket in work, over all runs: bounds memory
	log     *slog.Logger
	metrics *metrics

	mu   sync.Mutex
	busy map[string]chan struct{} // guarded by mu: stream and bucket in work; closed by who put it there
}

// turn waits until no other run of this process is at a bucket, and takes it.
// Two at once would refuse each other's steps again and again.
func (c *compactor) turn(ctx context.Context, target scan.Target) (done func(), err error) {
	key := fmt.Sprint(target.Stream, " ", target.Bucket)
	for {
		c.mu.Lock()
		other, taken := c.busy[key]
		if !taken {
			mine := make(chan struct{})
			c.busy[key] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.busy, key)
				c.mu.Unlock()
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// selection says which buckets of a stream a run takes.
type selection struct {
	only       []string // these, whatever their state
	everything bool     // all, whatever their state
	minChanges uint64   // else these thresholds
	minRatio   float64
}

// tally sums up a run.
type tally struct {
	mu       sync.Mutex
	buckets  uint64
	failed   uint64
	ops      scan.Result
	lookups  uint64
	requests uint64
	err      error // the first failure of a bucket
}

// round is one round of the schedule over all active streams.
func (c *compactor) round(ctx context.Context, round schedule.Round) error {
	if c.cfg.Interval < 0 {
		_, err := c.active(ctx) // shows whether bucket-store is there
		return err
	}
	sel := selection{minChanges: c.cfg.UrgentChanges, minRatio: 0.5}
	if round == schedule.Full {
		sel = selection{minChanges: c.cfg.MinChanges, minRatio: c.cfg.MinRatio}
	}
	t, err := c.run(ctx, sel, true, round == schedule.Full)
	if err != nil && ctx.Err() == nil {
		c.log.Warn("compaction round stopped, will be resumed", "round", round.String(), "error", errs.Cause(err))
	}
	if t.buckets > 0 || t.failed > 0 || t.lookups > 0 || t.requests > 0 {
		c.log.Info("compacted", "round", round.String(), "buckets", t.buckets, "failed", t.failed, "ops_read", t.ops.Read,
			"ops_moved", t.ops.Moved, "ops_cleared", t.ops.Cleared, "lookups_removed", t.lookups, "requests_expired", t.requests)
	}
	return err
}

// run compacts the selected buckets, and the lookups and requests if so told, of
// every active stream. The tally counts what was done also when it fails. Buckets
// that fail by themselves are in tally.err only.
func (c *compactor) run(ctx context.Context, sel selection, buckets, lookups bool) (*tally, error) {
	start := time.Now()
	t := &tally{}
	streams, err := c.active(ctx)
	for i := 0; err == nil && i < len(streams); i++ {
		err = c.stream(ctx, streams[i], sel, buckets, lookups, t)
	}
	c.metrics.ran(t, err, time.Since(start))
	return t, err
}

// active returns the streams that serve clients; compaction leaves others alone
// (spec/05 §1).
func (c *compactor) active(ctx context.Context) ([]model.StreamID, error) {
	reply, err := c.catalog.List(ctx, &pb.ListRequest{})
	if err != nil {
		return nil, fmt.Errorf("list streams: %w", err)
	}
	var ids []model.StreamID
	for _, s := range reply.GetStreams() {
		if s.GetState() == pb.StreamState_STREAM_STATE_ACTIVE {
			ids = append(ids, model.StreamID(s.GetId()))
		}
	}
	return ids, nil
}

func (c *compactor) stream(ctx context.Context, id model.StreamID, sel selection, buckets, lookups bool, t *tally) error {
	if buckets {
		if err := c.buckets(ctx, id, sel, t); err != nil {
			return err
		}
	}
	if !lookups {
		return nil
	}
	// The checkpoint is asked for after the buckets are done: it is read now.
	reply, err := c.store.Dirtiest(ctx, &pb.DirtiestRequest{Stream: int64(id), Limit: 1, MinChanges: 1})
	if err != nil {
		return fmt.Errorf("checkpoint of stream %d: %w", id, err)
	}
	if reply.GetCheckpoint() > 0 {
		removed, err := scan.Lookups(ctx, c.store, id, model.OpID(reply.GetCheckpoint()))
		t.lookups += removed
		if err != nil {
			return err
		}
	}
	expired, err := scan.Requests(ctx, c.store, id, c.cfg.RequestRetention)
	t.requests += expired
	return err
}

func (c *compactor) buckets(ctx context.Context, id model.StreamID, sel selection, t *tally) error {
	req := &pb.DirtiestRequest{Stream: int64(id), Limit: page, MinChanges: sel.minChanges, MinRatio: sel.minRatio, Only: sel.only}
	byName := sel.everything || len(sel.only) > 0
	done := map[string]bool{} // by need, not by name: a bucket that stays dirty has one turn a run
	for {
		reply, err := c.store.Dirtiest(ctx, req)
		if err != nil {
			return fmt.Errorf("list dirty buckets of stream %d: %w", id, err)
		}
		if reply.GetCheckpoint() == 0 {
			return nil // nothing is visible yet
		}
		fresh := false
		eg, egCtx := errgroup.WithContext(ctx)
		for _, b := range reply.GetBuckets() {
			if byName {
				req.After = max(req.After, b.GetBucket())
			} else if done[b.GetBucket()] {
				continue
			} else {
				done[b.GetBucket()] = true
			}
			fresh = true
			if c.slots.Acquire(egCtx, 1) != nil {
				break // a bucket's error, or ctx's end: Wait tells
			}
			target := scan.Target{Stream: id, Bucket: b.GetBucket(), Checkpoint: model.OpID(reply.GetCheckpoint())}
			eg.Go(func() error {
				defer c.slots.Release(1)
				return c.bucket(egCtx, target, t)
			})
		}
		if err := errors.Join(eg.Wait(), ctx.Err()); err != nil {
			return err
		}
		// A page by need may be all of buckets that have had their turn while
		// others wait behind them: those wait for the next round.
		if !fresh || len(reply.GetBuckets()) < page || len(done) >= 100*page {
			return nil
		}
	}
}

// compact compacts one bucket, without defragmenting it.
func (c *compactor) compact(ctx context.Context, target scan.Target) (r scan.Result, err error) {
	for range attempts {
		var part scan.Result
		part, err = scan.Bucket(ctx, c.store, target, c.limits)
		c.metrics.ops(part)
		r.Add(part)
		if code(err) != codes.Aborted {
			break
		}
		// Another process is at this bucket, from a newer checkpoint: what is
		// left is what both have left.
	}
	return r, err
}

// bucket compacts one bucket, and where old rows hold back much history has them
// put again, as far as the budget goes, and compacts it again. Its error ends the run: bucket-store is out of
// reach. A failure that concerns the bucket only is logged and counted.
func (c *compactor) bucket(ctx context.Context, target scan.Target, t *tally) error {
	done, err := c.turn(ctx, target)
	if err != nil {
		return err
	}
	defer done()
	r, err := c.compact(ctx, target)
	for err == nil && len(r.Reemit) > 0 {
		left := c.budget.bytes(time.Now())
		if left == 0 {
			break
		}
		var reply *pb.ReemitReply
		if reply, err = scan.Reemit(ctx, c.store, &target, r.Reemit, left); err != nil || reply.GetOps() == 0 {
			c.log.Debug("rows not put again", "stream", target.Stream, "bucket", target.Bucket, "reason", reply.GetReason(), "error", errs.Cause(err))
			break
		}
		c.budget.spend(reply.GetBytes())
		c.metrics.reemitted(reply)
		c.log.Info("rows put again, to fold the history that they held back", "stream", target.Stream, "bucket", target.Bucket, "rows", reply.GetOps(), "bytes", reply.GetBytes())
		var folded scan.Result
		folded, err = c.compact(ctx, target)
		r.Add(folded)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ops.Add(r)
	if err == nil || code(err) == codes.Aborted {
		t.buckets++
		c.log.Debug("compacted bucket", "stream", target.Stream, "bucket", target.Bucket, "checkpoint", target.Checkpoint,
			"ops_read", r.Read, "ops_moved", r.Moved, "ops_cleared", r.Cleared, "ops_untracked", r.Untracked, "left_to_another", err != nil)
		return nil
	}
	if unreachable(err) {
		return err
	}
	t.failed++
	if t.err == nil {
		t.err = err
	}
	c.log.Error("bucket not compacted", "stream", target.Stream, "bucket", target.Bucket, "error", errs.Cause(err))
	return nil
}

// unreachable tells whether err says that bucket-store cannot be asked now, or
// that nobody waits for the answer.
func unreachable(err error) bool {
	if errs.IsRetry(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch code(err) {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		return true
	}
	return false
}

// code is the gRPC code in err's chain; OK if there is none.
func code(err error) codes.Code {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return codes.OK
	}
	return s.GRPCStatus().Code()
}
