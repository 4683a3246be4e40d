package pebble

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// fault tells damage apart from other failures of Pebble, which finds it by the
// checksums of its blocks and records.
func fault(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: %w", store.ErrDamaged, err)
	}
	return err
}

func uvarintSize(n uint64) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

// An op: kind, checksum, then for PUT and REMOVE row key, type, id and data
// (up to the end), for MOVE and CLEAR the target. The id is in the key.

func opSize(op *model.Op) int {
	if op.Kind == model.OpPut || op.Kind == model.OpRemove {
		return 5 + rowKeySize + uvarintSize(uint64(len(op.ObjectType))) + len(op.ObjectType) +
			uvarintSize(uint64(len(op.ObjectID))) + len(op.ObjectID) + len(op.Data)
	}
	return 5 + uvarintSize(uint64(op.Target))
}

func appendOp(dst []byte, op *model.Op) []byte {
	dst = append(dst, byte(op.Kind))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(op.Checksum))
	if op.Kind == model.OpPut || op.Kind == model.OpRemove {
		dst = append(dst, op.Key.Table[:]...)
		dst = append(dst, op.Key.Row[:]...)
		dst = record.AppendText(dst, op.ObjectType)
		dst = record.AppendText(dst, op.ObjectID)
		return append(dst, op.Data...)
	}
	return binary.AppendUvarint(dst, uint64(op.Target))
}

// readOp decodes an op that shares memory with value.
func readOp(id model.OpID, value []byte, op *model.Op) error {
	r := record.NewReader(unsafe.String(unsafe.SliceData(value), len(value)))
	head := r.Bytes(5)
	if err := r.Err(); err != nil {
		return err
	}
	*op = model.Op{ID: id, Kind: model.OpKind(head[0]), Checksum: opChecksum(value)}
	switch op.Kind {
	case model.OpPut, model.OpRemove:
		copy(op.Key.Table[:], r.Bytes(16))
		copy(op.Key.Row[:], r.Bytes(16))
		op.ObjectType = r.Text()
		op.ObjectID = r.Text()
		op.Data = r.Rest()
	case model.OpMove, model.OpClear:
		op.Target = model.OpID(r.Uvarint())
	default:
		return record.ErrCorrupt
	}
	return r.Err()
}

// opChecksum is the checksum of an encoded op of at least five bytes.
func opChecksum(value []byte) model.Checksum {
	return model.Checksum(binary.LittleEndian.Uint32(value[1:]))
}

// total is a bucket's checksum and count up to and with op last.
type total struct {
	checksum model.Checksum
	count    uint64
	last     model.OpID
}

// bucketState is the running sum of a bucket. head counts everything stored;
// base is as of the checkpoint that readers saw when the first op after it,
// first, was stored: so the visible checkpoint is O(1) in the middle of a long
// transaction too.
type bucketState struct {
	number  uint64 // of the bucket in op keys; 0 = no such bucket
	head    total
	base    total
	first   model.OpID // the first op not in base
	cleared model.OpID // id of the CLEAR; reads below it are invalid
	changes uint64     // ops since the last compaction
}

func (s *bucketState) dirt() int { return store.Dirt(s.head.count, s.changes) }

func appendState(dst []byte, s *bucketState) []byte {
	for _, n := range [...]uint64{
		s.number, uint64(s.head.checksum), s.head.count, uint64(s.head.last),
		uint64(s.base.checksum), s.base.count, uint64(s.base.last), uint64(s.first), uint64(s.cleared), s.changes,
	} {
		dst = binary.AppendUvarint(dst, n)
	}
	return dst
}

func readState(value []byte) (bucketState, error) {
	r := record.NewReader(unsafe.String(unsafe.SliceData(value), len(value)))
	s := bucketState{
		number: r.Uvarint(),
		head:   total{model.Checksum(r.Uvarint()), r.Uvarint(), model.OpID(r.Uvarint())},
		base:   total{model.Checksum(r.Uvarint()), r.Uvarint(), model.OpID(r.Uvarint())},
	}
	s.first, s.cleared, s.changes = model.OpID(r.Uvarint()), model.OpID(r.Uvarint()), r.Uvarint()
	if s.number == 0 {
		return s, record.ErrCorrupt
	}
	return s, r.Err()
}

// head is a stream's head and the highest bucket number given out.
type head struct {
	model.StreamHead
	buckets uint64
}

func appendHead(dst []byte, h *head) []byte {
	done := uint64(0)
	if h.SnapshotDone {
		done = 1
	}
	for _, n := range [...]uint64{
		h.buckets, uint64(h.Epoch), h.Applied.Offset, uint64(h.Persisted), uint64(h.Checkpoint.Op), done,
		uint64(h.CommitTime), uint64(h.Heartbeat), uint64(h.PublishedAt), uint64(h.EvaluatedAt), uint64(h.StoredAt), uint64(h.LastErrorAt),
	} {
		dst = binary.AppendUvarint(dst, n)
	}
	for _, s := range [...]string{string(h.Applied.Position), string(h.Checkpoint.Position), string(h.NoCheckpointBefore), h.LastError, h.Origin} {
		dst = record.AppendText(dst, s)
	}
	return dst
}

func readHead(value string) (*head, error) {
	r := record.NewReader(value)
	h := &head{buckets: r.Uvarint()}
	h.Epoch = model.Epoch(r.Uvarint())
	h.Applied.Offset = r.Uvarint()
	h.Persisted = model.OpID(r.Uvarint())
	h.Checkpoint.Op = model.OpID(r.Uvarint())
	h.SnapshotDone = r.Uvarint() == 1
	for _, t := range [...]*model.Micros{&h.CommitTime, &h.Heartbeat, &h.PublishedAt, &h.EvaluatedAt, &h.StoredAt, &h.LastErrorAt} {
		*t = model.Micros(r.Uvarint())
	}
	h.Applied.Position = model.Position(r.Text())
	h.Checkpoint.Position = model.Position(r.Text())
	h.NoCheckpointBefore = model.Position(r.Text())
	h.LastError = r.Text()
	if r.More() { // stored before origins were known
		h.Origin = r.Text()
	}
	return h, r.Err()
}

func appendUser(dst []byte, u *store.UserCheckpoints) []byte {
	dst = binary.AppendUvarint(dst, u.ID)
	dst = record.AppendText(dst, string(u.Head))
	dst = binary.AppendUvarint(dst, u.ReachedID)
	dst = record.AppendText(dst, string(u.ReachedHead))
	return binary.AppendUvarint(dst, uint64(u.Requested))
}

func readUser(value string) (store.UserCheckpoints, error) {
	r := record.NewReader(value)
	u := store.UserCheckpoints{ID: r.Uvarint(), Head: model.Position(r.Text()), ReachedID: r.Uvarint(), ReachedHead: model.Position(r.Text())}
	if r.More() { // stored before numbers could expire
		u.Requested = model.Micros(r.Uvarint())
	}
	return u, r.Err()
}
