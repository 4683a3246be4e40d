package fanout

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/core/session"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
)

// store is a bucket-store in memory. Reads can be held up and refused.
type store struct {
	mu       sync.Mutex
	ops      map[string][]model.Op
	cleared  map[string]model.OpID
	lookups  map[string][]value
	at       model.Checkpoint
	sequence uint64
	beat     model.Micros
	writes   map[string]model.WriteCheckpoint
	calls    map[string]int
	keys     map[string]int // keys asked for, by call
	fail     error
	before   func(call string) // runs before a read, unlocked
	deliver  func(model.CheckpointNotice, *trace.Span)
	lost     func()
	mute     bool
}

type value struct {
	id   model.OpID
	list []string
}

func newStore() *store {
	return &store{
		ops: map[string][]model.Op{}, cleared: map[string]model.OpID{}, lookups: map[string][]value{},
		writes: map[string]model.WriteCheckpoint{}, calls: map[string]int{}, keys: map[string]int{},
		at: model.Checkpoint{Position: "00000001"},
	}
}

func (s *store) enter(call string, keys int) error {
	s.mu.Lock()
	before := s.before
	s.calls[call]++
	s.keys[call] += keys
	err := s.fail
	s.mu.Unlock()
	if before != nil {
		before(call)
	}
	return err
}

func (s *store) count(call string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[call]
}

// commit is one transaction.
func (s *store) commit(change func(c *commit)) model.Checkpoint {
	s.mu.Lock()
	c := &commit{s: s, n: model.CheckpointNotice{Run: 1}}
	if change != nil {
		change(c)
	}
	var p int
	_, _ = fmt.Sscanf(string(s.at.Position), "%d", &p)
	s.at.Position = model.Position(fmt.Sprintf("%08d", p+1))
	s.beat = max(s.beat, c.n.Heartbeat)
	s.sequence++
	c.n.Sequence, c.n.Checkpoint = s.sequence, s.at
	for k, w := range s.writes {
		if w.Head <= s.at.Position {
			c.n.Reached = append(c.n.Reached, w)
			_ = k
		}
	}
	deliver, mute := s.deliver, s.mute
	s.mu.Unlock()
	if deliver != nil && !mute {
		deliver(c.n, c.span)
	}
	return c.n.Checkpoint
}

type commit struct {
	s    *store
	n    model.CheckpointNotice
	span *trace.Span
}

func (c *commit) put(bucket, id string) {
	c.s.at.Op++
	c.s.ops[bucket] = append(c.s.ops[bucket], model.Op{ID: c.s.at.Op, Kind: model.OpPut, Checksum: model.Checksum(c.s.at.Op * 7), ObjectType: "t", ObjectID: id, Data: "{}"})
	c.n.Buckets = append(c.n.Buckets, bucket)
}

func (c *commit) lookup(key string, list ...string) {
	c.s.at.Op++
	c.s.lookups[key] = append(c.s.lookups[key], value{c.s.at.Op, list})
	c.n.Lookups = append(c.n.Lookups, key)
}

func (s *store) Subscribe(_ model.StreamID, deliver func(model.CheckpointNotice, *trace.Span), lost func()) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deliver, s.lost = deliver, lost
	return func() {}, nil
}

func (s *store) Head(context.Context) (backend.Head, error) {
	if err := s.enter("Head", 0); err != nil {
		return backend.Head{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return backend.Head{Checkpoint: s.at, Run: 1, Sequence: s.sequence, State: model.StreamHead{Heartbeat: s.beat}}, nil
}

func (s *store) Lookups(_ context.Context, at model.OpID, keys []string, _ int) ([][]string, error) {
	if err := s.enter("Lookups", len(keys)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([][]string, len(keys))
	for i, k := range keys {
		for _, v := range slices.Backward(s.lookups[k]) {
			if v.id <= at {
				out[i] = v.list
				break
			}
		}
	}
	return out, nil
}

func (s *store) Checksums(_ context.Context, at model.OpID, buckets []string) ([]model.BucketState, error) {
	if err := s.enter("Checksums", len(buckets)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]model.BucketState, len(buckets))
	for i, b := range buckets {
		if at < s.cleared[b] {
			return nil, backend.ErrInvalid
		}
		for _, op := range s.ops[b] {
			if op.ID <= at {
				out[i].Checksum += op.Checksum
				out[i].Count++
			}
		}
	}
	return out, nil
}

func (s *store) Reached(_ context.Context, at model.Position, keys []string) ([]uint64, error) {
	if err := s.enter("Reached", len(keys)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]uint64, len(keys))
	for i, k := range keys {
		if w := s.writes[k]; w.Head <= at {
			out[i] = w.ID
		}
	}
	return out, nil
}

func (s *store) Ops(_ context.Context, at model.OpID, positions []chunk.Position, maxChunks int, yield func(chunk.Raw) error) error {
	if err := s.enter("Ops", len(positions)); err != nil {
		return err
	}
	const most = 1000
	n := 0
	for _, p := range positions {
		after := p.After
		for {
			raw := chunk.Raw{Bucket: p.Bucket, Chunk: session.Chunk{After: after, NextAfter: after}}
			s.mu.Lock()
			raw.Invalid = at < s.cleared[p.Bucket]
			for _, op := range s.ops[p.Bucket] {
				if op.ID <= after || op.ID > at || raw.Invalid {
					continue
				}
				if raw.Count == most {
					raw.HasMore = true
					break
				}
				raw.Ops = wire.AppendOp(raw.Ops, &op)
				raw.Count++
				raw.NextAfter = op.ID
				raw.Target = max(raw.Target, op.Target)
			}
			s.mu.Unlock()
			if err := yield(raw); err != nil {
				return err
			}
			after = raw.NextAfter
			if n++; n == maxChunks || !raw.HasMore {
				break
			}
		}
	}
	return nil
}

// plan gives the fixed buckets, and those that lookup "of:<user>" leads to.
type plan struct {
	fixed   []string
	dynamic bool
}

func (p plan) Querier(r rules.Request) (Querier, error) {
	var claims struct{ Sub string }
	err := json.Unmarshal(r.Token, &claims)
	return &querier{p, claims.Sub}, err
}

type querier struct {
	plan
	user string
}

func (q *querier) Streams() []rules.StreamInfo {
	return []rules.StreamInfo{{Name: "s", IsDefault: true}}
}
func (q *querier) Static() bool { return !q.dynamic }
func (q *querier) Resolve(lookup func([]string) ([][]string, error)) (*rules.Buckets, error) {
	out := &rules.Buckets{}
	add := func(id string) {
		out.Buckets = append(out.Buckets, rules.Bucket{ID: strings.ReplaceAll(id, "$user", q.user), Priority: 3, Definition: "s", Reasons: []rules.Reason{{Default: true}}})
	}
	for _, b := range q.fixed {
		add(b)
	}
	if !q.dynamic {
		return out, nil
	}
	out.Lookups = []string{"of:" + q.user}
	found, err := lookup(out.Lookups)
	if err != nil {
		return nil, err
	}
	for _, b := range found[0] {
		add(b)
	}
	if len(out.Buckets) > 3 {
		return nil, &rules.LimitError{Message: "Too many buckets: 4 (limit of 3)", ByDefinition: map[string]int{"s": 4}}
	}
	return out, nil
}

// sink keeps what it was sent.
type sink struct {
	mu     sync.Mutex
	lines  []string
	gate   chan struct{} // if set, Send waits for it
	ended  bool
	err    error
	sends  int
	failed error
	abort  sync.Once
}

func (k *sink) Send(l *Lines) error {
	if k.gate != nil {
		if _, ok := <-k.gate; !ok {
			return io.EOF
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sends++
	from := 0
	for _, p := range l.Parts {
		if p.Chunk != nil {
			k.lines = append(k.lines, strings.TrimSpace(string(p.Chunk.Bytes)))
			continue
		}
		k.lines = append(k.lines, strings.TrimSpace(string(l.Plain[from:p.End])))
		from = p.End
	}
	return k.failed
}

func (k *sink) End(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended, k.err = true, err
}

// end returns whether it has ended, and how.
func (k *sink) end() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ended, k.err
}

func (k *sink) Abort() {
	if k.gate != nil {
		k.abort.Do(func() { close(k.gate) })
	}
}

func (k *sink) Sent() int64 { return 0 }

// take returns the lines since the last call, shortened to what tests look at.
func (k *sink) take() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for _, l := range k.lines {
		kind := l[2 : strings.Index(l[2:], `"`)+2]
		switch kind {
		case "checkpoint", "checkpoint_diff", "checkpoint_complete", "partial_checkpoint_complete":
			_, rest, _ := strings.Cut(l, `"last_op_id":"`)
			id, rest, _ := strings.Cut(rest, `"`)
			out = append(out, kind+" "+id)
			for _, b := range strings.Split(rest, `"bucket":"`)[1:] {
				out[len(out)-1] += " " + b[:strings.Index(b, `"`)]
			}
			if _, w, ok := strings.Cut(rest, `"write_checkpoint":"`); ok {
				out[len(out)-1] += " write=" + w[:strings.Index(w, `"`)]
			}
			if _, r, ok := strings.Cut(rest, `"removed_buckets":["`); ok {
				out[len(out)-1] += " removed=" + r[:strings.Index(r, `"`)]
			}
		case "data":
			_, b, _ := strings.Cut(l, `"bucket":"`)
			out = append(out, fmt.Sprintf("data %s %d", b[:strings.Index(b, `"`)], strings.Count(l, `"op_id"`)))
		default:
			out = append(out, l)
		}
	}
	k.lines = nil
	return strings.Join(out, "; ")
}

// rig is a hub on a store.
type rig struct {
	t     *testing.T
	store *store
	hub   *Hub
	stats *Stats
	ctx   context.Context
}

// inRig runs a test in a bubble of time.
func inRig(t *testing.T, p plan, f func(r *rig)) { inRigWith(t, p, chunk.Options{}, f) }

func inRigWith(t *testing.T, p plan, o chunk.Options, f func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		r := &rig{t: t, store: newStore(), stats: new(Stats), ctx: ctx}
		cache := chunk.New(ctx, r.store, o)
		r.hub = NewHub(ctx, Options{Stream: 1, Plan: p, Reader: r.store, Chunks: cache, Limits: Limits{Buckets: 100, Results: 100}, Stats: r.stats, Log: slog.New(slog.DiscardHandler)})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := cache.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := r.hub.Run(ctx, r.store); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		f(r)
		stop()
		wg.Wait()
	})
}

func (r *rig) open(user string, change func(*Request)) (*Session, *sink) {
	r.t.Helper()
	req := Request{Rules: rules.Request{Token: fmt.Appendf(nil, `{"sub":%q}`, user)}, UserKey: user, Expires: time.Now().Add(time.Hour)}
	if change != nil {
		change(&req)
	}
	s, err := r.hub.Open(r.ctx, req)
	if err != nil {
		r.t.Fatal(err)
	}
	return s, &sink{}
}

func (r *rig) start(user string) (*Session, *sink) {
	s, k := r.open(user, nil)
	s.Start(k)
	synctest.Wait()
	return s, k
}

func (r *rig) want(k *sink, want string) {
	r.t.Helper()
	synctest.Wait()
	if got := k.take(); got != want {
		r.t.Fatalf("got  %s\nwant %s", got, want)
	}
}
