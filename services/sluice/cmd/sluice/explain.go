package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/rules/value"
)

type explainCmd struct {
	SyncConfig   string   `name:"sync-config" placeholder:"FILE" help:"Sync config to explain instead of the configured one."`
	TokenClaims  string   `name:"token-claims" placeholder:"JSON" help:"The claims of the user's token, such as {\"sub\":\"u1\"}."`
	Parameters   string   `placeholder:"JSON" help:"What the client says when it connects."`
	Subscription []string `sep:"none" placeholder:"STREAM=JSON" help:"A subscription of the client, with its parameters or without."`
	NoDefaults   bool     `name:"no-defaults" help:"The client wants no streams that are subscribed automatically."`
	Table        string   `placeholder:"NAME" help:"The table of --row, with its schema or without."`
	Row          string   `placeholder:"JSON" help:"A row of the source, its columns with the values that clients see."`
	JSON         bool     `help:"JSON output, with the buckets."`
	Index        []string `sep:"none" placeholder:"TABLE=JSON" help:"A further row of the source, for parameter queries, joins and subqueries to find."`
}

func (x *explainCmd) Run(c *cli, t terminal) error {
	f, err := c.load()
	if err != nil {
		if x.SyncConfig == "" || c.Config != "" || c.ConfigB64 != "" {
			return err
		}
		fmt.Fprintln(t.err, err)
		fmt.Fprintln(t.err, "sluice: without a service config, tables without a schema are taken to be in public")
	}
	text, name, ok, err := syncText(f, x.SyncConfig)
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New("the service config names no sync config: name one by --sync-config")
	}
	schema := defaultSchema(f)
	q, err := x.question(schema)
	if err != nil {
		return err
	}
	plan, _ := rules.Compile(text, rules.Options{DefaultSchema: schema})
	if plan == nil {
		check(text, name, rules.Options{DefaultSchema: schema}).print(t.err)
		return errors.New("the sync config is not valid")
	}
	entries, notes, err := x.entries(plan, schema, q)
	if err != nil {
		return err
	}
	missed := false
	q.Lookup = func(keys []string) ([][]string, error) {
		found := make([][]string, len(keys))
		for i, k := range keys {
			found[i] = entries[k]
			missed = missed || len(found[i]) == 0
		}
		return found, nil
	}
	answer, err := plan.Explain(q)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	if missed {
		notes = append(notes, "the source's own rows are not looked at; parameter queries, joins and subqueries find what --row and --index give")
	}
	if x.JSON {
		return t.json(explanationOf(q, answer, notes))
	}
	fmt.Fprint(t.out, answer.Text)
	for _, n := range notes {
		fmt.Fprintf(t.out, "note: %s\n", n)
	}
	return nil
}

// explanation is an answer for programs. What was not asked is left out.
type explanation struct {
	Buckets    *[]string `json:"buckets,omitempty"`     // of the user
	RowBuckets *[]string `json:"row_buckets,omitempty"` // of the row
	GetsRow    *bool     `json:"gets_row,omitempty"`
	Text       string    `json:"text"`
	Notes      []string  `json:"notes"`
}

func explanationOf(q rules.Question, a *rules.Answer, notes []string) explanation {
	x := explanation{Text: a.Text, Notes: append([]string{}, notes...)}
	given, holding, gets := append([]string{}, a.Given...), append([]string{}, a.Holding...), len(a.Shared()) > 0
	if q.Request != nil {
		x.Buckets = &given
	}
	if q.Table != nil {
		x.RowBuckets = &holding
	}
	if q.Request != nil && q.Table != nil {
		x.GetsRow = &gets
	}
	return x
}

// question reads the flags, but for --index.
func (x *explainCmd) question(schema string) (q rules.Question, err error) {
	if x.TokenClaims == "" && x.Row == "" {
		return q, errors.New("give --token-claims, or --table and --row, or all of them")
	}
	if (x.Table == "") != (x.Row == "") {
		return q, errors.New("--table and --row belong together")
	}
	if x.TokenClaims == "" && (x.Parameters != "" || len(x.Subscription) > 0 || x.NoDefaults) {
		return q, errors.New("--parameters, --subscription and --no-defaults need --token-claims")
	}
	if x.Row != "" {
		if q.Table, q.Row, err = readRow(schema, x.Table, x.Row); err != nil {
			return q, fmt.Errorf("--row: %w", err)
		}
	}
	if x.TokenClaims == "" {
		return q, nil
	}
	q.Request = &rules.Request{IncludeDefaults: !x.NoDefaults}
	if q.Request.Token, err = object(x.TokenClaims); err != nil {
		return q, fmt.Errorf("--token-claims: %w", err)
	}
	if q.Request.Parameters, err = object(x.Parameters); err != nil {
		return q, fmt.Errorf("--parameters: %w", err)
	}
	for _, s := range x.Subscription {
		stream, given, _ := strings.Cut(s, "=")
		p, err := object(given)
		if err != nil {
			return q, fmt.Errorf("--subscription %s: %w", stream, err)
		}
		q.Request.Subscriptions = append(q.Request.Subscriptions, rules.Subscription{Stream: stream, Parameters: p})
	}
	return q, nil
}

// entries is the parameter index that the row and those of --index make, and
// what could not be used for it.
func (x *explainCmd) entries(plan *rules.Plan, schema string, q rules.Question) (out map[string][]string, notes []string, err error) {
	out = map[string][]string{}
	add := func(t *model.SourceTable, row []model.Value) {
		table := plan.Table(t)
		if table == nil {
			notes = append(notes, fmt.Sprintf("the sync config does not read the table %s.%s", t.Schema, t.Name))
			return
		}
		var r rules.RowResult
		table.EvaluateRow(row, &r)
		for _, e := range r.Errors {
			if e.Parameters {
				notes = append(notes, fmt.Sprintf("the row of %s.%s is not to be found by %s: %v", t.Schema, t.Name, e.Definition, e.Err))
			}
		}
		for _, l := range r.Lookups {
			out[l.Lookup] = append(out[l.Lookup], l.Values)
		}
	}
	if q.Table != nil {
		add(q.Table, q.Row)
	}
	for _, s := range x.Index {
		name, text, ok := strings.Cut(s, "=")
		if !ok {
			return nil, nil, fmt.Errorf("--index %s: it must be TABLE=JSON", s)
		}
		t, row, err := readRow(schema, name, text)
		if err != nil {
			return nil, nil, fmt.Errorf("--index %s: %w", name, err)
		}
		add(t, row)
	}
	return out, notes, nil
}

// readRow reads a row of a table, which is in schema unless its name says
// otherwise. Its values are those that a source gives: booleans are integers,
// arrays and objects their JSON text.
func readRow(schema, table, text string) (*model.SourceTable, []model.Value, error) {
	columns, err := readObject(text)
	if err != nil {
		return nil, nil, err
	}
	t := &model.SourceTable{Schema: schema, Name: table}
	if s, name, ok := strings.Cut(table, "."); ok {
		t.Schema, t.Name = s, name
	}
	var row []model.Value
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		x, err := sourceValue(columns[name])
		if err != nil {
			return nil, nil, fmt.Errorf("column %s: %w", name, err)
		}
		t.Columns, row = append(t.Columns, model.Column{Name: name}), append(row, x)
	}
	return t, row, nil
}

func sourceValue(v any) (model.Value, error) {
	switch v := v.(type) {
	case nil:
		return model.NullValue, nil
	case bool:
		return model.BoolValue(v), nil
	case string:
		return model.TextValue(v), nil
	case json.Number:
		if !strings.ContainsAny(string(v), ".eE") {
			return value.Integer(string(v)), nil
		}
		f, err := v.Float64()
		if err != nil {
			return model.Value{}, fmt.Errorf("%s is too large", v)
		}
		return model.RealValue(f), nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return model.Value{}, fmt.Errorf("write as JSON: %w", err)
	}
	return model.TextValue(strings.TrimSuffix(b.String(), "\n")), nil
}

// object checks that text, if there is any, is an object.
func object(text string) (json.RawMessage, error) {
	if text == "" {
		return nil, nil
	}
	if _, err := readObject(text); err != nil {
		return nil, err
	}
	return json.RawMessage(text), nil
}

// readObject reads a JSON object with exact numbers.
func readObject(text string) (map[string]any, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	out, ok := v.(map[string]any)
	if _, err := d.Token(); !ok || !errors.Is(err, io.EOF) {
		return nil, errors.New("not a JSON object")
	}
	return out, nil
}
