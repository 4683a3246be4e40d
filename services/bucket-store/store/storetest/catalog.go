package storetest

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func testCatalog(t *suite) {
	states := func() string {
		t.Helper()
		streams, err := t.s.Streams(t.ctx)
		t.check(err)
		var b strings.Builder
		for _, s := range streams {
			fmt.Fprintf(&b, "%s %s %s\n", s.Name, s.State, s.Text())
		}
		return b.String()
	}
	first := t.deploy()
	first.tx(1, put(1, "x", "a"))
	second := t.deploy()
	if got := states(); got != "p_1_x ACTIVE config\np_2_x PROCESSING config\n" {
		t.Errorf("states\n%s", got)
	}
	if _, err := t.s.Change(t.ctx, func(s []model.Stream) store.Change {
		if len(s) != 2 || s[0].Head.Checkpoint.Op != 1 {
			t.Errorf("decide sees %+v", s)
		}
		return store.Change{States: map[model.StreamID]model.StreamState{first.id: model.Errored}}
	}); err != nil {
		t.Fatal(err)
	}
	second.tx(1, put(1, "y", "a"))
	if got := states(); got != "p_1_x STOP config\np_2_x ACTIVE config\n" {
		t.Errorf("INV-36: states\n%s", got)
	}
	first.wantOps("a", 0, 10, "1 PUT 1 x")
	second.wantOps("a", 0, 10, "1 PUT 1 y")
	if err := t.s.ReportError(t.ctx, second.id, second.epoch, "slot lost", 5); err != nil {
		t.Fatal(err)
	}
	if err := t.s.ReportError(t.ctx, second.id, second.epoch+1, "no", 5); err == nil {
		t.Error("D5: an error of another epoch is kept")
	}
	if h, err := t.s.Head(t.ctx, second.id); err != nil || h.LastError != "slot lost" || h.LastErrorAt != 5 {
		t.Errorf("head %+v %v", h, err)
	}
	second.apply(model.Cursor{Position: position(1), Offset: 1})
	if h, err := t.s.Head(t.ctx, second.id); err != nil || h.LastError != "slot lost" {
		t.Errorf("an error is gone without a checkpoint: %+v %v", h, err)
	}
	second.tx(2)
	if h, err := t.s.Head(t.ctx, second.id); err != nil || h.LastError != "" || h.LastErrorAt != 0 {
		t.Errorf("an error stays after a checkpoint: %+v %v", h, err)
	}
	if _, err := t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{Edited: map[model.StreamID]store.Edit{second.id: {Text: "edited", Content: "content", Former: "former", Filed: "filed", FromFile: true}}, States: map[model.StreamID]model.StreamState{first.id: model.Errored}}
	}); err != nil {
		t.Fatal(err)
	}
	third := t.deploy()
	third.now = 77
	third.tx(1)
	if got := states(); got != "p_1_x STOP config\np_2_x STOP edited\np_3_x ACTIVE config\n" {
		t.Errorf("states\n%s", got)
	}
	if _, err := t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{Edited: map[model.StreamID]store.Edit{42: {Text: "x"}}}
	}); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("the text of no stream is changed: %v", err)
	}
	before := states()
	t.reopen()
	streams, err := t.s.Streams(t.ctx)
	t.check(err)
	if s := streams[1]; s.Config != "config" || s.Edited != "edited" || s.EditedContent != "content" || s.Former != "former" || s.Filed != "filed" || !s.FromFile {
		t.Errorf("streams %+v", streams)
	}
	if s := streams[2]; s.Activated != 77 || s.Edited != "" || strings.Join(s.Parts, " ") != "p q" {
		t.Errorf("streams %+v", streams)
	}
	if got := states(); got != before {
		t.Errorf("states after a restart\n%s", got)
	}
	if fourth := t.deploy(); fourth.id != 4 {
		t.Errorf("stream id %d", fourth.id)
	}
	if _, err := t.s.Head(t.ctx, 42); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("no such stream: %v", err)
	}
}

// testLayers: layers are kept, with how far their tables are copied, and the commit
// that says that all are copied makes the config serve that was to, in the same
// step.
func testLayers(t *suite) {
	st := t.deploy()
	st.tx(1, put(1, "x", "a"))
	layer := func(name string) model.Layer {
		return model.Layer{Config: name, Parts: []string{name}, Tables: []model.TablePattern{{Connection: "c", Schema: "s", Name: name}}}
	}
	layers := []model.Layer{layer("first"), layer("second")}
	_, err := t.s.Change(t.ctx, func([]model.Stream) store.Change {
		return store.Change{Edited: map[model.StreamID]store.Edit{st.id: {Former: "former", Layers: layers, Next: "next", NextContent: "meant"}}}
	})
	t.check(err)
	st.open()
	show := func() string {
		t.Helper()
		streams, err := t.s.Streams(t.ctx)
		t.check(err)
		s := streams[0]
		if !reflect.DeepEqual(s.Layers, layers) {
			t.Errorf("layers %+v", s.Layers)
		}
		return fmt.Sprintf("%d copied at %s, serves %q %q, before %q, next %q %q", s.Layered, s.Head.Checkpoint.Position, s.Edited, s.EditedContent, s.Former, s.Next, s.NextContent)
	}
	batch := func(end model.Cursor, meta model.BatchMeta, rows ...model.EvaluatedRow) {
		t.Helper()
		st.applyBatch(&model.EvaluatedBatch{Stream: st.id, Epoch: st.epoch, Previous: st.at, End: end, Rows: rows, Meta: meta})
	}
	// Row 1 is in the layer, too.
	beside := put(1, "x", "layer")
	beside.Kind = model.RowLayer
	progress := []model.TableProgress{{Table: model.SourceTable{ID: model.TableID{7}}, LastKey: []byte("k"), Rows: 1, Layer: 1}}
	batch(model.Cursor{Position: position(1), Offset: 1}, model.BatchMeta{Progress: progress}, beside)
	batch(model.Cursor{Position: position(1), Offset: 2}, model.BatchMeta{Layer: 1, NoCheckpointBefore: position(3)})
	waits := fmt.Sprintf(`0 copied at %s, serves "" "", before "former", next "next" "meant"`, position(1))
	if got := show(); got != waits {
		t.Errorf("copied, and not shown yet: %s", got)
	}
	st.tx(2)
	if got := show(); got != waits {
		t.Errorf("before the checkpoint: %s", got)
	}
	st.tx(3)
	if got, want := show(), fmt.Sprintf(`1 copied at %s, serves "" "", before "former", next "next" "meant"`, position(3)); got != want {
		t.Errorf("one of two: %s", got)
	}
	tables, err := t.s.Tables(t.ctx, st.id)
	t.check(err)
	if !reflect.DeepEqual(tables, progress) {
		t.Errorf("progress %+v", tables)
	}
	batch(model.Cursor{Position: position(3), Offset: 1}, model.BatchMeta{Layer: 2})
	now := st.tx(4, put(1, "y", "a", "layer"))
	want := fmt.Sprintf(`2 copied at %s, serves "next" "meant", before "config", next "" ""`, position(4))
	if got := show(); got != want {
		t.Errorf("all: %s", got)
	}
	st.wantOps("layer", 0, now, "2 PUT 1 x; 4 PUT 1 y")
	st.wantOps("a", 0, now, "1 PUT 1 x; 3 PUT 1 y")
	st.wantSums(now, "a", "layer")
	t.reopen()
	if got := show(); got != want {
		t.Errorf("all, after a restart: %s", got)
	}
	// It is one step with the commit: of a stale one nothing is left.
	late := &ledger.Commit{Stream: st.id, Previous: st.at, PreviousOp: now, Published: true, Layer: 9, Head: model.StreamHead{Epoch: st.epoch - 1}}
	if err := t.s.Commit(t.ctx, late); err == nil {
		t.Error("D5: a commit of another epoch is taken")
	}
	if got := show(); got != want {
		t.Errorf("after a commit that was refused: %s", got)
	}
}

func testClear(t *suite) {
	a, b := t.deploy(), t.deploy()
	rows := []model.EvaluatedRow{put(1, "x", "a", "b"), entry(2, "l", "[1]")}
	a.tx(1, rows...)
	b.tx(1, rows...)
	if err := t.s.Clear(t.ctx, b.id); err == nil {
		t.Error("an active stream is cleared")
	}
	t.check(t.s.Clear(t.ctx, a.id)) // stopped by b's activation
	t.check(t.s.Clear(t.ctx, a.id))
	for range 2 {
		if _, err := t.s.Checksums(t.ctx, a.id, 3, []string{"a"}); !errors.Is(err, store.ErrNoStream) {
			t.Errorf("checksums of a cleared stream: %v", err)
		}
		for _, err := range t.s.Ops(t.ctx, a.id, "a", 0, 3) {
			if !errors.Is(err, store.ErrNoStream) {
				t.Errorf("ops of a cleared stream: %v", err)
			}
		}
		b.wantOps("a", 0, 3, "1 PUT 1 x") // INV-41
		b.wantSums(3, "a", "b")
		b.wantLookups(3, "[[[1]]]", "l")
		t.reopen()
	}
	streams, err := t.s.Streams(t.ctx)
	t.check(err)
	if len(streams) != 2 || streams[0].State != model.Terminated {
		t.Errorf("streams %+v", streams)
	}
}

// testFencing: whoever opened the last session writes, and nobody else (D5).
func testFencing(t *suite) {
	st := t.deploy()
	st.tx(1, put(1, "x", "a"))
	old := st.ledger.Head().Epoch
	const callers = 8
	epochs := make([]model.Epoch, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			head, err := t.s.OpenSession(t.ctx, st.id)
			if err != nil {
				t.Error(err)
			}
			epochs[i] = head.Epoch
		})
	}
	wg.Wait()
	slices.Sort(epochs)
	for i, e := range epochs {
		if e != old+model.Epoch(i)+1 {
			t.Fatalf("sessions opened at once got epochs %d after %d", epochs, old)
		}
	}
	t.reopen()
	head, err := t.s.Head(t.ctx, st.id)
	t.check(err)
	if head.Epoch != epochs[callers-1] {
		t.Fatalf("the epoch is %d, the last session's %d", head.Epoch, epochs[callers-1])
	}

	// Of the same commit made at once, one is taken (D4); those of earlier
	// sessions are not.
	var taken atomic.Int32
	for i := range 2 * callers {
		wg.Go(func() {
			c := st.bulk(head, []string{"a"}, 3)
			c.Head.Epoch = epochs[i%callers]
			err := t.s.Commit(t.ctx, c)
			var fenced *store.FencedError
			var moved *store.MovedError
			switch newest := c.Head.Epoch == head.Epoch; {
			case newest && err == nil:
				taken.Add(1)
			case newest && errors.As(err, &moved):
				if moved.Head.Applied != c.Head.Applied || moved.Head.Persisted != c.Head.Persisted {
					t.Errorf("D4: a redelivered commit finds the head %+v", moved.Head)
				}
			case !newest && errors.As(err, &fenced):
				if fenced.Current != head.Epoch {
					t.Errorf("D5: fenced by epoch %d, it is %d", fenced.Current, head.Epoch)
				}
			default:
				t.Errorf("D5: commit of epoch %d while it is %d: %v", c.Head.Epoch, head.Epoch, err)
			}
		})
	}
	wg.Wait()
	if taken.Load() != 1 {
		t.Errorf("D4: %d of the same commits were taken", taken.Load())
	}
	st.wantSums(4, "a")
	if err := t.s.ReportError(t.ctx, st.id, old, "of an old session", 1); err == nil {
		t.Error("D5: an error of an old session is kept")
	}
	for _, message := range []string{"lost", ""} {
		t.check(t.s.ReportError(t.ctx, st.id, head.Epoch, message, 7))
		if h, err := t.s.Head(t.ctx, st.id); err != nil || h.LastError != message || (h.LastErrorAt == 7) != (message != "") {
			t.Errorf("after error %q the head is %+v %v", message, h, err)
		}
	}
	for name, err := range map[string]error{
		"session":      func() error { _, err := t.s.OpenSession(t.ctx, 99); return err }(),
		"error":        t.s.ReportError(t.ctx, 99, 1, "", 0),
		"tables":       func() error { _, err := t.s.Tables(t.ctx, 99); return err }(),
		"clear":        t.s.Clear(t.ctx, 99),
		"records":      func() error { _, err := t.s.Records(t.ctx, 99, []model.RowKey{row(1)}); return err }(),
		"table":        func() error { _, _, err := t.s.Table(t.ctx, 99, model.TableID{7}, model.RowID{}, 1); return err }(),
		"lookups":      func() error { _, err := t.s.Lookups(t.ctx, 99, 1, []string{"l"}, 1); return err }(),
		"custom":       func() error { _, err := t.s.CustomReached(t.ctx, 99, "", []string{"u"}); return err }(),
		"dirtiest":     func() error { _, err := t.s.Dirtiest(t.ctx, 99, store.DirtyQuery{}); return err }(),
		"replace":      func() error { _, err := t.s.Replace(t.ctx, 99, store.Replacement{Bucket: "a"}); return err }(),
		"compact":      func() error { _, _, err := t.s.CompactLookups(t.ctx, 99, 0, nil, 0); return err }(),
		"state change": func() error { _, err := t.s.Change(t.ctx, stop(99)); return err }(),
	} {
		if !errors.Is(err, store.ErrNoStream) {
			t.Errorf("%s of no stream: %v", name, err)
		}
	}
}

func stop(ids ...model.StreamID) func([]model.Stream) store.Change {
	return func([]model.Stream) store.Change {
		c := store.Change{States: map[model.StreamID]model.StreamState{}, New: &model.Stream{State: model.Processing}}
		for _, id := range ids {
			c.States[id] = model.Stopped
		}
		return c
	}
}

// testDeploys: decide sees what it changes, and all of a change happens or none.
func testDeploys(t *suite) {
	const n = 8
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			made, err := t.s.Change(t.ctx, func(streams []model.Stream) store.Change {
				c := store.Change{States: map[model.StreamID]model.StreamState{}, New: &model.Stream{Config: fmt.Sprint("after ", len(streams)), State: model.Processing}, Prefix: "p", Suffix: "s"}
				for i := range streams {
					c.States[streams[i].ID] = model.Stopped
				}
				return c
			})
			if err != nil || made == nil || made.Name != fmt.Sprintf("p%ds", made.ID) || made.Config != fmt.Sprint("after ", made.ID-1) {
				t.Errorf("made %+v %v", made, err)
			}
		})
	}
	wg.Wait()
	for range 2 {
		streams, err := t.s.Streams(t.ctx)
		t.check(err)
		if len(streams) != n {
			t.Fatalf("%d streams", len(streams))
		}
		for i, s := range streams {
			want := model.Stopped
			if i == n-1 {
				want = model.Processing
			}
			if s.ID != model.StreamID(i+1) || s.State != want || s.Config != fmt.Sprint("after ", i) || s.Head != (model.StreamHead{}) {
				t.Errorf("stream %d: %+v, want state %s", i+1, s, want)
			}
		}
		if _, err := t.s.Change(t.ctx, stop(n, n+7)); !errors.Is(err, store.ErrNoStream) {
			t.Errorf("D3: a change of a stream that is not there: %v", err) // and nothing of it happened: see above
		}
		if made, err := t.s.Change(t.ctx, func([]model.Stream) store.Change { return store.Change{} }); made != nil || err != nil {
			t.Errorf("no change: %+v %v", made, err)
		}
		t.reopen()
	}
}
