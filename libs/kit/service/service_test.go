package service

import (
	"errors"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	var h Health
	if s := h.Snapshot(); s.Started || s.Ready || !errors.Is(s.Reason, ErrStarting) || !s.Touched.IsZero() {
		t.Errorf("at first: %+v", s)
	}
	h.Start()
	h.SetReady(nil)
	if s := h.Snapshot(); !s.Started || !s.Ready || s.Reason != nil || time.Since(s.Touched) > time.Minute {
		t.Errorf("ready: %+v", s)
	}
	away := errors.New("away")
	h.SetReady(away)
	h.Touch()
	if s := h.Snapshot(); s.Ready || !errors.Is(s.Reason, away) {
		t.Errorf("not ready: %+v", s)
	}
}
