package bench

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"
)

// bsonStream reads documents one after another.
type bsonStream struct {
	reader *bufio.Reader
	end    func()
}

func (b *bsonStream) close() { b.end() }

func (b *bsonStream) next(s *Stream) (complete bool, err error) {
	head, err := b.reader.Peek(4)
	if err != nil {
		return false, err
	}
	err = whole(b.reader, int(int32(binary.LittleEndian.Uint32(head))), func(doc []byte) error {
		complete, err = s.document(doc)
		return err
	})
	return complete, err
}

// maxWhole bounds a document: far above what a server sends.
const maxWhole = 64 << 20

// spare is memory for what is larger than a reader's buffer.
var spare = sync.Pool{New: func() any { return new([]byte) }}

// whole calls do with the next n bytes, which are valid until it returns.
func whole(r *bufio.Reader, n int, do func([]byte) error) error {
	if n < 0 || n > maxWhole {
		return fmt.Errorf("a document or message of %d bytes", n)
	}
	if n <= r.Size() {
		b, err := r.Peek(n)
		if err != nil {
			return err
		}
		if err := do(b); err != nil {
			return err
		}
		_, err = r.Discard(n)
		return err
	}
	b := spare.Get().(*[]byte)
	defer spare.Put(b)
	if cap(*b) < n {
		*b = make([]byte, n+n/4)
	}
	if _, err := io.ReadFull(r, (*b)[:n]); err != nil {
		return err
	}
	return do((*b)[:n])
}

var errBSON = errors.New("malformed BSON")

// element is one field of a document.
type element struct {
	typ   byte
	name  []byte
	value []byte // a string without its length and end
}

const (
	bsonDouble   = 0x01
	bsonString   = 0x02
	bsonDocument = 0x03
	bsonArray    = 0x04
	bsonBool     = 0x08
	bsonNull     = 0x0a
	bsonInt32    = 0x10
)

// seqMarkBSON is seqMark where a row is not escaped.
var seqMarkBSON = []byte(`"seq":`)

// fields calls do for the elements of a document until it returns false.
func fields(doc []byte, do func(element) bool) error {
	if len(doc) < 5 || int(binary.LittleEndian.Uint32(doc)) != len(doc) || doc[len(doc)-1] != 0 {
		return errBSON
	}
	b := doc[4 : len(doc)-1]
	for len(b) > 0 {
		e := element{typ: b[0]}
		i := bytes.IndexByte(b[1:], 0)
		if i < 0 {
			return errBSON
		}
		e.name, b = b[1:1+i], b[2+i:]
		n, skip := 0, 0
		switch e.typ {
		case bsonDouble:
			n = 8
		case bsonInt32:
			n = 4
		case bsonBool:
			n = 1
		case bsonNull:
		case bsonString, bsonDocument, bsonArray:
			if len(b) < 4 {
				return errBSON
			}
			n = int(binary.LittleEndian.Uint32(b))
			if e.typ == bsonString {
				skip, n = 4, n+4
			}
		default:
			return errBSON
		}
		if n < skip || n > len(b) {
			return errBSON
		}
		e.value, b = b[skip:n], b[n:]
		if e.typ == bsonString {
			if len(e.value) == 0 {
				return errBSON
			}
			e.value = e.value[:len(e.value)-1]
		}
		if !do(e) {
			return nil
		}
	}
	return nil
}

// number is an element's value modulo 2³².
func (e element) number() uint32 {
	switch e.typ {
	case bsonInt32:
		return binary.LittleEndian.Uint32(e.value)
	case bsonDouble:
		return uint32(int64(math.Float64frombits(binary.LittleEndian.Uint64(e.value))))
	}
	return 0
}

// document notes what a line says that is a BSON document.
func (s *Stream) document(doc []byte) (complete bool, err error) {
	s.Bytes += int64(len(doc))
	var inner error
	err = fields(doc, func(line element) bool {
		switch string(line.name) {
		case "data":
			inner = s.data(line.value)
		case "checkpoint", "checkpoint_diff":
			inner = s.checkpoint(line.value)
		case "checkpoint_complete":
			complete = true
			inner = fields(line.value, func(e element) bool {
				if string(e.name) == "last_op_id" {
					s.LastOpID = string(e.value)
				}
				return true
			})
		}
		return false // a line has one key
	})
	return complete, errors.Join(err, inner)
}

func (s *Stream) checkpoint(doc []byte) error {
	var inner error
	bucket := func(b element) bool {
		inner = fields(b.value, func(e element) bool {
			switch string(e.name) {
			case "bucket":
				if s.bucket == "" {
					text, err := json.Marshal(string(e.value))
					if err != nil {
						inner = err
						return false
					}
					s.bucket = string(text[1 : len(text)-1])
				}
			case "checksum":
				s.expected = e.number()
			}
			return true
		})
		return inner == nil
	}
	err := fields(doc, func(e element) bool {
		switch string(e.name) {
		case "write_checkpoint":
			if n, err := strconv.ParseUint(string(e.value), 10, 64); err == nil {
				s.WriteCheckpoint = n
			}
		case "buckets", "updated_buckets":
			if err := fields(e.value, bucket); err != nil {
				inner = err
			}
		}
		return inner == nil
	})
	return errors.Join(err, inner)
}

func (s *Stream) data(doc []byte) error {
	var inner error
	var last []byte
	op := func(o element) bool {
		last = o.value
		clear := false
		inner = fields(o.value, func(e element) bool {
			switch string(e.name) {
			case "op":
				clear = string(e.value) == "CLEAR"
			case "checksum":
				s.op(e.number(), clear)
				return false // the rest is the row
			}
			return true
		})
		return inner == nil
	}
	err := fields(doc, func(e element) bool {
		if string(e.name) != "data" {
			return true
		}
		if err := fields(e.value, op); err != nil {
			inner = err
		}
		return false
	})
	s.sequence(last, seqMarkBSON)
	return errors.Join(err, inner)
}
