package transport

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/tcp"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/auth"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/coding"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/line"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/rsocket"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/websocket"
)

const (
	// setupTimeout is how long a client may take to send its first frame.
	setupTimeout = 10 * time.Second
	// setupLimit bounds what is read before a client is known.
	setupLimit = 64 << 10
	// The lifetime that a client asks for is kept within these.
	minLifetime = 5 * time.Second
	maxLifetime = 10 * time.Minute
	// maxSocketStreams of one socket; 1 is expected.
	maxSocketStreams = 32
	// deflateAt is from what size a line that is not shared is deflated.
	deflateAt = 512
)

// socket is one WebSocket with RSocket inside.
type socket struct {
	s     *Server
	id    string
	ws    *websocket.Conn
	stop  func() bool // the end of the server no longer closes ws
	token *auth.Token
	agent string
	bson  bool // the client's documents are BSON
	life  time.Duration
	from  string // as call's
	held  bool   // one stream of user and address; more while there are more streams

	open sync.WaitGroup // streams that have not gone

	mu      sync.Mutex
	asked   bool // for a stream
	streams map[uint32]*socketStream
	parts   map[uint32]*rsocket.Frame // of fragmented requests
	partial int                       // bytes in parts
}

// socket serves a WebSocket.
func (s *Server) socket(c *call) {
	ws, err := websocket.Upgrade(c.w, c.r, nil)
	if err != nil {
		status := 0 // the client went
		var r *websocket.Refused
		if errors.As(err, &r) {
			status = reply.Error(c.w, &reply.StatusError{Failure: reply.Failure{Name: "HandshakeError", Code: string(errs.S2001), Status: r.Status,
				Description: "WebSocket handshake failed: " + r.Msg}}, c.id)
		}
		c.refused(err, status)
		return
	}
	tcp.Tune(plain(ws.Conn), vanished)
	s.clients.add(ws.Conn)
	k := &socket{s: s, id: c.id, ws: ws, streams: map[uint32]*socketStream{}, parts: map[uint32]*rsocket.Frame{}, agent: agent(c.r), from: c.from}
	s.running.Add(1)
	k.stop = context.AfterFunc(s.ctx, k.abort)
	many := s.sockets.Add(1) > int64(s.o.MaxStreams)
	// Who verifies a token needs a deep stack; who waits for frames shall not keep it.
	if !k.setup(c, many) {
		k.end()
		return
	}
	go k.serve()
}

// end ends the socket and waits for its streams.
func (k *socket) end() {
	k.stop()
	k.s.clients.remove(k.ws.Conn)
	_ = k.ws.Close()
	k.mu.Lock()
	for _, t := range k.streams {
		t.cancel(io.EOF)
	}
	k.mu.Unlock()
	k.open.Wait()
	if k.held {
		k.s.end(k.token.UserID, k.from)
	}
	k.s.sockets.Add(-1)
	k.s.running.Done()
}

func (k *socket) serve() {
	defer k.end()
	limit := int(k.s.o.MaxBody) + setupLimit
	for {
		if k.ws.SetReadDeadline(time.Now().Add(k.life)) != nil {
			return
		}
		b, err := k.ws.Read(limit)
		if err != nil {
			k.s.gone(err)
			var v *websocket.Error
			if errors.As(err, &v) {
				k.broken(v)
			}
			return
		}
		f, err := rsocket.Decode(b)
		if err != nil {
			k.violation(err.Error())
			return
		}
		if !k.handle(f) {
			return
		}
	}
}

// abort breaks the connection at once, without a word.
func (k *socket) abort() { _ = plain(k.ws.Conn).Close() }

// fail tells why the connection ends.
func (k *socket) fail(code uint32, message string) {
	_ = k.frame(rsocket.AppendError(nil, 0, code, message)) // it is given up anyway
	_ = k.ws.SendClose(websocket.NoStatus)
}

// violation ends the connection because of what the client sent. The message has
// a code, for without one clients drop their credentials.
func (k *socket) violation(msg string) {
	err := errs.New(errs.S2001, "%s", msg)
	k.broken(err)
	k.fail(rsocket.ConnectionError, err.Error())
}

// broken logs why a connection ends that was well set up.
func (k *socket) broken(err error) {
	k.s.o.Log.Info("socket broken off", "request", k.id, "code", string(errs.CodeOf(err)), "error", err.Error(), "user", k.token.UserID, "agent", k.agent)
}

// frame sends one RSocket frame. It waits only for a message that is being
// written, not for those that other streams want to write.
func (k *socket) frame(f []byte) error {
	return k.ws.Write(net.Buffers{websocket.AppendHeader(nil, websocket.Binary, false, len(f)), f}, k.s.o.Timeout)
}

// setup reads the first frame and verifies the token in it.
func (k *socket) setup(c *call, many bool) bool {
	if k.ws.SetReadDeadline(time.Now().Add(setupTimeout)) != nil {
		return false
	}
	b, err := k.ws.Read(setupLimit)
	if err != nil {
		return false
	}
	f, err := rsocket.Decode(b)
	code := uint32(rsocket.RejectedSetup)
	switch {
	case err != nil:
		code, err = rsocket.InvalidSetup, errs.New(errs.S2001, "malformed frame")
	case f.Type == rsocket.Resume:
		code, err = rsocket.RejectedResume, errs.New(errs.S2001, "RESUME is not supported")
	case f.Type != rsocket.Setup || f.Stream != 0:
		code, err = rsocket.UnsupportedSetup, errs.New(errs.S2001, "the first frame must be SETUP")
	case f.Major != 1:
		code, err = rsocket.UnsupportedSetup, errs.New(errs.S2001, "only version 1 is supported")
	case f.Flags&(rsocket.FlagResume|rsocket.FlagLease) != 0:
		err = errs.New(errs.S2001, "resume and lease are not supported")
	case many:
		err = errs.New(errs.S2304, "Maximum active concurrent connections limit has been reached")
	case k.s.draining.Load():
		err = errs.New(errs.S2003, "Service is restarting")
	default:
		if err = k.authorize(c, &f); err == nil {
			err = k.admit()
		}
	}
	if err != nil {
		failure := reply.Of(err, "")
		k.fail(code, "["+failure.Code+"] "+failure.Description)
		c.refused(err, failure.Status)
		return false
	}
	k.life = min(max(time.Duration(f.LifetimeMS)*time.Millisecond, minLifetime), maxLifetime)
	return true
}

func (k *socket) authorize(c *call, f *rsocket.Frame) error {
	if !f.HasMetadata || len(f.Metadata) == 0 {
		return errs.New(errs.S2101, "No authentication metadata in the SETUP frame")
	}
	var documents [2]bool
	for i, m := range []string{f.MetadataMIME, f.DataMIME} {
		switch m {
		case "application/bson":
			documents[i] = true
		case "application/json":
		default:
			return errs.New(errs.S2004, "Unsupported media type: use application/json or application/bson")
		}
	}
	if documents[0] != documents[1] {
		return errs.New(errs.S2004, "Unsupported media type: metadata and data must be of the same")
	}
	k.bson = documents[0]
	var m struct {
		Token     *string `json:"token"`
		UserAgent string  `json:"user_agent"`
	}
	text, err := k.json(f.Metadata)
	if err != nil || tooDeep(text) || json.Unmarshal(text, &m) != nil || m.Token == nil {
		return errs.New(errs.S2106, "Authentication required")
	}
	if m.UserAgent != "" {
		k.agent = m.UserAgent
	}
	token, err := auth.Bearer(*m.Token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(k.s.ctx, setupTimeout)
	defer cancel()
	if k.token, err = k.s.o.Verify(ctx, token); err != nil {
		return err
	}
	c.user = k.token.UserID
	return nil
}

// admit takes the user's request, and the stream that a socket counts as.
func (k *socket) admit() error {
	if _, err := k.s.o.Users.Request(k.token.UserID); err != nil {
		return err
	}
	err := k.s.begin(k.token.UserID, k.from)
	k.held = err == nil
	return err
}

// further takes the request and the stream that one more on the socket counts as.
// k.mu is held.
func (k *socket) further() error {
	if k.asked {
		if _, err := k.s.o.Users.Request(k.token.UserID); err != nil {
			return err
		}
	}
	k.asked = true
	if len(k.streams) == 0 {
		return nil
	}
	return k.s.begin(k.token.UserID, k.from)
}

// json is a document of the client as JSON.
func (k *socket) json(b []byte) ([]byte, error) {
	if k.bson && len(b) > 0 {
		return rsocket.JSON(b)
	}
	return b, nil
}

// handle does what a frame says. It reports false if the connection ends.
func (k *socket) handle(f rsocket.Frame) bool {
	switch f.Type {
	case rsocket.Keepalive:
		if f.Flags&rsocket.FlagRespond != 0 {
			return k.frame(rsocket.AppendKeepalive(nil, f.Data)) == nil
		}
	case rsocket.RequestStream, rsocket.Payload:
		return k.request(f)
	case rsocket.RequestN:
		k.mu.Lock()
		t := k.streams[f.Stream]
		k.mu.Unlock()
		if t != nil {
			t.credit(f.N)
		}
	case rsocket.Cancel:
		k.mu.Lock()
		t := k.streams[f.Stream]
		k.forget(f.Stream)
		k.mu.Unlock()
		if t != nil {
			t.cancel(io.EOF)
		}
	case rsocket.Error:
		if f.Stream == 0 {
			return false
		}
	case rsocket.Setup, rsocket.Resume, rsocket.Lease:
		k.violation("frame out of place")
		return false
	default:
		if f.Flags&rsocket.FlagIgnore != 0 {
			return true
		}
		if f.Stream == 0 {
			k.violation("unknown frame")
			return false
		}
		return k.frame(rsocket.AppendError(nil, f.Stream, rsocket.ApplicationError, "["+string(errs.S2002)+"] Only REQUEST_STREAM is supported")) == nil
	}
	return true
}

// request puts a request together and starts its stream.
func (k *socket) request(f rsocket.Frame) bool {
	k.mu.Lock()
	first := k.parts[f.Stream]
	switch {
	case f.Type == rsocket.Payload && first == nil:
		k.mu.Unlock()
		return true // of a stream that has ended
	case f.Type == rsocket.RequestStream && (first != nil || k.streams[f.Stream] != nil || f.Stream%2 == 0):
		k.mu.Unlock()
		k.violation("stream id cannot be used")
		return false
	case f.Type == rsocket.RequestStream && len(k.streams)+len(k.parts) >= maxSocketStreams:
		k.mu.Unlock()
		return k.frame(rsocket.AppendError(nil, f.Stream, rsocket.ApplicationError, "["+string(errs.S2304)+"] Too many streams on one connection")) == nil
	case first != nil:
		first.Metadata = append(first.Metadata, f.Metadata...)
		first.Data = append(first.Data, f.Data...)
		k.partial += len(f.Metadata) + len(f.Data)
	case f.Flags&rsocket.FlagFollows != 0:
		k.parts[f.Stream] = &f
		k.partial += len(f.Metadata) + len(f.Data)
	}
	if int64(k.partial) > k.s.o.MaxBody {
		k.mu.Unlock()
		k.violation("Request is too large")
		return false
	}
	if f.Flags&rsocket.FlagFollows != 0 {
		k.mu.Unlock()
		return true
	}
	if first != nil {
		k.forget(f.Stream)
		f = *first
	}
	if err := k.further(); err != nil {
		k.mu.Unlock()
		failure := reply.Of(err, "")
		k.refused(err, failure.Status)
		return k.frame(rsocket.AppendError(nil, f.Stream, rsocket.ApplicationError, "["+failure.Code+"] "+failure.Description)) == nil
	}
	t := &socketStream{k: k, id: f.Stream, wake: make(chan struct{}, 1), expires: k.token.Expires}
	t.credit(f.N)
	k.streams[f.Stream] = t
	k.mu.Unlock()
	k.open.Add(1)
	go t.run(f)
	return true
}

// forget drops what has come of a fragmented request. k.mu is held.
func (k *socket) forget(stream uint32) {
	if f := k.parts[stream]; f != nil {
		delete(k.parts, stream)
		k.partial -= len(f.Metadata) + len(f.Data)
	}
}

// socketStream is a stream of a socket, and its session's sink.
type socketStream struct {
	k       *socket
	id      uint32
	expires time.Time
	wake    chan struct{} // capacity 1: credit has come, or it was cancelled
	sent    atomic.Int64

	mu        sync.Mutex
	left      int64 // credit
	cancelled error
	session   *fanout.Session
}

// maxCredit is where credit stops adding up.
const maxCredit = 1<<31 - 1

func (t *socketStream) credit(n uint32) {
	t.mu.Lock()
	t.left = min(t.left+int64(n&maxCredit), maxCredit)
	t.mu.Unlock()
	t.poke()
}

func (t *socketStream) poke() {
	select {
	case t.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// cancel ends the stream without a word.
func (t *socketStream) cancel(reason error) {
	t.mu.Lock()
	t.cancelled = reason
	session := t.session
	t.mu.Unlock()
	t.poke()
	if session != nil {
		session.Close(reason)
	}
}

// run opens the stream's session, which then needs no goroutine while it is idle.
func (t *socketStream) run(f rsocket.Frame) {
	k := t.k
	if err := t.open(f); err != nil {
		defer t.gone()
		failure := reply.Of(err, "")
		_ = k.frame(rsocket.AppendError(nil, t.id, rsocket.ApplicationError, "["+failure.Code+"] "+failure.Description)) // the reader notices a broken connection
		k.refused(err, failure.Status)
	}
}

// refused logs a stream that was not begun.
func (k *socket) refused(err error, status int) {
	k.s.refuse(status)
	k.s.o.Log.Info("request refused", "request", k.id, "path", "/sync/stream", "transport", "websocket", "status", status,
		"code", string(errs.CodeOf(err)), "error", errs.Cause(err), "user", k.token.UserID, "agent", k.agent)
}

// gone forgets the stream when nothing of it runs any more.
func (t *socketStream) gone() {
	t.k.mu.Lock()
	if delete(t.k.streams, t.id); len(t.k.streams) > 0 {
		t.k.s.end(t.k.token.UserID, t.k.from)
	}
	t.k.mu.Unlock()
	t.k.open.Done()
}

func (t *socketStream) open(f rsocket.Frame) (err error) {
	k := t.k
	span := k.s.o.Trace.Root("WEBSOCKET /sync/stream", trace.Server, "")
	span.Text("sluice.request", k.id)
	defer func() {
		if err != nil { // else the stream's end ends it
			span.Error(err)
			span.End()
		}
	}()
	var route struct {
		Path string `json:"path"`
	}
	text, err := k.json(f.Metadata)
	if err != nil || tooDeep(text) || json.Unmarshal(text, &route) != nil {
		return reply.NewFault("metadata must be {path: string}")
	}
	if route.Path != "/sync/stream" {
		return errs.New(errs.S2002, "Path not found")
	}
	body, err := k.json(f.Data)
	if err != nil {
		return reply.NewFault("data is not a BSON document")
	}
	request, err := parseStream(body, nil)
	if err != nil {
		return err
	}
	if k.s.draining.Load() {
		return errs.New(errs.S2003, "Service is restarting").Retryable()
	}
	form := chunk.Form{Line: line.BSON}
	if k.ws.Deflate {
		form.Coding = coding.Gzip // whose segments are deflate's
	}
	logged := k.s.streamLog(k.id, "websocket", k.token.UserID, k.agent, request, form, span)
	session, err := k.s.open(k.s.ctx, request, k.token, who(k.token, request, k.agent, "websocket"), form, false, logged.log, func(sum fanout.Summary) {
		logged.ended(sum)
		t.gone()
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.session = session
	cancelled := t.cancelled
	t.mu.Unlock()
	if cancelled != nil {
		session.Discard()
		span.End()
		t.gone()
		return nil
	}
	logged.started()
	session.Start(t)
	return nil
}

// Sent implements fanout.Sink.
func (t *socketStream) Sent() int64 { return t.sent.Load() }

// errNoCredit ends a stream whose client has not asked for more until its token
// expired.
var errNoCredit = errors.New("client asked for no more lines")

// take waits for credit and takes up to n of it.
func (t *socketStream) take(n int) (int, error) {
	var expired <-chan time.Time
	for {
		t.mu.Lock()
		got := min(int64(n), t.left)
		t.left -= got
		cancelled := t.cancelled
		t.mu.Unlock()
		switch {
		case cancelled != nil:
			return 0, cancelled
		case got > 0:
			return int(got), nil
		}
		if expired == nil {
			timer := time.NewTimer(time.Until(t.expires))
			defer timer.Stop()
			expired = timer.C
		}
		select {
		case <-t.wake:
		case <-expired:
			return 0, errNoCredit
		case <-t.k.s.ctx.Done():
			return 0, io.EOF
		}
	}
}

// Send implements fanout.Sink: each line is a frame and costs one credit.
func (t *socketStream) Send(l *fanout.Lines) error {
	parts, from := l.Parts, 0
	for len(parts) > 0 {
		n, err := t.take(len(parts))
		if err != nil {
			return err
		}
		if from, err = t.write(l.Plain, parts[:n], from); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

// write sends lines at once; the plain ones begin at from. Up to gatherAt they go
// out as one piece, else the chunks from where they are.
func (t *socketStream) write(plain []byte, parts []fanout.Part, from int) (int, error) {
	scratch := buffers.Get().(*[]byte)
	defer buffers.Put(scratch)
	b := (*scratch)[:0]
	total := 0
	for _, p := range parts {
		if p.Chunk != nil {
			total += len(p.Chunk.Bytes)
		}
	}
	gather := total <= gatherAt
	// Where in b a chunk comes; b may move while it grows.
	type cut struct {
		at     int
		shared []byte
	}
	var cuts []cut
	shared := func(c []byte) {
		if gather {
			b = append(b, c...)
		} else {
			cuts = append(cuts, cut{len(b), c})
		}
	}
	for _, p := range parts {
		switch {
		case p.Chunk != nil && t.k.ws.Deflate:
			z := p.Chunk.Bytes[:len(p.Chunk.Bytes)-flushSize]
			b = websocket.AppendHeader(b, websocket.Binary, true, storedSize+len(z))
			b = t.stored(b)
			shared(z)
			continue
		case p.Chunk != nil:
			b = websocket.AppendHeader(b, websocket.Binary, false, rsocket.HeaderSize+len(p.Chunk.Bytes))
			b = rsocket.AppendNext(b, t.id)
			shared(p.Chunk.Bytes)
			continue
		case t.k.ws.Deflate && p.End-from >= deflateAt:
			z := coding.AppendSegment(nil, coding.Gzip, plain[from:p.End])
			z = z[:len(z)-flushSize]
			b = websocket.AppendHeader(b, websocket.Binary, true, storedSize+len(z))
			b = append(t.stored(b), z...)
		default:
			b = websocket.AppendHeader(b, websocket.Binary, false, rsocket.HeaderSize+p.End-from)
			b = append(rsocket.AppendNext(b, t.id), plain[from:p.End]...)
		}
		from = p.End
	}
	*scratch = b
	list := make(net.Buffers, 0, 2*len(cuts)+1)
	at := 0
	for _, c := range cuts {
		list = append(list, b[at:c.at], c.shared)
		at = c.at
	}
	if at < len(b) {
		list = append(list, b[at:])
	}
	err := t.k.ws.Locked(func(conn net.Conn) error {
		n, err := writeAll(conn, list, t.k.s.o.Timeout)
		t.sent.Add(n)
		return err
	})
	return from, err
}

const (
	// flushSize is the end of a deflate segment that a WebSocket message leaves
	// away (RFC 7692 §7.2.1).
	flushSize = 4
	// storedSize is the frame header as a stored block of deflate.
	storedSize = 5 + rsocket.HeaderSize
)

// stored appends the frame header as a deflate block.
func (t *socketStream) stored(b []byte) []byte {
	const n = rsocket.HeaderSize
	return rsocket.AppendNext(append(b, 0, n, 0, 0xff-n, 0xff), t.id)
}

// End implements fanout.Sink.
func (t *socketStream) End(err error) {
	t.mu.Lock()
	gone := t.cancelled != nil
	t.mu.Unlock()
	var last []byte
	switch {
	case gone:
		return
	case err == nil || errors.Is(err, errNoCredit):
		last = rsocket.AppendComplete(nil, t.id)
	case errors.Is(err, io.EOF) || errors.Is(err, fanout.ErrSlow):
		t.k.abort() // it cannot be told
		return
	default:
		f := reply.Of(err, "")
		last = rsocket.AppendError(nil, t.id, rsocket.ApplicationError, "["+f.Code+"] "+f.Description)
	}
	if t.k.frame(last) != nil {
		t.k.abort() // the reader notices
	}
}

// Abort implements fanout.Sink.
func (t *socketStream) Abort() { t.k.abort() }
