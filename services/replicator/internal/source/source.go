// Package source says what replication needs of a source database, whatever
// its kind. Package postgres is the first; others implement the same.
//
// A Source is the database. A Log is one replication stream's place in its log,
// held by one process at a time: tables are copied through it (Tables, Copy),
// then the log is read from where the copy began (Read). Reading the same log
// from the same place gives the same transactions with the same changes, which
// is what makes model.Cursor mean something.
package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
)

// ErrHistoryLost means that the log no longer has what the stream needs next:
// another log has to begin, and tables have to be compared with what is stored.
var ErrHistoryLost = errors.New("the source's history is lost")

// ErrOtherHistory is an ErrHistoryLost: the source has another history than the
// one that the stream is of, in which a position is another place.
var ErrOtherHistory = fmt.Errorf("%w: it has another", ErrHistoryLost)

// Source is a source database. All methods are safe for concurrent use.
type Source interface {
	// Check returns what is missing for replication to work.
	Check(ctx context.Context) ([]Problem, error)
	// Position returns the end of the log: at or after every commit that
	// happened before the call.
	Position(ctx context.Context) (model.Position, error)
	// Mark writes a marker that a reader of the log comes past, durable when it
	// returns.
	Mark(ctx context.Context) error
	// Heartbeat writes a marker that carries a time.
	Heartbeat(ctx context.Context, at model.Micros) error
	// Open takes over the place of a stream in the log, from whoever holds it.
	// What s.Head says to be stored must be of the history that the source has
	// now, and the history since must still be there: else the error is
	// ErrOtherHistory or another ErrHistoryLost, and its text names what happened.
	// If nothing is stored the place is made, anew if there is one. The positions
	// of s.Head are the source's.
	Open(ctx context.Context, s *model.Stream) (Log, error)
	// Remove gives up the place of a stream. It is no error if there is none.
	Remove(ctx context.Context, s *model.Stream) error

	Diagnose(ctx context.Context, streams []StreamTables) (*Diagnosis, error)
	Schema(ctx context.Context) ([]SchemaTable, error)
	// Execute runs a query that must not change anything, with JSON arguments.
	Execute(ctx context.Context, query string, args []string) (*Result, error)
	// Parallel is how many tables may be copied at once.
	Parallel() int
	// Class says how to go on after an error of any method here.
	Class(err error) ErrorClass
	Close()
}

// ErrorClass says how soon another attempt makes sense (spec/04 §1.2).
type ErrorClass uint8

const (
	Other       ErrorClass = iota
	Restarting             // connection closed, refused, server starting: soon
	Unreachable            // no such host
	Denied                 // authentication: rarely
	Lost                   // history lost
)

// Log is one stream's place in the log of its source.
type Log interface {
	// Start is where Read will begin.
	Start() model.Position
	// Origin names the history that the positions of the log are of (see
	// model.StreamHead).
	Origin() string
	// Tables lists the tables that the stream reads, as they are now, and TablesOf
	// those of some of its patterns. One that is known, with the same columns for
	// its identity, keeps its id even if nothing else of it is the same.
	Tables(ctx context.Context, known map[model.TableID]*model.TableProgress) ([]Table, error)
	TablesOf(ctx context.Context, patterns []model.TablePattern, known map[model.TableID]*model.TableProgress) ([]Table, error)
	// Settled tells whether a copy that begins now sees every transaction that
	// Read has handed over. It is for the goroutine that reads.
	Settled(ctx context.Context) (bool, error)
	// Copy reads a table in the order of its key from just behind the place
	// after (nil: from the start), into c.
	Copy(ctx context.Context, t *Table, after []byte, c Copier) error
	// Resumable reports whether Copy can begin at the place after. If not, what
	// was copied of the table has to go before it is copied again.
	Resumable(t *Table, after []byte) bool
	// Read reads the log from the place on until ctx ends, into sink.
	Read(ctx context.Context, sink Sink) error
	// Confirm says that everything up to a position is stored.
	Confirm(model.Position)
	// Lag tells how the log's retention fares.
	Lag(ctx context.Context) (Lag, error)
	Close()
}

// Table is a source table that a stream reads.
type Table struct {
	model.SourceTable
	Estimate uint64 // rows
	// Place stands for the table in TableProgress.LastKey when nothing of it is
	// copied, or everything; never nil.
	Place []byte
	// Private is the source's own.
	Private any
}

// Dropped is the TableProgress.LastKey of a table that is gone.
var Dropped = []byte{0}

// Copier takes the rows of a table that is copied. A row is added to Rows as
// one SnapshotRow; then, if it is Full, Flush is called with the place behind
// that row. What is in Rows when Copy returns is the caller's to flush. A copy may
// be of several pieces, each of one moment: between two of them Paused is called
// with the place behind the first, and tells whether to return.
type Copier interface {
	Rows() *Rows
	Full() bool
	Flush(ctx context.Context, place []byte) error
	Paused(ctx context.Context, place []byte) (stop bool, err error)
}

// Sink takes transactions in commit order, from one goroutine.
type Sink interface {
	// Begin opens a transaction and returns whether to skip it: its effect is
	// stored. position is any place after the previous transaction's end and
	// not after this one's.
	Begin(position model.Position) (skip bool)
	// Skip reports whether to leave out the next change: it is stored. Every
	// change of a transaction that is not skipped is either skipped or added.
	Skip() bool
	// Rows has the memory for the next change.
	Rows() *Rows
	// Added says that a change was added to Rows.
	Added(ctx context.Context) error
	// Heartbeat says that the transaction has a marker: it is published even if
	// it has no changes. at is 0 unless the marker carries a time.
	Heartbeat(at model.Micros)
	// Commit ends the transaction.
	Commit(ctx context.Context, t Transaction) error
	// CopiedUntil is the position up to which a change may be of a row that the
	// copy of its table has missed: it moved from the part not yet read to that
	// already read.
	CopiedUntil() model.Position
	// Hold says that what is added may show the effect of any transaction up to
	// position: no checkpoint is made before it.
	Hold(position model.Position)
	// Idle says that the log has nothing up to position.
	Idle(ctx context.Context, position model.Position) error
	// Known returns the tables that the stream has, by id.
	Known() map[model.TableID]*model.TableProgress
	// Table drops the tables gone and copies t (unless nil) before the change
	// that comes next, and returns when that is on its way.
	Table(ctx context.Context, t *Table, gone []*model.SourceTable) error
}

// Transaction is what is known of a transaction at its end.
type Transaction struct {
	Position model.Position
	Time     model.Micros
	Bytes    uint64 // read for it
}

// Problem is something that keeps replication, or one table, from working.
type Problem struct {
	Fatal   bool
	Code    string
	Message string
	Fix     string // a statement to paste, or ""
}

// Lag is how far a stream is behind its source, in bytes; -1 is unknown.
type Lag struct {
	Missing            bool // there is no place for the stream
	Bytes              int64
	WALStatus          string
	SafeWALSize        int64
	MaxSlotWALKeepSize int64
	Confirmed          model.Position
}

// StreamTables names a stream to diagnose.
type StreamTables struct {
	ID     model.StreamID
	Name   string
	Tables []model.TablePattern
}

// Diagnosis is the state of a source.
type Diagnosis struct {
	URI           string // without credentials
	DefaultSchema string
	Problems      []Problem
	Streams       []StreamDiagnosis
}

// StreamDiagnosis is the state of one stream at its source.
type StreamDiagnosis struct {
	ID     model.StreamID
	Lag    Lag
	Tables []TableDiagnosis
}

// TableDiagnosis is the state of one table, or of a pattern that matches none.
type TableDiagnosis struct {
	Schema   string
	Name     string
	Pattern  string
	Missing  bool // no table matches
	Key      []string
	Estimate int64 // of its rows; 0 = unknown
	Problems []Problem
}

// SchemaTable is a table of the source's schema. Rows and Bytes are what the
// source's statistics estimate of what a copy reads; -1 = they do not say.
type SchemaTable struct {
	Schema  string
	Name    string
	Columns []SchemaColumn
	Rows    int64
	Bytes   int64
}

// SchemaColumn is a column; SQLiteType is what its values become.
type SchemaColumn struct {
	Name       string
	Type       string
	SQLiteType string
}

// Result is the answer to a query.
type Result struct {
	Columns []string
	Rows    []string // one JSON array each
}
