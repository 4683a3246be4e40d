package gather

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var carriers sync.WaitGroup
		var mu sync.Mutex
		calls, most, running := 0, 0, 0
		g := Gather[int, string, string]{Calls: 2, Keys: 100, Carriers: &carriers, Call: func(_ context.Context, group int, keys []string) ([]string, error) {
			mu.Lock()
			calls++
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
			out := make([]string, len(keys))
			for i, k := range keys {
				out[i] = fmt.Sprintf("%d:%s", group, k)
			}
			return out, nil
		}}
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				keys := []string{fmt.Sprint(i), fmt.Sprint(i, "b")}
				got, err := g.Do(t.Context(), i%3, keys)
				if err != nil {
					t.Error(err)
				}
				for j, k := range keys {
					if want := fmt.Sprintf("%d:%s", i%3, k); got[j] != want {
						t.Errorf("got %s, want %s", got[j], want)
					}
				}
			})
		}
		wg.Wait()
		carriers.Wait()
		if calls > 30 || most > 2 {
			t.Errorf("%d calls, %d at once", calls, most)
		}
		if got, err := g.Do(t.Context(), 1, nil); len(got) != 0 || err != nil {
			t.Error(got, err)
		}
	})
}

// TestGatherLeave: a caller that leaves does not end the others' call; the last
// that leaves does.
func TestGatherLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var carriers sync.WaitGroup
		cut := false
		g := Gather[int, int, int]{Calls: 1, Keys: 10, Carriers: &carriers, Call: func(ctx context.Context, _ int, keys []int) ([]int, error) {
			select {
			case <-time.After(time.Second):
				return keys, nil
			case <-ctx.Done():
				cut = true
				return nil, ctx.Err()
			}
		}}
		go func() { _, _ = g.Do(t.Context(), 0, []int{0}) }() // occupies the one call
		synctest.Wait()
		first, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := g.Do(first, 0, []int{1}); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if got, err := g.Do(t.Context(), 0, []int{2}); err != nil || got[0] != 2 {
				t.Error(got, err)
			}
		})
		wg.Wait()
		if cut {
			t.Error("the call was cut")
		}
		alone, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		if _, err := g.Do(alone, 0, []int{3}); err == nil {
			t.Error("no error")
		}
		carriers.Wait()
		if !cut {
			t.Error("the call that nobody waits for goes on")
		}
	})
}

func TestFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var readers sync.WaitGroup
		value, reads := 0, 0
		var mu sync.Mutex
		f := Fresh[int]{Readers: &readers, Read: func(context.Context) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			reads++
			v := value
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			return v, nil
		}}
		var wg sync.WaitGroup
		ask := func(least int) {
			wg.Go(func() {
				if got, err := f.Do(t.Context()); err != nil || got < least {
					t.Errorf("got %d, want at least %d: %v", got, least, err)
				}
			})
		}
		ask(0)
		synctest.Wait()
		mu.Lock()
		value = 1
		mu.Unlock()
		for range 100 {
			ask(1)
		}
		wg.Wait()
		readers.Wait()
		if reads != 2 {
			t.Errorf("%d reads, want 2", reads)
		}
	})
}
