package ledger

import (
	"maps"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// changes are the buckets and lookups changed since the last notice. It may
// report too much, never too little (INV-29).
type changes struct {
	buckets    map[string]struct{}
	lookups    map[string]struct{}
	everything bool // too many to list, or not known
}

func (c *changes) add(commit *Commit, limit int) {
	if c.everything {
		return
	}
	if c.buckets == nil {
		c.buckets, c.lookups = map[string]struct{}{}, map[string]struct{}{}
	}
	for i := range commit.Buckets {
		// A clone, for the bucket's name may share memory with a whole batch.
		if name := commit.Buckets[i].Bucket; !has(c.buckets, name) {
			c.buckets[strings.Clone(name)] = struct{}{}
		}
		if len(c.buckets) > limit {
			break
		}
	}
	for i := range commit.Entries {
		if name := commit.Entries[i].Lookup; !has(c.lookups, name) {
			c.lookups[strings.Clone(name)] = struct{}{}
		}
		if len(c.lookups) > limit {
			break
		}
	}
	if len(c.buckets)+len(c.lookups) > limit {
		*c = changes{everything: true}
	}
}

func has(m map[string]struct{}, name string) bool {
	_, ok := m[name]
	return ok
}

// notice tells the changes and forgets them.
func (c *changes) notice(stream model.StreamID, head *model.StreamHead) model.CheckpointNotice {
	n := model.CheckpointNotice{
		Stream: stream, Checkpoint: head.Checkpoint,
		Buckets: slices.Sorted(maps.Keys(c.buckets)), Lookups: slices.Sorted(maps.Keys(c.lookups)),
		Everything: c.everything,
		CommitTime: head.CommitTime, Heartbeat: head.Heartbeat,
	}
	*c = changes{}
	return n
}
