package fanout

import (
	"cmp"
	"slices"
	"time"

	"github.com/sluicesync/sluice/libs/model"
)

// Who is at the other end of a session.
type Who struct {
	User, Client, Agent string
	Transport           string // http, websocket
}

// Info describes a session: who it is, and how far its client is behind.
type Info struct {
	Who
	Since   time.Time
	Buckets int
	// Checkpoint is the last one that was sent completely; 0 = none.
	Checkpoint model.OpID
	// Missing counts the checkpoints that concern the client and were not sent
	// completely, Ops the op ids in between, which may be of others, and Late is
	// when the first of them came. All are zero if there is none.
	Missing uint64
	Ops     uint64
	Late    time.Time
}

// lag is how far a session is. It is guarded by the hub.
type lag struct {
	marked     uint64 // checkpoints that concerned it
	viewed     uint64 // of these, those in its last view
	completed  uint64 // and those that were sent completely
	checkpoint model.OpID
	fresh      time.Time // when the first came that is not in its last view
	late       time.Time // when the first came that is in its last view and not completed
}

// concern counts a checkpoint that concerns the session.
func (l *lag) concern(now time.Time) {
	if l.marked == l.viewed {
		l.fresh = now
	}
	l.marked++
}

// view says that everything counted so far is in a view.
func (l *lag) view() {
	if l.viewed == l.completed {
		l.late = l.fresh
	}
	l.viewed = l.marked
}

// complete says that the view with these was sent, which completed a checkpoint.
func (l *lag) complete(viewed uint64, checkpoint model.OpID) {
	l.completed, l.checkpoint = max(l.completed, viewed), max(l.checkpoint, checkpoint)
}

// List describes the sessions that are most behind, at most so many, then those
// that have been here longest; of one user, or of all (""). total counts them
// all.
func (h *Hub) List(user string, most int) (list []Info, total int) {
	h.mu.Lock()
	list = make([]Info, 0, len(h.sessions))
	for s := range h.sessions {
		if s == h.canary || user != "" && s.who.User != user {
			continue
		}
		l := &s.lag
		i := Info{Who: s.who, Since: s.started, Buckets: len(s.entries), Checkpoint: l.checkpoint, Missing: l.marked - l.completed}
		if i.Missing > 0 {
			i.Ops = uint64(max(h.at.Op, s.at.Op) - l.checkpoint)
			if i.Late = l.fresh; l.viewed > l.completed {
				i.Late = l.late
			}
		}
		list = append(list, i)
	}
	h.mu.Unlock()
	slices.SortFunc(list, func(a, b Info) int {
		if c := cmp.Compare(min(b.Missing, 1), min(a.Missing, 1)); c != 0 {
			return c
		}
		return cmp.Or(a.Late.Compare(b.Late), a.Since.Compare(b.Since), cmp.Compare(a.User, b.User), cmp.Compare(a.Client, b.Client))
	})
	total = len(list)
	return slices.Clip(list[:min(most, total)]), total
}
