// Package bucketstore is the ledger of a deployment: it takes evaluated
// batches, commits them in the order of their chain, and serves what readers,
// replicators and the compactor need of it.
//
// Invariants:
//
//   - D3, D4, D5: see core/ledger and store; TestPipeline shows them through
//     the service, TestRestart over its end and new start.
//   - Nothing runs when Run has returned (TestMain checks it for every test).
//
// One process writes. The embedded store belongs to the process that opened
// its folder; a second one fails at once and says so. On a database every process
// serves reads, calls that write reach the owner from any of them, and another
// takes over when it is gone (TestReplicas).
package bucketstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/bucket-store/internal/api"
	"github.com/sluicesync/sluice/services/bucket-store/internal/lease"
	"github.com/sluicesync/sluice/services/bucket-store/internal/mongodb"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pebble"
	"github.com/sluicesync/sluice/services/bucket-store/internal/postgres"
	"github.com/sluicesync/sluice/services/bucket-store/internal/writer"
	"github.com/sluicesync/sluice/services/bucket-store/store"

	"google.golang.org/protobuf/proto"
)

// Config of bucket-store; zero means default.
type Config struct {
	// Dir is the folder of the embedded store. Required without a database.
	Dir string
	// Postgres or MongoDB is where the data is instead.
	Postgres *Postgres
	MongoDB  *MongoDB
	// Advertise is where the other processes on the same database reach this one
	// (host:port). "" = where it listens, with the host's name if that is
	// everywhere.
	Advertise string
	// CacheBytes is the memory for the store's blocks. 0 = 128 MiB.
	CacheBytes int64
	// BufferBytes is the memory, per stream, for batches that wait for an
	// earlier one. 0 = 64 MiB. The batch furthest ahead is sent back when it is
	// full.
	BufferBytes int
	// GroupBytes and GroupRows bound what one commit takes, except that it
	// always takes one batch. 0 = 16 MiB, 20,000 rows.
	GroupBytes, GroupRows int
	// Stall is how long a gap in the chain of batches may last before
	// replication begins again from what is applied. 0 = 15 s.
	Stall time.Duration
}

// Postgres is storage in a Postgres database.
type Postgres struct {
	// Connection; its pool's size bounds the connections, 0 = 8.
	Connection *config.Postgres
	// Schema that has the tables. "" = sluice.
	Schema string
	// RecordBytes bounds the records that one statement writes. 0 = 50 MB.
	RecordBytes int
	// Source: the database server is the source's as well.
	Source bool
	// NoMigration leaves migrations to Migrate.
	NoMigration bool
}

func (p *Postgres) options(log *slog.Logger) postgres.Options {
	return postgres.Options{
		Schema: p.Schema, MaxConns: p.Connection.MaxPoolSize, RecordBytes: p.RecordBytes, Source: p.Source, NoMigration: p.NoMigration, Log: log,
	}
}

// MongoDB is storage in a MongoDB database.
type MongoDB struct {
	Connection *config.MongoDB
	// NoMigration leaves it to Migrate to make the collections.
	NoMigration bool
}

func (m *MongoDB) options(log *slog.Logger) mongodb.Options {
	return mongodb.Options{NoMigration: m.NoMigration, Log: log}
}

// Validate returns every problem of the config at once.
func (c Config) Validate() error {
	var problems []error
	places := 0
	for _, given := range []bool{c.Dir != "", c.Postgres != nil, c.MongoDB != nil} {
		if given {
			places++
		}
	}
	if places != 1 {
		problems = append(problems, errors.New("bucket-store needs a folder or a database to keep its data in, and one of them"))
	}
	if c.Postgres != nil && c.Postgres.Connection == nil {
		problems = append(problems, errors.New("bucket-store: Postgres needs a connection"))
	}
	if c.MongoDB != nil && c.MongoDB.Connection == nil {
		problems = append(problems, errors.New("bucket-store: MongoDB needs a connection"))
	}
	if c.CacheBytes < 0 || c.BufferBytes < 0 || c.GroupBytes < 0 || c.GroupRows < 0 || c.Stall < 0 {
		problems = append(problems, errors.New("bucket-store: sizes and times cannot be negative"))
	}
	return errors.Join(problems...)
}

// Conns is what bucket-store is handed. It owns the listener.
type Conns struct {
	NATS     *nats.Conn
	Listener net.Listener
}

// Run serves until ctx ends or a part fails.
func Run(ctx context.Context, cfg Config, conns Conns, env service.Env) (err error) {
	defer func() { err = errors.Join(err, closeListener(conns.Listener)) }()
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Postgres != nil {
		return runPostgres(ctx, cfg, conns, env)
	}
	if cfg.MongoDB != nil {
		return runMongoDB(ctx, cfg, conns, env)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return fmt.Errorf("find folder %s: %w", cfg.Dir, err)
	}
	s, err := pebble.Open(dir, pebble.Options{CacheBytes: cfg.CacheBytes, Log: env.Log})
	if err != nil {
		err = opening(err)
		env.Health.SetReady(err)
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	// What waits for space on a full disk does not hold up the end.
	defer context.AfterFunc(ctx, s.GiveUp)()
	n, err := newNode(cfg, s, conns, env)
	if err != nil {
		return err
	}
	defer n.metrics.unregister()
	eg, ctx := errgroup.WithContext(ctx)
	defer env.Health.SetReady(errors.New("bucket-store is stopping"))
	ready := make(chan struct{})
	eg.Go(func() error {
		return n.write(ctx, nil, func(here bool) {
			if here {
				env.Health.Start()
				env.Health.SetReady(nil)
				close(ready)
			}
		})
	})
	eg.Go(func() error {
		select {
		case <-ready:
			return n.serve(ctx, n.api.Register)
		case <-ctx.Done():
			return nil
		}
	})
	return eg.Wait()
}

// Migrate brings the storage that cfg names up to date, or takes the last step
// back if down is set: unless there is data, or dropData is set.
func Migrate(ctx context.Context, cfg Config, log *slog.Logger, down, dropData bool) error {
	switch {
	case cfg.Postgres != nil:
		return postgres.Migrate(ctx, cfg.Postgres.Connection, cfg.Postgres.options(log), down, dropData)
	case cfg.MongoDB != nil:
		return mongodb.Migrate(ctx, cfg.MongoDB.Connection, cfg.MongoDB.options(log), down, dropData)
	}
	return nil // the embedded store has one form
}

// opening gives a failure to open the store its code, and says what to do.
func opening(err error) error {
	switch {
	case errors.Is(err, pebble.ErrInUse):
		return errs.New(errs.S2402, "%v: stop it, or give this one another folder (storage.path)", err)
	case errors.Is(err, store.ErrFull):
		return errs.New(errs.S2404, "%v: free some", err).Retryable()
	case errors.Is(err, store.ErrUnfinished):
		return errs.New(errs.S2404, "%v (sluice storage copy)", err)
	case errors.Is(err, store.ErrDamaged):
		return errs.New(errs.S2404, "%v: restore a backup of it, or move the folder away, and everything is replicated anew", err)
	}
	return err
}

// closeListener closes a listener that may be closed already.
func closeListener(l net.Listener) error {
	if l == nil {
		return nil
	}
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) && err.Error() != "closed" {
		return fmt.Errorf("close listener: %w", err)
	}
	return nil
}

// node is the service on an open store.
type node struct {
	cfg     Config
	store   store.Store
	conns   Conns
	env     service.Env
	metrics *metrics
	catalog api.Signal
	api     *api.API
	hub     atomic.Pointer[writer.Hub] // nil while another process writes
}

func newNode(cfg Config, s store.Store, conns Conns, env service.Env) (*node, error) {
	m, err := newMetrics(env.Metrics)
	if err != nil {
		return nil, err
	}
	n := &node{cfg: cfg, store: s, conns: conns, env: env, metrics: m}
	n.api = &api.API{Store: s, Log: env.Log, Now: time.Now, Catalog: &n.catalog, MakeBackup: backups(s, cfg.Dir), Trace: env.Trace}
	return n, nil
}

// serve serves calls until ctx ends.
func (n *node) serve(ctx context.Context, register func(grpc.ServiceRegistrar)) error {
	links := freshness.NewLinks(n.env.Log, nil).Add("nats", freshness.NATS(n.conns.NATS))
	if remote, ok := n.store.(interface{ Ping(context.Context) error }); ok { // an embedded one has no link
		links.Add("storage", remote.Ping)
	}
	if err := n.metrics.add(freshness.Beats(n.beats), links); err != nil {
		return err
	}
	eg, ctx := errgroup.WithContext(ctx)
	n.api.Done = ctx.Done()
	eg.Go(func() error { return rpc.Serve(ctx, n.conns.Listener, n.env, register) })
	eg.Go(func() error { return watch(ctx, n.store, n.cfg.Dir, n.metrics, n.env) })
	eg.Go(func() error { return links.Run(ctx) })
	return eg.Wait()
}

// beats are those of the streams that are written here.
func (n *node) beats() []freshness.Beat {
	if h := n.hub.Load(); h != nil {
		return h.Beats()
	}
	return nil
}

// write writes until ctx ends; here is told when it can, and when it cannot any
// more. sure is the hub's.
func (n *node) write(ctx context.Context, sure func() bool, here func(bool)) error {
	leases := lease.New(time.Now)
	hub, err := writer.New(ctx, n.store, writer.Options{
		Ledger: ledger.Options{BufferBytes: n.cfg.BufferBytes, GroupBytes: n.cfg.GroupBytes, GroupRows: n.cfg.GroupRows},
		Stall:  n.cfg.Stall,
		Publish: func(notice *model.CheckpointNotice, traceparent string) {
			if err := publish(n.conns.NATS, notice, traceparent); err != nil {
				// A hint only: gateways see the gap and read again (INV-29).
				n.metrics.untold.Inc()
				n.env.Log.Warn("checkpoint notice not published", "stream", notice.Stream, "checkpoint", notice.Checkpoint.Op, "error", err)
			} else {
				n.metrics.told.Inc()
			}
		},
		Sure:     sure,
		Revoke:   leases.Revoke,
		Catalog:  n.catalog.Wake,
		Observer: n.metrics.observer(),
		Log:      n.env.Log,
	})
	if err != nil {
		return err
	}
	n.hub.Store(hub)
	n.api.Writes(&api.Writing{Hub: hub, Leases: leases, Done: ctx.Done()})
	here(true)
	<-ctx.Done()
	here(false)
	hub.Close()
	n.hub.Store(nil)
	return nil
}

func publish(nc *nats.Conn, n *model.CheckpointNotice, traceparent string) error {
	data, err := proto.Marshal(wire.Notice(n))
	if err != nil {
		return fmt.Errorf("encode notice: %w", err)
	}
	if traceparent == "" {
		return nc.Publish(stream.CheckpointSubject(n.Stream), data)
	}
	return nc.PublishMsg(&nats.Msg{Subject: stream.CheckpointSubject(n.Stream), Data: data, Header: nats.Header{trace.Header: []string{traceparent}}})
}

// watchInterval is how often sizes and the service's life are looked at: twice in the
// time after which the liveness probe misses it.
const watchInterval = 5 * time.Second

// watch keeps the gauges that nobody else moves.
func watch(ctx context.Context, s store.Store, dir string, m *metrics, env service.Env) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		size, err := s.Size(ctx)
		if err != nil {
			env.Log.Warn("storage size is not known", "error", err)
		} else {
			m.sizes(size)
		}
		if dir != "" { // another store's disk is not ours to see
			if size, free, err := disk(dir); err != nil {
				env.Log.Warn("free disk space is not known", "error", err)
			} else {
				m.diskSize.Set(float64(size))
				m.diskFree.Set(float64(free))
			}
		}
		env.Health.Touch()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
