package writer

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a hub over a memory store, and what it published.
type world struct {
	t       *testing.T
	store   *memory.Store
	hub     *Hub
	id      model.StreamID
	revoked chan model.Epoch

	mu      sync.Mutex
	notices []model.CheckpointNotice
}

func newWorld(t *testing.T, s *memory.Store, o Options) *world {
	t.Helper()
	w := &world{t: t, store: s, revoked: make(chan model.Epoch, 10)}
	o.Log = slog.New(slog.DiscardHandler)
	o.Catalog = func() {}
	o.Revoke = func(_ model.StreamID, e model.Epoch) { w.revoked <- e }
	o.Publish = func(n *model.CheckpointNotice, _ string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.notices = append(w.notices, *n)
	}
	var err error
	if w.hub, err = New(t.Context(), s, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.hub.Close)
	streams, err := s.Streams(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(streams) > 0 {
		w.id = streams[0].ID
		return w
	}
	made, err := s.Change(t.Context(), func([]model.Stream) store.Change { return store.Change{New: &model.Stream{State: model.Processing}} })
	if err != nil {
		t.Fatal(err)
	}
	w.id = made.ID
	return w
}

func (w *world) writer() *Writer {
	w.t.Helper()
	wr, err := w.hub.Writer(w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	return wr
}

// open opens a session.
func (w *world) open() model.StreamHead {
	w.t.Helper()
	head, err := w.store.OpenSession(w.t.Context(), w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.writer().SessionOpened(w.t.Context(), head); err != nil {
		w.t.Fatal(err)
	}
	return head
}

func position(n int) model.Position { return model.Position(fmt.Sprintf("%06d", n)) }

// batch is transaction n of epoch: row n%7 gets version n, in bucket n%3.
func (w *world) batch(epoch model.Epoch, n int) *model.EvaluatedBatch {
	b := &model.EvaluatedBatch{Stream: w.id, Epoch: epoch, End: model.Cursor{Position: position(n)}}
	if n > 1 {
		b.Previous.Position = position(n - 1)
	}
	b.Meta.SnapshotDone = true
	data := fmt.Sprint("v", n)
	sum, _ := model.PutChecksum("t", "x", data, nil)
	b.Rows = []model.EvaluatedRow{{Kind: model.RowPut, Key: model.RowKey{Row: model.RowID{byte(n % 7)}}, Puts: []model.Put{
		{Bucket: fmt.Sprint("b", n%3), ObjectType: "t", ObjectID: fmt.Sprint(n % 7), Data: data, Checksum: sum},
	}}}
	return b
}

// send hands a batch in and returns where its answer comes.
func (w *world) send(b *model.EvaluatedBatch) <-chan ledger.Result {
	w.t.Helper()
	c := make(chan ledger.Result, 1)
	if err := w.writer().Arrive(w.t.Context(), b, 100, nil, func(r ledger.Result, _ string) { c <- r }); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// rows are the buckets' contents at the checkpoint.
func (w *world) rows() string {
	w.t.Helper()
	head, err := w.store.Head(w.t.Context(), w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	rows := map[string]string{}
	for b := range 3 {
		name := fmt.Sprint("b", b)
		var sum model.Checksum
		for op, err := range w.store.Ops(w.t.Context(), w.id, name, 0, head.Checkpoint.Op) {
			if err != nil {
				w.t.Fatal(err)
			}
			sum += op.Checksum
			if op.Kind == model.OpPut {
				rows[name+"/"+op.ObjectID] = op.Data
			} else {
				delete(rows, name+"/"+op.ObjectID)
			}
		}
		states, err := w.store.Checksums(w.t.Context(), w.id, head.Checkpoint.Op, []string{name})
		if err != nil || states[0].Checksum != sum {
			w.t.Errorf("D7: bucket %s: %v %v, ops %d", name, states, err, sum)
		}
	}
	return fmt.Sprint(rows)
}

// TestFaults: commits that fail, and ones that fail but are stored, while
// deliveries are repeated and disordered: in the end everything is applied
// once, in order (D3, D4).
func TestFaults(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			const n = 60
			random := rand.New(rand.NewPCG(seed, 1))
			s := memory.New()
			var mu sync.Mutex
			s.Fail = func(*ledger.Commit) memory.Failure {
				mu.Lock()
				defer mu.Unlock()
				return [...]memory.Failure{memory.Succeeds, memory.Succeeds, memory.FailsBefore, memory.FailsPersisted}[random.IntN(4)]
			}
			w := newWorld(t, s, Options{Stall: time.Hour, Ledger: ledger.Options{BufferBytes: 1500}})
			epoch := w.open().Epoch
			todo := make([]int, n)
			for i := range todo {
				todo[i] = i + 1
			}
			for len(todo) > 0 {
				mu.Lock()
				random.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
				mu.Unlock()
				answers := map[int]<-chan ledger.Result{}
				for _, k := range todo {
					answers[k] = w.send(w.batch(epoch, k))
					w.send(w.batch(epoch, k)) // and once more
				}
				synctest.Wait()
				// Those that wait for a batch that went back are not answered;
				// the next round brings it.
				var again []int
				for _, k := range todo {
					select {
					case r := <-answers[k]:
						if r == ledger.ResultObsolete {
							t.Fatalf("seed %d: batch %d is obsolete", seed, k)
						}
						if r == ledger.ResultRetry {
							again = append(again, k)
						}
					default:
						again = append(again, k)
					}
				}
				todo = again
			}
			mu.Lock()
			s.Fail = nil
			mu.Unlock()
			head, err := s.Head(t.Context(), w.id)
			if err != nil || head.Checkpoint.Position != position(n) {
				t.Fatalf("seed %d: head %+v %v", seed, head, err)
			}
			want := map[string]string{}
			for k := n - 6; k <= n; k++ {
				want[fmt.Sprintf("b%d/%d", k%3, k%7)] = fmt.Sprint("v", k)
			}
			if got := w.rows(); got != fmt.Sprint(want) {
				t.Errorf("seed %d: rows %s, want %v", seed, got, want)
			}
			w.hub.Close()
			for i, n := range w.notices {
				if n.Sequence != uint64(i+1) || n.Run != w.notices[0].Run {
					t.Errorf("notice %d has run %d sequence %d", i, n.Run, n.Sequence)
				}
				if i > 0 && (n.Checkpoint.Op < w.notices[i-1].Checkpoint.Op || n.Checkpoint.Position < w.notices[i-1].Checkpoint.Position) {
					t.Errorf("INV-3: checkpoint %v after %v", n.Checkpoint, w.notices[i-1].Checkpoint)
				}
			}
		})
	}
}

// TestHeadBelongsToFeed: whoever asks for the head at any moment gets the
// number of the notice that told of it, or of an earlier one, never a later.
func TestHeadBelongsToFeed(t *testing.T) {
	w := newWorld(t, memory.New(), Options{})
	epoch := w.open().Epoch
	type seen struct {
		checkpoint model.Checkpoint
		sequence   uint64
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var heads []seen
	wr := w.writer()
	wg.Go(func() {
		for ctx.Err() == nil {
			head, run, sequence := wr.Head()
			if run == 0 {
				t.Error("no run")
			}
			if s := (seen{head.Checkpoint, sequence}); len(heads) == 0 || heads[len(heads)-1] != s {
				heads = append(heads, s)
			}
		}
	})
	for n := 1; n <= 300; n++ {
		if r := <-w.send(w.batch(epoch, n)); r != ledger.ResultCommitted {
			t.Fatal(r)
		}
	}
	cancel()
	wg.Wait()
	w.hub.Close()
	for _, h := range heads {
		if h.sequence > 0 && w.notices[h.sequence-1].Checkpoint != h.checkpoint {
			t.Errorf("head %v with sequence %d, whose notice tells %v", h.checkpoint, h.sequence, w.notices[h.sequence-1].Checkpoint)
		}
		if h.sequence == 0 && h.checkpoint != (model.Checkpoint{}) {
			t.Errorf("head %v before any notice", h.checkpoint)
		}
	}
}

// TestGroupCommit: batches that arrive during a commit share the next one, and
// a lone one does not wait.
func TestGroupCommit(t *testing.T) {
	s := memory.New()
	gate := make(chan struct{})
	var commits []int
	s.Fail = func(c *ledger.Commit) memory.Failure {
		commits = append(commits, c.Batches)
		<-gate
		return memory.Succeeds
	}
	w := newWorld(t, s, Options{})
	epoch := w.open().Epoch
	first := w.send(w.batch(epoch, 1))
	gate <- struct{}{} // it is being committed, alone
	<-first
	var answers []<-chan ledger.Result
	answers = append(answers, w.send(w.batch(epoch, 2)))
	for n := 10; n > 2; n-- {
		answers = append(answers, w.send(w.batch(epoch, n)))
	}
	// The last is answered only when the hub has seen them all: it is a
	// duplicate of what is applied.
	<-w.send(w.batch(epoch, 1))
	gate <- struct{}{}
	gate <- struct{}{}
	for _, a := range answers {
		if r := <-a; r != ledger.ResultCommitted {
			t.Fatal(r)
		}
	}
	if !slices.Equal(commits, []int{1, 1, 8}) {
		t.Errorf("batches by commit %v, want [1 1 8]", commits)
	}
}

// TestStall: D4, a gap that stays ends the session.
func TestStall(t *testing.T) { synctest.Test(t, testStall) }

func testStall(t *testing.T) {
	w := newWorld(t, memory.New(), Options{Stall: 20 * time.Second})
	epoch := w.open().Epoch
	if r := <-w.send(w.batch(epoch, 2)); r != ledger.ResultObsolete {
		t.Errorf("behind a gap: %s", r)
	}
	if e := <-w.revoked; e != epoch {
		t.Errorf("epoch %d is revoked, want %d", e, epoch)
	}
	head := w.open()
	if head.Applied != (model.Cursor{}) {
		t.Errorf("applied %s", head.Applied)
	}
	for n := 1; n <= 2; n++ {
		if r := <-w.send(w.batch(head.Epoch, n)); r != ledger.ResultCommitted {
			t.Errorf("batch %d of the new session: %s", n, r)
		}
	}
}

// TestUnreachedAfterRestart: INV-28, a write checkpoint that waited when the
// process ended is announced by the next one.
func TestUnreachedAfterRestart(t *testing.T) {
	s := memory.New()
	w := newWorld(t, s, Options{})
	epoch := w.open().Epoch
	<-w.send(w.batch(epoch, 1))
	if _, err := w.hub.CreateWriteCheckpoints(t.Context(), w.id, []store.WriteCheckpointRequest{{UserKey: "u", Head: position(3)}}); err != nil {
		t.Fatal(err)
	}
	w.hub.Close()
	w = newWorld(t, s, Options{})
	epoch = w.open().Epoch
	for n := 2; n <= 3; n++ {
		<-w.send(w.batch(epoch, n))
	}
	w.hub.Close()
	if len(w.notices) != 2 || len(w.notices[0].Reached) != 0 || !slices.Equal(w.notices[1].Reached, []model.WriteCheckpoint{{UserKey: "u", ID: 1, Head: position(3)}}) {
		t.Errorf("notices %+v", w.notices)
	}
}

// TestWriteCheckpointsTogether: concurrent calls each get their own number.
func TestWriteCheckpointsTogether(t *testing.T) {
	w := newWorld(t, memory.New(), Options{})
	epoch := w.open().Epoch
	<-w.send(w.batch(epoch, 1))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var ids []uint64
	for range 50 {
		wg.Go(func() {
			made, err := w.hub.CreateWriteCheckpoints(t.Context(), w.id, []store.WriteCheckpointRequest{{UserKey: "u", Head: position(9)}})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, made[0].ID)
		})
	}
	wg.Wait()
	slices.Sort(ids)
	for i, id := range ids {
		if id != uint64(i+1) {
			t.Fatalf("numbers %v", ids)
		}
	}
}

// TestNoticesFit: a notice stays within what a message may hold, whatever it
// has to tell; what does not fit comes in further ones.
func TestNoticesFit(t *testing.T) {
	w := newWorld(t, memory.New(), Options{})
	epoch := w.open().Epoch
	<-w.send(w.batch(epoch, 1))
	const users = 300
	var requests []store.WriteCheckpointRequest
	for n := range users {
		requests = append(requests, store.WriteCheckpointRequest{UserKey: strings.Repeat("u", 5000) + fmt.Sprint(n), Head: position(2)})
	}
	if _, err := w.hub.CreateWriteCheckpoints(t.Context(), w.id, requests); err != nil {
		t.Fatal(err)
	}
	b := w.batch(epoch, 2)
	for n := range 40 {
		p := b.Rows[0].Puts[0]
		p.Bucket = strings.Repeat("b", 10_000) + fmt.Sprint(n)
		b.Rows[0].Puts = append(b.Rows[0].Puts, p)
	}
	<-w.send(b)
	w.hub.Close()
	reached := map[string]bool{}
	for i, n := range w.notices[1:] {
		size := 0
		for _, r := range n.Reached {
			size += len(r.UserKey)
			reached[r.UserKey] = true
		}
		for _, name := range n.Buckets {
			size += len(name)
		}
		if size > 600<<10 {
			t.Errorf("notice %d has %d bytes", i, size)
		}
	}
	if !w.notices[1].Everything {
		t.Error("INV-29: buckets are neither listed nor said to be too many")
	}
	if len(reached) != users || len(w.notices) < 4 {
		t.Errorf("%d of %d write checkpoints are announced, in %d notices", len(reached), users, len(w.notices)-1)
	}
}
