package turn

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/services/bucket-store/store"
)

const (
	ttl  = time.Minute
	rest = 10 * time.Minute
)

// lister is a store of dirty buckets.
type lister struct {
	names string
	asked int
	err   error
}

func (l *lister) list(limit int) (out []store.DirtyBucket, err error) {
	l.asked++
	for name := range strings.FieldsSeq(l.names) {
		if len(out) < limit {
			out = append(out, store.DirtyBucket{Bucket: name})
		}
	}
	return out, l.err
}

func TestNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, l := New(time.Now), &lister{names: "a b c"}
		next := func(holder, want string) {
			t.Helper()
			b, ok, err := table.Next(1, holder, ttl, l.list)
			if err != nil || b.Bucket != want || ok != (want != "") {
				t.Errorf("%s has %q %v %v, want %q", holder, b.Bucket, ok, err, want)
			}
		}
		next("x", "a")
		next("y", "b")
		next("x", "c")
		next("y", "")
		if l.asked != 1 {
			t.Errorf("asked %d times within a second", l.asked)
		}
		table.Release(1, "b", "x", 0) // not x's
		table.Release(1, "a", "x", rest)
		table.Release(1, "c", "x", 0)
		time.Sleep(look)
		next("y", "c") // a rests, b is held
		next("y", "")
		time.Sleep(ttl)
		next("x", "b") // their time is over
		next("x", "c")
		time.Sleep(rest)
		next("x", "a")
		next("x", "b")
		next("x", "c")
		time.Sleep(look)
		l.err = errors.New("broken")
		if _, ok, err := table.Next(1, "x", ttl, l.list); ok || !errors.Is(err, l.err) {
			t.Errorf("a store that fails: %v %v", ok, err)
		}
		time.Sleep(rest)
		l.err, l.names = nil, ""
		next("x", "")
		if n := len(table.streams[1].turns); n != 0 {
			t.Errorf("%d turns are kept for ever", n)
		}
	})
}

func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := New(time.Now)
		for _, step := range []struct {
			holder string
			after  time.Duration
			want   bool
		}{{"x", 0, true}, {"y", ttl - 1, false}, {"x", 0, true}, {"y", ttl - 1, false}, {"y", 1, true}, {"x", 0, false}} {
			time.Sleep(step.after)
			if got := table.Take(1, "a", step.holder, ttl); got != step.want {
				t.Errorf("%+v: %v", step, got)
			}
		}
		if !table.Take(2, "a", "x", ttl) || !table.Take(1, "b", "x", ttl) {
			t.Error("another stream's or bucket's turn is in the way")
		}
		table.Release(1, "a", "y", rest)
		if !table.Take(1, "a", "x", ttl) {
			t.Error("a bucket that rests is not to be had by its name")
		}
	})
	// Many at once: each bucket goes to one.
	table, l := New(time.Now), &lister{}
	for n := range page {
		l.names += fmt.Sprint(" ", n)
	}
	var mu sync.Mutex
	had := map[string]bool{}
	var wg sync.WaitGroup
	for holder := range 8 {
		wg.Go(func() {
			for {
				b, ok, err := table.Next(1, fmt.Sprint(holder), time.Hour, func(limit int) ([]store.DirtyBucket, error) {
					mu.Lock()
					defer mu.Unlock()
					return l.list(limit)
				})
				mu.Lock()
				switch {
				case err != nil:
					t.Error(err)
				case ok && had[b.Bucket]:
					t.Errorf("%s was given out twice", b.Bucket)
				case ok:
					had[b.Bucket] = true
				}
				full := len(had) >= page
				mu.Unlock()
				if full || err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}
