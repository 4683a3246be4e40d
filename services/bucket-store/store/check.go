package store

import (
	"maps"
	"slices"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// Replicated tells whether commits to a stream in that state are taken.
func Replicated(s model.StreamState) bool { return s == model.Processing || s == model.Active }

// CheckCommit tells whether c may follow head; every implementation asks it in
// the step that commits.
func CheckCommit(state model.StreamState, head *model.StreamHead, c *ledger.Commit) error {
	switch {
	case !Replicated(state):
		return ErrNotReplicated
	case c.Head.Epoch != head.Epoch:
		return &FencedError{Epoch: c.Head.Epoch, Current: head.Epoch}
	case c.Previous != head.Applied || c.PreviousOp != head.Persisted:
		return &MovedError{Head: *head}
	}
	return nil
}

// Altered are the existing streams that c changes.
func (c *Change) Altered() []model.StreamID {
	ids := slices.AppendSeq(slices.Collect(maps.Keys(c.States)), maps.Keys(c.Edited))
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Alter changes one of them.
func (c *Change) Alter(s *model.Stream) {
	if state, ok := c.States[s.ID]; ok {
		s.State = state
	}
	if e, ok := c.Edited[s.ID]; ok {
		s.Edited, s.EditedContent, s.Former, s.Filed, s.FromFile = e.Text, e.Content, e.Former, e.Filed, e.FromFile
		s.Layers, s.Next, s.NextContent = e.Layers, e.Next, e.NextContent
	}
}

// NextHead is the head after c was committed on head.
func NextHead(head *model.StreamHead, c *ledger.Commit) model.StreamHead {
	next := c.Head
	if !c.Published || c.Head.Applied == c.Previous { // nothing came from the source
		next.LastError, next.LastErrorAt = head.LastError, head.LastErrorAt
	} else {
		next.LastError, next.LastErrorAt = "", 0
	}
	return next
}

// UserCheckpoints is what is kept for one user key: the newest number, and the
// newest one known to be reached when another took its place.
type UserCheckpoints struct {
	ID          uint64
	Head        model.Position
	ReachedID   uint64
	ReachedHead model.Position
	Requested   model.Micros // when ID was last requested, if it may expire
}

// Take gives r its number while clients see a checkpoint at position.
func (u *UserCheckpoints) Take(r WriteCheckpointRequest, position model.Position) {
	id := r.ID
	if id == 0 {
		id = u.ID + 1
	}
	if id < u.ID {
		return
	}
	if id == u.ID {
		if r.Requested == 0 || u.Requested == 0 {
			u.Requested = 0
		} else {
			u.Requested = max(u.Requested, r.Requested)
		}
		return
	}
	if u.ID > 0 && u.Head <= position {
		u.ReachedID, u.ReachedHead = u.ID, u.Head
	}
	u.ID, u.Head, u.Requested = id, r.Head, r.Requested
}

// Expired tells whether the number may be dropped: whoever waits for it at
// position has it, and nobody has asked for it since that time.
func (u *UserCheckpoints) Expired(position model.Position, before model.Micros) bool {
	return u.Requested != 0 && u.Requested < before && u.Head <= position
}

// TakeAll gives the requests their numbers, in order, while clients see a
// checkpoint at position. users is what is kept for the keys, and then what is
// to be kept; changed are the keys of what is not as it was. It returns what
// each key has when its request was taken.
func TakeAll(users map[string]UserCheckpoints, requests []WriteCheckpointRequest, position model.Position) (taken []model.WriteCheckpoint, changed []string) {
	taken = make([]model.WriteCheckpoint, len(requests))
	news := make(map[string]bool, len(requests))
	for i, r := range requests {
		was := users[r.UserKey]
		u := was
		if u.Take(r, position); u != was {
			users[r.UserKey] = u
			if !news[r.UserKey] {
				news[r.UserKey] = true
				changed = append(changed, r.UserKey)
			}
		}
		taken[i] = model.WriteCheckpoint{UserKey: r.UserKey, ID: u.ID, Head: u.Head}
	}
	return taken, changed
}

// CustomRequests are the requests that a commit makes by its custom write
// checkpoints.
func CustomRequests(c *ledger.Commit) []WriteCheckpointRequest {
	requests := make([]WriteCheckpointRequest, len(c.Checkpoints))
	for i, w := range c.Checkpoints {
		requests[i] = WriteCheckpointRequest{UserKey: w.UserKey, ID: w.ID, Head: c.CheckpointsAt}
		if w.Requested {
			requests[i].Requested = c.Head.StoredAt
		}
	}
	return requests
}

// Reached is the highest number that position has reached; 0 = none.
func (u *UserCheckpoints) Reached(position model.Position) uint64 {
	switch {
	case u.ID > 0 && u.Head <= position:
		return u.ID
	case u.ReachedID > 0 && u.ReachedHead <= position:
		return u.ReachedID
	}
	return 0
}
