package compactor

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/compactor/internal/scan"
)

// turns is as much of bucket-store as a turn needs.
type turns struct {
	pb.CompactionClient
	renewed int
	taken   bool // by another
	err     error
	rest    time.Duration
}

func (s *turns) Hold(_ context.Context, req *pb.HoldRequest, _ ...grpc.CallOption) (*pb.HoldReply, error) {
	s.renewed++
	if s.taken || s.err != nil {
		return &pb.HoldReply{}, s.err
	}
	return &pb.HoldReply{Bucket: &pb.DirtyBucket{Bucket: req.GetBucket()}}, nil
}

func (s *turns) Release(ctx context.Context, req *pb.ReleaseRequest, _ ...grpc.CallOption) (*pb.ReleaseReply, error) {
	s.rest = time.Duration(req.GetRestMs()) * time.Millisecond
	return &pb.ReleaseReply{}, ctx.Err()
}

// TestTurn: a turn lasts as long as the work, ends it when it is lost, and lets
// the bucket rest.
func TestTurn(t *testing.T) {
	work := func(err error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-time.After(ttl + 1):
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	broken := errors.New("not in order")
	gone := status.Error(codes.Unavailable, "gone")
	for name, x := range map[string]struct {
		store   turns
		work    error
		want    error
		rest    time.Duration
		renewed int
	}{
		"done":          {turns{}, nil, nil, time.Minute, 3},
		"bad bucket":    {turns{}, broken, broken, failedRest, 3},
		"unreachable":   {turns{}, gone, gone, 0, 3},
		"lost":          {turns{taken: true}, nil, errLost, time.Minute, 1},
		"not to be had": {turns{err: gone}, nil, nil, time.Minute, 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &compactor{store: &x.store, cfg: Config{Rest: time.Minute}, log: slog.New(slog.DiscardHandler)}
				one := turn{c, scan.Target{Stream: 1, Bucket: "a"}, "me"}
				if err := one.do(t.Context(), work(x.work)); !errors.Is(err, x.want) {
					t.Errorf("error %v, want %v", err, x.want)
				}
				if x.store.rest != x.rest || x.store.renewed != x.renewed {
					t.Errorf("rests %s, renewed %d times", x.store.rest, x.store.renewed)
				}
				// One that is stopped gives its turn back.
				x.store.rest = -1
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if err := one.do(ctx, work(nil)); !errors.Is(err, context.Canceled) || x.store.rest != 0 {
					t.Errorf("stopped: %v, rests %s", err, x.store.rest)
				}
			})
		})
	}
}
