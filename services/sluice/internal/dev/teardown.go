package dev

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	gonats "github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
	"github.com/sluicesync/sluice/services/replicator"
	"github.com/sluicesync/sluice/services/sluice/internal/nats"
)

// teardownPoll is how often Teardown looks how far it is.
const teardownPoll = 50 * time.Millisecond

// Teardown stops every stream of the instance that f describes, which must not
// run, drops their slots and clears their data. It returns their names. What is
// not done when ctx ends is done when it is called again.
func Teardown(ctx context.Context, f *config.File, log *slog.Logger) (gone []string, err error) {
	storeCfg, err := bucketstore.FromFile(f)
	if err != nil {
		return nil, err
	}
	sourceCfg, err := replicator.FromFile(f)
	if err != nil {
		return nil, err
	}
	if storeCfg.Dir != "" {
		if _, err := os.Stat(storeCfg.Dir); err != nil {
			return nil, fmt.Errorf("find the store: %w", err)
		}
		if storeCfg.Dir, err = filepath.Abs(storeCfg.Dir); err != nil {
			return nil, fmt.Errorf("find the store: %w", err)
		}
	}
	// What passes here is of no use afterwards.
	folder, err := os.MkdirTemp("", "sluice-teardown-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for NATS: %w", err)
	}
	defer os.RemoveAll(folder)
	ns, err := nats.Start(folder, "", nil, log)
	if err != nil {
		return nil, err
	}
	defer nats.Stop(ns)
	env := func(name string) service.Env {
		return telemetry.Env(name, telemetry.Instance(), nil, log, telemetry.Registry())
	}
	storeEnv, sourceEnv := env("bucket-store"), env("replicator")
	nc, err := stream.Connect("", sourceEnv, gonats.InProcessServer(ns))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	lis, store := rpc.Pipe()
	defer store.Close()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error {
		return bucketstore.Run(ctx, storeCfg, bucketstore.Conns{NATS: nc, Listener: lis}, storeEnv)
	})
	eg.Go(func() error {
		defer stop() // also ends the others
		catalog := pb.NewCatalogClient(store)
		// Before there is a replicator, so that nothing is replicated any more.
		left, err := catalog.Teardown(ctx, &pb.TeardownRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("stop the streams: %w", err)
		}
		for _, s := range left.GetStreams() {
			gone = append(gone, s.GetName())
		}
		eg.Go(func() error {
			return replicator.Run(ctx, sourceCfg, replicator.Conns{Store: store, NATS: nc}, sourceEnv)
		})
		tick := time.NewTicker(teardownPoll)
		defer tick.Stop()
		for len(left.GetStreams()) > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("wait until %d streams are cleaned up: %w", len(left.GetStreams()), ctx.Err())
			}
			if left, err = catalog.Teardown(ctx, &pb.TeardownRequest{}); err != nil {
				return fmt.Errorf("look at the streams: %w", err)
			}
		}
		return nil
	})
	err = eg.Wait()
	return gone, err
}
