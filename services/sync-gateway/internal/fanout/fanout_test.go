package fanout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"

	"github.com/sluicesync/sluice/libs/core/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
		deliver(c.n, nil)
	}
	return c.n.Checkpoint
}

type commit struct {
	s *store
	n model.CheckpointNotice
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

func TestWake(t *testing.T) {
	inRig(t, plan{fixed: []string{"$user", "all"}}, func(r *rig) {
		_, a := r.start("a")
		_, b := r.start("b")
		r.want(a, "checkpoint 0 a all; checkpoint_complete 0")
		r.want(b, "checkpoint 0 all b; checkpoint_complete 0")
		r.store.commit(func(c *commit) { c.put("a", "1") })
		r.want(a, "checkpoint_diff 1 a; data a 1; checkpoint_complete 1")
		r.want(b, "")
		r.store.commit(func(c *commit) { c.put("all", "1"); c.put("b", "2") })
		r.want(a, "checkpoint_diff 3 all; data all 1; checkpoint_complete 3")
		r.want(b, "checkpoint_diff 3 all b; data all 1; data b 1; checkpoint_complete 3")
		// Decision 4: only whom it concerns; decision 3: one read of a shared chunk.
		if n := r.stats.Wakeups.Load(); n != 3 {
			t.Errorf("%d wakeups, want 3", n)
		}
		if n := r.store.keys["Ops"]; n != 3 {
			t.Errorf("%d chunks read, want 3", n)
		}
		// One write a checkpoint.
		if a.sends != 3 {
			t.Errorf("%d sends, want 3", a.sends)
		}
		r.store.commit(func(c *commit) { c.put("nobody", "1") })
		r.want(a, "")
		if n := r.stats.Wakeups.Load(); n != 3 {
			t.Errorf("%d wakeups, want 3", n)
		}
	})
}

// TestWriteCheckpointWhileOpening: INV-28. A write checkpoint that is announced while
// a session reads its first checkpoint, and at that same checkpoint, is not lost.
func TestWriteCheckpointWhileOpening(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}}, func(r *rig) {
		r.store.commit(func(c *commit) { c.put("all", "1") })
		synctest.Wait()
		var once sync.Once
		r.store.before = func(call string) {
			if call != "Checksums" {
				return
			}
			once.Do(func() {
				time.Sleep(time.Millisecond) // Reached has been answered
				r.store.mu.Lock()
				w := model.WriteCheckpoint{UserKey: "a", ID: 5, Head: r.store.at.Position}
				r.store.writes["a"] = w
				r.store.sequence++
				n := model.CheckpointNotice{Run: 1, Sequence: r.store.sequence, Checkpoint: r.store.at, Reached: []model.WriteCheckpoint{w}}
				r.store.mu.Unlock()
				r.store.deliver(n, nil)
				time.Sleep(time.Millisecond) // the hub has applied it
			})
		}
		_, a := r.start("a")
		r.want(a, "checkpoint 1 all; data all 1; checkpoint_complete 1; checkpoint_diff 1 write=5; checkpoint_complete 1")
	})
}

// TestLookups: INV-25, INV-32. A bucket comes and goes with a parameter row.
func TestLookups(t *testing.T) {
	inRig(t, plan{dynamic: true}, func(r *rig) {
		_, a := r.start("a")
		r.want(a, "checkpoint 0; checkpoint_complete 0")
		r.store.commit(func(c *commit) { c.put("x", "1"); c.lookup("of:a", "x") })
		r.want(a, "checkpoint_diff 2 x; data x 1; checkpoint_complete 2")
		r.store.commit(func(c *commit) { c.put("x", "2") })
		r.want(a, "checkpoint_diff 3 x; data x 1; checkpoint_complete 3")
		r.store.commit(func(c *commit) { c.lookup("of:b", "x") })
		r.want(a, "")
		r.store.commit(func(c *commit) { c.lookup("of:a", "y") })
		r.want(a, "checkpoint_diff 5 y removed=x; checkpoint_complete 5")
		r.store.commit(func(c *commit) { c.put("x", "3") })
		r.want(a, "")
		if n := len(r.hub.buckets); n != 1 {
			t.Errorf("%d buckets in the index, want 1", n)
		}
		// Beyond the limit the stream breaks off with the code.
		r.store.commit(func(c *commit) { c.lookup("of:a", "1", "2", "3", "4") })
		synctest.Wait()
		if ended, err := a.end(); !ended || errs.CodeOf(err) != errs.S2305 || !strings.HasSuffix(err.Error(), "Too many buckets: 4 (limit of 3): s 4") {
			t.Errorf("%v", err)
		}
		if len(r.hub.buckets)+len(r.hub.keys)+len(r.hub.users)+len(r.hub.sessions) != 0 {
			t.Error("the index is not empty")
		}
	})
}

// TestGap: INV-29. Lost notices are noticed by their number.
func TestGap(t *testing.T) {
	inRig(t, plan{fixed: []string{"$user"}, dynamic: true}, func(r *rig) {
		_, a := r.start("a")
		a.take()
		r.store.mute = true
		r.store.commit(func(c *commit) { c.put("a", "1") })
		r.store.commit(func(c *commit) { c.lookup("of:a", "x"); c.put("x", "1") })
		r.want(a, "")
		r.store.mute = false
		r.store.commit(func(c *commit) { c.put("unrelated", "1") })
		r.want(a, "checkpoint_diff 4 a x; data a 1; data x 1; checkpoint_complete 4")
	})
}

// TestSilence: INV-29. Lost notices are noticed by silence, or when the
// connection is back.
func TestSilence(t *testing.T) {
	inRig(t, plan{fixed: []string{"$user"}}, func(r *rig) {
		_, a := r.start("a")
		a.take()
		r.store.mute = true
		r.store.commit(func(c *commit) { c.put("a", "1") })
		time.Sleep(5 * time.Second)
		r.want(a, "checkpoint_diff 1 a; data a 1; checkpoint_complete 1")
		r.store.writes["a"] = model.WriteCheckpoint{UserKey: "a", ID: 9, Head: "00000003"}
		r.store.commit(nil)
		r.store.lost()
		r.want(a, "checkpoint_diff 1 write=9; checkpoint_complete 1")
	})
}

// TestNewRun: another writer's notices begin with a comparison.
func TestNewRun(t *testing.T) {
	inRig(t, plan{fixed: []string{"$user"}}, func(r *rig) {
		_, a := r.start("a")
		a.take()
		r.store.mute = true
		at := r.store.commit(func(c *commit) { c.put("a", "1") })
		r.store.deliver(model.CheckpointNotice{Run: 2, Sequence: r.store.sequence + 1, Checkpoint: at}, nil)
		r.want(a, "checkpoint_diff 1 a; data a 1; checkpoint_complete 1")
	})
}

// TestFreshHead: the first checkpoint is read after the client came, even while
// an older read is under way, and many share it.
func TestFreshHead(t *testing.T) {
	inRig(t, plan{fixed: []string{"$user"}}, func(r *rig) {
		gate := make(chan struct{})
		r.store.before = func(call string) {
			if call == "Head" {
				<-gate
			}
		}
		before := r.store.count("Head")
		type opened struct {
			user string
			k    *sink
		}
		out := make(chan opened, 100)
		open := func(user string) {
			go func() {
				s, k := r.open(user, nil)
				s.Start(k)
				out <- opened{user, k}
			}()
		}
		open("first")
		synctest.Wait()
		r.store.mute = true
		r.store.commit(func(c *commit) { c.put("late", "1") })
		for range 50 {
			open("late")
		}
		synctest.Wait()
		close(gate)
		synctest.Wait()
		if n := r.store.count("Head") - before; n != 2 {
			t.Errorf("%d reads of the head, want 2", n)
		}
		for range 51 {
			if o := <-out; o.user == "late" {
				r.want(o.k, "checkpoint 1 late; data late 1; checkpoint_complete 1")
			}
		}
	})
}

// TestRegisterLate: a commit between a session's reads and its place in the
// index is not missed, at whichever read it comes.
func TestRegisterLate(t *testing.T) {
	for _, call := range []string{"Head", "Lookups", "Checksums", "Reached"} {
		t.Run(call, func(t *testing.T) {
			inRig(t, plan{fixed: []string{"$user"}, dynamic: true}, func(r *rig) {
				r.store.commit(func(c *commit) { c.lookup("of:a", "x") })
				synctest.Wait()
				done := false
				r.store.before = func(c string) {
					if c != call || done {
						return
					}
					done = true
					r.store.writes["a"] = model.WriteCheckpoint{UserKey: "a", ID: 5, Head: "00000003"}
					r.store.commit(func(c *commit) { c.put("a", "1"); c.put("x", "1"); c.lookup("of:a", "x", "y"); c.put("y", "1") })
					time.Sleep(time.Millisecond) // the hub applies it
				}
				_, a := r.start("a")
				time.Sleep(time.Second)
				got := a.take()
				if !strings.HasSuffix(got, "checkpoint_complete 5") || !strings.Contains(got, "data y 1") || !strings.Contains(got, "data x 1") || !strings.Contains(got, "data a 1") || !strings.Contains(got, "write=5") {
					t.Errorf("%s", got)
				}
			})
		})
	}
}

// TestWholeCheckpoint: D1. Under random commits that each change two buckets,
// every complete line of a client stands for both.
func TestWholeCheckpoint(t *testing.T) {
	for seed := range uint64(20) {
		inRig(t, plan{fixed: []string{"p", "q"}}, func(r *rig) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			var sinks []*sink
			for i := range 200 {
				if i%20 == 0 {
					s, k := r.open(fmt.Sprint(i), nil)
					s.Start(k)
					sinks = append(sinks, k)
				}
				r.store.commit(func(c *commit) { c.put("p", "1"); c.put("q", "1") })
				if rnd.IntN(3) == 0 {
					time.Sleep(paceEvery)
					synctest.Wait()
				}
			}
			time.Sleep(paceEvery)
			synctest.Wait()
			for _, k := range sinks {
				p, q := 0, 0
				for _, l := range strings.Split(k.take(), "; ") {
					var n int
					if _, err := fmt.Sscanf(l, "data p %d", &n); err == nil {
						p += n
					}
					if _, err := fmt.Sscanf(l, "data q %d", &n); err == nil {
						q += n
					}
					if strings.HasPrefix(l, "checkpoint_complete") && p != q {
						t.Fatalf("seed %d: D1: %d ops of p, %d of q", seed, p, q)
					}
				}
				if p != 200 || q != 200 {
					t.Fatalf("seed %d: %d and %d ops in the end", seed, p, q)
				}
			}
		})
	}
}

// TestSlowClient: D8, INV-30. It skips to the newest checkpoint, and the others
// go on.
func TestSlowClient(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}}, func(r *rig) {
		s, slow := r.open("slow", nil)
		slow.gate = make(chan struct{})
		s.Start(slow)
		_, quick := r.start("quick")
		for range 1000 {
			r.store.commit(func(c *commit) { c.put("all", "1") })
			time.Sleep(paceEvery)
			synctest.Wait()
		}
		if got := quick.take(); !strings.HasSuffix(got, "data all 1; checkpoint_complete 1000") {
			t.Error(got[len(got)-100:])
		}
		if n := len(s.marks.changed); n != 1 {
			t.Errorf("%d marks, want 1", n)
		}
		slow.gate <- struct{}{}
		slow.gate <- struct{}{}
		r.want(slow, "checkpoint 0 all; checkpoint_complete 0; checkpoint_diff 1000 all; data all 1000; checkpoint_complete 1000")
		slow.Abort()
	})
}

// TestTimes: what is told of a stream's first checkpoint, and of later ones, is
// the time since the client came, and since the oldest change that it waited for.
func TestTimes(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}, dynamic: true}, func(r *rig) {
		var opened, caught []time.Duration
		r.stats.Opened = func(d time.Duration) { opened = append(opened, d) }
		r.stats.Caught = func(d time.Duration) { caught = append(caught, d) }
		s, k := r.open("u", nil)
		time.Sleep(time.Second)
		s.Start(k)
		synctest.Wait()
		k.gate = make(chan struct{})
		r.store.commit(func(c *commit) { c.put("all", "1") })
		synctest.Wait() // the line is on its way
		time.Sleep(2 * time.Second)
		r.store.commit(func(c *commit) { c.put("all", "2") })
		synctest.Wait()
		time.Sleep(3 * time.Second)
		k.gate <- struct{}{}
		synctest.Wait()
		time.Sleep(4 * time.Second)
		k.gate <- struct{}{}
		synctest.Wait()
		k.gate = nil
		// What turns out to be no change is none to wait for.
		r.store.commit(func(c *commit) { c.lookup("of:u") })
		synctest.Wait()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		r.store.commit(func(c *commit) { c.put("all", "3") })
		synctest.Wait()
		if n := len(caught); n == 3 {
			if caught[2] > time.Second {
				t.Errorf("a time without a change counts: %v", caught)
			}
			caught = caught[:2]
		} else {
			t.Errorf("caught %d", n)
		}
		if !slices.Equal(opened, []time.Duration{time.Second}) || !slices.Equal(caught, []time.Duration{5 * time.Second, 7 * time.Second}) {
			t.Errorf("opened %v, caught %v", opened, caught)
		}
		k.Abort()
	})
}

// TestRelieve: D8. Clients that hold all the memory for chunks are cut off, the
// slowest first, and the others get their data.
func TestRelieve(t *testing.T) {
	inRigWith(t, plan{fixed: []string{"$user"}}, chunk.Options{MaxPinned: 1000}, func(r *rig) {
		r.store.commit(func(c *commit) {
			for i := range 20 {
				c.put("slow", fmt.Sprint(i))
				c.put("good", fmt.Sprint(i))
			}
		})
		s, slow := r.open("slow", nil)
		slow.gate = make(chan struct{})
		s.Start(slow)
		synctest.Wait()
		_, good := r.start("good")
		if got := good.take(); strings.Contains(got, "data") {
			t.Fatalf("the bound was not reached: %s", got)
		}
		time.Sleep(2 * grace)
		synctest.Wait()
		if ended, err := slow.end(); !ended || !errors.Is(err, ErrSlow) && !errors.Is(err, io.EOF) {
			t.Errorf("ended %t, %v", ended, err)
		}
		if got := good.take(); !strings.Contains(got, "data good 20; checkpoint_complete 40") {
			t.Errorf("%s", got)
		}
	})
}

// TestStale: INV-19. A session that cannot complete a checkpoint gets a newer
// one though the source is idle and no notice comes.
func TestStale(t *testing.T) {
	inRig(t, plan{fixed: []string{"a"}}, func(r *rig) {
		r.store.commit(func(c *commit) { c.put("a", "1") })
		s, k := r.open("u", nil) // reads checkpoint 1
		r.store.mute = true
		r.store.commit(func(c *commit) { c.put("a", "1"); c.put("a", "2") })
		r.store.mu.Lock() // compaction
		ops := r.store.ops["a"]
		ops[0] = model.Op{ID: ops[0].ID, Kind: model.OpMove, Checksum: ops[0].Checksum, Target: ops[1].ID}
		r.store.mu.Unlock()
		s.Start(k)
		time.Sleep(100 * time.Millisecond)
		r.want(k, "checkpoint 1 a; data a 1; checkpoint_diff 3 a; data a 2; checkpoint_complete 3")
	})
}

// TestInvalid: spec/02 §6. A checkpoint that compaction has passed is dropped
// without a line, and everything is read at the next.
func TestInvalid(t *testing.T) {
	inRig(t, plan{fixed: []string{"a", "b"}}, func(r *rig) {
		_, k := r.start("u")
		k.take()
		done := false
		r.store.before = func(call string) {
			if call != "Checksums" || done {
				return
			}
			done = true
			r.store.mu.Lock()
			r.store.at.Op++
			r.store.at.Position = "00000009"
			id := r.store.at.Op
			r.store.ops["a"] = []model.Op{{ID: id, Kind: model.OpClear, Checksum: 5}}
			r.store.cleared["a"] = id
			r.store.mu.Unlock()
		}
		r.store.commit(func(c *commit) { c.put("a", "1"); c.put("b", "1") })
		time.Sleep(time.Second)
		r.want(k, "checkpoint_diff 3 a b; data a 1; data b 1; checkpoint_complete 3")
	})
}

func TestExpiry(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}}, func(r *rig) {
		s, k := r.open("u", func(q *Request) { q.Expires = time.Now().Add(70 * time.Second); q.Keepalive = true })
		s.Start(k)
		r.want(k, "checkpoint 0 all; checkpoint_complete 0")
		var kept []string
		for range 80 {
			time.Sleep(time.Second)
			synctest.Wait()
			if l := k.take(); l != "" {
				kept = append(kept, l)
			}
		}
		// About every 20 s, once 20 s before, and at the end.
		if len(kept) < 4 || len(kept) > 6 || !strings.HasSuffix(kept[len(kept)-1], `{"token_expires_in":0}`) || !slices.Contains(kept, `{"token_expires_in":20}`) {
			t.Errorf("%q", kept)
		}
		if ended, err := k.end(); !ended || err != nil {
			t.Errorf("ended %t, %v", ended, err)
		}
	})
	// INV-33: nothing but that line once it has expired, whatever waits; and
	// nothing else is counted.
	inRig(t, plan{fixed: []string{"all"}}, func(r *rig) {
		r.store.commit(func(c *commit) { c.put("all", "1") })
		var sum Summary
		s, k := r.open("u", func(q *Request) {
			q.Expires = time.Now().Add(-time.Second)
			q.Ended = func(x Summary) { sum = x }
		})
		s.Start(k)
		const only = `{"token_expires_in":0}`
		r.want(k, only)
		if ended, err := k.end(); !ended || err != nil {
			t.Errorf("ended %t, %v", ended, err)
		}
		if sum.Completed != 0 || sum.Counts.Ops() != 0 || sum.PlainBytes != int64(len(only)+1) {
			t.Errorf("counted %+v", sum)
		}
		if n := r.hub.stats; n.Ops.Load() != 0 || n.Deliveries.Load() != 0 || n.PlainBytes.Load() != uint64(sum.PlainBytes) {
			t.Errorf("counted %d ops, %d deliveries, %d bytes", n.Ops.Load(), n.Deliveries.Load(), n.PlainBytes.Load())
		}
	})
}

// TestOutage: while the store is away, sessions stay and catch up.
func TestOutage(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}}, func(r *rig) {
		_, k := r.start("u")
		k.take()
		r.store.mu.Lock()
		r.store.fail = errors.New("away")
		r.store.mu.Unlock()
		r.store.commit(func(c *commit) { c.put("all", "1") })
		time.Sleep(10 * time.Second)
		r.want(k, "")
		r.store.mu.Lock()
		r.store.fail = nil
		r.store.mu.Unlock()
		time.Sleep(2 * time.Second)
		r.want(k, "checkpoint_diff 1 all; data all 1; checkpoint_complete 1")
	})
}

// TestEnd: sessions end at a line's end, spread over the time, and no new one
// is taken.
func TestEnd(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}}, func(r *rig) {
		var ks []*sink
		for range 10 {
			_, k := r.start("u")
			ks = append(ks, k)
		}
		r.hub.End(ErrDraining, time.Second)
		time.Sleep(500*time.Millisecond + time.Nanosecond)
		synctest.Wait()
		n := 0
		for _, k := range ks {
			if ended, _ := k.end(); ended {
				n++
			}
		}
		if n < 4 || n > 7 {
			t.Errorf("%d of 10 ended at half time", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for _, k := range ks {
			if ended, err := k.end(); !ended || err != nil {
				t.Errorf("ended %t, %v", ended, err)
			}
		}
		if _, err := r.hub.Open(r.ctx, Request{Rules: rules.Request{Token: []byte("{}")}, Expires: time.Now().Add(time.Hour)}); errs.CodeOf(err) != errs.S2003 {
			t.Error(err)
		}
	})
}

// TestBatched: a thousand clients that come at once cost a few calls.
func TestBatched(t *testing.T) {
	inRig(t, plan{fixed: []string{"$user"}, dynamic: true}, func(r *rig) {
		r.store.before = func(string) { time.Sleep(time.Millisecond) }
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				s, k := r.open(fmt.Sprint("u", i), nil)
				s.Start(k)
			})
		}
		wg.Wait()
		synctest.Wait()
		for _, call := range []string{"Head", "Lookups", "Checksums", "Reached"} {
			if n := r.store.count(call); n > 20 {
				t.Errorf("%d calls of %s", n, call)
			}
		}
	})
}
