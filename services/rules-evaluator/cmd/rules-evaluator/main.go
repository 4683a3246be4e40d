// Command rules-evaluator is an evaluator as a process of its own.
package main

import (
	"context"
	"os"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	evaluator "github.com/sluicesync/sluice/services/rules-evaluator"
)

func main() {
	os.Exit(process.Service{
		Name:        "rules-evaluator",
		MetricsPort: func(s *config.Sluice) int { return s.Evaluator.MetricsPort },
		Run:         run,
	}.Main())
}

func run(ctx context.Context, f *config.File, env service.Env) error {
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
	return evaluator.Run(ctx, evaluator.FromFile(f), evaluator.Conns{Store: store, NATS: nc}, env)
}
