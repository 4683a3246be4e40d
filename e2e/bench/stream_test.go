package bench

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
)

// said is a stream whose server has said all of l.
func said(l lines) *Stream { return &Stream{lines: l, ctx: context.Background()} }

func TestStreamReadsLines(t *testing.T) {
	const ops = 500
	const sum = uint32(4_000_000_000*ops%(1<<32) + 5)
	long := `{"data":{"bucket":"b","data":[` + strings.Repeat(`{"checksum":4000000000,"op_id":"1","data":"{\"seq\":41,\"checksum\":7}"},`, ops) + `]}}`
	text := `{"checkpoint":{"last_op_id":"9","write_checkpoint":"12","buckets":[{"bucket":"b\"1","checksum":` + fmt.Sprint(sum) + `}]}}` + "\n" +
		long + "\n" +
		`{"data":{"bucket":"b","data":[{"checksum":5,"op_id":"2","data":"{\"seq\":42,\"x\":1}"}]}}` + "\n" +
		`{"checkpoint_complete":{"last_op_id":"9"}}` + "\n" + `{"token_expires_in":9}` + "\n"
	// Every size puts the seams of the pieces elsewhere.
	for size := 110; size < 500; size++ {
		s := said(&ndjsonStream{reader: bufio.NewReaderSize(strings.NewReader(text), size)})
		if err := s.Complete(); err != nil {
			t.Fatal(err)
		}
		if s.bucket != `b\"1` {
			t.Fatalf("bucket %s", s.bucket)
		}
		if s.Ops != ops+1 || s.Seq != 42 || s.WriteCheckpoint != 12 || s.LastOpID != "9" {
			t.Fatalf("buffer of %d: %d ops, seq %d, write checkpoint %d, last op id %q", size, s.Ops, s.Seq, s.WriteCheckpoint, s.LastOpID)
		}
		if err := s.Complete(); err == nil {
			t.Fatal("the end of the stream was not reported")
		}
	}
}

func TestStreamChecksChecksums(t *testing.T) {
	text := `{"checkpoint":{"last_op_id":"9","buckets":[{"bucket":"b","checksum":7}]}}
{"data":{"bucket":"b","data":[{"checksum":5,"op_id":"2"}]}}
{"checkpoint_complete":{"last_op_id":"9"}}
`
	s := said(&ndjsonStream{reader: bufio.NewReader(strings.NewReader(text))})
	if err := s.Complete(); err == nil || !strings.Contains(err.Error(), "checksum 5") {
		t.Errorf("error %v", err)
	}
}

// TestClearEndsChecks: what a CLEAR replaces is not known, so sums no longer say
// anything.
func TestClearEndsChecks(t *testing.T) {
	const op, clear = `{"op_id":"1","op":"PUT","checksum":1,"data":"x"}`, `{"op_id":"2","op":"CLEAR","checksum":2}`
	for want, ops := range map[bool]string{true: op + "," + clear, false: clear + "," + op} {
		text := `{"data":{"bucket":"b","data":[` + ops + `]}}` + "\n"
		for size := 64; size < 200; size++ {
			s := said(&ndjsonStream{reader: bufio.NewReaderSize(strings.NewReader(text), size)})
			if _, err := s.lines.next(s); err != nil || s.unchecked != want || s.Ops != 2 || s.sum != 3 {
				t.Fatalf("buffer of %d, %s: unchecked %v, %d ops, sum %d: %v", size, ops, s.unchecked, s.Ops, s.sum, err)
			}
		}
	}
	s := said(nil)
	put, cleared := doc("op", "PUT", "checksum", int32(1)), doc("op", "CLEAR", "checksum", int32(2))
	if _, err := s.document(doc("data", doc("data", [][]byte{put, cleared}))); err != nil || !s.unchecked || s.sum != 3 {
		t.Errorf("unchecked %v, sum %d: %v", s.unchecked, s.sum, err)
	}
}

// doc is a BSON document of name, value, name, value.
func doc(pairs ...any) []byte {
	b := []byte{0, 0, 0, 0}
	for i := 0; i < len(pairs); i += 2 {
		field := func(typ byte) { b = append(append(append(b, typ), pairs[i].(string)...), 0) }
		switch v := pairs[i+1].(type) {
		case string:
			field(bsonString)
			b = binary.LittleEndian.AppendUint32(b, uint32(len(v)+1))
			b = append(append(b, v...), 0)
		case int32:
			field(bsonInt32)
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		case float64:
			field(bsonDouble)
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
		case bool:
			field(bsonBool)
			b = append(b, 0)
		case nil:
			field(bsonNull)
		case []byte:
			field(bsonDocument)
			b = append(b, v...)
		case [][]byte:
			field(bsonArray)
			var list []any
			for j, d := range v {
				list = append(list, fmt.Sprint(j), d)
			}
			b = append(b, doc(list...)...)
		}
	}
	b = append(b, 0)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

func documents() [][]byte {
	const ops = 500
	var list [][]byte
	for range ops {
		list = append(list, doc("op_id", "1", "op", "PUT", "checksum", float64(4_000_000_000), "subkey", "s", "data", `{"seq":41,"checksum":7}`))
	}
	const sum = uint32(4_000_000_000*ops%(1<<32) + 5)
	return [][]byte{
		doc("checkpoint", doc("last_op_id", "9", "write_checkpoint", "12", "buckets", [][]byte{doc("bucket", `b"1`, "checksum", float64(sum), "count", int32(ops+1))})),
		doc("data", doc("bucket", `b"1`, "has_more", false, "data", list)),
		doc("data", doc("bucket", `b"1`, "data", [][]byte{
			doc("op_id", "2", "op", "REMOVE", "checksum", int32(2), "data", nil), doc("op_id", "3", "op", "PUT", "checksum", int32(3), "data", `{"seq":42,"x":1}`)})),
		doc("checkpoint_complete", doc("last_op_id", "9")),
		doc("token_expires_in", int32(9)),
	}
}

// heard checks what documents say.
func heard(t *testing.T, s *Stream) {
	t.Helper()
	if err := s.Complete(); err != nil {
		t.Fatal(err)
	}
	if s.Ops != 502 || s.Seq != 42 || s.WriteCheckpoint != 12 || s.LastOpID != "9" || s.bucket != `b\"1` {
		t.Errorf("%d ops, seq %d, write checkpoint %d, last op id %q, bucket %s", s.Ops, s.Seq, s.WriteCheckpoint, s.LastOpID, s.bucket)
	}
	if err := s.Complete(); err == nil {
		t.Error("the end of the stream was not reported")
	}
}

func TestStreamReadsDocuments(t *testing.T) {
	text := bytes.Join(documents(), nil)
	for _, size := range []int{16, 1000, 1 << 20} { // larger and smaller than the documents
		heard(t, said(&bsonStream{reader: bufio.NewReaderSize(bytes.NewReader(text), size)}))
	}
	for n := range len(text) {
		s := said(&bsonStream{reader: bufio.NewReader(bytes.NewReader(text[:n]))})
		for s.Complete() == nil {
		}
	}
}

// deflated is a message as permessage-deflate has it.
func deflated(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := flate.NewWriter(&out, 1)
	if err == nil {
		_, err = z.Write(b)
	}
	if err == nil {
		err = z.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()[:out.Len()-4]
}

// TestSocketAsks: a line costs one credit, and what was used is asked for again.
func TestSocketAsks(t *testing.T) {
	for _, deflate := range []bool{false, true} {
		client, server := net.Pipe()
		defer client.Close()
		asked := make(chan uint32, 1) // the sum, at the end
		go func() {
			sum := uint32(0)
			for {
				var f [16]byte
				if _, err := io.ReadFull(server, f[:]); err != nil {
					asked <- sum
					return
				}
				sum += binary.BigEndian.Uint32(f[12:])
			}
		}()
		written := make(chan error, 1) // one
		go func() {
			var err error
			for _, d := range documents() {
				f := append(rframe(1, framePayload, 0x20), d...)
				head := byte(0x82)
				if deflate {
					f, head = deflated(t, f), 0xc2
				}
				b := binary.BigEndian.AppendUint64([]byte{head, 127}, uint64(len(f)))
				if _, err = server.Write(append(b, f...)); err != nil {
					break
				}
			}
			if err == nil {
				_, err = server.Write([]byte{0x88, 0}) // close
			}
			written <- err
		}()
		s := &Stream{conn: &conn{Conn: client}, ctx: t.Context(), client: Client{Kind: Kind{Socket: true, Deflate: deflate}}}
		s.lines = &socketStream{s: s, reader: bufio.NewReaderSize(s.conn, 4<<10)}
		heard(t, s)
		client.Close()
		if err := <-written; err != nil {
			t.Error(err)
		}
		if n := <-asked; n != 5 {
			t.Errorf("asked for %d lines after 5", n)
		}
	}
}
