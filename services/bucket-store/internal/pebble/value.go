package pebble

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

var errCorrupt = fmt.Errorf("a value cannot be read: %w", store.ErrDamaged)

// fault tells damage apart from other failures of Pebble, which finds it by the
// checksums of its blocks and records.
func fault(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: %w", store.ErrDamaged, err)
	}
	return err
}

// reader takes a value apart; the first fault sticks.
type reader struct {
	s   string
	bad bool
}

func (r *reader) uvarint() uint64 {
	var x uint64
	for shift := uint(0); shift < 64; shift += 7 {
		if len(r.s) == 0 {
			break
		}
		b := r.s[0]
		r.s = r.s[1:]
		if b < 0x80 {
			if shift == 63 && b > 1 {
				break
			}
			return x | uint64(b)<<shift
		}
		x |= uint64(b&0x7f) << shift
	}
	r.bad = true
	return 0
}

func (r *reader) bytes(n uint64) string {
	if n > uint64(len(r.s)) {
		r.bad = true
		return ""
	}
	s := r.s[:n]
	r.s = r.s[n:]
	return s
}

func (r *reader) text() string { return r.bytes(r.uvarint()) }

// again reads a text that appendAgain wrote.
func (r *reader) again(last *string) string {
	if n := r.uvarint(); n > 0 {
		*last = r.bytes(n - 1)
	}
	return *last
}

func (r *reader) err() error {
	if r.bad {
		return errCorrupt
	}
	return nil
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// appendAgain writes s, or a zero byte if it is the same as the last one.
func appendAgain(dst []byte, s string, last *string) []byte {
	if s == *last {
		return append(dst, 0)
	}
	*last = s
	return append(binary.AppendUvarint(dst, uint64(len(s))+1), s...)
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
		dst = appendText(dst, op.ObjectType)
		dst = appendText(dst, op.ObjectID)
		return append(dst, op.Data...)
	}
	return binary.AppendUvarint(dst, uint64(op.Target))
}

// readOp decodes an op that shares memory with value.
func readOp(id model.OpID, value []byte, op *model.Op) error {
	r := reader{s: unsafe.String(unsafe.SliceData(value), len(value))}
	head := r.bytes(5)
	if r.bad {
		return errCorrupt
	}
	*op = model.Op{ID: id, Kind: model.OpKind(head[0]), Checksum: opChecksum(value)}
	switch op.Kind {
	case model.OpPut, model.OpRemove:
		copy(op.Key.Table[:], r.bytes(16))
		copy(op.Key.Row[:], r.bytes(16))
		op.ObjectType = r.text()
		op.ObjectID = r.text()
		op.Data = r.s
	case model.OpMove, model.OpClear:
		op.Target = model.OpID(r.uvarint())
	default:
		return errCorrupt
	}
	return r.err()
}

// opChecksum is the checksum of an encoded op of at least five bytes.
func opChecksum(value []byte) model.Checksum {
	return model.Checksum(binary.LittleEndian.Uint32(value[1:]))
}

func appendRecord(dst []byte, rec *ledger.Record) []byte {
	var typ, id string
	dst = binary.AppendUvarint(dst, uint64(len(rec.Buckets)))
	for i := range rec.Buckets {
		m := &rec.Buckets[i]
		dst = appendText(dst, m.Bucket)
		dst = appendAgain(dst, m.ObjectType, &typ)
		dst = appendAgain(dst, m.ObjectID, &id)
	}
	dst = binary.AppendUvarint(dst, uint64(len(rec.Lookups)))
	for i := range rec.Lookups {
		dst = appendText(dst, rec.Lookups[i].Lookup)
		dst = appendText(dst, rec.Lookups[i].Values)
	}
	return append(dst, rec.Source...)
}

// readRecord decodes a record that shares memory with value.
func readRecord(value string) (*ledger.Record, error) {
	r := reader{s: value}
	rec := &ledger.Record{}
	var typ, id string
	if n := r.uvarint(); n > uint64(len(r.s)) {
		return nil, errCorrupt
	} else if n > 0 {
		rec.Buckets = make([]ledger.Membership, 0, min(n, 1024))
		for range n {
			rec.Buckets = append(rec.Buckets, ledger.Membership{Bucket: r.text(), ObjectType: r.again(&typ), ObjectID: r.again(&id)})
			if r.bad {
				return nil, errCorrupt
			}
		}
	}
	if n := r.uvarint(); n > uint64(len(r.s)) {
		return nil, errCorrupt
	} else if n > 0 {
		rec.Lookups = make([]model.ParameterEntry, 0, min(n, 1024))
		for range n {
			rec.Lookups = append(rec.Lookups, model.ParameterEntry{Lookup: r.text(), Values: r.text()})
			if r.bad {
				return nil, errCorrupt
			}
		}
	}
	rec.Source = r.s
	return rec, r.err()
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
	r := reader{s: unsafe.String(unsafe.SliceData(value), len(value))}
	s := bucketState{
		number: r.uvarint(),
		head:   total{model.Checksum(r.uvarint()), r.uvarint(), model.OpID(r.uvarint())},
		base:   total{model.Checksum(r.uvarint()), r.uvarint(), model.OpID(r.uvarint())},
	}
	s.first, s.cleared, s.changes = model.OpID(r.uvarint()), model.OpID(r.uvarint()), r.uvarint()
	if s.number == 0 {
		return s, errCorrupt
	}
	return s, r.err()
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
		dst = appendText(dst, s)
	}
	return dst
}

func readHead(value string) (*head, error) {
	r := reader{s: value}
	h := &head{buckets: r.uvarint()}
	h.Epoch = model.Epoch(r.uvarint())
	h.Applied.Offset = r.uvarint()
	h.Persisted = model.OpID(r.uvarint())
	h.Checkpoint.Op = model.OpID(r.uvarint())
	h.SnapshotDone = r.uvarint() == 1
	for _, t := range [...]*model.Micros{&h.CommitTime, &h.Heartbeat, &h.PublishedAt, &h.EvaluatedAt, &h.StoredAt, &h.LastErrorAt} {
		*t = model.Micros(r.uvarint())
	}
	h.Applied.Position = model.Position(r.text())
	h.Checkpoint.Position = model.Position(r.text())
	h.NoCheckpointBefore = model.Position(r.text())
	h.LastError = r.text()
	if len(r.s) > 0 { // stored before origins were known
		h.Origin = r.text()
	}
	return h, r.err()
}

func appendUser(dst []byte, u *store.UserCheckpoints) []byte {
	dst = binary.AppendUvarint(dst, u.ID)
	dst = appendText(dst, string(u.Head))
	dst = binary.AppendUvarint(dst, u.ReachedID)
	dst = appendText(dst, string(u.ReachedHead))
	return binary.AppendUvarint(dst, uint64(u.Requested))
}

func readUser(value string) (store.UserCheckpoints, error) {
	r := reader{s: value}
	u := store.UserCheckpoints{ID: r.uvarint(), Head: model.Position(r.text()), ReachedID: r.uvarint(), ReachedHead: model.Position(r.text())}
	if len(r.s) > 0 { // stored before numbers could expire
		u.Requested = model.Micros(r.uvarint())
	}
	return u, r.err()
}
