package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// keptWAL is how much log a slot that nobody reads may keep before that is worth
// a warning.
const keptWAL = 1 << 30

// Inspect tells which server it is, how far its clock is ahead of ours, and what
// is to be said of the log that it keeps for streams whose names begin with
// prefix: warnings, for none of it keeps replication from working today.
func (s *Source) Inspect(ctx context.Context, prefix string) (server string, ahead time.Duration, problems []source.Problem, err error) {
	version, err := s.serverVersion(ctx)
	if err != nil {
		return "", 0, nil, err
	}
	var micros int64
	asked := time.Now()
	if err := s.pool.QueryRow(ctx, `SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000000)::int8`).Scan(&server, &micros); err != nil {
		return "", 0, nil, fmt.Errorf("read the source's clock: %w", err)
	}
	ahead = time.UnixMicro(micros).Sub(asked.Add(time.Since(asked) / 2))
	warn := func(code errs.Code, fix, message string, args ...any) {
		problems = append(problems, source.Problem{Code: string(code), Message: fmt.Sprintf(message, args...), Fix: fix})
	}
	if version < 130000 {
		return server, ahead, problems, nil // it has no bound
	}
	var megabytes int64
	if err := s.pool.QueryRow(ctx, `SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'`).Scan(&megabytes); err != nil {
		return "", 0, nil, fmt.Errorf("read max_slot_wal_keep_size: %w", err)
	}
	if megabytes < 0 {
		warn("", "ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf();",
			"max_slot_wal_keep_size is unlimited: an instance that is away for long fills the source's disk")
	}
	rows, err := s.pool.Query(ctx, `SELECT slot_name::text, active, coalesce(wal_status, ''), coalesce(CASE WHEN safe_wal_size < 0 THEN 0 ELSE safe_wal_size END, -1),
		coalesce(CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn) END, 0)::int8
		FROM pg_replication_slots WHERE plugin = 'pgoutput' AND database = current_database() AND starts_with(slot_name::text, $1) ORDER BY 1`, prefix)
	if err != nil {
		return "", 0, nil, fmt.Errorf("read slots: %w", err)
	}
	var name, status string
	var active bool
	var safe, kept int64
	_, err = pgx.ForEachRow(rows, []any{&name, &active, &status, &safe, &kept}, func() error {
		drop := "SELECT pg_drop_replication_slot(" + literal(name) + ");"
		switch {
		case status == "lost":
			warn(errs.S1146, drop, "replication slot %s has lost its WAL; a running instance replaces it by itself", name)
		case megabytes > 0 && safe >= 0 && safe <= megabytes<<20/2:
			warn("", fmt.Sprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB'; SELECT pg_reload_conf();", 4*megabytes),
				"replication slot %s has %s of its WAL budget of %d MiB left", name, size(safe), megabytes)
		case !active && kept > keptWAL:
			warn("", drop+" -- unless an instance needs it", "nobody reads replication slot %s, for which the source keeps %s of WAL", name, size(kept))
		}
		return nil
	})
	if err != nil {
		return "", 0, nil, fmt.Errorf("read slots: %w", err)
	}
	return server, ahead, problems, nil
}

// size is a number of bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i, f := 0, float64(n)
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return strings.Replace(fmt.Sprintf("%.1f %s", f, units[i]), ".0 ", " ", 1)
}
