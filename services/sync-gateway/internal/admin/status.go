package admin

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// stage is a place of the pipeline, and the newest heartbeat that came to it.
type stage struct {
	Name      string  `json:"name"`
	Heartbeat *string `json:"heartbeat_at"`
	AgeMS     *int64  `json:"age_ms"`
	OK        bool    `json:"ok"`
	Detail    string  `json:"detail"`
}

func (a *API) newStage(name string, at model.Micros, now time.Time, detail string) stage {
	s := stage{Name: name, Detail: detail}
	if at <= 0 {
		if detail == "" {
			s.Detail = "nothing has come here yet"
		}
		return s
	}
	t := time.UnixMicro(int64(at))
	text := t.UTC().Format(time.RFC3339Nano)
	age := max(0, now.Sub(t).Milliseconds())
	s.Heartbeat, s.AgeMS = &text, &age
	s.OK = age < (a.o.Heartbeat+freshness.Patience).Milliseconds() && detail == ""
	if !s.OK && detail == "" {
		s.Detail = fmt.Sprintf("has not moved for %s", (time.Duration(age) * time.Millisecond).Round(time.Second))
	}
	return s
}

// link is a peer of this gateway.
type link struct {
	Peer  string `json:"peer"`
	AgeMS int64  `json:"age_ms"` // since it was last heard
	OK    bool   `json:"ok"`
}

func (a *API) links(now time.Time) []link {
	out := []link{}
	heard := a.o.Links()
	for _, peer := range slices.Sorted(maps.Keys(heard)) {
		age := max(0, now.Sub(heard[peer]))
		out = append(out, link{Peer: peer, AgeMS: age.Milliseconds(), OK: age <= freshness.Patience})
	}
	return out
}

type streamStatus struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	State      string `json:"state"`
	Checkpoint string `json:"checkpoint"`
	Position   string `json:"position"`
	LastError  string `json:"last_error"`
}

// status tells how fresh each stage of the pipeline is.
func (a *API) status(c *call) (any, error) {
	ctx, cancel := c.bounded()
	defer cancel()
	out := struct {
		Healthy  bool           `json:"healthy"`
		Stages   []stage        `json:"stages"`
		Links    []link         `json:"links"`
		Streams  []streamStatus `json:"streams"`
		Sessions int            `json:"sessions"`
	}{Stages: []stage{}, Streams: []streamStatus{}, Sessions: a.o.Sessions()}
	now := time.Now()
	out.Links = a.links(now)
	s, err := a.streams(ctx)
	if err != nil {
		out.Stages = append(out.Stages, a.newStage("stored", 0, now, "bucket-store cannot be reached"))
		return out, nil
	}
	for i := range s.all {
		x := &s.all[i]
		out.Streams = append(out.Streams, streamStatus{
			ID: int64(x.ID), Name: x.Name, State: x.State.String(), Checkpoint: x.Head.Checkpoint.Op.String(),
			Position: string(x.Head.Checkpoint.Position), LastError: x.Head.LastError,
		})
	}
	shown := s.active
	if shown == nil {
		shown = s.next
	}
	if shown == nil {
		out.Stages = append(out.Stages, a.newStage("read", 0, now, "no sync config is deployed"))
		return out, nil
	}
	read, published, detail := a.heartbeats(ctx, shown)
	head := &shown.Head
	beats, why := map[freshness.Stage]model.Micros{}, ""
	if s.active == nil {
		why = "the sync config is not active yet"
	} else {
		for _, b := range a.o.Beats() {
			beats[b.Stage] = model.Micros(b.At)
		}
	}
	out.Stages = []stage{
		a.newStage("read", read, now, detail),
		a.newStage("published", published, now, detail),
		// As far as bucket-store knows: no gateway asks the evaluators.
		a.newStage("evaluated", head.Heartbeat, now, ""),
		a.newStage("stored", head.Heartbeat, now, head.LastError),
		a.newStage("noticed", beats[freshness.Noticed], now, why),
		a.newStage("delivered", beats[freshness.Delivered], now, why),
	}
	out.Healthy = s.active != nil
	for _, x := range out.Links {
		out.Healthy = out.Healthy && x.OK
	}
	for _, x := range out.Stages {
		out.Healthy = out.Healthy && x.OK
	}
	return out, nil
}

// heartbeats asks the replicator when it last read and published one.
func (a *API) heartbeats(ctx context.Context, x *model.Stream) (read, published model.Micros, detail string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := a.source.Diagnose(ctx, &pb.DiagnoseRequest{Streams: []*pb.StreamTables{tables(x)}})
	if err != nil {
		return 0, 0, "replicator cannot be reached"
	}
	if !r.GetConnected() {
		detail = "source database cannot be reached"
	}
	read, published = model.Micros(r.GetHeartbeatRead()), model.Micros(r.GetHeartbeatPublished())
	for _, d := range r.GetStreams() {
		if d.GetStream() == int64(x.ID) {
			read, published = max(read, model.Micros(d.GetHeartbeatRead())), max(published, model.Micros(d.GetHeartbeatPublished()))
		}
	}
	return read, published, detail
}

func tables(x *model.Stream) *pb.StreamTables {
	return &pb.StreamTables{Stream: int64(x.ID), Name: x.Name, Tables: wire.TablePatterns(x.Tables)}
}

// problem is an entry of errors in spec/06 §6.1.
type problem struct {
	Level    string    `json:"level"`
	Message  string    `json:"message"`
	Location *location `json:"location,omitempty"`
	At       string    `json:"ts,omitempty"`
}

type location struct {
	Start int `json:"start_offset"`
	End   int `json:"end_offset"`
}

func level(fatal bool) string {
	if fatal {
		return "fatal"
	}
	return "warning"
}

// configStatus is Status of spec/06 §6.1.
type configStatus struct {
	Content     string             `json:"content,omitempty"`
	Connections []connectionStatus `json:"connections"`
	Errors      []problem          `json:"errors"`
}

type connectionStatus struct {
	ID             string        `json:"id"`
	Tag            string        `json:"tag"`
	SlotName       string        `json:"slot_name"`
	Initial        bool          `json:"initial_replication_done"`
	LSN            string        `json:"last_lsn,omitempty"`
	Keepalive      string        `json:"last_keepalive_ts,omitempty"`
	Checkpoint     string        `json:"last_checkpoint_ts,omitempty"`
	Lag            *int64        `json:"replication_lag_bytes,omitempty"`
	WALStatus      string        `json:"wal_status,omitempty"`
	SafeWAL        *int64        `json:"safe_wal_size,omitempty"`
	MaxSlotWALKeep *int64        `json:"max_slot_wal_keep_size,omitempty"`
	Tables         []tableStatus `json:"tables"`
}

type tableStatus struct {
	Schema  string    `json:"schema"`
	Name    string    `json:"name"`
	Pattern string    `json:"pattern,omitempty"`
	ID      []string  `json:"replication_id"`
	Data    bool      `json:"data_queries"`
	Lookups bool      `json:"parameter_queries"`
	Errors  []problem `json:"errors"`
}

func problems(ps []*pb.Problem) []problem {
	out := []problem{}
	for _, p := range ps {
		msg := p.GetMessage()
		if p.GetCode() != "" {
			msg = "[" + p.GetCode() + "] " + msg
		}
		if p.GetFix() != "" {
			msg += ". To fix it: " + p.GetFix()
		}
		out = append(out, problem{Level: level(p.GetFatal()), Message: msg})
	}
	return out
}

func stamp(m model.Micros) string {
	if m <= 0 {
		return ""
	}
	return time.UnixMicro(int64(m)).UTC().Format(time.RFC3339Nano)
}

const (
	staleWarning = 5 * time.Minute
	staleFatal   = 15 * time.Minute
)

func (a *API) describeStream(x *model.Stream, d *pb.StreamDiagnosis, content bool, now time.Time) configStatus {
	c := connectionStatus{ID: a.o.ConnectionID, Tag: a.o.Tag, SlotName: x.Name, Initial: x.Head.SnapshotDone,
		LSN: string(x.Head.Checkpoint.Position), Keepalive: stamp(x.Head.StoredAt), Checkpoint: stamp(x.Head.StoredAt), Tables: []tableStatus{}}
	out := configStatus{Errors: []problem{}}
	if content {
		out.Content = x.Text()
	}
	plan, ds := rules.Compile(x.Text(), rules.Options{DefaultSchema: a.o.DefaultSchema})
	out.Errors = append(out.Errors, findings(ds)...)
	if x.Head.LastError != "" {
		out.Errors = append(out.Errors, problem{Level: "fatal", Message: x.Head.LastError, At: stamp(x.Head.LastErrorAt)})
	}
	if at := x.Head.StoredAt; at > 0 && x.Head.SnapshotDone {
		if age := now.Sub(time.UnixMicro(int64(at))); age > staleWarning {
			out.Errors = append(out.Errors, problem{Level: level(age > staleFatal), Message: "No replicated commit in more than " + age.Round(time.Second).String()})
		}
	}
	if d != nil {
		c.Lag, c.WALStatus, c.SafeWAL, c.MaxSlotWALKeep = known(d.GetLagBytes()), d.GetWalStatus(), known(d.GetSafeWalSize()), known(d.GetMaxSlotWalKeepSize())
		if c.SafeWAL != nil && c.MaxSlotWALKeep != nil && *c.SafeWAL <= *c.MaxSlotWALKeep/2 {
			out.Errors = append(out.Errors, problem{Level: "warning", Message: "Less than half of the slot's WAL budget remains"})
		}
		if c.WALStatus == "lost" {
			out.Errors = append(out.Errors, problem{Level: "fatal", Message: "The replication slot is lost"})
		}
		for _, t := range d.GetTables() {
			s := describeTable(plan, t)
			c.Tables = append(c.Tables, s)
			out.Errors = append(out.Errors, s.Errors...)
		}
	}
	out.Connections = []connectionStatus{c}
	return out
}

// known is nil for a number that the source did not tell.
func known(n int64) *int64 {
	if n < 0 {
		return nil
	}
	return &n
}

// describeTable says what a plan, which may be nil, makes of a table.
func describeTable(p *rules.Plan, t *pb.TableDiagnosis) tableStatus {
	s := tableStatus{Schema: t.GetSchema(), Name: t.GetName(), Pattern: t.GetPattern(), ID: append([]string{}, t.GetReplicationId()...), Errors: problems(t.GetProblems())}
	if p != nil {
		s.Data, s.Lookups = p.Table(&model.SourceTable{Schema: s.Schema, Name: s.Name}).Uses()
	}
	return s
}

func findings(ds []rules.Diagnostic) []problem {
	out := []problem{}
	for _, d := range ds {
		p := problem{Level: level(d.Fatal), Message: d.Message}
		if d.Line > 0 {
			p.Location = &location{d.Start, d.End}
		}
		out = append(out, p)
	}
	return out
}

func (a *API) diagnostics(c *call) (any, error) {
	var b struct {
		Content bool `json:"sync_rules_content"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	ctx, cancel := c.bounded()
	defer cancel()
	s, err := a.streams(ctx)
	if err != nil {
		return nil, err
	}
	ask := &pb.DiagnoseRequest{}
	for _, x := range []*model.Stream{s.active, s.next} {
		if x != nil {
			ask.Streams = append(ask.Streams, tables(x))
		}
	}
	connection := map[string]any{"id": a.o.ConnectionID, "connected": false, "errors": []problem{}}
	of := map[int64]*pb.StreamDiagnosis{}
	if r, err := a.source.Diagnose(ctx, ask); err != nil {
		connection["errors"] = []problem{{Level: "fatal", Message: "replicator cannot be reached"}}
	} else {
		connection["connected"], connection["uri"], connection["postgres_uri"] = r.GetConnected(), r.GetUri(), r.GetUri()
		connection["errors"] = problems(r.GetProblems())
		for _, d := range r.GetStreams() {
			of[d.GetStream()] = d
		}
	}
	out := map[string]any{"connections": []any{connection}}
	now := time.Now()
	if s.active != nil {
		out["active_sync_rules"] = a.describeStream(s.active, of[int64(s.active.ID)], b.Content, now)
	}
	if s.next != nil {
		out["deploying_sync_rules"] = a.describeStream(s.next, of[int64(s.next.ID)], b.Content, now)
	}
	return out, nil
}

func (a *API) schema(c *call) (any, error) {
	ctx, cancel := c.bounded()
	defer cancel()
	r, err := a.source.Schema(ctx, &pb.SchemaRequest{})
	if err != nil {
		return nil, fmt.Errorf("read the source's schema: %w", err)
	}
	type column struct {
		Name     string `json:"name"`
		SQLite   string `json:"sqlite_type"`
		Internal string `json:"internal_type"`
		Type     string `json:"type"`
		PG       string `json:"pg_type"`
	}
	type table struct {
		Name    string   `json:"name"`
		Columns []column `json:"columns"`
		Rows    *int64   `json:"estimated_rows,omitempty"`
		Bytes   *int64   `json:"estimated_bytes,omitempty"`
	}
	type schema struct {
		Name   string  `json:"name"`
		Tables []table `json:"tables"`
	}
	schemas := []schema{}
	place := map[string]int{}
	for _, t := range r.GetTables() {
		i, ok := place[t.GetSchema()]
		if !ok {
			i = len(schemas)
			place[t.GetSchema()] = i
			schemas = append(schemas, schema{Name: t.GetSchema(), Tables: []table{}})
		}
		x := table{Name: t.GetName(), Columns: []column{}, Rows: known(t.GetRows()), Bytes: known(t.GetBytes())}
		for _, col := range t.GetColumns() {
			x.Columns = append(x.Columns, column{col.GetName(), col.GetSqliteType(), col.GetType(), col.GetType(), col.GetType()})
		}
		schemas[i].Tables = append(schemas[i].Tables, x)
	}
	return map[string]any{
		"connections":          []any{map[string]any{"id": a.o.ConnectionID, "tag": a.o.Tag, "schemas": schemas}},
		"defaultConnectionTag": a.o.Tag, "defaultSchema": r.GetDefaultSchema(),
	}, nil
}

// validate compiles a config against the source's schema and deploys nothing.
func (a *API) validate(c *call) (any, error) {
	var b struct {
		Rules *string `json:"sync_rules"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	if b.Rules == nil {
		b.Rules = new(string)
	}
	ctx, cancel := c.bounded()
	defer cancel()
	o := rules.Options{DefaultSchema: a.o.DefaultSchema}
	out := configStatus{Content: *b.Rules, Errors: []problem{}}
	if r, err := a.source.Schema(ctx, &pb.SchemaRequest{}); err != nil {
		out.Errors = append(out.Errors, problem{Level: "warning", Message: "The source cannot be reached: names of tables and columns were not checked"})
	} else {
		o.Schema = rulesSchema(r)
	}
	plan, ds := rules.Compile(*b.Rules, o)
	out.Errors = append(out.Errors, findings(ds)...)
	connection := connectionStatus{ID: a.o.ConnectionID, Tag: a.o.Tag, Tables: []tableStatus{}}
	if plan != nil {
		x := &model.Stream{Tables: plan.SourceTables()}
		if r, err := a.source.Diagnose(ctx, &pb.DiagnoseRequest{Streams: []*pb.StreamTables{tables(x)}}); err == nil && len(r.GetStreams()) == 1 {
			for _, t := range r.GetStreams()[0].GetTables() {
				s := describeTable(plan, t)
				connection.Tables = append(connection.Tables, s)
				if o.Schema != nil && len(o.Schema.Tables(model.TablePattern{Connection: a.o.Tag, Schema: s.Schema, Name: s.Name})) == 0 {
					continue // that it is missing was found above, with the place
				}
				out.Errors = append(out.Errors, s.Errors...)
			}
		}
	}
	out.Connections = []connectionStatus{connection}
	return out, nil
}

func rulesSchema(r *pb.SchemaReply) *rules.Schema {
	schemas := map[string]map[string]rules.SchemaTable{}
	for _, t := range r.GetTables() {
		if schemas[t.GetSchema()] == nil {
			schemas[t.GetSchema()] = map[string]rules.SchemaTable{}
		}
		var x rules.SchemaTable
		for _, c := range t.GetColumns() {
			x.Columns = append(x.Columns, rules.SchemaColumn{Name: c.GetName(), Type: c.GetSqliteType()})
		}
		schemas[t.GetSchema()][t.GetName()] = x
	}
	return &rules.Schema{Connections: map[string]map[string]map[string]rules.SchemaTable{model.DefaultConnection: schemas}}
}
