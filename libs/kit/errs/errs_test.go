package errs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errCause = errors.New("password is hunter2")

// A code survives a trip over gRPC, with its message and whether to retry.
func TestGRPCRoundTrip(t *testing.T) {
	for _, e := range []*Error{
		New(S2305, "too many buckets: %d", 7),
		New(S2003, "restarting").Retryable(),
		Wrap(S1003, errCause, "locked"),
	} {
		sent := ToGRPC(fmt.Errorf("while serving: %w", e))
		var got *Error
		if !errors.As(FromGRPC(sent), &got) || got.Code != e.Code || got.Msg != e.Msg || got.Retry != e.Retry {
			t.Errorf("%v arrived as %+v", e, got)
		}
		if CodeOf(FromGRPC(sent)) != e.Code || IsRetry(FromGRPC(sent)) != e.Retry {
			t.Errorf("CodeOf or IsRetry of %v", e)
		}
		// What it was on the way is still to be found.
		if s, ok := status.FromError(errors.Unwrap(FromGRPC(sent))); !ok || s.Code() == codes.OK {
			t.Errorf("the status of %v is lost", e)
		}
	}
}

// D10: the cause stays in the process.
func TestCauseStays(t *testing.T) {
	e := Wrap(S2402, errCause, "storage")
	if strings.Contains(e.Error(), "hunter2") || strings.Contains(ToGRPC(e).Error(), "hunter2") {
		t.Errorf("%v %v", e, ToGRPC(e))
	}
	if !strings.Contains(Cause(fmt.Errorf("open: %w", e)), "hunter2") || !errors.Is(e, errCause) {
		t.Errorf("the process's own log lacks the cause: %s", Cause(e))
	}
}

func TestOtherErrors(t *testing.T) {
	if ToGRPC(nil) != nil || FromGRPC(nil) != nil || Cause(nil) != "" || CodeOf(nil) != "" {
		t.Error("nil is an error")
	}
	st := status.Error(codes.NotFound, "gone")
	if ToGRPC(st) != st || FromGRPC(st) != st || FromGRPC(io.EOF) != io.EOF {
		t.Error("a status error or io.EOF was changed")
	}
	lost := FromGRPC(status.Error(codes.Unavailable, "connection refused"))
	if CodeOf(lost) != S2003 || !IsRetry(lost) || status.Code(lost) != codes.Unavailable {
		t.Errorf("a peer that cannot be reached is %v", lost)
	}
	old := FromGRPC(status.Error(codes.Unimplemented, "unknown method"))
	if CodeOf(old) != S9012 || IsRetry(old) || status.Code(old) != codes.Unimplemented {
		t.Errorf("a peer that does not know the call is %v", old)
	}
	for err, want := range map[error]codes.Code{
		errCause: codes.Internal, context.Canceled: codes.Canceled, context.DeadlineExceeded: codes.DeadlineExceeded,
		New(S2001, ""): codes.InvalidArgument, New(S2101, ""): codes.Unauthenticated, New(S1003, ""): codes.FailedPrecondition,
		New(S2404, ""): codes.Internal, New(S2404, "").Retryable(): codes.Unavailable, New(S2002, ""): codes.NotFound, New(S2304, ""): codes.ResourceExhausted,
		New(S9011, ""): codes.PermissionDenied, New(S9012, ""): codes.Unimplemented,
	} {
		if got := status.Code(ToGRPC(err)); got != want {
			t.Errorf("%v: %v, not %v", err, got, want)
		}
	}
}

func TestHTTPStatus(t *testing.T) {
	for code, want := range map[Code]int{
		S2001: 400, S2002: 404, S2003: 503, S2004: 415, S2101: 401, S2106: 401, S2304: 429, S4105: 422, S4106: 409, R0001: 422,
		S9012: 501, S2302: 500, S2305: 500, "": 500,
	} {
		if got := HTTPStatus(code); got != want {
			t.Errorf("%s: %d %s, not %d", code, got, http.StatusText(got), want)
		}
	}
	if got := New(S2101, "no").Error(); got != "[PSYNC_S2101] no" {
		t.Errorf("message form: %s", got)
	}
}
