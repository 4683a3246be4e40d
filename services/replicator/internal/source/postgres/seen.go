package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// underWayQuery tells whether the transaction of id $1 is still to be seen by
// others, or one that has changed what the relation of oid $2 is. A transaction
// gives its locks back after it is seen.
const underWayQuery = `
SELECT EXISTS (SELECT FROM pg_locks x WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.granted AND (x.transactionid = $1::text::xid
  OR EXISTS (SELECT FROM pg_locks r WHERE r.locktype = 'relation' AND r.relation = $2 AND r.database = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND r.granted AND r.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock') AND r.virtualtransaction = x.virtualtransaction)))`

// seen waits until queries see what the transaction of id xid did, and what the
// relation of that oid (0 = none) was changed to before. The log has a commit
// first: by a moment, or by as long as a synchronous standby keeps it waiting.
func (s *Source) seen(ctx context.Context, xid, oid uint32) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		var underWay bool
		query, cancel := context.WithTimeout(ctx, catalogTime)
		err := s.pool.QueryRow(query, underWayQuery, strconv.FormatUint(uint64(xid), 10), oid).Scan(&underWay)
		cancel()
		if err != nil {
			return fmt.Errorf("wait for transaction %d: %w", xid, err)
		}
		if !underWay {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// maxRecent bounds the transactions that Settled looks at: the oldest of more are
// taken to be settled.
const maxRecent = 1 << 16

// Settled looks for the transactions that were read in a snapshot of the server:
// they are sent when their end is in the log, which is before others see them.
func (l *logReader) Settled(ctx context.Context) (bool, error) {
	if len(l.recent) == 0 {
		return true, nil
	}
	var text string
	if err := l.source.pool.QueryRow(ctx, `SELECT txid_current_snapshot()::text`).Scan(&text); err != nil {
		return false, fmt.Errorf("read the server's snapshot: %w", err)
	}
	s, err := parseSnapshot(text)
	if err != nil {
		return false, err
	}
	l.recent = slices.DeleteFunc(l.recent, s.sees)
	return len(l.recent) == 0, nil
}

// snapshotOf is which transactions a snapshot sees: those before min, and of those
// before max all that are not running.
type snapshotOf struct {
	min, max uint64
	running  map[uint64]bool
}

// parseSnapshot reads the text form: min:max:running,running.
func parseSnapshot(text string) (s snapshotOf, err error) {
	fields := strings.Split(text, ":")
	if len(fields) != 3 {
		return s, errs.New(errs.S1101, "the server's snapshot %q cannot be read", text)
	}
	number := func(text string) uint64 {
		n, bad := strconv.ParseUint(text, 10, 64)
		err = errors.Join(err, bad)
		return n
	}
	s = snapshotOf{number(fields[0]), number(fields[1]), map[uint64]bool{}}
	for id := range strings.SplitSeq(fields[2], ",") {
		if id != "" {
			s.running[number(id)] = true
		}
	}
	return s, err
}

// sees tells whether the snapshot sees a transaction, whose id in the log lacks
// the upper half.
func (s *snapshotOf) sees(id uint32) bool {
	full := s.max&^math.MaxUint32 | uint64(id)
	if full > s.max+math.MaxInt32 {
		full -= 1 << 32
	} else if full+math.MaxInt32 < s.max {
		full += 1 << 32
	}
	return full < s.min || full < s.max && !s.running[full]
}
