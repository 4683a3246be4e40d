package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sluice/internal/doctor"
	"github.com/sluicesync/sluice/services/sluice/internal/token"
)

type testCmd struct {
	JSON bool `help:"Print what was found as JSON."`
}

func (x *testCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	return report(t, x.JSON, doctor.Source(context.Background(), f, nil)[:1])
}

type doctorCmd struct {
	instance
	Via  string `placeholder:"URL" help:"The address that clients use, through every proxy: whether streams and WebSockets pass."`
	JSON bool   `help:"Print what was found as JSON."`
}

// clientToken has a client's token for --via, if the config has no key to mint one.
const clientToken = "SLUICE_CLIENT_TOKEN"

func (d *doctorCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	ctx := context.Background()
	found := []doctor.Result{settings(f)}
	instance, client := d.instanceChecks(ctx, f)
	tables, result := d.tables(ctx, f)
	found = append(found, result)
	found = append(found, doctor.Source(ctx, f, tables)...)
	found = append(found, doctor.Storage(f))
	found = append(found, doctor.Keys(ctx, f)...)
	found = append(found, doctor.Services(ctx, f)...)
	found = append(found, instance...)
	if a, err := d.of(f); err == nil {
		found = append(found, doctor.Gateway(ctx, client, a.URL))
	}
	found = append(found, d.path(ctx, f)...)
	return report(t, d.JSON, found)
}

// settings is what the config itself is like.
func settings(f *config.File) doctor.Result {
	r := doctor.Result{Check: "config", State: doctor.OK, Detail: f.Name, Fixes: []string{}}
	var texts []string
	for _, w := range f.Warnings {
		texts = append(texts, f.Name+":"+w.String())
	}
	if err := usable(f.Sluice.Gateway.TLS); err != nil {
		texts = append(texts, "sluice.gateway.tls: "+err.Error())
	}
	if len(texts) > 0 {
		r.State, r.Detail = doctor.Warning, strings.Join(texts, "\n")
	}
	return r
}

// instanceChecks asks the instance how it is. client speaks with it; nil = the
// default one.
func (d *doctorCmd) instanceChecks(ctx context.Context, f *config.File) (out []doctor.Result, client *http.Client) {
	r := doctor.Result{Check: "instance", Fixes: []string{}}
	a, err := d.of(f)
	if err != nil {
		r.State, r.Detail = doctor.Skipped, errs.Cause(err)
		return []doctor.Result{r}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, _, err := a.Status(ctx)
	var op *net.OpError
	switch {
	case errors.As(err, &op) && d.URL == "":
		r.State, r.Detail = doctor.Skipped, "nothing listens at "+a.URL+": is it running? --url says where"
	case err != nil:
		r.State, r.Detail = doctor.Failed, errs.Cause(err)
	case !s.Healthy:
		r.State, r.Fixes = doctor.Failed, append(r.Fixes, "sluice status")
		var stale []string
		for _, g := range s.Stages {
			if !g.OK {
				stale = append(stale, g.Name+": "+g.Detail)
			}
		}
		r.Detail = "stale: " + strings.Join(stale, "; ")
		for _, x := range s.Streams {
			if x.Copy != nil && len(s.Streams) == 1 {
				r.State, r.Fixes, r.Detail = doctor.Warning, nil, x.Name+": "+x.Copy.String()
			}
		}
	default:
		r.State, r.Detail = doctor.OK, a.URL+", every stage is fresh"
	}
	return []doctor.Result{r}, a.HTTP
}

// tables are those of the configured sync config, or else of the deployed one.
func (d *doctorCmd) tables(ctx context.Context, f *config.File) ([]model.TablePattern, doctor.Result) {
	r := doctor.Result{Check: "sync config", State: doctor.OK, Fixes: []string{}}
	text, name, ok, err := f.SyncText()
	if err == nil && !ok {
		if a, aerr := d.of(f); aerr == nil {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			text, _ = a.Config(ctx) // none, if it cannot be asked: said elsewhere
			name, ok = "deployed", text != ""
		}
	}
	switch {
	case err != nil:
		r.State, r.Detail = doctor.Failed, err.Error()
		return nil, r
	case !ok:
		r.State, r.Detail = doctor.Skipped, "none is configured, and none is known to be deployed"
		return nil, r
	}
	o := rules.Options{DefaultSchema: f.DefaultSchema()}
	plan, _ := rules.Compile(text, o)
	if plan == nil {
		r.State, r.Detail, r.Fixes = doctor.Failed, name+" is not valid", append(r.Fixes, "sluice validate")
		return nil, r
	}
	r.Detail = name
	return plan.SourceTables(), r
}

// path looks at the way of clients.
func (d *doctorCmd) path(ctx context.Context, f *config.File) []doctor.Result {
	if d.Via == "" {
		return []doctor.Result{{Check: "path of clients", State: doctor.Skipped, Detail: "give the address that clients use with --via", Fixes: []string{}}}
	}
	secret := os.Getenv(clientToken)
	if secret == "" {
		var err error
		if secret, err = token.Mint(f.Auth, token.Request{User: "sluice-doctor", TTL: 5 * time.Minute, Now: time.Now()}); err != nil {
			return []doctor.Result{{Check: "path of clients", State: doctor.Skipped, Detail: "a client's token is needed: " + err.Error(), Fixes: []string{"export " + clientToken + "=<a token of your auth service>"}}}
		}
	}
	return doctor.Path(ctx, d.Via, secret)
}

// report prints what was found, then every fix, and fails if something did.
func report(t terminal, asJSON bool, found []doctor.Result) error {
	err := doctor.Worst(found)
	if asJSON {
		return errors.Join(t.json(map[string]any{"ok": err == nil, "checks": found}), err)
	}
	tw := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CHECK\tSTATE\tDETAIL")
	for _, r := range found {
		for n, line := range strings.Split(r.Detail, "\n") {
			if n == 0 {
				fmt.Fprintf(tw, "%s\t%s\t%s\n", r.Check, r.State, line)
			} else {
				fmt.Fprintf(tw, "\t\t%s\n", line)
			}
		}
	}
	if ferr := tw.Flush(); ferr != nil {
		return fmt.Errorf("print the report: %w", ferr)
	}
	for _, r := range found {
		if len(r.Fixes) > 0 {
			fmt.Fprintf(t.out, "\n# %s\n%s\n", r.Check, strings.Join(r.Fixes, "\n"))
		}
	}
	return err
}
