package wire

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// text makes s fit for a proto string field.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// Cursor converts a cursor.
func Cursor(c model.Cursor) *pb.Cursor {
	return &pb.Cursor{Position: text(string(c.Position)), Offset: c.Offset}
}

// ModelCursor converts a cursor; nil is the zero cursor.
func ModelCursor(c *pb.Cursor) model.Cursor {
	return model.Cursor{Position: model.Position(c.GetPosition()), Offset: c.GetOffset()}
}

// Checkpoint converts a checkpoint.
func Checkpoint(c model.Checkpoint) *pb.Checkpoint {
	return &pb.Checkpoint{Op: uint64(c.Op), Position: text(string(c.Position))}
}

// ModelCheckpoint converts a checkpoint; nil is the zero checkpoint.
func ModelCheckpoint(c *pb.Checkpoint) model.Checkpoint {
	return model.Checkpoint{Op: model.OpID(c.GetOp()), Position: model.Position(c.GetPosition())}
}

// TablePattern converts a table pattern.
func TablePattern(p model.TablePattern) *pb.TablePattern {
	return &pb.TablePattern{Connection: text(p.Connection), Schema: text(p.Schema), Name: text(p.Name)}
}

// ModelTablePattern converts a table pattern.
func ModelTablePattern(p *pb.TablePattern) model.TablePattern {
	return model.TablePattern{Connection: p.GetConnection(), Schema: p.GetSchema(), Name: p.GetName()}
}

// TablePatterns converts several.
func TablePatterns(ps []model.TablePattern) []*pb.TablePattern { return all(ps, TablePattern) }

// ModelTablePatterns converts several.
func ModelTablePatterns(ps []*pb.TablePattern) []model.TablePattern {
	return all(ps, ModelTablePattern)
}

// PartTables converts the tables of a config's parts.
func PartTables(parts [][]model.TablePattern) []*pb.PartTables {
	return all(parts, func(ts []model.TablePattern) *pb.PartTables { return &pb.PartTables{Tables: TablePatterns(ts)} })
}

// ValueOptions converts value options.
func ValueOptions(o model.ValueOptions) *pb.ValueOptions {
	return &pb.ValueOptions{Iso8601: o.ISO8601, MaxDigits: uint32(o.MaxDigits), CustomTypes: o.CustomTypes}
}

// ModelValueOptions converts value options; nil is edition 1.
func ModelValueOptions(o *pb.ValueOptions) model.ValueOptions {
	return model.ValueOptions{ISO8601: o.GetIso8601(), MaxDigits: uint8(min(o.GetMaxDigits(), 255)), CustomTypes: o.GetCustomTypes()}
}

// SourceTable converts a source table.
func SourceTable(t *model.SourceTable) *pb.SourceTable {
	return &pb.SourceTable{
		Id:         t.ID[:],
		Connection: text(t.Connection),
		Schema:     text(t.Schema),
		Name:       text(t.Name),
		Columns: all(t.Columns, func(c model.Column) *pb.Column {
			return &pb.Column{Name: text(c.Name), Type: text(c.Type), Key: c.Key}
		}),
		CompleteRows: t.CompleteRows,
	}
}

// ModelSourceTable converts a source table; its id must have 16 bytes.
func ModelSourceTable(t *pb.SourceTable) (model.SourceTable, error) {
	if len(t.GetId()) != len(model.TableID{}) {
		return model.SourceTable{}, fmt.Errorf("%w: id of table %q has %d bytes", ErrMalformed, t.GetName(), len(t.GetId()))
	}
	return model.SourceTable{
		ID:         model.TableID(t.GetId()),
		Connection: t.GetConnection(),
		Schema:     t.GetSchema(),
		Name:       t.GetName(),
		Columns: all(t.GetColumns(), func(c *pb.Column) model.Column {
			return model.Column{Name: c.GetName(), Type: c.GetType(), Key: c.GetKey()}
		}),
		CompleteRows: t.GetCompleteRows(),
	}, nil
}

// TableProgress converts a table's progress.
func TableProgress(p *model.TableProgress) *pb.TableProgress {
	return &pb.TableProgress{Table: SourceTable(&p.Table), LastKey: p.LastKey, Rows: p.Rows, Estimate: p.Estimate, Done: p.Done, Layer: p.Layer}
}

// ModelTableProgress converts a table's progress.
func ModelTableProgress(p *pb.TableProgress) (model.TableProgress, error) {
	t, err := ModelSourceTable(p.GetTable())
	if err != nil {
		return model.TableProgress{}, err
	}
	return model.TableProgress{Table: t, LastKey: p.GetLastKey(), Rows: p.GetRows(), Estimate: p.GetEstimate(), Done: p.GetDone(), Layer: p.GetLayer()}, nil
}

// TablesProgress converts several.
func TablesProgress(ps []model.TableProgress) []*pb.TableProgress {
	return all(ps, func(p model.TableProgress) *pb.TableProgress { return TableProgress(&p) })
}

// ModelTablesProgress converts several.
func ModelTablesProgress(ps []*pb.TableProgress) ([]model.TableProgress, error) {
	if len(ps) == 0 {
		return nil, nil
	}
	out := make([]model.TableProgress, len(ps))
	for i, p := range ps {
		var err error
		if out[i], err = ModelTableProgress(p); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// BatchMeta converts what travels with a batch.
func BatchMeta(m *model.BatchMeta) *pb.BatchMeta {
	return &pb.BatchMeta{
		Progress:           TablesProgress(m.Progress),
		SnapshotDone:       m.SnapshotDone,
		NoCheckpointBefore: text(string(m.NoCheckpointBefore)),
		Origin:             text(m.Origin),
		Layer:              m.Layer,
		Transactions:       m.Transactions,
		SourceBytes:        m.SourceBytes,
		CommitTime:         int64(m.CommitTime),
		Heartbeat:          int64(m.Heartbeat),
		PublishedAt:        int64(m.PublishedAt),
		EvaluatedAt:        int64(m.EvaluatedAt),
	}
}

// ModelBatchMeta converts what travels with a batch.
func ModelBatchMeta(m *pb.BatchMeta) (model.BatchMeta, error) {
	progress, err := ModelTablesProgress(m.GetProgress())
	if err != nil {
		return model.BatchMeta{}, err
	}
	return model.BatchMeta{
		Progress:           progress,
		SnapshotDone:       m.GetSnapshotDone(),
		NoCheckpointBefore: model.Position(m.GetNoCheckpointBefore()),
		Origin:             m.GetOrigin(),
		Layer:              m.GetLayer(),
		Transactions:       m.GetTransactions(),
		SourceBytes:        m.GetSourceBytes(),
		CommitTime:         model.Micros(m.GetCommitTime()),
		Heartbeat:          model.Micros(m.GetHeartbeat()),
		PublishedAt:        model.Micros(m.GetPublishedAt()),
		EvaluatedAt:        model.Micros(m.GetEvaluatedAt()),
	}, nil
}

// WriteCheckpoint converts a write checkpoint.
func WriteCheckpoint(w model.WriteCheckpoint) *pb.WriteCheckpoint {
	return &pb.WriteCheckpoint{UserKey: text(w.UserKey), Id: w.ID, Head: text(string(w.Head))}
}

// ModelWriteCheckpoint converts a write checkpoint.
func ModelWriteCheckpoint(w *pb.WriteCheckpoint) model.WriteCheckpoint {
	return model.WriteCheckpoint{UserKey: w.GetUserKey(), ID: w.GetId(), Head: model.Position(w.GetHead())}
}

// StreamHead converts a stream's head.
func StreamHead(h *model.StreamHead) *pb.StreamHead {
	return &pb.StreamHead{
		Epoch:              uint64(h.Epoch),
		Applied:            Cursor(h.Applied),
		Persisted:          uint64(h.Persisted),
		Checkpoint:         Checkpoint(h.Checkpoint),
		SnapshotDone:       h.SnapshotDone,
		NoCheckpointBefore: text(string(h.NoCheckpointBefore)),
		Origin:             text(h.Origin),
		CommitTime:         int64(h.CommitTime),
		Heartbeat:          int64(h.Heartbeat),
		PublishedAt:        int64(h.PublishedAt),
		EvaluatedAt:        int64(h.EvaluatedAt),
		StoredAt:           int64(h.StoredAt),
		LastError:          text(h.LastError),
		LastErrorAt:        int64(h.LastErrorAt),
	}
}

// ModelStreamHead converts a stream's head; nil is the zero head.
func ModelStreamHead(h *pb.StreamHead) model.StreamHead {
	return model.StreamHead{
		Epoch:              model.Epoch(h.GetEpoch()),
		Applied:            ModelCursor(h.GetApplied()),
		Persisted:          model.OpID(h.GetPersisted()),
		Checkpoint:         ModelCheckpoint(h.GetCheckpoint()),
		SnapshotDone:       h.GetSnapshotDone(),
		NoCheckpointBefore: model.Position(h.GetNoCheckpointBefore()),
		Origin:             h.GetOrigin(),
		CommitTime:         model.Micros(h.GetCommitTime()),
		Heartbeat:          model.Micros(h.GetHeartbeat()),
		PublishedAt:        model.Micros(h.GetPublishedAt()),
		EvaluatedAt:        model.Micros(h.GetEvaluatedAt()),
		StoredAt:           model.Micros(h.GetStoredAt()),
		LastError:          h.GetLastError(),
		LastErrorAt:        model.Micros(h.GetLastErrorAt()),
	}
}

// Stream converts a replication stream.
func Stream(s *model.Stream) *pb.Stream {
	return &pb.Stream{
		Id:      int64(s.ID),
		Name:    text(s.Name),
		Config:  text(s.Config),
		Tables:  TablePatterns(s.Tables),
		Values:  ValueOptions(s.Values),
		State:   pb.StreamState(s.State),
		Head:    StreamHead(&s.Head),
		Created: int64(s.Created),

		FromFile:          s.FromFile,
		DeployedBy:        text(s.DeployedBy),
		CustomCheckpoints: s.CustomCheckpoints,

		Content:   text(s.Content),
		Parts:     all(s.Parts, text),
		Edited:    text(s.Edited),
		Activated: int64(s.Activated),

		EditedContent: text(s.EditedContent),
		Former:        text(s.Former),
		Filed:         text(s.Filed),
		Era:           s.Era,

		Layers: all(s.Layers, func(l model.Layer) *pb.Layer {
			return &pb.Layer{Config: text(l.Config), Parts: all(l.Parts, text), Tables: TablePatterns(l.Tables)}
		}),
		Layered:     s.Layered,
		Next:        text(s.Next),
		NextContent: text(s.NextContent),
	}
}

// ModelStream converts a replication stream.
func ModelStream(s *pb.Stream) model.Stream {
	return model.Stream{
		ID:      model.StreamID(s.GetId()),
		Name:    s.GetName(),
		Config:  s.GetConfig(),
		Tables:  ModelTablePatterns(s.GetTables()),
		Values:  ModelValueOptions(s.GetValues()),
		State:   model.StreamState(s.GetState()),
		Head:    ModelStreamHead(s.GetHead()),
		Created: model.Micros(s.GetCreated()),

		FromFile:          s.GetFromFile(),
		DeployedBy:        s.GetDeployedBy(),
		CustomCheckpoints: s.GetCustomCheckpoints(),

		Content:   s.GetContent(),
		Edited:    s.GetEdited(),
		Activated: model.Micros(s.GetActivated()),
		Parts:     s.GetParts(),

		EditedContent: s.GetEditedContent(),
		Former:        s.GetFormer(),
		Filed:         s.GetFiled(),
		Era:           s.GetEra(),

		Layers: all(s.GetLayers(), func(l *pb.Layer) model.Layer {
			return model.Layer{Config: l.GetConfig(), Parts: l.GetParts(), Tables: ModelTablePatterns(l.GetTables())}
		}),
		Layered:     s.GetLayered(),
		Next:        s.GetNext(),
		NextContent: s.GetNextContent(),
	}
}

// Streams converts several.
func Streams(ss []model.Stream) []*pb.Stream {
	return all(ss, func(s model.Stream) *pb.Stream { return Stream(&s) })
}

// ModelStreams converts several.
func ModelStreams(ss []*pb.Stream) []model.Stream { return all(ss, ModelStream) }

// Notice converts a checkpoint notice. A bucket id that a proto string cannot
// hold makes the notice say "everything": a name that is changed on the way
// would wake nobody.
func Notice(n *model.CheckpointNotice) *pb.CheckpointNotice {
	if slices.ContainsFunc(n.Buckets, func(b string) bool { return !utf8.ValidString(b) }) {
		m := *n
		m.Buckets, m.Lookups, m.Everything = nil, nil, true
		n = &m
	}
	return &pb.CheckpointNotice{
		Stream:     int64(n.Stream),
		Run:        n.Run,
		Sequence:   n.Sequence,
		Checkpoint: Checkpoint(n.Checkpoint),
		Buckets:    n.Buckets,
		Lookups:    all(n.Lookups, func(s string) []byte { return []byte(s) }),
		Everything: n.Everything,
		Reached:    all(n.Reached, WriteCheckpoint),
		CommitTime: int64(n.CommitTime),
		Heartbeat:  int64(n.Heartbeat),
		StoredAt:   int64(n.StoredAt),
	}
}

// ModelNotice converts a checkpoint notice.
func ModelNotice(n *pb.CheckpointNotice) model.CheckpointNotice {
	return model.CheckpointNotice{
		Stream:     model.StreamID(n.GetStream()),
		Run:        n.GetRun(),
		Sequence:   n.GetSequence(),
		Checkpoint: ModelCheckpoint(n.GetCheckpoint()),
		Buckets:    n.GetBuckets(),
		Lookups:    all(n.GetLookups(), func(b []byte) string { return string(b) }),
		Everything: n.GetEverything(),
		Reached:    all(n.GetReached(), ModelWriteCheckpoint),
		CommitTime: model.Micros(n.GetCommitTime()),
		Heartbeat:  model.Micros(n.GetHeartbeat()),
		StoredAt:   model.Micros(n.GetStoredAt()),
	}
}

// all converts a slice; an empty one becomes nil.
func all[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i := range in {
		out[i] = f(in[i])
	}
	return out
}
