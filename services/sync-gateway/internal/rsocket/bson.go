package rsocket

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"
)

// ErrBSON is a document that cannot be decoded.
var ErrBSON = errors.New("malformed BSON document")

// maxBSONDepth bounds the nesting of documents.
const maxBSONDepth = 100

// JSON turns a BSON document of JSON's types into JSON text.
func JSON(doc []byte) ([]byte, error) {
	out, rest, err := appendDocument(make([]byte, 0, len(doc)), doc, false, 0)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, ErrBSON
	}
	return out, nil
}

func appendDocument(dst, b []byte, array bool, depth int) (out, rest []byte, err error) {
	if depth > maxBSONDepth || len(b) < 5 {
		return nil, nil, ErrBSON
	}
	n := binary.LittleEndian.Uint32(b)
	if n < 5 || uint64(n) > uint64(len(b)) || b[n-1] != 0 {
		return nil, nil, ErrBSON
	}
	b, rest = b[4:n-1], b[n:]
	open, end := byte('{'), byte('}')
	if array {
		open, end = '[', ']'
	}
	dst = append(dst, open)
	first := true
	for len(b) > 0 {
		typ := b[0]
		var name string
		if name, b, err = cstring(b[1:]); err != nil {
			return nil, nil, err
		}
		if typ == 0x06 { // undefined: as if it were not there
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		if !array {
			if dst, err = appendText(dst, name); err != nil {
				return nil, nil, err
			}
			dst = append(dst, ':')
		}
		if dst, b, err = appendValue(dst, b, typ, depth); err != nil {
			return nil, nil, err
		}
	}
	return append(dst, end), rest, nil
}

func cstring(b []byte) (string, []byte, error) {
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), b[i+1:], nil
		}
	}
	return "", nil, ErrBSON
}

func appendText(dst []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, ErrBSON
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, ErrBSON
	}
	return append(dst, text...), nil
}

func appendValue(dst, b []byte, typ byte, depth int) (out, rest []byte, err error) {
	need := map[byte]int{0x01: 8, 0x02: 4, 0x08: 1, 0x10: 4, 0x12: 8}[typ]
	if len(b) < need {
		return nil, nil, ErrBSON
	}
	switch typ {
	case 0x01:
		f := math.Float64frombits(binary.LittleEndian.Uint64(b))
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, nil, ErrBSON
		}
		return strconv.AppendFloat(dst, f, 'g', -1, 64), b[8:], nil
	case 0x02:
		n := binary.LittleEndian.Uint32(b)
		if b = b[4:]; n < 1 || uint64(n) > uint64(len(b)) || b[n-1] != 0 {
			return nil, nil, ErrBSON
		}
		dst, err = appendText(dst, string(b[:n-1]))
		return dst, b[n:], err
	case 0x03, 0x04:
		return appendDocument(dst, b, typ == 0x04, depth+1)
	case 0x08:
		return strconv.AppendBool(dst, b[0] != 0), b[1:], nil
	case 0x0a:
		return append(dst, "null"...), b, nil
	case 0x10:
		return strconv.AppendInt(dst, int64(int32(binary.LittleEndian.Uint32(b))), 10), b[4:], nil
	case 0x12:
		return strconv.AppendInt(dst, int64(binary.LittleEndian.Uint64(b)), 10), b[8:], nil
	}
	return nil, nil, ErrBSON
}
