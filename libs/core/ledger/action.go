package ledger

import (
	"bytes"

	"github.com/sluicesync/sluice/libs/model"
)

// Action is what the shell is to do: one of the types of this file, or
// *Commit.
type Action interface{ action() }

// Result is the fate of a batch.
type Result uint8

const (
	// ResultCommitted: durable, by this delivery or an earlier one.
	ResultCommitted Result = iota + 1
	// ResultObsolete: of an ended session or stream; never wanted again.
	ResultObsolete
	// ResultRetry: deliver it again later.
	ResultRetry
)

func (r Result) String() string {
	switch r {
	case ResultCommitted:
		return "committed"
	case ResultObsolete:
		return "obsolete"
	case ResultRetry:
		return "retry"
	}
	return "Result"
}

// Answer tells whoever handed in the batch what became of it.
type Answer struct {
	Ticket  uint64
	Result  Result
	Message string
}

// Load reads the records of rows and is answered by Loaded or Failed. Keys is
// valid until then.
type Load struct {
	Keys []model.RowKey
}

// LoadTable reads at most Limit records of a table, fewer if they are large, in
// row id order, those greater than After (from the first one if After is zero),
// and is answered by TableLoaded or Failed.
type LoadTable struct {
	Table model.TableID
	After model.RowID
	Limit int
}

// LoadOps reads ops of a bucket, if they have at most Bytes of data, and what the
// bucket has above Checkpoint, and is answered by OpsLoaded or Failed.
type LoadOps struct {
	Bucket     string
	Ops        []model.OpID // ascending, none above Checkpoint
	Checkpoint model.OpID
	Bytes      int
}

// Reemitted answers Reemit: how many ops were put again, and the bytes of their
// data. Checkpoint has them. None: Reason says why.
type Reemitted struct {
	Ticket     uint64
	Ops        int
	Bytes      int
	Checkpoint model.OpID
	Reason     string
}

// Relogged answers Relog: the stream's cursor is where the next log begins.
// Refused: why it is not, "" if it is.
type Relogged struct {
	Ticket  uint64
	Refused string
}

// Notify tells readers that the checkpoint moved. The notice's reached ones are
// custom write checkpoints; the shell adds run, sequence, time and, where they
// are not custom, the write checkpoints reached. Activated: with this commit the
// stream became the active one. Layer: that of the commit.
type Notify struct {
	Notice    model.CheckpointNotice
	Activated bool
	Layer     uint32
}

// Broken ends the session of an epoch: its chain has a gap or an overlap. The
// shell takes the lease away, so that the replicator begins a new one (D4).
type Broken struct {
	Epoch  model.Epoch
	Reason string
}

// Commit is one atomic step of the store (D3), answered by Committed or
// Failed. It is valid until then. The store refuses it unless its epoch is
// Head.Epoch (D5) and its applied cursor and highest op id are Previous and
// PreviousOp.
type Commit struct {
	Stream     model.StreamID
	Previous   model.Cursor
	PreviousOp model.OpID
	// Head after the commit, without StoredAt and LastError, which the shell
	// and the store add.
	Head model.StreamHead
	// Published: the checkpoint moved, to the end of this commit.
	Published bool
	// Activate: the stream becomes the active one, and every other active or
	// errored one is stopped (INV-36).
	Activate bool
	// Layer: the layers of the stream up to it are copied (model.Stream.Copied); 0 =
	// nothing new.
	Layer  uint32
	copied uint32 // of the ledger, once this is stored

	Buckets  []BucketChange
	Ops      []BucketOp // in op id order
	Gone     []RowRange // records that are removed, before Rows are written
	Rows     []RowWrite // at most one per key
	Entries  []EntryWrite
	Progress []model.TableProgress
	// Checkpoints are custom write checkpoints, at most one per key. The
	// checkpoints from CheckpointsAt on have their transactions.
	Checkpoints   []model.CustomCheckpoint
	CheckpointsAt model.Position

	// For whoever watches: what the commit is made of.
	Batches      int
	RowCount     int
	Transactions uint64
	SourceBytes  uint64
}

// BucketChange is what a commit adds to one bucket.
type BucketChange struct {
	Bucket      string
	Checksum    model.Checksum // sum
	Count       uint64
	First, Last model.OpID
}

// BucketOp is an op and the bucket, by its index in Commit.Buckets.
type BucketOp struct {
	Bucket int
	Op     model.Op
}

// RowWrite replaces the record of a row, or removes it if Record is nil.
type RowWrite struct {
	Key    model.RowKey
	Record *Record
}

// RowRange is the rows of a table from the one after After on (the first one if
// After is zero) up to UpTo.
type RowRange struct {
	Table model.TableID
	After model.RowID
	UpTo  model.RowID
}

// Has tells whether the range has a row.
func (r *RowRange) Has(k model.RowKey) bool {
	return k.Table == r.Table && (r.After == (model.RowID{}) || bytes.Compare(k.Row[:], r.After[:]) > 0) && bytes.Compare(k.Row[:], r.UpTo[:]) <= 0
}

// EntryWrite adds a version to the parameter index: from ID on, Key has Values
// under Lookup, or nothing if Values is "".
type EntryWrite struct {
	ID     model.OpID
	Key    model.RowKey
	Lookup string
	Values string
}

// Record is what is known of a source row: where it is, and its former
// version if that was kept.
type Record struct {
	Buckets []Membership
	Lookups []model.ParameterEntry
	Source  string
	// Log is the last log of the stream that has told of the row (see
	// model.Position), Digest that of the row's puts; 0 = not known.
	Log    uint32
	Digest uint64
}

// Membership is a row's place in a bucket.
type Membership struct {
	Bucket     string
	ObjectType string
	ObjectID   string
}

// KeyedRecord is a record with its key.
type KeyedRecord struct {
	Key    model.RowKey
	Record *Record
}

func (Answer) action()    {}
func (Load) action()      {}
func (LoadTable) action() {}
func (LoadOps) action()   {}
func (Reemitted) action() {}
func (Relogged) action()  {}
func (Notify) action()    {}
func (Broken) action()    {}
func (*Commit) action()   {}
