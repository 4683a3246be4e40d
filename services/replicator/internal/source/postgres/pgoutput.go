package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// lsn is a position in the write-ahead log.
type lsn uint64

// postgresEpoch is 2000-01-01 UTC in microseconds since 1970; times of the
// replication protocol count from there.
const postgresEpoch = 946684800000000

// errTruncated means that a message ends before it should.
var errTruncated = errors.New("pgoutput: message too short")

// field is one column of a tuple as it came: kind 'n' (null), 'u' (unchanged,
// not sent), 't' (text). data lives as long as the message it was decoded from.
type field struct {
	kind byte
	data []byte
}

// relation is what a Relation message says of a table.
type relation struct {
	oid      uint32
	schema   string
	name     string
	identity byte // d, n, f, i
	columns  []relationColumn
}

type relationColumn struct {
	key     bool
	name    string
	typeOID uint32
	typmod  int32
}

// message is one decoded pgoutput message. It is reused from message to
// message; slices point into the input.
type message struct {
	tag byte

	lsn  lsn    // B: final LSN; C: commit LSN; M: LSN of the message
	end  lsn    // C: end LSN, the transaction's position
	time int64  // B, C: commit time, microseconds since 1970
	xid  uint32 // B

	relation uint32 // I, U, D
	oldKind  byte   // U, D: K, O, or 0 if there is no old tuple
	old      []field
	new      []field

	truncated []uint32 // T
	rel       relation // R

	transactional bool // M
	prefix        []byte
	content       []byte
}

// decode decodes a pgoutput message of protocol version 1. It allocates only
// for relation messages and to grow reused slices, which is bounded by len(b).
func (m *message) decode(b []byte) error {
	if len(b) == 0 {
		return errTruncated
	}
	r := reader{b: b[1:]}
	m.tag = b[0]
	switch m.tag {
	case 'B':
		m.lsn = lsn(r.uint64())
		m.time = int64(r.uint64()) + postgresEpoch
		m.xid = r.uint32()
	case 'C':
		r.byte() // flags
		m.lsn = lsn(r.uint64())
		m.end = lsn(r.uint64())
		m.time = int64(r.uint64()) + postgresEpoch
	case 'I':
		m.relation = r.uint32()
		m.oldKind = 0
		if k := r.byte(); k != 'N' && !r.short {
			return fmt.Errorf("pgoutput: insert with tuple kind %q", k)
		}
		m.new = r.tuple(m.new)
	case 'U':
		m.relation = r.uint32()
		m.oldKind = 0
		k := r.byte()
		if k == 'K' || k == 'O' {
			m.oldKind = k
			m.old = r.tuple(m.old)
			k = r.byte()
		}
		if k != 'N' && !r.short {
			return fmt.Errorf("pgoutput: update with tuple kind %q", k)
		}
		m.new = r.tuple(m.new)
	case 'D':
		m.relation = r.uint32()
		m.oldKind = r.byte()
		if m.oldKind != 'K' && m.oldKind != 'O' && !r.short {
			return fmt.Errorf("pgoutput: delete with tuple kind %q", m.oldKind)
		}
		m.old = r.tuple(m.old)
	case 'T':
		n := r.uint32()
		r.byte() // flags
		if uint64(n)*4 > uint64(len(r.b)) {
			return errTruncated
		}
		m.truncated = m.truncated[:0]
		for range n {
			m.truncated = append(m.truncated, r.uint32())
		}
	case 'R':
		m.rel = relation{oid: r.uint32(), schema: r.cstring(), name: r.cstring(), identity: r.byte()}
		if m.rel.schema == "" {
			m.rel.schema = "pg_catalog"
		}
		n := int(r.uint16())
		if n*10 > len(r.b) { // flags, terminator, type, typmod
			return errTruncated
		}
		m.rel.columns = make([]relationColumn, n)
		for i := range m.rel.columns {
			m.rel.columns[i] = relationColumn{key: r.byte()&1 != 0, name: r.cstring(), typeOID: r.uint32(), typmod: int32(r.uint32())}
		}
	case 'M':
		m.transactional = r.byte()&1 != 0
		m.lsn = lsn(r.uint64())
		m.prefix = r.until0()
		n := r.uint32()
		m.content = r.bytes(int64(n))
	case 'Y', 'O': // types are looked up in the catalog; origins do not matter
		return nil
	default:
		return fmt.Errorf("pgoutput: unknown message %q", m.tag)
	}
	if r.short {
		return errTruncated
	}
	return nil
}

// reader reads big-endian fields; after the input's end it returns zeros and
// short is set.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(n int64) []byte {
	if n < 0 || n > int64(len(r.b)) {
		r.short = true
		r.b = nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.short = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) until0() []byte {
	for i, c := range r.b {
		if c == 0 {
			b := r.b[:i:i]
			r.b = r.b[i+1:]
			return b
		}
	}
	r.short = true
	r.b = nil
	return nil
}

func (r *reader) cstring() string { return string(r.until0()) }

// tuple reads a tuple into dst's memory.
func (r *reader) tuple(dst []field) []field {
	dst = dst[:0]
	n := int(r.uint16())
	b := r.b
	if n > len(b) { // each column takes a byte at least
		r.short = true
		return dst
	}
	for range n {
		if len(b) == 0 {
			r.short = true
			return dst
		}
		kind := b[0]
		b = b[1:]
		switch kind {
		case 'n', 'u':
			dst = append(dst, field{kind: kind})
		case 't':
			if len(b) < 4 {
				r.short = true
				return dst
			}
			size := int64(binary.BigEndian.Uint32(b))
			b = b[4:]
			if size > int64(len(b)) {
				r.short = true
				return dst
			}
			dst = append(dst, field{kind: 't', data: b[:size:size]})
			b = b[size:]
		default:
			r.short = true // binary values are never asked for
			return dst
		}
	}
	r.b = b
	return dst
}
