package wire

import (
	"math"
	"math/rand/v2"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// gen makes random values of the model, the same ones for the same seed.
type gen struct{ *rand.Rand }

func newGen(seed uint64) gen { return gen{rand.New(rand.NewPCG(seed, 1))} }

func (g gen) text(n int) string {
	var b strings.Builder
	for range g.IntN(n + 1) {
		b.WriteRune([]rune{'a', 'é', '字', '"', 0, '😀', '#'}[g.IntN(7)])
	}
	return b.String()
}

func (g gen) raw(n int) string {
	b := make([]byte, g.IntN(n+1))
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return string(b)
}

func (g gen) value() model.Value {
	switch g.IntN(8) {
	case 0:
		return model.Value{}
	case 1:
		return model.NullValue
	case 2:
		return model.IntegerValue(int64(g.Uint64()) >> g.IntN(64))
	case 3:
		return model.RealValue([]float64{0, math.Copysign(0, -1), 1.5, math.NaN(), math.Inf(-1), g.NormFloat64()}[g.IntN(6)])
	case 4:
		return model.BlobValue(g.raw(300))
	case 5:
		return model.BigIntegerValue("-98765432109876543210")
	}
	return model.TextValue(g.raw(40))
}

func (g gen) row(n int) []model.Value {
	row := make([]model.Value, n)
	for i := range row {
		row[i] = g.value()
	}
	return row
}

func (g gen) uuid() (u [16]byte) {
	for i := range u {
		u[i] = byte(g.Uint32())
	}
	return u
}

func (g gen) cursor() model.Cursor {
	return model.Cursor{Position: model.Position(g.text(20)), Offset: g.Uint64() >> g.IntN(64)}
}

func (g gen) micros() model.Micros { return model.Micros(g.Int64()) }

func (g gen) table() model.SourceTable {
	t := model.SourceTable{ID: g.uuid(), Connection: g.text(5), Schema: g.text(9), Name: g.text(9), CompleteRows: g.IntN(2) == 0}
	for range g.IntN(6) {
		t.Columns = append(t.Columns, model.Column{Name: g.text(8), Type: g.text(8), Key: g.IntN(2) == 0})
	}
	return t
}

func (g gen) progress() []model.TableProgress {
	var ps []model.TableProgress
	for range g.IntN(3) {
		p := model.TableProgress{Table: g.table(), Rows: g.Uint64(), Estimate: g.Uint64(), Done: g.IntN(2) == 0, Layer: g.Uint32()}
		if g.IntN(2) == 0 {
			p.LastKey = []byte("k" + g.raw(9))
		}
		ps = append(ps, p)
	}
	return ps
}

func (g gen) meta() model.BatchMeta {
	return model.BatchMeta{
		Progress: g.progress(), SnapshotDone: g.IntN(2) == 0, NoCheckpointBefore: model.Position(g.text(9)), Origin: g.text(9),
		Transactions: g.Uint32(), SourceBytes: g.Uint64(), Layer: g.Uint32(),
		CommitTime: g.micros(), Heartbeat: g.micros(), PublishedAt: g.micros(), EvaluatedAt: g.micros(),
	}
}

func (g gen) changeBatch() *model.ChangeBatch {
	b := &model.ChangeBatch{Layer: g.Uint32(), Alone: g.IntN(2) == 0, Stream: model.StreamID(g.Int64()), Epoch: model.Epoch(g.Uint64()), Previous: g.cursor(), End: g.cursor(), Meta: g.meta()}
	tables := []model.SourceTable{g.table(), g.table(), g.table()}
	for range g.IntN(20) {
		c := model.Change{Table: &tables[g.IntN(3)], Op: model.ChangeOp(1 + g.IntN(7))}
		if g.IntN(4) > 0 {
			c.Row = g.row(g.IntN(6))
		}
		if g.IntN(4) == 0 {
			c.Before = g.row(g.IntN(6))
		}
		b.Changes = append(b.Changes, c)
	}
	return b
}

func (g gen) evaluatedBatch() *model.EvaluatedBatch {
	b := &model.EvaluatedBatch{Stream: model.StreamID(g.Int64()), Epoch: model.Epoch(g.Uint64()), Previous: g.cursor(), End: g.cursor(), Meta: g.meta()}
	tables := []model.TableID{{}, g.uuid(), g.uuid()}
	names := []string{"", "1#global[]", "1#by_user[\"u1\"]", g.raw(30)}
	for range g.IntN(20) {
		r := model.EvaluatedRow{Kind: model.RowKind(1 + g.IntN(5)), Key: model.RowKey{Table: tables[g.IntN(3)], Row: g.uuid()}, Source: g.raw(60)}
		if g.IntN(4) == 0 {
			before := model.RowID(g.uuid())
			r.Before = &before
		}
		data := g.raw(200)
		for range g.IntN(4) {
			r.Puts = append(r.Puts, model.Put{Bucket: names[g.IntN(4)], ObjectType: names[g.IntN(4)], ObjectID: g.raw(9), Data: data, Checksum: model.Checksum(g.Uint32())})
		}
		for range g.IntN(3) {
			r.Lookups = append(r.Lookups, model.ParameterEntry{Lookup: g.raw(20), Values: names[g.IntN(4)]})
		}
		b.Rows = append(b.Rows, r)
	}
	for range g.IntN(3) {
		b.Checkpoints = append(b.Checkpoints, model.CustomCheckpoint{UserKey: g.text(9), ID: g.Uint64(), Requested: g.IntN(2) == 0})
	}
	return b
}

func (g gen) op() model.Op {
	op := model.Op{ID: model.OpID(g.Uint64() >> g.IntN(64)), Kind: model.OpKind(1 + g.IntN(4)), Checksum: model.Checksum(g.Uint32())}
	switch op.Kind {
	case model.OpPut, model.OpRemove:
		op.Key = model.RowKey{Table: g.uuid(), Row: g.uuid()}
		op.ObjectType, op.ObjectID = g.raw(10), g.raw(20)
		if op.Kind == model.OpPut {
			op.Data = g.raw(300)
		}
	default:
		op.Target = model.OpID(g.Uint64() >> g.IntN(64))
	}
	return op
}

func (g gen) head() model.StreamHead {
	return model.StreamHead{
		Epoch: model.Epoch(g.Uint64()), Applied: g.cursor(), Persisted: model.OpID(g.Uint64()),
		Checkpoint:   model.Checkpoint{Op: model.OpID(g.Uint64()), Position: model.Position(g.text(9))},
		SnapshotDone: g.IntN(2) == 0, NoCheckpointBefore: model.Position(g.text(9)), Origin: g.text(9),
		CommitTime: g.micros(), Heartbeat: g.micros(), PublishedAt: g.micros(), EvaluatedAt: g.micros(), StoredAt: g.micros(),
		LastError: g.text(30), LastErrorAt: g.micros(),
	}
}

func (g gen) stream() model.Stream {
	s := model.Stream{
		ID: model.StreamID(g.Int64()), Name: g.text(9), Config: g.text(50), Content: g.text(9), Edited: g.text(50), EditedContent: g.text(9), Former: g.text(50), Filed: g.text(9), Era: g.Uint32(), Activated: g.micros(), State: model.StreamState(1 + g.IntN(5)), Head: g.head(), Created: g.micros(), FromFile: g.IntN(2) == 0, DeployedBy: g.text(9), CustomCheckpoints: g.IntN(2) == 0,
		Values:  model.ValueOptions{ISO8601: g.IntN(2) == 0, MaxDigits: uint8(g.IntN(10)), CustomTypes: g.IntN(2) == 0},
		Layered: g.Uint32(), Next: g.text(50), NextContent: g.text(9),
	}
	for range g.IntN(3) {
		s.Layers = append(s.Layers, model.Layer{Config: g.text(50), Parts: []string{g.text(9)}, Tables: []model.TablePattern{{Connection: g.text(5), Schema: g.text(5), Name: g.text(5)}}})
	}
	for range g.IntN(4) {
		s.Parts = append(s.Parts, g.text(9))
		s.Tables = append(s.Tables, model.TablePattern{Connection: g.text(5), Schema: g.text(5), Name: g.text(5)})
	}
	return s
}

func (g gen) notice() model.CheckpointNotice {
	n := model.CheckpointNotice{
		Stream: model.StreamID(g.Int64()), Sequence: g.Uint64(), Run: g.Uint64(),
		Checkpoint: model.Checkpoint{Op: model.OpID(g.Uint64()), Position: model.Position(g.text(9))},
		Everything: g.IntN(2) == 0, CommitTime: g.micros(), Heartbeat: g.micros(), StoredAt: g.micros(),
	}
	for range g.IntN(4) {
		n.Buckets = append(n.Buckets, g.text(9))
		n.Lookups = append(n.Lookups, g.raw(9))
		n.Reached = append(n.Reached, model.WriteCheckpoint{UserKey: g.text(9), ID: g.Uint64(), Head: model.Position(g.text(9))})
	}
	return n
}
