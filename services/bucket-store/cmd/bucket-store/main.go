// Command bucket-store is the ledger as a process of its own.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
)

func main() {
	os.Exit(process.Service{
		Name:        "bucket-store",
		MetricsPort: func(s *config.Sluice) int { return s.BucketStore.MetricsPort },
		Run:         run,
	}.Main())
}

func run(ctx context.Context, f *config.File, env service.Env) error {
	cfg, err := bucketstore.FromFile(f)
	if err != nil {
		return err
	}
	nc, err := stream.Connect(f.Sluice.NATSURL, env)
	if err != nil {
		return err
	}
	defer nc.Close()
	lis, err := net.Listen("tcp", f.Sluice.BucketStore.Address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return bucketstore.Run(ctx, cfg, bucketstore.Conns{NATS: nc, Listener: lis}, env)
}
