package model

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// OpKind is the kind of an op.
type OpKind uint8

const (
	OpPut OpKind = iota + 1
	OpRemove
	OpMove
	OpClear
)

func (k OpKind) String() string {
	switch k {
	case OpPut:
		return "PUT"
	case OpRemove:
		return "REMOVE"
	case OpMove:
		return "MOVE"
	case OpClear:
		return "CLEAR"
	}
	return "OpKind"
}

// Op is one entry of a bucket's history.
type Op struct {
	ID         OpID
	Kind       OpKind
	Checksum   Checksum
	Key        RowKey // PUT, REMOVE: the source row
	ObjectType string // PUT, REMOVE
	ObjectID   string // PUT, REMOVE
	Data       string // PUT: JSON text of the row
	Target     OpID   // MOVE, CLEAR: the newest op that superseded it; never sent
}

// Checksum is the sum of op checksums modulo 2^32. It detects divergence, not
// tampering.
type Checksum uint32

// BucketState is a bucket's checksum and number of ops at some checkpoint.
type BucketState struct {
	Checksum Checksum
	Count    uint64
}

// Subkey is the text under which clients tell rows of equal type and id apart:
// table id, slash, row id.
func (k RowKey) Subkey() string {
	var b [73]byte
	return string(k.AppendSubkey(b[:0]))
}

// AppendSubkey appends Subkey to dst.
func (k RowKey) AppendSubkey(dst []byte) []byte {
	dst = appendUUID(dst, k.Table)
	dst = append(dst, '/')
	return appendUUID(dst, k.Row)
}

func appendUUID(dst []byte, u [16]byte) []byte {
	dst = hex.AppendEncode(dst, u[0:4])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, u[4:6])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, u[6:8])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, u[8:10])
	dst = append(dst, '-')
	return hex.AppendEncode(dst, u[10:16])
}

// PutChecksum is the checksum of a PUT: the first four bytes, little-endian,
// of SHA-256 over "put.<type>.<id>.<data>" (spec/02 §7). scratch is reused if
// large enough.
func PutChecksum(objectType, objectID, data string, scratch []byte) (Checksum, []byte) {
	b := append(scratch[:0], "put."...)
	b = append(b, objectType...)
	b = append(b, '.')
	b = append(b, objectID...)
	b = append(b, '.')
	b = append(b, data...)
	return sum(b), b
}

// RemoveChecksum is the checksum of a REMOVE: the same over "delete.<subkey>".
func RemoveChecksum(subkey string) Checksum {
	return sum(append([]byte("delete."), subkey...))
}

func sum(b []byte) Checksum {
	h := sha256.Sum256(b)
	return Checksum(binary.LittleEndian.Uint32(h[:4]))
}
