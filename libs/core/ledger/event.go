package ledger

import "github.com/sluicesync/sluice/libs/model"

// Event is what happened: one of the types of this file.
type Event interface{ event() }

// Arrived: a batch was handed in. It, and everything that its strings point
// to, must not change until it is answered. Size is its encoded size.
type Arrived struct {
	Ticket uint64
	Batch  *model.EvaluatedBatch
	Size   int
}

// Loaded answers Load: the records in the order of its keys, nil where the row
// is not known.
type Loaded struct {
	Records []*Record
}

// TableLoaded answers LoadTable. More tells whether rows follow the last one.
type TableLoaded struct {
	Rows []KeyedRecord
	More bool
}

// Committed: the commit is durable.
type Committed struct{}

// Failed: the Load, LoadTable or Commit under way failed, and Head is what the
// store has now, read after everything of that attempt has ended.
type Failed struct {
	Head model.StreamHead
}

// SessionOpened: the store raised the stream's epoch.
type SessionOpened struct {
	Head model.StreamHead
}

// StateChanged: the stream is in another state now.
type StateChanged struct {
	State model.StreamState
}

// Stalled: Waiting has been true for too long.
type Stalled struct{}

// Reemit asks that PUTs of a bucket be put again as its newest ops, so that
// compaction can fold what they hold back. Each of Ops is the newest op of its
// row up to Checkpoint; those of rows that have a newer one are left out. It is
// answered by Reemitted.
type Reemit struct {
	Ticket     uint64
	Bucket     string
	Checkpoint model.OpID
	Ops        []model.OpID // ascending
	// Bytes of data are put again at most: all of the ops or none.
	Bytes int
}

// OpsLoaded answers LoadOps: of the ops asked for those that there still are, and
// without data what the bucket has above the checkpoint. Cut: they have more than
// the bytes allowed, or that is too much.
type OpsLoaded struct {
	Ops   []model.Op
	Since []model.Op
	Cut   bool
}

// Relog says that the log of the source that the session of an epoch has read is
// lost, and that another one begins. From then on, what is copied is compared with
// what is stored, and nothing is published until all of it is. It is answered by Relogged.
type Relog struct {
	Ticket       uint64
	Epoch        model.Epoch
	OtherHistory bool
}

func (Arrived) event()       {}
func (Loaded) event()        {}
func (TableLoaded) event()   {}
func (Committed) event()     {}
func (Failed) event()        {}
func (SessionOpened) event() {}
func (StateChanged) event()  {}
func (Stalled) event()       {}
func (Reemit) event()        {}
func (OpsLoaded) event()     {}
func (Relog) event()         {}
