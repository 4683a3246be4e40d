package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// BenchmarkHugeTransaction is one transaction of five million rows: how much
// memory the replicator, in a process of its own, takes for it at most.
func BenchmarkHugeTransaction(b *testing.B) {
	rows := scaled(5_000_000)
	w := newWorld(b, "")
	w.sluice = harness.StartInstance(b, harness.NeedsServers(b), w.pg, harness.Options{Mode: harness.Suite, Replicas: 1, SyncConfig: syncConfig, Storage: os.Getenv("SLUICE_BENCH_STORAGE")})
	harness.Eventually(b, time.Minute, "the first checkpoint", func() error {
		s, err := w.stream(b.Context(), "nobody", 4<<10)
		if err == nil {
			s.Close()
		}
		return err
	})
	for b.Loop() {
		s := w.must("last", 4<<10)
		before := w.peak(harness.Replicator)
		begin := time.Now()
		// One statement, one transaction; its last row is what a client waits for.
		w.exec(fmt.Sprintf("INSERT INTO rows(owner, body) SELECT CASE i WHEN %[1]d THEN 'last' ELSE 'huge' || i %% 1000 END, %[2]s FROM generate_series(1, %[1]d) i", rows, body))
		written := time.Since(begin)
		if err := s.read(1); err != nil {
			b.Fatal(err)
		}
		took := time.Since(begin)
		w.report(Result{Metric: "replicator's memory at most", Value: w.peak(harness.Replicator), Unit: "MiB", Goal: 256, Better: "less", Limit: before, LimitWhat: "the same process, idle"})
		w.report(Result{Metric: "one transaction", Value: float64(rows) / took.Seconds(), Unit: "rows/s", Better: "more",
			Limit: float64(rows) / written.Seconds(), LimitWhat: "the source's own write of it"})
	}
}

// peak is the most memory that a process has had so far, in MiB.
func (w *world) peak(process string) float64 {
	w.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.sluice.PID(process)))
	if err != nil {
		w.Fatal(err)
	}
	kib, err := strconv.ParseFloat(strings.TrimSuffix(field(string(text), "VmHWM"), " kB"), 64)
	if err != nil {
		w.Fatalf("VmHWM: %v", err)
	}
	return kib / 1024
}
