package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/sluicesync/sluice/libs/kit/process"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
)

type migrateCmd struct {
	Up   migrateUpCmd   `cmd:"" help:"Do the migrations that are missing."`
	Down migrateDownCmd `cmd:"" help:"Take the last migration back."`
}

type migrateUpCmd struct{}

func (*migrateUpCmd) Run(c *cli, t terminal) error { return migrate(c, t, false, false) }

type migrateDownCmd struct {
	DropData bool `name:"drop-data" help:"Also if the storage has replication streams: they are lost, and everything is copied anew."`
}

func (m *migrateDownCmd) Run(c *cli, t terminal) error { return migrate(c, t, true, m.DropData) }

func migrate(c *cli, t terminal, down, dropData bool) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	cfg, err := bucketstore.FromFile(f)
	if err != nil {
		return err
	}
	if cfg.Postgres == nil && cfg.MongoDB == nil {
		fmt.Fprintln(t.out, "the embedded store needs no migrations")
		return nil
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	if err := bucketstore.Migrate(ctx, cfg, slog.New(slog.NewTextHandler(t.err, nil)), down, dropData); err != nil {
		return err
	}
	done := "is up to date"
	if down {
		done = "has one migration less"
	}
	if cfg.MongoDB != nil {
		fmt.Fprintf(t.out, "the storage database %s %s\n", cfg.MongoDB.Connection.Redacted(), done)
		return nil
	}
	fmt.Fprintf(t.out, "the schema %s of %s %s\n", cfg.Postgres.Schema, cfg.Postgres.Connection.Redacted(), done)
	return nil
}
