package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sluice/internal/admin"
)

type diffCmd struct {
	instance
	Deployed bool     `help:"OLD is the config that is active in the running instance; NEW is by default the configured one."`
	Offline  bool     `help:"Do not ask a running instance how large the tables are."`
	JSON     bool     `help:"Print JSON."`
	Files    []string `arg:"" optional:"" name:"file" help:"OLD and NEW sync config; with --deployed only NEW."`
}

func (d *diffCmd) Run(c *cli, t terminal) error {
	x, err := d.compare(c, t)
	if err != nil {
		return exit{2, err}
	}
	if d.JSON {
		b, err := json.MarshalIndent(x, "", "  ")
		if err != nil {
			return exit{2, fmt.Errorf("write JSON: %w", err)}
		}
		fmt.Fprintf(t.out, "%s\n", b)
	} else if err := x.print(t.out); err != nil {
		return exit{2, err}
	}
	if !x.Same {
		return exit{code: 1}
	}
	return nil
}

// difference is what deploying one config in place of another does. In this
// form it is public: `sluice diff --json`.
type difference struct {
	// Same: nothing is copied and no client notices; at most the text changes.
	Same bool `json:"same"`
	// Copies: tables are copied for a new stream, and clients download all that they
	// are given, because of Reason. Otherwise they download at most what they were
	// not given before; if Adds is set, tables are copied for that.
	Copies      bool           `json:"copies"`
	Adds        bool           `json:"adds"`
	Reason      string         `json:"reason,omitempty"`
	Definitions []definitionIs `json:"definitions"`
	// Values and Events: the conversion of the source's values, or the event
	// definitions, differ.
	Values bool `json:"values_changed"`
	Events bool `json:"events_changed"`
	// Tables that are copied, and the sums of what is known of them.
	Tables []tableRead `json:"tables"`
	Rows   int64       `json:"rows"`
	Bytes  int64       `json:"bytes"`
	// Replaces is the stream, not active yet, that deploying gives up.
	Replaces string `json:"replaces,omitempty"`
	// Estimates says why there are none, "" if there are.
	Estimates string `json:"no_estimates,omitempty"`
}

type definitionIs struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	Fate string `json:"change"`
}

// tableRead is a table that is copied; one that matches no table of the source
// has its pattern's name and is missing.
type tableRead struct {
	Schema  string `json:"schema"`
	Name    string `json:"name"`
	Rows    *int64 `json:"rows,omitempty"`
	Bytes   *int64 `json:"bytes,omitempty"`
	Missing bool   `json:"missing,omitempty"`
}

func (d *diffCmd) compare(c *cli, t terminal) (*difference, error) {
	f, err := c.load()
	if err != nil {
		if d.Deployed || c.Config != "" || c.ConfigB64 != "" {
			return nil, err
		}
		fmt.Fprintln(t.err, err)
		fmt.Fprintln(t.err, "sluice: without a service config, tables without a schema are taken to be in public")
	}
	o := rules.Options{DefaultSchema: defaultSchema(f)}
	ctx, cancel := context.WithTimeout(context.Background(), schemaTimeout)
	defer cancel()
	switch n := len(d.Files); {
	case d.Deployed && n <= 1:
		return d.deployed(ctx, f, o, t)
	case !d.Deployed && n == 2:
		older, _, err := readPlan(f, d.Files[0], o, t)
		if err != nil {
			return nil, err
		}
		newer, _, err := readPlan(f, d.Files[1], o, t)
		if err != nil {
			return nil, err
		}
		x := newDifference(older, newer)
		switch diff := rules.Diff(older, newer); {
		case x.Copies:
			d.read(ctx, f, newer.SourceTables(), x)
		case x.Adds:
			d.read(ctx, f, diff.Tables, x)
		}
		return x, nil
	default:
		return nil, fmt.Errorf("OLD and NEW are wanted, or --deployed and NEW; %d files are given", n)
	}
}

// deployed compares with what is deployed. The instance says what it would do:
// it may have more data than its config needs, or not know what it means.
func (d *diffCmd) deployed(ctx context.Context, f *config.File, o rules.Options, t terminal) (*difference, error) {
	a, err := d.of(f)
	if err != nil {
		return nil, err
	}
	file := ""
	if len(d.Files) == 1 {
		file = d.Files[0]
	}
	newer, text, err := readPlan(f, file, o, t)
	if err != nil {
		return nil, err
	}
	p, err := a.Plan(ctx, text)
	if err != nil {
		return nil, err
	}
	older, err := newPlan(p.Current, "that is deployed", o, t)
	if err != nil {
		return nil, err
	}
	x := newDifference(older, newer)
	x.Same, x.Copies, x.Adds, x.Reason, x.Replaces = !p.Copies && !p.Serves && !p.Adds, p.Copies, p.Adds, p.Reason, p.Replaced
	switch {
	case x.Copies:
		d.read(ctx, f, newer.SourceTables(), x)
	case x.Adds:
		var patterns []model.TablePattern
		for _, t := range p.Tables {
			patterns = append(patterns, model.TablePattern{Connection: model.DefaultConnection, Schema: t.Schema, Name: t.Name})
		}
		d.read(ctx, f, patterns, x)
	}
	return x, nil
}

func newDifference(older, newer *rules.Plan) *difference {
	diff := rules.Diff(older, newer)
	x := &difference{Same: diff.Same, Copies: !diff.Same && !diff.Fits && !diff.Adds, Adds: diff.Adds, Values: diff.Values, Events: diff.Events, Definitions: []definitionIs{}, Tables: []tableRead{}}
	for _, e := range diff.Definitions {
		x.Definitions = append(x.Definitions, definitionIs{e.Name, e.Kind.String(), e.Fate.String()})
	}
	return x
}

func newPlan(text, name string, o rules.Options, t terminal) (*rules.Plan, error) {
	plan, _ := rules.Compile(text, o)
	if plan == nil {
		check(text, name, o).print(t.err)
		return nil, fmt.Errorf("the sync config %s is not valid", name)
	}
	return plan, nil
}

// readPlan reads a file, or the configured sync config if it is "".
func readPlan(f *config.File, file string, o rules.Options, t terminal) (plan *rules.Plan, text string, err error) {
	text, name, ok, err := syncText(f, file)
	switch {
	case err != nil:
		return nil, "", err
	case !ok:
		return nil, "", errors.New("the service config names no sync config: name one")
	}
	plan, err = newPlan(text, name, o, t)
	return plan, text, err
}

// read lists the tables that a copy reads, with what the instance says of them.
func (d *diffCmd) read(ctx context.Context, f *config.File, patterns []model.TablePattern, x *difference) {
	slices.SortFunc(patterns, func(a, b model.TablePattern) int {
		return cmp.Or(strings.Compare(a.Schema, b.Schema), strings.Compare(a.Name, b.Name))
	})
	tables, err := d.tables(ctx, f)
	if err != nil {
		x.Estimates = errs.Cause(err)
		for _, pattern := range patterns {
			x.Tables = append(x.Tables, tableRead{Schema: pattern.Schema, Name: pattern.Name})
		}
		return
	}
	x.match(patterns, tables)
}

func (d *diffCmd) tables(ctx context.Context, f *config.File) ([]admin.Table, error) {
	switch {
	case d.Offline:
		return nil, errors.New("--offline is given")
	case f == nil:
		return nil, errors.New("the service config does not say where the instance is")
	}
	a, err := d.of(f)
	if err != nil {
		return nil, err
	}
	return a.Tables(ctx)
}

// match finds the tables of patterns among those of the source.
func (x *difference) match(patterns []model.TablePattern, tables []admin.Table) {
	for _, pattern := range patterns {
		found := false
		for _, t := range tables {
			if !rules.Matches(pattern, &model.SourceTable{Connection: model.DefaultConnection, Schema: t.Schema, Name: t.Name}) {
				continue
			}
			found = true
			if slices.ContainsFunc(x.Tables, func(r tableRead) bool { return r.Schema == t.Schema && r.Name == t.Name }) {
				continue
			}
			x.Tables = append(x.Tables, tableRead{Schema: t.Schema, Name: t.Name, Rows: t.Rows, Bytes: t.Bytes})
			if t.Rows != nil && t.Bytes != nil {
				x.Rows += *t.Rows
				x.Bytes += *t.Bytes
			}
		}
		if !found {
			x.Tables = append(x.Tables, tableRead{Schema: pattern.Schema, Name: pattern.Name, Missing: true})
		}
	}
}

func (x *difference) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "DEFINITION\tCHANGE")
	for _, d := range x.Definitions {
		fmt.Fprintf(tw, "%s %s\t%s\n", d.Kind, d.Name, d.Fate)
	}
	if x.Events {
		fmt.Fprintln(tw, "event definitions\tchanged")
	}
	if x.Values {
		fmt.Fprintln(tw, "conversion of values\tchanged")
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if x.Same {
		fmt.Fprint(w, "\nThey mean the same: nothing is copied, and clients download nothing.\n")
		return x.printReplaces(w)
	}
	if !x.Copies && !x.Adds {
		fmt.Fprint(w, "\nAll that the new one needs is there: nothing is copied. Clients connect again, and download only what they were not\n"+
			"given before.\n")
		return x.printReplaces(w)
	}
	fmt.Fprintln(w)
	fmt.Fprintln(tw, "TABLE TO COPY\tROWS\tSIZE")
	unknown := 0
	for _, r := range x.Tables {
		rows, size := "?", "?"
		switch {
		case r.Missing:
			rows, size = "not in the source", "-"
		case r.Rows != nil && r.Bytes != nil:
			rows, size = fmt.Sprintf("~%d", *r.Rows), "~"+bytesText(*r.Bytes)
		default:
			unknown++
		}
		fmt.Fprintf(tw, "%s.%s\t%s\t%s\n", r.Schema, r.Name, rows, size)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	switch {
	case x.Estimates != "":
		fmt.Fprintf(w, "\nHow large they are is not known: %s.\n", x.Estimates)
	case unknown > 0:
		fmt.Fprintf(w, "\n~%d rows, ~%s, and %d tables of which the source has no statistics yet (ANALYZE makes them).\n", x.Rows, bytesText(x.Bytes), unknown)
	default:
		fmt.Fprintf(w, "\n~%d rows, ~%s in all, by the source's statistics.\n", x.Rows, bytesText(x.Bytes))
	}
	if x.Adds {
		fmt.Fprint(w, "They are copied for what is added or changed, while clients are served what there is. Then clients connect again,\n"+
			"download that, and keep what they have of the rest.\n")
		return x.printReplaces(w)
	}
	if x.Reason != "" {
		fmt.Fprintf(w, "What is there cannot be added to: %s.\n", x.Reason)
	}
	fmt.Fprint(w, "All of them are copied beside the active version, for what is kept too. When that is done, clients\n"+
		"connect again and download everything that they are given.\n")
	return x.printReplaces(w)
}

func (x *difference) printReplaces(w io.Writer) error {
	if x.Replaces != "" {
		fmt.Fprintf(w, "%s, which is not active yet, is given up.\n", x.Replaces)
	}
	return nil
}

func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + units[i]
}
