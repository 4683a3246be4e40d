package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// churn returns a store with n buckets of random histories: rows that are put
// and removed again and again, at the checkpoint of all.
func churn(seed uint64, buckets, ops int) *fakeStore {
	rnd := rand.New(rand.NewPCG(seed, 1))
	f := &fakeStore{buckets: map[string][]model.Op{}, changes: map[string]uint64{}, lookups: 250}
	for range ops {
		f.checkpoint++
		name := fmt.Sprintf(`1#by_user["%d"]`, rnd.IntN(buckets))
		r := rnd.IntN(8)
		op := model.Op{
			ID: f.checkpoint, Kind: model.OpPut, Checksum: model.Checksum(rnd.Uint32()),
			Key: model.RowKey{Row: model.RowID{byte(r)}}, ObjectType: "todos", ObjectID: fmt.Sprint(r),
			Data: fmt.Sprintf(`{"v":%d}`, f.checkpoint),
		}
		if rnd.IntN(3) == 0 {
			op.Kind, op.Data = model.OpRemove, ""
		}
		f.buckets[name] = append(f.buckets[name], op)
		f.changes[name]++
	}
	return f
}

// reductions of every bucket: what must not change.
func (f *fakeStore) reductions() map[string]reduced {
	all := map[string]reduced{}
	for name, ops := range f.snapshot() {
		all[name] = reduce(ops)
	}
	return all
}

type running struct {
	client  pb.CompactorClient
	metrics *prometheus.Registry
	health  *service.Health
}

// start runs a compactor on f until the test ends.
func start(t *testing.T, f *fakeStore, cfg Config) running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	env := service.Env{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: &service.Health{}}
	storeLis, store := rpc.Pipe()
	lis, conn := rpc.Pipe()
	storeDone, done := make(chan error, 1), make(chan error, 1)
	storeCtx, stopStore := context.WithCancel(context.Background())
	go func() { storeDone <- rpc.Serve(storeCtx, storeLis, env, f.register) }()
	metrics := prometheus.NewRegistry()
	runEnv := env
	runEnv.Metrics = metrics
	go func() { done <- Run(ctx, cfg, Conns{Store: store, Listener: lis}, runEnv) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		stopStore()
		if err := <-storeDone; err != nil {
			t.Errorf("store: %v", err)
		}
		conn.Close()
		store.Close()
	})
	return running{pb.NewCompactorClient(conn), metrics, env.Health}
}

// onDemand: nothing happens but what Compact asks for.
var onDemand = Config{Interval: -1, MoveBatch: 7, ClearBatch: 5, Reemit: -1}

func TestCompact(t *testing.T) {
	f := churn(1, 5, 3000)
	f.requests = []time.Duration{30 * time.Minute, time.Hour, 2 * time.Hour, 59 * time.Minute, 61 * time.Minute}
	want := f.reductions()
	c := start(t, f, onDemand)
	reply, err := c.client.Compact(t.Context(), &pb.CompactRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(f.requests); got != "[30m0s 0s 0s 59m0s 0s]" {
		t.Errorf("requests that are left: %s", got)
	}
	if reply.GetBuckets() != 5 || reply.GetOpsRead() != 3000 || reply.GetLookupsRemoved() != 250 {
		t.Errorf("reply %v", reply)
	}
	if d := cmp.Diff(want, f.reductions()); d != "" {
		t.Errorf("D7: clients end up with something else: %s", d)
	}
	left := 0
	for name, ops := range f.snapshot() {
		left += len(ops)
		if f.changes[name] != 0 {
			t.Errorf("bucket %s is not marked as compacted", name)
		}
	}
	if got := uint64(3000 - left); got != reply.GetOpsCleared() || left > 500 {
		t.Errorf("%d ops left, %d cleared", left, reply.GetOpsCleared())
	}
	again, err := c.client.Compact(t.Context(), &pb.CompactRequest{})
	if err != nil || again.GetOpsMoved() != 0 || again.GetOpsCleared() != 0 {
		t.Errorf("compacting again: %v, %v", again, err)
	}
}

// TestNothingAboveTheCheckpoint: INV-17.
func TestNothingAboveTheCheckpoint(t *testing.T) {
	f := churn(2, 1, 200)
	f.checkpoint = 100
	before := f.snapshot()
	c := start(t, f, onDemand)
	if _, err := c.client.Compact(t.Context(), &pb.CompactRequest{}); err != nil {
		t.Fatal(err)
	}
	for name, ops := range f.snapshot() {
		if d := cmp.Diff(before[name][100:], ops[len(ops)-100:]); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if d := cmp.Diff(reduce(before[name]), reduce(ops)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestOnlySomeBuckets(t *testing.T) {
	f := churn(3, 3, 300)
	before := f.snapshot()
	c := start(t, f, onDemand)
	reply, err := c.client.Compact(t.Context(), &pb.CompactRequest{Buckets: []string{`1#by_user["1"]`}, SkipLookups: true})
	if err != nil {
		t.Fatal(err)
	}
	if reply.GetBuckets() != 1 || reply.GetLookupsRemoved() != 0 || f.lookups != 250 {
		t.Errorf("reply %v", reply)
	}
	for name, ops := range f.snapshot() {
		if unchanged := cmp.Equal(before[name], ops); unchanged != (name != `1#by_user["1"]`) {
			t.Errorf("%s unchanged: %v", name, unchanged)
		}
	}
	if _, err := c.client.Compact(t.Context(), &pb.CompactRequest{Buckets: []string{"by_user"}}); errs.CodeOf(err) != errs.S2001 {
		t.Errorf("a bucket name that is none: %v", err)
	}
}

func TestManyPages(t *testing.T) {
	f := churn(4, 2500, 10_000)
	want := f.reductions()
	c := start(t, f, onDemand)
	reply, err := c.client.Compact(t.Context(), &pb.CompactRequest{})
	if err != nil || reply.GetBuckets() != uint64(len(want)) || reply.GetOpsRead() != 10_000 {
		t.Errorf("%v, %v", reply, err)
	}
	if d := cmp.Diff(want, f.reductions()); d != "" {
		t.Error(d)
	}
}

// TestFaults breaks every call twice: failed, and failed but carried out. After
// each the buckets reduce to the same; a run undisturbed finishes (INV-20).
func TestFaults(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("carried out %v", after), func(t *testing.T) {
			f := churn(5, 2, 120)
			want := f.reductions()
			// Number of calls until the fault, one more each run until a run
			// sees none.
			count, at := 0, 0
			f.fault = func(_ string, isAfter bool) error {
				if isAfter != after {
					return nil
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				if count++; count == at {
					return status.Error(codes.Unavailable, "injected")
				}
				return nil
			}
			cfg := onDemand
			cfg.Parallel = 1
			c := start(t, f, cfg)
			initial := f.snapshot()
			for at = 1; ; at++ {
				f.mu.Lock()
				count = 0
				for name, ops := range initial {
					f.buckets[name] = ops
				}
				f.lookups = 250
				f.mu.Unlock()
				_, err := c.client.Compact(t.Context(), &pb.CompactRequest{})
				if d := cmp.Diff(want, f.reductions()); d != "" {
					t.Fatalf("fault at call %d: %s", at, d)
				}
				f.mu.Lock()
				hit := count >= at
				count = -1 << 30
				f.mu.Unlock()
				if !hit {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				if err == nil {
					t.Fatalf("fault at call %d is not reported", at)
				}
				if _, err := c.client.Compact(t.Context(), &pb.CompactRequest{}); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, f.reductions()); d != "" {
					t.Fatalf("after the run that followed call %d: %s", at, d)
				}
				left := 0
				for _, ops := range f.snapshot() {
					left += len(ops)
				}
				if left > 40 || f.lookups != 0 {
					t.Fatalf("after the run that followed call %d: %d ops and %d lookups left", at, left, f.lookups)
				}
			}
			if at < 20 {
				t.Errorf("only %d calls broken", at)
			}
		})
	}
}

// TestTwoAtOnce: INV-20, two compactors on the same buckets, also where no turns
// keep them apart.
func TestTwoAtOnce(t *testing.T) {
	for seed := range uint64(6) {
		f := churn(seed, 3, 1000)
		if seed%2 == 0 {
			f.fault = func(call string, _ bool) error {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.holders = nil
				return nil
			}
		}
		want := f.reductions()
		a, b := start(t, f, onDemand), start(t, f, Config{Interval: -1, MoveBatch: 3, ClearBatch: 11})
		errc := make(chan error, 2)
		for _, c := range []running{a, b} {
			go func() {
				_, err := c.client.Compact(t.Context(), &pb.CompactRequest{})
				errc <- err
			}()
		}
		if err := errors.Join(<-errc, <-errc); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, f.reductions()); d != "" {
			t.Errorf("seed %d: %s", seed, d)
		}
	}
}

// TestReplicas: two that run by themselves share the buckets: each is compacted
// once, by one of them, and clients end up with the same.
func TestReplicas(t *testing.T) {
	f := churn(10, 300, 30_000)
	want := f.reductions()
	var scans atomic.Int32
	done := make(chan struct{}) // closed when all buckets are compacted
	f.fault = func(call string, after bool) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if call == "Scan" && !after {
			scans.Add(1)
		}
		if call != "Replace" || !after {
			return nil
		}
		for _, n := range f.changes {
			if n > 0 {
				return nil
			}
		}
		select {
		case <-done:
		default:
			close(done)
		}
		return nil
	}
	cfg := Config{Rate: -1, Busy: 1, Reemit: -1}
	a, b := start(t, f, cfg), start(t, f, cfg)
	<-done
	if d := cmp.Diff(want, f.reductions()); d != "" {
		t.Error(d)
	}
	if n := scans.Load(); n != 300 {
		t.Errorf("300 buckets were read %d times", n)
	}
	for _, c := range []running{a, b} {
		if n := value(t, c.metrics, "sluice_compactor_buckets_total", "failed"); n > 0 {
			t.Errorf("%g failed", n)
		}
	}
}

// TestRunsOfOneProcess: INV-20, runs that meet at a bucket, as one on demand and
// one of the schedule do, wait for each other instead of failing.
func TestRunsOfOneProcess(t *testing.T) {
	f := churn(9, 1, 1000)
	want := f.reductions()
	var at, met atomic.Int32 // calls at the one bucket; those that met another
	f.fault = func(call string, after bool) error {
		switch {
		case call != "Replace":
		case after:
			at.Add(-1)
		case at.Add(1) > 1:
			met.Add(1)
		}
		runtime.Gosched()
		return nil
	}
	c := start(t, f, Config{Interval: -1, MoveBatch: 2, ClearBatch: 3, Parallel: 8})
	const runs = 6
	errc := make(chan error, runs)
	for range runs {
		go func() {
			_, err := c.client.Compact(t.Context(), &pb.CompactRequest{SkipLookups: true})
			errc <- err
		}()
	}
	for range runs {
		if err := <-errc; err != nil {
			t.Error(err)
		}
	}
	if n := met.Load(); n > 0 {
		t.Errorf("%d steps met another run's at the same bucket", n)
	}
	if d := cmp.Diff(want, f.reductions()); d != "" {
		t.Error(d)
	}
}

// TestBadBucket: one bucket fails for good; the others have their turn.
func TestBadBucket(t *testing.T) {
	f := churn(6, 4, 1000)
	bad := `1#by_user["2"]`
	f.buckets[bad] = append(f.buckets[bad], f.buckets[bad][0]) // not in order
	c := start(t, f, onDemand)
	_, err := c.client.Compact(t.Context(), &pb.CompactRequest{SkipLookups: true})
	if err == nil || !strings.Contains(err.Error(), bad) {
		t.Fatalf("error %v does not name the bucket", err)
	}
	for name := range f.snapshot() {
		if done := f.changes[name] == 0; done != (name != bad) {
			t.Errorf("%s compacted: %v", name, done)
		}
	}
	if got := value(t, c.metrics, "sluice_compactor_buckets_total", "failed"); got != 1 {
		t.Errorf("%g buckets counted as failed", got)
	}
}

// TestSweep: what is worth it is compacted without being asked for, and the
// instance becomes ready.
func TestSweep(t *testing.T) {
	f := churn(7, 1, 20_000)
	quiet := `1#quiet["x"]`
	f.buckets[quiet] = []model.Op{{ID: 1, Kind: model.OpRemove}, {ID: 2, Kind: model.OpRemove}}
	f.changes[quiet] = 2
	done, tidied := make(chan struct{}), make(chan struct{})
	f.fault = func(call string, after bool) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case call == "Replace" && after && f.changes[`1#by_user["0"]`] == 0:
			close(done) // by the only Replace that finishes the bucket
		case call == "ExpireRequests" && after:
			close(tidied) // once an hour
		}
		return nil
	}
	c := start(t, f, Config{Rate: -1, Busy: 1})
	<-done
	<-tidied
	if n := len(f.snapshot()[`1#by_user["0"]`]); n > 20 {
		t.Errorf("%d ops left", n)
	}
	if n := len(f.snapshot()[quiet]); n != 2 {
		t.Errorf("the quiet bucket was compacted")
	}
	f.mu.Lock()
	if f.lookups != 0 {
		t.Errorf("%d superseded lookups are left", f.lookups)
	}
	f.mu.Unlock()
	if h := c.health.Snapshot(); !h.Started || !h.Ready {
		t.Errorf("health %+v", h)
	}
}

func TestUnreachable(t *testing.T) {
	for err, want := range map[error]bool{
		status.Error(codes.Unavailable, "x"):                              true,
		fmt.Errorf("scan: %w", status.Error(codes.DeadlineExceeded, "x")): true,
		fmt.Errorf("scan: %w", context.Canceled):                          true,
		errs.New(errs.S2404, "x").Retryable():                             true,
		errs.New(errs.S2404, "x"):                                         false,
		status.Error(codes.FailedPrecondition, "x"):                       false,
		errors.New("decode"):                                              false,
	} {
		if got := unreachable(err); got != want {
			t.Errorf("unreachable(%v) = %v", err, got)
		}
	}
}

func TestValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("zero config: %v", err)
	}
	err := Config{Rest: -1, Busy: 2, MemoryMB: -1, MoveBatch: -1, ClearBatch: 1, Parallel: -1}.Validate()
	for _, key := range []string{"rest", "busy", "memory_mb", "move_batch", "clear_batch", "parallel"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("no problem with %s in %v", key, err)
		}
	}
}

func value(t *testing.T, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, fam := range families {
		for _, m := range fam.GetMetric() {
			if fam.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s{%s}", name, label)
	return 0
}
