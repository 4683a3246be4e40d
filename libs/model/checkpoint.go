package model

import (
	"cmp"
	"slices"
	"strings"
)

// Checkpoint is a consistent cut: the ops up to Op are exactly the effect of
// the source transactions up to Position (D1).
type Checkpoint struct {
	Op       OpID
	Position Position
}

// WriteCheckpoint is a number handed to a client, acknowledged once a
// checkpoint's position reaches Head.
type WriteCheckpoint struct {
	UserKey string // "user" or "user/client"
	ID      uint64
	Head    Position
}

// StreamState is the life of a replication stream (spec/05 §1).
type StreamState uint8

const (
	Processing StreamState = iota + 1 // snapshot or catch-up running
	Active                            // consistent, serving clients
	Errored                           // serving frozen data, being replaced: of earlier versions, when a log was lost
	Stopped                           // replaced, to be cleaned
	Terminated                        // cleaned, kept for history
)

func (s StreamState) String() string {
	switch s {
	case Processing:
		return "PROCESSING"
	case Active:
		return "ACTIVE"
	case Errored:
		return "ERRORED"
	case Stopped:
		return "STOP"
	case Terminated:
		return "TERMINATED"
	}
	return "StreamState"
}

// Layer is a config whose parts a stream makes beside those that it made before,
// in buckets of its own: those of no earlier layer.
type Layer struct {
	Config string // its YAML
	Parts  []string
	Tables []TablePattern // that the parts read
}

// Stream is a replication stream: a sync config with its own snapshot and its own
// buckets, and what was added to it.
type Stream struct {
	ID   StreamID
	Name string // of the stream, and of its slot in Postgres
	// Config is the sync config's YAML.
	Config string
	// Content is what Config means, as rules.Plan.Identity tells, in hex; "" = not
	// known. Parts are the rules.Parts of Config, in hex.
	Content string
	Parts   []string
	// What is replicated stays that of Config. But if another config was deployed
	// that needs no more than that, it is what clients are served by: Edited is its
	// text, "" = Config, and EditedContent what it means, "" = the same as Config.
	// Former is the text by which they were served before.
	Edited        string
	EditedContent string
	Former        string
	// Layers are what was added since, in order; as numbers they count from 1, and
	// Config's is 0. The first Layered of them are copied: readers may see them.
	Layers  []Layer
	Layered uint32
	// Next is the config to serve clients by, and NextContent what it means, once
	// all Layers are copied; "" = none.
	Next        string
	NextContent string
	// Tables that the config reads and how source values become SQLite values:
	// what the replicator needs of a plan.
	Tables  []TablePattern
	Values  ValueOptions
	State   StreamState
	Head    StreamHead
	Created Micros
	// Activated is when it became the active one; 0 = never, or not known.
	Activated Micros
	// FromFile: the config is the one that the service config named, not one
	// that was deployed by hand. Filed is what the last one meant that it named,
	// or its text if that is not known; "" = none.
	FromFile bool
	Filed    string
	// DeployedBy is what the token is called with which somebody deployed the
	// config, never the token itself; "" if nobody did.
	DeployedBy string
	// CustomCheckpoints: rows of the source carry the clients' write
	// checkpoints, and none are handed out.
	CustomCheckpoints bool
	// Era is how often the source's history had been replaced by another one when
	// the stream was made.
	Era uint32
}

// EraNow is how often it has been by now, as far as the stream has seen.
func (s *Stream) EraNow() uint32 { return s.Era + s.Head.Applied.Position.Histories() }

// Place is a position of the stream as write checkpoints know it. They are of the
// whole deployment and outlive its streams, so a place of a later era comes after
// all those of an earlier one: what was written there is in the later history
// from its beginning, or never will be.
func (s *Stream) Place(p Position) Position { return PlaceIn(s.Era, p) }

// PlaceIn is Place for a stream that was made in an era.
func PlaceIn(era uint32, p Position) Position {
	if p == "" {
		return p
	}
	return Position(strings.Repeat(string(rune(markHistory)), int(era+p.Histories()))) + p.Source()
}

// Text is the sync config that clients are served by, as it was deployed last.
func (s *Stream) Text() string { return cmp.Or(s.Edited, s.Config) }

// Serves is what that means.
func (s *Stream) Serves() string { return cmp.Or(s.EditedContent, s.Content) }

// Edit makes text, which means content ("" = not known), the config that clients
// are served by.
func (s *Stream) Edit(text, content string) {
	was, served := s.Text(), s.Serves()
	if s.Edited = text; text == s.Config {
		s.Edited = ""
	}
	if content != "" {
		if s.EditedContent = content; content == s.Content || s.Edited == "" {
			s.EditedContent = ""
		}
	}
	if s.Serves() != served {
		s.Former = was
	}
}

// Copied says that the layers up to n are copied: if those are all, Next is what
// clients are served by. It tells whether anything has changed.
func (s *Stream) Copied(n uint32) bool {
	if n <= s.Layered {
		return false
	}
	s.Layered = n
	if int(n) >= len(s.Layers) && s.Next != "" {
		s.Edit(s.Next, s.NextContent)
		s.Next, s.NextContent = "", ""
	}
	return true
}

// Reads are the tables that Config and all Layers read, each once.
func (s *Stream) Reads() []TablePattern {
	all := slices.Clone(s.Tables)
	for _, l := range s.Layers {
		for _, t := range l.Tables {
			if !slices.Contains(all, t) {
				all = append(all, t)
			}
		}
	}
	return all
}

// Makes are the parts that Config and the first n layers make.
func (s *Stream) Makes(n uint32) []string {
	all := slices.Clone(s.Parts)
	for _, l := range s.Layers[:n] {
		all = append(all, l.Parts...)
	}
	return all
}

// StreamHead is how far a stream is: the state that one commit moves.
type StreamHead struct {
	Epoch Epoch
	// Applied is the end of the last committed batch, perhaps within a source
	// transaction; Persisted is the highest op id used.
	Applied   Cursor
	Persisted OpID
	// Checkpoint is what readers see.
	Checkpoint         Checkpoint
	SnapshotDone       bool
	NoCheckpointBefore Position
	// Origin names the history that the positions are of, in the source's own
	// form: the same position in another one is another place. "" = not known.
	Origin      string
	CommitTime  Micros
	Heartbeat   Micros
	PublishedAt Micros
	EvaluatedAt Micros
	StoredAt    Micros
	// LastError is the last fatal error of replication, "" after a success.
	LastError   string
	LastErrorAt Micros
}

// ValueOptions say how source values become SQLite values: the compatibility
// options of a sync config that concern conversion (spec/03 §2 and §9).
type ValueOptions struct {
	// ISO8601: timestamps with T and a fixed number of digits.
	ISO8601 bool
	// MaxDigits of sub-second precision plus one; 0 = the source's default.
	// (So the zero ValueOptions is edition 1.)
	MaxDigits uint8
	// CustomTypes: Postgres domains, composites, ranges and arrays of them are
	// decoded rather than passed as text.
	CustomTypes bool
}

// CheckpointNotice tells gateways that a stream's checkpoint moved, or that
// write checkpoints were reached. It is a hint: losing one costs latency only.
type CheckpointNotice struct {
	Stream     StreamID
	Sequence   uint64 // consecutive per bucket-store writer run; a gap means: re-read
	Run        uint64 // which run
	Checkpoint Checkpoint
	// Buckets and Lookups changed since the previous notice; if Everything is
	// set they are too many to list.
	Buckets    []string
	Lookups    []string
	Everything bool
	// Reached write checkpoints since the previous notice.
	Reached    []WriteCheckpoint
	CommitTime Micros
	Heartbeat  Micros
	StoredAt   Micros
}
