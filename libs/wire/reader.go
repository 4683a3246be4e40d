package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"
)

// ErrMalformed is in the chain of every decoding error.
var ErrMalformed = errors.New("malformed block")

// reader takes a block apart. The first fault sticks; what is read after it is
// zero.
type reader struct {
	s   string
	pos int
	err error
}

// alias views b as a string. The caller promises not to write to b any more.
func alias(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func (r *reader) left() int { return len(r.s) - r.pos }

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s at byte %d of %d", ErrMalformed, what, r.pos, len(r.s))
		r.pos = len(r.s)
	}
}

func (r *reader) byte() byte {
	if r.pos >= len(r.s) {
		r.fail("ends early")
		return 0
	}
	b := r.s[r.pos]
	r.pos++
	return b
}

func (r *reader) uvarint() uint64 {
	var x uint64
	for shift := uint(0); shift < 70; shift += 7 {
		if r.pos >= len(r.s) {
			r.fail("ends early")
			return 0
		}
		b := r.s[r.pos]
		r.pos++
		if b < 0x80 {
			if shift == 63 && b > 1 {
				break
			}
			return x | uint64(b)<<shift
		}
		x |= uint64(b&0x7f) << shift
	}
	r.fail("number too large")
	return 0
}

func (r *reader) varint() int64 {
	u := r.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// count reads a number of things that take at least size bytes each, so that
// what is left of the block bounds it.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(r.left()/size) {
		r.fail("count exceeds what is left")
		return 0
	}
	return int(n)
}

func (r *reader) bytes(n int) string {
	if n > r.left() {
		r.fail("ends early")
		return ""
	}
	s := r.s[r.pos : r.pos+n]
	r.pos += n
	return s
}

func (r *reader) text() string { return r.bytes(r.count(1)) }

// again reads text that may be the same as the last one (see appendAgain).
func (r *reader) again(last *string) string {
	n := r.uvarint()
	if n == 0 {
		return *last
	}
	if n-1 > uint64(r.left()) {
		r.fail("length exceeds what is left")
		return ""
	}
	*last = r.bytes(int(n - 1))
	return *last
}

func (r *reader) uint32() uint32 {
	s := r.bytes(4)
	if len(s) < 4 {
		return 0
	}
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

func (r *reader) float() float64 {
	lo, hi := r.uint32(), r.uint32()
	return math.Float64frombits(uint64(lo) | uint64(hi)<<32)
}

func (r *reader) uuid(u *[16]byte) { copy(u[:], r.bytes(16)) }

// end checks that the block is used up and returns the first fault.
func (r *reader) end() error {
	if r.err == nil && r.left() > 0 {
		r.fail("goes on after its end")
	}
	return r.err
}

func appendText(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// appendAgain writes 0 if s is what *last was, and its length plus one and its
// bytes if not.
func appendAgain(dst []byte, s string, last *string) []byte {
	if s == *last {
		return append(dst, 0)
	}
	*last = s
	dst = binary.AppendUvarint(dst, uint64(len(s))+1)
	return append(dst, s...)
}
