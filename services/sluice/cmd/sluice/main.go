// Command sluice runs Sluice in one process and looks after a running one.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/sluice/internal/admin"
)

// cli is the command line.
type cli struct {
	Config     string `short:"c" aliases:"config-path" placeholder:"FILE" help:"Service config (POWERSYNC_CONFIG_PATH; default powersync.yaml)."`
	ConfigB64  string `name:"config-base64" aliases:"c64" placeholder:"TEXT" help:"Service config as base64 (POWERSYNC_CONFIG_B64)."`
	SyncBase64 string `name:"sync-base64" aliases:"sync64" placeholder:"TEXT" help:"Sync config as base64 (POWERSYNC_SYNC_CONFIG_B64)."`

	Dev      devCmd      `cmd:"" help:"Run everything in one process: the five services, NATS and the embedded store."`
	Start    startCmd    `cmd:"" help:"Run everything in one process, by the command line of the reference server."`
	NATS     natsCmd     `cmd:"" name:"nats" help:"Run a NATS server alone."`
	Validate validateCmd `cmd:"" help:"Report every problem of the service config and of the sync config."`
	Explain  explainCmd  `cmd:"" help:"Say which stream or definition gives which bucket to a user, and which gives a row, and why not where it does not."`
	Diff     diffCmd     `cmd:"" help:"Say what deploying a sync config in place of another costs. Exits with 0 if nothing, 1 if they differ, 2 in trouble."`
	Deploy   deployCmd   `cmd:"" help:"Make the running instance use a sync config, and wait until it is active."`
	Rollback rollbackCmd `cmd:"" help:"Go back to the sync config that was active before, or give up the one that is not active yet."`
	Compact  compactCmd  `cmd:"" help:"Compact now, and wait until it is done."`
	Storage  storageCmd  `cmd:"" help:"Back up the embedded store of the running instance, restore a backup, and copy a storage into another."`
	Status   statusCmd   `cmd:"" help:"Show the pipeline with its freshness by stage; fails if it is stale."`
	Sessions sessionsCmd `cmd:"" help:"Show who is connected to each gateway, and how far behind."`
	Doctor   doctorCmd   `cmd:"" help:"Check the source, storage, keys, clocks, services and the way of clients, and print what mends what is wrong."`
	Test     testCmd     `cmd:"" name:"test-connection" help:"Check the connection to the source database."`
	Teardown teardownCmd `cmd:"" help:"Stop every stream, drop its slot and clear its data."`
	Token    tokenCmd    `cmd:"" help:"Mint a development token from the config's key."`
	Migrate  migrateCmd  `cmd:"" help:"Bring the storage database up to date, or take its last migration back."`
	Settings settingsCmd `cmd:"" name:"config" help:"Show settings as the services read them."`

	Certificates certificatesCmd `cmd:"" help:"Make a CA and a certificate for each service, to try out TLS between them (sluice.tls)."`
}

// terminal is where a command writes.
type terminal struct{ out, err io.Writer }

// json prints v for a program.
func (t terminal) json(v any) error {
	e := json.NewEncoder(t.out)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// The exit codes, which docs/cli.md lists.
const (
	exitFailed   = 1   // it was tried and did not work, or the answer is no
	exitUsage    = 2   // the command line cannot be understood
	exitNoAnswer = 3   // the instance cannot be reached, or does not take the token
	exitStart    = 150 // start ended with an error
)

// exitCode is the code for a command's error.
func exitCode(command string, err error) int {
	var away *admin.UnreachableError
	switch {
	case command == "start":
		return exitStart
	case errors.As(err, &away), errs.CodeOf(err) == errs.S2101, errs.CodeOf(err) == errs.S9020:
		return exitNoAnswer
	}
	return exitFailed
}

func (c *cli) load() (*config.File, error) {
	return config.Load(config.Options{Path: c.Config, Base64: c.ConfigB64, SyncBase64: c.SyncBase64})
}

func main() {
	os.Exit(run(os.Args[1:], terminal{os.Stdout, os.Stderr}))
}

// exit ends a command with another code than 1, and with a message if err is
// not nil.
type exit struct {
	code int
	err  error
}

func (e exit) Error() string { return fmt.Sprintf("exit code %d: %v", e.code, e.err) }

// run runs one command and returns the exit code.
func run(args []string, t terminal) int {
	var c cli
	exited := -1
	k, err := kong.New(&c, kong.Name("sluice"), kong.Description("Keeps SQLite databases on users' devices in step with a backend database."),
		kong.Vars{"identities": config.DefaultIdentities}, kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.Writers(t.out, t.err),
		kong.Exit(func(code int) { exited = code }))
	if err != nil {
		fmt.Fprintln(t.err, "sluice:", err)
		return exitFailed
	}
	ctx, err := k.Parse(args)
	if exited >= 0 {
		return exited // help was shown
	}
	if err != nil {
		fmt.Fprintln(t.err, "sluice:", err)
		return exitUsage
	}
	if err := ctx.Run(&c, t); err != nil {
		var e exit
		if errors.As(err, &e) {
			if e.err != nil {
				fmt.Fprintln(t.err, "sluice:", errs.Cause(e.err))
			}
			return e.code
		}
		fmt.Fprintln(t.err, "sluice:", errs.Cause(err))
		return exitCode(ctx.Command(), err)
	}
	return 0
}
