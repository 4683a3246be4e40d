package replicator

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
	"github.com/sluicesync/sluice/services/replicator/internal/source/postgres"
)

// Problem is what keeps a source, or one of its tables, from being replicated
// if it is Fatal, and else what deserves a look.
type Problem struct {
	Fatal   bool
	Code    string
	Message string
	Fix     string // a statement to paste, or ""
}

// Inspection is what can be said of a source without a running instance.
type Inspection struct {
	URI    string // without credentials
	Server string
	// Ahead is how far the source's clock is before this machine's.
	Ahead    time.Duration
	Settings []Problem // settings, grants, the publication
	Tables   []Problem
	Found    int       // tables
	Log      []Problem // the log that the source keeps
}

// Inspect looks at the source of cfg and at those of its tables that match, and
// changes nothing. An error says that it cannot be reached.
func Inspect(ctx context.Context, cfg Config, tables []model.TablePattern, log *slog.Logger) (*Inspection, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	src, err := postgres.New(cfg.Connection.Postgres, log)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	d, err := src.Diagnose(ctx, []source.StreamTables{{Tables: tables}})
	if err != nil {
		return nil, err
	}
	i := &Inspection{URI: d.URI, Settings: inspected(d.Problems)}
	published := !slices.ContainsFunc(i.Settings, func(p Problem) bool { return p.Code == string(errs.S1141) })
	for _, t := range d.Streams[0].Tables {
		for _, p := range inspected(t.Problems) {
			// The fix for a publication that is not there is one for all its tables.
			if published || p.Code != string(errs.S1141) {
				i.Tables = append(i.Tables, p)
			}
		}
		if !t.Missing {
			i.Found++
		}
	}
	var kept []source.Problem
	if i.Server, i.Ahead, kept, err = src.Inspect(ctx, cfg.Connection.Postgres.SlotNamePrefix); err != nil {
		return nil, err
	}
	i.Log = inspected(kept)
	return i, nil
}

func inspected(ps []source.Problem) []Problem {
	var out []Problem
	for _, p := range ps {
		out = append(out, Problem(p))
	}
	return out
}
