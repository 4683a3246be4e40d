// Package session decides what one client is sent: it turns a request, the
// views that the gateway reads at checkpoints, and the chunks that it fetches
// into the lines of the sync protocol (spec/02 §5 and §6).
//
// Invariants:
//
//   - INV-21: the first line is a Checkpoint, later ones are diffs against the
//     last one sent (TestGolden, TestConvergence).
//   - INV-3: checkpoints and write checkpoints never go back (TestGolden).
//   - INV-22, INV-23: a complete line names the last checkpoint line, and is
//     sent when every op up to it of the buckets concerned was sent
//     (TestConvergence).
//   - INV-24: the chunks of a bucket follow one another from the client's
//     position, and none goes beyond the checkpoint (TestConvergence).
//   - INV-19: after an op that was moved or cleared beyond the checkpoint, or a
//     chunk that compaction made invalid, the checkpoint is not completed and a
//     newer one is asked for; the bound outlives checkpoint and batch
//     (TestGolden, TestConvergence).
//   - INV-26: every checkpoint line carries the current write checkpoint
//     (TestGolden).
//   - INV-32: a bucket that is no longer in the view is removed by the next line
//     and nothing of it is sent after it (TestGolden).
//
// It is a step function: no I/O, no clock, no goroutine. The shell loops over
// Next, does what the action says, and reports back with Chunk or Offer.
package session

import (
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// SupersedeAfter is the number of ops after which a checkpoint that is still
// being sent may be replaced by a newer one. Below it a checkpoint is always
// finished, so that a client under steady writes makes progress.
const SupersedeAfter = 1000

// Reason says why a client has a bucket: Index counts the streams of the first
// checkpoint line if Default, else the request's subscriptions.
type Reason struct {
	Default bool
	Index   int
}

// Bucket is a bucket as a view has it.
type Bucket struct {
	ID       string
	Priority int
	Reasons  []Reason
	State    model.BucketState
}

// View is what a client may see at one checkpoint. Everything in it was read
// at that checkpoint (INV-25).
type View struct {
	Checkpoint      model.OpID
	WriteCheckpoint uint64 // 0 = none
	// Full says that Buckets is the whole list; otherwise it has those whose
	// state may have changed, by ID and State alone.
	Full    bool
	Buckets []Bucket
	// Streams is used for the first line.
	Streams []Stream
}

// Stream is an entry of the first line's streams.
type Stream struct {
	Name      string
	IsDefault bool
	Errors    []StreamError
}

// StreamError is a subscription that could not be evaluated; Subscription
// counts the request's subscriptions unless Default.
type StreamError struct {
	Default      bool
	Subscription int
	Message      string
}

// Chunk is a part of a bucket's history as fetched: the ops in (After,
// NextAfter], of which there are Count.
type Chunk struct {
	After     model.OpID
	NextAfter model.OpID
	HasMore   bool
	Count     int
	// Target is the highest op that superseded a moved or cleared op of the
	// chunk.
	Target model.OpID
	// Invalid: compaction passed the checkpoint; nothing may be completed for it.
	Invalid bool
}

// Fetch asks for the next chunk of a bucket after an op, none of it beyond
// UpTo. Count is the number of ops that the bucket has in all.
type Fetch struct {
	Bucket string
	After  model.OpID
	UpTo   model.OpID
	Count  uint64
}

// Kind tells what an Action asks of the shell.
type Kind uint8

const (
	// Wait: nothing to do until a newer view is offered.
	Wait Kind = iota
	// Send the line.
	Send
	// Get the chunk that Fetch names and report it with Session.Chunk.
	Get
)

// Action is what the shell must do next.
type Action struct {
	Kind  Kind
	Line  Line
	Fetch Fetch
}

// held is a bucket that the client has been told of.
type held struct {
	Bucket
	position model.OpID
	pending  bool // not yet sent up to a checkpoint that named it
}

// Session is the state of one stream of lines. It is owned by one goroutine.
type Session struct {
	positions  map[string]model.OpID // of the request, until the first view
	buckets    []held                // by ID
	started    bool
	checkpoint model.OpID // of the last checkpoint line
	write      uint64
	required   model.OpID // no checkpoint below it may be completed (INV-19)
	spoiled    bool       // the current checkpoint met an invalid chunk
	again      bool       // the last checkpoint line was not completed for INV-19
	sending    bool
	queue      []int32 // buckets to send for this checkpoint, by priority and ID
	at         int     // place in queue
	opened     bool    // the group at queue[at] follows another one: partial due
	ops        int     // sent for this checkpoint
	line       Line    // to send before anything else
}

// New returns the state of a stream whose client holds these buckets up to
// these ops. It keeps the map.
func New(positions map[string]model.OpID) *Session {
	return &Session{positions: positions}
}

// Ready reports whether a newer view may be offered now.
func (s *Session) Ready() bool {
	return s.line == nil && (!s.sending || s.ops >= SupersedeAfter)
}

// Stale reports that the last checkpoint could not be completed, and that a
// view at a newer one is wanted even if the source is idle.
func (s *Session) Stale() bool { return s.again }

// Checkpoint is that of the last checkpoint line.
func (s *Session) Checkpoint() model.OpID { return s.checkpoint }

// Required is the lowest checkpoint that may be completed.
func (s *Session) Required() model.OpID { return s.required }

// Offer gives the session a newer view. It reports whether a line is due; if
// not, nothing visible has changed and the view is forgotten. Call it only
// when Ready.
func (s *Session) Offer(v View) bool {
	if s.started && v.Checkpoint < s.checkpoint {
		return false // INV-3
	}
	write := max(v.WriteCheckpoint, s.write)
	if !s.started {
		s.first(v, write)
		return true
	}
	diff := CheckpointDiff{LastOp: v.Checkpoint, WriteCheckpoint: write}
	var next []held
	if v.Full {
		next = s.replace(v.Buckets, &diff)
	} else {
		s.update(v.Buckets, &diff)
	}
	if len(diff.Removed) == 0 && len(diff.Updated) == 0 && write == s.write && !s.again {
		return false
	}
	if next != nil {
		s.buckets = next
	} else {
		for i := range diff.Updated {
			h := s.find(diff.Updated[i].ID)
			h.State, h.pending = diff.Updated[i].State, true
		}
	}
	s.begin(v.Checkpoint, write, diff)
	return true
}

func (s *Session) first(v View, write uint64) {
	s.started = true
	list := slices.Clone(v.Buckets)
	slices.SortFunc(list, byID)
	s.buckets = make([]held, len(list))
	for i, b := range list {
		s.buckets[i] = held{Bucket: b, position: s.positions[b.ID], pending: true}
	}
	s.positions = nil
	s.begin(v.Checkpoint, write, Checkpoint{LastOp: v.Checkpoint, WriteCheckpoint: write, Buckets: list, Streams: v.Streams})
}

// replace compares the whole list with the one held and returns the new one,
// without changing s.
func (s *Session) replace(list []Bucket, diff *CheckpointDiff) []held {
	list = slices.Clone(list)
	slices.SortFunc(list, byID)
	next := make([]held, 0, len(list))
	i := 0
	for _, b := range list {
		for i < len(s.buckets) && s.buckets[i].ID < b.ID {
			diff.Removed = append(diff.Removed, s.buckets[i].ID)
			i++
		}
		h := held{Bucket: b, pending: true}
		if i < len(s.buckets) && s.buckets[i].ID == b.ID {
			h.position, h.pending = s.buckets[i].position, s.buckets[i].pending
			if s.buckets[i].State == b.State {
				next = append(next, h)
				i++
				continue
			}
			h.pending = true
			i++
		}
		diff.Updated = append(diff.Updated, b)
		next = append(next, h)
	}
	for ; i < len(s.buckets); i++ {
		diff.Removed = append(diff.Removed, s.buckets[i].ID)
	}
	return next
}

func (s *Session) update(changed []Bucket, diff *CheckpointDiff) {
	for _, b := range changed {
		h := s.find(b.ID)
		if h == nil || h.State == b.State {
			continue
		}
		u := h.Bucket
		u.State = b.State
		diff.Updated = append(diff.Updated, u)
	}
	slices.SortFunc(diff.Updated, byID)
}

// begin commits a checkpoint line: from here on the client counts from it.
func (s *Session) begin(checkpoint model.OpID, write uint64, line Line) {
	s.checkpoint, s.write, s.line = checkpoint, write, line
	s.spoiled, s.again, s.sending, s.opened = false, false, true, false
	s.at, s.ops = 0, 0
	s.queue = s.queue[:0]
	for i := range s.buckets {
		if s.buckets[i].pending {
			s.queue = append(s.queue, int32(i))
		}
	}
	slices.SortStableFunc(s.queue, func(a, b int32) int {
		return s.buckets[a].Priority - s.buckets[b].Priority
	})
}

// Next says what to do now.
func (s *Session) Next() Action {
	for {
		if l := s.line; l != nil {
			s.line = nil
			return Action{Kind: Send, Line: l}
		}
		if !s.sending {
			return Action{}
		}
		if s.at == len(s.queue) {
			s.finish()
			continue
		}
		h := &s.buckets[s.queue[s.at]]
		if s.opened {
			s.opened = false
			if previous := &s.buckets[s.queue[s.at-1]]; previous.Priority != h.Priority && s.mayComplete() {
				s.line = PartialComplete{LastOp: s.checkpoint, Priority: previous.Priority}
				continue
			}
		}
		if h.pending && h.State.Count > 0 && h.position < s.checkpoint {
			return Action{Kind: Get, Fetch: s.fetch(h)}
		}
		s.done(h)
	}
}

func (s *Session) fetch(h *held) Fetch {
	return Fetch{Bucket: h.ID, After: h.position, UpTo: s.checkpoint, Count: h.State.Count}
}

// Ahead appends to dst up to n chunks that will be asked for after the current
// one, as far as they are known now.
func (s *Session) Ahead(dst []Fetch, n int) []Fetch {
	if !s.sending {
		return dst
	}
	for i := s.at + 1; i < len(s.queue) && n > 0; i++ {
		h := &s.buckets[s.queue[i]]
		if h.pending && h.State.Count > 0 && h.position < s.checkpoint {
			dst = append(dst, s.fetch(h))
			n--
		}
	}
	return dst
}

// Chunk reports the chunk that the last action asked for. The line that
// carries it, if any, is the next action's.
func (s *Session) Chunk(c Chunk) {
	h := &s.buckets[s.queue[s.at]]
	if c.Invalid {
		s.spoiled, s.sending, s.again = true, false, true
		return
	}
	s.required = max(s.required, c.Target)
	h.position = max(h.position, c.NextAfter)
	s.ops += c.Count
	if !c.HasMore {
		s.done(h)
	}
	if c.Count > 0 {
		s.line = Data{Bucket: h.ID, After: c.After, NextAfter: c.NextAfter, HasMore: c.HasMore, Count: c.Count}
	}
}

func (s *Session) done(h *held) {
	h.pending = false
	s.at++
	s.opened = s.at < len(s.queue)
}

func (s *Session) finish() {
	s.sending = false
	if cap(s.queue) > 64 {
		s.queue = nil // a stream is idle most of its life
	}
	if s.mayComplete() {
		s.line = Complete{LastOp: s.checkpoint}
	} else {
		s.again = true
	}
}

// mayComplete is INV-19.
func (s *Session) mayComplete() bool { return s.required <= s.checkpoint && !s.spoiled }

func (s *Session) find(id string) *held {
	i, ok := slices.BinarySearchFunc(s.buckets, id, func(h held, id string) int { return strings.Compare(h.ID, id) })
	if !ok {
		return nil
	}
	return &s.buckets[i]
}

func byID(a, b Bucket) int { return strings.Compare(a.ID, b.ID) }

// State is what the client was last told of a bucket.
func (s *Session) State(id string) (model.BucketState, bool) {
	h := s.find(id)
	if h == nil {
		return model.BucketState{}, false
	}
	return h.State, true
}

// IDs appends the buckets that the client was told of.
func (s *Session) IDs(dst []string) []string {
	for i := range s.buckets {
		dst = append(dst, s.buckets[i].ID)
	}
	return dst
}

// Sending reports whether a checkpoint line was sent and not completed yet.
func (s *Session) Sending() bool { return s.sending }
