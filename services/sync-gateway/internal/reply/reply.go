// Package reply writes what HTTP clients are answered: data as JSON, and errors
// in the shape of spec/06 §4.
//
// Invariants:
//
//   - INV-34: an error without a code tells nothing of its cause
//     (TestInternalErrors).
package reply

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/queue"
)

// Failure is what a client is told of an error (spec/06 §4).
type Failure struct {
	Name        string `json:"name"`
	Code        string `json:"code"`
	Status      int    `json:"status"`
	Description string `json:"description"`
	Details     string `json:"details,omitempty"`
	TraceID     string `json:"trace_id,omitempty"`
}

var names = map[errs.Code]string{
	errs.S2001: "ValidationError", errs.S2002: "RouteNotFound", errs.S2003: "ServiceUnavailable", errs.S2004: "UnsupportedMediaType",
	errs.S9020: "AuthorizationError",
}

// Of makes err fit for a client: errors without a code are internal, and
// nothing of them is shown (INV-34).
func Of(err error, id string) Failure {
	var f *Fault
	if errors.As(err, &f) {
		details, merr := json.Marshal(f.Messages)
		if merr != nil {
			details = nil
		}
		return Failure{Name: "ValidationError", Code: string(errs.S2001), Status: http.StatusBadRequest, Description: "Validation failed", Details: string(details), TraceID: id}
	}
	var s *StatusError
	if errors.As(err, &s) {
		out := s.Failure
		out.TraceID = id
		return out
	}
	var e *errs.Error
	if !errors.As(err, &e) {
		return Failure{Name: "InternalServerError", Code: string(errs.S2001), Status: http.StatusInternalServerError, Description: "Something went wrong", TraceID: id}
	}
	out := Failure{Name: "ServiceError", Code: string(e.Code), Status: errs.HTTPStatus(e.Code), Description: e.Msg, TraceID: id}
	if out.Status == http.StatusUnauthorized {
		out.Name = "AuthorizationError"
	}
	if n := names[e.Code]; n != "" {
		out.Name = n
	}
	return out
}

// Fault is a request that does not fit its schema, with every message.
type Fault struct{ Messages []string }

// NewFault returns a Fault.
func NewFault(messages ...string) *Fault { return &Fault{messages} }

func (f *Fault) Error() string { return f.Unwrap().Error() }

// Unwrap gives the failure its code.
func (f *Fault) Unwrap() error { return errs.New(errs.S2001, "Validation failed") }

// StatusError is an error that says all of its answer by itself.
type StatusError struct{ Failure }

func (e *StatusError) Error() string { return "[" + e.Code + "] " + e.Description }

// JSON answers with v.
func JSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte("{}")
	}
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went needs no answer
}

var jsonType = []string{"application/json; charset=utf-8"}

// Error answers with err and returns the status.
func Error(w http.ResponseWriter, err error, id string) int {
	if errors.Is(err, queue.ErrFull) {
		w.WriteHeader(http.StatusTooManyRequests)
		return http.StatusTooManyRequests
	}
	f := Of(err, id)
	JSON(w, f.Status, map[string]Failure{"error": f})
	return f.Status
}

// NewID returns prefix and a UUID of version 7.
func NewID(prefix string) string {
	var u [16]byte
	_, _ = rand.Read(u[6:]) // never fails
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(time.Now().UnixMilli()))
	copy(u[:6], ms[2:])
	u[6] = u[6]&0x0f | 0x70
	u[8] = u[8]&0x3f | 0x80
	b := make([]byte, 0, len(prefix)+36)
	b = append(b, prefix...)
	b = append(hex.AppendEncode(b, u[0:4]), '-')
	b = append(hex.AppendEncode(b, u[4:6]), '-')
	b = append(hex.AppendEncode(b, u[6:8]), '-')
	b = append(hex.AppendEncode(b, u[8:10]), '-')
	return string(hex.AppendEncode(b, u[10:16]))
}
