package mongodb

import (
	"context"
	"encoding/hex"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// bucket is a document with what is known of a bucket, as cells have it.
type bucket struct {
	ID      []byte       `bson:"_id"` // hash of the name
	Name    []byte       `bson:"n"`
	Order   string       `bson:"o"` // see orderOf
	Attempt int64        `bson:"a"`
	Now     *bucketState `bson:"s,omitempty"`
	Was     *bucketState `bson:"p,omitempty"`
	// Merges is raised between the making of a chunk of others and their removal.
	Merges int64 `bson:"m"`
}

// bucketState is the running sum of a bucket: up to its last op; and base, as of
// the checkpoint that readers saw when the op First was stored.
type bucketState struct {
	Checksum     int64 `bson:"c"`
	Count        int64 `bson:"n"`
	Last         int64 `bson:"l"`
	BaseChecksum int64 `bson:"bc"`
	BaseCount    int64 `bson:"bn"`
	BaseLast     int64 `bson:"bl"`
	First        int64 `bson:"f"`
	Changes      int64 `bson:"g"` // ops since the last compaction
	// Dirt is at least that of Count and Changes, and more only where a compaction
	// is under way, or was cut short.
	Dirt int32 `bson:"d"`
	// Cleared is the id of the CLEAR, with its checksum and target. What the
	// chunks have up to it is no more.
	Cleared       int64 `bson:"r,omitempty"`
	ClearChecksum int64 `bson:"rc,omitempty"`
	ClearTarget   int64 `bson:"rt,omitempty"`
	// Moves are ops that are MOVEs, whatever the chunks say, and their targets.
	Moves []byte `bson:"v,omitempty"`
}

// dirtField is Dirt of a bucket's Now, which an index is over.
const dirtField = "s.d"

// counts is the state that counts, nil if there is none.
func (b *bucket) counts(u *unitState) *bucketState {
	if u.visible(b.Attempt) {
		return b.Now
	}
	return b.Was
}

// orderBytes is how much of a name the index has that sorts by it.
const orderBytes = 256

// orderOf sorts as the name does, but for long names that begin alike. It is text,
// as MongoDB sorts bytes by their number first.
func orderOf(name string) string {
	return hex.EncodeToString([]byte(name[:min(len(name), orderBytes)]))
}

// buckets reads documents of buckets.
func (s *Store) buckets(ctx context.Context, id model.StreamID, hashes []hash) (map[hash]*bucket, error) {
	found := make(map[hash]*bucket, len(hashes))
	err := inBatches(hashes, s.options.batch, func(hashes []hash) error {
		ids := make([][]byte, len(hashes))
		for i := range hashes {
			ids[i] = hashes[i][:]
		}
		cursor, err := s.of(id, bucketsName).Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}})
		if err != nil {
			return err
		}
		defer cursor.Close(ctx)
		for cursor.Next(ctx) {
			var b bucket
			if err := cursor.Decode(&b); err != nil {
				return err
			}
			found[hash(b.ID)] = &b
		}
		return cursor.Err()
	})
	return found, err
}

// add is b after a commit's ops, while readers see a checkpoint.
func (b *bucketState) add(c *ledger.BucketChange, visible model.OpID) *bucketState {
	next := bucketState{}
	if b != nil {
		next = *b
	}
	if next.Last <= opID(visible) {
		next.BaseChecksum, next.BaseCount, next.BaseLast, next.First = next.Checksum, next.Count, next.Last, opID(c.First)
	}
	next.Checksum = int64(uint32(next.Checksum) + uint32(c.Checksum))
	next.Count += int64(c.Count)
	next.Changes += int64(c.Count)
	next.Last = opID(c.Last)
	next.Dirt = next.dirt()
	return &next
}

// dirt is how dirty the bucket is.
func (b *bucketState) dirt() int32 { return int32(store.Dirt(uint64(b.Count), uint64(b.Changes))) }

// change is a bucket's document after the attempt gave it another state.
func (a *attempt) change(b *bucket, now *bucketState) (filter, set bson.D) {
	set = bson.D{{Key: "a", Value: a.number}, {Key: "s", Value: now}}
	filter = bson.D{{Key: "_id", Value: b.ID}, {Key: "a", Value: b.Attempt}}
	if was := b.counts(a.was); was != nil {
		set = append(set, bson.E{Key: "p", Value: was})
		return filter, bson.D{{Key: "$set", Value: set}}
	}
	return filter, bson.D{{Key: "$set", Value: set}, {Key: "$unset", Value: bson.D{{Key: "p", Value: ""}}}}
}
