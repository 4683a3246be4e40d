package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/process"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sluice/internal/admin"
	"github.com/sluicesync/sluice/services/sluice/internal/token"
)

type validateCmd struct {
	instance
	Offline bool   `help:"Do not ask a running instance for the tables of the source."`
	JSON    bool   `help:"Print the problems as JSON."`
	File    string `arg:"" optional:"" help:"Sync config to check instead of the configured one."`
}

func (v *validateCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	found, broken := findings{}, false
	var problems *config.Error
	switch {
	case errors.As(err, &problems):
		broken = true
		for _, p := range problems.Problems {
			found = append(found, configFinding(problems.Name, p, true))
		}
	case err != nil:
		return err
	default:
		for _, w := range f.Warnings {
			found = append(found, configFinding(f.Name, w, false))
		}
		if err := usable(f.Sluice.Gateway.TLS); err != nil {
			// A warning: it may be there only where the gateway is.
			found = append(found, finding{File: f.Name, Message: "sluice.gateway.tls: " + err.Error()})
		}
		for _, role := range certificate.Roles {
			if _, err := certificate.ForService(f.Sluice.TLS, role, slog.New(slog.DiscardHandler)); err != nil {
				fmt.Fprintf(t.out, "%s: %s (warning)\n", f.Name, err)
			}
		}
	}
	text, name, ok, err := syncText(f, v.File)
	if err != nil {
		return err
	}
	source := ""
	if ok {
		var schema *rules.Schema
		schema, source = v.schema(f)
		found = append(found, check(text, name, rules.Options{DefaultSchema: defaultSchema(f), Schema: schema})...)
	}
	valid := found.valid()
	if v.JSON {
		if err := t.json(map[string]any{"valid": valid, "problems": found, "source": source}); err != nil {
			return err
		}
	} else {
		found.print(t.out)
		if source != "" {
			fmt.Fprintln(t.out, source)
		}
	}
	switch {
	case !valid:
		return errors.New("not valid")
	case v.JSON || broken:
	case !ok:
		fmt.Fprintf(t.out, "%s is valid; it names no sync config\n", f.Name)
	default:
		fmt.Fprintf(t.out, "%s and %s are valid\n", f.Name, name)
	}
	return nil
}

// finding is something to be said of a file.
type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Fatal   bool   `json:"fatal"`
	Message string `json:"message"`
}

func configFinding(file string, p config.Problem, fatal bool) finding {
	text := p
	text.Line, text.Column = 0, 0
	return finding{File: file, Line: p.Line, Column: p.Column, Fatal: fatal, Message: text.String()}
}

// findings are what is to be said.
type findings []finding

// valid reports whether what they are of can be used.
func (fs findings) valid() bool {
	return !slices.ContainsFunc(fs, func(f finding) bool { return f.Fatal })
}

// print prints them, one a line, and returns valid.
func (fs findings) print(w io.Writer) bool {
	for _, f := range fs {
		place, note := f.File, " (warning)"
		if f.Line > 0 {
			place = fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column)
		}
		if f.Fatal {
			note = ""
		}
		fmt.Fprintf(w, "%s: %s%s\n", place, f.Message, note)
	}
	return fs.valid()
}

// usable reports what keeps a gateway on this machine from serving TLS.
func usable(t config.TLS) error {
	if !t.On() {
		return nil
	}
	certificate, key, err := t.Pair()
	if err == nil {
		_, err = tls.X509KeyPair(certificate, key)
	}
	return err
}

// schemaTimeout is how long an instance may take to tell the source's schema.
const schemaTimeout = 10 * time.Second

// schema asks the instance of f for the source's schema. It returns it, or nil,
// and what to tell the user of that.
func (v *validateCmd) schema(f *config.File) (schema *rules.Schema, told string) {
	err := errors.New("--offline is given")
	if !v.Offline {
		var a *admin.Client
		if f == nil {
			err = errors.New("the service config does not say where the instance is")
		} else if a, err = v.of(f); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), schemaTimeout)
			defer cancel()
			if schema, err = a.Schema(ctx); err == nil {
				return schema, "tables and columns were checked against the source, as the instance at " + a.URL + " sees it"
			}
		}
	}
	return nil, fmt.Sprintf("tables and columns were not checked against the source: %s", errs.Cause(err))
}

// syncText is the sync config in file, or else the one of f, which may be nil,
// and what to call it; ok is false if there is none.
func syncText(f *config.File, file string) (text, name string, ok bool, err error) {
	switch {
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return "", file, true, fmt.Errorf("read the sync config: %w", err)
		}
		return string(b), file, true, nil
	case f != nil:
		return f.SyncText()
	}
	return "", "", false, nil
}

// defaultSchema is that of f, which may be nil.
func defaultSchema(f *config.File) string {
	if f == nil {
		return "public"
	}
	return f.DefaultSchema()
}

// check returns everything that is to be said of a sync config.
func check(text, name string, o rules.Options) findings {
	plan, diagnostics := rules.Compile(text, o)
	out := findings{}
	for _, d := range diagnostics {
		out = append(out, finding{File: name, Line: d.Line, Column: d.Column, Fatal: d.Fatal, Message: d.Message})
	}
	if plan == nil && out.valid() {
		out = append(out, finding{File: name, Fatal: true, Message: "cannot be used"})
	}
	return out
}

// instance are the flags of commands that speak with a running instance.
type instance struct {
	URL string `env:"SLUICE_URL" placeholder:"URL" help:"Where the instance is; default 127.0.0.1 and what the config says of the gateway."`
}

// tokenVariable has a token that is used instead of the config's first.
const tokenVariable = "SLUICE_TOKEN"

// client is the instance that the config, or flag and environment, describe. f
// is nil if there is no config, and needs not be one.
func (i *instance) client(c *cli) (a *admin.Client, f *config.File, err error) {
	f, err = c.load()
	if err != nil && (i.URL == "" || os.Getenv(tokenVariable) == "" || c.Config != "" || c.ConfigB64 != "") {
		return nil, nil, err
	}
	a, err = i.of(f)
	return a, f, err
}

// of is the instance that f configures. f may be nil if the address and a token
// are given.
func (i *instance) of(f *config.File) (*admin.Client, error) {
	a := &admin.Client{URL: i.URL, Token: os.Getenv(tokenVariable)}
	if a.Token == "" && len(f.API.Tokens) > 0 {
		a.Token = f.API.Tokens[0]
	}
	if a.Token == "" {
		return nil, errs.New(errs.S9001, "there is no token for the admin API: add one to api.tokens and start the instance again, or set %s", tokenVariable)
	}
	if i.URL != "" {
		return a, nil
	}
	g := &f.Sluice.Gateway
	a.URL = g.URL(cmp.Or(g.Port, f.Port))
	if g.TLS.On() {
		// The certificate is of the name that clients use. Here it is that of
		// the same config, whatever its name.
		certificate, err := g.TLS.Certificate.Read()
		if err != nil {
			return nil, fmt.Errorf("read sluice.gateway.tls.certificate: %w", err)
		}
		a.HTTP = admin.Pinned(certificate)
	}
	return a, nil
}

type deployCmd struct {
	instance
	File    string        `arg:"" help:"Sync config; - is the standard input."`
	Timeout time.Duration `default:"30m" help:"How long to wait until it is active."`
	JSON    bool          `help:"Print the stream that became active as JSON."`
}

func (d *deployCmd) Run(c *cli, t terminal) error {
	a, f, err := d.client(c)
	if err != nil {
		return err
	}
	var b []byte
	if d.File == "-" {
		b, err = io.ReadAll(os.Stdin)
	} else {
		b, err = os.ReadFile(d.File)
	}
	if err != nil {
		return fmt.Errorf("read the sync config: %w", err)
	}
	if findings := check(string(b), d.File, rules.Options{DefaultSchema: defaultSchema(f)}); !findings.print(t.err) {
		return errs.New(errs.R0001, "the sync config is not valid and was not deployed")
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	name, err := a.Deploy(ctx, string(b), t.progress)
	if err != nil {
		return err
	}
	if d.JSON {
		return t.json(map[string]string{"slot_name": name, "state": "ACTIVE"})
	}
	fmt.Fprintf(t.out, "%s is active\n", name)
	return nil
}

// progress tells of a stream that is waited for.
func (t terminal) progress(s admin.Stream) {
	fmt.Fprintf(t.err, "%s: %s", s.Name, s.State)
	if s.LastError != "" {
		fmt.Fprintf(t.err, ": %s", s.LastError)
	}
	if s.Copy != nil {
		fmt.Fprintf(t.err, ": %s", s.Copy)
	}
	fmt.Fprintln(t.err)
}

type rollbackCmd struct {
	instance
	Timeout time.Duration `default:"30m" help:"How long to wait until it is active."`
	JSON    bool          `help:"Print the stream that became active as JSON."`
}

func (r *rollbackCmd) Run(c *cli, t terminal) error {
	a, _, err := r.client(c)
	if err != nil {
		return err
	}
	ctx, stop := process.Signals(context.Background())
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	name, err := a.Rollback(ctx, func(name, activated string) {
		fmt.Fprintf(t.err, "going back to the config of %s, which became active at %s\n", name, activated)
	}, t.progress)
	if err != nil {
		return err
	}
	if r.JSON {
		return t.json(map[string]string{"slot_name": name, "state": "ACTIVE"})
	}
	fmt.Fprintf(t.out, "%s is active\n", name)
	return nil
}

type compactCmd struct {
	instance
	Buckets     []string `short:"b" help:"Full bucket ids; default every bucket. \"\" = none."`
	NoParameter bool     `name:"no-parameter-indexes" help:"Leave the parameter index as it is."`
	Parameter   bool     `short:"p" name:"parameter-indexes" help:"Compact the parameter index too when --buckets is given."`
	JSON        bool     `help:"Print what was done as JSON."`
}

func (m *compactCmd) Run(c *cli, t terminal) error {
	a, _, err := m.client(c)
	if err != nil {
		return err
	}
	r := admin.CompactRequest{SkipLookups: m.NoParameter || len(m.Buckets) > 0 && !m.Parameter}
	for _, b := range m.Buckets {
		switch {
		case b == "":
			r.SkipBuckets = true
		case !strings.Contains(b, "["):
			return fmt.Errorf("%q is not a full bucket id, as 1#by_user[\"u1\"] is", b)
		default:
			r.Buckets = append(r.Buckets, b)
		}
	}
	r.SkipBuckets = r.SkipBuckets && len(r.Buckets) == 0
	ctx, stop := process.Signals(context.Background())
	defer stop()
	done, err := a.Compact(ctx, r)
	if err != nil {
		return err
	}
	if m.JSON {
		return t.json(done)
	}
	fmt.Fprintf(t.out, "compacted %s buckets: %s ops read, %s moved, %s cleared; %s parameter entries removed\n",
		or0(done.Buckets), or0(done.OpsRead), or0(done.OpsMoved), or0(done.OpsCleared), or0(done.LookupsRemoved))
	return nil
}

func or0(n json.Number) string { return cmp.Or(n.String(), "0") }

type statusCmd struct {
	instance
	JSON bool `help:"Print the reply of the instance as it is."`
}

func (s *statusCmd) Run(c *cli, t terminal) error {
	a, _, err := s.client(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	status, raw, err := a.Status(ctx)
	if err != nil {
		return err
	}
	if s.JSON {
		fmt.Fprintf(t.out, "%s\n", raw)
	} else if err := printStatus(t.out, status); err != nil {
		return err
	}
	if !status.Healthy {
		return errs.New(errs.S9003, "the pipeline is stale")
	}
	return nil
}

func printStatus(w io.Writer, s admin.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "STAGE\tFRESHNESS\tSTATE\tDETAIL")
	for _, g := range s.Stages {
		age, state := "-", "stale"
		if g.AgeMS != nil {
			age = (time.Duration(*g.AgeMS) * time.Millisecond).String()
		}
		if g.OK {
			state = "ok"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", g.Name, age, state, g.Detail)
	}
	fmt.Fprintln(tw, "\t\t\t")
	fmt.Fprintln(tw, "PEER OF THE GATEWAY\tHEARD\tSTATE\t")
	for _, l := range s.Links {
		state := "silent"
		if l.OK {
			state = "ok"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t\n", l.Peer, time.Duration(l.AgeMS)*time.Millisecond, state)
	}
	fmt.Fprintln(tw, "\t\t\t")
	fmt.Fprintln(tw, "STREAM\tSTATE\tCHECKPOINT\tPOSITION\tDEPLOYED")
	for _, r := range s.Streams {
		deployed := "-"
		if r.DeployedAt != nil {
			deployed = r.DeployedAt.UTC().Format(time.RFC3339)
		}
		if r.DeployedBy != "" {
			deployed += " by " + r.DeployedBy
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.State, cmp.Or(r.Checkpoint.String(), "-"), cmp.Or(r.Position, "-"), deployed)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print the status: %w", err)
	}
	for _, r := range s.Streams {
		if r.Copy != nil {
			fmt.Fprintf(w, "\n%s: %s\n", r.Name, r.Copy)
		}
		if r.LastError != "" {
			fmt.Fprintf(w, "\n%s: %s\n", r.Name, r.LastError)
		}
	}
	fmt.Fprintf(w, "\n%d clients connected\n", s.Sessions)
	return nil
}

type tokenCmd struct {
	User     string            `required:"" help:"The sub claim."`
	TTL      time.Duration     `default:"1h" help:"How long it is valid; at most 24h are accepted."`
	Audience string            `help:"The aud claim; default the first of client_auth.audience."`
	Claim    map[string]string `mapsep:"none" placeholder:"KEY=VALUE" help:"A further claim; a value that is JSON is that value."`
}

func (m *tokenCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	if m.TTL <= 0 || m.TTL > 24*time.Hour {
		return errs.New(errs.S2104, "a token must live for more than nothing and at most 24h")
	}
	s, err := token.Mint(f.Auth, token.Request{User: m.User, TTL: m.TTL, Now: time.Now(), Audience: m.Audience, Claims: m.Claim})
	if err != nil {
		return err
	}
	fmt.Fprintln(t.out, s)
	return nil
}

type settingsCmd struct {
	Get string `placeholder:"KEY" help:"Print the value of this key alone."`
}

func (s *settingsCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	settings := [][2]string{
		{"port", fmt.Sprint(f.Port)},
		{"storage.type", f.Storage.Type},
		{"telemetry.prometheus_port", fmt.Sprint(f.Telemetry.PrometheusPort)},
		{"sluice.data", f.Sluice.Data},
		{"sluice.nats.url", f.Sluice.NATSURL},
		{"sluice.bucket_store.address", f.Sluice.BucketStore.Address},
		{"sluice.bucket_store.advertise", f.Sluice.BucketStore.Advertise},
		{"sluice.bucket_store.metrics_port", fmt.Sprint(f.Sluice.BucketStore.MetricsPort)},
		{"sluice.replicator.address", f.Sluice.Replicator.Address},
		{"sluice.replicator.metrics_port", fmt.Sprint(f.Sluice.Replicator.MetricsPort)},
		{"sluice.compactor.address", f.Sluice.Compactor.Address},
		{"sluice.compactor.metrics_port", fmt.Sprint(f.Sluice.Compactor.MetricsPort)},
		{"sluice.compactor.interval", f.Sluice.Compactor.Interval.String()},
		{"sluice.rules_evaluator.metrics_port", fmt.Sprint(f.Sluice.Evaluator.MetricsPort)},
		{"sluice.gateway.metrics_port", fmt.Sprint(f.Sluice.Gateway.MetricsPort)},
		{"sluice.gateway.port", fmt.Sprint(cmp.Or(f.Sluice.Gateway.Port, f.Port))},
		{"sluice.gateway.path_prefix", f.Sluice.Gateway.PathPrefix},
		{"sluice.gateway.tls", fmt.Sprint(f.Sluice.Gateway.TLS.On())},
		{"sluice.tls", fmt.Sprint(f.Sluice.TLS.On())},
		{"sluice.gateway.max_streams", fmt.Sprint(cmp.Or(f.Sluice.Gateway.MaxStreams, f.API.MaxConnections))},
	}
	if s.Get == "" {
		for _, kv := range settings {
			fmt.Fprintf(t.out, "%s: %s\n", kv[0], kv[1])
		}
		return nil
	}
	i := slices.IndexFunc(settings, func(kv [2]string) bool { return kv[0] == s.Get })
	if i < 0 {
		return fmt.Errorf("no setting is called %q; `sluice config` lists them", s.Get)
	}
	fmt.Fprintln(t.out, settings[i][1])
	return nil
}
