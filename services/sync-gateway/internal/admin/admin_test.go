package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakes are the catalog, the source and the compactor.
type fakes struct {
	pb.UnimplementedCatalogServer
	pb.UnimplementedSourceServer
	pb.UnimplementedCompactorServer
	pb.UnimplementedStorageServer
	streams  []model.Stream
	tables   map[int64]*pb.TableProgressList
	deployed *pb.DeployRequest
	torn     int
	compact  *pb.CompactRequest
	away     bool
	age      time.Duration
	hold     chan struct{} // holds reads of the schema until it is closed
}

func (f *fakes) List(context.Context, *pb.ListRequest) (*pb.ListReply, error) {
	return &pb.ListReply{Streams: wire.Streams(f.streams), Tables: f.tables}, nil
}

func (f *fakes) Deploy(_ context.Context, r *pb.DeployRequest) (*pb.DeployReply, error) {
	f.deployed = r
	return &pb.DeployReply{Stream: &pb.Stream{Id: 9, Name: "powersync_9", State: pb.StreamState_STREAM_STATE_PROCESSING}, Created: true}, nil
}

func (f *fakes) Diagnose(_ context.Context, r *pb.DiagnoseRequest) (*pb.DiagnoseReply, error) {
	if f.away {
		return nil, errs.New(errs.S1302, "away")
	}
	at := time.Now().Add(-f.age).UnixMicro()
	out := &pb.DiagnoseReply{Connected: true, Uri: "postgresql://h:5432/db", HeartbeatRead: at, HeartbeatPublished: at,
		Problems: []*pb.Problem{{Code: "PSYNC_S1145", Message: "row-level security", Fix: "ALTER ROLE x BYPASSRLS"}}}
	for _, s := range r.GetStreams() {
		d := &pb.StreamDiagnosis{Stream: s.GetStream(), LagBytes: 5, WalStatus: "lost", SafeWalSize: 10, MaxSlotWalKeepSize: 100,
			Tables: []*pb.TableDiagnosis{{Schema: "public", Name: "lists", ReplicationId: []string{"id"}, Problems: []*pb.Problem{{Message: "no key"}}}}}
		for _, t := range s.GetTables() {
			if t.GetName() != "lists" {
				d.Tables = append(d.Tables, &pb.TableDiagnosis{Schema: t.GetSchema(), Name: t.GetName(), Problems: []*pb.Problem{{Message: "table " + t.GetName() + " not found"}}})
			}
		}
		out.Streams = append(out.Streams, d)
	}
	return out, nil
}

func (f *fakes) Schema(context.Context, *pb.SchemaRequest) (*pb.SchemaReply, error) {
	if f.hold != nil {
		<-f.hold
	}
	if f.away {
		return nil, errs.New(errs.S1302, "away")
	}
	return &pb.SchemaReply{DefaultSchema: "public", Tables: []*pb.SchemaTable{{Schema: "public", Name: "lists", Rows: 3, Bytes: -1, Columns: []*pb.SchemaColumn{{Name: "id", Type: "text", SqliteType: "text"}}}}}, nil
}

func (f *fakes) ExecuteSQL(_ context.Context, r *pb.ExecuteSQLRequest) (*pb.ExecuteSQLReply, error) {
	if r.GetQuery() == "BAD" {
		return &pb.ExecuteSQLReply{Error: "syntax error"}, nil
	}
	return &pb.ExecuteSQLReply{Success: true, Columns: []string{"a"}, JsonRows: []string{r.GetJsonArgs()[0]}}, nil
}

func (f *fakes) Teardown(context.Context, *pb.TeardownRequest) (*pb.TeardownReply, error) {
	f.torn++
	return &pb.TeardownReply{Streams: wire.Streams(f.streams)}, nil
}

func (f *fakes) Compact(_ context.Context, r *pb.CompactRequest) (*pb.CompactReply, error) {
	f.compact = r
	return &pb.CompactReply{Buckets: 1, OpsRead: 2, OpsMoved: 3, OpsCleared: 4, LookupsRemoved: 5}, nil
}

const syncConfig = "bucket_definitions:\n  mine:\n    data:\n      - SELECT * FROM lists\n"

// scoped has a token of each scope.
var scoped = []config.AdminToken{
	{Name: "dashboard", Token: "r", Scopes: []config.Scope{config.ScopeRead}},
	{Name: "ci", Token: "d", Scopes: []config.Scope{config.ScopeDeploy}},
	{Name: "cron", Token: "c", Scopes: []config.Scope{config.ScopeCompact}},
}

func newAPI(t *testing.T, f *fakes, change func(*Options)) *API {
	t.Helper()
	lis, conn := rpc.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log := slog.New(slog.DiscardHandler)
	go func() {
		done <- rpc.Serve(ctx, lis, service.Env{Log: log}, func(r grpc.ServiceRegistrar) {
			pb.RegisterCatalogServer(r, f)
			pb.RegisterSourceServer(r, f)
			pb.RegisterCompactorServer(r, f)
			pb.RegisterStorageServer(r, f)
		})
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	o := Options{Store: conn, Source: conn, Compactor: conn, Tokens: []string{"one", "two"}, Scoped: scoped, Instance: "gw-1", DefaultSchema: "public", ConnectionID: "default", Tag: "default", Heartbeat: time.Second,
		Sessions: func() int { return 7 }, Log: log,
		Beats: func() []freshness.Beat {
			now := time.Now().UnixMicro()
			return []freshness.Beat{{Stage: freshness.Noticed, At: now}, {Stage: freshness.Delivered, At: now}}
		},
		Links: func() map[string]time.Time { return map[string]time.Time{"nats": time.Now()} }}
	if change != nil {
		change(&o)
	}
	return New(o)
}

func ask(a *API, method, path, token, contentType, body string) (int, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", token)
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func post(a *API, path, body string) (int, string) {
	return ask(a, http.MethodPost, path, "Bearer two", "application/json", body)
}

func active(at time.Time) []model.Stream {
	m := model.Micros(at.UnixMicro())
	return []model.Stream{{ID: 3, Name: "powersync_3", Config: syncConfig, State: model.Active,
		Head: model.StreamHead{Checkpoint: model.Checkpoint{Op: 42, Position: "0/2"}, SnapshotDone: true, EvaluatedAt: m, StoredAt: m, Heartbeat: m}}}
}

// The old data is served while tables are compared because the history is lost,
// and the status says why it is stale.
func TestStatusCompares(t *testing.T) {
	now := time.Now()
	streams := active(now)
	h := &streams[0].Head
	h.LastError, h.SnapshotDone, h.Applied.Position = "[PSYNC_S1146] the history is lost", false, h.Checkpoint.Position.Next(true)+"0/1"
	h.Heartbeat = model.Micros(now.Add(-time.Hour).UnixMicro())
	a := newAPI(t, &fakes{streams: streams}, nil)
	_, body := post(a, "/api/admin/v1/sluice/status", "")
	var s struct {
		Data struct {
			Healthy bool
			Stages  []stage
			Streams []streamStatus
		}
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	if s.Data.Healthy || len(s.Data.Stages) != 6 || s.Data.Stages[3].OK || s.Data.Stages[3].Detail != "[PSYNC_S1146] the history is lost" {
		t.Errorf("%s", body)
	}
	if x := s.Data.Streams; len(x) != 1 || x[0].State != "ACTIVE" || x[0].LastError == "" || x[0].Position != "0/2" || x[0].Copy == nil || x[0].Copy.Compares != "the source has another history than what is stored" {
		t.Errorf("%s", body)
	}
	_, body = post(a, "/api/admin/v1/diagnostics", "")
	if !strings.Contains(body, `{"level":"fatal","message":"[PSYNC_S1146] the history is lost"`) {
		t.Errorf("%s", body)
	}
}

func TestTokens(t *testing.T) {
	a := newAPI(t, &fakes{}, nil)
	for _, token := range []string{"", "one", "Token", "Token ", "Token One", "Bearer onetwo", "Token three", "Basic one"} {
		if status, body := ask(a, "POST", "/api/admin/v1/sluice/status", token, "application/json", "{"); status != 401 || !strings.Contains(body, "PSYNC_S2101") {
			t.Errorf("%q: %d %s", token, status, body)
		}
	}
	for _, token := range []string{"Token one", "Bearer two"} {
		if status, body := ask(a, "POST", "/api/admin/v1/sluice/status", token, "", ""); status != 200 {
			t.Errorf("%q: %d %s", token, status, body)
		}
	}
	closed := newAPI(t, &fakes{}, func(o *Options) { o.Tokens = nil })
	for _, token := range []string{"", "Token ", "Token x"} {
		if status, _ := ask(closed, "POST", "/api/admin/v1/schema", token, "", ""); status != 401 {
			t.Errorf("no tokens configured, %q: %d", token, status)
		}
	}
}

func TestDeploy(t *testing.T) {
	f := &fakes{streams: active(time.Now())}
	a := newAPI(t, f, nil)
	quoted, err := json.Marshal(map[string]string{"content": syncConfig})
	if err != nil {
		t.Fatal(err)
	}
	for media, body := range map[string]string{"application/yaml": syncConfig, "application/json": string(quoted)} {
		f.deployed = nil
		status, got := ask(a, "POST", "/api/sync-rules/v1/deploy", "Token one", media, body)
		if status != 200 || !strings.Contains(got, `"slot_name":"powersync_9"`) {
			t.Fatalf("%d %s", status, got)
		}
		if f.deployed.GetConfig() != syncConfig || len(f.deployed.GetTables()) != 1 || f.deployed.GetTables()[0].GetName() != "lists" || f.deployed.GetForce() {
			t.Errorf("%v", f.deployed)
		}
	}
	f.deployed = nil
	status, got := ask(a, "POST", "/api/sync-rules/v1/deploy", "Token one", "application/yaml", "bucket_definitions:\n  mine:\n    data:\n      - SELEC * FROM lists\n")
	if status != 422 || !strings.Contains(got, "PSYNC_R0001") || !strings.Contains(got, `"details":"4:`) || f.deployed != nil {
		t.Errorf("%d %s", status, got)
	}
	if status, got := ask(a, "POST", "/api/sync-rules/v1/deploy", "Token one", "image/png", "x"); status != 415 {
		t.Errorf("%d %s", status, got)
	}
	file := newAPI(t, f, func(o *Options) { o.FromFile = true })
	if status, got := ask(file, "POST", "/api/sync-rules/v1/deploy", "Token one", "application/yaml", syncConfig); status != 422 || !strings.Contains(got, "PSYNC_S4105") || f.deployed != nil {
		t.Errorf("%d %s", status, got)
	}
	if status, got := ask(file, "POST", "/api/sync-rules/v1/deploy?override=true", "Token one", "application/yaml", syncConfig); status != 200 || f.deployed == nil {
		t.Errorf("%d %s", status, got)
	}
}

// TestRollback: whose config it is that a rollback deploys.
func TestRollback(t *testing.T) {
	stream := func(id int, config string, state model.StreamState, served bool) model.Stream {
		s := model.Stream{ID: model.StreamID(id), Name: fmt.Sprint("s_", id), Config: config, Content: config[:1], State: state}
		if served {
			s.Activated = model.Micros(id)
		}
		return s
	}
	edited := stream(2, "b", model.Active, true)
	edited.Edited, edited.EditedContent, edited.Former = "b # less", "B", "b"
	adding := edited
	adding.Next, adding.NextContent = "c", "C"
	const gone, now, next, lost = model.Terminated, model.Active, model.Processing, model.Errored
	for _, c := range []struct {
		name    string
		streams []model.Stream
		want    string // "" = none
		text    string // "" = that of the stream
	}{
		{"nothing is deployed", nil, "", ""},
		{"nothing is active", []model.Stream{stream(1, "a", next, false)}, "", ""},
		{"the first", []model.Stream{stream(1, "a", now, true)}, "", ""},
		{"the second", []model.Stream{stream(1, "a", gone, true), stream(2, "b", now, true)}, "s_1", ""},
		{"one between was never active", []model.Stream{stream(1, "a", gone, true), stream(2, "b", gone, false), stream(3, "c", now, true)}, "s_1", ""},
		{"built anew since", []model.Stream{stream(1, "a", gone, true), stream(2, "b", gone, true), stream(3, "b # again", now, true)}, "s_1", ""},
		{"gone back before", []model.Stream{stream(1, "a", gone, true), stream(2, "b", gone, true), stream(3, "a", now, true)}, "s_2", ""},
		{"one is on its way", []model.Stream{stream(1, "a", gone, true), stream(2, "b", now, true), stream(3, "c", next, false)}, "s_2", ""},
		{"the same is on its way", []model.Stream{stream(1, "a", gone, true), stream(2, "b", lost, true), stream(3, "b", next, false)}, "s_1", ""},
		{"versions of before had no content", []model.Stream{{ID: 1, Config: "a", State: now, Activated: 1}, {ID: 2, Config: "b", State: next}}, "", ""},
		{"served by another config of the same data", []model.Stream{stream(1, "a", gone, true), edited}, "s_2", "b"},
		{"what another needs is being added", []model.Stream{adding}, "s_2", "b # less"},
		{"another is on its way while it is", []model.Stream{edited, stream(3, "c", next, false)}, "s_2", "b # less"},
	} {
		got, text := before(c.streams)
		if c.text == "" && got != nil {
			c.text = got.Text()
		}
		if got == nil && c.want != "" || got != nil && got.Name != c.want || text != c.text {
			t.Errorf("%s: %+v %q, want %s %q", c.name, got, text, c.want, c.text)
		}
	}
	f := &fakes{streams: []model.Stream{stream(1, syncConfig, gone, true), stream(2, "x", now, true)}}
	f.streams[0].Edited = syncConfig + "# edited\n"
	a := newAPI(t, f, nil)
	status, got := post(a, "/api/admin/v1/sluice/rollback", "")
	if status != 200 || !strings.Contains(got, `"slot_name":"powersync_9"`) || !strings.Contains(got, `"to":"s_1","activated_at":"1970-01-01T00:00:00.000001Z"`) {
		t.Errorf("%d %s", status, got)
	}
	if f.deployed.GetConfig() != f.streams[0].Edited || f.deployed.GetForce() || len(f.deployed.GetContent()) != 64 {
		t.Errorf("deployed %v", f.deployed)
	}
	status, got = ask(a, "POST", "/api/admin/v1/sluice/plan", "Token one", "application/yaml", syncConfig)
	if want := `{"data":{"current":"x","copies":true,"serves":false,"adds":false,"tables":[],"reason":"","replaced":""}}`; status != 200 || got != want || !f.deployed.GetDryRun() || len(f.deployed.GetParts()) != 1 {
		t.Errorf("%d %s %v", status, got, f.deployed)
	}
	f.streams = f.streams[1:]
	if status, got := post(a, "/api/admin/v1/sluice/rollback", ""); status != 422 || !strings.Contains(got, "No earlier sync config") {
		t.Errorf("%d %s", status, got)
	}
}

func TestReprocess(t *testing.T) {
	f := &fakes{}
	a := newAPI(t, f, nil)
	if status, got := post(a, "/api/sync-rules/v1/reprocess", ""); status != 422 || !strings.Contains(got, "PSYNC_S4104") {
		t.Errorf("%d %s", status, got)
	}
	f.streams = active(time.Now())
	if status, got := post(a, "/api/admin/v1/reprocess", "{}"); status != 200 || !f.deployed.GetForce() || !strings.Contains(got, `{"data":{"connections":[{"id":"default","tag":"default","slot_name":"powersync_9"}]}}`) {
		t.Errorf("%d %s", status, got)
	}
	f.streams = append(f.streams, model.Stream{ID: 4, State: model.Processing})
	for _, path := range []string{"/api/sync-rules/v1/reprocess", "/api/admin/v1/reprocess"} {
		if status, got := post(a, path, "{}"); status != 409 || !strings.Contains(got, "PSYNC_S4106") {
			t.Errorf("%s: %d %s", path, status, got)
		}
	}
}

func TestValidate(t *testing.T) {
	a := newAPI(t, &fakes{}, nil)
	if status, got := ask(a, "POST", "/api/sync-rules/v1/validate", "Token one", "application/yaml", syncConfig); status != 200 || !strings.Contains(got, `"valid": true`) || strings.Contains(got, `"data":`) {
		t.Errorf("%d %s", status, got)
	}
	if status, got := ask(a, "POST", "/api/sync-rules/v1/validate", "Token one", "application/yaml", "x: ["); status != 200 || !strings.Contains(got, `"valid": false`) {
		t.Errorf("%d %s", status, got)
	}
	body, err := json.Marshal(map[string]string{"sync_rules": "bucket_definitions:\n  mine:\n    data:\n      - SELECT nmae FROM lists\n      - SELECT * FROM listz\n"})
	if err != nil {
		t.Fatal(err)
	}
	status, got := post(a, "/api/admin/v1/validate", string(body))
	for _, want := range []string{
		`{"level":"warning","message":"column nmae does not exist","location":{"start_offset":`,
		`{"level":"warning","message":"table public.listz does not exist; is it lists?","location":{"start_offset":`,
	} {
		if status != 200 || !strings.Contains(got, want) {
			t.Errorf("no %s: %d %s", want, status, got)
		}
	}
}

// TestValidateMissing: a missing table is told once in the list, with its
// place, and once with the table; other findings about tables are in both.
func TestValidateMissing(t *testing.T) {
	a := newAPI(t, &fakes{}, nil)
	_, got := post(a, "/api/admin/v1/validate", `{"sync_rules":"bucket_definitions: {mine: {data: [SELECT * FROM lists, SELECT * FROM listz]}}"}`)
	list, table := errorLists(t, got)
	if n := strings.Count(list, "listz"); n != 1 || !strings.Contains(list, "location") || !strings.Contains(list, "no key") {
		t.Errorf("the list names it %d times: %s", n, list)
	}
	if !strings.Contains(table, "table listz not found") || !strings.Contains(table, "no key") {
		t.Errorf("tables: %s", table)
	}
}

// errorLists are the top-level list of a status, and the tables with theirs.
func errorLists(t *testing.T, status string) (list, tables string) {
	t.Helper()
	var s struct {
		Data struct {
			Errors      json.RawMessage
			Connections []struct{ Tables json.RawMessage }
		}
	}
	if err := json.Unmarshal([]byte(status), &s); err != nil || len(s.Data.Connections) != 1 {
		t.Fatalf("%v in %s", err, status)
	}
	return string(s.Data.Errors), string(s.Data.Connections[0].Tables)
}

// The source's schema is that of the connection, whatever its tag.
func TestValidateTag(t *testing.T) {
	a := newAPI(t, &fakes{}, func(o *Options) { o.Tag = "app" })
	status, got := post(a, "/api/admin/v1/validate", `{"sync_rules":"bucket_definitions: {b: {data: ['SELECT id FROM lists', 'SELECT id FROM \"app.public\".lists']}}"}`)
	if status != 200 || strings.Contains(got, "does not exist") || !strings.Contains(got, `"tag":"app"`) {
		t.Errorf("%d %s", status, got)
	}
}

// What a table is read for is told with it.
func TestValidateTables(t *testing.T) {
	a := newAPI(t, &fakes{}, nil)
	for config, want := range map[string]string{
		"bucket_definitions: {b: {data: [SELECT * FROM lists]}}":                                                                                  `"data_queries":true,"parameter_queries":false`,
		"bucket_definitions: {b: {parameters: SELECT id FROM lists WHERE id = request.user_id(), data: ['SELECT * FROM t WHERE l = bucket.id']}}": `"data_queries":false,"parameter_queries":true`,
	} {
		body, err := json.Marshal(map[string]string{"sync_rules": config})
		if err != nil {
			t.Fatal(err)
		}
		if status, got := post(a, "/api/admin/v1/validate", string(body)); status != 200 || !strings.Contains(got, `"name":"lists","replication_id":["id"],`+want) {
			t.Errorf("no %s: %d %s", want, status, got)
		}
	}
}

// TestTooMany: ten at once, twenty wait, more are refused.
func TestTooMany(t *testing.T) {
	f := &fakes{hold: make(chan struct{})}
	a := newAPI(t, f, nil)
	answers := make(chan int, 40)
	for range cap(answers) {
		go func() {
			status, body := post(a, "/api/admin/v1/schema", "{}")
			if status == http.StatusTooManyRequests && body != "" {
				t.Errorf("a body: %s", body)
			}
			answers <- status
		}()
	}
	for range 10 {
		if status := <-answers; status != http.StatusTooManyRequests {
			t.Errorf("%d while the source does not answer", status)
		}
	}
	close(f.hold)
	for range 30 {
		if status := <-answers; status != http.StatusOK {
			t.Errorf("%d", status)
		}
	}
}

// Without the source, validate says what it could not check.
func TestValidateAway(t *testing.T) {
	a := newAPI(t, &fakes{away: true}, nil)
	status, got := post(a, "/api/admin/v1/validate", `{"sync_rules":"bucket_definitions: {mine: {data: [SELECT * FROM listz]}}"}`)
	if status != 200 || !strings.Contains(got, "names of tables and columns were not checked") || strings.Contains(got, "listz does not exist") {
		t.Errorf("%d %s", status, got)
	}
}

func TestStatus(t *testing.T) {
	t.Run("rare heartbeats", func(t *testing.T) {
		at := time.Now().Add(-20 * time.Second)
		for interval, stale := range map[time.Duration]bool{time.Second: true, 30 * time.Second: false} {
			a := newAPI(t, &fakes{streams: active(at)}, func(o *Options) { o.Heartbeat = interval })
			if _, got := post(a, "/api/admin/v1/sluice/status", "{}"); strings.Contains(got, "has not moved for 20s") != stale {
				t.Errorf("heartbeats each %s: %s", interval, got)
			}
		}
	})
	f := &fakes{}
	a := newAPI(t, f, nil)
	type answer struct {
		Data struct {
			Healthy bool
			Stages  []struct {
				Name      string
				Heartbeat *string `json:"heartbeat_at"`
				Age       *int64  `json:"age_ms"`
				OK        bool
				Detail    string
			}
			Streams []struct {
				ID                                int
				Name, State, Checkpoint, Position string
			}
			Sessions int
		}
	}
	get := func() answer {
		t.Helper()
		status, got := post(a, "/api/admin/v1/sluice/status", "{}")
		var out answer
		if err := json.Unmarshal([]byte(got), &out); status != 200 || err != nil {
			t.Fatalf("%d %s %v", status, got, err)
		}
		return out
	}
	if s := get(); s.Data.Healthy || len(s.Data.Stages) != 1 || s.Data.Stages[0].Detail != "no sync config is deployed" {
		t.Errorf("%+v", s)
	}
	f.streams = active(time.Now())
	s := get()
	var names []string
	for _, x := range s.Data.Stages {
		names = append(names, x.Name)
		if !x.OK || x.Heartbeat == nil || *x.Age > 5000 {
			t.Errorf("%+v", x)
		}
	}
	if !s.Data.Healthy || strings.Join(names, "|") != "read|published|evaluated|stored|noticed|delivered" || s.Data.Sessions != 7 {
		t.Errorf("%+v", s)
	}
	if x := s.Data.Streams[0]; x.ID != 3 || x.State != "ACTIVE" || x.Checkpoint != "42" || x.Position != "0/2" {
		t.Errorf("%+v", x)
	}
	f.age = time.Minute
	if s := get(); s.Data.Healthy || s.Data.Stages[0].OK || !s.Data.Stages[2].OK || s.Data.Stages[0].Detail != "has not moved for 1m0s" {
		t.Errorf("%+v", s)
	}
	f.age, f.away = 0, true
	if s := get(); s.Data.Healthy || s.Data.Stages[0].Detail != "replicator cannot be reached" {
		t.Errorf("%+v", s)
	}
	f.away, f.streams = false, active(time.Now().Add(-time.Hour))
	if s := get(); s.Data.Healthy || !s.Data.Stages[0].OK || s.Data.Stages[3].OK {
		t.Errorf("%+v", s)
	}
}

func (f *fakes) Backup(_ context.Context, m *pb.BackupRequest) (*pb.BackupReply, error) {
	return &pb.BackupReply{Path: "/data/store-backups/" + m.GetName(), Bytes: 5, Files: 2}, nil
}

func TestRest(t *testing.T) {
	f := &fakes{streams: active(time.Now())}
	a := newAPI(t, f, nil)
	for path, want := range map[string]string{
		"/api/admin/v1/sluice/compact": `{"data":{"buckets":1,"lookups_removed":5,"ops_cleared":4,"ops_moved":3,"ops_read":2}}`,
		"/api/admin/v1/schema":         `{"data":{"connections":[{"id":"default","tag":"default","schemas":[{"name":"public","tables":[{"name":"lists","columns":[{"name":"id","sqlite_type":"text","internal_type":"text","type":"text","pg_type":"text"}],"estimated_rows":3}]}]}],"defaultConnectionTag":"default","defaultSchema":"public"}}`,
	} {
		if status, got := post(a, path, `{}`); status != 200 || got != want {
			t.Errorf("%s: %d %s", path, status, got)
		}
	}
	if status, got := post(a, "/api/admin/v1/sluice/backup", `{"name":"n"}`); status != 200 || got != `{"data":{"bytes":5,"files":2,"path":"/data/store-backups/n"}}` {
		t.Errorf("%d %s", status, got)
	}
	if status, got := post(a, "/api/admin/v1/sluice/compact", `{"buckets":["x"]}`); status != 400 {
		t.Errorf("%d %s", status, got)
	}
	if status, got := post(a, "/api/admin/v1/sluice/compact", `{"buckets":["1#x[]"],"skip_lookups":true}`); status != 200 || f.compact.GetBuckets()[0] != "1#x[]" || !f.compact.GetSkipLookups() {
		t.Errorf("%d %s", status, got)
	}
	status, got := post(a, "/api/admin/v1/diagnostics", `{"sync_rules_content":true}`)
	for _, want := range []string{`"connected":true`, `"uri":"postgresql://h:5432/db"`, "[PSYNC_S1145] row-level security. To fix it: ALTER ROLE x BYPASSRLS", `"replication_lag_bytes":5`,
		"The replication slot is lost", "Less than half of the slot's WAL budget remains", `"content":"bucket_definitions`, `"replication_id":["id"]`, `"message":"no key"`} {
		if status != 200 || !strings.Contains(got, want) {
			t.Errorf("%d %s lacks %s", status, got, want)
		}
	}
	if status, got := ask(a, "GET", "/api/sync-rules/v1/current", "Token one", "", ""); status != 200 || !strings.Contains(got, `"slot_name": "powersync_3"`) || !strings.Contains(got, `"next": null`) {
		t.Errorf("%d %s", status, got)
	}
	if status, _ := post(a, "/api/admin/v1/validate", `{"sync_rules":1}`); status != 400 {
		t.Errorf("%d", status)
	}
	if status, _ := post(a, "/api/admin/v1/validate", `[`); status != 400 {
		t.Errorf("%d", status)
	}
	if status, _ := post(a, "/api/admin/v1/validate", strings.Repeat(" ", 5<<20)); status != 413 {
		t.Errorf("%d", status)
	}
}
