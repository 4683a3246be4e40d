package fanout

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
// the time since the client came, and since the oldest change that it waited for,
// with that one's trace.
func TestTimes(t *testing.T) {
	inRig(t, plan{fixed: []string{"all"}, dynamic: true}, func(r *rig) {
		var opened, caught []time.Duration
		r.stats.Opened = func(d time.Duration) { opened = append(opened, d) }
		var traces []string
		r.stats.Caught = func(d time.Duration, trace string) { caught, traces = append(caught, d), append(traces, trace) }
		tracer := trace.New(sdktrace.NewTracerProvider())
		first, second := tracer.Root("first", trace.Consumer, ""), tracer.Root("second", trace.Consumer, "")
		s, k := r.open("u", nil)
		time.Sleep(time.Second)
		s.Start(k)
		synctest.Wait()
		k.gate = make(chan struct{})
		r.store.commit(func(c *commit) {
			c.put("all", "1")
			c.span = first
		})
		synctest.Wait() // the line is on its way
		time.Sleep(2 * time.Second)
		r.store.commit(func(c *commit) {
			c.put("all", "2")
			c.span = second
		})
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
		if !slices.Equal(traces, []string{first.TraceID(), second.TraceID(), ""}) || first.TraceID() == second.TraceID() {
			t.Errorf("traces %q", traces)
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
