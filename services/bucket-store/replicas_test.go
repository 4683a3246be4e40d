package bucketstore

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/bucket-store/internal/mongotest"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
)

// metric is the value of a metric that has no labels.
func (i *instance) metric(name string) float64 {
	i.t.Helper()
	families, err := i.metrics.Gather()
	if err != nil {
		i.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	i.t.Fatalf("no metric %s", name)
	return 0
}

// owner waits until one of them writes, and returns its index.
func owner(t *testing.T, all []*instance) int {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for n, i := range all {
			if i != nil && i.metric("sluice_store_owner") == 1 {
				return n
			}
		}
	}
	t.Fatal("nobody writes to the storage")
	return 0
}

// insist applies b, over a new connection whenever the former one ends, as an
// evaluator does.
func (i *instance) insist(b *model.EvaluatedBatch) {
	i.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		i.lastID++
		err := i.append.Send(&pb.ApplyRequest{Id: i.lastID, Batch: wire.EvaluatedBatch(b)})
		var r *pb.ApplyReply
		if err == nil || err == io.EOF {
			r, err = i.append.Recv()
		}
		switch {
		case err == nil && r.GetResult() == pb.ApplyResult_APPLY_RESULT_COMMITTED:
			return
		case err == nil && r.GetResult() != pb.ApplyResult_APPLY_RESULT_RETRY:
			i.t.Fatalf("answer %v", r)
		case time.Now().After(deadline):
			i.t.Fatalf("the batch is not taken: %v", err)
		case err != nil:
			if errs.CodeOf(err) != errs.S2003 {
				i.t.Fatalf("D4: a caller is told %v, which it does not try again after", err)
			}
			i.connect()
		}
	}
}

// TestReplicas: each of several processes on one storage serves reads, fresh,
// and takes writes, whoever the owner is; and when that one is gone another
// takes over, with nothing lost and nothing twice, and the same session.
func TestReplicas(t *testing.T) { onEach(t, testReplicas) }

// onEach runs a test on each kind of storage that several processes share.
func onEach(t *testing.T, test func(*testing.T, Config)) {
	t.Run("Postgres", func(t *testing.T) {
		test(t, Config{Postgres: &Postgres{Connection: pgtest.Start(t).Config()}})
	})
	t.Run("MongoDB", func(t *testing.T) {
		test(t, Config{MongoDB: &MongoDB{Connection: mongotest.Start(t).Config("replicas")}})
	})
}

func testReplicas(t *testing.T, cfg Config) {
	nc := bus(t)
	all := make([]*instance, 3)
	for n := range all {
		all[n] = launch(t, cfg, nc)
	}
	for _, i := range all {
		i.reason(nil)
		i.connect()
	}
	first := owner(t, all)
	other := all[(first+1)%3]
	watch, err := all[(first+2)%3].catalog.Watch(t.Context(), &pb.WatchRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := watch.Recv(); err != nil || len(r.GetStreams()) != 0 {
		t.Fatalf("%v, %v", r, err)
	}

	c := other.begin("config 1") // deploy, session and batch reach the owner
	id := int64(c.stream)
	for { // the deploy, and perhaps the activation
		r, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetStreams()) == 1 && r.GetStreams()[0].GetId() == id {
			break
		}
	}
	position, applied := 10, 0
	apply := func(i *instance) {
		i.insist(c.next(position, put(byte(applied), fmt.Sprint(applied), "a", "b")))
		position++
		applied++
	}
	// holds: whoever is asked says the same, at once.
	holds := func() {
		t.Helper()
		want := ""
		for n, i := range all {
			if i == nil {
				continue
			}
			h := i.head(id).GetHead()
			text, _ := i.ops(id, h.GetCheckpoint().GetOp(), "a")
			sum, count := i.sum(id, h.GetCheckpoint().GetOp(), "b")
			got := fmt.Sprint(h.GetCheckpoint(), sum, count, "\n", text)
			if want == "" {
				want = got
			}
			if got != want || count != uint64(applied) {
				t.Fatalf("process %d has %s\nwant %d ops in\n%s", n, got, applied, want)
			}
		}
	}
	for range 5 {
		for _, i := range all {
			apply(i)
			holds()
		}
	}
	if _, err := other.repl.RenewLease(t.Context(), &pb.RenewLeaseRequest{Stream: id, Holder: "r1", Epoch: uint64(c.epoch), TtlMs: 60_000}); err != nil {
		t.Error(err)
	}
	if r, err := other.writes.Create(t.Context(), &pb.CreateWriteCheckpointsRequest{Stream: id, Head: string(c.at.Position), Requests: []*pb.CheckpointRequest{{UserKey: "u"}}}); err != nil || r.GetIds()[0] != 1 {
		t.Errorf("%v, %v", r, err)
	}
	for n, i := range all {
		if r, err := i.writes.Reached(t.Context(), &pb.ReachedRequest{Stream: id, Position: string(c.at.Position), UserKeys: []string{"u"}}); err != nil || r.GetIds()[0] != 1 {
			t.Errorf("process %d: %v, %v", n, r, err)
		}
	}
	// A checkpoint that is not there is not answered as if it were.
	_, err = other.reader.Checksums(t.Context(), &pb.ChecksumsRequest{Stream: id, Checkpoint: 1 << 40, Buckets: []string{"a"}})
	if errs.CodeOf(err) != errs.S2003 || !errs.IsRetry(err) {
		t.Errorf("checksums at a checkpoint that is not there: %v", err)
	}

	// One after another goes.
	for left := 3; left > 1; left-- {
		gone := owner(t, all)
		all[gone].stop()
		all[gone] = nil
		begin := time.Now()
		for _, i := range all {
			if i != nil {
				apply(i)
			}
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("taken over after %s", took)
		}
		holds()
		for _, i := range all {
			if i == nil {
				continue
			}
			if _, err := i.repl.RenewLease(t.Context(), &pb.RenewLeaseRequest{Stream: id, Holder: "r1", Epoch: uint64(c.epoch), TtlMs: 60_000}); err != nil {
				t.Errorf("the session does not go on: %v", err)
			}
		}
	}
}

// TestReplaced: an owner that another one has replaced, as one that was stalled,
// becomes one that reads, and what it is asked to write is written by whoever is
// the owner then.
func TestReplaced(t *testing.T) {
	pg, nc := pgtest.Start(t), bus(t)
	cfg := Config{Postgres: &Postgres{Connection: pg.Config()}}
	all := []*instance{launch(t, cfg, nc), launch(t, cfg, nc)}
	for _, i := range all {
		i.reason(nil)
		i.connect()
	}
	n := owner(t, all)
	former, next := all[n], all[1-n]
	c := former.begin("config 1")
	former.insist(c.next(10, put(1, "one", "a")))
	conn, err := pgx.Connect(t.Context(), pg.URL.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	// A third one takes it over, and is gone at once.
	if _, err := conn.Exec(t.Context(), `UPDATE sluice.owner SET epoch = epoch + 1, holder = '', address = '', until = clock_timestamp() + interval '1s'`); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); former.metric("sluice_store_owner") == 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the former owner does not notice")
		}
	}
	former.insist(c.next(11, put(2, "two", "a")))
	next.insist(c.next(12, put(3, "three", "a")))
	for _, i := range all {
		if _, count := i.sum(int64(c.stream), i.head(int64(c.stream)).GetHead().GetCheckpoint().GetOp(), "a"); count != 3 {
			t.Errorf("%d ops, want 3", count)
		}
	}
	if former.metric("sluice_store_owned") != 1 || former.metric("sluice_store_head_age_seconds") > 60 {
		t.Error("the former owner does not follow")
	}
}

// TestFresh: what is committed, every process tells within 100 ms.
func TestFresh(t *testing.T) { onEach(t, testFresh) }

func testFresh(t *testing.T, cfg Config) {
	nc := bus(t)
	all := []*instance{launch(t, cfg, nc), launch(t, cfg, nc)}
	for _, i := range all {
		i.reason(nil)
		i.connect()
	}
	n := owner(t, all)
	replica := all[1-n]
	c := all[n].begin("config 1")
	watch, err := replica.repl.Committed(t.Context(), &pb.CommittedRequest{Stream: int64(c.stream)})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan model.Position, 1000)
	go func() {
		defer close(heard)
		for {
			r, err := watch.Recv()
			if err != nil {
				return
			}
			heard <- wire.ModelStreamHead(r.GetHead()).Applied.Position
		}
	}()
	late := 0
	const commits = 40
	for p := range commits {
		b := c.next(10+p, put(byte(p), "x", "a"))
		all[n].apply(b)
		begin := time.Now()
		if got := wire.ModelStreamHead(replica.head(int64(c.stream)).GetHead()).Applied.Position; got != b.End.Position {
			t.Fatalf("after commit %s a replica's head is %s", b.End.Position, got)
		}
		for got := range heard {
			if got == b.End.Position {
				break
			}
		}
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Logf("commit %d was told after %s", p, took)
			late++
		}
	}
	// A busy machine may hold up a few.
	if late > commits/4 {
		t.Errorf("%d of %d commits were told later than after 100 ms", late, commits)
	}
	replica.stop()
	for range heard { // until the watch has ended
	}
}
