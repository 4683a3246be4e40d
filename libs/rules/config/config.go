package config

// Limits of a document: far beyond any config written by hand.
const (
	MaxSize  = 1 << 20 // bytes
	MaxDepth = 64      // nested collections
)

// Config is a sync config before its SQL is looked at.
type Config struct {
	Options Options
	// HasRules, HasStreams: the section is there and is a map.
	HasRules, HasStreams bool
	RulesAt              Span // of the value of bucket_definitions
	Buckets              []Bucket
	Streams              []Stream
	With                 []CTE
	Events               []Event
}

// Options is the config block (spec/03 §2), defaults applied.
type Options struct {
	// Edition is 1 to 3; something else if the document says so, which is a
	// fatal diagnostic.
	Edition             float64
	TimestampsISO8601   bool
	VersionedBucketIDs  bool
	FixedJSONExtract    bool
	CustomPostgresTypes bool
	SQLiteEngine        bool
	// MaxDigits of sub-second precision plus one; 0 = the source's default.
	MaxDigits      uint8
	StorageVersion int
}

// Compiler3 tells whether the edition 3 compiler reads this config.
func (o Options) Compiler3() bool { return o.Edition >= 3 }

// Span is a half-open range of byte offsets in the YAML text. None has no
// place.
type Span struct{ Start, End int }

// None is the Span of a finding about the document as a whole.
var None = Span{-1, -1}

// Name is the key of a definition.
type Name struct {
	Text string
	At   Span
}

// Bucket is an entry of bucket_definitions.
type Bucket struct {
	Name            Name
	Body            Span
	Parameters      []Text // nil if the key is missing
	HasParameters   bool
	Data            []Text
	Priority        int
	HasPriority     bool
	AcceptDangerous bool
}

// Stream is an entry of streams.
type Stream struct {
	Name            Name
	Body            Span
	Queries         []Text
	With            []CTE
	AutoSubscribe   bool
	Priority        int
	HasPriority     bool
	AcceptDangerous bool
}

// CTE is a named query.
type CTE struct {
	Name  Name
	Query Text
}

// Event is an entry of event_definitions.
type Event struct {
	Name     Name
	Payloads []Text
}

// Finding is a problem of the document.
type Finding struct {
	Fatal   bool
	Class   string
	Message string
	At      Span
}
