package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
)

type storageCmd struct {
	Backup  backupCmd  `cmd:"" help:"Make a backup while the instance runs, in the folder STORE-backups beside its store."`
	Restore restoreCmd `cmd:"" help:"Make the store, which must be empty or not be there, from a backup. The instance must not run."`
}

type backupCmd struct {
	instance
	Name string `arg:"" optional:"" help:"Name of the backup; default the time."`
}

func (b *backupCmd) Run(c *cli, t terminal) error {
	a, _, err := b.client(c)
	if err != nil {
		return err
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	made, err := a.Backup(ctx, b.Name)
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "%s: %d files, %d bytes\n", made.Path, made.Files, made.Bytes)
	return nil
}

type restoreCmd struct {
	Backup string `arg:"" help:"Folder of the backup."`
	Data   string `placeholder:"DIR" help:"Data folder (sluice.data, SLUICE_DATA; default sluice-data)."`
}

func (r *restoreCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	if r.Data != "" {
		f.Sluice.Data = filepath.Clean(r.Data)
	}
	cfg, err := bucketstore.FromFile(f)
	if err != nil {
		return err
	}
	made, err := bucketstore.Restore(cfg, r.Backup, telemetry.Logger(t.err, f.Logging, "text"))
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out, "%s is as it was at %s: %d bytes\n", made.Dir, made.Created.Format("2006-01-02 15:04:05 MST"), made.Bytes)
	for _, s := range made.Streams {
		fmt.Fprintln(t.out, s)
	}
	return nil
}
