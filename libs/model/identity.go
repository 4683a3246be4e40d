package model

import (
	"crypto/sha1"
	"encoding/binary"
	"math"
)

// namespace of all UUID v5 identities (spec/04 §1.4).
var namespace = [16]byte{0xa3, 0x96, 0xdd, 0x91, 0x09, 0xfc, 0x40, 0x17, 0xa2, 0x8d, 0x3d, 0xf7, 0x22, 0xf6, 0x51, 0xe9}

// UUID5 is the UUID v5 of name in Sluice's namespace.
func UUID5(name []byte) [16]byte {
	h := sha1.New()
	h.Write(namespace[:])
	h.Write(name)
	var s [sha1.Size]byte
	h.Sum(s[:0])
	var u [16]byte
	copy(u[:], s[:])
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return u
}

// RowIdentity returns the RowID of a row of t: UUID v5 over the BSON document
// of its key columns, in column order (spec/04 §1.4, conformance
// checksums.json row_identity). ok is false if t has no key columns (id is then
// the same for every row) or row lacks one. scratch is reused if large enough.
func RowIdentity(t *SourceTable, row []Value, scratch []byte) (id RowID, ok bool, _ []byte) {
	b := append(scratch[:0], 0, 0, 0, 0)
	for i := range t.Columns {
		if !t.Columns[i].Key {
			continue
		}
		if i >= len(row) || row[i].kind == Absent {
			return RowID{}, false, b
		}
		b = appendBSON(b, t.Columns[i].Name, row[i])
		ok = true
	}
	b = append(b, 0)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return RowID(UUID5(b)), ok, b
}

// appendBSON appends an element as the reference writes it: integers as int64,
// reals as double except whole ones that fit int32, which become int32.
func appendBSON(b []byte, name string, v Value) []byte {
	typ := func(t byte) {
		b = append(b, t)
		b = append(b, name...)
		b = append(b, 0)
	}
	switch v.kind {
	case Integer:
		typ(0x12)
		b = binary.LittleEndian.AppendUint64(b, v.bits)
	case Real:
		f := v.Float()
		if f == math.Trunc(f) && math.Abs(f) <= math.MaxInt32 && (f != 0 || !math.Signbit(f)) {
			typ(0x10)
			b = binary.LittleEndian.AppendUint32(b, uint32(int32(f)))
		} else {
			typ(0x01)
			b = binary.LittleEndian.AppendUint64(b, v.bits)
		}
	case Text, BigInteger:
		typ(0x02)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(v.text)+1))
		b = append(b, v.text...)
		b = append(b, 0)
	case Blob:
		typ(0x05)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(v.text)))
		b = append(b, 0)
		b = append(b, v.text...)
	default:
		typ(0x0a)
	}
	return b
}
