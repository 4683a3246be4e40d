// Command compactor is the compactor as a process of its own.
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
	"github.com/sluicesync/sluice/services/compactor"
)

func main() {
	os.Exit(process.Service{
		Name:        "compactor",
		MetricsPort: func(s *config.Sluice) int { return s.Compactor.MetricsPort },
		Run:         run,
	}.Main())
}

func run(ctx context.Context, f *config.File, env service.Env) error {
	store, err := rpc.DialReplicas(f.Sluice.BucketStore.Address, certificate.BucketStore, env)
	if err != nil {
		return err
	}
	defer store.Close()
	lis, err := net.Listen("tcp", f.Sluice.Compactor.Address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return compactor.Run(ctx, compactor.FromFile(f), compactor.Conns{Store: store, Listener: lis}, env)
}
