package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
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
)

const (
	// page is how many buckets are asked for at once.
	page = 1000
	// attempts at a bucket at which another compactor is though it lost its turn;
	// then it is left to that one.
	attempts = 5
	// idle is the pause between two sweeps, each of which goes on for as long as
	// there is something to do, but begins nothing more after sweepFor.
	idle     = time.Second
	sweepFor = time.Minute
)

type compactor struct {
	catalog pb.CatalogClient
	store   pb.CompactionClient
	cfg     Config
	limits  compact.Limits // of what somebody waits for
	small   compact.Limits // of what nobody waits for: steps so short that writers do not notice
	budget  *budget
	pace    *pace
	slots   *semaphore.Weighted // one a bucket in work, over all runs: bounds memory
	log     *slog.Logger
	metrics *metrics
	ready   func(error)

	name    string        // of this process
	holders atomic.Uint64 // of turns, of this process
}

// holder makes the name of a holder of turns.
func (c *compactor) holder() string { return fmt.Sprint(c.name, "-", c.holders.Add(1)) }

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

// sweep compacts the dirtiest buckets of all active streams, one after the other,
// until there is none that is worth it.
func (c *compactor) sweep(ctx context.Context) error {
	streams, err := c.active(ctx)
	if err == nil {
		c.ready(nil) // bucket-store is there; the sweep may take long
	}
	if c.cfg.Interval > 0 {
		err = c.ran(ctx, "sweep", streams, err, func(id model.StreamID, t *tally) error {
			return c.sweepStream(ctx, id, time.Now().Add(sweepFor), t)
		})
	}
	if err != nil && ctx.Err() == nil {
		c.ready(err)
	}
	return err
}

func (c *compactor) sweepStream(ctx context.Context, id model.StreamID, end time.Time, t *tally) error {
	eg, ctx := errgroup.WithContext(ctx)
	for time.Now().Before(end) {
		if c.slots.Acquire(ctx, 1) != nil {
			break // a bucket's error, or ctx's end: Wait tells
		}
		turn, err := c.next(ctx, id)
		if err != nil || turn == nil {
			c.slots.Release(1)
			return errors.Join(err, eg.Wait())
		}
		eg.Go(func() error {
			defer c.slots.Release(1)
			return c.bucket(ctx, turn, effort{c.small, c.pace.step}, t)
		})
	}
	return errors.Join(eg.Wait(), ctx.Err())
}

// tidy compacts the parameter index and drops old requests, of all active
// streams.
func (c *compactor) tidy(ctx context.Context) error {
	streams, err := c.active(ctx)
	return c.ran(ctx, "tidy", streams, err, func(id model.StreamID, t *tally) error { return c.lookups(ctx, id, c.pace.step, t) })
}

// ran does the work of a run for each stream and says what came of it.
func (c *compactor) ran(ctx context.Context, round string, streams []model.StreamID, err error, work func(model.StreamID, *tally) error) error {
	start := time.Now()
	t := &tally{}
	for i := 0; err == nil && i < len(streams); i++ {
		err = work(streams[i], t)
	}
	c.metrics.ran(t, err, time.Since(start))
	if err != nil && ctx.Err() == nil {
		c.log.Warn("compaction stopped, will be resumed", "round", round, "error", errs.Cause(err))
	}
	if t.any() {
		c.log.Debug("compacted", "round", round, "buckets", t.buckets, "failed", t.failed, "ops_read", t.ops.Read,
			"ops_moved", t.ops.Moved, "ops_cleared", t.ops.Cleared, "lookups_removed", t.lookups, "requests_expired", t.requests)
	}
	return err
}

// now compacts, of every active stream, the buckets named, or all if none is,
// and the lookups and requests, if so told. The tally counts what was done also
// when it fails. Buckets that fail by themselves are in tally.err only.
func (c *compactor) now(ctx context.Context, only []string, buckets, lookups bool) (*tally, error) {
	start := time.Now()
	t := &tally{}
	streams, err := c.active(ctx)
	for i := 0; err == nil && i < len(streams); i++ {
		if buckets {
			err = c.named(ctx, streams[i], only, t)
		}
		if err == nil && lookups {
			err = c.lookups(ctx, streams[i], atOnce, t)
		}
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

func (c *compactor) lookups(ctx context.Context, id model.StreamID, step scan.Step, t *tally) error {
	// The checkpoint is asked for now, after the buckets are done.
	reply, err := c.store.Dirtiest(ctx, &pb.DirtiestRequest{Stream: int64(id), Limit: 1, MinChanges: 1})
	if err != nil {
		return fmt.Errorf("checkpoint of stream %d: %w", id, err)
	}
	if reply.GetCheckpoint() > 0 {
		removed, err := scan.Lookups(ctx, c.store, id, model.OpID(reply.GetCheckpoint()), step)
		t.lookups += removed
		if err != nil {
			return err
		}
	}
	expired, err := scan.Requests(ctx, c.store, id, c.cfg.RequestRetention, step)
	t.requests += expired
	return err
}

// named compacts the buckets named, or all if none is, whatever their state.
func (c *compactor) named(ctx context.Context, id model.StreamID, only []string, t *tally) error {
	req := &pb.DirtiestRequest{Stream: int64(id), Limit: page, Only: only}
	for {
		reply, err := c.store.Dirtiest(ctx, req)
		if err != nil {
			return fmt.Errorf("list buckets of stream %d: %w", id, err)
		}
		if reply.GetCheckpoint() == 0 {
			return nil // nothing is visible yet
		}
		eg, egCtx := errgroup.WithContext(ctx)
		for _, b := range reply.GetBuckets() {
			req.After = max(req.After, b.GetBucket())
			if c.slots.Acquire(egCtx, 1) != nil {
				break // a bucket's error, or ctx's end: Wait tells
			}
			target := scan.Target{Stream: id, Bucket: b.GetBucket(), Checkpoint: model.OpID(reply.GetCheckpoint())}
			eg.Go(func() error {
				defer c.slots.Release(1)
				turn, err := c.take(egCtx, target)
				if err != nil {
					return err
				}
				return c.bucket(egCtx, turn, effort{c.limits, atOnce}, t)
			})
		}
		if err := errors.Join(eg.Wait(), ctx.Err()); err != nil || len(reply.GetBuckets()) < page {
			return err
		}
	}
}

// effort is how large the steps are and how soon one follows another.
type effort struct {
	limits compact.Limits
	step   scan.Step
}

// compact compacts one bucket, without defragmenting it.
func (c *compactor) compact(ctx context.Context, target scan.Target, by effort) (r scan.Result, err error) {
	for range attempts {
		var part scan.Result
		part, err = scan.Bucket(ctx, c.store, target, by.limits, by.step)
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

// defragment compacts one bucket, and where old rows hold back much history has
// them put again, as far as the budget goes, and compacts it again.
func (c *compactor) defragment(ctx context.Context, target scan.Target, by effort) (scan.Result, error) {
	r, err := c.compact(ctx, target, by)
	for err == nil && len(r.Reemit) > 0 {
		left := c.budget.bytes(time.Now())
		if left == 0 {
			break
		}
		reply, err := scan.Reemit(ctx, c.store, &target, r.Reemit, left)
		if err != nil || reply.GetOps() == 0 {
			c.log.Debug("rows not put again", "stream", target.Stream, "bucket", target.Bucket, "reason", reply.GetReason(), "error", errs.Cause(err))
			return r, err
		}
		c.budget.spend(reply.GetBytes())
		c.metrics.reemitted(reply)
		c.log.Info("rows put again, to fold the history that they held back", "stream", target.Stream, "bucket", target.Bucket, "rows", reply.GetOps(), "bytes", reply.GetBytes())
		folded, err := c.compact(ctx, target, by)
		if r.Add(folded); err != nil {
			return r, err
		}
	}
	return r, err
}

// bucket compacts the bucket whose turn it is. Its error ends the run:
// bucket-store is out of reach. A failure that concerns the bucket only is logged
// and counted.
func (c *compactor) bucket(ctx context.Context, turn *turn, by effort, t *tally) error {
	target := turn.Target
	var r scan.Result
	err := turn.do(ctx, func(ctx context.Context) (err error) {
		r, err = c.defragment(ctx, target, by)
		return err
	})
	left := errors.Is(err, errLost) || code(err) == codes.Aborted
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ops.Add(r)
	if err == nil || left {
		t.buckets++
		c.log.Debug("compacted bucket", "stream", target.Stream, "bucket", target.Bucket, "checkpoint", target.Checkpoint,
			"ops_read", r.Read, "ops_moved", r.Moved, "ops_cleared", r.Cleared, "ops_untracked", r.Untracked, "left_to_another", left)
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

// any tells whether anything was done.
func (t *tally) any() bool { return t.buckets > 0 || t.failed > 0 || t.lookups > 0 || t.requests > 0 }

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
