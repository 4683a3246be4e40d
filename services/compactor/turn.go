package compactor

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/compactor/internal/scan"
)

const (
	// ttl of a turn at a bucket; it is renewed three times as often.
	ttl = 30 * time.Second
	// failedRest is how long a bucket rests that could not be compacted.
	failedRest = 10 * time.Minute
	// maxWait is the longest pause between two tries to get a bucket that another
	// has.
	maxWait = time.Second
)

// errLost: the turn was over before the work was. Whoever has it now goes on.
var errLost = errors.New("another compactor has the bucket")

// turn is a bucket that this process is at, in one of its runs.
type turn struct {
	c *compactor
	scan.Target
	holder string
}

func (c *compactor) hold(ctx context.Context, id model.StreamID, bucket, holder string) (*pb.HoldReply, error) {
	return c.store.Hold(ctx, &pb.HoldRequest{Stream: int64(id), Holder: holder, TtlMs: uint32(ttl.Milliseconds()), Bucket: bucket, MinChanges: c.cfg.MinChanges})
}

// next returns a turn at the dirtiest bucket that nobody is at; nil: there is
// none.
func (c *compactor) next(ctx context.Context, id model.StreamID) (*turn, error) {
	holder := c.holder()
	reply, err := c.hold(ctx, id, "", holder)
	if err != nil || reply.GetBucket() == nil {
		return nil, err
	}
	return &turn{c, scan.Target{Stream: id, Bucket: reply.GetBucket().GetBucket(), Checkpoint: model.OpID(reply.GetCheckpoint())}, holder}, nil
}

// take waits until nobody is at the bucket and returns a turn at it.
func (c *compactor) take(ctx context.Context, target scan.Target) (*turn, error) {
	holder := c.holder()
	for wait := time.Millisecond; ; wait = min(2*wait, maxWait) {
		reply, err := c.hold(ctx, target.Stream, target.Bucket, holder)
		if err != nil {
			c.release(ctx, target.Stream, target.Bucket, holder, 0) // it may have been given
			return nil, err
		}
		if reply.GetBucket() != nil {
			return &turn{c, target, holder}, nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// do runs work while the turn lasts, and then lets the bucket rest. Its error is
// errLost if the turn was lost.
func (t *turn) do(ctx context.Context, work func(context.Context) error) error {
	var wg sync.WaitGroup
	working, lose := context.WithCancelCause(ctx)
	wg.Go(func() {
		tick := time.NewTicker(ttl / 3)
		defer tick.Stop()
		for {
			select {
			case <-working.Done():
				return
			case <-tick.C:
				// If bucket-store does not answer, the work does not go on either.
				if reply, err := t.c.hold(working, t.Stream, t.Bucket, t.holder); err == nil && reply.GetBucket() == nil {
					lose(errLost)
					return
				}
			}
		}
	})
	err := work(working)
	if err != nil && context.Cause(working) == errLost {
		err = errLost
	}
	lose(nil)
	wg.Wait()
	rest := t.c.cfg.Rest
	switch {
	case err == nil || errors.Is(err, errLost):
	case unreachable(err):
		rest = 0
	default:
		rest = max(rest, failedRest)
	}
	t.c.release(ctx, t.Stream, t.Bucket, t.holder, rest)
	return err
}

// release ends a turn, also when ctx has ended, so that another may go on at
// once. If that fails, the turn ends with its time.
func (c *compactor) release(ctx context.Context, id model.StreamID, bucket, holder string, rest time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := c.store.Release(ctx, &pb.ReleaseRequest{Stream: int64(id), Bucket: bucket, Holder: holder, RestMs: uint32(rest.Milliseconds())}); err != nil {
		c.log.Debug("turn not released, it ends by itself", "stream", id, "bucket", bucket, "error", err)
	}
}
