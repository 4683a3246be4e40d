// Package transport is what clients connect to: HTTP and, on any path,
// WebSocket with RSocket inside (spec/02 §1 to §4, §8 to §10; spec/06 §4).
//
// Invariants, held here and by the tests of the service:
//
//   - A request is validated, then authorized, then handled (TestRefused).
//   - A refused request and an ended stream leave one line in the log, without
//     token and row data (TestLog).
//   - D8: a client that does not read is cut off after the write timeout, and
//     holds no more memory than one batch until then (TestUnread).
//   - An idle stream holds a connection and one small goroutine. On HTTP/1.1
//     its response is written past net/http (BenchmarkIdle); on a WebSocket it is
//     the reader, which begins with an empty stack (TestSocketIdle).
//   - Content types are exact (TestNegotiation).
package transport

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/tcp"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/auth"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/limit"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/queue"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/reply"
)

// Options of a server. Zero limits have defaults.
type Options struct {
	Verify func(ctx context.Context, token string) (*auth.Token, error)
	// Hub returns the hub of the active stream.
	Hub func() (*fanout.Hub, error)
	// WriteCheckpoint stores a number for a user key and returns what it has
	// now: the next one for id 0, else at least id.
	WriteCheckpoint func(ctx context.Context, userKey string, id uint64) (uint64, error)
	// Position is the end of the source's log now; it fails where write
	// checkpoints are custom.
	Position func(ctx context.Context) (model.Position, error)
	// Mark makes the source's log pass the positions that were read before.
	Mark   func()
	Admin  http.Handler // nil = none
	Health *service.Health
	Log    *slog.Logger
	Stats  *fanout.Stats
	// Trace makes a span of each request of a client; nil = none.
	Trace *trace.Tracer

	PathPrefix string
	MaxStreams int           // of HTTP, and again of WebSocket; 50,000
	MaxBody    int64         // of a sync stream's request; 10 MiB
	Timeout    time.Duration // in which a client must take something; 30 s
	MaxBuckets int
	MaxResults int

	// Users and Addresses bound what each of them may have.
	Users, Addresses *limit.Table
	Proxies          limit.Proxies
}

// Server answers clients.
type Server struct {
	o        Options
	streams  atomic.Int64
	sockets  atomic.Int64
	draining atomic.Bool
	checks   *queue.Queue
	refusals [len(Refusals)]atomic.Uint64
	clients  clients
	ctx      context.Context // ends sockets
	stop     context.CancelFunc
	running  sync.WaitGroup // goroutines that read from taken-over connections
}

// vanished is how soon a client that is gone without a word is given up. It has 12
// of these seconds to acknowledge something: phones lose the network for a while.
const vanished = 30 * time.Second

// These are vanished for HTTP/2, which has a keepalive of its own.
const (
	PingAfter   = vanished / 4
	PingTimeout = vanished * 3 / 5
)

// Refusals are the reasons for which requests of clients are refused: a token that
// is not good, a limit that is reached, a request that is not right, and that
// something is not to be had.
var Refusals = [...]string{"unauthorized", "limit", "invalid", "unavailable"}

// Refused says how many requests were refused, for each of Refusals.
func (s *Server) Refused() (counts [len(Refusals)]uint64) {
	for i := range s.refusals {
		counts[i] = s.refusals[i].Load()
	}
	return counts
}

func (s *Server) refuse(status int) {
	reason := 2
	switch {
	case status == 0:
		return // the client went
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		reason = 0
	case status == http.StatusTooManyRequests:
		reason = 1
	case status >= http.StatusInternalServerError:
		reason = 3
	}
	s.refusals[reason].Add(1)
}

// Open says how many HTTP streams and WebSockets there are. Each may be as many
// as Limit.
func (s *Server) Open() (streams, sockets int64) { return s.streams.Load(), s.sockets.Load() }

// Limit is MaxStreams.
func (s *Server) Limit() int { return s.o.MaxStreams }

// maxCheckpointWaits are write checkpoints under way, and as many that wait.
const maxCheckpointWaits = 100

// New returns a server.
func New(o Options) *Server {
	if o.MaxStreams == 0 {
		o.MaxStreams = 50_000
	}
	if o.MaxBody == 0 {
		o.MaxBody = 10 << 20
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Stats == nil {
		o.Stats = new(fanout.Stats)
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Server{o: o, ctx: ctx, stop: stop, checks: queue.New(maxCheckpointWaits, maxCheckpointWaits)}
}

// Drain refuses new streams.
func (s *Server) Drain() { s.draining.Store(true) }

// Close ends what is left and waits for it. The hubs' sessions must have ended.
func (s *Server) Close() {
	s.stop()
	s.running.Wait()
}

// call is one request.
type call struct {
	s     *Server
	id    string
	w     http.ResponseWriter
	r     *http.Request
	start time.Time
	user  string
	from  string      // the address, if addresses are limited
	span  *trace.Span // nil for what no client of an app asks: probes and admin
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Access-Control-Allow-Origin"] = star
	h["Access-Control-Expose-Headers"] = exposed
	if r.Method == http.MethodOptions {
		h.Set("Access-Control-Allow-Methods", "GET,HEAD,POST")
		h.Set("Access-Control-Allow-Headers", "Content-Type, Authorization, User-Agent, X-User-Agent")
		h.Set("Access-Control-Max-Age", "3600")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	c := &call{s: s, w: w, r: r, start: time.Now()}
	path, ok := strings.CutPrefix(r.URL.Path, s.o.PathPrefix)
	if !ok {
		path = ""
	}
	socket := strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && r.Method == http.MethodGet
	var err error
	if s.o.Addresses != nil && !strings.HasPrefix(path, "/probes/") {
		c.from = s.o.Proxies.Address(r)
		err = c.request(s.o.Addresses, c.from)
	}
	if socket && err == nil {
		c.id = reply.NewID("s/")
		s.socket(c)
		return
	}
	c.id = reply.NewID("h/")
	served := true // and to be logged: of a stream its end is, and probes come all the time
	switch {
	case err != nil:
	case r.Method == http.MethodPost && path == "/sync/stream":
		served = false
		c.trace(path)
		if err = s.stream(c); err == nil {
			c.span = nil // the stream's end ends it
		}
	case r.Method == http.MethodGet && path == "/write-checkpoint2.json":
		c.trace(path)
		err = s.writeCheckpoint(c)
	case r.Method == http.MethodPost && path == "/sync/checkpoint-request":
		c.trace(path)
		err = s.checkpointRequest(c)
	case r.Method == http.MethodGet && path == "/write-checkpoint.json":
		c.trace(path)
		err = s.legacyCheckpoint(c)
	case (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.HasPrefix(path, "/probes/"):
		served = false
		err = s.probe(c, path)
	case s.o.Admin != nil && strings.HasPrefix(path, "/api/"):
		r.URL.Path = path
		s.o.Admin.ServeHTTP(w, r)
		return
	default:
		err = errs.New(errs.S2002, "Path not found")
	}
	if err == nil {
		c.span.Int("http.response.status_code", http.StatusOK)
		c.span.End()
		if log := s.o.Log; served && log.Enabled(r.Context(), service.LevelHTTP) {
			log.Log(r.Context(), service.LevelHTTP, "HTTP request", "request", c.id, "method", r.Method, "path", r.URL.Path, "status", http.StatusOK,
				"user", c.user, "agent", agent(r), "duration_ms", time.Since(c.start).Milliseconds())
		}
		return
	}
	c.refused(err, reply.Error(w, err, c.id))
}

// trace begins the span of a request. It is not part of whatever trace the client
// names, which only links to it: what is traced here is not for clients to say.
func (c *call) trace(route string) {
	if c.s.o.Trace == nil {
		return
	}
	c.span = c.s.o.Trace.Root(c.r.Method+" "+route, trace.Server, c.r.Header.Get(trace.Header))
	c.span.Text("http.request.method", c.r.Method)
	c.span.Text("http.route", route)
	c.span.Text("sluice.request", c.id)
}

var (
	star    = []string{"*"}
	exposed = []string{"Content-Type"}
)

// refused logs a request that was not served, and ends its span.
func (c *call) refused(err error, status int) {
	c.s.refuse(status)
	c.span.Int("http.response.status_code", int64(status))
	c.span.Error(err)
	c.span.End()
	c.s.o.Log.Info("request refused", "request", c.id, "method", c.r.Method, "path", c.r.URL.Path, "status", status,
		"code", string(errs.CodeOf(err)), "error", errs.Cause(err), "user", c.user, "agent", agent(c.r),
		"duration_ms", time.Since(c.start).Milliseconds())
}

func agent(r *http.Request) string {
	if a := r.Header.Get("X-User-Agent"); a != "" {
		return a
	}
	return r.UserAgent()
}

// body reads the request's JSON. A body that is longer than most are is taken
// only from a client that is known.
func (c *call) body(most int64) ([]byte, error) {
	if t := c.r.Header.Get("Content-Type"); t != "" {
		if m, _, err := mime.ParseMediaType(t); err != nil || m != "application/json" {
			return nil, errs.New(errs.S2004, "Unsupported media type: send application/json")
		}
	}
	in := http.MaxBytesReader(c.w, c.r.Body, most)
	b, err := io.ReadAll(io.LimitReader(in, maxSmallBody))
	if err == nil && len(b) == maxSmallBody {
		if _, err := c.authorize(); err != nil {
			return nil, err
		}
		var rest []byte
		rest, err = io.ReadAll(in)
		b = append(b, rest...)
	}
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return nil, &reply.StatusError{Failure: reply.Failure{Name: "PayloadTooLarge", Code: string(errs.S2001), Status: http.StatusRequestEntityTooLarge,
			Description: "Request body is too large"}}
	}
	if err != nil {
		return nil, reply.NewFault("body could not be read")
	}
	return b, nil
}

// authorize verifies the request's token.
func (c *call) authorize() (*auth.Token, error) {
	text, err := auth.Bearer(c.r.Header.Get("Authorization"))
	if err != nil {
		return nil, err
	}
	t, err := c.s.o.Verify(c.r.Context(), text)
	if err != nil {
		return nil, err
	}
	if c.user == "" { // else this is the same request's second time
		c.user = t.UserID
		if err := c.request(c.s.o.Users, c.user); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// request takes one of the requests of a user or an address.
func (c *call) request(of *limit.Table, key string) error {
	wait, err := of.Request(key)
	if err != nil {
		c.w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
	}
	return err
}

// begin takes one of the sync streams of a user and an address, which end gives back.
func (s *Server) begin(user, from string) error {
	err := s.o.Addresses.Open(from)
	if err == nil {
		if err = s.o.Users.Open(user); err != nil {
			s.o.Addresses.Close(from)
		}
	}
	return err
}

func (s *Server) end(user, from string) {
	s.o.Users.Close(user)
	s.o.Addresses.Close(from)
}

func userKey(user, client string) string {
	if client == "" {
		return user
	}
	return user + "/" + client
}

func who(t *auth.Token, r *streamRequest, agent, transport string) fanout.Who {
	return fanout.Who{User: t.UserID, Client: r.clientID, Agent: clip(agent), Transport: transport}
}

// open starts the session of a validated and authorized request.
func (s *Server) open(ctx context.Context, r *streamRequest, t *auth.Token, who fanout.Who, form chunk.Form, keepalive bool, log *slog.Logger, ended func(fanout.Summary)) (*fanout.Session, error) {
	request := fanout.Request{
		Rules: rules.Request{
			Token: t.Payload, Parameters: r.parameters, IncludeDefaults: r.includeDefaults, Subscriptions: r.subscriptions,
			MaxResults: s.o.MaxResults, MaxBuckets: s.o.MaxBuckets,
		},
		Who:     who,
		UserKey: userKey(t.UserID, r.clientID), Positions: r.positions, Form: form,
		Expires: t.Expires, Keepalive: keepalive, Log: log, Ended: ended,
	}
	for {
		hub, err := s.o.Hub()
		if err != nil {
			return nil, err
		}
		session, err := hub.Open(ctx, request)
		// The new hub is there before the old one ends.
		if !errors.Is(err, fanout.ErrStreamReplaced) {
			return session, err
		}
	}
}

// stream serves POST /sync/stream.
func (s *Server) stream(c *call) error {
	body, err := c.body(s.o.MaxBody)
	if err != nil {
		return err
	}
	request, err := parseStream(body, c.r.URL.Query())
	if err != nil {
		return err
	}
	token, err := c.authorize()
	if err != nil {
		return err
	}
	if s.draining.Load() {
		return errs.New(errs.S2003, "Service is restarting").Retryable()
	}
	if s.streams.Add(1) > int64(s.o.MaxStreams) {
		s.streams.Add(-1)
		return queue.ErrFull
	}
	user, from := token.UserID, c.from // the stream shall not keep the request
	if err := s.begin(user, from); err != nil {
		s.streams.Add(-1)
		return err
	}
	ended := func() {
		s.streams.Add(-1)
		s.end(user, from)
	}
	form := chunk.Form{Line: negotiateForm(c.r.Header.Values("Accept"), request.rawData), Coding: negotiateCoding(c.r.Header.Values("Accept-Encoding"))}
	logged := s.streamLog(c.id, "http", token.UserID, agent(c.r), request, form, c.span)
	session, err := s.open(c.r.Context(), request, token, who(token, request, agent(c.r), "http"), form, true, logged.log, func(sum fanout.Summary) {
		ended()
		logged.ended(sum)
	})
	if err != nil {
		ended()
		return err
	}
	logged.started()
	control := http.NewResponseController(c.w)
	if c.r.ProtoMajor == 1 && c.r.ProtoMinor >= 1 {
		if conn, _, err := control.Hijack(); err == nil {
			s.takeOver(conn, session, form)
			return nil
		}
	}
	s.serve(c, control, session, form)
	return nil
}

// takeOver serves the session on a connection that is now ours.
func (s *Server) takeOver(conn net.Conn, session *fanout.Session, form chunk.Form) {
	tcp.Tune(plain(conn), vanished)
	s.clients.add(conn)
	sink := &chunked{conn: conn, timeout: s.o.Timeout, coded: coded{coding: form.Coding}, header: responseHeader(form.Line, form.Coding, cors)}
	s.running.Add(1)
	session.Start(sink)
	go s.watch(conn, session, sink)
}

var cors = http.Header{"Access-Control-Allow-Origin": star, "Access-Control-Expose-Headers": exposed}

// maxUnasked is how much a client may send on a stream that it only reads.
const maxUnasked = 64 << 10

// watch reads what nobody should send, to learn when the client goes. It is the
// only goroutine of an idle stream.
func (s *Server) watch(conn net.Conn, session *fanout.Session, sink *chunked) {
	defer s.running.Done()
	defer s.clients.remove(conn)
	defer sink.Abort()
	total := 0
	for {
		var b [128]byte
		n, err := conn.Read(b[:])
		if total += n; err != nil || total > maxUnasked {
			s.gone(err)
			session.Close(io.EOF)
			break
		}
	}
	// A Send that is under way ends with the connection, unless the session has
	// ended already.
	select {
	case <-session.Done():
	default:
		sink.Abort()
		<-session.Done()
	}
}

// gone counts a client of which the kernel heard nothing more.
func (s *Server) gone(err error) {
	// The latter two if the network has said so meanwhile.
	if errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) {
		s.o.Stats.Vanished.Add(1)
	}
}

// serve serves the session on a response of net/http.
func (s *Server) serve(c *call, control *http.ResponseController, session *fanout.Session, form chunk.Form) {
	ctx, cancel := context.WithCancel(c.r.Context())
	defer cancel()
	if conn, ok := ctx.Value(connKey{}).(net.Conn); ok {
		s.clients.add(conn)
		defer s.clients.remove(conn)
	}
	h := c.w.Header()
	h.Set("Content-Type", form.Line.ContentType())
	h.Set("X-Accel-Buffering", "no")
	if e := form.Coding.String(); e != "identity" {
		h.Set("Content-Encoding", e)
	}
	c.w.WriteHeader(http.StatusOK)
	sink := &handled{w: c.w, control: control, cancel: cancel, timeout: s.o.Timeout, coded: coded{coding: form.Coding}}
	session.Start(sink)
	select {
	case <-session.Done():
	case <-ctx.Done():
		session.Close(io.EOF)
		<-session.Done()
	}
	if sink.failure != nil {
		panic(http.ErrAbortHandler) // the client shall see that it broke off
	}
}

// streamLog writes the lines of one stream's life.
type streamLog struct {
	log  *slog.Logger
	form chunk.Form
	r    *streamRequest
	at   time.Time
	span *trace.Span // ends with the stream
}

func (s *Server) streamLog(id, transport, user, agent string, r *streamRequest, form chunk.Form, span *trace.Span) *streamLog {
	return &streamLog{
		log:  s.o.Log.With("request", id, "transport", transport, "user", user, "client", r.clientID, "agent", agent),
		form: form, r: r, at: time.Now(), span: span,
	}
}

const (
	maxLogged      = 20
	maxLoggedValue = 100
)

func (l *streamLog) started() {
	var parameters map[string]json.RawMessage
	if l.r.parameters != nil {
		_ = json.Unmarshal(l.r.parameters, &parameters) // an object: it was parsed before
	}
	l.log.Info("Sync stream started", some("app_metadata", l.r.appMetadata), some("client_params", parameters),
		"encoding", l.form.Line.ContentType(), "coding", l.form.Coding.String())
	l.r = nil
}

// some is a group of a client's values: the first ones by name, cut where they
// are long.
func some[V ~string | ~[]byte](name string, values map[string]V) slog.Attr {
	attrs := make([]any, 0, min(len(values), maxLogged))
	for _, k := range slices.Sorted(maps.Keys(values))[:cap(attrs)] {
		attrs = append(attrs, slog.String(clip(k), clip(string(values[k]))))
	}
	return slog.Group(name, attrs...)
}

func clip(s string) string {
	if len(s) > maxLoggedValue {
		return strings.ToValidUTF8(s[:maxLoggedValue], "")
	}
	return s
}

func (l *streamLog) ended(sum fanout.Summary) {
	reason, clean := sum.Clean()
	level := slog.LevelInfo
	args := []any{
		"close_reason", reason, "stream_ms", time.Since(l.at).Milliseconds(), "operations_synced", sum.Counts.Ops(),
		"data_synced_bytes", sum.PlainBytes, "data_sent_bytes", sum.SentBytes, "buckets", sum.Buckets,
		"checkpoints", sum.Completed, "superseded", sum.Superseded, "encoding", l.form.Line.ContentType(),
		slog.Group("operation_counts", "put", sum.Counts.Put, "remove", sum.Counts.Remove, "move", sum.Counts.Move, "clear", sum.Counts.Clear),
	}
	if len(sum.Large) > 0 {
		large := make([]any, 0, len(sum.Large))
		for _, name := range slices.Sorted(maps.Keys(sum.Large)) {
			large = append(large, slog.Int(name, sum.Large[name]))
		}
		args = append(args, slog.Group("large_buckets", large...))
	}
	if !clean {
		level = slog.LevelWarn
		args = append(args, "error", errs.Cause(sum.Reason), "code", string(errs.CodeOf(sum.Reason)))
	}
	l.log.Log(context.Background(), level, "Sync stream complete", args...)
	if l.span == nil {
		return
	}
	if !clean {
		l.span.Error(sum.Reason)
	}
	l.span.Int("http.response.status_code", http.StatusOK)
	l.span.Text("sluice.close_reason", reason)
	l.span.Text("sluice.encoding", l.form.Line.ContentType())
	l.span.Int("sluice.operations", int64(sum.Counts.Ops()))
	l.span.Int("sluice.sent_bytes", sum.SentBytes)
	l.span.Int("sluice.buckets", int64(sum.Buckets))
	l.span.Int("sluice.checkpoints", int64(sum.Completed))
	l.span.End()
}
