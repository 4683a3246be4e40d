package admin

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
)

// traceID is what differs from one error to the next.
var traceID = regexp.MustCompile(`,"trace_id":"h/[0-9a-f-]{36}"`)

// TestShapes holds every answer of spec/06 §6 to the byte: clients of the
// reference read them.
func TestShapes(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC)
	stream := active(at)
	next := model.Stream{ID: 4, Name: "powersync_4", Config: "x: [", State: model.Processing}
	const tables = `"tables":[{"schema":"public","name":"lists","replication_id":["id"],"data_queries":true,"parameter_queries":false,"errors":[{"level":"warning","message":"no key"}]}]`
	quote := func(s string) string {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, c := range []struct {
		name    string
		streams []model.Stream
		options func(*Options)
		request string // method, path
		media   string
		body    string
		status  int
		want    string
	}{
		{"diagnostics without a config", nil, nil, "POST /api/admin/v1/diagnostics", "application/json", `{}`, 200,
			`{"data":{"connections":[{"id":"default","postgres_uri":"postgresql://h:5432/db","uri":"postgresql://h:5432/db","connected":true,` +
				`"errors":[{"level":"warning","message":"[PSYNC_S1145] row-level security. To fix it: ALTER ROLE x BYPASSRLS"}]}]}}`},
		{"diagnostics", stream, nil, "POST /api/admin/v1/diagnostics", "application/json", `{"sync_rules_content":true}`, 200,
			`{"data":{"connections":[{"id":"default","postgres_uri":"postgresql://h:5432/db","uri":"postgresql://h:5432/db","connected":true,` +
				`"errors":[{"level":"warning","message":"[PSYNC_S1145] row-level security. To fix it: ALTER ROLE x BYPASSRLS"}]}],` +
				`"active_sync_rules":{"content":` + quote(syncConfig) + `,"connections":[{"id":"default","tag":"default","slot_name":"powersync_3","initial_replication_done":true,` +
				`"last_lsn":"0/2","last_keepalive_ts":"2026-01-02T03:04:05.000678Z","last_checkpoint_ts":"2026-01-02T03:04:05.000678Z","replication_lag_bytes":5,` +
				`"wal_status":"lost","safe_wal_size":10,"max_slot_wal_keep_size":100,` + tables + `}],` +
				`"errors":[{"level":"fatal","message":"No replicated commit in more than AGEs"},{"level":"warning","message":"Less than half of the slot's WAL budget remains"},` +
				`{"level":"fatal","message":"The replication slot is lost"},{"level":"warning","message":"no key"}]}}}`},
		{"schema", nil, nil, "POST /api/admin/v1/schema", "application/json", `{}`, 200,
			`{"data":{"connections":[{"id":"default","tag":"default","schemas":[{"name":"public","tables":[{"name":"lists","columns":[` +
				`{"name":"id","sqlite_type":"text","internal_type":"text","type":"text","pg_type":"text"}],"estimated_rows":3}]}]}],"defaultConnectionTag":"default","defaultSchema":"public"}}`},
		{"execute-sql, off", nil, nil, "POST /api/admin/v1/execute-sql", "application/json", `{"sql":{"query":"SELECT 1","args":[]}}`, 200,
			`{"data":{"success":false,"results":{"columns":[],"rows":[]},"error":"SQL querying is not enabled: set debug_api on the connection"}}`},
		{"execute-sql", nil, debug, "POST /api/admin/v1/execute-sql", "application/json", `{"connection_id":"default","sql":{"query":"SELECT $1","args":[[1,"a"]]}}`, 200,
			`{"data":{"success":true,"results":{"columns":["a"],"rows":[[1,"a"]]}}}`},
		{"execute-sql, failed", nil, debug, "POST /api/admin/v1/execute-sql", "application/json", `{"sql":{"query":"BAD"}}`, 200,
			`{"data":{"success":false,"results":{"columns":[],"rows":[]},"error":"syntax error"}}`},
		{"execute-sql, elsewhere", nil, debug, "POST /api/admin/v1/execute-sql", "application/json", `{"connection_id":"x","sql":{"query":"SELECT 1"}}`, 200,
			`{"data":{"success":false,"results":{"columns":[],"rows":[]},"error":"There is no connection of this id"}}`},
		{"execute-sql, nothing", nil, debug, "POST /api/admin/v1/execute-sql", "application/json", `{}`, 400,
			`{"error":{"name":"ValidationError","code":"PSYNC_S2001","status":400,"description":"Validation failed","details":"[\"sql.query is required\"]"}}`},
		{"validate", nil, nil, "POST /api/admin/v1/validate", "application/json", `{"sync_rules":` + quote(syncConfig) + `}`, 200,
			`{"data":{"content":` + quote(syncConfig) + `,"connections":[{"id":"default","tag":"default","slot_name":"","initial_replication_done":false,` +
				tables + `}],"errors":[{"level":"warning","message":"no key"}]}}`},
		{"validate, with faults", nil, nil, "POST /api/admin/v1/validate", "application/json", `{"sync_rules":"bucket_definitions: {a: {data: [SELECT nmae FROM lists]}}"}`, 200,
			`{"data":{"content":"bucket_definitions: {a: {data: [SELECT nmae FROM lists]}}","connections":[{"id":"default","tag":"default","slot_name":"","initial_replication_done":false,"tables":[]}],` +
				`"errors":[{"level":"warning","message":"column nmae does not exist","location":{"start_offset":39,"end_offset":43}},` +
				`{"level":"fatal","message":"the query must return a column id","location":{"start_offset":39,"end_offset":43}}]}}`},
		{"validate, nothing", nil, nil, "POST /api/admin/v1/validate", "application/json", `{}`, 400,
			`{"error":{"name":"ValidationError","code":"PSYNC_S2001","status":400,"description":"Validation failed","details":"[\"sync_rules is required\"]"}}`},
		{"reprocess", stream, nil, "POST /api/admin/v1/reprocess", "application/json", `{}`, 200, `{"data":{"connections":[{"id":"default","tag":"default","slot_name":"powersync_9"}]}}`},
		{"reprocess, none active", nil, nil, "POST /api/admin/v1/reprocess", "application/json", `{}`, 422,
			`{"error":{"name":"ServiceError","code":"PSYNC_S4104","status":422,"description":"No active sync config"}}`},
		{"reprocess, busy", append(active(at), next), nil, "POST /api/admin/v1/reprocess", "application/json", `{}`, 409,
			`{"error":{"name":"ServiceError","code":"PSYNC_S4106","status":409,"description":"Busy processing sync config - cannot reprocess"}}`},
		{"sync-rules reprocess", stream, nil, "POST /api/sync-rules/v1/reprocess", "application/json", `{}`, 200, `{"data":{"slot_name":"powersync_9"}}`},
		{"sync-rules reprocess, none active", nil, nil, "POST /api/sync-rules/v1/reprocess", "application/json", `{}`, 422,
			`{"error":{"name":"ServiceError","code":"PSYNC_S4104","status":422,"description":"No active sync config"}}`},
		{"deploy YAML", nil, nil, "POST /api/sync-rules/v1/deploy", "application/yaml", syncConfig, 200, `{"data":{"slot_name":"powersync_9"}}`},
		{"deploy JSON", nil, nil, "POST /api/sync-rules/v1/deploy", "application/json; charset=utf-8", `{"content":` + quote(syncConfig) + `}`, 200, `{"data":{"slot_name":"powersync_9"}}`},
		{"deploy, from a file", nil, func(o *Options) { o.FromFile = true }, "POST /api/sync-rules/v1/deploy", "application/yaml", syncConfig, 422,
			`{"error":{"name":"ServiceError","code":"PSYNC_S4105","status":422,"description":"Sync config API is disabled: the sync config is given by the service config"}}`},
		{"deploy, invalid", nil, nil, "POST /api/sync-rules/v1/deploy", "application/yaml", "bucket_definitions: 1", 422,
			`{"error":{"name":"SyncRulesError","code":"PSYNC_R0001","status":422,"description":"Sync config is not valid","details":"1:21: bucket_definitions must be a map\neither bucket_definitions or streams must be there"}}`},
		{"sync-rules validate", nil, nil, "POST /api/sync-rules/v1/validate", "application/yaml", syncConfig, 200, `{
  "valid": true,
  "bucket_definitions": [
    {
      "name": "mine",
      "kind": "bucket definition",
      "priority": 3
    }
  ],
  "source_tables": [
    {
      "schema": "public",
      "table": "lists",
      "connectionTag": "default"
    }
  ],
  "data_tables": [
    "lists"
  ]
}
`},
		{"sync-rules validate, invalid", nil, nil, "POST /api/sync-rules/v1/validate", "application/yaml", "bucket_definitions: 1", 200, "{\n  \"valid\": false,\n  \"errors\": [\n    \"1:21: bucket_definitions must be a map\",\n    \"either bucket_definitions or streams must be there\"\n  ]\n}\n"},
		{"current", append(active(at), next), nil, "GET /api/sync-rules/v1/current", "", "", 200, `{
  "data": {
    "current": {
      "slot_name": "powersync_3",
      "content": ` + quote(syncConfig) + `,
      "valid": true,
      "state": "ACTIVE",
      "stream": 3,
      "identity": ""
    },
    "next": {
      "slot_name": "powersync_4",
      "content": "x: [",
      "valid": false,
      "errors": [
        "1:5: did not find expected node content"
      ],
      "state": "PROCESSING",
      "stream": 4,
      "identity": ""
    }
  }
}
`},
		{"current, one", stream, nil, "GET /api/sync-rules/v1/current", "", "", 200, "{\n  \"data\": {\n    \"current\": {\n      \"slot_name\": \"powersync_3\",\n      \"content\": " + quote(syncConfig) +
			",\n      \"valid\": true,\n      \"state\": \"ACTIVE\",\n      \"stream\": 3,\n      \"identity\": \"\"\n    },\n    \"next\": null\n  }\n}\n"},
		{"current, none active", nil, nil, "GET /api/sync-rules/v1/current", "", "", 422, `{"error":{"name":"ServiceError","code":"PSYNC_S4104","status":422,"description":"No active sync config"}}`},
		{"another path", nil, nil, "POST /api/admin/v1/nothing", "application/json", "{}", 404, `{"error":{"name":"RouteNotFound","code":"PSYNC_S2002","status":404,"description":"Path not found"}}`},
		{"media type", nil, nil, "POST /api/sync-rules/v1/deploy", "image/png", "x", 415,
			`{"error":{"name":"UnsupportedMediaType","code":"PSYNC_S2004","status":415,"description":"Unsupported media type: send application/yaml or application/json"}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAPI(t, &fakes{streams: c.streams}, c.options)
			method, path, _ := strings.Cut(c.request, " ")
			status, got := ask(a, method, path, "Token one", c.media, c.body)
			got = traceID.ReplaceAllString(got, "")
			if got = ageText.ReplaceAllString(got, "more than AGEs"); status != c.status || got != c.want {
				t.Errorf("%d\n%s\nwant\n%s", status, got, c.want)
			}
		})
	}
	// Without a token.
	if status, got := ask(newAPI(t, &fakes{}, nil), "POST", "/api/admin/v1/schema", "", "", ""); status != 401 ||
		traceID.ReplaceAllString(got, "") != `{"error":{"name":"AuthorizationError","code":"PSYNC_S2101","status":401,"description":"Authorization failed"}}` {
		t.Errorf("%d %s", status, got)
	}
}

func debug(o *Options) { o.DebugAPI = true }

// ageText is what differs from one time to the next.
var ageText = regexp.MustCompile(`more than \d+s`)

// TestStale: spec/06 §6.1's limits.
func TestStale(t *testing.T) {
	for age, want := range map[time.Duration]string{
		4 * time.Minute:               ``,
		5*time.Minute + time.Second:   `{"level":"warning","message":"No replicated commit in more than 301s"}`,
		15*time.Minute + time.Second:  `{"level":"fatal","message":"No replicated commit in more than 901s"}`,
		100*time.Minute + time.Second: `{"level":"fatal","message":"No replicated commit in more than 6001s"}`,
	} {
		a := newAPI(t, &fakes{streams: active(time.Now().Add(-age))}, nil)
		_, got := post(a, "/api/admin/v1/diagnostics", "{}")
		if !strings.Contains(got, want) || strings.Contains(got, "No replicated commit") != (want != "") {
			t.Errorf("%s: %s", age, got)
		}
	}
	// While tables are copied there is none.
	s := active(time.Now().Add(-time.Hour))
	s[0].Head.SnapshotDone = false
	if _, got := post(newAPI(t, &fakes{streams: s}, nil), "/api/admin/v1/diagnostics", "{}"); strings.Contains(got, "No replicated commit") {
		t.Errorf("during the copy: %s", got)
	}
	s = active(time.Now())
	s[0].Head.LastError, s[0].Head.LastErrorAt = "boom", model.Micros(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro())
	if _, got := post(newAPI(t, &fakes{streams: s}, nil), "/api/admin/v1/diagnostics", "{}"); !strings.Contains(got, `{"level":"fatal","message":"boom","ts":"2026-01-02T03:04:05Z"}`) {
		t.Errorf("last error: %s", got)
	}
}

// TestScopes: what each kind of token may do.
func TestScopes(t *testing.T) {
	const full, read, deploy, compact = "Token one", "Token r", "Token d", "Token c"
	all := []string{full, read, deploy, compact}
	a := newAPI(t, &fakes{streams: active(time.Now())}, func(o *Options) {
		o.DebugAPI = true
		o.List = func(string, int) ([]fanout.Info, int) { return nil, 0 }
	})
	for request, allowed := range map[string][]string{
		"POST /api/admin/v1/diagnostics {}":                                      {full, read},
		"POST /api/admin/v1/schema {}":                                           {full, read, deploy},
		`POST /api/admin/v1/validate {"sync_rules":""}`:                          {full, read, deploy},
		"POST /api/admin/v1/reprocess {}":                                        {full, deploy},
		`POST /api/admin/v1/execute-sql {"sql":{"query":"SELECT 1","args":[1]}}`: {full},
		"POST /api/admin/v1/sluice/status {}":                                    {full, read, deploy},
		"POST /api/admin/v1/sluice/sessions {}":                                  {full, read},
		"POST /api/admin/v1/sluice/compact {}":                                   {full, compact},
		`POST /api/admin/v1/sluice/teardown {"confirm":"TEARDOWN"}`:              {full},
		`POST /api/sync-rules/v1/deploy {"content":"streams: {}"}`:               {full, deploy},
		"POST /api/admin/v1/sluice/rollback {}":                                  {full, deploy},
		"POST /api/sync-rules/v1/reprocess {}":                                   {full, deploy},
		`POST /api/sync-rules/v1/validate {"content":""}`:                        {full, read, deploy},
		"GET /api/sync-rules/v1/current ":                                        {full, read, deploy},
	} {
		part := strings.SplitN(request, " ", 3)
		for _, token := range all {
			status, got := ask(a, part[0], part[1], token, "application/json", part[2])
			may := strings.Contains(strings.Join(allowed, ","), token)
			if may == (status == 403) || status == 401 || may && status != 200 && !strings.Contains(got, "R0001") && !strings.Contains(got, "No earlier") || !may && !strings.Contains(got, "PSYNC_S9020") {
				t.Errorf("%s with %s: %d %s", request, token, status, got)
			}
		}
	}
}

// TestAudit: who changed something is logged and handed on by name, and no
// token is.
func TestAudit(t *testing.T) {
	var log bytes.Buffer
	f := &fakes{streams: active(time.Now())}
	a := newAPI(t, f, func(o *Options) {
		o.Log, o.DebugAPI = slog.New(slog.NewTextHandler(&log, nil)), true
		o.Tokens, o.Scoped[1].Token = []string{"the-first-token", "the-second-token"}, "the-ci-token"
	})
	defer func() { scoped[1].Token = "d" }()
	for _, c := range []struct{ token, path, body, want string }{
		{"the-second-token", "/api/sync-rules/v1/deploy", `{"content":"bucket_definitions: {a: {data: [SELECT * FROM lists]}}"}`, `action=deploy by=api.tokens[1] address=192.0.2.1 request=h/`},
		{"the-ci-token", "/api/admin/v1/reprocess", "{}", `action=reprocess by=ci address=192.0.2.1`},
		{"the-first-token", "/api/admin/v1/sluice/compact", "{}", `action=compact by=api.tokens[0]`},
		{"the-first-token", "/api/admin/v1/execute-sql", `{"sql":{"query":"SELECT 'private'","args":["private"]}}`, `action=execute-sql by=api.tokens[0]`},
		{"the-first-token", "/api/admin/v1/sluice/teardown", `{"confirm":"TEARDOWN"}`, `action=teardown by=api.tokens[0]`},
	} {
		log.Reset()
		f.deployed = nil
		if status, got := ask(a, "POST", c.path, "Bearer "+c.token, "application/json", c.body); status != 200 {
			t.Errorf("%s: %d %s", c.path, status, got)
		}
		if got := log.String(); !strings.Contains(got, "msg=audit "+c.want) || strings.Contains(got, "-token") || strings.Contains(got, "private") {
			t.Errorf("%s: %s", c.path, got)
		}
		if f.deployed != nil && !strings.Contains(c.want, "by="+f.deployed.GetDeployedBy()) {
			t.Errorf("%s: deployed by %q", c.path, f.deployed.GetDeployedBy())
		}
	}
	f.streams[0].DeployedBy, f.streams[0].Created = "ci", model.Micros(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro())
	if _, got := post2(a, "/api/admin/v1/sluice/status"); !strings.Contains(got, `"deployed_at":"2026-01-02T03:04:05Z","deployed_by":"ci"`) {
		t.Errorf("status: %s", got)
	}
	f.streams[0].DeployedBy, f.streams[0].FromFile = "", true
	if _, got := post2(a, "/api/admin/v1/sluice/status"); !strings.Contains(got, `"deployed_by":"file"`) {
		t.Errorf("status: %s", got)
	}
}

func post2(a *API, path string) (int, string) {
	return ask(a, "POST", path, "Token the-first-token", "application/json", "{}")
}

func TestTeardown(t *testing.T) {
	f := &fakes{streams: active(time.Now())}
	a := newAPI(t, f, nil)
	for _, body := range []string{"{}", `{"confirm":"teardown"}`} {
		if status, got := post(a, "/api/admin/v1/sluice/teardown", body); status != 400 || !strings.Contains(got, "PSYNC_S0102") || f.torn != 0 {
			t.Errorf("%d %s", status, got)
		}
	}
	if status, got := post(a, "/api/admin/v1/sluice/teardown", `{"confirm":"TEARDOWN"}`); status != 200 || got != `{"data":{"left":[{"slot_name":"powersync_3"}]}}` || f.torn != 1 {
		t.Errorf("%d %s", status, got)
	}
}

func TestSessions(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var asked struct {
		user string
		most int
	}
	a := newAPI(t, &fakes{}, func(o *Options) {
		o.List = func(user string, most int) ([]fanout.Info, int) {
			asked.user, asked.most = user, most
			return []fanout.Info{
				{Who: fanout.Who{User: "u1", Client: "c1", Agent: "sdk/1", Transport: "websocket"}, Since: at, Buckets: 2, Checkpoint: 7, Missing: 3, Ops: 5, Late: time.Now().Add(time.Hour)},
				{Who: fanout.Who{User: "u2", Transport: "http"}, Since: at, Checkpoint: 12},
			}, 30
		}
	})
	status, got := post(a, "/api/admin/v1/sluice/sessions", `{"user":"u","limit":2}`)
	if want := `{"data":{"gateway":"gw-1","total":30,"sessions":[` +
		`{"user":"u1","client_id":"c1","agent":"sdk/1","transport":"websocket","since":"2026-01-02T03:04:05Z","buckets":2,"checkpoint":"7","behind":{"checkpoints":3,"ops":5,"ms":0}},` +
		`{"user":"u2","client_id":"","agent":"","transport":"http","since":"2026-01-02T03:04:05Z","buckets":0,"checkpoint":"12","behind":{"checkpoints":0,"ops":0,"ms":0}}]}}`; status != 200 || got != want || asked.user != "u" || asked.most != 2 {
		t.Errorf("%d %s\nwant %s\n%+v", status, got, want, asked)
	}
	if post(a, "/api/admin/v1/sluice/sessions", ""); asked.user != "" || asked.most != 100 {
		t.Errorf("%+v", asked)
	}
	for _, body := range []string{`{"limit":0}`, `{"limit":1001}`, `{"limit":"x"}`} {
		if status, got := post(a, "/api/admin/v1/sluice/sessions", body); status != 400 {
			t.Errorf("%s: %d %s", body, status, got)
		}
	}
}

// TestCopy: how far an initial copy is, with the tables that wait for their turn.
func TestCopy(t *testing.T) {
	now := time.UnixMicro(100_000_000)
	x := &model.Stream{State: model.Processing, Created: 40_000_000}
	stored := []*pb.TableProgress{
		{Table: &pb.SourceTable{Schema: "public", Name: "a"}, Rows: 100, Estimate: 90, Done: true},
		{Table: &pb.SourceTable{Schema: "public", Name: "b"}, Rows: 50, Estimate: 200},
	}
	d := &pb.StreamDiagnosis{Tables: []*pb.TableDiagnosis{
		{Schema: "public", Name: "a", Estimate: 90, ReplicationId: []string{"id"}}, {Schema: "public", Name: "b", Estimate: 200, ReplicationId: []string{"id"}},
		{Schema: "public", Name: "c", Estimate: 150, ReplicationId: []string{"id"}}, {Schema: "public", Name: "not found"},
	}}
	for _, c := range []struct {
		stored []*pb.TableProgress
		d      *pb.StreamDiagnosis
		want   string
	}{
		{stored, d, `{"tables":3,"tables_done":1,"rows":150,"rows_estimated":450,"eta_ms":120000}`},
		{stored, nil, `{"tables":2,"tables_done":1,"rows":150,"rows_estimated":300,"eta_ms":null}`},
		{nil, d, `{"tables":3,"tables_done":0,"rows":0,"rows_estimated":440,"eta_ms":null}`},
	} {
		got, err := json.Marshal(copied(x, c.stored, c.d, now))
		if err != nil || string(got) != c.want {
			t.Errorf("%s, %v, want %s", got, err, c.want)
		}
	}
	// A later copy, which is compared with what is stored.
	for applied, want := range map[model.Position]string{
		"}":     `{"compares":"the replication slot was lost","tables":3,"tables_done":0,"rows":0,"rows_estimated":300,"eta_ms":null}`,
		"}~0/1": `{"compares":"the source has another history than what is stored","tables":3,"tables_done":1,"rows":150,"rows_estimated":450,"eta_ms":null}`,
	} {
		x := &model.Stream{State: model.Active, Created: x.Created, Head: model.StreamHead{Applied: model.Cursor{Position: applied}}}
		if got, err := json.Marshal(copied(x, stored, d, now)); err != nil || string(got) != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
	if copied(&model.Stream{State: model.Active}, stored, d, now) != nil || copied(&model.Stream{State: model.Processing, Head: model.StreamHead{SnapshotDone: true}}, stored, d, now) != nil {
		t.Error("a copy that is done has progress")
	}
}
