package postgres

import (
	"context"
	"fmt"
	"strconv"
	"time"
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
