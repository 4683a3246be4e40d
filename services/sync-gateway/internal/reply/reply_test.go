package reply

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

func TestInternalErrors(t *testing.T) {
	w := httptest.NewRecorder()
	if status := Error(w, fmt.Errorf("read: %w", errors.New("password=hunter2")), "h/1"); status != 500 {
		t.Errorf("status %d", status)
	}
	const want = `{"error":{"name":"InternalServerError","code":"PSYNC_S2001","status":500,"description":"Something went wrong","trace_id":"h/1"}}`
	if got := w.Body.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	w = httptest.NewRecorder()
	Error(w, errs.Wrap(errs.S2105, errors.New("hunter2"), "Unexpected %q", "aud"), "")
	const refused = `{"error":{"name":"AuthorizationError","code":"PSYNC_S2105","status":401,"description":"Unexpected \"aud\""}}`
	if got := w.Body.String(); got != refused || w.Code != 401 || w.Header().Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("%d %s", w.Code, got)
	}
	w = httptest.NewRecorder()
	Error(w, NewFault("a must be b", `"c"`), "")
	const invalid = `{"error":{"name":"ValidationError","code":"PSYNC_S2001","status":400,"description":"Validation failed","details":"[\"a must be b\",\"\\\"c\\\"\"]"}}`
	if got := w.Body.String(); got != invalid || w.Code != 400 {
		t.Errorf("%d %s", w.Code, got)
	}
}

func TestIDs(t *testing.T) {
	seen, last := map[string]bool{}, ""
	for range 1000 {
		id := NewID("h/")
		if len(id) != 38 || id[16] != '7' || seen[id] || !strings.Contains("89ab", id[21:22]) {
			t.Fatalf("%q", id)
		}
		if id[:15] < last {
			t.Fatalf("%q after %q", id, last)
		}
		seen[id], last = true, id[:15]
	}
}
