package bench

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/klauspost/compress/flate"
)

const (
	// The client's side of RSocket (spec/02 §9), as the SDKs have it.
	keepaliveEvery = 20 * time.Second
	lifetime       = 90 * time.Second
	credit         = 10
	// lowCredit is from how many lines on more are asked for, though others wait
	// to be read. With none waiting they are asked for at once.
	lowCredit = 5

	frameHeader = 6

	frameSetup         = 0x01
	frameKeepalive     = 0x03
	frameRequestStream = 0x06
	frameRequestN      = 0x08
	framePayload       = 0x0a
	frameError         = 0x0b

	flagMetadata = 0x100
	flagRespond  = 0x80
	flagComplete = 0x40

	// The handshake's key and its answer, of RFC 6455 §1.3.
	socketKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	socketAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// socketStream is RSocket on a WebSocket, with as much of both as a stream needs.
type socketStream struct {
	s      *Stream
	reader *bufio.Reader
	owed   uint32 // lines for which nothing was asked yet
	timer  *time.Timer
}

func openSocket(s *Stream) (lines, error) {
	extension := ""
	if s.client.Kind.Deflate {
		extension = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
	}
	if _, err := fmt.Fprintf(s.conn, "GET /sync/stream HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s\r\n", socketKey, extension); err != nil {
		return nil, err
	}
	k := &socketStream{s: s, reader: s.conn.reader}
	resp, err := http.ReadResponse(k.reader, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = refusal(resp)
	}
	if err != nil {
		return nil, err
	}
	if got := resp.Header.Get("Sec-WebSocket-Accept"); got != socketAccept {
		return nil, fmt.Errorf("the handshake's answer is %q", got)
	}
	if got := resp.Header.Get("Sec-WebSocket-Extensions") != ""; got != s.client.Kind.Deflate {
		return nil, fmt.Errorf("permessage-deflate: %v", got)
	}
	body, err := s.request()
	if err != nil {
		return nil, err
	}
	token, err := json.Marshal(map[string]string{"token": "Token " + s.client.Token, "user_agent": "bench"})
	if err != nil {
		return nil, err
	}
	const mime = "application/json"
	setup := rframe(0, frameSetup, flagMetadata)
	setup = append(setup, 0, 1, 0, 0)
	setup = binary.BigEndian.AppendUint32(setup, uint32(keepaliveEvery.Milliseconds()))
	setup = binary.BigEndian.AppendUint32(setup, uint32(lifetime.Milliseconds()))
	setup = append(append(setup, byte(len(mime))), mime...)
	setup = append(append(setup, byte(len(mime))), mime...)
	setup = appendMetadata(setup, token)
	request := rframe(1, frameRequestStream, flagMetadata)
	request = binary.BigEndian.AppendUint32(request, credit)
	request = append(appendMetadata(request, []byte(`{"path":"/sync/stream"}`)), body...)
	if _, err := s.conn.Write(appendMessage(appendMessage(nil, setup), request)); err != nil {
		return nil, err
	}
	k.timer = time.AfterFunc(keepaliveEvery, k.keepalive)
	return k, nil
}

func rframe(stream uint32, typ, flags uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(make([]byte, 0, 512), stream), typ<<10|flags)
}

func appendMetadata(dst, b []byte) []byte {
	n := len(b)
	return append(append(dst, byte(n>>16), byte(n>>8), byte(n)), b...)
}

// appendMessage appends payload as a binary message. Its mask is zero, which costs
// the client nothing and the server as much as any other.
func appendMessage(dst, payload []byte) []byte {
	const fin, binaryOp, masked = 0x80, 2, 0x80
	switch n := len(payload); {
	case n <= 125:
		dst = append(dst, fin|binaryOp, masked|byte(n))
	case n <= 0xffff:
		dst = binary.BigEndian.AppendUint16(append(dst, fin|binaryOp, masked|126), uint16(n))
	default:
		dst = binary.BigEndian.AppendUint64(append(dst, fin|binaryOp, masked|127), uint64(n))
	}
	return append(append(dst, 0, 0, 0, 0), payload...)
}

// keepalive asks for a sign of life, which is read like any frame. A write from
// here and one of next do not mix, for each is one write.
func (k *socketStream) keepalive() {
	f := binary.BigEndian.AppendUint64(rframe(0, frameKeepalive, flagRespond), 0)
	if _, err := k.s.conn.Write(appendMessage(nil, f)); err == nil {
		k.timer.Reset(keepaliveEvery)
	}
}

func (k *socketStream) close() { k.timer.Stop() }

// ask gives back the credit of the lines that have come.
func (k *socketStream) ask() error {
	if k.owed == 0 || k.owed < lowCredit && k.reader.Buffered() > 0 {
		return nil
	}
	var message [32]byte
	b := append(message[:0], 0x82, 0x80|frameHeader+4, 0, 0, 0, 0, 0, 0, 0, 1)
	b = binary.BigEndian.AppendUint16(b, frameRequestN<<10)
	b = binary.BigEndian.AppendUint32(b, k.owed)
	k.owed = 0
	_, err := k.s.conn.Write(b)
	return err
}

// errEnded is a stream that the server has ended cleanly.
var errEnded = errors.New("the server has ended the stream")

func (k *socketStream) next(s *Stream) (complete bool, err error) {
	if err := k.ask(); err != nil {
		return false, err
	}
	head, err := k.reader.Peek(2)
	if err != nil {
		return false, err
	}
	const whole, deflatedBit = 0x80, 0x40
	first, n, size := head[0], int(head[1]), 2
	deflated := first&deflatedBit != 0
	switch {
	case first&^deflatedBit == whole|8:
		return false, errEnded
	case first&^deflatedBit != whole|2 || deflated && !s.client.Kind.Deflate:
		return false, fmt.Errorf("a WebSocket frame that begins with %#x", first)
	case n == 126:
		size = 4
	case n == 127:
		size = 10
	}
	if head, err = k.reader.Peek(size); err != nil {
		return false, err
	}
	switch size {
	case 4:
		n = int(binary.BigEndian.Uint16(head[2:]))
	case 10:
		n = int(binary.BigEndian.Uint64(head[2:]))
	}
	if _, err := k.reader.Discard(size); err != nil {
		return false, err
	}
	err = wholeMessage(k.reader, n, deflated, func(f []byte) error {
		complete, err = k.frame(f)
		return err
	})
	return complete, err
}

func (k *socketStream) frame(f []byte) (complete bool, err error) {
	if len(f) < frameHeader {
		return false, errors.New("an RSocket frame of " + fmt.Sprint(len(f)) + " bytes")
	}
	head := binary.BigEndian.Uint16(f[4:])
	switch typ := head >> 10; typ {
	case framePayload:
		if head&flagComplete != 0 {
			return false, errEnded
		}
		k.owed++
		return k.s.document(f[frameHeader:])
	case frameKeepalive:
		return false, nil
	case frameError:
		return false, fmt.Errorf("the server says: %s", f[min(len(f), frameHeader+4):])
	default:
		return false, fmt.Errorf("an RSocket frame of type %#x", typ)
	}
}

// wholeMessage is whole for a message that may be deflated.
func wholeMessage(r *bufio.Reader, n int, deflated bool, do func([]byte) error) error {
	if !deflated {
		return whole(r, n, do)
	}
	return whole(r, n, func(b []byte) error {
		z := inflaters.Get().(*inflater)
		defer inflaters.Put(z)
		out, err := z.inflate(b)
		if err != nil {
			return err
		}
		return do(out)
	})
}

// inflater decodes messages that do not refer to one another.
type inflater struct {
	in  messageReader
	z   io.ReadCloser
	out []byte
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// messageReader is a message with the end that its sender has left away
// (RFC 7692 §7.2.1) and a last block.
type messageReader struct {
	b    []byte
	tail []byte
}

func (m *messageReader) next() []byte {
	if len(m.b) == 0 {
		m.b, m.tail = m.tail, nil
	}
	return m.b
}

func (m *messageReader) Read(p []byte) (int, error) {
	b := m.next()
	if len(b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b)
	m.b = b[n:]
	return n, nil
}

func (m *messageReader) ReadByte() (byte, error) {
	b := m.next()
	if len(b) == 0 {
		return 0, io.EOF
	}
	m.b = b[1:]
	return b[0], nil
}

func (z *inflater) inflate(b []byte) ([]byte, error) {
	z.in = messageReader{b, []byte{0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff}}
	if z.z == nil {
		z.z = flate.NewReader(&z.in)
	} else if err := z.z.(flate.Resetter).Reset(&z.in, nil); err != nil {
		return nil, err
	}
	z.out = z.out[:0]
	for {
		if len(z.out) == cap(z.out) {
			z.out = append(z.out, make([]byte, max(4<<10, len(z.out)))...)[:len(z.out)]
		}
		n, err := z.z.Read(z.out[len(z.out):cap(z.out)])
		z.out = z.out[:len(z.out)+n]
		switch {
		case err == io.EOF:
			return z.out, nil
		case err != nil:
			return nil, err
		}
	}
}
