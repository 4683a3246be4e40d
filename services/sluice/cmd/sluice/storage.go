package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
)

type storageCmd struct {
	Backup  backupCmd  `cmd:"" help:"Make a backup while the instance runs, in the folder STORE-backups beside its store."`
	Restore restoreCmd `cmd:"" help:"Make the store, which must be empty or not be there, from a backup. The instance must not run."`
	Copy    copyCmd    `cmd:"" help:"Copy the storage into that of another config, of the same kind or another, which must be empty. Nothing may run on either."`
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

type copyCmd struct {
	To     string `required:"" placeholder:"FILE" help:"Service config whose storage is filled."`
	Data   string `placeholder:"DIR" help:"Data folder of the storage that is copied (sluice.data, SLUICE_DATA; default sluice-data)."`
	ToData string `placeholder:"DIR" help:"Data folder of the storage that is filled (sluice.data of --to)."`
	JSON   bool   `help:"Print what was copied as JSON."`
}

// copyTold is how often a copy says how far it is.
const copyTold = 5 * time.Second

func (d *copyCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	// By its path alone: what variables name is the other one.
	to, err := config.Load(config.Options{Path: d.To, SyncBase64: c.SyncBase64})
	if err != nil {
		return err
	}
	storage := func(f *config.File, data string) (bucketstore.Config, error) {
		if data != "" {
			f.Sluice.Data = filepath.Clean(data)
		}
		return bucketstore.FromFile(f)
	}
	source, err := storage(f, d.Data)
	if err != nil {
		return err
	}
	target, err := storage(to, d.ToData)
	if err != nil {
		return err
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	told := time.Now()
	pace := pace{begin: told}
	made, err := bucketstore.Copy(ctx, source, target, telemetry.Logger(t.err, f.Logging, "text"), func(p bucketstore.CopyProgress) {
		if now := time.Now(); now.Sub(told) >= copyTold {
			told = now
			fmt.Fprintln(t.err, pace.line(now, p))
		}
	})
	if err != nil {
		return err
	}
	if d.JSON {
		return t.json(map[string]any{"from": made.From, "to": made.To, "streams": made.Streams, "items": made.Items, "ms": made.Took.Milliseconds()})
	}
	fmt.Fprintf(t.out, "%s has what %s has: %d records, parameters, write checkpoints and operations, in %s\n", made.To, made.From, made.Items, made.Took.Round(time.Millisecond))
	for _, s := range made.Streams {
		fmt.Fprintln(t.out, s)
	}
	return nil
}

// pace estimates how long a copy takes.
type pace struct{ begin time.Time }

func (e pace) line(now time.Time, p bucketstore.CopyProgress) string {
	what := p.Doing
	if p.Stream != "" {
		what += " of " + p.Stream
	}
	line := fmt.Sprintf("%s: %d of %d in all", what, p.Done, p.Total)
	if p.Done > 0 && p.Total >= p.Done {
		left := time.Duration(float64(now.Sub(e.begin)) * float64(p.Total-p.Done) / float64(p.Done))
		line += fmt.Sprintf(" (%d%%), about %s left", p.Done*100/p.Total, left.Round(time.Second))
	}
	return line
}
