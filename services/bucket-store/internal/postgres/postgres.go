// Package postgres keeps everything in a schema of a Postgres database, 13 or
// later, which may be the source's.
//
// Invariants, besides those of the contract (storetest.Run):
//
//   - D3, D5: a commit is one transaction that begins by locking the stream's
//     head and comparing it. What was under way when a connection broke has
//     ended before Head answers (TestAnswerLost).
//   - A read is one statement, so it sees one state of the store; it holds no
//     connection while its caller works with the result (TestPoolExhausted).
//   - No statement is sent for one row alone where there may be many.
//   - Nothing in memory is needed to be right: what is kept there never changes
//     (ids of buckets), or is of use only to a commit that finds the head
//     unmoved (records). So several processes may use one schema.
//
// Locks are taken in this order: table streams, advisory, heads by stream,
// buckets.
package postgres

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Options of Open; zero means default.
type Options struct {
	// Schema that has the tables. "" = sluice.
	Schema string
	// MaxConns bounds the connections. 0 = 8; at least 3.
	MaxConns int
	// RecordBytes bounds the records that one statement writes. 0 = 50 MB.
	RecordBytes int
	// Source: the database server is the source's as well.
	Source bool
	// NoMigration leaves migrations to Migrate.
	NoMigration bool
	// Importing: it is opened for an import, which may be under way.
	Importing bool
	// Log takes what migrations do; nil = nowhere.
	Log *slog.Logger

	// pageOps and pageBytes bound a page of Ops. 0 = one op more than a reader's
	// chunk has, and as much.
	pageOps, pageBytes int
	// lookupStep bounds the entries that CompactLookups reads at once. 0 = 10,000.
	lookupStep int
	// copyRows is from how many rows on they are copied. 0 = 200.
	copyRows int
	// wrap replaces connections of the pools of reads and writes, in tests.
	wrap func(net.Conn) net.Conn
}

// Place is the schema that has the tables.
func (o Options) Place() string { return cmp.Or(o.Schema, "sluice") }

func (o *Options) defaults() {
	o.Schema = o.Place()
	o.MaxConns = max(cmp.Or(o.MaxConns, 8), writeConns+1)
	o.RecordBytes = cmp.Or(o.RecordBytes, 50_000_000)
	o.pageOps, o.pageBytes, o.copyRows = cmp.Or(o.pageOps, 1001), cmp.Or(o.pageBytes, 1<<20), cmp.Or(o.copyRows, 200)
	o.lookupStep = cmp.Or(o.lookupStep, 10_000)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// writeConns is how many connections only writers use, so that they need not
// wait for readers.
const writeConns = 2

// Store is a store.Store.
type Store struct {
	options Options
	write   *pgxpool.Pool // of writes, and of what the writer reads
	read    *pgxpool.Pool
	own     *pgxpool.Pool // of what keeps this process the owner, or makes it one
	writer  string        // name of the sessions of write
	epoch   atomic.Int64  // of this process as the owner; 0 = it is not
	owner   atomic.Pointer[owner]
	streams sync.Map // of *stream by model.StreamID
}

var _ store.Shared = (*Store)(nil)

// stream is what is in memory of a stream.
type stream struct {
	// unsettled: a commit has failed and may still be under way.
	unsettled atomic.Bool

	mu      sync.Mutex
	buckets map[hash]int32          // ids; guarded by mu
	known   map[model.RowKey]string // as the last call of Records found them, "" = absent; guarded by mu
}

func (s *Store) stream(id model.StreamID) *stream {
	if st, ok := s.streams.Load(id); ok {
		return st.(*stream)
	}
	st, _ := s.streams.LoadOrStore(id, &stream{buckets: map[hash]int32{}})
	return st.(*stream)
}

// Open connects to the database, and brings its schema up to date.
func Open(ctx context.Context, c *config.Postgres, o Options) (*Store, error) {
	o.defaults()
	if err := migrateFor(ctx, c, &o); err != nil {
		return nil, err
	}
	s := &Store{options: o, writer: writerName()}
	for _, p := range []struct {
		pool **pgxpool.Pool
		name string
		size int
	}{{&s.write, s.writer, writeConns}, {&s.read, readerName, o.MaxConns - writeConns}, {&s.own, readerName, ownConns}} {
		o := o
		if p.pool == &s.own {
			o.wrap = nil
		}
		pool, err := newPool(c, &o, p.name, p.size)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		*p.pool = pool
	}
	return s, nil
}

// Close gives the right to write back, and closes all connections.
func (s *Store) Close() (err error) {
	if o := s.owner.Load(); o != nil {
		err = o.Release()
	}
	for _, p := range []*pgxpool.Pool{s.read, s.write, s.own} {
		if p != nil {
			p.Close()
		}
	}
	return err
}

// connectTimeout bounds an attempt to connect unless the config does.
const connectTimeout = 30 * time.Second

// connConfig is the driver's config.
func connConfig(c *config.Postgres, schema string) (*pgx.ConnConfig, error) {
	p, err := pgx.ParseConfig(c.ForDriver())
	if err != nil {
		return nil, errs.New(errs.S1109, "connection options cannot be used") // err may quote them
	}
	if p.TLSConfig, err = c.TLS(); err != nil {
		return nil, err
	}
	p.Fallbacks = nil
	p.ConnectTimeout = cmp.Or(c.ConnectTimeout, connectTimeout)
	p.DialFunc = c.Dialer().DialContext
	p.RuntimeParams = map[string]string{
		"application_name": readerName,
		"client_encoding":  "UTF8",
		"search_path":      pgx.Identifier{schema}.Sanitize(),
		// Whatever the defaults of the server or role are.
		"default_transaction_isolation":  "read committed",
		"default_transaction_read_only":  "off",
		"default_transaction_deferrable": "off",
		"statement_timeout":              "0",
		"lock_timeout":                   "0",
		// A process that is gone without a word does not keep a stream locked.
		"idle_in_transaction_session_timeout": "15s",
		"tcp_keepalives_idle":                 "10",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "2",
		// Everything is found by an index, by few names or in order: so it stays
		// when statistics are old, as they are while much is being loaded.
		"enable_seqscan":    "off",
		"enable_hashjoin":   "off",
		"enable_mergejoin":  "off",
		"enable_bitmapscan": "off",
		"jit":               "off",
		"plan_cache_mode":   "force_generic_plan",
	}
	return p, nil
}

func newPool(c *config.Postgres, o *Options, name string, size int) (*pgxpool.Pool, error) {
	conn, err := connConfig(c, o.Schema)
	if err != nil {
		return nil, err
	}
	p, err := pgxpool.ParseConfig("postgres://localhost/?sslmode=disable")
	if err != nil {
		return nil, fmt.Errorf("make pool config: %w", err)
	}
	if dial := conn.DialFunc; o.wrap != nil {
		conn.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return o.wrap(c), nil
		}
	}
	conn.RuntimeParams["application_name"] = name
	p.ConnConfig = conn
	p.MaxConns, p.MinConns = int32(size), 0
	pool, err := pgxpool.NewWithConfig(context.Background(), p)
	if err != nil {
		return nil, fmt.Errorf("make pool: %w", err)
	}
	return pool, nil
}

// of is a statement on the tables of a stream: ops@ is the name of its ops.
func of(id model.StreamID, sql string) string {
	return strings.ReplaceAll(sql, "@", "_"+strconv.FormatInt(int64(id), 10))
}

// failed wraps the failure of a statement on the tables of a stream, which are
// there as long as its data is.
func failed(id model.StreamID, doing string, err error) error {
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Code == undefinedTable {
		return fmt.Errorf("%s: stream %d: %w", doing, id, store.ErrNoStream)
	}
	return fmt.Errorf("%s of stream %d: %w", doing, id, err)
}

const undefinedTable = "42P01"

// hash stands for a name.
type hash [16]byte

func hashOf(name string) hash {
	sum := sha256.Sum256([]byte(name))
	return hash(sum[:16])
}

// opID is an op id as Postgres has them; more is not given out.
func opID(id model.OpID) int64 { return int64(min(id, math.MaxInt64)) }

// transaction runs statements on one connection, from Store.begin on. Unless do
// commits, nothing happens.
func (s *Store) transaction(ctx context.Context, do func(conn *pgx.Conn) error) error {
	if s.epoch.Load() == 0 {
		return store.ErrNotOwner
	}
	conn, err := s.write.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// A connection that is within a transaction is closed by Release.
	defer conn.Release()
	if err := do(conn.Conn()); err != nil {
		if conn.Conn().PgConn().TxStatus() != 'I' {
			if _, rollback := conn.Exec(ctx, "ROLLBACK"); rollback != nil && !conn.Conn().IsClosed() {
				return errors.Join(fenced(err), rollback)
			}
		}
		return fenced(err)
	}
	return nil
}

// send runs the statements of a batch whose results nobody reads.
func send(ctx context.Context, conn *pgx.Conn, b *pgx.Batch) error {
	r := conn.SendBatch(ctx, b)
	for range b.Len() {
		if _, err := r.Exec(); err != nil {
			return errors.Join(err, ignored(r.Close()))
		}
	}
	return r.Close()
}

// ignored is nil: the error says again what another one says.
func ignored(error) error { return nil }

// Size asks for the bytes on disk, indexes and all.
func (s *Store) Size(ctx context.Context) (size store.Size, err error) {
	err = s.read.QueryRow(ctx, `
		SELECT coalesce(sum(size) FILTER (WHERE relname ~ '^(buckets|ops)_'), 0)::int8,
		       coalesce(sum(size) FILTER (WHERE relname ~ '^lookups_'), 0)::int8,
		       coalesce(sum(size) FILTER (WHERE relname ~ '^(records|progress)_'), 0)::int8
		FROM (SELECT relname, pg_total_relation_size(oid) AS size FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind = 'r') t`,
		pgx.Identifier{s.options.Schema}.Sanitize()).Scan(&size.Operations, &size.Parameters, &size.Replication)
	if err != nil {
		return size, fmt.Errorf("ask for the size: %w", err)
	}
	return size, nil
}

// Ping asks the database for a sign of life.
func (s *Store) Ping(ctx context.Context) error { return s.read.Ping(ctx) }
