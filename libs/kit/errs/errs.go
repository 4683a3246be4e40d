// Package errs has the error that leaves a process: with a code that someone
// can act on, and its one mapping to gRPC and to HTTP.
//
// Invariants:
//
//   - A code survives a trip over gRPC (TestGRPCRoundTrip).
//   - D10: the cause of an Error stays in the process; only Code, Msg and Retry
//     travel (TestCauseStays).
package errs

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is a failure with a code someone can act on; any other error crosses
// gRPC as Internal.
type Error struct {
	Code  Code   // public contract
	Msg   string // for whoever reads the log; never row data, never a token
	Retry bool   // the same call may succeed later, unchanged
	Err   error  // the cause; stays in this process
}

// Error is the message form of spec/06 §9. The cause is not part of it.
func (e *Error) Error() string { return "[" + string(e.Code) + "] " + e.Msg }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an Error.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Wrap returns an Error caused by err. The message does not show the cause; log
// Cause(err) to see it.
func Wrap(code Code, err error, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...), Err: err}
}

// Retryable marks e as one that may go away by itself and returns it.
func (e *Error) Retryable() *Error {
	e.Retry = true
	return e
}

// CodeOf returns the code of the first Error in err's chain, or "".
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// IsRetry reports whether err is an Error that may go away by itself.
func IsRetry(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Retry
}

// Cause is err's text with the causes that Error hides, for this process's own
// log.
func Cause(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Err != nil {
		return err.Error() + ": " + Cause(e.Err)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

const (
	domain   = "sluice"
	retryKey = "retry"
)

// ToGRPC turns err into a status error; an Error keeps its code as ErrorInfo.
// A status error, and nil, stay as they are.
func ToGRPC(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		if _, ok := status.FromError(err); ok {
			return err
		}
		switch {
		case errors.Is(err, context.Canceled):
			return status.Error(codes.Canceled, err.Error())
		case errors.Is(err, context.DeadlineExceeded):
			return status.Error(codes.DeadlineExceeded, err.Error())
		}
		return status.Error(codes.Internal, err.Error())
	}
	info := &errdetails.ErrorInfo{Reason: string(e.Code), Domain: domain}
	if e.Retry {
		info.Metadata = map[string]string{retryKey: "true"}
	}
	s, derr := status.New(grpcCode(e), e.Msg).WithDetails(info)
	if derr != nil {
		return status.Error(grpcCode(e), e.Error())
	}
	return s.Err()
}

// FromGRPC turns a status error with a code of ours back into an Error whose
// cause is the status error. A peer that cannot be reached is S2003, to be
// tried again, and one that does not know the call S9012; anything else, and nil,
// stays as it is.
func FromGRPC(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return &Error{Code: Code(info.GetReason()), Msg: s.Message(), Retry: info.GetMetadata()[retryKey] == "true", Err: err}
		}
	}
	switch s.Code() {
	case codes.Unavailable:
		return &Error{Code: S2003, Msg: "a service that this needs cannot be reached", Retry: true, Err: err}
	case codes.Unimplemented:
		return &Error{Code: S9012, Msg: "a service that this needs does not know the call: it is of an older version, upgrade it first", Err: err}
	}
	return err
}

func grpcCode(e *Error) codes.Code {
	switch e.Code {
	case S2001, R0001:
		return codes.InvalidArgument
	case S2002:
		return codes.NotFound
	case S2003:
		return codes.Unavailable
	case S2304, S2305:
		return codes.ResourceExhausted
	case S1003, S2302, S4104, S4105, S4106:
		return codes.FailedPrecondition
	case S2101, S2102, S2103, S2104, S2105, S2106:
		return codes.Unauthenticated
	case S9011:
		return codes.PermissionDenied
	case S9012:
		return codes.Unimplemented
	}
	if e.Retry {
		return codes.Unavailable
	}
	return codes.Internal
}
