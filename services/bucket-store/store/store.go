// Package store is the contract between bucket-store and what keeps its data.
// storetest.Run is the contract, run by every implementation; these comments
// are its summary.
package store

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// Store keeps the replication streams of one deployment, their buckets, and
// the write checkpoints. It is safe for concurrent use; reads go on while
// others write. What a write returns nil for is durable, except where said.
type Store interface {
	Streams
	Ledger
	Reader
	WriteCheckpoints
	Compaction

	// Size estimates the bytes on disk.
	Size(ctx context.Context) (Size, error)
	// Close releases everything. No call may be under way.
	Close() error
}

// Streams is the catalog.
type Streams interface {
	// Streams returns every stream that was ever made, by id.
	Streams(ctx context.Context) ([]model.Stream, error)
	// Change alters the catalog in one atomic step: decide sees the streams as
	// they are and says what is to change. It returns the stream made, if one
	// was. decide has no side effects; it may be called again.
	Change(ctx context.Context, decide func([]model.Stream) Change) (*model.Stream, error)
	// OpenSession raises the epoch of a stream that is replicated, so that
	// every commit of an earlier epoch fails from now on (D5).
	OpenSession(ctx context.Context, id model.StreamID) (model.StreamHead, error)
	// ReportError keeps the last fatal error of a stream ("" clears it). A
	// commit that publishes a checkpoint clears it as well.
	ReportError(ctx context.Context, id model.StreamID, epoch model.Epoch, message string, at model.Micros) error
	// Tables returns the copy progress of each source table, by table id.
	Tables(ctx context.Context, id model.StreamID) ([]model.TableProgress, error)
	// Clear removes the data of a stopped stream, and then marks it terminated.
	// It works in steps; one that was cut short is repeated.
	Clear(ctx context.Context, id model.StreamID) error
}

// Change of the catalog: states and texts of existing streams, and a new stream.
type Change struct {
	States map[model.StreamID]model.StreamState
	// Edited are streams' new configs to serve clients by.
	Edited map[model.StreamID]Edit
	// New is made unless it is nil; its ID is given by the store, and its name
	// is Prefix, the id, and Suffix.
	New            *model.Stream
	Prefix, Suffix string
}

// Edit is the config that clients are served by from now on, or once its layers
// are copied: the fields Edited, EditedContent, Former, Filed, FromFile, Layers,
// Next and NextContent of model.Stream.
type Edit struct {
	Text, Content, Former, Filed string
	FromFile                     bool
	Layers                       []model.Layer
	Next, NextContent            string
}

// Ledger is what the writer of a stream needs.
type Ledger interface {
	// Commit does all of c in one atomic step (D3). A stream that it makes the
	// active one is Activated at c.Head.StoredAt, and one whose layers it says to be
	// copied is changed as model.Stream.Copied says. If the stream's epoch is
	// another it fails with a *FencedError (D5); if its applied cursor or
	// highest op id is another, with a *MovedError; if the stream is not
	// replicated any more, with ErrNotReplicated; all of them change nothing.
	// After any other error the commit may have happened: read the head.
	Commit(ctx context.Context, c *ledger.Commit) error
	// Records returns what is known of rows, in the order of keys, nil for a
	// row that is not known.
	Records(ctx context.Context, id model.StreamID, keys []model.RowKey) ([]*ledger.Record, error)
	// Table returns at most limit records of a table, fewer if they are large, in
	// row id order, of rows greater than after (all if after is zero), and whether
	// there are more.
	Table(ctx context.Context, id model.StreamID, table model.TableID, after model.RowID, limit int) ([]ledger.KeyedRecord, bool, error)
}

// Reader reads at a checkpoint. A checkpoint that compaction has passed is
// answered with ErrInvalidated: a newer one exists (INV-19).
type Reader interface {
	// Head returns a stream's head.
	Head(ctx context.Context, id model.StreamID) (model.StreamHead, error)
	// Checksums returns the state of buckets at checkpoint op c, in their
	// order; zero for a bucket without ops (D7).
	Checksums(ctx context.Context, id model.StreamID, c model.OpID, buckets []string) ([]model.BucketState, error)
	// Ops yields a bucket's ops in (after, upTo], in op id order. The op is
	// valid until the next iteration. An error comes last; ErrInvalidated comes
	// alone.
	Ops(ctx context.Context, id model.StreamID, bucket string, after, upTo model.OpID) iter.Seq2[model.Op, error]
	// Lookups returns the values under each lookup at checkpoint op c, at most
	// limit in all: more is a *LimitError.
	Lookups(ctx context.Context, id model.StreamID, c model.OpID, lookups []string, limit int) ([][]string, error)
}

// WriteCheckpoints keeps per user key the newest number and the source
// position that it waits for: those that are handed out, which are of the whole
// deployment, and the custom ones that commits bring, which are of their stream.
// The positions of the former are places (see model.Stream), those of the latter
// the stream's own.
type WriteCheckpoints interface {
	// CreateWriteCheckpoints gives each request a number and returns what each
	// key has then. Requests are taken in order. position is the position of
	// the checkpoint that clients see: what it has reached stays acknowledged
	// when a newer number takes its place.
	CreateWriteCheckpoints(ctx context.Context, position model.Position, requests []WriteCheckpointRequest) ([]model.WriteCheckpoint, error)
	// Reached returns per key the highest number whose head is at most
	// position; 0 = none.
	Reached(ctx context.Context, position model.Position, keys []string) ([]uint64, error)
	// CustomReached is Reached for the custom write checkpoints of a stream.
	CustomReached(ctx context.Context, id model.StreamID, position model.Position, keys []string) ([]uint64, error)
	// Unreached yields the write checkpoints whose head is beyond position, but
	// no custom ones.
	Unreached(ctx context.Context, position model.Position) iter.Seq2[model.WriteCheckpoint, error]
}

// WriteCheckpointRequest asks for the next number of a key (ID 0), or for at
// least ID. Head is taken only if the number grows.
type WriteCheckpointRequest struct {
	UserKey string
	ID      uint64
	Head    model.Position
	// Requested is when, if the number may expire: then asking for the same
	// again keeps it longer. 0: it stays.
	Requested model.Micros
}

// Compaction rewrites history without changing what clients end up with.
type Compaction interface {
	// Dirtiest lists buckets. By need, the work is that of what is listed, however
	// many buckets there are.
	Dirtiest(ctx context.Context, id model.StreamID, q DirtyQuery) ([]DirtyBucket, error)
	// Scan yields a bucket's ops in (downTo, upTo] in descending order of id
	// (or ascending), without data. The op is valid until the next iteration.
	Scan(ctx context.Context, id model.StreamID, bucket string, downTo, upTo model.OpID, ascending bool) iter.Seq2[model.Op, error]
	// Replace rewrites ops of one bucket in one atomic step, and returns the
	// number of ops removed. Checksums at checkpoints from r.Checkpoint on stay
	// the same (INV-17). If an op is not what it must be, nothing changes and
	// the error is a *ReplaceError. It need not be durable when Replace
	// returns: a crash may undo it, wholly.
	Replace(ctx context.Context, id model.StreamID, r Replacement) (removed uint64, err error)
	// CompactLookups drops superseded versions of the parameter index up to
	// checkpoint op c, looking at most at limit entries, from where next of an
	// earlier call says (nil = the start; done = nil).
	CompactLookups(ctx context.Context, id model.StreamID, c model.OpID, after []byte, limit int) (removed uint64, next []byte, err error)
	// ExpireRequests drops the user keys whose number may expire, was requested
	// before that time and is reached by the stream's checkpoint: of the numbers
	// handed out, and of the stream's custom ones. It looks at most at limit
	// keys (0 = all), and pages as CompactLookups does. It need not be durable
	// when ExpireRequests returns.
	ExpireRequests(ctx context.Context, id model.StreamID, before model.Micros, after []byte, limit int) (removed uint64, next []byte, err error)
}

// DirtyQuery selects buckets: Only these if any are named; with MinChanges 0
// all; else, by need, those with at least MinChanges ops since their last
// compaction that have any Dirt. The dirtiest come first; among those of the same
// Dirt the order is the store's. Only or without MinChanges, it pages by name
// through After.
type DirtyQuery struct {
	Limit      int // 0 = all
	MinChanges uint64
	Only       []string
	After      string
}

// DirtyBucket is a bucket with its number of ops and of those since the last
// compaction.
type DirtyBucket struct {
	Bucket  string
	Ops     uint64
	Changes uint64
}

// Replacement is one step of a bucket's compaction.
type Replacement struct {
	Bucket string
	// Checkpoint: no op above it is touched.
	Checkpoint model.OpID
	// Moves become MOVE ops with the same id and checksum.
	Moves []Move
	// ClearTo: all ops up to it become one CLEAR with that id; none of them
	// may be a PUT, after Moves. 0 = nothing.
	ClearTo model.OpID
	// Finished: the bucket counts as compacted, up to Checkpoint.
	Finished bool
}

// Move names an op to be moved and the newest op of its row, which is greater.
type Move struct {
	ID     model.OpID
	Target model.OpID
}

// Size is the bytes on disk by use.
type Size struct {
	Operations  uint64
	Parameters  uint64
	Replication uint64 // current records, progress
}

var (
	// ErrNoStream: no such stream, or its data is gone.
	ErrNoStream = errors.New("no such replication stream")
	// ErrNotReplicated: the stream is neither processing nor active.
	ErrNotReplicated = errors.New("the replication stream is not replicated any more")
	// ErrInvalidated: compaction has passed the checkpoint.
	ErrInvalidated = errors.New("compaction has passed the checkpoint")
	// ErrFull: there is no space for a write. It changed nothing; reads go on,
	// and writes when there is space.
	ErrFull = errors.New("no space is left in the storage")
	// ErrDamaged: what is stored is not what was written. It is not served.
	ErrDamaged = errors.New("the storage is damaged")
)

// FencedError: a commit of another epoch than the stream's.
type FencedError struct {
	Epoch, Current model.Epoch
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("commit of epoch %d refused, the stream's is %d", e.Epoch, e.Current)
}

// MovedError: a commit that does not begin where the stream is.
type MovedError struct {
	Head model.StreamHead // found
}

func (e *MovedError) Error() string {
	return fmt.Sprintf("commit refused, the stream is at %s, op %s", e.Head.Applied, e.Head.Persisted)
}

// LimitError: more values than asked for.
type LimitError struct {
	Limit int
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("too many parameter query results (limit of %d)", e.Limit)
}

// ReplaceError: an op is not what a replacement needs it to be.
type ReplaceError struct {
	Bucket string
	Op     model.OpID
	Reason string
}

func (e *ReplaceError) Error() string {
	return fmt.Sprintf("compaction of op %s refused: %s", e.Op, e.Reason)
}
