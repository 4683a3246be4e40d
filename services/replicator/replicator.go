// Package replicator turns the source's log into change batches: it holds the
// lease of each replication stream, copies the stream's tables, reads the log
// from where the copy began, and publishes what it reads as a chain of batches.
//
// Invariants:
//
//   - Decision 1: a position is confirmed to the source only after bucket-store
//     has committed it; whatever dies, reading begins again there (TestCrash).
//   - D4: every change reaches the chain exactly once (TestCrash,
//     publish.TestResumeAnywhere).
//   - D5: batches carry the epoch of the session that made them; who loses the
//     lease stops at once (TestTakeover).
//   - A transaction of any size takes bounded memory (TestHugeTransaction).
//   - It is not ready if a stream that is read stands still, whether or not
//     anything has failed (TestStandsStill).
package replicator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/replicator/internal/head"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
	"github.com/sluicesync/sluice/services/replicator/internal/source/postgres"
)

// Config says what to replicate.
type Config struct {
	// Connection to the source.
	Connection config.Connection
	// Heartbeat is the interval at which the source's log is made to move on; 0 =
	// 1 s, so that freshness can be seen.
	Heartbeat time.Duration
	// Stream of JetStream, which the replicator makes if it is not there.
	Stream stream.Options
}

// FromFile takes what concerns the replicator from the config file.
func FromFile(f *config.File) (Config, error) {
	if len(f.Connections) == 0 {
		return Config{}, errs.New(errs.S9001, "replication.connections is empty: there is nothing to replicate from")
	}
	c := Config{Connection: f.Connections[0]}
	if err := c.Validate(); err != nil {
		return Config{}, err
	}
	c.Heartbeat = c.Connection.Postgres.HeartbeatInterval
	return c, nil
}

// Validate returns every problem at once.
func (c Config) Validate() error {
	if c.Connection.Type != "postgresql" || c.Connection.Postgres == nil {
		return errs.New(errs.S9001, "replication from a source of type %q is not supported", c.Connection.Type)
	}
	return nil
}

// Conns is what the replicator is handed.
type Conns struct {
	Store    grpc.ClientConnInterface // bucket-store
	NATS     *nats.Conn
	Listener net.Listener // for its gRPC service; Run owns it
}

// Run replicates until ctx ends.
func Run(ctx context.Context, cfg Config, conns Conns, env service.Env) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Heartbeat <= 0 {
		cfg.Heartbeat = time.Second
	}
	src, err := postgres.New(cfg.Connection.Postgres, env.Log)
	if err != nil {
		return err
	}
	defer src.Close()
	return run(ctx, cfg, src, conns, env)
}

// replicator is the running service.
type replicator struct {
	cfg     Config
	src     source.Source
	js      jetstream.JetStream
	rep     pb.ReplicationClient
	catalog pb.CatalogClient
	env     service.Env
	metrics *metrics
	jobs    *jobs
	head    *head.Head
}

func run(ctx context.Context, cfg Config, src source.Source, conns Conns, env service.Env) error {
	js, err := jetstream.New(conns.NATS, jetstream.WithPublishAsyncMaxPending(1<<16), jetstream.WithPublishAsyncErrHandler(
		func(jetstream.JetStream, *nats.Msg, error) {})) // each publisher sees its own errors
	if err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	r := &replicator{
		cfg: cfg, src: src, js: js, rep: pb.NewReplicationClient(conns.Store), catalog: pb.NewCatalogClient(conns.Store),
		env: env, head: head.New(src, env.Log),
	}
	r.jobs = newJobs()
	links := freshness.NewLinks(env.Log, nil).
		Add("source", func(ctx context.Context) error {
			_, err := r.head.Position(ctx)
			return err
		}).
		Add("nats", freshness.NATS(conns.NATS)).
		Add("bucket-store", freshness.GRPC(conns.Store))
	if r.metrics, err = newMetrics(env.Metrics, r.jobs, links); err != nil {
		return err
	}
	defer r.metrics.unregister(env.Metrics)
	env.Health.Start()
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return r.head.Run(ctx) })
	eg.Go(func() error { return r.heartbeats(ctx) })
	eg.Go(func() error { return links.Run(ctx) })
	eg.Go(func() error { return r.watch(ctx) })
	if conns.Listener != nil {
		eg.Go(func() error {
			return rpc.Serve(ctx, conns.Listener, env, func(s grpc.ServiceRegistrar) { pb.RegisterSourceServer(s, &api{r: r}) })
		})
	}
	err = eg.Wait()
	env.Health.SetReady(errors.New("stopped"))
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// heartbeats writes markers while a stream is read, so that an idle source's
// log moves on and freshness can be measured.
func (r *replicator) heartbeats(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.Heartbeat)
	defer tick.Stop()
	alive := time.NewTicker(time.Second)
	defer alive.Stop()
	for {
		select {
		case <-tick.C:
		case <-alive.C:
			r.env.Health.Touch()
			r.jobs.assess()
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		if !r.jobs.anyReading() {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := r.src.Heartbeat(attempt, model.Micros(time.Now().UnixMicro()))
		cancel()
		if err != nil && ctx.Err() == nil {
			r.metrics.unbeaten.Inc()
			r.env.Log.Debug("cannot write heartbeat", "error", err)
		}
	}
}
