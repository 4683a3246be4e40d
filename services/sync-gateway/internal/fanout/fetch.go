package fanout

import (
	"errors"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
)

// fetch returns the chunk that f asks for, or nil if the session was woken for
// something that comes first. Lines that wait go out before a long wait.
func (s *Session) fetch(f session.Fetch, out *Lines) (*chunk.Chunk, error) {
	h := s.hub
	deadline := time.Now().Add(patience)
	pause := 20 * time.Millisecond
	for {
		c, flight := h.chunks.Get(f, s.form, s.core.Ahead)
		if c != nil {
			return c, nil
		}
		if woken, err := s.await(flight, out); woken || err != nil {
			return nil, err
		}
		c, err := flight.Result()
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, chunk.ErrAgain):
			continue
		case time.Now().After(deadline):
			return nil, errs.Wrap(errs.S2403, err, "Timeout while waiting for data")
		}
		select {
		case <-time.After(pause):
		case <-s.quit:
			return nil, nil
		case <-h.ctx.Done():
			return nil, h.ctx.Err()
		}
		pause = min(2*pause, time.Second)
	}
}

// await waits for a flight. It returns early if the session shall end or its
// timer has fired.
func (s *Session) await(f *chunk.Flight, out *Lines) (woken bool, err error) {
	select {
	case <-f.Done():
		return false, nil
	default:
	}
	first := time.Second
	if !out.Empty() {
		first = linger
	}
	t := time.NewTimer(first)
	defer t.Stop()
	for {
		select {
		case <-f.Done():
			return false, nil
		case <-s.quit:
			return true, nil
		case <-s.hub.ctx.Done():
			return false, s.hub.ctx.Err()
		case <-t.C:
			// With many sessions on one flight, most find their timer fired as
			// well once it is their turn to run.
			select {
			case <-f.Done():
				return false, nil
			default:
			}
			if err := s.flush(out); err != nil {
				return false, err
			}
			s.hub.mu.Lock()
			due := s.marks.tick
			s.hub.mu.Unlock()
			if due {
				return true, nil
			}
			t.Reset(time.Second)
		}
	}
}
