package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	"github.com/sluicesync/sluice/services/sluice/internal/dev"
	"github.com/sluicesync/sluice/services/sluice/internal/nats"
)

type devCmd struct {
	Data string `placeholder:"DIR" help:"Data folder (sluice.data, SLUICE_DATA; default sluice-data)."`
}

func (d *devCmd) Run(c *cli, t terminal) error { return d.run(c, t, "text") }

// run logs in a format unless the config says otherwise.
func (d *devCmd) run(c *cli, t terminal, format string) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	if d.Data != "" {
		f.Sluice.Data = filepath.Clean(d.Data)
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	log := telemetry.Logger(t.err, f.Logging, format)
	process.LogWarnings(log, f)
	if err := dev.Run(ctx, f, log); err != nil {
		return err
	}
	log.Info("Sluice has stopped")
	return nil
}

type startCmd struct {
	devCmd
	Runner string `short:"r" env:"PS_RUNNER_TYPE" default:"unified" enum:"unified,api,sync" placeholder:"TYPE" help:"What to run: unified is everything. For api run sync-gateway, for sync the other services."`
}

func (s *startCmd) Run(c *cli, t terminal) error {
	switch s.Runner {
	case "api":
		return errors.New("start -r api: the service that answers clients is a program of its own: run sync-gateway --config FILE instead")
	case "sync":
		return errors.New("start -r sync: these are programs of their own: run bucket-store, replicator, rules-evaluator and compactor, each with --config FILE, and a NATS server (sluice nats)")
	}
	return s.run(c, t, telemetry.Format())
}

type natsCmd struct {
	Data  string `placeholder:"DIR" help:"Data folder (sluice.data, SLUICE_DATA; default sluice-data)."`
	Roles bool   `help:"Run nothing; print what a NATS server of your own needs in its configuration to know the roles of certificates."`
}

func (n *natsCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	if n.Roles {
		fmt.Fprint(t.out, nats.Settings(f.Sluice.TLS.Identities))
		return nil
	}
	if n.Data == "" {
		n.Data = f.Sluice.Data
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	log := telemetry.Logger(t.err, f.Logging, telemetry.Format())
	shown, err := certificate.ForService(f.Sluice.TLS, certificate.NATS, log)
	if err != nil {
		return err
	}
	return process.WithTLS(ctx, shown, func(ctx context.Context) error {
		return nats.Run(ctx, n.Data, f.Sluice.NATSURL, shown, log)
	})
}
