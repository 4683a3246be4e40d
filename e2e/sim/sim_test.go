package sim

import (
	"context"
	"flag"
	"maps"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
)

var (
	runs  = flag.Int("sim.n", 0, "number of seeds to simulate; 0 = 2000, or 400 with the race detector")
	seed  = flag.Uint64("sim.seed", 0, "replay this seed only")
	first = flag.Uint64("sim.first", 1, "first of the seeds; 0 = one by chance")
	steps = flag.Int("sim.steps", 1500, "steps of each seed")
)

// simulate runs one seed and returns what happened how often, or the failure.
func simulate(ctx context.Context, seed uint64) (counts map[string]int, failure *Failure) {
	s := memory.New()
	defer s.Close()
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(*Failure)
			if !ok {
				panic(r)
			}
			failure = f
		}
	}()
	w := New(ctx, seed, s)
	for range *steps {
		w.Step()
	}
	w.Settle()
	w.counts["completes"], w.counts["ops sent"] = w.completes, w.ops
	return w.counts, nil
}

// TestSim: D1 to D7 over seeds. -sim.seed replays one.
func TestSim(t *testing.T) {
	if *seed != 0 {
		counts, failure := simulate(t.Context(), *seed)
		if failure != nil {
			t.Fatal(failure)
		}
		t.Log(counts)
		return
	}
	// Worlds are small and make much that is soon forgotten.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	n := *runs
	if n == 0 {
		if n = 2000; raceEnabled {
			n = 400
		}
		if testing.Short() {
			n = 100
		}
	}
	from := *first
	if from == 0 {
		from = rand.Uint64N(1 << 40)
	}
	began := time.Now()
	var (
		mu     sync.Mutex
		total  = map[string]int{}
		failed []*Failure
		wg     sync.WaitGroup
	)
	next := make(chan uint64) // closed when all seeds are handed out
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for s := range next {
				counts, failure := simulate(t.Context(), s)
				mu.Lock()
				if failure != nil {
					failed = append(failed, failure)
				}
				for k, v := range counts {
					total[k] += v
				}
				mu.Unlock()
			}
		})
	}
	for i := range n {
		mu.Lock()
		enough := len(failed) > 3
		mu.Unlock()
		if enough {
			break
		}
		next <- from + uint64(i)
	}
	close(next)
	wg.Wait()
	for _, f := range failed {
		t.Errorf("%v\nreplay: go test ./e2e/sim -run TestSim -sim.seed=%d -sim.steps=%d", f, f.Seed, *steps)
	}
	t.Logf("%d seeds in %s", n, time.Since(began).Round(time.Millisecond))
	for _, k := range slices.Sorted(maps.Keys(total)) {
		t.Logf("%9d %s", total[k], k)
	}
	// What never happens is not tested.
	for _, k := range []string{
		"commits", "refused commits", "completes", "compaction steps", "overtaken compactions", "reemissions", "invalid chunks",
		"invalidated views", "replicators that live on", "writers that live on", "batches committed", "batches obsolete", "batches retry",
		"configs served", "streams of a config before", "deploys", "deploys over a deploy", "activations", "rollbacks", "rollbacks before activation",
		"slots lost", "histories lost", "logs", "refused logs", "logs that begin while a layer is copied", "logs that begin while a deploy is processed", "streams cleared", "streams that end under a client",
		"layers added", "layers copied", "layers withdrawn",
	} {
		if n >= 1000 && total[k] == 0 && len(failed) == 0 {
			t.Errorf("%q never happened", k)
		}
	}
}
