package main

import (
	"context"
	"fmt"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	"github.com/sluicesync/sluice/services/sluice/internal/dev"
)

type teardownCmd struct {
	instance
	Confirm string        `arg:"" optional:"" help:"The word TEARDOWN."`
	Offline bool          `help:"No instance runs: do it from here, with the embedded store of the data folder."`
	Timeout time.Duration `default:"5m" help:"How long to wait until everything is cleaned up."`
	JSON    bool          `help:"Print what was torn down as JSON."`
}

// teardownPoll is how often it is looked how far a teardown is.
const teardownPoll = 200 * time.Millisecond

func (d *teardownCmd) Run(c *cli, t terminal) error {
	if d.Confirm != "TEARDOWN" {
		return errs.New(errs.S0102, "teardown drops the replication slots and all replicated data: to do that, run sluice teardown TEARDOWN")
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	var gone []string
	if d.Offline {
		f, err := c.load()
		if err != nil {
			return err
		}
		if gone, err = dev.Teardown(ctx, f, telemetry.Logger(t.err, f.Logging, "text")); err != nil {
			return err
		}
	} else {
		a, _, err := d.client(c)
		if err != nil {
			return err
		}
		left, err := a.Teardown(ctx)
		if err != nil {
			return err
		}
		gone = left
		for told := time.Now(); len(left) > 0; {
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait until %d streams are cleaned up: %w; the replicator goes on with it", len(left), ctx.Err())
			case <-time.After(teardownPoll):
			}
			if left, err = a.Teardown(ctx); err != nil {
				return err
			}
			if time.Since(told) > 5*time.Second {
				told = time.Now()
				fmt.Fprintf(t.err, "%d of %d streams are left to clean up\n", len(left), len(gone))
			}
		}
	}
	if d.JSON {
		return t.json(map[string][]string{"removed": append([]string{}, gone...)})
	}
	for _, name := range gone {
		fmt.Fprintf(t.out, "%s: stopped, its slot dropped and its data cleared\n", name)
	}
	fmt.Fprintln(t.out, `nothing is left but the publication, which is yours: DROP PUBLICATION "powersync";`)
	return nil
}
