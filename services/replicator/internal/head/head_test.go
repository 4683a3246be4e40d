package head

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// log is a source whose end grows with each write.
type log struct {
	end    atomic.Int64
	reads  atomic.Int64
	marks  atomic.Int64
	marked chan struct{}
	fail   atomic.Bool
}

func (l *log) Position(context.Context) (model.Position, error) {
	l.reads.Add(1)
	if l.fail.Load() {
		return "", errors.New("down")
	}
	return model.Position(fmt.Sprintf("%08d", l.end.Load())), nil
}

func (l *log) Mark(context.Context) error {
	if l.fail.Swap(false) {
		return errors.New("down")
	}
	l.marks.Add(1)
	l.marked <- struct{}{}
	return nil
}

func run(t *testing.T, l *log) *Head {
	h := New(l, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

// TestFresh: an answer is never older than the caller's last write, and many
// callers share few round trips.
func TestFresh(t *testing.T) {
	l := &log{marked: make(chan struct{}, 100)}
	h := run(t, l)
	var wg sync.WaitGroup
	const callers, calls = 32, 200
	for range callers {
		wg.Go(func() {
			for range calls {
				wrote := l.end.Add(1)
				p, err := h.Position(context.Background())
				if err != nil {
					t.Error(err)
				}
				if p < model.Position(fmt.Sprintf("%08d", wrote)) {
					t.Errorf("position %s after writing %d", p, wrote)
				}
			}
		})
	}
	wg.Wait()
	if n := l.reads.Load(); n > callers*calls {
		t.Errorf("%d round trips for %d calls", n, callers*calls)
	}
	l.fail.Store(true)
	if _, err := h.Position(context.Background()); err == nil {
		t.Error("no error from a source that is down")
	}
}

// TestMark: a marker is written after each call, also when the first attempt
// fails.
func TestMark(t *testing.T) {
	l := &log{marked: make(chan struct{}, 100)}
	h := run(t, l)
	l.fail.Store(true)
	h.Mark()
	<-l.marked
	for range 5 {
		h.Mark()
		<-l.marked
	}
	if n := l.marks.Load(); n != 6 {
		t.Errorf("%d markers", n)
	}
}
