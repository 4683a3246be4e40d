package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// Of a row's first byte, the low half is the RowKind.
const (
	rowKinds     = 0x0f
	rowBefore    = 0x10 // the former row id follows
	rowSameTable = 0x20 // the table is the previous row's
)

// Least sizes of what the evaluated block counts.
const (
	minRow    = 20 // kind, row id, three lengths
	minPut    = 8  // four lengths, checksum
	minLookup = 2
)

// EvaluatedBatch returns b as it is sent to bucket-store.
func EvaluatedBatch(b *model.EvaluatedBatch) *pb.EvaluatedBatch {
	return &pb.EvaluatedBatch{
		Stream:   int64(b.Stream),
		Epoch:    uint64(b.Epoch),
		Previous: Cursor(b.Previous),
		End:      Cursor(b.End),
		Meta:     BatchMeta(&b.Meta),
		Rows:     AppendEvaluatedRows(make([]byte, 0, EvaluatedSize(b.Rows)), b.Rows),

		Checkpoints: CustomCheckpoints(b.Checkpoints),
	}
}

// CustomCheckpoints converts custom write checkpoints.
func CustomCheckpoints(cs []model.CustomCheckpoint) []*pb.CustomCheckpoint {
	return all(cs, func(c model.CustomCheckpoint) *pb.CustomCheckpoint {
		return &pb.CustomCheckpoint{UserKey: text(c.UserKey), Id: c.ID, Requested: c.Requested}
	})
}

// EvaluatedSize is a bound from above on the size of the evaluated block of
// rows.
func EvaluatedSize(rows []model.EvaluatedRow) int {
	n := 40
	for i := range rows {
		r := &rows[i]
		n += 80 + len(r.Source)
		var last string
		for j := range r.Puts {
			p := &r.Puts[j]
			n += 30 + len(p.Bucket) + len(p.ObjectType) + len(p.ObjectID)
			if p.Data != last {
				n += len(p.Data)
				last = p.Data
			}
		}
		for j := range r.Lookups {
			n += 20 + len(r.Lookups[j].Lookup) + len(r.Lookups[j].Values)
		}
	}
	return n
}

// AppendEvaluatedRows appends the evaluated block of rows. Text that repeats
// that of the put or lookup before it (the bucket of consecutive rows, the data
// of a row that is in several buckets) is written once.
func AppendEvaluatedRows(dst []byte, rows []model.EvaluatedRow) []byte {
	var befores, puts, lookups int
	for i := range rows {
		if rows[i].Before != nil {
			befores++
		}
		puts += len(rows[i].Puts)
		lookups += len(rows[i].Lookups)
	}
	for _, n := range [4]int{len(rows), befores, puts, lookups} {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	var l last
	var table model.TableID
	for i := range rows {
		r := &rows[i]
		kind := byte(r.Kind)
		if r.Before != nil {
			kind |= rowBefore
		}
		if r.Key.Table == table {
			kind |= rowSameTable
		}
		dst = append(dst, kind)
		if r.Key.Table != table {
			table = r.Key.Table
			dst = append(dst, table[:]...)
		}
		dst = append(dst, r.Key.Row[:]...)
		if r.Before != nil {
			dst = append(dst, r.Before[:]...)
		}
		dst = binary.AppendUvarint(dst, uint64(len(r.Puts)))
		for j := range r.Puts {
			p := &r.Puts[j]
			dst = appendAgain(dst, p.Bucket, &l.bucket)
			dst = appendAgain(dst, p.ObjectType, &l.typ)
			dst = appendAgain(dst, p.ObjectID, &l.id)
			dst = appendAgain(dst, p.Data, &l.data)
			dst = binary.LittleEndian.AppendUint32(dst, uint32(p.Checksum))
		}
		dst = binary.AppendUvarint(dst, uint64(len(r.Lookups)))
		for j := range r.Lookups {
			dst = appendText(dst, r.Lookups[j].Lookup)
			dst = appendAgain(dst, r.Lookups[j].Values, &l.values)
		}
		dst = appendText(dst, r.Source)
	}
	return dst
}

// last has the texts that may be referred back to.
type last struct{ bucket, typ, id, data, values string }

// ModelEvaluatedBatch reads a batch. It shares memory with m.
func ModelEvaluatedBatch(m *pb.EvaluatedBatch) (*model.EvaluatedBatch, error) {
	b := &model.EvaluatedBatch{
		Stream:   model.StreamID(m.GetStream()),
		Epoch:    model.Epoch(m.GetEpoch()),
		Previous: ModelCursor(m.GetPrevious()),
		End:      ModelCursor(m.GetEnd()),
		Checkpoints: all(m.GetCheckpoints(), func(c *pb.CustomCheckpoint) model.CustomCheckpoint {
			return model.CustomCheckpoint{UserKey: c.GetUserKey(), ID: c.GetId(), Requested: c.GetRequested()}
		}),
	}
	var err error
	if b.Meta, err = ModelBatchMeta(m.GetMeta()); err != nil {
		return nil, fmt.Errorf("decode evaluated batch of stream %d at %s: %w", b.Stream, b.Previous, err)
	}
	if b.Rows, err = evaluatedRows(alias(m.GetRows())); err != nil {
		return nil, fmt.Errorf("decode evaluated batch of stream %d at %s: %w", b.Stream, b.Previous, err)
	}
	return b, nil
}

func evaluatedRows(block string) ([]model.EvaluatedRow, error) {
	r := reader{s: block}
	n := r.count(minRow)
	nBefores := r.count(16)
	nPuts := r.count(minPut)
	nLookups := r.count(minLookup)
	if r.err != nil {
		return nil, r.err
	}
	if n == 0 && nBefores == 0 && nPuts == 0 && nLookups == 0 {
		return nil, r.end()
	}
	rows := make([]model.EvaluatedRow, n)
	befores := make([]model.RowID, nBefores)
	puts := make([]model.Put, nPuts)
	lookups := make([]model.ParameterEntry, nLookups)
	var l last
	var table model.TableID
	for i := range rows {
		row := &rows[i]
		kind := r.byte()
		row.Kind = model.RowKind(kind & rowKinds)
		if row.Kind < model.RowPut || row.Kind > model.RowSweep || kind&^(rowKinds|rowBefore|rowSameTable) != 0 {
			r.fail("unknown kind of row")
		}
		if kind&rowSameTable == 0 {
			r.uuid((*[16]byte)(&table))
		}
		row.Key.Table = table
		r.uuid((*[16]byte)(&row.Key.Row))
		if kind&rowBefore != 0 {
			if len(befores) == 0 {
				r.fail("more former keys than announced")
				return nil, r.err
			}
			row.Before, befores = &befores[0], befores[1:]
			r.uuid((*[16]byte)(row.Before))
		}
		k := r.count(minPut)
		if k > len(puts) {
			r.fail("more puts than announced")
			return nil, r.err
		}
		if k > 0 {
			row.Puts, puts = puts[:k:k], puts[k:]
		}
		for j := range row.Puts {
			p := &row.Puts[j]
			p.Bucket = r.again(&l.bucket)
			p.ObjectType = r.again(&l.typ)
			p.ObjectID = r.again(&l.id)
			p.Data = r.again(&l.data)
			p.Checksum = model.Checksum(r.uint32())
		}
		k = r.count(minLookup)
		if k > len(lookups) {
			r.fail("more lookups than announced")
			return nil, r.err
		}
		if k > 0 {
			row.Lookups, lookups = lookups[:k:k], lookups[k:]
		}
		for j := range row.Lookups {
			row.Lookups[j].Lookup = r.text()
			row.Lookups[j].Values = r.again(&l.values)
		}
		row.Source = r.text()
		if r.err != nil {
			return nil, r.err
		}
	}
	if len(befores)+len(puts)+len(lookups) > 0 {
		r.fail("fewer things than announced")
	}
	return rows, r.end()
}
