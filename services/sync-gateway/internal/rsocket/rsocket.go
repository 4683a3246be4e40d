// Package rsocket is as much of RSocket 1.0 as clients of the sync protocol use
// (spec/02 §9): the frames of the connection's set-up, request-stream and
// keepalive, and the documents in them.
//
// Invariants:
//
//   - Hostile bytes give an error, never a panic (FuzzFrame, FuzzJSON).
//   - What is encoded decodes to itself (TestRoundTrip).
package rsocket

import (
	"encoding/binary"
	"errors"
)

// Type of a frame.
type Type byte

const (
	Setup         Type = 0x01
	Lease         Type = 0x02
	Keepalive     Type = 0x03
	RequestStream Type = 0x06
	RequestN      Type = 0x08
	Cancel        Type = 0x09
	Payload       Type = 0x0a
	Error         Type = 0x0b
	Resume        Type = 0x0d
)

// Flags of frames.
const (
	FlagIgnore   = 0x200
	FlagMetadata = 0x100
	FlagFollows  = 0x80 // of a request or payload
	FlagRespond  = 0x80 // of a keepalive
	FlagResume   = 0x80 // of a setup
	FlagLease    = 0x40 // of a setup
	FlagComplete = 0x40 // of a payload
	FlagNext     = 0x20 // of a payload
)

// Codes of error frames.
const (
	InvalidSetup     = 0x001
	UnsupportedSetup = 0x002
	RejectedSetup    = 0x003
	RejectedResume   = 0x004
	ConnectionError  = 0x101
	ApplicationError = 0x201
)

// HeaderSize is that of every frame.
const HeaderSize = 6

// Frame is a decoded frame; what of it is set depends on the type. Its bytes
// are the message's.
type Frame struct {
	Stream uint32
	Type   Type
	Flags  uint16

	Metadata    []byte
	HasMetadata bool
	Data        []byte

	N        uint32 // REQUEST_STREAM, REQUEST_N
	Position uint64 // KEEPALIVE
	Code     uint32 // ERROR

	// SETUP
	Major, Minor uint16
	KeepaliveMS  uint32
	LifetimeMS   uint32
	MetadataMIME string
	DataMIME     string
}

// ErrMalformed is a frame that cannot be decoded.
var ErrMalformed = errors.New("malformed RSocket frame")

// reader takes fields off a frame; once short it stays so.
type reader struct {
	b    []byte
	fail bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail, r.b = true, nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint8() int {
	if b := r.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint24() int {
	if b := r.take(3); b != nil {
		return int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Decode decodes the frame that b is.
func Decode(b []byte) (Frame, error) {
	r := reader{b: b}
	id := r.uint32()
	head := r.uint16()
	f := Frame{Stream: id, Type: Type(head >> 10), Flags: head & 0x3ff}
	if r.fail || id>>31 != 0 {
		return Frame{}, ErrMalformed
	}
	switch f.Type {
	case Setup:
		f.Major, f.Minor = r.uint16(), r.uint16()
		f.KeepaliveMS, f.LifetimeMS = r.uint32(), r.uint32()
		if f.Flags&FlagResume != 0 {
			r.take(int(r.uint16()))
		}
		f.MetadataMIME = string(r.take(r.uint8()))
		f.DataMIME = string(r.take(r.uint8()))
		f.payload(&r)
	case Keepalive:
		f.Position = r.uint64()
		f.Data = r.b
	case RequestStream:
		f.N = r.uint32()
		f.payload(&r)
	case RequestN:
		f.N = r.uint32()
	case Payload:
		f.payload(&r)
	case Error:
		f.Code = r.uint32()
		f.Data = r.b
	}
	if r.fail {
		return Frame{}, ErrMalformed
	}
	return f, nil
}

func (f *Frame) payload(r *reader) {
	if f.Flags&FlagMetadata != 0 {
		f.HasMetadata = true
		f.Metadata = r.take(r.uint24())
	}
	f.Data = r.b
}

func appendHeader(dst []byte, stream uint32, t Type, flags uint16) []byte {
	dst = binary.BigEndian.AppendUint32(dst, stream)
	return binary.BigEndian.AppendUint16(dst, uint16(t)<<10|flags)
}

// AppendNext appends the header of a payload frame whose data follows.
func AppendNext(dst []byte, stream uint32) []byte {
	return appendHeader(dst, stream, Payload, FlagNext)
}

// AppendComplete appends a frame that completes a stream.
func AppendComplete(dst []byte, stream uint32) []byte {
	return appendHeader(dst, stream, Payload, FlagComplete)
}

// AppendKeepalive appends the answer to a keepalive.
func AppendKeepalive(dst []byte, data []byte) []byte {
	dst = appendHeader(dst, 0, Keepalive, 0)
	return append(binary.BigEndian.AppendUint64(dst, 0), data...)
}

// AppendError appends an error of a stream, or of the connection (stream 0).
func AppendError(dst []byte, stream uint32, code uint32, message string) []byte {
	dst = appendHeader(dst, stream, Error, 0)
	return append(binary.BigEndian.AppendUint32(dst, code), message...)
}
