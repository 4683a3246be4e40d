// Package dev runs all five services and NATS in one process, connected in
// memory, on one data folder. The services are the same code as on their own:
// they are handed connections.
//
// Invariants:
//
//   - Whatever part fails, everything stops and its error is returned; nothing
//     is left running (TestPartFails, TestRun, and TestMain for all).
//   - Parts stop one after the other, clients first and the store last, so that
//     each drains into what is still there (TestStopOrder).
package dev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	gonats "github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/serve"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
	"github.com/sluicesync/sluice/services/compactor"
	"github.com/sluicesync/sluice/services/replicator"
	evaluator "github.com/sluicesync/sluice/services/rules-evaluator"
	"github.com/sluicesync/sluice/services/sluice/internal/nats"
	gateway "github.com/sluicesync/sluice/services/sync-gateway"
)

// Run runs everything that f describes, on f.Sluice.Data, until ctx ends (nil)
// or a part fails (its error).
func Run(ctx context.Context, f *config.File, log *slog.Logger) error {
	storeCfg, err := bucketstore.FromFile(f)
	if err != nil {
		return err
	}
	sourceCfg, err := replicator.FromFile(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.Sluice.Data, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	if storeCfg.Dir != "" {
		if storeCfg.Dir, err = filepath.Abs(storeCfg.Dir); err != nil {
			return fmt.Errorf("find the data folder: %w", err)
		}
	}
	lis, err := net.Listen("tcp", fmt.Sprintf(":%d", cmp.Or(f.Sluice.Gateway.Port, f.Port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	private, err := serve.Listen(f.Telemetry.PrometheusPort)
	if err != nil {
		return errors.Join(err, lis.Close())
	}
	// From here on both are closed by whom they are handed to, or here.
	closeBoth := func(err error) error {
		if private != nil {
			err = errors.Join(err, private.Close())
		}
		return errors.Join(err, lis.Close())
	}
	ns, err := nats.Start(f.Sluice.Data, "", nil, log)
	if err != nil {
		return closeBoth(err)
	}
	defer nats.Stop(ns)

	registry := telemetry.Registry()
	healths := map[string]*service.Health{}
	instance := telemetry.Instance()
	export, err := telemetry.NewExport(ctx, "sluice", instance, f, registry, log)
	if err != nil {
		return closeBoth(err)
	}
	defer process.CloseExport(ctx, export, log)
	env := func(name string) service.Env {
		e := telemetry.Env(name, instance, nil, log, prometheus.WrapRegistererWith(prometheus.Labels{"service": name}, registry))
		e.Trace = export.Tracer(name)
		healths[name] = e.Health
		return e
	}
	storeEnv, compactorEnv, sourceEnv, evaluatorEnv, gatewayEnv := env("bucket-store"), env("compactor"), env("replicator"), env("rules-evaluator"), env("sync-gateway")

	// Each service has a connection of its own, as it would in another process.
	var conns []*gonats.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for _, e := range []service.Env{storeEnv, sourceEnv, evaluatorEnv, gatewayEnv} {
		c, err := stream.Connect("", e, gonats.InProcessServer(ns))
		if err != nil {
			return closeBoth(err)
		}
		conns = append(conns, c)
	}
	storeLis, store := rpc.Pipe()
	defer store.Close()
	sourceLis, source := rpc.Pipe()
	defer source.Close()
	compactorLis, compact := rpc.Pipe()
	defer compact.Close()

	parts := []part{
		{"bucket-store", func(ctx context.Context) error {
			return bucketstore.Run(ctx, storeCfg, bucketstore.Conns{NATS: conns[0], Listener: storeLis}, storeEnv)
		}},
		{"compactor", func(ctx context.Context) error {
			return compactor.Run(ctx, compactor.FromFile(f), compactor.Conns{Store: store, Listener: compactorLis}, compactorEnv)
		}},
		{"rules-evaluator", func(ctx context.Context) error {
			return evaluator.Run(ctx, evaluator.FromFile(f), evaluator.Conns{Store: store, NATS: conns[2]}, evaluatorEnv)
		}},
		{"replicator", func(ctx context.Context) error {
			return replicator.Run(ctx, sourceCfg, replicator.Conns{Store: store, NATS: conns[1], Listener: sourceLis}, sourceEnv)
		}},
		{"sync-gateway", func(ctx context.Context) error {
			return gateway.Run(ctx, gateway.FromFile(f), gateway.Conns{Store: store, Source: source, Compactor: compact, NATS: conns[3], Listener: lis}, gatewayEnv)
		}},
	}
	log.Info("Sluice is starting", "url", f.Sluice.Gateway.URL(lis.Addr().(*net.TCPAddr).Port), "data", f.Sluice.Data)
	return process.Run(ctx, private, f.Probes, registry, log, healths, func(ctx context.Context) error {
		return supervise(ctx, parts)
	})
}

// part is a service as supervise sees it.
type part struct {
	name string
	run  func(context.Context) error
}

// supervise runs parts until ctx ends or one of them does, then stops the
// others one after the other, the last first.
func supervise(ctx context.Context, parts []part) error {
	type running struct {
		stop context.CancelFunc
		done chan struct{}
		err  error // set before done is closed
	}
	all := make([]*running, len(parts))
	ended := make(chan int, len(parts)) // one value a part
	for i, p := range parts {
		// Not of ctx: each is stopped in its turn.
		pctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		r := &running{stop: stop, done: make(chan struct{})}
		all[i] = r
		go func() {
			r.err = p.run(pctx)
			close(r.done)
			ended <- i
		}()
	}
	first := -1
	select {
	case <-ctx.Done():
	case first = <-ended:
	}
	var errs []error
	if first >= 0 {
		if err := all[first].err; err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", parts[first].name, err))
		} else {
			errs = append(errs, fmt.Errorf("%s ended by itself", parts[first].name))
		}
	}
	for i := len(parts) - 1; i >= 0; i-- {
		all[i].stop()
		<-all[i].done
		if i != first && all[i].err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", parts[i].name, all[i].err))
		}
	}
	return errors.Join(errs...)
}
