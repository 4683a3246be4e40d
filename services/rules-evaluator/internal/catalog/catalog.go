// Package catalog knows the replication streams: it compiles the sync config of
// each once, and deploys the sync config that this deployment's configuration
// names.
//
// Invariants:
//
//   - A batch is evaluated with the sync config of its own stream, and a stream
//     that the catalog has not heard of is asked for, never taken for empty
//     (TestUnknownStream).
//   - A layer's plan is compiled once: layers never change their config, and what is
//     added to a stream is another layer. A batch says for which it is.
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

	mu      sync.Mutex
	streams map[model.StreamID]*Stream // guarded by mu
}

// New returns a Catalog without streams; Run fills it.
func New(client pb.CatalogClient, defaultSchema string, log *slog.Logger) *Catalog {
	return &Catalog{client: client, defaultSchema: defaultSchema, log: log, streams: map[model.StreamID]*Stream{}}
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
		c.stream(&s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.streams {
		if !live[id] {
			delete(c.streams, id)
		}
	}
}

// stream returns s with the plans of all its layers, compiling those that are new.
func (c *Catalog) stream(s *model.Stream) *Stream {
	c.mu.Lock()
	known := c.streams[s.ID]
	c.mu.Unlock()
	if known != nil && len(known.layers) > len(s.Layers) {
		return known
	}
	fresh := Compile(s, c.defaultSchema)
	for i, l := range fresh.layers {
		if l.err != nil && (known == nil || i >= len(known.layers)) {
			c.log.Error("the sync config of a stream does not compile; its changes wait", "stream", s.ID, "layer", i, "error", l.err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if first := c.streams[s.ID]; first != nil {
		if len(first.layers) >= len(fresh.layers) {
			return first
		}
		fresh.beat = first.beat
	}
	c.streams[s.ID] = fresh
	return fresh
}

// Beats are the newest heartbeats that were evaluated of the live streams.
func (c *Catalog) Beats() []freshness.Beat {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []freshness.Beat
	for id, s := range c.streams {
		all = append(all, freshness.Beat{Stage: freshness.Evaluated, Stream: int64(id), At: s.beat.Load()})
	}
	return all
}

// Plan returns the plan of a stream for batches of these layers (see
// model.ChangeBatch), asking the catalog if it is not known. It is nil if the
// stream is not replicated any more.
func (c *Catalog) Plan(ctx context.Context, id model.StreamID, layer uint32, alone bool) (*Plan, error) {
	c.mu.Lock()
	known := c.streams[id]
	c.mu.Unlock()
	if known != nil && int(layer) < len(known.layers) {
		return known.Plan(layer, alone), nil
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
	known = c.stream(&s)
	if int(layer) >= len(known.layers) {
		return nil, fmt.Errorf("stream %d has no layer %d", id, layer)
	}
	return known.Plan(layer, alone), nil
}

// Stream has the plans of one stream's layers. It is safe for concurrent use.
type Stream struct {
	layers []compiled    // by number
	beat   *atomic.Int64 // newest heartbeat evaluated, µs

	mu    sync.Mutex
	plans map[which]*Plan // guarded by mu
}

// compiled is a layer's plan, or why there is none: there was one when it was
// deployed, so the newer of two versions of Sluice is needed here.
type compiled struct {
	rules *rules.Plan
	err   error
}

// which layers a batch is for.
type which struct {
	layer uint32
	alone bool
}

// Compile compiles the sync configs of s.
func Compile(s *model.Stream, defaultSchema string) *Stream {
	out := &Stream{plans: map[which]*Plan{}, beat: new(atomic.Int64)}
	out.beat.Store(int64(s.Head.Heartbeat)) // what is stored was evaluated, if by another process
	texts := []string{s.Config}
	for i := range s.Layers {
		texts = append(texts, s.Layers[i].Config)
	}
	var before []*rules.Plan
	for i, text := range texts {
		p, diagnostics := rules.Compile(text, rules.Options{DefaultSchema: defaultSchema, Version: int64(s.ID), Layer: uint32(i)})
		if err := fatal(diagnostics); err != nil {
			out.layers = append(out.layers, compiled{err: err})
			continue
		}
		made := p
		if i > 0 {
			made = p.Less(before...)
		}
		before = append(before, p)
		out.layers = append(out.layers, compiled{rules: made})
	}
	return out
}

// Plan returns the plan for batches of these layers.
func (s *Stream) Plan(layer uint32, alone bool) *Plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.plans[which{layer, alone}]
	if p == nil {
		p = &Plan{beat: s.beat, tables: map[model.TableID]*table{}}
		for i, l := range s.layers[:layer+1] {
			if l.err != nil { // the layers after it do not know what it makes
				p.Err = l.err
			} else if !alone || i == int(layer) {
				p.layers = append(p.layers, l.rules)
			}
		}
		s.plans[which{layer, alone}] = p
	}
	return p
}

// Plan is what some layers of one stream make, with the tables that it has met. It
// is safe for concurrent use.
type Plan struct {
	// Err is set if one of them does not compile.
	Err    error
	layers []*rules.Plan
	beat   *atomic.Int64 // of the stream

	mu     sync.RWMutex
	tables map[model.TableID]*table // guarded by mu
}

// table is a source table with the columns for which it was compiled.
type table struct {
	source   model.SourceTable
	compiled *evaluate.Table
}

// layered evaluates rows for several layers.
type layered []*rules.TableEvaluator

func (l layered) EvaluateRow(row []model.Value, out *rules.RowResult) {
	for _, e := range l {
		e.EvaluateRow(row, out)
	}
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
	var all layered
	for _, l := range p.layers {
		if e := l.Table(&fresh.source); e != nil {
			all = append(all, e)
		}
	}
	var rows evaluate.Evaluator // nil = none
	switch len(all) {
	case 0:
	case 1:
		rows = all[0]
	default:
		rows = all
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
