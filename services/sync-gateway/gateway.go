// Package gateway is the sync-gateway: it speaks the sync protocol with
// clients, verifies their tokens, and offers the admin API. It is stateless:
// any number may run.
//
// Invariants:
//
//   - What clients are told comes from the store; notices are hints (INV-29,
//     held by internal/fanout).
//   - Where rows of the source carry the write checkpoints, none are handed out
//     (TestCustomCheckpoints).
//   - When another sync config becomes active, streams of the old one end
//     cleanly and new ones get the new one (TestConfigChange).
//   - On the end of its context it refuses new streams, ends those that run at
//     the end of a checkpoint, or of a line when the drain time is over, and leaves
//     nothing running (TestDrain, fanout.TestDrainCheckpoint).
//   - A user, or an address, that has had its part is told so, by HTTP and by
//     WebSocket, and others go on (TestLimits).
//   - It is ready once its canary was told of a checkpoint, and goes on being
//     ready when data gets old (TestReadiness).
//   - A renewed certificate is shown to new connections, and ends none
//     (TestTLSReload).
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/auth"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/checkpoint"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/limit"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/transport"
)

// Config of a gateway. Zero means default.
type Config struct {
	// Auth is the file's client_auth, API its api section.
	Auth config.Auth
	API  config.API
	// AdminTokens may do a part of what those of API may.
	AdminTokens []config.AdminToken
	// MaxStreams bounds HTTP streams, and again WebSockets. Default:
	// API.MaxConnections, else 50,000.
	MaxStreams int
	// PathPrefix is put before every path, such as /sync-service.
	PathPrefix string
	// TLS, if it is on, is all that clients are served over: HTTP/1.1, HTTP/2
	// and WebSocket.
	TLS config.TLS
	// Limits are of each user and each address, besides those of all.
	Limits config.Limits
	// ChunkCacheBytes bounds the encoded chunks that are kept. Default 64 MiB.
	ChunkCacheBytes int64
	// Drain is how long running streams may take to end. Default 5 s.
	Drain time.Duration
	// WriteTimeout is in what time a client must take something. Default 30 s.
	WriteTimeout time.Duration
	// DefaultSchema of tables that a sync config names without one. Default
	// public.
	DefaultSchema string
	// SyncConfigFromFile closes the deploy API (S4105), unless ?override=true.
	SyncConfigFromFile bool
	// SlotPrefix begins the names of replication streams. Default powersync_.
	SlotPrefix string
	// ConnectionID, ConnectionTag and DebugAPI are those of the source
	// connection; they default to "default", "default" and false.
	ConnectionID  string
	ConnectionTag string
	DebugAPI      bool
	// Heartbeat is the interval of the replicator's heartbeats, for the status.
	// Default 1 s.
	Heartbeat time.Duration
}

// Conns is what the gateway is handed.
type Conns struct {
	Store     grpc.ClientConnInterface // bucket-store
	Source    grpc.ClientConnInterface // replicator
	Compactor grpc.ClientConnInterface
	NATS      *nats.Conn
	Listener  net.Listener // for HTTP; Run owns it
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c Config) withDefaults() Config {
	def(&c.MaxStreams, c.API.MaxConnections)
	def(&c.MaxStreams, 50_000)
	def(&c.API.MaxBuckets, 1000)
	def(&c.API.MaxParameterResult, 1000)
	def(&c.API.MaxDataFetch, 10)
	def(&c.Drain, 5*time.Second)
	def(&c.DefaultSchema, "public")
	def(&c.ConnectionID, "default")
	def(&c.ConnectionTag, "default")
	def(&c.Heartbeat, time.Second)
	return c
}

// gateway is a running gateway.
type gateway struct {
	cfg   Config
	conns Conns
	env   service.Env
	log   *slog.Logger
	stats fanout.Stats
	// limited are requests and streams that were more than Limits allow.
	limited atomic.Uint64
	chunks  chunk.Counts
	// acknowledged is told how long a write checkpoint took; nil = nobody wants to know.
	acknowledged func(time.Duration)
	keeper       *checkpoint.Keeper
	source       *backend.Source
	links        *freshness.Links

	hubs     *errgroup.Group
	mu       sync.Mutex
	active   *active
	watching error // why there is no active stream
	draining bool
}

// active is the stream that clients are served from.
type active struct {
	stream model.Stream
	store  *backend.Store
	hub    *fanout.Hub
	chunks *chunk.Cache
	live   context.Context // ends by stop
	stop   context.CancelFunc
	told   atomic.Int64 // newest heartbeat that the canary was told of, µs
}

var errStarting = errors.New("the store was not reached yet")

// Run serves clients until ctx ends.
func Run(ctx context.Context, cfg Config, conns Conns, env service.Env) error {
	cfg = cfg.withDefaults()
	verifier, err := auth.New(cfg.Auth)
	if err != nil {
		_ = conns.Listener.Close()
		return fmt.Errorf("client_auth: %w", err)
	}
	defer verifier.Close()
	g := &gateway{cfg: cfg, conns: conns, env: env, log: env.Log, source: backend.NewSource(conns.Source), watching: errStarting}
	g.keeper = checkpoint.New(g.source, env.Log)
	var shown *certificate.Keeper // nil = no TLS
	if cfg.TLS.On() {
		if shown, err = certificate.New(cfg.TLS, env.Log); err != nil {
			_ = conns.Listener.Close()
			return fmt.Errorf("sluice.gateway.tls: %w", err)
		}
	}
	g.links = freshness.NewLinks(env.Log, nil).
		Add("nats", freshness.NATS(conns.NATS)).
		Add("bucket-store", freshness.GRPC(conns.Store)).
		Add("replicator", freshness.GRPC(conns.Source))
	server := transport.New(transport.Options{
		Verify: verifier.Verify, Hub: g.hub, WriteCheckpoint: g.writeCheckpoint, Position: g.position, Mark: g.keeper.Mark,
		Admin: g.admin(), Health: env.Health, Log: env.Log, Stats: &g.stats, Trace: env.Trace,
		PathPrefix: cfg.PathPrefix, MaxStreams: cfg.MaxStreams, Timeout: cfg.WriteTimeout,
		MaxBuckets: cfg.API.MaxBuckets, MaxResults: cfg.API.MaxParameterResult,
		Proxies: cfg.Limits.Proxies, Users: limit.New("user", cfg.Limits.UserStreams, cfg.Limits.UserRequests, &g.limited),
		Addresses: limit.New("address", cfg.Limits.AddressStreams, cfg.Limits.AddressRequests, &g.limited),
	})
	if err := g.register(env.Metrics, server, verifier, shown, freshness.Beats(g.beats), g.links); err != nil {
		_ = conns.Listener.Close()
		return fmt.Errorf("register metrics: %w", err)
	}
	// Streams outlive ctx by the drain time.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	eg, inner := errgroup.WithContext(inner)
	g.hubs = new(errgroup.Group)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(shown != nil)
	protocols.SetUnencryptedHTTP2(shown == nil)
	h := &http.Server{
		Handler: server, Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		IdleTimeout: 75 * time.Second, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(env.Log.Handler(), slog.LevelDebug),
		// Connections that are taken over have their own way to notice who vanished.
		HTTP2:       &http.HTTP2Config{SendPingTimeout: transport.PingAfter, PingTimeout: transport.PingTimeout},
		ConnContext: transport.WithConn,
	}
	serve := h.Serve
	if shown != nil {
		h.TLSConfig = shown.Config()
		serve = func(lis net.Listener) error { return h.ServeTLS(lis, "", "") }
		eg.Go(func() error { return shown.Run(inner) })
	}
	eg.Go(func() error { return g.keeper.Run(inner) })
	eg.Go(func() error { return g.watch(inner) })
	eg.Go(func() error { return g.touch(inner) })
	eg.Go(func() error { return g.links.Run(inner) })
	eg.Go(func() error {
		if err := serve(conns.Listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	env.Health.Start()
	env.Log.Info("gateway started", "address", conns.Listener.Addr().String())
	select {
	case <-ctx.Done():
	case <-inner.Done(): // a part failed
	}
	g.mu.Lock()
	g.draining = true
	g.mu.Unlock()
	env.Health.SetReady(errors.New("shutting down"))
	server.Drain()
	g.drain(h)
	stop()
	err = eg.Wait()
	if herr := g.hubs.Wait(); err == nil {
		err = herr
	}
	_ = h.Close() // what has not ended by now
	server.Close()
	return err
}

// drain ends the streams, spread over a part of the drain time, each where a
// checkpoint ends, and waits for them. Towards the end of the time those that are
// in the middle of a long download end there: they go on elsewhere.
func (g *gateway) drain(h *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.Drain)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.Shutdown(ctx) }) // what is left is closed after it
	g.mu.Lock()
	a := g.active
	g.mu.Unlock()
	if a != nil {
		n := a.hub.Sessions()
		// Clients come back at once: a few hundred may do so together.
		a.hub.End(fanout.ErrDraining, min(g.cfg.Drain*5/10, time.Duration(n)*time.Millisecond))
		late := time.AfterFunc(g.cfg.Drain*8/10, func() { a.hub.End(fanout.ErrDraining, 0) })
		defer late.Stop()
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for g.stats.Sessions.Load() > 0 && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	wg.Wait()
}

func (g *gateway) touch(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		g.env.Health.Touch()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// hub returns the hub of the active stream.
func (g *gateway) hub() (*fanout.Hub, error) {
	a, err := g.current()
	if err != nil {
		return nil, err
	}
	return a.hub, nil
}

func (g *gateway) current() (*active, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active == nil {
		if errors.Is(g.watching, errStarting) {
			return nil, errs.New(errs.S2003, "Service is starting").Retryable()
		}
		return nil, errs.New(errs.S2302, "No active sync config").Retryable()
	}
	return g.active, nil
}

// managed returns the active stream if its write checkpoints are handed out.
func (g *gateway) managed() (*active, error) {
	a, err := g.current()
	if err == nil && a.stream.CustomCheckpoints {
		return nil, errs.New(errs.S2001, "Write checkpoints are custom: the sync config's event_definitions take them from rows of the source")
	}
	return a, err
}

func (g *gateway) writeCheckpoint(ctx context.Context, userKey string, id uint64) (uint64, error) {
	a, err := g.managed()
	if err != nil {
		return 0, err
	}
	if g.acknowledged == nil {
		return g.keeper.Request(ctx, a, userKey, id)
	}
	start := time.Now()
	id, err = g.keeper.Request(ctx, a, userKey, id)
	if err == nil {
		g.acknowledged(time.Since(start))
	}
	return id, err
}

// Create stores write checkpoints of the stream.
func (a *active) Create(ctx context.Context, head model.Position, rs []backend.Request) ([]uint64, error) {
	return a.store.Create(ctx, head, rs)
}

// Reached is the position that the stream's clients are told of.
func (a *active) Reached() model.Position {
	return a.hub.Applied().Position.Source()
}

// position is the end of the source's log, for a write checkpoint of the legacy
// kind.
func (g *gateway) position(ctx context.Context) (model.Position, error) {
	if _, err := g.managed(); err != nil {
		return "", err
	}
	return g.source.Position(ctx)
}

// watch follows the streams of the deployment.
func (g *gateway) watch(ctx context.Context) error {
	pause := 50 * time.Millisecond
	for {
		err := backend.WatchStreams(ctx, g.conns.Store, func(streams []model.Stream) {
			pause = 50 * time.Millisecond
			if !g.choose(ctx, streams) {
				g.ready() // there is nothing to serve, but that can be said
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		g.log.Warn("watch of sync configs broke; trying again", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, time.Second)
	}
}

// ready says that the gateway has shown that it can serve. From then on it is
// ready whatever happens upstream: all gateways would be unready at once, and
// old data is better than none. How old it is, the heartbeats tell.
func (g *gateway) ready() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.draining {
		g.env.Health.SetReady(nil)
	}
}

// beats are the newest heartbeats of the active stream.
func (g *gateway) beats() []freshness.Beat {
	g.mu.Lock()
	a := g.active
	g.mu.Unlock()
	if a == nil {
		return nil
	}
	id := int64(a.stream.ID)
	return []freshness.Beat{
		{Stage: freshness.Noticed, Stream: id, At: int64(a.hub.Noticed())},
		{Stage: freshness.Delivered, Stream: id, At: a.told.Load()},
	}
}

// choose makes the newest stream that may be read the active one (INV-36). It
// reports whether there is an active one.
func (g *gateway) choose(ctx context.Context, streams []model.Stream) bool {
	var newest *model.Stream
	for i := range streams {
		s := &streams[i]
		if (s.State == model.Active || s.State == model.Errored) && (newest == nil || s.ID > newest.ID) {
			newest = s
		}
	}
	g.mu.Lock()
	old := g.active
	g.watching = nil
	g.mu.Unlock()
	if newest == nil {
		if old != nil {
			g.log.Warn("no sync config is active any more", "stream", int64(old.stream.ID))
			g.replace(ctx, nil)
		}
		return false
	}
	if old != nil && old.stream.ID == newest.ID && old.stream.Serves() == newest.Serves() {
		return true
	}
	a, err := g.start(ctx, *newest)
	if err != nil {
		g.log.Error("sync config cannot be served", "stream", int64(newest.ID), "error", errs.Cause(err), "code", string(errs.CodeOf(err)))
		return old != nil
	}
	g.log.Info("serving sync config", "stream", int64(newest.ID), "name", newest.Name)
	g.replace(ctx, a)
	return true
}

// replace serves clients from a, nil for none, instead of what they are served
// from.
func (g *gateway) replace(ctx context.Context, a *active) {
	g.mu.Lock()
	old := g.active
	g.active = a
	g.mu.Unlock()
	if a != nil {
		// Only now: what it is told makes the gateway ready.
		g.hubs.Go(func() error {
			a.hub.Canary(a.live, func(at model.Micros) {
				a.told.Store(int64(at))
				g.ready()
			})
			return nil
		})
	}
	if old != nil {
		old.hub.End(fanout.ErrStreamReplaced, time.Second)
		g.hubs.Go(func() error {
			g.retire(ctx, old)
			return nil
		})
	}
}

// start starts serving a stream.
func (g *gateway) start(ctx context.Context, s model.Stream) (*active, error) {
	plan, err := g.compile(&s, s.Config, 0)
	if err == nil && s.EditedContent != "" {
		plan, err = g.served(&s, plan)
	}
	if err != nil {
		return nil, err
	}
	var from model.Checkpoint
	if s.Layered > 0 { // what was added may be seen from that one on with which it was copied
		from = s.Head.Checkpoint
	}
	ctx, stop := context.WithCancel(ctx)
	a := &active{stream: s, store: backend.NewStore(g.conns.Store, s.ID, &g.stats.Reads), live: ctx, stop: stop}
	a.chunks = chunk.New(ctx, a.store, chunk.Options{MaxBytes: g.cfg.ChunkCacheBytes, Reads: g.cfg.API.MaxDataFetch, Counts: &g.chunks})
	a.hub = fanout.NewHub(ctx, fanout.Options{
		Stream: s.ID, Plan: planner{plan}, From: from, Reader: a.store, Chunks: a.chunks,
		Limits: fanout.Limits{Buckets: g.cfg.API.MaxBuckets, Results: g.cfg.API.MaxParameterResult},
		Stats:  &g.stats, Log: g.log,
	})
	feed := backend.Notices{NATS: g.conns.NATS, Log: g.log, Trace: g.env.Trace}
	g.hubs.Go(func() error { return a.chunks.Run(ctx) })
	g.hubs.Go(func() error { return a.hub.Run(ctx, feed) })
	return a, nil
}

func (g *gateway) compile(s *model.Stream, text string, layer uint32) (*rules.Plan, error) {
	plan, diagnostics := rules.Compile(text, rules.Options{DefaultSchema: g.cfg.DefaultSchema, Version: int64(s.ID), Layer: layer})
	if plan != nil {
		return plan, nil
	}
	for _, d := range diagnostics {
		if d.Fatal {
			return nil, errs.New(errs.R0001, "%s", d.Message)
		}
	}
	return nil, errs.New(errs.R0001, "sync config does not compile")
}

// served is the plan by which s serves clients, from the data that is replicated
// as first and the layers say. Without it nobody is served: first may give what
// clients must not have any more.
func (g *gateway) served(s *model.Stream, first *rules.Plan) (*rules.Plan, error) {
	plan, err := g.compile(s, s.Edited, 0)
	if err != nil {
		return nil, err
	}
	layers := []*rules.Plan{first}
	for i := range s.Layers[:s.Layered] {
		layer, err := g.compile(s, s.Layers[i].Config, uint32(i)+1)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	over, ok := plan.Over(layers...)
	if !ok {
		return nil, errs.New(errs.R0001, "the sync config that was deployed needs data that is not replicated: deploy it again")
	}
	return over, nil
}

// retire stops a stream that was replaced once its sessions have ended.
func (g *gateway) retire(ctx context.Context, a *active) {
	defer a.stop()
	limit := time.NewTimer(g.cfg.Drain)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for a.hub.Sessions() > 0 {
		select {
		case <-tick.C:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// planner is a compiled sync config as the hub wants it.
type planner struct{ plan *rules.Plan }

func (p planner) Querier(r rules.Request) (fanout.Querier, error) {
	q, err := p.plan.Querier(r)
	if err != nil {
		return nil, err
	}
	return q, nil
}
