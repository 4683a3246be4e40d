package evaluator

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/evaluate"
)

const (
	// reportEvery is how often the same problem of a table is logged.
	reportEvery = time.Minute
	// maxProblems bounds how many different ones are remembered.
	maxProblems = 1000
)

// reporter logs rows that could not be evaluated: each kind of problem of a
// table at once, and then once a minute with the number of rows left out.
type reporter struct {
	log  *slog.Logger
	now  func() time.Time
	mu   sync.Mutex
	seen map[problem]*tally // guarded by mu
}

type problem struct{ schema, table, definition, message string }

type tally struct {
	logged time.Time
	silent int
}

func newReporter(log *slog.Logger, now func() time.Time) *reporter {
	return &reporter{log: log, now: now, seen: map[problem]*tally{}}
}

func (r *reporter) report(p evaluate.Problem) {
	key := problem{p.Table.Schema, p.Table.Name, p.Definition, p.Err.Error()}
	now := r.now()
	r.mu.Lock()
	t := r.seen[key]
	if t != nil && now.Sub(t.logged) < reportEvery {
		t.silent++
		r.mu.Unlock()
		return
	}
	silent := 0
	if t != nil {
		silent = t.silent
	} else if len(r.seen) >= maxProblems {
		clear(r.seen)
	}
	r.seen[key] = &tally{logged: now}
	r.mu.Unlock()
	args := []any{"schema", p.Table.Schema, "table", p.Table.Name, "key", p.Key, "error", p.Err}
	if p.Definition != "" {
		args = append(args, "definition", p.Definition)
	}
	if silent > 0 {
		args = append(args, "unlogged", silent)
	}
	var large *evaluate.TooLargeError
	if errors.As(p.Err, &large) {
		args = append(args, "code", errs.S1002)
	}
	if p.Removed {
		r.log.Warn("a row cannot be evaluated and is taken out of its buckets", args...)
	} else {
		r.log.Warn("a row cannot be evaluated", args...)
	}
}
