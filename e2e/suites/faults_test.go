package suites

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// recovery is what a user may wait after a fault until data is fresh again.
var recovery = harness.Patience(10 * time.Second)

// faultSeed picks the moments and the rows of the load; SLUICE_E2E_SEED replays one.
func faultSeed(t *testing.T) uint64 {
	if s := os.Getenv("SLUICE_E2E_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SLUICE_E2E_SEED: %v", err)
		}
		return n
	}
	return rand.Uint64() % 1_000_000
}

// TestFaults breaks one part after the other under write load. After each, every
// client equals the source, is fresh within 10 s, has seen no wrong checksum,
// has downloaded nothing again, and no change was applied twice (D2, D4, D5, D6).
func TestFaults(t *testing.T) { runFaults(t, newFaults(t, harness.Suite)) }

// TestFaultsPostgresStorage breaks what touches storage on Postgres.
func TestFaultsPostgresStorage(t *testing.T) {
	runFaults(t, newFaults(t, harness.Suite, storage("postgresql")), "KillBucketStore", "KillCompactorAtWork", "KillReplicatorAndWipeNATS", "RestartPostgres", "CrashPostgres", "KillEverything")
}

// runFaults does all that is broken, or only what is named.
func runFaults(t *testing.T, f *faults, only ...string) {
	w := f.world
	kill := func(name string) func(*testing.T) {
		return func(t *testing.T) {
			w.sluice.Kill(name)
			w.sluice.Start(name)
		}
	}
	for _, fault := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"KillReplicator", kill(harness.Replicator)},
		{"KillEvaluator", kill(harness.Evaluator1)},
		{"KillBothEvaluators", func(t *testing.T) {
			w.sluice.Kill(harness.Evaluator1)
			w.sluice.Kill(harness.Evaluator2)
			w.sluice.Start(harness.Evaluator1)
			w.sluice.Start(harness.Evaluator2)
		}},
		{"KillBucketStore", kill(harness.BucketStore)},
		{"KillCompactorAtWork", f.killCompactor},
		{"KillGateway", kill(harness.Gateway1)},
		{"KillNATS", kill(harness.NATS)},
		{"WipeNATS", func(t *testing.T) {
			w.sluice.Kill(harness.NATS)
			w.sluice.WipeNATS()
			w.sluice.Start(harness.NATS)
		}},
		{"KillReplicatorAndWipeNATS", func(t *testing.T) {
			w.sluice.Kill(harness.Replicator)
			w.sluice.Kill(harness.NATS)
			w.sluice.WipeNATS()
			w.sluice.Start(harness.NATS)
			w.sluice.Start(harness.Replicator)
		}},
		{"RestartPostgres", func(t *testing.T) {
			w.pg.Stop("fast")
			w.pg.Start()
		}},
		{"CrashPostgres", func(t *testing.T) {
			w.pg.Stop("immediate")
			w.pg.Start()
		}},
		{"KillEverything", func(t *testing.T) {
			all := w.sluice.Running()
			for _, name := range all {
				w.sluice.Kill(name)
			}
			// All at once, as after a power cut: whichever is ready first. One after
			// the other, the load would write for half a minute before the last.
			f.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			var starting sync.WaitGroup
			for _, name := range all {
				starting.Go(func() { w.sluice.Start(name) })
			}
			starting.Wait()
		}},
		{"StopEverythingPolitely", func(t *testing.T) {
			w.sluice.Down()
			w.sluice.Up()
		}},
		{"PausedSecondReplicator", f.pausedReplicator},
	} {
		if len(only) > 0 && !slices.Contains(only, fault.name) {
			continue
		}
		if !w.run(t, fault.name, func(t *testing.T) { f.fault(t, fault.do) }) {
			t.Fatalf("the faults after %s would only repeat its failure; SLUICE_E2E_SEED=%d", fault.name, f.seed)
		}
	}
}

// TestDevFaults does the same to the one process of `sluice dev`.
func TestDevFaults(t *testing.T) {
	f := newFaults(t, harness.Dev)
	for _, fault := range []struct {
		name string
		end  func(string)
	}{
		{"Kill", f.sluice.Kill},
		{"Stop", f.sluice.Stop},
	} {
		f.run(t, fault.name, func(t *testing.T) {
			f.fault(t, func(*testing.T) {
				fault.end(harness.All)
				f.sluice.Start(harness.All)
			})
		})
	}
}

type faultClient struct {
	user string
	*harness.Client
}

type faults struct {
	*world
	seed    uint64
	random  *rand.Rand
	users   []string
	clients []faultClient
	rounds  int
	// folded is by how much compaction has made the counters' history shorter.
	folded    int
	compacted bool // in this fault
}

func newFaults(t *testing.T, mode harness.Mode, more ...func(*harness.Options)) *faults {
	t.Helper()
	seed := faultSeed(t)
	t.Logf("SLUICE_E2E_SEED=%d", seed)
	w := newWorld(t, mode, `
		INSERT INTO lists SELECT 's' || i, 'f' || i % 4, 'seed', i FROM generate_series(1, 2000) i;
		INSERT INTO counters SELECT 'count' || i, 'f0', 0 FROM generate_series(1, 5) i;
		INSERT INTO accounts SELECT 'f1' || i, 'f1', 100 FROM generate_series(1, 10) i;`,
		// Ops are counted below, and compaction folds them.
		append(more, func(o *harness.Options) { o.CompactOnDemand = true })...)
	f := &faults{world: w, seed: seed, random: rand.New(rand.NewPCG(seed, 1))}
	for i := range 4 {
		user := fmt.Sprintf("f%d", i)
		f.clients = append(f.clients, faultClient{user, w.client(t, user, transport([]string{"http", "websocket"}[i%2]))})
		f.users = append(f.users, user)
	}
	for _, c := range f.clients {
		c.FirstSync(2 * time.Minute)
	}
	f.equal(t, soon)
	return f
}

// equal waits until every client holds what its user may see.
func (f *faults) equal(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	var same []harness.Same
	for _, c := range f.clients {
		same = append(same, lists(c.Client, c.user), counters(c.Client, c.user), accounts(c.Client, c.user))
	}
	return harness.Converged(t, f.pg, within, same...)
}

// fault breaks something in the middle of a write load, twice at random moments,
// and checks what must hold afterwards.
func (f *faults) fault(t *testing.T, breakIt func(*testing.T)) {
	f.rounds++
	base := map[string]harness.Stats{}
	for _, c := range f.clients {
		base[c.user] = c.Stats()
	}
	churn := startChurn(t, f.pg, f.users, f.seed+uint64(f.rounds))
	count := startCounting(t, f.pg)
	bank := startTransfers(t, f.pg, "f1", 20*time.Millisecond)
	for range 2 {
		f.whileRunning(t, time.Duration(200+f.random.IntN(800))*time.Millisecond)
		breakIt(t)
	}
	repaired := time.Now()

	// Fresh again: a row written now arrives, with the load still running.
	f.pg.Exec("INSERT INTO lists(id, owner_id, name) SELECT $1 || i, 'f' || i, 'fresh' FROM generate_series(0, 3) i",
		fmt.Sprintf("fresh%d-", f.rounds))
	for _, c := range f.clients {
		harness.Eventually(t, time.Until(repaired.Add(recovery)), "client "+c.user+" is fresh again", func() error {
			rows, err := c.Rows("SELECT count(*) FROM lists WHERE id LIKE ?", fmt.Sprintf("fresh%d-%%", f.rounds))
			if err != nil {
				return err
			}
			return harness.Equal(rows[0], "1")
		})
	}
	fresh := time.Since(repaired)

	writes := churn.stop() + bank.stop()
	counted := count.stop()
	f.equal(t, soon)

	for _, c := range f.clients {
		c.Sound()
		now := c.Stats()
		// Each transaction of the load changes at most three rows, and a change
		// is at most a REMOVE and a PUT for one client. A full download is more.
		most := 6*(writes+counted) + 100
		if got := now.OpsTotal - base[c.user].OpsTotal; got > most {
			t.Errorf("client %s downloaded %d ops, at most %d were written: something was downloaded again", c.user, got, most)
		}
		for _, b := range now.ResumedBuckets {
			if b.After == "0" {
				t.Errorf("client %s asked for %s from the start", c.user, b.Name)
			}
		}
	}
	// D4: every update of a counter is exactly one op of its bucket, however
	// often it was read, delivered or applied.
	ops, changes := f.counterOps(t)
	if f.compacted && ops+f.folded <= changes {
		f.folded, f.compacted = changes-ops, false
	}
	if ops+f.folded != changes {
		t.Errorf("D4: %d ops and %d folded ones for %d inserts and updates", ops, f.folded, changes)
	}
	t.Logf("fresh %s after the repair, %d transactions", fresh.Round(time.Millisecond), writes+counted)
}

// counterOps returns the ops of the counters' bucket and the changes of the
// source that made them.
func (f *faults) counterOps(t *testing.T) (ops, changes int) {
	t.Helper()
	rows, err := f.pg.Rows("SELECT 5 + sum(n) FROM counters")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(rows[0], &changes); err != nil {
		t.Fatal(err)
	}
	return bucketOf(t, f.clients[0].Client, "counters").Count, changes
}

// whileRunning lets the load run and holds that money is never seen to vanish (D1).
func (f *faults) whileRunning(t *testing.T, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		rows, err := f.clients[1].Rows("SELECT sum(balance), count(*) FROM accounts")
		if err != nil {
			t.Fatal(err)
		}
		if rows[0] != "1000|10" {
			t.Fatalf("D1: sum and count of the accounts are %s, want 1000|10", rows[0])
		}
	}
}

// killCompactor kills the compactor while it works, and compacts again after.
func (f *faults) killCompactor(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It fails when the compactor dies under it; that is the point.
		f.sluice.CLI("compact")
	}()
	f.whileRunning(t, time.Duration(f.random.IntN(60))*time.Millisecond)
	f.sluice.Kill(harness.Compactor)
	f.sluice.Start(harness.Compactor)
	<-done
	f.compacted = true
}

// pausedReplicator freezes the replicator for longer than its lease, lets a
// second one take over, and wakes the first: what that one still sends must do
// no harm (D5).
func (f *faults) pausedReplicator(t *testing.T) {
	f.sluice.Start(harness.Replicator2)
	f.sluice.Pause(harness.Replicator)
	paused := time.Now()
	f.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1, 'f2', 'taken over')", fmt.Sprintf("takeover%d-%d", f.rounds, paused.UnixNano()))
	harness.Eventually(t, 60*time.Second, "the second replicator takes over", func() error {
		rows, err := f.clients[2].Rows("SELECT count(*) FROM lists WHERE id = ?", fmt.Sprintf("takeover%d-%d", f.rounds, paused.UnixNano()))
		if err != nil {
			return err
		}
		return harness.Equal(rows[0], "1")
	})
	t.Logf("taken over after %s", time.Since(paused).Round(time.Millisecond))
	f.sluice.Resume(harness.Replicator)
	f.whileRunning(t, time.Second)
	f.sluice.Kill(harness.Replicator2)
}
