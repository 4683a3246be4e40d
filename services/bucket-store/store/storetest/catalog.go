package storetest

import (
	"errors"
	"fmt"
	"strings"

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
		return store.Change{Edited: map[model.StreamID]string{second.id: "edited"}, States: map[model.StreamID]model.StreamState{first.id: model.Errored}}
	}); err != nil {
		t.Fatal(err)
	}
	third := t.deploy()
	third.now = 77
	third.tx(1)
	if got := states(); got != "p_1_x STOP config\np_2_x STOP edited\np_3_x ACTIVE config\n" {
		t.Errorf("states\n%s", got)
	}
	if _, err := t.s.Change(t.ctx, func([]model.Stream) store.Change { return store.Change{Edited: map[model.StreamID]string{42: "x"}} }); !errors.Is(err, store.ErrNoStream) {
		t.Errorf("the text of no stream is changed: %v", err)
	}
	before := states()
	t.reopen()
	streams, err := t.s.Streams(t.ctx)
	t.check(err)
	if s := streams[2]; s.Activated != 77 || s.Edited != "" || streams[1].Edited != "edited" || streams[1].Config != "config" {
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
