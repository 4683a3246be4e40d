package api

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// TestMapped: callers learn by codes what became of their call, and whether to
// call again.
func TestMapped(t *testing.T) {
	for _, x := range []struct {
		err   error
		code  errs.Code
		retry bool
		grpc  codes.Code
	}{
		{store.ErrFull, errs.S2404, true, codes.Unavailable},
		{store.ErrDamaged, errs.S2404, false, codes.Internal},
		{&store.LimitError{Limit: 3}, errs.S2305, false, codes.ResourceExhausted},
		{store.ErrNoStream, "", false, codes.NotFound},
		{store.ErrNotReplicated, "", false, codes.FailedPrecondition},
		{&store.ReplaceError{Op: 3, Reason: "x"}, "", false, codes.Aborted},
	} {
		err := errs.ToGRPC(mapped(fmt.Errorf("read ops: %w", x.err)))
		if status.Code(err) != x.grpc {
			t.Errorf("%v crosses gRPC as %s, want %s", x.err, status.Code(err), x.grpc)
		}
		if back := errs.FromGRPC(err); errs.CodeOf(back) != x.code || errs.IsRetry(back) != x.retry {
			t.Errorf("%v is %v for the caller", x.err, back)
		}
	}
}
