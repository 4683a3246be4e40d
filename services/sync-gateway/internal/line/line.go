// Package line encodes the lines of the sync protocol: as NDJSON, in the legacy
// form of NDJSON, and as BSON documents (spec/02 §4 and §5).
//
// Invariants:
//
//   - A line is one object with one key, whatever strings it carries
//     (TestLines, FuzzChunk).
//   - Ids are decimal strings, checksums unsigned numbers, in all forms
//     (TestLines).
//   - A row's JSON text reaches the client byte for byte (TestLines, FuzzChunk).
package line

import (
	"encoding/binary"
	"math"
	"strconv"
	"unsafe"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
)

// Form is how lines are written.
type Form uint8

const (
	// NDJSON has row data as a JSON string.
	NDJSON Form = iota
	// Legacy is NDJSON with row data as an embedded object.
	Legacy
	// BSON is a document a line, without separators.
	BSON
)

// ContentType is exact: clients compare it with ==.
func (f Form) ContentType() string {
	if f == BSON {
		return "application/vnd.powersync.bson-stream"
	}
	return "application/x-ndjson"
}

// Append appends l in form f. A session.Data is encoded by AppendChunk instead.
func Append(dst []byte, f Form, l session.Line) []byte {
	if f == BSON {
		return appendBSON(dst, l)
	}
	return appendJSON(dst, l)
}

// Counts says what a chunk holds.
type Counts struct {
	Put, Remove, Move, Clear int
	// RowBytes is the size of the rows' JSON text.
	RowBytes int
}

// Ops is the number of ops.
func (c Counts) Ops() int { return c.Put + c.Remove + c.Move + c.Clear }

// Add adds d to c.
func (c *Counts) Add(d Counts) {
	c.Put += d.Put
	c.Remove += d.Remove
	c.Move += d.Move
	c.Clear += d.Clear
	c.RowBytes += d.RowBytes
}

func (c *Counts) count(op *model.Op) {
	switch op.Kind {
	case model.OpPut:
		c.Put++
		c.RowBytes += len(op.Data)
	case model.OpRemove:
		c.Remove++
	case model.OpMove:
		c.Move++
	default:
		c.Clear++
	}
}

// AppendChunk appends the data line of d, whose ops are block.
func AppendChunk(dst []byte, f Form, d session.Data, block []byte) ([]byte, Counts, error) {
	if f == BSON {
		return appendChunkBSON(dst, d, block)
	}
	return appendChunkJSON(dst, d, block, f == Legacy)
}

func appendJSON(dst []byte, l session.Line) []byte {
	switch l := l.(type) {
	case session.Checkpoint:
		dst = appendHeadJSON(append(dst, `{"checkpoint":{"last_op_id":"`...), l.LastOp, l.WriteCheckpoint)
		dst = appendBucketsJSON(append(dst, `,"buckets":[`...), l.Buckets)
		dst = append(dst, `],"streams":[`...)
		for i := range l.Streams {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendStreamJSON(dst, &l.Streams[i])
		}
		return append(dst, "]}}\n"...)
	case session.CheckpointDiff:
		dst = appendHeadJSON(append(dst, `{"checkpoint_diff":{"last_op_id":"`...), l.LastOp, l.WriteCheckpoint)
		dst = append(dst, `,"removed_buckets":[`...)
		for i, b := range l.Removed {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = AppendString(dst, b)
		}
		dst = appendBucketsJSON(append(dst, `],"updated_buckets":[`...), l.Updated)
		return append(dst, "]}}\n"...)
	case session.PartialComplete:
		dst = append(dst, `{"partial_checkpoint_complete":{"last_op_id":"`...)
		dst = strconv.AppendUint(dst, uint64(l.LastOp), 10)
		dst = append(dst, `","priority":`...)
		dst = strconv.AppendInt(dst, int64(l.Priority), 10)
		return append(dst, "}}\n"...)
	case session.Complete:
		dst = append(dst, `{"checkpoint_complete":{"last_op_id":"`...)
		dst = strconv.AppendUint(dst, uint64(l.LastOp), 10)
		return append(dst, "\"}}\n"...)
	case session.TokenExpiresIn:
		dst = strconv.AppendInt(append(dst, `{"token_expires_in":`...), int64(l.Seconds), 10)
		return append(dst, "}\n"...)
	}
	panic("line: a data line needs its ops")
}

func appendHeadJSON(dst []byte, op model.OpID, write uint64) []byte {
	dst = append(strconv.AppendUint(dst, uint64(op), 10), '"')
	if write != 0 {
		dst = append(dst, `,"write_checkpoint":"`...)
		dst = append(strconv.AppendUint(dst, write, 10), '"')
	}
	return dst
}

func appendBucketsJSON(dst []byte, buckets []session.Bucket) []byte {
	for i := range buckets {
		b := &buckets[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendString(append(dst, `{"bucket":`...), b.ID)
		dst = strconv.AppendUint(append(dst, `,"checksum":`...), uint64(b.State.Checksum), 10)
		dst = strconv.AppendUint(append(dst, `,"count":`...), b.State.Count, 10)
		dst = strconv.AppendInt(append(dst, `,"priority":`...), int64(b.Priority), 10)
		dst = append(dst, `,"subscriptions":[`...)
		for j, r := range b.Reasons {
			if j > 0 {
				dst = append(dst, ',')
			}
			key := `{"sub":`
			if r.Default {
				key = `{"default":`
			}
			dst = append(strconv.AppendInt(append(dst, key...), int64(r.Index), 10), '}')
		}
		dst = append(dst, `]}`...)
	}
	return dst
}

func appendStreamJSON(dst []byte, s *session.Stream) []byte {
	dst = AppendString(append(dst, `{"name":`...), s.Name)
	dst = strconv.AppendBool(append(dst, `,"is_default":`...), s.IsDefault)
	dst = append(dst, `,"errors":[`...)
	for i, e := range s.Errors {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"subscription":`...)
		if e.Default {
			dst = append(dst, `"default"`...)
		} else {
			dst = strconv.AppendInt(dst, int64(e.Subscription), 10)
		}
		dst = AppendString(append(dst, `,"message":`...), e.Message)
		dst = append(dst, '}')
	}
	return append(dst, `]}`...)
}

func appendChunkJSON(dst []byte, d session.Data, block []byte, legacy bool) ([]byte, Counts, error) {
	var counts Counts
	dst = AppendString(append(dst, `{"data":{"bucket":`...), d.Bucket)
	dst = strconv.AppendUint(append(dst, `,"after":"`...), uint64(d.After), 10)
	dst = strconv.AppendBool(append(dst, `","has_more":`...), d.HasMore)
	dst = append(dst, `,"data":[`...)
	first := true
	for op, err := range wire.Ops(block) {
		if err != nil {
			return dst, counts, err
		}
		counts.count(&op)
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = strconv.AppendUint(append(dst, `{"op_id":"`...), uint64(op.ID), 10)
		dst = append(append(append(dst, `","op":"`...), op.Kind.String()...), '"')
		if op.Kind == model.OpPut || op.Kind == model.OpRemove {
			dst = AppendString(append(dst, `,"object_type":`...), op.ObjectType)
			dst = AppendString(append(dst, `,"object_id":`...), op.ObjectID)
		}
		dst = strconv.AppendUint(append(dst, `,"checksum":`...), uint64(op.Checksum), 10)
		switch {
		case op.Kind == model.OpPut || op.Kind == model.OpRemove:
			dst = append(op.Key.AppendSubkey(append(dst, `,"subkey":"`...)), '"')
			dst = append(dst, `,"data":`...)
			switch {
			case op.Kind == model.OpRemove:
				dst = append(dst, "null"...)
			case legacy:
				dst = append(dst, op.Data...)
			default:
				dst = AppendString(dst, op.Data)
			}
		case legacy:
			dst = append(dst, `,"data":null`...)
		}
		dst = append(dst, '}')
	}
	dst = strconv.AppendUint(append(dst, `],"next_after":"`...), uint64(d.NextAfter), 10)
	return append(dst, "\"}}\n"...), counts, nil
}

// special marks the bytes that a JSON string cannot have as they are.
var special = func() (t [256]bool) {
	for i := range 0x20 {
		t[i] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

const hexDigits = "0123456789abcdef"

// AppendString appends s as a JSON string. Bytes that are not UTF-8 stay.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start, i := 0, 0
	for {
		// Eight bytes at a time while none of them is special.
		for i+8 <= len(s) {
			if m := specialMask(binary.LittleEndian.Uint64(unsafe.Slice(unsafe.StringData(s[i:]), 8))); m != 0 {
				i += trailingBytes(m)
				break
			}
			i += 8
		}
		if i+8 > len(s) {
			for i < len(s) && !special[s[i]] {
				i++
			}
		}
		if i == len(s) {
			break
		}
		dst = append(dst, s[start:i]...)
		switch c := s[i]; c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// BSON types.
const (
	bsonDouble   = 0x01
	bsonString   = 0x02
	bsonDocument = 0x03
	bsonArray    = 0x04
	bsonBool     = 0x08
	bsonNull     = 0x0a
	bsonInt32    = 0x10
)

func bsonElement(dst []byte, typ byte, name string) []byte {
	return append(append(append(dst, typ), name...), 0)
}

// bsonOpen begins a document of a length that bsonClose fills in.
func bsonOpen(dst []byte) ([]byte, int) { return append(dst, 0, 0, 0, 0), len(dst) }

func bsonClose(dst []byte, at int) []byte {
	dst = append(dst, 0)
	binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at))
	return dst
}

func bsonText(dst []byte, name, value string) []byte {
	dst = bsonElement(dst, bsonString, name)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(value)+1))
	return append(append(dst, value...), 0)
}

func bsonID(dst []byte, name string, id uint64) []byte {
	var digits [20]byte
	d := strconv.AppendUint(digits[:0], id, 10)
	dst = bsonElement(dst, bsonString, name)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(d)+1))
	return append(append(dst, d...), 0)
}

// bsonNumber writes what fits as int32, anything else as double (spec/02 §4).
func bsonNumber(dst []byte, name string, n uint64) []byte {
	if n <= math.MaxInt32 {
		return binary.LittleEndian.AppendUint32(bsonElement(dst, bsonInt32, name), uint32(n))
	}
	return binary.LittleEndian.AppendUint64(bsonElement(dst, bsonDouble, name), math.Float64bits(float64(n)))
}

func bsonFlag(dst []byte, name string, v bool) []byte {
	dst = bsonElement(dst, bsonBool, name)
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// bsonIndex begins element i of an array.
func bsonIndex(dst []byte, typ byte, i int) []byte {
	return append(strconv.AppendUint(append(dst, typ), uint64(i), 10), 0)
}

func appendBSON(dst []byte, l session.Line) []byte {
	dst, doc := bsonOpen(dst)
	var body int
	open := func(name string) {
		dst, body = bsonOpen(bsonElement(dst, bsonDocument, name))
	}
	switch l := l.(type) {
	case session.Checkpoint:
		open("checkpoint")
		dst = appendHeadBSON(dst, l.LastOp, l.WriteCheckpoint)
		dst = appendBucketsBSON(dst, "buckets", l.Buckets)
		var list int
		dst, list = bsonOpen(bsonElement(dst, bsonArray, "streams"))
		for i := range l.Streams {
			dst = appendStreamBSON(dst, i, &l.Streams[i])
		}
		dst = bsonClose(dst, list)
	case session.CheckpointDiff:
		open("checkpoint_diff")
		dst = appendHeadBSON(dst, l.LastOp, l.WriteCheckpoint)
		var list int
		dst, list = bsonOpen(bsonElement(dst, bsonArray, "removed_buckets"))
		for i, b := range l.Removed {
			dst = bsonIndex(dst, bsonString, i)
			dst = binary.LittleEndian.AppendUint32(dst, uint32(len(b)+1))
			dst = append(append(dst, b...), 0)
		}
		dst = bsonClose(dst, list)
		dst = appendBucketsBSON(dst, "updated_buckets", l.Updated)
	case session.PartialComplete:
		open("partial_checkpoint_complete")
		dst = bsonID(dst, "last_op_id", uint64(l.LastOp))
		dst = bsonNumber(dst, "priority", uint64(l.Priority))
	case session.Complete:
		open("checkpoint_complete")
		dst = bsonID(dst, "last_op_id", uint64(l.LastOp))
	case session.TokenExpiresIn:
		return bsonClose(bsonNumber(dst, "token_expires_in", uint64(l.Seconds)), doc)
	default:
		panic("line: a data line needs its ops")
	}
	return bsonClose(bsonClose(dst, body), doc)
}

func appendHeadBSON(dst []byte, op model.OpID, write uint64) []byte {
	dst = bsonID(dst, "last_op_id", uint64(op))
	if write != 0 {
		dst = bsonID(dst, "write_checkpoint", write)
	}
	return dst
}

func appendBucketsBSON(dst []byte, name string, buckets []session.Bucket) []byte {
	dst, list := bsonOpen(bsonElement(dst, bsonArray, name))
	for i := range buckets {
		b := &buckets[i]
		var doc, reasons int
		dst, doc = bsonOpen(bsonIndex(dst, bsonDocument, i))
		dst = bsonText(dst, "bucket", b.ID)
		dst = bsonNumber(dst, "checksum", uint64(b.State.Checksum))
		dst = bsonNumber(dst, "count", b.State.Count)
		dst = bsonNumber(dst, "priority", uint64(b.Priority))
		dst, reasons = bsonOpen(bsonElement(dst, bsonArray, "subscriptions"))
		for j, r := range b.Reasons {
			var reason int
			dst, reason = bsonOpen(bsonIndex(dst, bsonDocument, j))
			key := "sub"
			if r.Default {
				key = "default"
			}
			dst = bsonClose(bsonNumber(dst, key, uint64(r.Index)), reason)
		}
		dst = bsonClose(bsonClose(dst, reasons), doc)
	}
	return bsonClose(dst, list)
}

func appendStreamBSON(dst []byte, i int, s *session.Stream) []byte {
	dst, doc := bsonOpen(bsonIndex(dst, bsonDocument, i))
	dst = bsonText(dst, "name", s.Name)
	dst = bsonFlag(dst, "is_default", s.IsDefault)
	dst, list := bsonOpen(bsonElement(dst, bsonArray, "errors"))
	for j, e := range s.Errors {
		var one int
		dst, one = bsonOpen(bsonIndex(dst, bsonDocument, j))
		if e.Default {
			dst = bsonText(dst, "subscription", "default")
		} else {
			dst = bsonNumber(dst, "subscription", uint64(e.Subscription))
		}
		dst = bsonClose(bsonText(dst, "message", e.Message), one)
	}
	return bsonClose(bsonClose(dst, list), doc)
}

func appendChunkBSON(dst []byte, d session.Data, block []byte) ([]byte, Counts, error) {
	var counts Counts
	dst, doc := bsonOpen(dst)
	dst, body := bsonOpen(bsonElement(dst, bsonDocument, "data"))
	dst = bsonText(dst, "bucket", d.Bucket)
	dst = bsonID(dst, "after", uint64(d.After))
	dst = bsonFlag(dst, "has_more", d.HasMore)
	dst, list := bsonOpen(bsonElement(dst, bsonArray, "data"))
	i := 0
	for op, err := range wire.Ops(block) {
		if err != nil {
			return dst, counts, err
		}
		counts.count(&op)
		var one int
		dst, one = bsonOpen(bsonIndex(dst, bsonDocument, i))
		i++
		dst = bsonID(dst, "op_id", uint64(op.ID))
		dst = bsonText(dst, "op", op.Kind.String())
		if op.Kind == model.OpPut || op.Kind == model.OpRemove {
			dst = bsonText(dst, "object_type", op.ObjectType)
			dst = bsonText(dst, "object_id", op.ObjectID)
		}
		dst = bsonNumber(dst, "checksum", uint64(op.Checksum))
		if op.Kind == model.OpPut || op.Kind == model.OpRemove {
			var subkey [80]byte
			key := op.Key.AppendSubkey(subkey[:0])
			dst = bsonElement(dst, bsonString, "subkey")
			dst = binary.LittleEndian.AppendUint32(dst, uint32(len(key)+1))
			dst = append(append(dst, key...), 0)
			if op.Kind == model.OpPut {
				dst = bsonText(dst, "data", op.Data)
			} else {
				dst = bsonElement(dst, bsonNull, "data")
			}
		}
		dst = bsonClose(dst, one)
	}
	dst = bsonClose(dst, list)
	dst = bsonID(dst, "next_after", uint64(d.NextAfter))
	return bsonClose(bsonClose(dst, body), doc), counts, nil
}
