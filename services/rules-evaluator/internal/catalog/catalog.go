// Package catalog knows the replication streams: it compiles the sync config of
// each once, and deploys the sync config that this deployment's configuration
// names.
//
// Invariants:
//
//   - A batch is evaluated with the sync config of its own stream, and a stream
//     that the catalog has not heard of is asked for, never taken for empty
//     (TestUnknownStream).
//   - A stream's plan is compiled once: streams never change their config.
//   - A bad sync config is reported with positions and keeps the old one
//     (TestDeployInvalid).
package catalog

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/evaluate"
)

// retryPause is the wait between two attempts to watch the catalog.
const retryPause = 200 * time.Millisecond

// Catalog has the plans of the live streams.
type Catalog struct {
	client        pb.CatalogClient
	defaultSchema string
	log           *slog.Logger

	mu    sync.Mutex
	plans map[model.StreamID]*Plan // guarded by mu
}

// New returns a Catalog without streams; Run fills it.
func New(client pb.CatalogClient, defaultSchema string, log *slog.Logger) *Catalog {
	return &Catalog{client: client, defaultSchema: defaultSchema, log: log, plans: map[model.StreamID]*Plan{}}
}

// Run keeps the catalog up to date until ctx ends. watching is told when the
// catalog is complete (nil) and when it is not (the reason).
func (c *Catalog) Run(ctx context.Context, watching func(error)) error {
	for {
		err := c.watch(ctx, watching)
		if ctx.Err() != nil {
			return nil
		}
		watching(fmt.Errorf("watch the catalog: %w", err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryPause):
		}
	}
}

func (c *Catalog) watch(ctx context.Context, watching func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := c.client.Watch(ctx, &pb.WatchRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for {
		m, err := w.Recv()
		if err != nil {
			return err
		}
		c.set(m.GetStreams())
		watching(nil)
	}
}

// set makes streams the live ones.
func (c *Catalog) set(streams []*pb.Stream) {
	live := map[model.StreamID]bool{}
	for _, m := range streams {
		s := wire.ModelStream(m)
		if s.State == model.Stopped || s.State == model.Terminated {
			continue
		}
		live[s.ID] = true
		c.plan(&s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.plans {
		if !live[id] {
			delete(c.plans, id)
		}
	}
}

// plan returns the plan of s, compiling it if it is new.
func (c *Catalog) plan(s *model.Stream) *Plan {
	c.mu.Lock()
	p := c.plans[s.ID]
	c.mu.Unlock()
	if p != nil {
		return p
	}
	p = Compile(s, c.defaultSchema)
	p.Saw(s.Head.Heartbeat) // what is stored was evaluated, if by another process
	if p.Err != nil {
		c.log.Error("the sync config of a stream does not compile; its changes wait", "stream", s.ID, "error", p.Err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.plans[s.ID]; first != nil {
		return first
	}
	c.plans[s.ID] = p
	return p
}

// Beats are the newest heartbeats that were evaluated of the live streams.
func (c *Catalog) Beats() []freshness.Beat {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []freshness.Beat
	for id, p := range c.plans {
		all = append(all, freshness.Beat{Stage: freshness.Evaluated, Stream: int64(id), At: p.beat.Load()})
	}
	return all
}

// Plan returns the plan of a stream, asking the catalog if it is not known. It
// is nil if the stream is not replicated any more.
func (c *Catalog) Plan(ctx context.Context, id model.StreamID) (*Plan, error) {
	c.mu.Lock()
	p := c.plans[id]
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	r, err := c.client.List(ctx, &pb.ListRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for stream %d: %w", id, err)
	}
	i := slices.IndexFunc(r.GetStreams(), func(s *pb.Stream) bool { return s.GetId() == int64(id) })
	if i < 0 {
		return nil, nil
	}
	s := wire.ModelStream(r.GetStreams()[i])
	if s.State == model.Stopped || s.State == model.Terminated {
		return nil, nil
	}
	return c.plan(&s), nil
}

// Plan is the compiled sync config of one stream, with the tables that it has
// met. It is safe for concurrent use.
type Plan struct {
	// Err is set if the config does not compile: it did when it was deployed, so
	// the newer of two versions of Sluice is needed here.
	Err   error
	rules *rules.Plan
	beat  atomic.Int64 // newest heartbeat evaluated, µs

	mu     sync.RWMutex
	tables map[model.TableID]*table // guarded by mu
}

// table is a source table with the columns for which it was compiled.
type table struct {
	source   model.SourceTable
	compiled *evaluate.Table
}

// Compile compiles the sync config of s.
func Compile(s *model.Stream, defaultSchema string) *Plan {
	p, diagnostics := rules.Compile(s.Config, rules.Options{DefaultSchema: defaultSchema, Version: int64(s.ID)})
	if err := fatal(diagnostics); err != nil {
		return &Plan{Err: err}
	}
	return &Plan{rules: p, tables: map[model.TableID]*table{}}
}

// Saw says that the heartbeat of a batch was evaluated; 0 = it has none.
func (p *Plan) Saw(at model.Micros) {
	for was := p.beat.Load(); int64(at) > was; was = p.beat.Load() {
		if p.beat.CompareAndSwap(was, int64(at)) {
			return
		}
	}
}

// Table returns the compiled form of t.
func (p *Plan) Table(t *model.SourceTable) *evaluate.Table {
	p.mu.RLock()
	known := p.tables[t.ID]
	p.mu.RUnlock()
	if known != nil && same(&known.source, t) {
		return known.compiled
	}
	fresh := &table{source: *t}
	var rows evaluate.Evaluator
	if e := p.rules.Table(&fresh.source); e != nil {
		rows = e
	}
	fresh.compiled = evaluate.NewTable(&fresh.source, rows)
	p.mu.Lock()
	p.tables[t.ID] = fresh
	p.mu.Unlock()
	return fresh.compiled
}

func same(a, b *model.SourceTable) bool {
	return a.Name == b.Name && a.Schema == b.Schema && a.Connection == b.Connection &&
		a.CompleteRows == b.CompleteRows && slices.Equal(a.Columns, b.Columns)
}
