package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
)

// look reads what the marks point to and offers it to the core.
func (s *Session) look(m marks) error {
	deadline := time.Now().Add(patience)
	pause := 20 * time.Millisecond
	for {
		err := s.view(s.hub.ctx, m)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, backend.ErrInvalid):
			// The checkpoint is dropped without a line; everything is read again
			// at the next (spec/02 §6).
			s.hub.mu.Lock()
			s.hub.stale[s] = struct{}{}
			s.hub.poke()
			s.hub.mu.Unlock()
			return nil
		case errs.CodeOf(err) == errs.S2305 || time.Now().After(deadline):
			return err
		}
		select {
		case <-time.After(pause):
		case <-s.quit:
			return nil
		case <-s.hub.ctx.Done():
			return s.hub.ctx.Err()
		}
		pause = min(2*pause, time.Second)
	}
}

// view builds the view of m and offers it.
func (s *Session) view(ctx context.Context, m marks) error {
	h := s.hub
	v := session.View{Checkpoint: m.at.Op, WriteCheckpoint: m.id}
	var unknown []string
	results := 0 // rows of parameter queries, if they were asked
	if (m.resolve || m.all) && s.querier != nil {
		found, err := s.resolve(ctx, m.at)
		if err != nil {
			return err
		}
		v.Full, v.Buckets = true, buckets(found.Buckets)
		results = found.Results
		known := make(map[string]model.BucketState, len(m.changed))
		for e, x := range m.changed {
			if x.known {
				known[e.name] = x.state
			} else {
				unknown = append(unknown, e.name)
			}
		}
		slices.Sort(unknown)
		var need []int
		for i := range v.Buckets {
			id := v.Buckets[i].ID
			if state, ok := known[id]; ok && !m.all {
				v.Buckets[i].State = state
				continue
			}
			if state, ok := s.core.State(id); ok && !m.all {
				if _, ask := slices.BinarySearch(unknown, id); !ask {
					v.Buckets[i].State = state
					continue
				}
			}
			need = append(need, i)
		}
		names := make([]string, len(need))
		for j, i := range need {
			names[j] = v.Buckets[i].ID
		}
		states, err := h.checksums.Do(ctx, m.at.Op, names)
		if err != nil {
			return err
		}
		for j, i := range need {
			v.Buckets[i].State = states[j]
		}
		h.mu.Lock()
		s.place(m.at, v.Buckets, found.Lookups)
		h.mu.Unlock()
		s.summary.Buckets = len(v.Buckets)
	} else {
		if m.all {
			unknown = s.core.IDs(nil)
		} else {
			for e, x := range m.changed {
				if x.known {
					v.Buckets = append(v.Buckets, session.Bucket{ID: e.name, State: x.state})
				} else {
					unknown = append(unknown, e.name)
				}
			}
		}
		states, err := h.checksums.Do(ctx, m.at.Op, unknown)
		if err != nil {
			return err
		}
		for i, id := range unknown {
			v.Buckets = append(v.Buckets, session.Bucket{ID: id, State: states[i]})
		}
	}
	sending := s.core.Sending()
	due := s.core.Offer(v)
	if due && sending {
		s.summary.Superseded++
		s.stats.Superseded.Add(1)
	}
	switch {
	case due:
		s.checkpoint("Updated checkpoint", &v, results)
	case !sending:
		s.since = 0 // it was no change to the client
	}
	h.mu.Lock()
	s.redo = false
	if due {
		s.pace.spend(time.Now())
	}
	h.mu.Unlock()
	return nil
}

// resolve finds the session's buckets at a checkpoint.
func (s *Session) resolve(ctx context.Context, at model.Checkpoint) (*rules.Buckets, error) {
	found, err := s.querier.Resolve(func(keys []string) ([][]string, error) {
		return s.hub.lookups.Do(ctx, at.Op, keys)
	})
	if err != nil {
		return nil, limit(err)
	}
	if n := s.hub.limits.Buckets; n > 0 && len(found.Buckets) > n {
		by := map[string]int{}
		for i := range found.Buckets {
			by[found.Buckets[i].Definition]++
		}
		return nil, limit(&rules.LimitError{Message: fmt.Sprintf("Too many buckets: %d (limit of %d)", len(found.Buckets), n), ByDefinition: by})
	}
	return found, nil
}

// limit gives a bound's error its code, and the definitions that exceed it.
func limit(err error) error {
	var e *rules.LimitError
	if !errors.As(err, &e) {
		return err
	}
	type count struct {
		name string
		n    int
	}
	var counts []count
	for name, n := range e.ByDefinition {
		counts = append(counts, count{name, n})
	}
	slices.SortFunc(counts, func(a, b count) int {
		if a.n != b.n {
			return b.n - a.n
		}
		return strings.Compare(a.name, b.name)
	})
	msg := e.Message
	const most = 10
	for i, c := range counts {
		switch {
		case i == most:
			rest := 0
			for _, c := range counts[most:] {
				rest += c.n
			}
			msg += fmt.Sprintf("; and %d more from %d others", rest, len(counts)-most)
		case i > most:
		case i == 0:
			msg += fmt.Sprintf(": %s %d", c.name, c.n)
		default:
			msg += fmt.Sprintf(", %s %d", c.name, c.n)
		}
	}
	return errs.Wrap(errs.S2305, err, "%s", msg)
}

// place makes the session's entries in the index those of a list that was read
// at a checkpoint, and marks what may have changed between it and the hub's.
// hub.mu is held.
func (s *Session) place(at model.Checkpoint, list []session.Bucket, lookups []string) {
	h := s.hub
	missed, ok := h.missed(at)
	fresh := false
	old := make(map[string]*entry, len(s.entries))
	for _, e := range s.entries {
		old[e.name] = e
	}
	entries := make([]*entry, len(list))
	for i := range list {
		b := &list[i]
		e := old[b.ID]
		if e == nil {
			e = h.buckets.add(b.ID, s)
			fresh = true
			for _, c := range missed {
				if _, changed := c.buckets[b.ID]; changed {
					s.marks.set(e, mark{})
					s.marks.at = later(s.marks.at, h.at)
				}
			}
		} else {
			delete(old, b.ID)
		}
		if !e.known && !after(h.at, at) && !after(at, h.at) {
			e.state, e.known = b.State, true
		} else if e.state != b.State {
			e.known = false
		}
		b.ID = e.name // one copy of the text for all sessions
		entries[i] = e
	}
	for _, e := range old {
		h.buckets.remove(e, s)
		delete(s.marks.changed, e)
	}
	s.entries = entries

	clear(old)
	for _, e := range s.keys {
		old[e.name] = e
	}
	keys := make([]*entry, 0, len(lookups))
	for _, k := range lookups {
		e := old[k]
		if e == nil {
			e = h.keys.add(k, s)
			fresh = true
			for _, c := range missed {
				if _, changed := c.lookups[k]; changed {
					s.marks.resolve = true
					s.marks.at = later(s.marks.at, h.at)
				}
			}
		} else {
			delete(old, k)
		}
		keys = append(keys, e)
	}
	for _, e := range old {
		h.keys.remove(e, s)
	}
	s.keys = keys
	if fresh && !ok {
		s.marks.all = true
		s.marks.at = later(s.marks.at, h.at)
	}
}

func ids(list []rules.Bucket) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].ID
	}
	return out
}

func buckets(list []rules.Bucket) []session.Bucket {
	out := make([]session.Bucket, len(list))
	for i := range list {
		b := &list[i]
		reasons := make([]session.Reason, len(b.Reasons))
		for j, r := range b.Reasons {
			reasons[j] = session.Reason(r)
		}
		out[i] = session.Bucket{ID: b.ID, Priority: b.Priority, Reasons: reasons}
	}
	return out
}

func streams(list []rules.StreamInfo, failed []rules.SubscriptionError) []session.Stream {
	out := make([]session.Stream, len(list))
	for i, x := range list {
		out[i] = session.Stream{Name: x.Name, IsDefault: x.IsDefault}
		for _, f := range failed {
			if f.Definition == x.Name {
				out[i].Errors = append(out[i].Errors, session.StreamError{
					Default: f.Default, Subscription: f.Subscription, Message: f.Err.Error(),
				})
			}
		}
	}
	return out
}
