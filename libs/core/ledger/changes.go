package ledger

import (
	"maps"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// changes are the buckets, lookups and custom write checkpoints changed since the
// last notice. It may report too much, never too little (INV-29).
type changes struct {
	buckets    map[string]struct{}
	lookups    map[string]struct{}
	reached    map[string]model.WriteCheckpoint // by key
	bytes      int                              // of the names
	everything bool                             // too many to list, or not known
}

// listedBytes bounds the names of a notice, whose message has a size limit.
const listedBytes = 256 << 10

func (c *changes) add(commit *Commit, limit int) {
	if c.everything {
		return
	}
	if c.buckets == nil {
		c.buckets, c.lookups = map[string]struct{}{}, map[string]struct{}{}
	}
	for i := range commit.Buckets {
		c.note(c.buckets, commit.Buckets[i].Bucket)
		if len(c.buckets) > limit || c.bytes > listedBytes {
			break
		}
	}
	for i := range commit.Entries {
		c.note(c.lookups, commit.Entries[i].Lookup)
		if len(c.lookups) > limit || c.bytes > listedBytes {
			break
		}
	}
	c.take(commit)
	if len(c.buckets)+len(c.lookups) > limit || c.bytes > listedBytes {
		*c = changes{everything: true}
	}
}

// note adds a name, as a clone: it may share memory with a whole batch.
func (c *changes) note(names map[string]struct{}, name string) {
	if _, ok := names[name]; !ok {
		names[strings.Clone(name)] = struct{}{}
		c.bytes += len(name)
	}
}

// take takes a commit's custom write checkpoints. The next notice is of a
// checkpoint that has their transactions: only where one ends there is any.
func (c *changes) take(commit *Commit) {
	if len(commit.Checkpoints) > 0 && c.reached == nil {
		c.reached = map[string]model.WriteCheckpoint{}
	}
	for _, w := range commit.Checkpoints {
		if c.bytes > listedBytes {
			return
		}
		old, ok := c.reached[w.UserKey]
		if !ok {
			old.UserKey = strings.Clone(w.UserKey)
			c.bytes += 2*len(w.UserKey) + 16
		}
		if w.ID > old.ID {
			old.ID, old.Head = w.ID, commit.CheckpointsAt
		}
		c.reached[old.UserKey] = old
	}
}

// notice tells the changes and forgets them.
func (c *changes) notice(stream model.StreamID, head *model.StreamHead) model.CheckpointNotice {
	n := model.CheckpointNotice{
		Stream: stream, Checkpoint: head.Checkpoint,
		Buckets: slices.Sorted(maps.Keys(c.buckets)), Lookups: slices.Sorted(maps.Keys(c.lookups)),
		Everything: c.everything,
		Reached:    slices.SortedFunc(maps.Values(c.reached), func(a, b model.WriteCheckpoint) int { return strings.Compare(a.UserKey, b.UserKey) }),
		CommitTime: head.CommitTime, Heartbeat: head.Heartbeat,
	}
	*c = changes{}
	return n
}
