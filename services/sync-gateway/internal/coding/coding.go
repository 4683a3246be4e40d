// Package coding compresses lines in segments that do not refer to one another,
// so that the compressed bytes of a shared chunk serve every client, and no
// encoder and no window is kept per stream.
//
// A gzip stream is one member: Header, any segments, Trailer. A segment is a
// run of deflate blocks made from an empty window and ended by an empty stored
// block, so it can stand after any other, and the client can decode it at once.
// A zstd segment is a frame of its own; decoders take frames one after another.
//
// Invariants:
//
//   - Any sequence of segments decodes to the joined plain bytes, and every
//     segment is decodable when it has arrived (TestSegments).
//   - The checksum of the joined bytes follows from the parts' (TestCombine).
package coding

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// Coding is a content coding.
type Coding uint8

const (
	Identity Coding = iota
	Gzip
	Zstd
)

// String is the value of Content-Encoding.
func (c Coding) String() string {
	switch c {
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return "identity"
}

// level of deflate: the fastest that finds matches. Rows of JSON shrink to a
// fifth with it; the better levels win a tenth more and cost three times as much
// (BenchmarkSegment).
const level = 1

// writer is a deflate encoder with where it writes.
type writer struct {
	f *flate.Writer
	b appender
}

type appender struct{ to []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.to = append(a.to, p...)
	return len(p), nil
}

// writers are encoders at rest. One is in use only while a segment is made, so
// there are about as many as processors.
var writers = sync.Pool{New: func() any {
	w := new(writer)
	f, err := flate.NewWriter(&w.b, level)
	if err != nil {
		panic(fmt.Sprintf("coding: flate level: %v", err)) // the level is a constant
	}
	w.f = f
	return w
}}

var frames = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(256<<10),
		zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		panic(fmt.Sprintf("coding: zstd options: %v", err)) // the options are constants
	}
	return e
})

// AppendSegment appends plain as a segment of c.
func AppendSegment(dst []byte, c Coding, plain []byte) []byte {
	switch c {
	case Gzip:
		w := writers.Get().(*writer)
		w.b.to = dst
		w.f.Reset(&w.b)
		// Writes to memory cannot fail.
		_, _ = w.f.Write(plain)
		_ = w.f.Flush()
		dst = w.b.to
		w.b.to = nil
		writers.Put(w)
		return dst
	case Zstd:
		return frames().EncodeAll(plain, dst)
	}
	return append(dst, plain...)
}

// AppendHeader appends what a stream begins with.
func AppendHeader(dst []byte, c Coding) []byte {
	if c != Gzip {
		return dst
	}
	return append(dst, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff)
}

// AppendTrailer appends what a stream ends with.
func AppendTrailer(dst []byte, c Coding, s Sum) []byte {
	if c != Gzip {
		return dst
	}
	dst = append(dst, 0x03, 0x00) // the last block, empty
	dst = binary.LittleEndian.AppendUint32(dst, s.CRC)
	return binary.LittleEndian.AppendUint32(dst, uint32(s.Len))
}

// Sum is the CRC-32 and length of some plain bytes.
type Sum struct {
	CRC uint32
	Len int64
}

// SumOf returns the sum of plain.
func SumOf(plain []byte) Sum { return Sum{crc32.ChecksumIEEE(plain), int64(len(plain))} }

// Add returns the sum of s's bytes followed by t's.
func (s Sum) Add(t Sum) Sum {
	return Sum{multiply(shift(t.Len), s.CRC) ^ t.CRC, s.Len + t.Len}
}

// The polynomials over GF(2) modulo the CRC's are kept with the highest bit for
// x^0.

// multiply returns a·b.
func multiply(a, b uint32) uint32 {
	var p uint32
	for m := uint32(1) << 31; a != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
			a &^= m
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.IEEE
		} else {
			b >>= 1
		}
	}
	return p
}

// powers[k] is x^(8·2^k).
var powers = func() (t [40]uint32) {
	p := uint32(1) << 30 // x
	for range 3 {
		p = multiply(p, p)
	}
	for k := range t {
		t[k] = p
		p = multiply(p, p)
	}
	return t
}()

// shift returns x^(8n): what n more bytes do to a CRC.
func shift(n int64) uint32 {
	p := uint32(1) << 31
	for k := 0; n != 0; k++ {
		if n&1 != 0 {
			p = multiply(powers[k%len(powers)], p)
		}
		n >>= 1
	}
	return p
}
