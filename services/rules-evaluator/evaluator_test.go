package evaluator

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/evaluate"
)

// A row on JetStream becomes a put in the bucket of its owner, with the prefix
// of its stream.
func TestEvaluates(t *testing.T) {
	s := newStore(live(7))
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publish(batch(7, 1, insert("a", "buy milk", "u1")))
	s.wait(t, "the batch", func() bool { return len(s.applied) == 1 })
	b, err := wire.ModelEvaluatedBatch(s.applied[0])
	if err != nil {
		t.Fatal(err)
	}
	if b.Stream != 7 || b.Epoch != 1 || b.Previous.Position != "0000" || b.End.Position != "0001" || b.Meta.EvaluatedAt == 0 {
		t.Errorf("batch %+v", b)
	}
	if len(b.Rows) != 1 || len(b.Rows[0].Puts) != 1 {
		t.Fatalf("rows %+v", b.Rows)
	}
	p := b.Rows[0].Puts[0]
	sum, _ := model.PutChecksum("todos", "a", p.Data, nil)
	if p.Bucket != `7#by_owner["u1"]` || p.ObjectType != "todos" || p.ObjectID != "a" || p.Data != `{"id":"a","title":"buy milk","owner":"u1"}` || p.Checksum != sum {
		t.Errorf("put %+v", p)
	}
	w.eventually("the acknowledgement", func() bool { return w.pending() == 0 })
	if err := w.end(); err != nil {
		t.Error(err)
	}
}

// A message stays on JetStream until bucket-store has answered COMMITTED, and
// comes again after RETRY.
func TestAckAfterCommit(t *testing.T) {
	s := newStore(live(1))
	release := false
	s.result = func(*pb.EvaluatedBatch) (pb.ApplyResult, error) {
		if release {
			return pb.ApplyResult_APPLY_RESULT_COMMITTED, nil
		}
		return pb.ApplyResult_APPLY_RESULT_RETRY, nil
	}
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publish(batch(1, 1, insert("a", "t", "u")))
	s.wait(t, "three deliveries", func() bool { return len(s.applied) >= 3 })
	if w.pending() != 1 {
		t.Errorf("%d messages on JetStream", w.pending())
	}
	s.change(func() { release = true })
	w.eventually("the acknowledgement", func() bool { return w.pending() == 0 })
}

// An answer that only a later version gives is none of success: the message comes
// again.
func TestAnswerOfLaterVersion(t *testing.T) {
	s := newStore(live(1))
	s.result = func(*pb.EvaluatedBatch) (pb.ApplyResult, error) {
		if len(s.applied) < 3 {
			return 99, nil
		}
		return pb.ApplyResult_APPLY_RESULT_COMMITTED, nil
	}
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publish(batch(1, 1, insert("a", "t", "u")))
	w.eventually("the acknowledgement", func() bool { return w.pending() == 0 })
	s.wait(t, "three deliveries", func() bool { return len(s.applied) == 3 })
}

// Without an answer a message is held under pings and not delivered again.
func TestHeldUnderPings(t *testing.T) {
	s := newStore(live(1))
	var answer []pb.ApplyResult
	s.result = func(*pb.EvaluatedBatch) (pb.ApplyResult, error) { return answer[0], nil }
	answer = []pb.ApplyResult{pb.ApplyResult_APPLY_RESULT_UNSPECIFIED}
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publish(batch(1, 1, insert("a", "t", "u")))
	s.wait(t, "the batch", func() bool { return len(s.applied) == 1 })
	start := time.Now()
	c, err := w.js.Consumer(context.Background(), stream.Name, stream.Evaluators)
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("more time than AckWait", func() bool {
		info, err := c.Info(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if info.NumRedelivered > 0 {
			t.Fatal("a held message was delivered again")
		}
		return time.Since(start) > stream.AckWait+time.Second
	})
}

// A bucket-store that breaks off and comes back gets everything that it had
// not answered.
func TestStoreRestart(t *testing.T) {
	s := newStore(live(1))
	silent := true
	s.result = func(*pb.EvaluatedBatch) (pb.ApplyResult, error) {
		if silent {
			return pb.ApplyResult_APPLY_RESULT_UNSPECIFIED, nil
		}
		return pb.ApplyResult_APPLY_RESULT_COMMITTED, nil
	}
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	for n := range 20 {
		w.publish(batch(1, n+1, insert("a", "t", "u")))
	}
	s.wait(t, "all batches", func() bool { return len(s.positions()) == 20 })
	w.cutStore()
	w.eventually("the loss", func() bool { return !w.env.Health.Snapshot().Ready })
	w.publish(batch(1, 21, insert("a", "t", "u")))
	s.change(func() { silent, s.applied = false, nil })
	w.serve(w.redial())
	s.wait(t, "all batches again", func() bool { return len(s.positions()) == 21 })
	w.eventually("the acknowledgements", func() bool { return w.pending() == 0 })
	w.ready()
}

// At its end an evaluator gives back what it holds: another has it at once, not
// after AckWait.
func TestDrain(t *testing.T) {
	s := newStore(live(1))
	var mu sync.Mutex
	silent := true
	s.result = func(*pb.EvaluatedBatch) (pb.ApplyResult, error) {
		mu.Lock()
		defer mu.Unlock()
		if silent {
			return pb.ApplyResult_APPLY_RESULT_UNSPECIFIED, nil
		}
		return pb.ApplyResult_APPLY_RESULT_COMMITTED, nil
	}
	w := newWorld(t, s)
	w.run(Config{MaxBytes: 2000}) // some are held, the others wait before it
	w.ready()
	for n := range 50 {
		w.publish(batch(1, n+1, insert("a", strings.Repeat("t", 200), "u")))
	}
	s.wait(t, "a batch", func() bool { return len(s.applied) > 0 })
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	silent = false
	mu.Unlock()
	s.change(func() { s.applied = nil })
	start := time.Now()
	w.run(Config{})
	w.eventually("the acknowledgements", func() bool { return w.pending() == 0 })
	if took := time.Since(start); took > stream.AckWait-500*time.Millisecond {
		t.Errorf("the next evaluator waited %s", took)
	}
	s.wait(t, "all batches", func() bool { return len(s.positions()) == 50 })
}

// D8: what is held is bounded.
func TestBound(t *testing.T) {
	s := newStore(live(1))
	s.result = func(*pb.EvaluatedBatch) (pb.ApplyResult, error) {
		return pb.ApplyResult_APPLY_RESULT_UNSPECIFIED, nil
	}
	w := newWorld(t, s)
	b := batch(1, 1, insert("a", strings.Repeat("t", 1000), "u"))
	size := len(wire.EncodeChangeBatch(b))
	w.run(Config{MaxBytes: int64(5*size + 100)})
	w.ready()
	for n := range 20 {
		w.publish(batch(1, n+1, b.Changes...))
	}
	s.wait(t, "five batches", func() bool { return len(s.positions()) == 5 })
	// Time does not let a sixth through: what is further ahead is given back.
	start := time.Now()
	w.eventually("a pause", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.positions()); n > 5 {
			t.Fatalf("%d batches in flight", n)
		}
		return time.Since(start) > time.Second
	})
}

// D8: a batch that the ledger waits for, and that comes late because another
// evaluator had it, is not kept out by the batches ahead of it.
func TestGapBehindBudget(t *testing.T) {
	s := newStore(live(1))
	s.result = func(*pb.EvaluatedBatch) (pb.ApplyResult, error) {
		if slices.Contains(s.positions(), "0001") {
			return pb.ApplyResult_APPLY_RESULT_COMMITTED, nil
		}
		return pb.ApplyResult_APPLY_RESULT_UNSPECIFIED, nil
	}
	w := newWorld(t, s)
	if _, err := stream.Changes(t.Context(), w.js, stream.Options{}); err != nil {
		t.Fatal(err)
	}
	other, err := stream.Consumer(t.Context(), w.js)
	if err != nil {
		t.Fatal(err)
	}
	b := batch(1, 1, insert("a", strings.Repeat("t", 1000), "u"))
	for n := range 60 {
		w.publish(batch(1, n+1, b.Changes...))
	}
	lost, err := other.Next() // the other evaluator takes the first and is no more
	if err != nil {
		t.Fatal(err)
	}
	w.run(Config{MaxBytes: int64(5*len(wire.EncodeChangeBatch(b)) + 100)})
	s.wait(t, "a full budget", func() bool { return len(s.positions()) == 5 })
	if err := lost.Nak(); err != nil {
		t.Fatal(err)
	}
	s.wait(t, "the first batch", func() bool { return slices.Contains(s.positions(), "0001") })
	s.wait(t, "most of the others", func() bool { return len(s.positions()) >= 55 })
}

// D9: bytes that are no batch are reported and taken out, once.
func TestPoisonBatch(t *testing.T) {
	s := newStore(live(1))
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publishRaw(stream.ChangesSubject(int64(1)), []byte("garbage"))
	w.publish(batch(1, 2, insert("a", "t", "u")))
	s.wait(t, "the batch behind", func() bool { return len(s.applied) == 1 })
	w.eventually("an empty stream", func() bool { return w.pending() == 0 })
	if n := strings.Count(w.log.String(), "cannot be decoded"); n != 1 || !strings.Contains(w.log.String(), string(errs.S9002)) {
		t.Errorf("reported %d times:\n%s", n, w.log)
	}
}

// A stream that the watch has not told of yet is asked for; one that is gone
// has its messages taken away.
func TestUnknownStream(t *testing.T) {
	gone := live(3)
	gone.State = pb.StreamState_STREAM_STATE_STOPPED
	s := newStore(live(1), live(2), gone)
	s.watched = []*pb.Stream{live(1)}
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publish(batch(2, 1, insert("a", "t", "u")))
	s.wait(t, "the batch", func() bool { return len(s.applied) == 1 })
	if s.listed != 1 || len(s.applied[0].GetRows()) < 50 {
		t.Errorf("listed %d times, %v", s.listed, s.applied[0])
	}
	w.publish(batch(3, 1, insert("a", "t", "u")))
	w.publish(batch(4, 1, insert("a", "t", "u")))
	w.eventually("an empty stream", func() bool { return w.pending() == 0 })
	if len(s.applied) != 1 {
		t.Errorf("applied %v", s.applied)
	}
}

// Previous rows come from the ledger in one call a batch, and a ledger that is
// not there yet is asked again.
func TestPreviousRows(t *testing.T) {
	s := newStore(live(1))
	long := strings.Repeat("l", 3000)
	calls := 0
	// What the evaluator stored for a row comes back as it was.
	sources := map[string][]byte{}
	s.rows = func(q *pb.PreviousRowsRequest) ([][]byte, error) {
		if calls++; calls == 1 {
			return nil, errs.ToGRPC(errBusy)
		}
		if q.GetStream() != 1 || q.GetAt().GetPosition() != "0001" || len(q.GetKeys()) != 2 {
			t.Errorf("question %v", q)
		}
		var out [][]byte
		for _, k := range q.GetKeys() {
			out = append(out, sources[string(k)])
		}
		return out, nil
	}
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publish(batch(1, 1, insert("a", long, "u"), insert("b", long, "u")))
	s.wait(t, "the first batch", func() bool { return len(s.applied) == 1 })
	b, err := wire.ModelEvaluatedBatch(s.applied[0])
	if err != nil {
		t.Fatal(err)
	}
	s.change(func() {
		for _, r := range b.Rows {
			sources[string(append(r.Key.Table[:], r.Key.Row[:]...))] = []byte(r.Source)
		}
	})
	update := func(id string) model.Change {
		return model.Change{Table: todos, Op: model.Update, Row: []model.Value{model.TextValue(id), {}, model.TextValue("v")}}
	}
	w.publish(batch(1, 2, update("a"), update("b"), update("a")))
	s.wait(t, "the second batch", func() bool { return len(s.applied) == 2 })
	if b, err = wire.ModelEvaluatedBatch(s.applied[1]); err != nil {
		t.Fatal(err)
	}
	for i, r := range b.Rows {
		if len(r.Puts) != 1 || r.Puts[0].Bucket != `1#by_owner["v"]` || !strings.Contains(r.Puts[0].Data, long) {
			t.Errorf("row %d: %.200v", i, r.Puts)
		}
	}
	if calls != 2 {
		t.Errorf("%d calls", calls)
	}
}

// NATS that restarts with an empty disk gets its stream and consumer back.
func TestNATSWiped(t *testing.T) {
	s := newStore(live(1))
	w := newWorld(t, s)
	w.run(Config{})
	w.ready()
	w.publish(batch(1, 1, insert("a", "t", "u")))
	s.wait(t, "the batch", func() bool { return len(s.applied) == 1 })
	port := w.ns.Addr().String()
	_, port, _ = strings.Cut(port, ":")
	w.ns.Shutdown()
	w.ns.WaitForShutdown()
	if err := os.RemoveAll(filepath.Join(w.dir, "jetstream")); err != nil {
		t.Fatal(err)
	}
	w.ns = startNATS(t, w.dir, atoi(t, port))
	w.eventually("a new stream", func() bool { return w.pending() == 0 })
	w.publish(batch(1, 2, insert("a", "t", "u")))
	s.wait(t, "a batch through the new stream", func() bool { return slices.Contains(s.positions(), "0002") })
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n := 0
	for _, c := range s {
		n = n*10 + int(c-'0')
	}
	return n
}

// The configured sync config is deployed at the start and when it changes; an
// invalid one is reported with its place and changes nothing.
func TestDeploy(t *testing.T) {
	s := newStore()
	w := newWorld(t, s)
	path := filepath.Join(t.TempDir(), "sync.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(syncConfig)
	w.run(Config{SyncConfigPath: path, ExitOnError: true, SlotPrefix: "x_"})
	s.wait(t, "the deployment", func() bool { return len(s.deployed) == 1 })
	d := s.deployed[0]
	if d.GetConfig() != syncConfig || len(d.GetTables()) != 1 || d.GetTables()[0].GetName() != "todos" || d.GetTables()[0].GetSchema() != "public" ||
		d.GetSlotPrefix() != "x_" || d.GetForce() || d.GetCustomCheckpoints() {
		t.Errorf("deployed %v", d)
	}
	write(strings.Replace(syncConfig, "bucket.owner", "bucket.nothing", 1))
	w.eventually("the report", func() bool {
		return strings.Contains(w.log.String(), "line=6 column=58") && strings.Contains(w.log.String(), "the old one stays")
	})
	next := syncConfig + "\nevent_definitions:\n  write_checkpoints:\n    payloads: [SELECT * FROM acks]\n"
	write(next)
	s.wait(t, "the next deployment", func() bool { return len(s.deployed) == 2 })
	if d = s.deployed[1]; d.GetConfig() != next || len(d.GetTables()) != 2 || !d.GetCustomCheckpoints() {
		t.Errorf("deployed %v", s.deployed[1])
	}
	if err := w.end(); err != nil {
		t.Error(err)
	}
}

func TestDeployInvalid(t *testing.T) {
	s := newStore()
	w := newWorld(t, s)
	for name, cfg := range map[string]Config{
		"text":    {SyncConfigContent: "bucket_definitions: {a: {data: [SELECT]}}", ExitOnError: true},
		"no file": {SyncConfigPath: filepath.Join(t.TempDir(), "gone.yaml"), ExitOnError: true},
	} {
		w.run(cfg)
		select {
		case err := <-w.ended:
			if errs.CodeOf(err) != errs.R0001 {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: exit_on_error does not exit", name)
		}
	}
	w.stop = nil
	w.run(Config{SyncConfigContent: "bucket_definitions: {a: {data: [SELECT]}}"})
	w.ready()
	if err := w.end(); err != nil || len(s.deployed) > 0 {
		t.Errorf("without exit_on_error: %v %v", err, s.deployed)
	}
}

func TestValidate(t *testing.T) {
	c := Config{Workers: -1, MaxBytes: -1, SyncConfigPath: "a", SyncConfigContent: "b"}
	if err := c.Validate(); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("%v", err)
	}
	if err := (&Config{}).Validate(); err != nil {
		t.Errorf("the zero config: %v", err)
	}
}

// A problem is logged once a minute, with the number of rows left out.
func TestReporter(t *testing.T) {
	l := &log{}
	now := time.Unix(1000, 0)
	r := newReporter(newEnv(l).Log, func() time.Time { return now })
	p := evaluate.Problem{Table: todos, Key: "id=1", Definition: "d", Err: errors.New("no")}
	for range 5 {
		r.report(p)
	}
	r.report(evaluate.Problem{Table: todos, Key: "id=2", Err: &evaluate.TooLargeError{Size: 9}, Removed: true})
	now = now.Add(reportEvery)
	r.report(p)
	lines := strings.Split(strings.TrimSpace(l.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "table=todos") || !strings.Contains(lines[0], `key="id=1"`) ||
		!strings.Contains(lines[1], string(errs.S1002)) || !strings.Contains(lines[2], "unlogged=4") {
		t.Errorf("%s", l)
	}
}
