package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// slot is what the catalog says of a replication slot.
type slot struct {
	active    int // process that uses it, 0 = none
	plugin    string
	database  string
	confirmed lsn
	current   lsn // the log's end, read in the same query
	status    string
	safe      int64 // -1 = unknown
	reason    string
}

// findSlot returns nil if there is none of that name.
func (s *Source) findSlot(ctx context.Context, name string) (*slot, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	version, err := s.serverVersion(ctx)
	if err != nil {
		return nil, err
	}
	status, safe, reason := "''", "-1::int8", "''"
	if version >= 130000 {
		status, safe = "coalesce(wal_status, '')", "coalesce(CASE WHEN safe_wal_size < 0 THEN 0 ELSE safe_wal_size END, -1)" // below 0 when it is overdrawn
	}
	if version >= 170000 {
		reason = "coalesce(invalidation_reason, '')"
	}
	var f slot
	var confirmed, current string
	err = s.pool.QueryRow(ctx, `SELECT coalesce(active_pid, 0), coalesce(plugin::text, ''), coalesce(database::text, ''),
		coalesce(confirmed_flush_lsn, '0/0')::text, pg_current_wal_insert_lsn()::text, `+status+`, `+safe+`, `+reason+`
		FROM pg_replication_slots WHERE slot_name = $1`, name).
		Scan(&f.active, &f.plugin, &f.database, &confirmed, &current, &f.status, &f.safe, &f.reason)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up slot %s: %w", name, err)
	}
	if f.confirmed, err = parseLSN(confirmed); err != nil {
		return nil, err
	}
	if f.current, err = parseLSN(current); err != nil {
		return nil, err
	}
	return &f, nil
}

func lost(name, why string) error {
	return errs.Wrap(errs.S1146, source.ErrHistoryLost, "replication slot %s: %s", name, why)
}

// Open takes over or makes the stream's slot (spec/04 §2.1). The caller has the
// stream's lease, so whoever else uses the slot is dead or stopped.
func (s *Source) Open(ctx context.Context, stream *model.Stream) (source.Log, error) {
	name := stream.Name
	version, err := s.serverVersion(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.findSlot(ctx, name)
	if err != nil {
		return nil, err
	}
	current := lsn(0)
	if found != nil {
		current = found.current
	} else if current, err = s.end(ctx); err != nil {
		return nil, err
	}
	l := &logReader{source: s, stream: stream, version: version, answer: make(chan struct{}, 1)}
	// First: a slot that is gone with the rest of the history is not the cause.
	if l.origin, err = s.sameHistory(ctx, &stream.Head, current); err != nil {
		return nil, err
	}
	if found != nil && found.plugin != "pgoutput" {
		return nil, errs.New(errs.S1101, "replication slot %s exists with plugin %q", name, found.plugin)
	}
	if found != nil && found.database != s.config.Database {
		return nil, errs.New(errs.S1101, "replication slot %s belongs to database %q", name, found.database)
	}
	if stream.Head.Applied.Position == "" {
		// Whatever place there is, nothing was read from it that is stored.
		if err := s.Remove(ctx, stream); err != nil {
			return nil, err
		}
		if l.start, err = s.createSlot(ctx, name); err != nil {
			return nil, err
		}
	} else {
		applied, err := parseLSN(string(stream.Head.Applied.Position))
		if err != nil {
			return nil, err
		}
		switch {
		case found == nil:
			return nil, lost(name, "it does not exist any more")
		case found.status == "lost" && !stream.Head.SnapshotDone && found.reason != "rows_removed":
			// A new slot would end the same way.
			return nil, errs.New(errs.S1146, "replication slot %s was invalidated while tables were being copied (%s): %s; then, for the copy to begin again: SELECT pg_drop_replication_slot(%s);",
				name, reason(found), hint(found.reason), literal(name))
		case found.status == "lost":
			return nil, lost(name, "its WAL is gone ("+reason(found)+"): "+hint(found.reason))
		case found.confirmed > applied:
			return nil, lost(name, fmt.Sprintf("it is confirmed up to %s, the ledger has %s", found.confirmed, applied))
		}
		if err := s.takeOver(ctx, name, found); err != nil {
			return nil, err
		}
		l.start = found.confirmed
	}
	l.confirmed.Store(uint64(l.start))
	return l, nil
}

// reason is why a slot is lost. Before version 17 the server does not say, but
// there is only one.
func reason(f *slot) string { return cmp.Or(f.reason, "wal_removed") }

func hint(reason string) string {
	if reason == "idle_timeout" {
		return "it was not used for longer than idle_replication_slot_timeout; raise it, or keep the replicator running"
	}
	return "raise max_slot_wal_keep_size"
}

// takeOver ends the process that uses the slot.
func (s *Source) takeOver(ctx context.Context, name string, f *slot) error {
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	for deadline := time.Now().Add(10 * time.Second); f != nil && f.active != 0; {
		s.log.Info("taking over replication slot", "slot", name, "pid", f.active)
		if _, err := s.pool.Exec(ctx, `SELECT pg_terminate_backend($1)`, f.active); err != nil {
			return fmt.Errorf("end process %d, which uses slot %s: %w", f.active, name, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("slot %s is still in use by process %d", name, f.active)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		if f, err = s.findSlot(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// createSlot makes a slot and returns where its log begins. The server waits
// for the transactions that run now.
func (s *Source) createSlot(ctx context.Context, name string) (lsn, error) {
	conn, err := s.replicationConn(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	row, err := command(ctx, conn, "CREATE_REPLICATION_SLOT "+quote(name)+" LOGICAL pgoutput NOEXPORT_SNAPSHOT", 2)
	if err != nil {
		return 0, fmt.Errorf("create replication slot %s: %w", name, err)
	}
	at, err := parseLSN(string(row[1]))
	if err != nil {
		return 0, fmt.Errorf("create replication slot %s: %w", name, err)
	}
	s.log.Info("created replication slot", "slot", name, "position", at.position())
	return at, nil
}

// Remove drops the stream's slot.
func (s *Source) Remove(ctx context.Context, stream *model.Stream) error {
	f, err := s.findSlot(ctx, stream.Name)
	if err != nil || f == nil {
		return err
	}
	if f.plugin != "pgoutput" || f.database != s.config.Database {
		return nil // not ours
	}
	if err := s.takeOver(ctx, stream.Name, f); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	if _, err := s.pool.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, stream.Name); err != nil {
		return fmt.Errorf("drop replication slot %s: %w", stream.Name, err)
	}
	s.log.Info("dropped replication slot", "slot", stream.Name)
	return nil
}
