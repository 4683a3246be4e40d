package mongodb

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
)

// chunk is a document with ops of one bucket that follow one another. Only what
// compaction may change of it changes.
type chunk struct {
	ID      []byte `bson:"_id"` // see chunkID
	First   int64  `bson:"f"`
	Attempt int64  `bson:"a"` // 0 = it is made of chunks that counted
	Ops     int32  `bson:"n"`
	Version int32  `bson:"v"` // raised by every change
	Heads   []byte `bson:"h"` // all of the ops but the data
	Size    int64  `bson:"z"` // bytes of data
	Data    []byte `bson:"d,omitempty"`
	// Parts are documents that have Data, if it is large.
	Parts []byte `bson:"p,omitempty"` // the stored form of their value
}

// chunkID is the bucket, the last op and the attempt: the chunks of a bucket are
// in the order of their ops.
func chunkID(bucket hash, last model.OpID, attempt int64) []byte {
	id := make([]byte, 0, 32)
	id = append(id, bucket[:]...)
	id = binary.BigEndian.AppendUint64(id, uint64(last))
	return binary.BigEndian.AppendUint64(id, uint64(attempt))
}

func (c *chunk) last() model.OpID { return model.OpID(binary.BigEndian.Uint64(c.ID[16:])) }

// fromTo selects the chunks of a bucket that may have ops in (after, upTo], those
// that follow the chunk with the id place, if it is given.
func fromTo(bucket hash, after, upTo model.OpID, place []byte, descending bool) bson.D {
	from := bson.E{Key: "$gte", Value: chunkID(bucket, after+1, 0)}
	to := bson.E{Key: "$lte", Value: chunkID(bucket, math.MaxUint64, math.MaxInt64)}
	switch {
	case place != nil && descending:
		to = bson.E{Key: "$lt", Value: place}
	case place != nil:
		from = bson.E{Key: "$gt", Value: place}
	}
	return bson.D{{Key: "_id", Value: bson.D{from, to}}, {Key: "f", Value: bson.D{{Key: "$lte", Value: opID(upTo)}}}}
}

// heads of ops: each the distance of its id from the one before it, its kind and
// flags, checksum, and target or name and the length of data.
const (
	kindMask  = 0x0f
	sameTable = 0x10 // as the last op with a name
	sameType  = 0x20
)

// packer makes chunks of the ops of one bucket.
type packer struct {
	bucket     hash
	attempt    int64 // of the chunks
	ops, bytes int   // bounds of a chunk

	chunk *chunk // that ops are added to
	last  model.OpID
	table model.TableID
	typ   string
	done  []*chunk
}

func (p *packer) add(op *model.Op) {
	if p.chunk != nil && (int(p.chunk.Ops) >= p.ops || len(p.chunk.Heads)+len(p.chunk.Data)+len(op.Data) > p.bytes) {
		p.end()
	}
	if p.chunk == nil {
		p.chunk = &chunk{First: opID(op.ID), Attempt: p.attempt}
		p.last, p.table, p.typ = op.ID, model.TableID{}, ""
	}
	h := binary.AppendUvarint(p.chunk.Heads, uint64(op.ID-p.last))
	flags := byte(op.Kind)
	if !targeted(op) {
		if op.Key.Table == p.table {
			flags |= sameTable
		}
		if op.ObjectType == p.typ {
			flags |= sameType
		}
	}
	h = append(h, flags)
	h = binary.BigEndian.AppendUint32(h, uint32(op.Checksum))
	if targeted(op) {
		h = binary.AppendUvarint(h, uint64(op.Target))
	} else {
		if flags&sameTable == 0 {
			h = append(h, op.Key.Table[:]...)
			p.table = op.Key.Table
		}
		h = append(h, op.Key.Row[:]...)
		if flags&sameType == 0 {
			h = record.AppendText(h, op.ObjectType)
			p.typ = op.ObjectType
		}
		h = record.AppendText(h, op.ObjectID)
	}
	if op.Kind == model.OpPut {
		h = binary.AppendUvarint(h, uint64(len(op.Data)))
		p.chunk.Data = append(p.chunk.Data, op.Data...)
	}
	p.chunk.Heads, p.last = h, op.ID
	p.chunk.Ops++
}

// end ends the chunk that ops are added to.
func (p *packer) end() {
	if p.chunk == nil {
		return
	}
	p.chunk.ID, p.chunk.Size = chunkID(p.bucket, p.last, p.attempt), int64(len(p.chunk.Data))
	p.done = append(p.done, p.chunk)
	p.chunk = nil
}

// targeted tells whether an op has a target rather than a name.
func targeted(op *model.Op) bool { return op.Kind == model.OpMove || op.Kind == model.OpClear }

// chunks are those of a commit's ops.
func (a *attempt) chunks(c *ledger.Commit, hashes []hash) []*chunk {
	packers := make([]packer, len(c.Buckets))
	for i := range packers {
		packers[i] = packer{bucket: hashes[i], attempt: a.number, ops: a.s.options.chunkOps, bytes: a.s.options.chunkBytes}
	}
	for i := range c.Ops {
		packers[c.Ops[i].Bucket].add(&c.Ops[i].Op)
	}
	var all []*chunk
	for i := range packers {
		packers[i].end()
		all = append(all, packers[i].done...)
	}
	return all
}

// keepChunk moves data that is too large for a document into parts.
func (a *attempt) keepChunk(ctx context.Context, c *chunk) (err error) {
	if size := a.s.options.partBytes; len(c.Data) > size+size/2 {
		c.Parts, err = a.keep(ctx, c.ID, c.Data)
		c.Data = nil
	}
	return err
}

// writeChunks writes chunks, in commands of at most some megabytes.
func (a *attempt) writeChunks(ctx context.Context, chunks []*chunk) error {
	docs := make([]any, len(chunks))
	for i, c := range chunks {
		if err := a.keepChunk(ctx, c); err != nil {
			return err
		}
		docs[i] = c
	}
	return a.insert(ctx, a.s.of(a.id, opsName), docs)
}

// unpack yields the ops of a chunk, which share memory with it; without data if it
// was read without.
func (c *chunk) unpack(yield func(*model.Op) bool) error {
	r := record.NewReader(textOf(c.Heads))
	data := textOf(c.Data)
	withData := int64(len(c.Data)) == c.Size
	id := uint64(c.First)
	var table model.TableID
	var typ string
	for range c.Ops {
		id += r.Uvarint()
		var flags byte
		if b := r.Bytes(1); b != "" {
			flags = b[0]
		}
		op := model.Op{ID: model.OpID(id), Kind: model.OpKind(flags & kindMask), Checksum: checksum(&r)}
		if targeted(&op) {
			op.Target = model.OpID(r.Uvarint())
		} else {
			if flags&sameTable == 0 {
				copy(table[:], r.Bytes(16))
			}
			op.Key.Table = table
			copy(op.Key.Row[:], r.Bytes(16))
			if flags&sameType == 0 {
				typ = r.Text()
			}
			op.ObjectType, op.ObjectID = typ, r.Text()
		}
		if op.Kind == model.OpPut {
			n := r.Uvarint()
			if withData {
				if n > uint64(len(data)) {
					return fmt.Errorf("chunk %x: %w", c.ID, record.ErrCorrupt)
				}
				op.Data, data = data[:n], data[n:]
			}
		}
		if err := r.Err(); err != nil {
			return fmt.Errorf("chunk %x: %w", c.ID, err)
		}
		if !yield(&op) {
			return nil
		}
	}
	return nil
}

func checksum(r *record.Reader) model.Checksum {
	var b [4]byte
	copy(b[:], r.Bytes(4))
	return model.Checksum(binary.BigEndian.Uint32(b[:]))
}

// textOf is b, which nobody changes, as a text.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
