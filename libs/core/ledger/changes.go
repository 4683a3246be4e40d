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
	bytes      int  // of the names
	everything bool // too many to list, or not known
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
