package fanout

import (
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// set is a set of sessions: small ones are a slice.
type set struct {
	few  []*Session
	many map[*Session]struct{}
}

const fewSessions = 12

func (s *set) add(x *Session) {
	if s.many != nil {
		s.many[x] = struct{}{}
		return
	}
	if slices.Contains(s.few, x) {
		return
	}
	if len(s.few) < fewSessions {
		s.few = append(s.few, x)
		return
	}
	s.many = make(map[*Session]struct{}, 2*fewSessions)
	for _, y := range s.few {
		s.many[y] = struct{}{}
	}
	s.few = nil
	s.many[x] = struct{}{}
}

func (s *set) remove(x *Session) {
	if s.many != nil {
		delete(s.many, x)
		return
	}
	if i := slices.Index(s.few, x); i >= 0 {
		s.few[i] = s.few[len(s.few)-1]
		s.few[len(s.few)-1] = nil
		s.few = s.few[:len(s.few)-1]
	}
}

func (s *set) len() int { return len(s.few) + len(s.many) }

func (s *set) each(f func(*Session)) {
	for _, x := range s.few {
		f(x)
	}
	for x := range s.many {
		f(x)
	}
}

// entry is a bucket, a lookup or a user key that sessions hold.
type entry struct {
	name     string
	sessions set
	// state of a bucket, if known: every session in sessions was told of it, has
	// it marked, or started from a later checkpoint.
	state model.BucketState
	known bool
}

// index leads from a name to the sessions that hold it.
type index map[string]*entry

func (x index) add(name string, s *Session) *entry {
	e := x[name]
	if e == nil {
		e = &entry{name: name}
		x[name] = e
	}
	e.sessions.add(s)
	return e
}

func (x index) remove(e *entry, s *Session) {
	e.sessions.remove(s)
	if e.sessions.len() == 0 {
		delete(x, e.name)
	}
}
