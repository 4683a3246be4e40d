package model

// TableID names one incarnation of a source table (connection, schema, name,
// relation id, replica identity): a table that is renamed, recreated or given
// another identity gets another TableID.
type TableID [16]byte

// RowID names a row of a source table: UUID v5 of its replica identity (see
// RowIdentity).
type RowID [16]byte

// RowKey names a row of the source.
type RowKey struct {
	Table TableID
	Row   RowID
}

// DefaultConnection is the connection of every table: there is one, and by it
// tables are known, whatever its tag in the configuration.
const DefaultConnection = "default"

// TablePattern is a table that a sync config reads. Name and Schema match
// exactly, except that a trailing % matches any suffix. Connection is
// DefaultConnection.
type TablePattern struct {
	Connection string
	Schema     string
	Name       string
}

// Column is a column of a source table.
type Column struct {
	Name string
	// Type is the source's own name or number of the type, for diagnostics and
	// for decoding by the source that wrote it.
	Type string
	// Key tells whether the column is part of the replica identity.
	Key bool
}

// SourceTable is a source table as it was when the rows beside it were read.
type SourceTable struct {
	ID         TableID
	Connection string
	Schema     string
	Name       string
	Columns    []Column
	// CompleteRows: the source sends every column of the old and new row
	// (replica identity FULL), so that no previous version need be kept.
	CompleteRows bool
}

// ChangeOp is what happened to a row or table.
type ChangeOp uint8

const (
	// Insert: Row is the new row.
	Insert ChangeOp = iota + 1
	// Update: Row is the new row, Absent where an unchanged TOAST value was not
	// sent; Before is set when the replica identity changed.
	Update
	// Delete: Before has the replica identity.
	Delete
	// Truncate: every row of the table is gone.
	Truncate
	// DropTable: every row of the table is gone, and the table with it.
	DropTable
	// SnapshotRow: Row was read by the initial copy. It never undoes what the
	// log has said of that row.
	SnapshotRow
	// Sweep: what was stored of the table from an earlier log and was not told of
	// again is gone. It follows the table's last SnapshotRow.
	Sweep
)

// Change is one change of a row, values in the order of the table's columns.
type Change struct {
	Table  *SourceTable
	Op     ChangeOp
	Row    []Value
	Before []Value // replica identity columns at their places, others Absent; nil if unchanged
}

// TableProgress is how far the initial copy of a table is. It is committed
// with the rows it speaks of, so a restart goes on at LastKey.
type TableProgress struct {
	Table    SourceTable
	LastKey  []byte // the source's own encoding; nil = nothing copied yet
	Rows     uint64 // copied so far
	Estimate uint64 // rows in all, estimated; 0 = unknown
	Done     bool
	// Layer: the copy is, or was, for this layer alone; those before it have the
	// table if they read it. If it is done for all layers at once, it is the last.
	Layer uint32
}

// ChangeBatch is what the replicator publishes: changes in commit order that
// lead from Previous to End. A batch has whole source transactions, or a part
// of one, never both at once except that the last part of one transaction may
// be followed by whole ones.
//
// Changes are for the layers of the stream up to Layer; if Alone is set, for that
// one only: the others have these rows, and what they made of them stays.
type ChangeBatch struct {
	Stream   StreamID
	Epoch    Epoch
	Layer    uint32
	Alone    bool
	Previous Cursor
	End      Cursor
	Changes  []Change
	Meta     BatchMeta
}

// BatchMeta travels with a batch from replicator to ledger, past the
// evaluator, which does not look at it.
type BatchMeta struct {
	// Progress of the initial copy made by this batch.
	Progress []TableProgress
	// SnapshotDone: with this batch every table is copied. A checkpoint may be
	// made from NoCheckpointBefore on.
	SnapshotDone       bool
	NoCheckpointBefore Position
	// Layer: with this batch the layers of the stream up to it are copied. 0 = as
	// before.
	Layer uint32
	// Origin is that of the positions from here on, "" = as before.
	Origin string
	// Transactions that end in this batch, and their size in the source's bytes.
	Transactions uint32
	SourceBytes  uint64
	// CommitTime is the source's commit time of the last transaction, and
	// Heartbeat the time at which the replicator wrote the newest heartbeat
	// that this batch has read back.
	CommitTime Micros
	Heartbeat  Micros
	// PublishedAt, EvaluatedAt: when the batch passed these stages.
	PublishedAt Micros
	EvaluatedAt Micros
}
