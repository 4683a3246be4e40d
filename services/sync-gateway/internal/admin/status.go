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
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
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
	DeployedAt string `json:"deployed_at,omitempty"`
	// DeployedBy is the name of a token, or "file" for the service config.
	DeployedBy string `json:"deployed_by,omitempty"`
	// Copy is the progress of the initial copy, until it is done, and then of the
	// one for what was added by a deployed config, or of one that is compared with
	// what is stored.
	Copy *copyStatus `json:"copy,omitempty"`
	// Adding: clients will be served by the config that was deployed last when that
	// copy is done.
	Adding bool `json:"adding,omitempty"`
}

// copyStatus is how far a copy is.
type copyStatus struct {
	// Compares: why it is not the first one. What is stored is served meanwhile.
	Compares   string `json:"compares,omitempty"`
	Tables     int    `json:"tables"`
	TablesDone int    `json:"tables_done"`
	Rows       uint64 `json:"rows"`
	Estimate   uint64 `json:"rows_estimated"` // in all; at least Rows
	ETA        *int64 `json:"eta_ms"`         // at the speed so far; null = not known yet
}

func (c *copyStatus) count(p *pb.TableProgress) {
	c.Tables++
	c.Rows += p.GetRows()
	if p.GetDone() {
		c.TablesDone++
		c.Estimate += p.GetRows()
	} else {
		c.Estimate += max(p.GetRows(), p.GetEstimate())
	}
}

// copied puts what is stored of each table beside what the source has. d may be
// nil: then only tables of which something is stored are counted.
func copied(x *model.Stream, stored []*pb.TableProgress, d *pb.StreamDiagnosis, now time.Time) *copyStatus {
	applied := x.Head.Applied.Position
	switch {
	case x.State == model.Active && x.Head.SnapshotDone && int(x.Layered) < len(x.Layers):
		out := &copyStatus{}
		for _, p := range stored {
			if p.GetLayer() > x.Layered {
				out.count(p)
			}
		}
		return out
	case x.Head.SnapshotDone, x.State != model.Processing && (x.State != model.Active || applied.Log() == 0):
		return nil
	}
	out := &copyStatus{}
	switch applied.Loss() {
	case model.LostLog:
		out.Compares = "the replication slot was lost"
	case model.LostHistory:
		out.Compares = "the source has another history than what is stored"
	}
	known := map[[2]string]bool{}
	for _, p := range stored {
		if applied.Log() > 0 && applied.Source() == "" { // what is stored of it is all of the log before
			out.Tables++
			out.Estimate += p.GetRows()
		} else {
			out.count(p)
		}
		known[[2]string{p.GetTable().GetSchema(), p.GetTable().GetName()}] = true
	}
	for _, t := range d.GetTables() {
		if len(t.GetReplicationId()) > 0 && !known[[2]string{t.GetSchema(), t.GetName()}] {
			out.Tables++
			out.Estimate += uint64(max(t.GetEstimate(), 0))
		}
	}
	elapsed := now.Sub(time.UnixMicro(int64(x.Created)))
	if out.Rows > 0 && elapsed > 0 && d != nil && applied.Log() == 0 {
		eta := int64(float64(elapsed.Milliseconds()) * float64(out.Estimate-out.Rows) / float64(out.Rows))
		out.ETA = &eta
	}
	return out
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
	shown := s.active
	if shown == nil {
		shown = s.next
	}
	if shown == nil {
		out.Stages = append(out.Stages, a.newStage("read", 0, now, "no sync config is deployed"))
		out.Streams = s.describe(nil, now)
		return out, nil
	}
	diagnosed, detail := a.diagnose(ctx, s.shown()...)
	read, published := heartbeats(shown, diagnosed)
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
	out.Streams = s.describe(diagnosed, now)
	return out, nil
}

// shown are the streams that there is something to tell of.
func (s *streams) shown() (out []*model.Stream) {
	for _, x := range []*model.Stream{s.active, s.next} {
		if x != nil {
			out = append(out, x)
		}
	}
	return out
}

// describe describes all streams; d, which may be nil, is what the source says.
func (s *streams) describe(d *pb.DiagnoseReply, now time.Time) []streamStatus {
	out := []streamStatus{}
	for i := range s.all {
		x := &s.all[i]
		y := streamStatus{
			ID: int64(x.ID), Name: x.Name, State: x.State.String(), Checkpoint: x.Head.Checkpoint.Op.String(),
			Position: string(x.Head.Checkpoint.Position.Source()), LastError: x.Head.LastError, DeployedAt: stamp(x.Created), DeployedBy: x.DeployedBy,
			Copy: copied(x, s.tables[int64(x.ID)].GetTables(), ofStream(d, x), now), Adding: x.Next != "",
		}
		if x.FromFile {
			y.DeployedBy = "file"
		}
		out = append(out, y)
	}
	return out
}

// ofStream is what d, which may be nil, says of a stream; nil = nothing.
func ofStream(d *pb.DiagnoseReply, x *model.Stream) *pb.StreamDiagnosis {
	for _, s := range d.GetStreams() {
		if s.GetStream() == int64(x.ID) {
			return s
		}
	}
	return nil
}

// diagnose asks the replicator about streams. detail is what is wrong, "" for
// nothing; the reply is nil if there is none.
func (a *API) diagnose(ctx context.Context, streams ...*model.Stream) (r *pb.DiagnoseReply, detail string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ask := &pb.DiagnoseRequest{}
	for _, x := range streams {
		ask.Streams = append(ask.Streams, tables(x))
	}
	r, err := a.source.Diagnose(ctx, ask)
	switch {
	case err != nil:
		return nil, "replicator cannot be reached"
	case !r.GetConnected():
		return r, "source database cannot be reached"
	}
	return r, ""
}

// heartbeats is when the replicator last read and published one.
func heartbeats(x *model.Stream, r *pb.DiagnoseReply) (read, published model.Micros) {
	d := ofStream(r, x)
	return model.Micros(max(r.GetHeartbeatRead(), d.GetHeartbeatRead())), model.Micros(max(r.GetHeartbeatPublished(), d.GetHeartbeatPublished()))
}

func tables(x *model.Stream) *pb.StreamTables {
	return &pb.StreamTables{Stream: int64(x.ID), Name: x.Name, Tables: wire.TablePatterns(x.Reads())}
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

func (a *API) describeStream(x *model.Stream, d *pb.StreamDiagnosis, content bool, now time.Time) *configStatus {
	c := connectionStatus{ID: a.o.ConnectionID, Tag: a.o.Tag, SlotName: x.Name, Initial: x.Head.SnapshotDone,
		LSN: string(x.Head.Checkpoint.Position.Source()), Keepalive: stamp(x.Head.Heartbeat), Checkpoint: stamp(x.Head.StoredAt), Tables: []tableStatus{}}
	out := &configStatus{Errors: []problem{}}
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
			out.Errors = append(out.Errors, problem{Level: level(age > staleFatal), Message: fmt.Sprintf("No replicated commit in more than %ds", int64(age.Seconds()))})
		}
	}
	if d != nil {
		c.Lag, c.WALStatus, c.SafeWAL, c.MaxSlotWALKeep = known(d.GetLagBytes()), d.GetWalStatus(), known(d.GetSafeWalSize()), known(d.GetMaxSlotWalKeepSize())
		if c.SafeWAL != nil && c.MaxSlotWALKeep != nil && *c.SafeWAL <= *c.MaxSlotWALKeep/2 {
			out.Errors = append(out.Errors, problem{Level: "warning", Message: "Less than half of the slot's WAL budget remains"})
		}
		if c.WALStatus == "lost" || d.GetMissing() && x.Head.SnapshotDone {
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
	connection := sourceStatus{ID: a.o.ConnectionID, Errors: []problem{}}
	r, detail := a.diagnose(ctx, s.shown()...)
	if r == nil {
		connection.Errors = []problem{{Level: "fatal", Message: detail}}
	} else {
		connection.Connected, connection.URI, connection.PostgresURI = r.GetConnected(), r.GetUri(), r.GetUri()
		connection.Errors = problems(r.GetProblems())
	}
	out := struct {
		Connections []sourceStatus `json:"connections"`
		Active      *configStatus  `json:"active_sync_rules,omitempty"`
		Deploying   *configStatus  `json:"deploying_sync_rules,omitempty"`
	}{Connections: []sourceStatus{connection}}
	now := time.Now()
	if s.active != nil {
		out.Active = a.describeStream(s.active, ofStream(r, s.active), b.Content, now)
	}
	if s.next != nil {
		out.Deploying = a.describeStream(s.next, ofStream(r, s.next), b.Content, now)
	}
	return out, nil
}

// sourceStatus is a connection of diagnostics in spec/06 §6.1.
type sourceStatus struct {
	ID          string    `json:"id"`
	PostgresURI string    `json:"postgres_uri"`
	URI         string    `json:"uri"`
	Connected   bool      `json:"connected"`
	Errors      []problem `json:"errors"`
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
	type connection struct {
		ID      string   `json:"id"`
		Tag     string   `json:"tag"`
		Schemas []schema `json:"schemas"`
	}
	return struct {
		Connections   []connection `json:"connections"`
		DefaultTag    string       `json:"defaultConnectionTag"`
		DefaultSchema string       `json:"defaultSchema"`
	}{[]connection{{a.o.ConnectionID, a.o.Tag, schemas}}, a.o.Tag, r.GetDefaultSchema()}, nil
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
		return nil, reply.NewFault("sync_rules is required")
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

const (
	// someSessions are listed unless another number is asked for, and manySessions
	// at most.
	someSessions = 100
	manySessions = 1000
)

type sessionStatus struct {
	User       string `json:"user"`
	Client     string `json:"client_id"`
	Agent      string `json:"agent"`
	Transport  string `json:"transport"`
	Since      string `json:"since"`
	Buckets    int    `json:"buckets"`
	Checkpoint string `json:"checkpoint"` // sent completely; 0 = none
	Behind     behind `json:"behind"`
}

// behind is what a client lacks: zeros if it has all that concerns it.
type behind struct {
	Checkpoints uint64 `json:"checkpoints"`
	Ops         uint64 `json:"ops"` // at most: op ids in between, which may be of other buckets
	MS          int64  `json:"ms"`
}

// sessions lists who is connected to this gateway, those that lag most first.
func (a *API) sessions(c *call) (any, error) {
	var b struct {
		User  string `json:"user"`
		Limit *int   `json:"limit"`
	}
	if err := c.decode(&b); err != nil {
		return nil, err
	}
	most := someSessions
	if b.Limit != nil {
		most = *b.Limit
	}
	if most < 1 || most > manySessions {
		return nil, reply.NewFault(fmt.Sprintf("limit must be a number from 1 to %d", manySessions))
	}
	list, total := a.o.List(b.User, most)
	out := struct {
		Gateway  string          `json:"gateway"`
		Total    int             `json:"total"`
		Sessions []sessionStatus `json:"sessions"`
	}{a.o.Instance, total, []sessionStatus{}}
	now := time.Now()
	for i := range list {
		x := &list[i]
		s := sessionStatus{User: x.User, Client: x.Client, Agent: x.Agent, Transport: x.Transport, Since: x.Since.UTC().Format(time.RFC3339Nano),
			Buckets: x.Buckets, Checkpoint: x.Checkpoint.String(), Behind: behind{Checkpoints: x.Missing, Ops: x.Ops}}
		if x.Missing > 0 {
			s.Behind.MS = max(now.Sub(x.Late).Milliseconds(), 0)
		}
		out.Sessions = append(out.Sessions, s)
	}
	return out, nil
}
