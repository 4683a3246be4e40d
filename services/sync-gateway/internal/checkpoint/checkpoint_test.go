package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a source and a store that write down what is done to them.
type world struct {
	mu       sync.Mutex
	position int
	ids      map[string]uint64
	heads    map[string]model.Position
	events   []string
	reached  model.Position
	failMark int
	fail     error
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf(format, args...))
}

func (w *world) Position(context.Context) (model.Position, error) {
	time.Sleep(time.Millisecond)
	w.mu.Lock()
	defer w.mu.Unlock()
	return model.Position(fmt.Sprintf("%08d", w.position)), w.fail
}

func (w *world) Mark(context.Context) error {
	w.note("mark")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failMark > 0 {
		w.failMark--
		return errors.New("away")
	}
	return nil
}

func (w *world) Create(_ context.Context, head model.Position, rs []backend.Request) ([]uint64, error) {
	time.Sleep(time.Millisecond)
	w.note("create %d", len(rs))
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []uint64
	for _, r := range rs {
		w.ids[r.UserKey]++
		w.heads[r.UserKey] = head
		out = append(out, w.ids[r.UserKey])
	}
	return out, nil
}

func (w *world) Reached() model.Position { return w.reached }

func inKeeper(t *testing.T, f func(w *world, k *Keeper)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{ids: map[string]uint64{}, heads: map[string]model.Position{}}
		k := New(w, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := k.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		f(w, k)
		stop()
		wg.Wait()
	})
}

func TestMarkAfterStore(t *testing.T) {
	inKeeper(t, func(w *world, k *Keeper) {
		if id, err := k.Request(context.Background(), w, "u", 0); err != nil || id != 1 {
			t.Fatal(id, err)
		}
		synctest.Wait()
		if got := fmt.Sprint(w.events); got != "[create 1 mark]" {
			t.Errorf("INV-28: %s", got)
		}
	})
}

// TestReachedNeedsNoMark: a position that a checkpoint has reached is told of at
// once, and the source is left alone.
func TestReachedNeedsNoMark(t *testing.T) {
	inKeeper(t, func(w *world, k *Keeper) {
		w.position = 7
		for _, reached := range []int{8, 7, 6} {
			w.reached = model.Position(fmt.Sprintf("%08d", reached))
			if _, err := k.Request(context.Background(), w, "u", 0); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if got := fmt.Sprint(w.events); got != "[create 1 create 1 create 1 mark]" {
			t.Errorf("INV-28: %s", got)
		}
	})
}

// TestMarkInterval: however many ask, the source is marked now and then, and
// after the last of them.
func TestMarkInterval(t *testing.T) {
	inKeeper(t, func(w *world, k *Keeper) {
		for i := range 50 {
			if _, err := k.Request(context.Background(), w, fmt.Sprint("u", i), 0); err != nil {
				t.Fatal(err)
			}
		}
		took := 50 * 2 * time.Millisecond // each reads and stores for a millisecond
		time.Sleep(2 * markInterval)
		synctest.Wait()
		marks := 0
		for _, e := range w.events {
			if e == "mark" {
				marks++
			}
		}
		if most := int(took/markInterval) + 2; marks == 0 || marks > most {
			t.Errorf("%d markers within %v, at most %d were due", marks, took, most)
		}
		if last := w.events[len(w.events)-1]; last != "mark" {
			t.Errorf("INV-28: the last event is %s", last)
		}
	})
}

func TestMarkRetries(t *testing.T) {
	inKeeper(t, func(w *world, k *Keeper) {
		w.failMark = 3
		if _, err := k.Request(context.Background(), w, "u", 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := fmt.Sprint(w.events); got != "[create 1 mark mark mark mark]" {
			t.Errorf("INV-28: %s", got)
		}
	})
}

// TestPositionIsFresh: INV-27. What was committed before a request is before
// the head that its number is bound to.
func TestPositionIsFresh(t *testing.T) {
	inKeeper(t, func(w *world, k *Keeper) {
		var wg sync.WaitGroup
		for i := range 200 {
			w.mu.Lock()
			w.position = i
			w.mu.Unlock()
			user := fmt.Sprint("u", i)
			wg.Go(func() {
				if _, err := k.Request(context.Background(), w, user, 0); err != nil {
					t.Error(err)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				if least := model.Position(fmt.Sprintf("%08d", i)); w.heads[user] < least {
					t.Errorf("INV-27: %s has head %s", user, w.heads[user])
				}
			})
			time.Sleep(10 * time.Microsecond)
		}
		wg.Wait()
		creates := 0
		for _, e := range w.events {
			if e != "mark" {
				creates++
			}
		}
		if creates > 20 {
			t.Errorf("%d batches for 200 requests", creates)
		}
	})
}

func TestSourceAway(t *testing.T) {
	inKeeper(t, func(w *world, k *Keeper) {
		w.fail = errors.New("away")
		if _, err := k.Request(context.Background(), w, "u", 0); !errors.Is(err, w.fail) {
			t.Error(err)
		}
		if len(w.events) != 0 {
			t.Errorf("%v", w.events)
		}
	})
}
