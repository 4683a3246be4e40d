// Command replicator is the replicator as a process of its own.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/services/replicator"
)

func main() {
	os.Exit(process.Service{
		Name:        "replicator",
		MetricsPort: func(s *config.Sluice) int { return s.Replicator.MetricsPort },
		Run:         run,
	}.Main())
}

func run(ctx context.Context, f *config.File, env service.Env) error {
	cfg, err := replicator.FromFile(f)
	if err != nil {
		return err
	}
	store, err := rpc.DialReplicas(f.Sluice.BucketStore.Address, certificate.BucketStore, env)
	if err != nil {
		return err
	}
	defer store.Close()
	nc, err := stream.Connect(f.Sluice.NATSURL, env)
	if err != nil {
		return err
	}
	defer nc.Close()
	lis, err := net.Listen("tcp", f.Sluice.Replicator.Address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return replicator.Run(ctx, cfg, replicator.Conns{Store: store, NATS: nc, Listener: lis}, env)
}
