package model

// Put is one row in one bucket, as evaluated: what a PUT op will carry.
type Put struct {
	Bucket     string
	ObjectType string
	ObjectID   string
	Data       string // JSON text of the output row; puts of one row may share it
	Checksum   Checksum
}

// ParameterEntry is one entry of the parameter index: Lookup (an opaque key
// that the sync config's plan makes) leads to Values, a JSON array of objects.
type ParameterEntry struct {
	Lookup string
	Values string
}

// RowKind says what an EvaluatedRow does.
type RowKind uint8

const (
	// RowPut: the row is now in these buckets, under these lookups, and in no
	// others. If Before is set it was known under that key until now.
	RowPut RowKind = iota + 1
	// RowDelete: the row under Key is gone.
	RowDelete
	// RowSnapshot: as RowPut, unless the row is known already from the log that
	// the batch is of. If it is known from an earlier log and its puts are the
	// same, they are not put again.
	RowSnapshot
	// RowTruncate: every row of Key.Table is gone.
	RowTruncate
	// RowLayer: the row is in these buckets and under these lookups besides. What
	// is known of it stays: if that was made of another version of the row, the
	// change that made the difference is yet to come.
	RowLayer
	// RowSweep: every row of Key.Table is gone that is known from an earlier log
	// only.
	RowSweep
)

// EvaluatedRow is a changed row after evaluation.
type EvaluatedRow struct {
	Kind    RowKind
	Key     RowKey
	Before  *RowID // former identity, if it changed
	Puts    []Put  // at most one per (Bucket, ObjectType, ObjectID)
	Lookups []ParameterEntry
	// Source is the encoded source row, kept as its previous version for a
	// later change that omits unchanged values; empty if never needed.
	Source string
}

// CustomCheckpoint is a write checkpoint that a row of the source carries, not
// one that was handed out. A client sees it with the transaction of that row.
type CustomCheckpoint struct {
	UserKey string // "user/client"
	ID      uint64
	// Requested: it may be dropped when it is old and was seen.
	Requested bool
}

// EvaluatedBatch is a ChangeBatch after evaluation.
type EvaluatedBatch struct {
	Stream   StreamID
	Epoch    Epoch
	Previous Cursor
	End      Cursor
	Rows     []EvaluatedRow
	// Checkpoints that the rows give, at most one per key: the highest.
	Checkpoints []CustomCheckpoint
	Meta        BatchMeta
}
