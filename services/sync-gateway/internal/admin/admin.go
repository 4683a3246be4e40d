// Package admin is the admin API (spec/06 §6): it deploys and validates sync
// configs, and tells the state of the deployment.
//
// Invariants:
//
//   - Without a token of the configuration nothing is answered but 401; tokens
//     are compared in constant time (TestTokens). One with scopes does what they
//     say and nothing else (TestScopes).
//   - Who deploys is kept with the stream and logged, by the name of the token,
//     never by the token (TestAudit).
//   - A config that does not compile is not deployed, and every fault is told
//     with its place (TestDeploy).
package admin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/queue"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
)

// Options of the API.
type Options struct {
	Store     grpc.ClientConnInterface
	Source    grpc.ClientConnInterface
	Compactor grpc.ClientConnInterface
	// Tokens may do everything, Scoped what their scopes say. None = closed.
	Tokens []string
	Scoped []config.AdminToken
	// FromFile: the sync config is given by the service config, so deploying
	// through the API is refused.
	FromFile      bool
	SlotPrefix    string
	DefaultSchema string
	ConnectionID  string
	Tag           string
	DebugAPI      bool
	Heartbeat     time.Duration // interval of heartbeats
	// Sessions is the number of streams of this gateway; List describes those
	// that lag most, at most so many, of one user or of all ("").
	Sessions func() int
	List     func(user string, most int) (list []fanout.Info, total int)
	Instance string // of the gateway
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
	holders   []holder
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
		holders: holders(o.Tokens, o.Scoped), requests: queue.New(maxConcurrent, maxWaiting), mux: http.NewServeMux(),
	}
	everybody, read := []config.Scope{config.ScopeRead, config.ScopeDeploy, config.ScopeCompact}, []config.Scope{config.ScopeRead}
	follow := []config.Scope{config.ScopeRead, config.ScopeDeploy} // what who deploys looks at before and after
	deploy, compact := []config.Scope{config.ScopeDeploy}, []config.Scope{config.ScopeCompact}
	for path, x := range map[string]endpoint{
		"POST /api/admin/v1/diagnostics":     {a.diagnostics, read},
		"POST /api/admin/v1/schema":          {a.schema, follow},
		"POST /api/admin/v1/validate":        {a.validate, follow},
		"POST /api/admin/v1/reprocess":       {a.reprocessAdmin, deploy},
		"POST /api/admin/v1/execute-sql":     {a.executeSQL, nil},
		"POST /api/admin/v1/sluice/status":   {a.status, follow},
		"POST /api/admin/v1/sluice/sessions": {a.sessions, read},
		"POST /api/admin/v1/sluice/compact":  {a.compact, compact},
		"POST /api/admin/v1/sluice/backup":   {a.backup, nil},
		"POST /api/admin/v1/sluice/plan":     {a.foresee, follow},
		"POST /api/admin/v1/sluice/rollback": {a.rollback, deploy},
		"POST /api/admin/v1/sluice/teardown": {a.teardown, nil},
		"POST /api/sync-rules/v1/deploy":     {a.deploy, deploy},
		"POST /api/sync-rules/v1/reprocess":  {a.reprocess, deploy},
		"POST /api/sync-rules/v1/validate":   {a.validateRules, follow},
		"GET /api/sync-rules/v1/current":     {a.current, follow},
	} {
		a.mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, x) })
	}
	missing := endpoint{func(*call) (any, error) { return nil, errs.New(errs.S2002, "Path not found") }, everybody}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, missing) })
	return a
}

// endpoint answers requests of those who have one of the scopes, and of those
// who may do everything.
type endpoint struct {
	answer func(*call) (any, error)
	scopes []config.Scope
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// call is one request.
type call struct {
	ctx  context.Context
	id   string
	r    *http.Request
	who  *holder // nil until authorized
	body []byte
}

// bare is an answer that is not wrapped in data, and indented.
type bare struct{ value any }

func (a *API) serve(w http.ResponseWriter, r *http.Request, x endpoint) {
	c, start := &call{ctx: r.Context(), id: reply.NewID("h/"), r: r}, time.Now()
	answer, err := a.answer(w, c, x)
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
		status = reply.Error(w, err, c.id)
	}
	args := []any{"request", c.id, "method", r.Method, "path", r.URL.Path, "status", status, "duration_ms", time.Since(start).Milliseconds()}
	if c.who != nil {
		args = append(args, "by", c.who.name)
	}
	if err != nil {
		args = append(args, "code", string(errs.CodeOf(err)), "error", errs.Cause(err))
	}
	a.o.Log.Info("admin request", args...)
}

func (a *API) answer(w http.ResponseWriter, c *call, x endpoint) (answer any, err error) {
	if c.who, err = a.authorize(c.r.Header.Get("Authorization")); err != nil {
		return nil, err
	}
	if err := c.who.may(x.scopes); err != nil {
		return nil, err
	}
	c.body, err = io.ReadAll(http.MaxBytesReader(w, c.r.Body, maxBody))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return nil, &reply.StatusError{Failure: reply.Failure{Name: "PayloadTooLarge", Code: string(errs.S2001),
			Status: http.StatusRequestEntityTooLarge, Description: "Request body is too large"}}
	}
	if err != nil {
		return nil, reply.NewFault("body could not be read")
	}
	if err := a.requests.Enter(c.ctx); err != nil {
		return nil, err
	}
	defer a.requests.Leave()
	return x.answer(c)
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
	return nil, &reply.StatusError{Failure: reply.Failure{Name: "SyncRulesError", Code: string(errs.R0001), Status: http.StatusUnprocessableEntity,
		Description: "Sync config is not valid", Details: strings.Join(faults(ds), "\n")}}
}

// faults are what keeps a config from being used.
func faults(ds []rules.Diagnostic) []string {
	out := []string{}
	for _, d := range ds {
		if d.Fatal {
			out = append(out, describe(d))
		}
	}
	return out
}

// slot is what deploying answers with.
type slot struct {
	SlotName string `json:"slot_name"`
}

func (a *API) deploy(c *call) (any, error) {
	content, err := c.content()
	if err != nil {
		return nil, err
	}
	if override, _ := strconv.ParseBool(c.r.URL.Query().Get("override")); a.o.FromFile && !override {
		return nil, errs.New(errs.S4105, "Sync config API is disabled: the sync config is given by the service config")
	}
	name, err := a.make(c, "deploy", content, false)
	if err != nil {
		return nil, err
	}
	return slot{name}, nil
}

// make makes a stream of a config and returns its name.
func (a *API) make(c *call, action, content string, force bool) (string, error) {
	plan, err := a.compile(content)
	if err != nil {
		return "", err
	}
	ctx, cancel := c.bounded()
	defer cancel()
	request := a.request(content, plan)
	request.Force = force
	request.DeployedBy = c.who.name
	r, err := a.catalog.Deploy(ctx, request)
	if err != nil {
		return "", fmt.Errorf("deploy: %w", err)
	}
	sum := sha256.Sum256([]byte(content))
	a.audit(c, action, "stream", r.GetStream().GetId(), "name", r.GetStream().GetName(), "new", r.GetCreated(), "sha256", hex.EncodeToString(sum[:]))
	return r.GetStream().GetName(), nil
}

// request asks for a config to be deployed.
func (a *API) request(content string, plan *rules.Plan) *pb.DeployRequest {
	return &pb.DeployRequest{
		Config: content, Content: fmt.Sprintf("%x", plan.Identity()), Parts: plan.Parts(), PartTables: wire.PartTables(plan.PartTables()),
		Tables: wire.TablePatterns(plan.SourceTables()), Values: wire.ValueOptions(plan.Values()),
		SlotPrefix: a.o.SlotPrefix, CustomCheckpoints: plan.CustomCheckpoints(),
	}
}

// remake builds the active config anew.
func (a *API) remake(c *call) (string, error) {
	ctx, cancel := c.bounded()
	defer cancel()
	s, err := a.streams(ctx)
	switch {
	case err != nil:
		return "", err
	case s.next != nil || s.active != nil && s.active.Next != "":
		return "", errs.New(errs.S4106, "Busy processing sync config - cannot reprocess")
	case s.active == nil:
		return "", errs.New(errs.S4104, "No active sync config")
	}
	return a.make(c, "reprocess", s.active.Text(), true)
}

func (a *API) reprocess(c *call) (any, error) {
	name, err := a.remake(c)
	if err != nil {
		return nil, err
	}
	return slot{name}, nil
}

func (a *API) reprocessAdmin(c *call) (any, error) {
	name, err := a.remake(c)
	if err != nil {
		return nil, err
	}
	type connection struct {
		ID       string `json:"id"`
		Tag      string `json:"tag"`
		SlotName string `json:"slot_name"`
	}
	return struct {
		Connections []connection `json:"connections"`
	}{[]connection{{a.o.ConnectionID, a.o.Tag, name}}}, nil
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
		return bare{struct {
			Valid  bool     `json:"valid"`
			Errors []string `json:"errors"`
		}{Errors: faults(ds)}}, nil
	}
	type definition struct {
		Name     string `json:"name"`
		Kind     string `json:"kind"`
		Priority int    `json:"priority"`
	}
	out := struct {
		Valid       bool          `json:"valid"`
		Definitions []definition  `json:"bucket_definitions"`
		Tables      []sourceTable `json:"source_tables"`
		Data        []string      `json:"data_tables"`
	}{true, []definition{}, []sourceTable{}, []string{}}
	for _, d := range plan.Definitions() {
		out.Definitions = append(out.Definitions, definition{d.Name, d.Kind.String(), d.Priority})
	}
	for _, t := range plan.SourceTables() {
		out.Tables = append(out.Tables, sourceTable{t.Schema, t.Name, t.Connection})
		out.Data = append(out.Data, t.Name)
	}
	return bare{out}, nil
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
	show := func(x *model.Stream) *currentConfig {
		if x == nil {
			return nil
		}
		out := &currentConfig{SlotName: x.Name, Content: x.Text(), Valid: true, State: x.State.String(), Stream: int64(x.ID), Identity: x.Content, DeployedBy: x.DeployedBy}
		if plan, ds := rules.Compile(x.Text(), rules.Options{DefaultSchema: a.o.DefaultSchema}); plan == nil {
			out.Valid, out.Errors = false, faults(ds)
		}
		return out
	}
	type pair struct {
		Current *currentConfig `json:"current"`
		Next    *currentConfig `json:"next"`
	}
	return bare{struct {
		Data pair `json:"data"`
	}{pair{show(s.active), show(s.next)}}}, nil
}

// currentConfig is a deployed config; what follows valid is ours.
type currentConfig struct {
	SlotName   string   `json:"slot_name"`
	Content    string   `json:"content"`
	Valid      bool     `json:"valid"`
	Errors     []string `json:"errors,omitempty"`
	State      string   `json:"state"`
	Stream     int64    `json:"stream"`
	Identity   string   `json:"identity"`
	DeployedBy string   `json:"deployed_by,omitempty"`
}

// sqlResult is the answer to execute-sql.
type sqlResult struct {
	Success bool `json:"success"`
	Results struct {
		Columns []string          `json:"columns"`
		Rows    []json.RawMessage `json:"rows"`
	} `json:"results"`
	Error string `json:"error,omitempty"`
}

func newSQLResult(failure string) *sqlResult {
	r := &sqlResult{Success: failure == "", Error: failure}
	r.Results.Columns, r.Results.Rows = []string{}, []json.RawMessage{}
	return r
}

func (a *API) executeSQL(c *call) (any, error) {
	var b struct {
		Connection *string `json:"connection_id"`
		SQL        struct {
			Query string            `json:"query"`
			Args  []json.RawMessage `json:"args"`
		} `json:"sql"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	switch {
	case b.SQL.Query == "":
		return nil, reply.NewFault("sql.query is required")
	case b.Connection != nil && *b.Connection != a.o.ConnectionID:
		return newSQLResult("There is no connection of this id"), nil
	case !a.o.DebugAPI:
		return newSQLResult("SQL querying is not enabled: set debug_api on the connection"), nil
	}
	args := make([]string, len(b.SQL.Args))
	for i, x := range b.SQL.Args {
		args[i] = string(x)
	}
	ctx, cancel := c.bounded()
	defer cancel()
	a.audit(c, "execute-sql") // not the query: it may have rows' data
	r, err := a.source.ExecuteSQL(ctx, &pb.ExecuteSQLRequest{Query: b.SQL.Query, JsonArgs: args})
	if err != nil {
		return nil, fmt.Errorf("execute SQL: %w", err)
	}
	if !r.GetSuccess() {
		return newSQLResult(cmp.Or(r.GetError(), "the query failed")), nil
	}
	out := newSQLResult("")
	out.Results.Columns = append(out.Results.Columns, r.GetColumns()...)
	for _, row := range r.GetJsonRows() {
		out.Results.Rows = append(out.Results.Rows, json.RawMessage(row))
	}
	return out, nil
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
	a.audit(c, "compact", "buckets", len(b.Buckets))
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

// teardown stops every stream. What is left to clean up it lists; to follow
// that, ask again.
func (a *API) teardown(c *call) (any, error) {
	var b struct {
		Confirm string `json:"confirm"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	if b.Confirm != "TEARDOWN" {
		return nil, errs.New(errs.S0102, "Teardown is not acknowledged: confirm must be TEARDOWN")
	}
	ctx, cancel := c.bounded()
	defer cancel()
	a.audit(c, "teardown")
	r, err := a.catalog.Teardown(ctx, &pb.TeardownRequest{})
	if err != nil {
		return nil, fmt.Errorf("tear down: %w", err)
	}
	left := []slot{}
	for _, x := range r.GetStreams() {
		left = append(left, slot{x.GetName()})
	}
	return map[string][]slot{"left": left}, nil
}
