// Package admin is the admin API (spec/06 §6): it deploys and validates sync
// configs, and tells the state of the deployment.
//
// Invariants:
//
//   - Without a token of the configuration nothing is answered but 401; tokens
//     are compared in constant time (TestTokens).
//   - A config that does not compile is not deployed, and every fault is told
//     with its place (TestDeploy).
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/queue"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
)

// Options of the API.
type Options struct {
	Store     grpc.ClientConnInterface
	Source    grpc.ClientConnInterface
	Compactor grpc.ClientConnInterface
	Tokens    []string // none = closed
	// FromFile: the sync config is given by the service config, so deploying
	// through the API is refused.
	FromFile      bool
	SlotPrefix    string
	DefaultSchema string
	ConnectionID  string
	Tag           string
	DebugAPI      bool
	Heartbeat     time.Duration // interval of heartbeats
	// Sessions is the number of streams of this gateway.
	Sessions func() int
	// Beats are the newest heartbeats that this gateway has noticed, and told its
	// canary of; none if there is no active stream.
	Beats func() []freshness.Beat
	// Links are the peers of this gateway, and when they were last heard.
	Links func() map[string]time.Time
	Log   *slog.Logger
}

// API is the admin API.
type API struct {
	o         Options
	tokens    [][sha256.Size]byte
	catalog   pb.CatalogClient
	source    pb.SourceClient
	compactor pb.CompactorClient
	requests  *queue.Queue
	mux       *http.ServeMux
}

const (
	// maxConcurrent requests at once, while maxWaiting others wait.
	maxConcurrent = 10
	maxWaiting    = 20
	maxBody       = 4 << 20
	timeout       = 30 * time.Second
	// compactTimeout bounds a compaction that somebody waits for.
	compactTimeout = time.Hour
	// backupTimeout bounds a backup, which reads all that is stored.
	backupTimeout = 4 * time.Hour
)

// New returns the API.
func New(o Options) *API {
	a := &API{
		o: o, catalog: pb.NewCatalogClient(o.Store), source: pb.NewSourceClient(o.Source), compactor: pb.NewCompactorClient(o.Compactor),
		requests: queue.New(maxConcurrent, maxWaiting), mux: http.NewServeMux(),
	}
	for _, t := range o.Tokens {
		a.tokens = append(a.tokens, sha256.Sum256([]byte(t)))
	}
	for path, f := range map[string]func(*call) (any, error){
		"POST /api/admin/v1/diagnostics":     a.diagnostics,
		"POST /api/admin/v1/schema":          a.schema,
		"POST /api/admin/v1/validate":        a.validate,
		"POST /api/admin/v1/reprocess":       a.reprocessAdmin,
		"POST /api/admin/v1/execute-sql":     a.executeSQL,
		"POST /api/admin/v1/sluice/status":   a.status,
		"POST /api/admin/v1/sluice/compact":  a.compact,
		"POST /api/admin/v1/sluice/backup":   a.backup,
		"POST /api/admin/v1/sluice/plan":     a.foresee,
		"POST /api/admin/v1/sluice/rollback": a.rollback,
		"POST /api/sync-rules/v1/deploy":     a.deploy,
		"POST /api/sync-rules/v1/reprocess":  a.reprocess,
		"POST /api/sync-rules/v1/validate":   a.validateRules,
		"GET /api/sync-rules/v1/current":     a.current,
	} {
		a.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, f) })
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a.serve(w, r, func(*call) (any, error) { return nil, errs.New(errs.S2002, "Path not found") })
	})
	return a
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// call is one request.
type call struct {
	ctx  context.Context
	r    *http.Request
	body []byte
}

// bare is an answer that is not wrapped in data, and indented.
type bare struct{ value any }

func (a *API) serve(w http.ResponseWriter, r *http.Request, f func(*call) (any, error)) {
	id, start := reply.NewID("h/"), time.Now()
	answer, err := a.answer(w, r, f)
	status := http.StatusOK
	if err == nil {
		if b, ok := answer.(bare); ok {
			text, merr := json.MarshalIndent(b.value, "", "  ")
			if err = merr; err == nil {
				w.Header().Set("Content-Type", "application/json; charset=utf-8")
				_, _ = w.Write(append(text, '\n')) // a client that went needs no answer
			}
		} else {
			reply.JSON(w, status, map[string]any{"data": answer})
		}
	}
	if err != nil {
		status = reply.Error(w, err, id)
	}
	args := []any{"request", id, "method", r.Method, "path", r.URL.Path, "status", status, "duration_ms", time.Since(start).Milliseconds()}
	if err != nil {
		args = append(args, "code", string(errs.CodeOf(err)), "error", errs.Cause(err))
	}
	a.o.Log.Info("admin request", args...)
}

func (a *API) answer(w http.ResponseWriter, r *http.Request, f func(*call) (any, error)) (any, error) {
	if err := a.authorize(r.Header.Get("Authorization")); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return nil, &reply.StatusError{Failure: reply.Failure{Name: "PayloadTooLarge", Code: string(errs.S2001),
			Status: http.StatusRequestEntityTooLarge, Description: "Request body is too large"}}
	}
	if err != nil {
		return nil, reply.NewFault("body could not be read")
	}
	if err := a.requests.Enter(r.Context()); err != nil {
		return nil, err
	}
	defer a.requests.Leave()
	return f(&call{ctx: r.Context(), r: r, body: body})
}

func (a *API) authorize(header string) error {
	token, ok := strings.CutPrefix(header, "Token ")
	if !ok {
		token, ok = strings.CutPrefix(header, "Bearer ")
	}
	given := sha256.Sum256([]byte(token))
	good := 0
	for i := range a.tokens {
		good |= subtle.ConstantTimeCompare(given[:], a.tokens[i][:])
	}
	if !ok || good == 0 {
		return errs.New(errs.S2101, "Authorization failed")
	}
	return nil
}

// decode reads the body's JSON; an empty body is {}.
func (c *call) decode(into any) error {
	if len(strings.TrimSpace(string(c.body))) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.body, into); err != nil {
		var t *json.UnmarshalTypeError
		if errors.As(err, &t) {
			return reply.NewFault(fmt.Sprintf("%s must be %s", t.Field, t.Type))
		}
		return reply.NewFault("body must be a JSON object")
	}
	return nil
}

func (c *call) bounded() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.ctx, timeout)
}

// streams are those of the deployment: the active one, and the one that is
// being deployed.
type streams struct {
	active, next *model.Stream
	all          []model.Stream
	tables       map[int64]*pb.TableProgressList
}

func (a *API) streams(ctx context.Context) (*streams, error) {
	r, err := a.catalog.List(ctx, &pb.ListRequest{})
	if err != nil {
		return nil, fmt.Errorf("list sync configs: %w", err)
	}
	s := &streams{all: wire.ModelStreams(r.GetStreams()), tables: r.GetTables()}
	for i := range s.all {
		x := &s.all[i]
		switch x.State {
		case model.Active, model.Errored:
			if s.active == nil || x.ID > s.active.ID {
				s.active = x
			}
		case model.Processing:
			if s.next == nil || x.ID > s.next.ID {
				s.next = x
			}
		}
	}
	return s, nil
}

// content is the sync config in the body: raw YAML, or JSON's content.
func (c *call) content() (string, error) {
	media, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil {
		media = "application/yaml"
	}
	switch media {
	case "application/json":
		var b struct {
			Content *string `json:"content"`
		}
		if err := c.decode(&b); err != nil {
			return "", err
		}
		if b.Content == nil {
			return "", reply.NewFault("content is required")
		}
		return *b.Content, nil
	case "application/yaml", "application/x-yaml", "text/yaml", "text/plain":
		return string(c.body), nil
	}
	return "", errs.New(errs.S2004, "Unsupported media type: send application/yaml or application/json")
}

func describe(d rules.Diagnostic) string {
	if d.Line == 0 {
		return d.Message
	}
	return fmt.Sprintf("%d:%d: %s", d.Line, d.Column, d.Message)
}

// compile compiles a config; the error of one that does not has all faults.
func (a *API) compile(content string) (*rules.Plan, error) {
	plan, ds := rules.Compile(content, rules.Options{DefaultSchema: a.o.DefaultSchema})
	if plan != nil {
		return plan, nil
	}
	var faults []string
	for _, d := range ds {
		if d.Fatal {
			faults = append(faults, describe(d))
		}
	}
	return nil, &reply.StatusError{Failure: reply.Failure{Name: "SyncRulesError", Code: string(errs.R0001), Status: http.StatusUnprocessableEntity,
		Description: "Sync config is not valid", Details: strings.Join(faults, "\n")}}
}

type slot struct {
	SlotName string `json:"slot_name"`
	Stream   int64  `json:"stream"`
	Created  bool   `json:"created"`
	State    string `json:"state"`
}

func (a *API) deploy(c *call) (any, error) {
	content, err := c.content()
	if err != nil {
		return nil, err
	}
	if override, _ := strconv.ParseBool(c.r.URL.Query().Get("override")); a.o.FromFile && !override {
		return nil, errs.New(errs.S4105, "Sync config API is disabled: the sync config is given by the service config")
	}
	return a.make(c, content, false)
}

func (a *API) make(c *call, content string, force bool) (any, error) {
	plan, err := a.compile(content)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.bounded()
	defer cancel()
	request := a.request(content, plan)
	request.Force = force
	r, err := a.catalog.Deploy(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("deploy: %w", err)
	}
	s := wire.ModelStream(r.GetStream())
	return slot{s.Name, int64(s.ID), r.GetCreated(), s.State.String()}, nil
}

// request asks for a config to be deployed.
func (a *API) request(content string, plan *rules.Plan) *pb.DeployRequest {
	return &pb.DeployRequest{
		Config: content, Content: fmt.Sprintf("%x", plan.Identity()), Parts: plan.Parts(),
		Tables: wire.TablePatterns(plan.SourceTables()), Values: wire.ValueOptions(plan.Values()),
		SlotPrefix: a.o.SlotPrefix, CustomCheckpoints: plan.CustomCheckpoints(),
	}
}

func (a *API) remake(c *call) (*streams, any, error) {
	ctx, cancel := c.bounded()
	defer cancel()
	s, err := a.streams(ctx)
	switch {
	case err != nil:
		return nil, nil, err
	case s.next != nil:
		return nil, nil, errs.New(errs.S4106, "Busy processing sync config - cannot reprocess")
	case s.active == nil:
		return nil, nil, errs.New(errs.S4104, "No active sync config")
	}
	made, err := a.make(c, s.active.Text(), true)
	return s, made, err
}

func (a *API) reprocess(c *call) (any, error) {
	_, made, err := a.remake(c)
	return made, err
}

func (a *API) reprocessAdmin(c *call) (any, error) {
	_, made, err := a.remake(c)
	if err != nil {
		return nil, err
	}
	return map[string]any{"connections": []any{map[string]any{
		"id": a.o.ConnectionID, "tag": a.o.Tag, "slot_name": made.(slot).SlotName,
	}}}, nil
}

type sourceTable struct {
	Schema string `json:"schema"`
	Table  string `json:"table"`
	Tag    string `json:"connectionTag"`
}

func (a *API) validateRules(c *call) (any, error) {
	content, err := c.content()
	if err != nil {
		return nil, err
	}
	plan, ds := rules.Compile(content, rules.Options{DefaultSchema: a.o.DefaultSchema})
	if plan == nil {
		faults := []string{}
		for _, d := range ds {
			if d.Fatal {
				faults = append(faults, describe(d))
			}
		}
		return bare{map[string]any{"valid": false, "errors": faults}}, nil
	}
	type definition struct {
		Name     string `json:"name"`
		Kind     string `json:"kind"`
		Priority int    `json:"priority"`
	}
	definitions := []definition{}
	for _, d := range plan.Definitions() {
		definitions = append(definitions, definition{d.Name, d.Kind.String(), d.Priority})
	}
	tables, names := []sourceTable{}, []string{}
	for _, t := range plan.SourceTables() {
		tables = append(tables, sourceTable{t.Schema, t.Name, t.Connection})
		names = append(names, t.Name)
	}
	return bare{map[string]any{"valid": true, "bucket_definitions": definitions, "source_tables": tables, "data_tables": names}}, nil
}

func (a *API) current(c *call) (any, error) {
	ctx, cancel := c.bounded()
	defer cancel()
	s, err := a.streams(ctx)
	if err != nil {
		return nil, err
	}
	if s.active == nil {
		return nil, errs.New(errs.S4104, "No active sync config")
	}
	show := func(x *model.Stream) any {
		if x == nil {
			return nil
		}
		out := map[string]any{"slot_name": x.Name, "content": x.Text(), "valid": true, "state": x.State.String(), "stream": int64(x.ID)}
		if _, err := a.compile(x.Text()); err != nil {
			out["valid"] = false
			out["errors"] = []string{reply.Of(err, "").Details}
		}
		return out
	}
	return bare{map[string]any{"data": map[string]any{"current": show(s.active), "next": show(s.next)}}}, nil
}

func (a *API) executeSQL(c *call) (any, error) {
	var b struct {
		SQL struct {
			Query string            `json:"query"`
			Args  []json.RawMessage `json:"args"`
		} `json:"sql"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	type results struct {
		Columns []string          `json:"columns"`
		Rows    []json.RawMessage `json:"rows"`
	}
	failed := func(msg string) any {
		return map[string]any{"success": false, "results": results{[]string{}, []json.RawMessage{}}, "error": msg}
	}
	if !a.o.DebugAPI {
		return failed("SQL querying is not enabled: set debug_api on the connection"), nil
	}
	if b.SQL.Query == "" {
		return nil, reply.NewFault("sql.query is required")
	}
	args := make([]string, len(b.SQL.Args))
	for i, x := range b.SQL.Args {
		args[i] = string(x)
	}
	ctx, cancel := c.bounded()
	defer cancel()
	r, err := a.source.ExecuteSQL(ctx, &pb.ExecuteSQLRequest{Query: b.SQL.Query, JsonArgs: args})
	if err != nil {
		return nil, fmt.Errorf("execute SQL: %w", err)
	}
	if !r.GetSuccess() {
		return failed(r.GetError()), nil
	}
	out := results{Columns: r.GetColumns(), Rows: []json.RawMessage{}}
	for _, row := range r.GetJsonRows() {
		out.Rows = append(out.Rows, json.RawMessage(row))
	}
	return map[string]any{"success": true, "results": out}, nil
}

func (a *API) compact(c *call) (any, error) {
	var b struct {
		Buckets     []string `json:"buckets"`
		SkipBuckets bool     `json:"skip_buckets"`
		SkipLookups bool     `json:"skip_lookups"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	for _, name := range b.Buckets {
		if !strings.Contains(name, "[") {
			return nil, reply.NewFault(fmt.Sprintf("%q is not a full bucket id", name))
		}
	}
	ctx, cancel := context.WithTimeout(c.ctx, compactTimeout)
	defer cancel()
	r, err := a.compactor.Compact(ctx, &pb.CompactRequest{Buckets: b.Buckets, SkipBuckets: b.SkipBuckets, SkipLookups: b.SkipLookups})
	if err != nil {
		return nil, fmt.Errorf("compact: %w", err)
	}
	return map[string]uint64{
		"buckets": r.GetBuckets(), "ops_read": r.GetOpsRead(), "ops_moved": r.GetOpsMoved(), "ops_cleared": r.GetOpsCleared(),
		"lookups_removed": r.GetLookupsRemoved(),
	}, nil
}
