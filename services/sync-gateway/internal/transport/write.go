package transport

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/services/sync-gateway/internal/coding"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
)

// leastProgress is what a client must take within the write timeout.
const leastProgress = 8 << 10

// buffers are byte slices at rest between writes.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// gatherAt is up to where lines are copied together rather than written from
// where they are.
const gatherAt = 16 << 10

// coded turns lines into what goes over the wire: adjacent plain lines as one
// segment, shared chunks as they are. It keeps the checksum of a gzip stream.
type coded struct {
	coding  coding.Coding
	started bool
	sum     coding.Sum
}

// append appends the coded form of l to list, using scratch for what is not
// shared.
func (c *coded) append(list net.Buffers, scratch []byte, l *fanout.Lines) (net.Buffers, []byte) {
	if !c.started {
		c.started = true
		scratch = coding.AppendHeader(scratch, c.coding)
	}
	// Offsets rather than slices of scratch, which may move while it grows.
	type piece struct {
		from, to int
		shared   []byte
	}
	pieces := make([]piece, 0, 2*len(l.Parts)+1)
	from, plain, sent := 0, 0, 0
	segment := func() {
		if plain > sent {
			p := l.Plain[sent:plain]
			if c.coding == coding.Gzip {
				c.sum = c.sum.Add(coding.SumOf(p))
			}
			scratch = coding.AppendSegment(scratch, c.coding, p)
			sent = plain
		}
		if len(scratch) > from {
			pieces = append(pieces, piece{from: from, to: len(scratch)})
			from = len(scratch)
		}
	}
	for _, p := range l.Parts {
		if p.Chunk == nil {
			plain = p.End
			continue
		}
		segment()
		if c.coding == coding.Gzip {
			c.sum = c.sum.Add(p.Chunk.Plain)
		}
		pieces = append(pieces, piece{shared: p.Chunk.Bytes})
	}
	segment()
	for _, p := range pieces {
		if p.shared != nil {
			list = append(list, p.shared)
		} else {
			list = append(list, scratch[p.from:p.to])
		}
	}
	return list, scratch
}

// chunked is a sink on an HTTP/1.1 connection that was taken over from net/http:
// it writes the response by itself, so that an idle stream holds no buffer.
type chunked struct {
	conn    net.Conn
	timeout time.Duration
	header  []byte // of the response, until the first write
	coded
	sent    atomic.Int64
	aborted atomic.Bool
}

// responseHeader of a stream.
func responseHeader(form line.Form, c coding.Coding, extra http.Header) []byte {
	b := append([]byte(nil), "HTTP/1.1 200 OK\r\nContent-Type: "...)
	b = append(append(b, form.ContentType()...), "\r\n"...)
	if c != coding.Identity {
		b = append(append(append(b, "Content-Encoding: "...), c.String()...), "\r\n"...)
	}
	for name, values := range extra {
		for _, v := range values {
			b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
		}
	}
	b = append(append(append(b, "Date: "...), time.Now().UTC().Format(http.TimeFormat)...), "\r\n"...)
	return append(b, "X-Accel-Buffering: no\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"...)
}

func (s *chunked) Sent() int64 { return s.sent.Load() }

func (s *chunked) Send(l *fanout.Lines) error {
	scratch := buffers.Get().(*[]byte)
	defer buffers.Put(scratch)
	list, b := s.append(nil, (*scratch)[:0], l)
	*scratch = b
	total := 0
	for _, x := range list {
		total += len(x)
	}
	frame := buffers.Get().(*[]byte)
	defer buffers.Put(frame)
	one := append((*frame)[:0], s.header...)
	s.header = nil
	one = append(strconv.AppendInt(one, int64(total), 16), crlf...)
	if total > gatherAt {
		*frame = one
		return s.write(append(append(net.Buffers{one}, list...), crlf))
	}
	for _, x := range list {
		one = append(one, x...)
	}
	*frame = append(one, crlf...)
	return s.write(net.Buffers{*frame})
}

var crlf = []byte("\r\n")

func (s *chunked) write(list net.Buffers) error {
	n, err := writeAll(s.conn, list, s.timeout)
	s.sent.Add(n)
	return err
}

// writeSome writes what it can before the deadline and takes it off list.
func writeSome(conn net.Conn, list *net.Buffers) (int64, error) {
	if len(*list) != 1 {
		return list.WriteTo(conn)
	}
	n, err := conn.Write((*list)[0])
	(*list)[0] = (*list)[0][n:]
	return int64(n), err
}

// record is the most that one record of TLS holds.
const record = 16 << 10

// writeRecord writes the next record's worth of list and takes it off.
func writeRecord(conn *tls.Conn, list *net.Buffers) (int64, error) {
	first := (*list)[0]
	if len(first) > record || len(*list) == 1 {
		n, err := conn.Write(first[:min(len(first), record)])
		if (*list)[0] = first[n:]; n == len(first) {
			*list = (*list)[1:]
		}
		return int64(n), err
	}
	scratch := buffers.Get().(*[]byte)
	defer buffers.Put(scratch)
	b := (*scratch)[:0]
	for len(*list) > 0 && len(b) < record {
		x := (*list)[0]
		n := min(len(x), record-len(b))
		b = append(b, x[:n]...)
		if (*list)[0] = x[n:]; n == len(x) {
			*list = (*list)[1:]
		}
	}
	*scratch = b
	n, err := conn.Write(b)
	return int64(n), err
}

// writeAll writes list as long as the client takes some of it within timeout.
func writeAll(conn net.Conn, list net.Buffers, timeout time.Duration) (sent int64, err error) {
	if t, ok := conn.(*tls.Conn); ok {
		return writeEncrypted(t, list, timeout)
	}
	for {
		if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return sent, io.EOF
		}
		n, err := writeSome(conn, &list)
		sent += n
		switch {
		case err == nil:
			return sent, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && n >= leastProgress:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return sent, fanout.ErrSlow
		}
		return sent, io.EOF // the client went
	}
}

// writeEncrypted is writeAll over TLS, where a write that timed out cannot be
// taken up again: each record has a timeout of its own.
func writeEncrypted(conn *tls.Conn, list net.Buffers, timeout time.Duration) (sent int64, err error) {
	for len(list) > 0 {
		if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return sent, io.EOF
		}
		n, err := writeRecord(conn, &list)
		sent += n
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return sent, fanout.ErrSlow
		default:
			return sent, io.EOF // the client went
		}
	}
	return sent, nil
}

// plain is the connection below TLS. To close it breaks off at once: closing
// TLS itself would wait for a client that does not read.
func plain(conn net.Conn) net.Conn {
	if t, ok := conn.(*tls.Conn); ok {
		return t.NetConn()
	}
	return conn
}

// farewell is how long a client may take to see the end of a stream.
const farewell = 2 * time.Second

func (s *chunked) End(err error) {
	if err != nil {
		s.Abort()
		return
	}
	end := s.header
	if s.started {
		if t := coding.AppendTrailer(nil, s.coded.coding, s.sum); len(t) > 0 {
			end = append(append(strconv.AppendInt(end, int64(len(t)), 16), "\r\n"...), t...)
			end = append(end, "\r\n"...)
		}
	}
	if s.write(net.Buffers{append(end, "0\r\n\r\n"...)}) != nil {
		s.Abort()
		return
	}
	// The other side closes when it has read everything; the goroutine that
	// reads then closes this one.
	if c, ok := s.conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil || s.conn.SetReadDeadline(time.Now().Add(farewell)) != nil {
		s.Abort()
	}
}

func (s *chunked) Abort() {
	if !s.aborted.Swap(true) {
		_ = plain(s.conn).Close() // nobody is left to tell
	}
}

// handled is a sink on a response that net/http owns: HTTP/2 and HTTP/1.0.
type handled struct {
	w       http.ResponseWriter
	control *http.ResponseController
	cancel  func() // ends the request
	timeout time.Duration
	coded
	sent    atomic.Int64
	failure error // owned by the session, read after it has ended
}

func (s *handled) Sent() int64 { return s.sent.Load() }

func (s *handled) Send(l *fanout.Lines) error {
	scratch := buffers.Get().(*[]byte)
	defer buffers.Put(scratch)
	list, b := s.append(nil, (*scratch)[:0], l)
	*scratch = b
	return s.write(list)
}

// piece is how much of a response net/http is given at once.
const piece = 64 << 10

func (s *handled) write(list net.Buffers) error {
	for _, b := range list {
		for part := range slices.Chunk(b, piece) {
			err := s.within(func() error {
				n, err := s.w.Write(part)
				s.sent.Add(int64(n))
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return s.within(s.control.Flush)
}

// within calls f, which has the timeout to end. Between calls there is no
// deadline, for HTTP/2 ends an idle stream at it.
func (s *handled) within(f func() error) error {
	deadline := time.Now().Add(s.timeout)
	if err := s.control.SetWriteDeadline(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return io.EOF
	}
	if err := f(); err != nil {
		// HTTP/2 only says that the stream was closed when its deadline has passed.
		if errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(deadline) {
			return fanout.ErrSlow
		}
		return io.EOF
	}
	if err := s.control.SetWriteDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return io.EOF
	}
	return nil
}

func (s *handled) End(err error) {
	s.failure = err
	if err == nil && s.started {
		if t := coding.AppendTrailer(nil, s.coded.coding, s.sum); len(t) > 0 {
			s.failure = s.write(net.Buffers{t})
		}
	}
}

func (s *handled) Abort() { s.cancel() }
