package postgres

import (
	"encoding/binary"
	"reflect"
	"testing"
)

// encode writes what decode has read, in the server's format.
func (m *message) encode(b []byte) []byte {
	be := binary.BigEndian
	str := func(s string) { b = append(append(b, s...), 0) }
	tuple := func(t []field) {
		b = be.AppendUint16(b, uint16(len(t)))
		for _, f := range t {
			b = append(b, f.kind)
			if f.kind == 't' {
				b = be.AppendUint32(b, uint32(len(f.data)))
				b = append(b, f.data...)
			}
		}
	}
	b = append(b, m.tag)
	switch m.tag {
	case 'B':
		b = be.AppendUint64(b, uint64(m.lsn))
		b = be.AppendUint64(b, uint64(m.time-postgresEpoch))
		b = be.AppendUint32(b, m.xid)
	case 'C':
		b = append(b, 0)
		b = be.AppendUint64(b, uint64(m.lsn))
		b = be.AppendUint64(b, uint64(m.end))
		b = be.AppendUint64(b, uint64(m.time-postgresEpoch))
	case 'I', 'U':
		b = be.AppendUint32(b, m.relation)
		if m.oldKind != 0 {
			b = append(b, m.oldKind)
			tuple(m.old)
		}
		b = append(b, 'N')
		tuple(m.new)
	case 'D':
		b = be.AppendUint32(b, m.relation)
		b = append(b, m.oldKind)
		tuple(m.old)
	case 'T':
		b = be.AppendUint32(b, uint32(len(m.truncated)))
		b = append(b, 0)
		for _, oid := range m.truncated {
			b = be.AppendUint32(b, oid)
		}
	case 'R':
		b = be.AppendUint32(b, m.rel.oid)
		str(m.rel.schema)
		str(m.rel.name)
		b = append(b, m.rel.identity)
		b = be.AppendUint16(b, uint16(len(m.rel.columns)))
		for _, c := range m.rel.columns {
			flag := byte(0)
			if c.key {
				flag = 1
			}
			b = append(b, flag)
			str(c.name)
			b = be.AppendUint32(b, c.typeOID)
			b = be.AppendUint32(b, uint32(c.typmod))
		}
	case 'M':
		flag := byte(0)
		if m.transactional {
			flag = 1
		}
		b = append(b, flag)
		b = be.AppendUint64(b, uint64(m.lsn))
		str(string(m.prefix))
		b = be.AppendUint32(b, uint32(len(m.content)))
		b = append(b, m.content...)
	}
	return b
}

func text(s string) field { return field{kind: 't', data: []byte(s)} }

var samples = []message{
	{tag: 'B', lsn: 0x16B374D848, time: 1700000000000000, xid: 7},
	{tag: 'C', lsn: 5, end: 77, time: 1},
	{tag: 'I', relation: 16384, new: []field{text("1"), {kind: 'n'}, text("")}},
	{tag: 'U', relation: 16384, new: []field{text("1"), {kind: 'u'}}},
	{tag: 'U', relation: 16384, oldKind: 'K', old: []field{text("0"), {kind: 'n'}}, new: []field{text("1"), text("x")}},
	{tag: 'U', relation: 16384, oldKind: 'O', old: []field{text("0"), text("y")}, new: []field{text("1"), text("x")}},
	{tag: 'D', relation: 1, oldKind: 'K', old: []field{text("0")}},
	{tag: 'T', truncated: []uint32{1, 2}},
	{tag: 'R', rel: relation{oid: 9, schema: "public", name: "todos", identity: 'd', columns: []relationColumn{{key: true, name: "id", typeOID: 2950, typmod: -1}, {name: "n", typeOID: 1043, typmod: 14}}}},
	{tag: 'M', transactional: true, lsn: 3, prefix: []byte("sluice"), content: []byte("123")},
}

// TestDecode: decoding is the inverse of encoding, and every prefix of a
// message is refused rather than read short.
func TestDecode(t *testing.T) {
	for _, want := range samples {
		b := want.encode(nil)
		var got message
		if err := got.decode(b); err != nil {
			t.Fatalf("%c: %v", want.tag, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%c: got %+v, want %+v", want.tag, got, want)
		}
		for n := range b {
			if err := new(message).decode(b[:n]); err == nil {
				t.Errorf("%c: accepted %d of %d bytes", want.tag, n, len(b))
			}
		}
	}
}

func FuzzPgoutput(f *testing.F) {
	for i := range samples {
		f.Add(samples[i].encode(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again message
		if m.decode(b) != nil || m.tag == 'Y' || m.tag == 'O' {
			return
		}
		if len(m.old)+len(m.new)+len(m.truncated)+len(m.rel.columns) > len(b) {
			t.Fatalf("%d bytes made %d + %d fields", len(b), len(m.old), len(m.new))
		}
		if err := again.decode(m.encode(nil)); err != nil {
			t.Fatal(err)
		}
		if !sameMessage(&m, &again) {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

func sameMessage(a, b *message) bool {
	return string(a.encode(nil)) == string(b.encode(nil))
}
