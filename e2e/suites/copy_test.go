package suites

import (
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// TestStorageCopy: an instance whose storage was copied to Postgres goes on from
// where it was: clients download only what has changed since, replication reads
// on from its slot, and uploads are acknowledged.
func TestStorageCopy(t *testing.T) {
	w := newWorld(t, harness.Dev, seed, storage("embedded"))
	c := w.client(t, "seeded0")
	c.FirstSync(2 * time.Minute)
	harness.Converged(t, w.pg, soon, lists(c, "seeded0"), todos(c, "seeded0"), announcements(c))
	to := w.sluice.OtherStorage(w.pg, "postgresql")
	if out, err := w.sluice.CLI("storage", "copy", "--to", to); err == nil || !strings.Contains(out, "in use") {
		t.Errorf("copied while it runs: %v: %s", err, out)
	}
	w.sluice.Stop(harness.All)
	before := c.Stats()
	w.pg.Exec("UPDATE lists SET name = 'changed meanwhile' WHERE id IN ('seed3', 'seed6')")

	out, err := w.sluice.CLI("storage", "copy", "--to", to, "--json")
	if err != nil || !strings.Contains(out, `"streams":["powersync_1_`) {
		t.Fatalf("%v: %s", err, out)
	}
	w.sluice.UseConfig(to)
	w.sluice.Start(harness.All)
	harness.Converged(t, w.pg, soon, lists(c, "seeded0"), todos(c, "seeded0"), announcements(c))
	c.Execute(harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES ('mine', 'seeded0', 'mine', 4)"})
	harness.Converged(t, w.pg, soon, lists(c, "seeded0"))
	after := c.Stats()
	if got := after.OpsTotal - before.OpsTotal; got != 3 {
		t.Errorf("%d ops were downloaded after the copy, want 3", got)
	}
	if got := after.Bytes - before.Bytes; got > before.Bytes/10 {
		t.Errorf("%d bytes were downloaded after the copy, all that there is was %d", got, before.Bytes)
	}
	resumed := 0
	for _, b := range after.ResumedBuckets {
		if b.After != "0" {
			resumed++
		}
	}
	if resumed < 3 {
		t.Errorf("the client resumed %v", after.ResumedBuckets)
	}
	t.Logf("downloaded %d bytes before and %d after", before.Bytes, after.Bytes-before.Bytes)
	if n := slots(t, w.pg); n != 1 {
		t.Errorf("there are %d slots", n)
	}
	if text := w.sluice.Log(harness.All); strings.Count(text, "replication stream made") != 1 {
		t.Error("another replication stream was made")
	}
	c.Sound()
}
