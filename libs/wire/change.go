package wire

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// Of a change's first byte, the low half is the ChangeOp and these bits say
// what follows.
const (
	changeRow    = 0x10
	changeBefore = 0x20
	changeOps    = 0x0f
)

// minChange is the least size of an encoded change: op and table.
const minChange = 2

// EncodeChangeBatch returns the body of a message on a stream's changes
// subject. Every change has a table.
func EncodeChangeBatch(b *model.ChangeBatch) []byte {
	m := &pb.ChangeBatch{
		Stream:   int64(b.Stream),
		Epoch:    uint64(b.Epoch),
		Layer:    b.Layer,
		Alone:    b.Alone,
		Previous: Cursor(b.Previous),
		End:      Cursor(b.End),
		Meta:     BatchMeta(&b.Meta),
	}
	m.Changes, m.Tables = appendChanges(make([]byte, 0, changesSize(b.Changes)), b.Changes)
	out, err := proto.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("wire: marshal change batch: %v", err)) // all text is valid UTF-8: see text
	}
	return out
}

// changesSize guesses the size of a change block, from above for usual rows.
func changesSize(changes []model.Change) int {
	n := 20
	for i := range changes {
		n += 6
		for _, row := range [2][]model.Value{changes[i].Row, changes[i].Before} {
			for j := range row {
				n += 11 + len(row[j].Str())
			}
		}
	}
	return n
}

// appendChanges appends the change block: the numbers of changes and of values
// in all, then the changes.
func appendChanges(dst []byte, changes []model.Change) ([]byte, []*pb.SourceTable) {
	values := 0
	for i := range changes {
		values += len(changes[i].Row) + len(changes[i].Before)
	}
	dst = binary.AppendUvarint(dst, uint64(len(changes)))
	dst = binary.AppendUvarint(dst, uint64(values))
	var tables []*pb.SourceTable
	index := map[*model.SourceTable]uint64{}
	var last *model.SourceTable
	var at uint64
	for i := range changes {
		c := &changes[i]
		if c.Table != last {
			known := false
			if at, known = index[c.Table]; !known {
				at = uint64(len(tables))
				index[c.Table] = at
				tables = append(tables, SourceTable(c.Table))
			}
			last = c.Table
		}
		op := byte(c.Op)
		if c.Row != nil {
			op |= changeRow
		}
		if c.Before != nil {
			op |= changeBefore
		}
		dst = append(dst, op)
		dst = binary.AppendUvarint(dst, at)
		if c.Row != nil {
			dst = AppendRow(dst, c.Row)
		}
		if c.Before != nil {
			dst = AppendRow(dst, c.Before)
		}
	}
	return dst, tables
}

// DecodeChangeBatch reads a message body. The batch shares no memory with it.
func DecodeChangeBatch(body []byte) (*model.ChangeBatch, error) {
	var m pb.ChangeBatch
	if err := proto.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("decode change batch: %w: %w", ErrMalformed, err)
	}
	b := &model.ChangeBatch{
		Stream:   model.StreamID(m.GetStream()),
		Epoch:    model.Epoch(m.GetEpoch()),
		Layer:    m.GetLayer(),
		Alone:    m.GetAlone(),
		Previous: ModelCursor(m.GetPrevious()),
		End:      ModelCursor(m.GetEnd()),
	}
	var err error
	if b.Meta, err = ModelBatchMeta(m.GetMeta()); err != nil {
		return nil, fmt.Errorf("decode change batch of stream %d at %s: %w", b.Stream, b.Previous, err)
	}
	tables := make([]model.SourceTable, len(m.GetTables()))
	for i, t := range m.GetTables() {
		if tables[i], err = ModelSourceTable(t); err != nil {
			return nil, fmt.Errorf("decode change batch of stream %d at %s: %w", b.Stream, b.Previous, err)
		}
	}
	if b.Changes, err = changes(alias(m.GetChanges()), tables); err != nil {
		return nil, fmt.Errorf("decode change batch of stream %d at %s: %w", b.Stream, b.Previous, err)
	}
	return b, nil
}

func changes(block string, tables []model.SourceTable) ([]model.Change, error) {
	r := reader{s: block}
	n := r.count(minChange)
	total := r.count(1)
	if r.err != nil {
		return nil, r.err
	}
	if n == 0 && total == 0 {
		return nil, r.end()
	}
	out := make([]model.Change, n)
	values := make([]model.Value, 0, total)
	row := func() []model.Value {
		k := r.count(1)
		if k > cap(values)-len(values) {
			r.fail("more values than announced")
			return nil
		}
		start := len(values)
		values = r.values(values, k)
		return values[start:len(values):len(values)]
	}
	for i := range out {
		op := r.byte()
		t := r.uvarint()
		if t >= uint64(len(tables)) {
			r.fail("unknown table")
			return nil, r.err
		}
		c := &out[i]
		c.Table, c.Op = &tables[t], model.ChangeOp(op&changeOps)
		if c.Op < model.Insert || c.Op > model.Sweep || op&^(changeOps|changeRow|changeBefore) != 0 {
			r.fail("unknown kind of change")
		}
		if op&changeRow != 0 {
			c.Row = row()
		}
		if op&changeBefore != 0 {
			c.Before = row()
		}
		if r.err != nil {
			return nil, r.err
		}
	}
	if len(values) != total {
		r.fail("fewer values than announced")
	}
	return out, r.end()
}
