// Command sync-gateway is a gateway as a process of its own.
package main

import (
	"cmp"
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
	gateway "github.com/sluicesync/sluice/services/sync-gateway"
)

func main() {
	os.Exit(process.Service{
		Name:        "sync-gateway",
		MetricsPort: func(s *config.Sluice) int { return s.Gateway.MetricsPort },
		Run:         run,
	}.Main())
}

func run(ctx context.Context, f *config.File, env service.Env) error {
	store, err := rpc.DialReplicas(f.Sluice.BucketStore.Address, certificate.BucketStore, env)
	if err != nil {
		return err
	}
	defer store.Close()
	source, err := rpc.Dial(f.Sluice.Replicator.Address, certificate.Replicator, env)
	if err != nil {
		return err
	}
	defer source.Close()
	compactor, err := rpc.Dial(f.Sluice.Compactor.Address, certificate.Compactor, env)
	if err != nil {
		return err
	}
	defer compactor.Close()
	nc, err := stream.Connect(f.Sluice.NATSURL, env)
	if err != nil {
		return err
	}
	defer nc.Close()
	lis, err := net.Listen("tcp", fmt.Sprintf(":%d", cmp.Or(f.Sluice.Gateway.Port, f.Port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return gateway.Run(ctx, gateway.FromFile(f), gateway.Conns{Store: store, Source: source, Compactor: compactor, NATS: nc, Listener: lis}, env)
}
