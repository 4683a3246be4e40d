// Package websocket is the server's side of the WebSocket protocol (RFC 6455)
// with permessage-deflate (RFC 7692), on a connection taken over from net/http.
//
// It is here, rather than a library, for two reasons: several messages, with
// bytes that many connections share, go out in one write; and deflated bytes
// that were made once serve every connection, for neither side keeps a
// compression context.
//
// Invariants:
//
//   - Hostile bytes give an error and bounded memory, never a panic
//     (FuzzRead, TestHostileFrames).
//   - A message is never larger than the limit, also after inflating
//     (TestLimits).
package websocket

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Opcode is the kind of a frame.
type Opcode byte

const (
	Continuation Opcode = 0
	Text         Opcode = 1
	Binary       Opcode = 2
	Close        Opcode = 8
	Ping         Opcode = 9
	Pong         Opcode = 10
)

// Close codes.
const (
	NoStatus      = 0 // an empty close frame
	ProtocolError = 1002
	Unsupported   = 1003
	BadText       = 1007
	TooBig        = 1009
)

const (
	maxControl = 125
	readBuffer = 512
	// pongTimeout bounds the answer to a ping or close frame.
	pongTimeout = 10 * time.Second
)

// Error is a violation by the other side.
type Error struct {
	Code int
	Msg  string
}

func (e *Error) Error() string { return "websocket: " + e.Msg }

func violation(msg string) error { return &Error{ProtocolError, msg} }

// Conn is a WebSocket connection. One goroutine may read, any may write.
type Conn struct {
	net.Conn
	// Deflate says that messages may be sent deflated.
	Deflate bool

	r     *bufio.Reader
	write sync.Mutex // held while a whole frame, or several, are written
}

// Refused is a handshake that cannot be answered with an upgrade. The request
// is still to be answered, with Status.
type Refused struct {
	Status int
	Msg    string
}

func (e *Refused) Error() string { return "websocket handshake: " + e.Msg }

// Upgrade answers the request's handshake and takes over its connection, unless
// it returns a *Refused.
func Upgrade(w http.ResponseWriter, r *http.Request, extra http.Header) (*Conn, error) {
	refuse := func(status int, msg string) (*Conn, error) {
		if status == http.StatusUpgradeRequired {
			w.Header().Set("Sec-WebSocket-Version", "13")
		}
		return nil, &Refused{status, msg}
	}
	key := r.Header.Get("Sec-Websocket-Key")
	nonce, err := base64.StdEncoding.DecodeString(key)
	switch {
	case r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1:
		return refuse(http.StatusBadRequest, "use GET over HTTP/1.1")
	case !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket"):
		return refuse(http.StatusBadRequest, "not an upgrade to websocket")
	case r.Header.Get("Sec-Websocket-Version") != "13":
		return refuse(http.StatusUpgradeRequired, "use version 13")
	case err != nil || len(nonce) != 16:
		return refuse(http.StatusBadRequest, "bad Sec-WebSocket-Key")
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return refuse(http.StatusInternalServerError, "connection cannot be taken over")
	}
	var early []byte
	if n := rw.Reader.Buffered(); n > 0 {
		// What the client sent without waiting for the answer.
		early, err = rw.Reader.Peek(n)
		if err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("websocket handshake: %w", err)
		}
		early = bytes.Clone(early)
	}
	c := &Conn{Conn: conn, Deflate: deflateOffered(r.Header.Values("Sec-Websocket-Extensions"))}
	var in io.Reader = conn
	if len(early) > 0 {
		in = io.MultiReader(bytes.NewReader(early), conn)
	}
	c.r = bufio.NewReaderSize(in, readBuffer)
	h := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	answer := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		base64.StdEncoding.EncodeToString(h[:]) + "\r\n"
	if c.Deflate {
		answer += "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
	}
	for name, values := range extra {
		for _, v := range values {
			answer += name + ": " + v + "\r\n"
		}
	}
	if err := c.Write(net.Buffers{[]byte(answer + "\r\n")}, pongTimeout); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("websocket handshake: %w", err)
	}
	return c, nil
}

func hasToken(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// deflateOffered reports whether an offer of permessage-deflate can be taken
// as we use it: with a full window, without context.
func deflateOffered(offers []string) bool {
	for _, header := range offers {
		for offer := range strings.SplitSeq(header, ",") {
			name, params, _ := strings.Cut(offer, ";")
			if strings.TrimSpace(name) != "permessage-deflate" {
				continue
			}
			good := true
			for p := range strings.SplitSeq(params, ";") {
				p, value, _ := strings.Cut(strings.TrimSpace(p), "=")
				switch strings.TrimSpace(p) {
				case "", "server_no_context_takeover", "client_no_context_takeover", "client_max_window_bits":
				case "server_max_window_bits":
					good = good && strings.Trim(strings.TrimSpace(value), `"`) == "15"
				default:
					good = false
				}
			}
			if good {
				return true
			}
		}
	}
	return false
}

// AppendHeader appends the header of an unfragmented frame.
func AppendHeader(dst []byte, op Opcode, deflated bool, length int) []byte {
	first := 0x80 | byte(op)
	if deflated {
		first |= 0x40
	}
	switch {
	case length <= 125:
		return append(dst, first, byte(length))
	case length <= 0xffff:
		return binary.BigEndian.AppendUint16(append(dst, first, 126), uint16(length))
	}
	return binary.BigEndian.AppendUint64(append(dst, first, 127), uint64(length))
}

// Write writes whole frames. A timeout leaves the connection unusable.
func (c *Conn) Write(frames net.Buffers, timeout time.Duration) error {
	c.write.Lock()
	defer c.write.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := frames.WriteTo(c.Conn)
	return err
}

// Locked calls f while nobody else writes. f may write with the connection's
// own methods.
func (c *Conn) Locked(f func(net.Conn) error) error {
	c.write.Lock()
	defer c.write.Unlock()
	return f(c.Conn)
}

func (c *Conn) control(op Opcode, payload []byte) error {
	return c.Write(net.Buffers{append(AppendHeader(nil, op, false, len(payload)), payload...)}, pongTimeout)
}

// SendClose sends a close frame.
func (c *Conn) SendClose(code int) error {
	var payload []byte
	if code != NoStatus {
		payload = binary.BigEndian.AppendUint16(nil, uint16(code))
	}
	return c.control(Close, payload)
}

// Read returns the next binary message of at most limit bytes. It answers
// pings. A close frame, which it answers too, is io.EOF.
func (c *Conn) Read(limit int) ([]byte, error) {
	var message []byte
	started, deflated := false, false
	for {
		f, err := c.frame(limit - len(message))
		if err != nil {
			var v *Error
			if errors.As(err, &v) {
				_ = c.SendClose(v.Code) // the connection is given up anyway
			}
			return nil, err
		}
		switch f.op {
		case Ping:
			if err := c.control(Pong, f.payload); err != nil {
				return nil, err
			}
			continue
		case Pong:
			continue
		case Close:
			_ = c.control(Close, f.payload[:min(2, len(f.payload))]) // it may have gone already
			return nil, io.EOF
		case Binary:
			if started {
				return nil, c.refuse(violation("a message within a message"))
			}
			started, deflated, message = true, f.deflated, f.payload
		case Continuation:
			if !started || f.deflated {
				return nil, c.refuse(violation("a continuation of nothing"))
			}
			message = append(message, f.payload...)
		default:
			return nil, c.refuse(&Error{Unsupported, "only binary messages are understood"})
		}
		if !f.fin {
			continue
		}
		if !deflated {
			return message, nil
		}
		if message, err = inflate(message, limit); err != nil {
			return nil, c.refuse(err)
		}
		return message, nil
	}
}

func (c *Conn) refuse(err error) error {
	var v *Error
	if errors.As(err, &v) {
		_ = c.SendClose(v.Code) // the connection is given up anyway
	}
	return err
}

type frame struct {
	op            Opcode
	fin, deflated bool
	payload       []byte
}

func (c *Conn) frame(limit int) (frame, error) {
	var h [14]byte
	if _, err := io.ReadFull(c.r, h[:2]); err != nil {
		return frame{}, err
	}
	f := frame{op: Opcode(h[0] & 0x0f), fin: h[0]&0x80 != 0, deflated: h[0]&0x40 != 0}
	control := f.op >= Close
	switch {
	case h[0]&0x30 != 0 || f.deflated && (control || !c.Deflate):
		return f, violation("reserved bits are set")
	case f.op > Binary && f.op < Close || f.op > Pong:
		return f, violation("unknown opcode")
	case h[1]&0x80 == 0:
		return f, violation("frame is not masked")
	case control && (!f.fin || h[1]&0x7f > maxControl):
		return f, violation("malformed control frame")
	}
	length := uint64(h[1] & 0x7f)
	extended := 0
	switch length {
	case 126:
		extended = 2
	case 127:
		extended = 8
	}
	if _, err := io.ReadFull(c.r, h[2:2+extended+4]); err != nil {
		return f, broken(err)
	}
	switch extended {
	case 2:
		length = uint64(binary.BigEndian.Uint16(h[2:]))
	case 8:
		length = binary.BigEndian.Uint64(h[2:])
	}
	if !control && length > uint64(max(limit, 0)) {
		return f, &Error{TooBig, "message is too big"}
	}
	mask := [4]byte(h[2+extended:])
	// Memory grows with what has come, not with what was announced.
	const step = 64 << 10
	f.payload = make([]byte, 0, min(length, step))
	for uint64(len(f.payload)) < length {
		n := int(min(length-uint64(len(f.payload)), step))
		from := len(f.payload)
		f.payload = append(f.payload, make([]byte, n)...)
		if _, err := io.ReadFull(c.r, f.payload[from:]); err != nil {
			return f, broken(err)
		}
	}
	for i := range f.payload {
		f.payload[i] ^= mask[i&3]
	}
	if f.op == Close && !goodClose(f.payload) {
		return f, violation("malformed close frame")
	}
	return f, nil
}

func goodClose(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	if len(p) == 1 || !utf8.Valid(p[2:]) {
		return false
	}
	code := binary.BigEndian.Uint16(p)
	return code >= 3000 && code < 5000 || code >= 1000 && code <= 1014 && code != 1004 && code != 1005 && code != 1006
}

func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// tail is what a sender leaves away (RFC 7692 §7.2.1), and the end of the
// deflate stream.
var tail = []byte{0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff}

func inflate(b []byte, limit int) ([]byte, error) {
	z := flate.NewReader(io.MultiReader(bytes.NewReader(b), bytes.NewReader(tail)))
	out, err := io.ReadAll(io.LimitReader(z, int64(limit)+1))
	if err != nil {
		return nil, &Error{BadText, "message cannot be inflated"}
	}
	if len(out) > limit {
		return nil, &Error{TooBig, "message is too big"}
	}
	return out, nil
}
