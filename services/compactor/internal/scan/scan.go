// Package scan compacts one bucket, or the parameter index of one stream,
// through bucket-store's API: it reads ops downwards into core/compact and
// carries out the steps that come back.
//
// Invariants:
//
//   - INV-20: a run may end at any call, for any reason, also when a call
//     failed though it was carried out; the next run finishes the work
//     (TestFaults in package compactor).
//   - Memory: one plan (compact.Limits.Memory), one block of ops, and at most
//     two steps of MOVEs, however long the bucket's history is.
package scan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/core/compact"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// Store is what a bucket's compaction needs of bucket-store.
type Store interface {
	Scan(context.Context, *pb.ScanRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[pb.ScanReply], error)
	Replace(context.Context, *pb.ReplaceRequest, ...grpc.CallOption) (*pb.ReplaceReply, error)
	Reemit(context.Context, *pb.ReemitRequest, ...grpc.CallOption) (*pb.ReemitReply, error)
}

// Target names the work: a bucket of a stream, up to a checkpoint that was the
// active one when the work began. Nothing above it is touched (INV-17).
type Target struct {
	Stream     model.StreamID
	Bucket     string
	Checkpoint model.OpID
}

// Step is called after each call of bucket-store, or block that it has sent, with
// the bytes of history that it was about and how long it took. It may wait.
type Step func(ctx context.Context, bytes int, took time.Duration) error

// opBytes is what an op that is rewritten counts as.
const opBytes = 100

// Result counts what was done, also when it ended with an error.
type Result struct {
	Read, Moved, Cleared uint64
	// Untracked ops found no room in the memory limit: the bucket is compacted
	// less than it could be.
	Untracked uint64
	// Reemit are the rows that are worth to be put again now.
	Reemit []model.OpID
}

// Add adds what was done by a further attempt.
func (r *Result) Add(s Result) {
	r.Read += s.Read
	r.Moved += s.Moved
	r.Cleared += s.Cleared
	r.Untracked += s.Untracked
	r.Reemit = s.Reemit
}

// Bucket compacts one bucket. What it has done when it fails stays done.
func Bucket(ctx context.Context, store Store, t Target, l compact.Limits, step Step) (Result, error) {
	r, err := bucket(ctx, store, t, l, step)
	if err != nil {
		return r, fmt.Errorf("compact bucket %s of stream %d: %w", t.Bucket, t.Stream, err)
	}
	return r, nil
}

func bucket(ctx context.Context, store Store, t Target, l compact.Limits, step Step) (Result, error) {
	plan := compact.New(l)
	var r Result
	eg, moveCtx := errgroup.WithContext(ctx)
	steps := make(chan []compact.Move) // closed by read's caller; unbuffered: one step made, one carried out
	eg.Go(func() error {
		for moves := range steps {
			start := time.Now()
			if _, err := store.Replace(moveCtx, t.request(moves)); err != nil {
				return fmt.Errorf("replace %d ops by MOVEs: %w", len(moves), err)
			}
			r.Moved += uint64(len(moves))
			if err := step(moveCtx, len(moves)*opBytes, time.Since(start)); err != nil {
				return err
			}
		}
		return nil
	})
	eg.Go(func() error {
		defer close(steps)
		return read(moveCtx, store, t, plan, steps, step)
	})
	err := eg.Wait()
	r.Read, r.Untracked = plan.Ops()
	if err != nil {
		return r, err
	}
	// A crash before here leaves MOVEs, each right by itself. A crash from here
	// on leaves a shorter run for the next compaction to clear.
	clears := plan.Clears()
	for i, c := range clears {
		req := t.request(c.Moves)
		req.ClearTo = uint64(c.To)
		req.Finished = i == len(clears)-1
		start := time.Now()
		reply, err := store.Replace(ctx, req)
		if err != nil {
			return r, fmt.Errorf("clear up to op %d: %w", c.To, err)
		}
		r.Moved += uint64(len(c.Moves))
		r.Cleared += reply.GetCleared()
		if err := step(ctx, int(reply.GetCleared())*opBytes, time.Since(start)); err != nil {
			return r, err
		}
	}
	if len(clears) == 0 {
		req := t.request(nil)
		req.Finished = true
		if _, err := store.Replace(ctx, req); err != nil {
			return r, fmt.Errorf("mark as compacted: %w", err)
		}
	}
	r.Reemit, _ = plan.Reemit()
	return r, nil
}

// Reemit has ops of a bucket put again, if they have at most that many bytes of
// data. It makes the checkpoint that has them t's.
func Reemit(ctx context.Context, store Store, t *Target, ops []model.OpID, bytes uint64) (*pb.ReemitReply, error) {
	req := &pb.ReemitRequest{Stream: int64(t.Stream), Bucket: t.Bucket, Checkpoint: uint64(t.Checkpoint), Bytes: bytes}
	for _, id := range ops {
		req.Ops = append(req.Ops, uint64(id))
	}
	reply, err := store.Reemit(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("put %d ops of bucket %s of stream %d again: %w", len(ops), t.Bucket, t.Stream, err)
	}
	if reply.GetOps() > 0 {
		t.Checkpoint = model.OpID(reply.GetCheckpoint())
	}
	return reply, nil
}

// read feeds the plan with the whole bucket, newest op first, and passes on the
// steps as they come due.
func read(ctx context.Context, store Store, t Target, plan *compact.Plan, steps chan<- []compact.Move, step Step) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream when the plan does
	send := func(next func() []compact.Move) error {
		for moves := next(); moves != nil; moves = next() {
			select {
			case steps <- moves:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	stream, err := store.Scan(ctx, &pb.ScanRequest{Stream: int64(t.Stream), Bucket: t.Bucket, UpTo: uint64(t.Checkpoint)})
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	last := t.Checkpoint + 1
	for {
		start := time.Now()
		reply, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return send(plan.Rest)
		}
		if err != nil {
			return fmt.Errorf("scan below op %d: %w", last, err)
		}
		took := time.Since(start)
		for op, err := range wire.Ops(reply.GetOps()) {
			if err != nil {
				return fmt.Errorf("decode ops below %d: %w", last, err)
			}
			if op.ID >= last {
				return fmt.Errorf("scan: op %d after %d is not descending", op.ID, last)
			}
			last = op.ID
			plan.Add(&op)
			if err := send(plan.Moves); err != nil {
				return err
			}
		}
		if err := step(ctx, len(reply.GetOps()), took); err != nil {
			return err
		}
	}
}

func (t Target) request(moves []compact.Move) *pb.ReplaceRequest {
	req := &pb.ReplaceRequest{Stream: int64(t.Stream), Bucket: t.Bucket, Checkpoint: uint64(t.Checkpoint), Moves: make([]*pb.MoveOp, len(moves))}
	all := make([]pb.MoveOp, len(moves))
	for i, m := range moves {
		all[i].Id, all[i].Target = uint64(m.ID), uint64(m.Target)
		req.Moves[i] = &all[i]
	}
	return req
}
