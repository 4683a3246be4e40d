package fanout

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
)

// Summary is what a session did.
type Summary struct {
	Reason     error // why it ended; io.EOF = the client went, nil = the token expired
	Counts     line.Counts
	PlainBytes int64
	SentBytes  int64
	Buckets    int
	Completed  int
	Superseded int
	Started    time.Time
	// Large are buckets of which more than large ops in a row were sent, and how
	// many; not more than maxNamed.
	Large map[string]int
}

// checkpoint logs a checkpoint that the client is to be told of.
func (s *Session) checkpoint(event string, v *session.View, results int) {
	if s.log == nil || !s.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	names := make([]string, min(len(v.Buckets), maxNamed))
	for i := range names {
		names[i] = v.Buckets[i].ID
	}
	s.log.Debug(event, "checkpoint", v.Checkpoint.String(), "write_checkpoint", v.WriteCheckpoint, "buckets", s.summary.Buckets,
		"parameter_results", results, "named", names)
}

// row is what was sent of a bucket without another one in between.
type row struct {
	bucket string
	ops    int
}

// tally counts ops of a bucket for the summary.
func (s *Session) tally(bucket string, ops int) {
	if s.row.bucket != bucket {
		s.row = row{bucket: bucket}
	}
	if s.row.ops += ops; s.row.ops <= large {
		return
	}
	if _, ok := s.summary.Large[bucket]; !ok && len(s.summary.Large) == maxNamed {
		return
	}
	if s.summary.Large == nil {
		s.summary.Large = map[string]int{}
	}
	s.summary.Large[bucket] = max(s.summary.Large[bucket], s.row.ops)
}

// count counts what is being sent.
func (s *Session) count(out *Lines) {
	counts, plain := line.Counts{}, int64(len(out.Plain))
	for _, p := range out.Parts {
		if p.Chunk != nil {
			counts.Add(p.Chunk.Counts)
			plain += p.Chunk.Plain.Len
		}
	}
	s.summary.Counts.Add(counts)
	s.summary.PlainBytes += plain
	s.summary.Completed += out.completed
	s.stats.Ops.Add(uint64(counts.Ops()))
	s.stats.PlainBytes.Add(uint64(plain))
	s.stats.Deliveries.Add(uint64(out.completed))
}

// timed tells how long the checkpoint took that was just completed.
func (s *Session) timed() {
	stats := s.stats
	switch {
	case !s.caught:
		s.caught = true
		if stats.Opened != nil {
			stats.Opened(time.Since(s.summary.Started))
		}
	case s.since != 0 && stats.Caught != nil:
		stats.Caught(time.Since(time.Unix(0, s.since)), s.trace)
	}
	s.since = 0
}

// Clean reports whether a summary's reason is a normal end, and what to call it.
func (s Summary) Clean() (string, bool) {
	switch {
	case s.Reason == nil || errors.Is(s.Reason, errExpired):
		return "token expired", true
	case errors.Is(s.Reason, ErrDraining):
		return "shutting down", true
	case errors.Is(s.Reason, ErrStreamReplaced):
		return "sync config replaced", true
	case errors.Is(s.Reason, io.EOF):
		return "client closed", true
	case errors.Is(s.Reason, ErrSlow):
		return "client too slow", false
	}
	return "error", false
}
