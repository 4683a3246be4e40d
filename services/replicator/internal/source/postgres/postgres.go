// Package postgres is the source adapter of Postgres, version 11 and later:
// logical replication with pgoutput, and tables copied in chunks of their key.
//
// Invariants:
//
//   - Values become SQLite values as recorded (TestPgTypes).
//   - Whatever the server sends, decoding neither panics nor takes more memory
//     than a small multiple of the message (FuzzPgoutput, FuzzValue).
//   - A position is confirmed to the server only after the ledger has it
//     (decision 1); the server is answered on a timer, whatever else waits
//     (TestKeepaliveWhileBlocked).
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// prefix of our logical messages.
const prefix = "sluice"

// Source is a Postgres database.
type Source struct {
	config  *config.Postgres
	log     *slog.Logger
	pool    *pgxpool.Pool
	types   types
	version atomic.Int64 // server_version_num, 0 = unknown yet
}

var _ source.Source = (*Source)(nil)

// New returns the source that c describes. It connects when it is used.
func New(c *config.Postgres, log *slog.Logger) (*Source, error) {
	conn, err := connConfig(c)
	if err != nil {
		return nil, err
	}
	p, err := pgxpool.ParseConfig("postgres://localhost/?sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("make pool config: %w", err)
	}
	conn.RuntimeParams["statement_timeout"] = "0"
	conn.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	// A marker is of use only when it is flushed, and need not wait for standbys.
	conn.RuntimeParams["synchronous_commit"] = "local"
	p.ConnConfig = conn
	p.MaxConns = int32(max(c.MaxPoolSize, minPool))
	p.MinConns = 0
	p.PingTimeout = 2 * time.Second // of one that has not been used for a second
	pool, err := pgxpool.NewWithConfig(context.Background(), p)
	if err != nil {
		return nil, fmt.Errorf("make pool: %w", err)
	}
	return &Source{config: c, log: log, pool: pool}, nil
}

// minPool is what a copy needs (its own, and the position beside it), and one
// for gateways.
const minPool = 3

// Parallel leaves a few connections for everything else.
func (s *Source) Parallel() int { return min(max(s.config.MaxPoolSize, minPool)-2, 4) }

// Close closes all connections.
func (s *Source) Close() { s.pool.Close() }

func (s *Source) serverVersion(ctx context.Context) (int, error) {
	if v := s.version.Load(); v != 0 {
		return int(v), nil
	}
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	var text string
	if err := s.pool.QueryRow(ctx, `SHOW server_version_num`).Scan(&text); err != nil {
		return 0, fmt.Errorf("read server version: %w", err)
	}
	v, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("read server version: %w", err)
	}
	s.version.Store(int64(v))
	return v, nil
}

func (l lsn) position() model.Position {
	return model.Position(fmt.Sprintf("%08X/%08X", uint64(l)>>32, uint64(l)&0xffffffff))
}

// String is Postgres's own form.
func (l lsn) String() string { return fmt.Sprintf("%X/%X", uint64(l)>>32, uint64(l)&0xffffffff) }

// parseLSN reads both forms.
func parseLSN(s string) (lsn, error) {
	high, low, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is no position of Postgres", s)
	}
	return lsn(h<<32 | l), nil
}

// Position returns where the next write-ahead record goes: behind every commit
// so far, flushed or not.
func (s *Source) Position(ctx context.Context) (model.Position, error) {
	at, err := s.end(ctx)
	if err != nil {
		return "", err
	}
	return at.position(), nil
}

func (s *Source) end(ctx context.Context) (lsn, error) {
	var text string
	if err := s.pool.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
		return 0, fmt.Errorf("read the log's end: %w", err)
	}
	return parseLSN(text)
}

// Mark writes a marker in a transaction of its own, which commits
// synchronously: an idle server flushes it now and not some time later.
func (s *Source) Mark(ctx context.Context) error { return s.emit(ctx, "mark") }

// Heartbeat writes a marker that carries a time.
func (s *Source) Heartbeat(ctx context.Context, at model.Micros) error {
	return s.emit(ctx, strconv.FormatInt(int64(at), 10))
}

func (s *Source) emit(ctx context.Context, content string) error {
	if _, err := s.pool.Exec(ctx, `SELECT pg_logical_emit_message(true, $1::text, $2::text)`, prefix, content); err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	return nil
}

// lostMessages are how the server says that a slot's history is gone, besides
// the catalog (spec/04 §2.1).
var lostMessages = []string{
	"incorrect prev-link",
	"can no longer access replication slot",
	"can no longer get changes from replication slot",
}

// Class says how to go on after err.
func (s *Source) Class(err error) source.ErrorClass {
	if errors.Is(err, source.ErrHistoryLost) {
		return source.Lost
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		for _, m := range lostMessages {
			if strings.Contains(pg.Message, m) {
				return source.Lost
			}
		}
		if pg.Code == "42704" && (strings.Contains(pg.Message, "replication slot") || strings.Contains(pg.Message, "publication")) {
			return source.Lost
		}
		switch pg.Code[:2] {
		case "28": // invalid authorization
			return source.Denied
		case "57", "08", "53": // operator intervention (also: starting up), connection, resources
			return source.Restarting
		}
		if pg.Code == "55006" { // slot still in use
			return source.Restarting
		}
		return source.Other
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return source.Unreachable
	}
	var op net.Error
	var connect *pgconn.ConnectError
	if errors.As(err, &op) || errors.As(err, &connect) || errors.Is(err, errClosed) {
		return source.Restarting
	}
	return source.Other
}

// errClosed means that the server ended the connection.
var errClosed = errors.New("connection closed by the server")

// replicationConn opens a connection that speaks the replication protocol.
func (s *Source) replicationConn(ctx context.Context) (*pgconn.PgConn, error) {
	c, err := connConfig(s.config)
	if err != nil {
		return nil, err
	}
	c.RuntimeParams["replication"] = "database"
	c.RuntimeParams["client_min_messages"] = "warning" // one is as bad as an error
	if s.version.Load() >= senderTimeoutVersion {
		c.RuntimeParams["wal_sender_timeout"] = strconv.Itoa(int(senderTimeout.Milliseconds()))
	}
	conn, err := pgconn.ConnectConfig(ctx, &c.Config)
	if err != nil {
		return nil, fmt.Errorf("connect for replication: %w", err)
	}
	return conn, nil
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
