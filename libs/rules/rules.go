// Package rules compiles a sync config into a Plan: pure functions that say
// which buckets a source row belongs to, which entries of the parameter index
// it makes, and which buckets a client is given.
//
// The way through the package is the way of a config: config (YAML with
// positions) → syntax (SQL) → resolve (names, clauses, variants) → Plan → the
// two evaluators, TableEvaluator for rows and Querier for requests.
//
// A Plan is immutable and safe for concurrent use. No function here reads a
// clock, does I/O or keeps state, so equal inputs give equal bytes everywhere.
//
// Invariants:
//
//   - D6: a row is in a bucket of a client exactly when the config, evaluated
//     naively over the whole source, gives it to the client (TestNaive).
//   - What the reference server was seen to give, we give, byte for byte, save
//     what docs/compatibility.md lists (package conformance, TestVectors).
//   - D9: a query that fails for a row leaves everything else of the row
//     (TestLastPutWins), a definition that fails for a request everything else
//     of the request (TestReasons).
//   - Resolve's Lookups are all that its answer depends on (TestLookupsWake).
//   - No config, row or request makes it panic (FuzzCompile, FuzzEntries), and a
//     config costs in proportion to its length (TestHostile).
package rules

import (
	"encoding/json"

	"github.com/sluicesync/sluice/libs/model"
)

// Options of a compilation.
type Options struct {
	// DefaultSchema is the schema of tables without one: "public" for Postgres.
	DefaultSchema string
	// Version makes the prefix "<Version>#" of bucket ids; 0 = none.
	Version int64
	// Layer, of a Version, tells the buckets and lookups of the configs apart whose
	// parts one replication stream makes: the prefix is "<Version>.<Layer>#"; 0 =
	// the first.
	Layer uint32
	// Schema of the source, for warnings about unknown names; nil = unknown.
	Schema *Schema
}

// Schema is what the source database has: connection (model.DefaultConnection)
// → schema → table.
type Schema struct {
	Connections map[string]map[string]map[string]SchemaTable
}

// SchemaTable is a table of the source: its columns, in order where known.
type SchemaTable struct {
	Columns []SchemaColumn
}

// SchemaColumn is a column and its SQLite type: text, integer, real, blob,
// null (unknown).
type SchemaColumn struct {
	Name string
	Type string
}

// Diagnostic is one finding about a config. Start and End are byte offsets in
// the YAML text; lines and columns count from 1, and are 0 if the finding has
// no place.
type Diagnostic struct {
	Fatal     bool
	Message   string
	Class     string // stable kebab-case name of the kind of finding
	Start     int
	End       int
	Line      int
	Column    int
	EndLine   int
	EndColumn int
}

// DefinitionKind tells bucket definitions from streams.
type DefinitionKind uint8

const (
	BucketDefinition DefinitionKind = iota + 1
	StreamDefinition
)

func (k DefinitionKind) String() string {
	switch k {
	case BucketDefinition:
		return "bucket definition"
	case StreamDefinition:
		return "stream"
	}
	return "DefinitionKind"
}

// Definition is an entry of bucket_definitions or streams.
type Definition struct {
	Name           string
	Kind           DefinitionKind
	Priority       int
	AutoSubscribed bool
	// Identity is equal exactly for definitions that compile to the same
	// functions, in whatever config they stand.
	Identity [32]byte
}

// RowError is a query that could not be evaluated for a row; the row is not
// synced by that query, and everything else goes on (D9).
type RowError struct {
	Definition string
	Parameters bool // of the parameter index, not of a data query
	Err        error
}

// Event is what an event definition made of a row.
type Event struct {
	Name    string
	Columns []string
	Values  []model.Value // beside Columns
	Data    string        // JSON text of both
	Err     error         // instead of the others: the payload could not be evaluated
}

// Request is one client connection.
type Request struct {
	// Token is the payload of the JWT; nil or null = {}.
	Token json.RawMessage
	// Parameters is the connection's parameters object; nil or null = {}.
	Parameters json.RawMessage
	// IncludeDefaults adds the auto-subscribed streams and bucket definitions.
	IncludeDefaults bool
	Subscriptions   []Subscription
	// MaxResults and MaxBuckets bound Resolve (0 = no bound); beyond them it
	// fails with a *LimitError.
	MaxResults int
	MaxBuckets int
}

// Subscription is an explicit subscription to a stream.
type Subscription struct {
	Stream     string
	Parameters json.RawMessage // nil or null = {}
	Priority   *int            // nil = the stream's
}

// Bucket is a bucket that a client is given.
type Bucket struct {
	ID         string
	Priority   int // the smallest of all reasons
	Definition string
	Reasons    []Reason
	Dynamic    bool // depends on parameter rows
}

// Reason says why a client has a bucket: Index counts Streams() if Default,
// the request's subscriptions otherwise.
type Reason struct {
	Default bool
	Index   int
}

// SubscriptionError is a definition that could not be evaluated for a request;
// it gives no buckets, the others still do.
type SubscriptionError struct {
	Definition   string
	Default      bool
	Subscription int // index in the request's subscriptions, unless Default
	Err          error
}

// StreamInfo is an entry of a checkpoint line's streams.
type StreamInfo struct {
	Name      string
	IsDefault bool
}

// Buckets is what Resolve found.
type Buckets struct {
	Buckets []Bucket
	Errors  []SubscriptionError
	// Lookups are all the lookup keys used: a change of one of them, and
	// nothing else, can change Buckets.
	Lookups []string
	// Results counts the parameter rows used.
	Results int
}
