package suites

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// TestSourceLost: the slot is dropped, and the source is put back to an earlier
// state, while a client is connected. It stays connected, is sent what differs and
// nothing else, and its uploads are acknowledged.
func TestSourceLost(t *testing.T) {
	dir := harness.NeedsServers(t)
	w := &world{pg: harness.StartPostgres(t, dir)}
	const rows = 3000
	w.pg.Exec(sourceSchema + fmt.Sprintf(`INSERT INTO lists SELECT 'l' || i, 'u', repeat('x', 100), i FROM generate_series(1, %d) i;`, rows))
	// With its own storage: what is put back is the source alone.
	w.sluice = harness.StartInstance(t, dir, w.pg, harness.Options{Mode: harness.Suite, SyncConfig: syncConfig, Storage: "embedded",
		Only: []string{harness.NATS, harness.BucketStore, harness.Replicator, harness.Evaluator1, harness.Gateway1}})
	w.sluice.Balance(harness.Gateway1)
	w.driver = harness.StartDriver(t, dir)
	c := w.client(t, "u")
	c.FirstSync(2 * time.Minute)
	same := func(what string) {
		t.Helper()
		took := harness.Converged(t, w.pg, soon, lists(c, "u"))
		t.Logf("%s: the client has it after %s", what, took.Round(time.Millisecond))
	}
	same("the first copy")
	if n := c.Stats().OpsTotal; n < rows {
		t.Fatalf("%d ops for %d rows", n, rows)
	}
	// differs says how many ops the client is sent while do happens and after.
	differs := func(what string, ops int, do func()) {
		t.Helper()
		before := c.Stats()
		do()
		// An upload that waits for its acknowledgement.
		c.Execute(harness.Statement{SQL: fmt.Sprintf("INSERT INTO lists(id, owner_id, name, n) VALUES ('%s', 'u', 'uploaded', 0)", what)})
		harness.Eventually(t, soon, "the upload is at the source", func() error {
			got, err := w.pg.Rows(fmt.Sprintf("SELECT count(*) FROM lists WHERE id = '%s'", what))
			if err != nil {
				return err
			}
			return harness.Equal(fmt.Sprint(got), "[1]")
		})
		w.sluice.Start(harness.Replicator)
		same(what)
		after := c.Stats()
		if got := after.OpsTotal - before.OpsTotal; got != ops+1 {
			t.Errorf("%s: the client was sent %d ops, want %d", what, got, ops+1)
		}
		if got := after.Bytes - before.Bytes; got > 20_000 {
			t.Errorf("%s: the client was sent %d bytes for %d ops", what, got, ops+1)
		}
		if after.Connects != before.Connects {
			t.Errorf("%s: the client has connected %d times, before %d", what, after.Connects, before.Connects)
		}
		if n := len(after.Buckets); n != len(before.Buckets) {
			t.Errorf("%s: the client has %d buckets, before %d", what, n, len(before.Buckets))
		}
		c.Sound()
		// What comes after it comes from the log.
		w.pg.Exec("UPDATE lists SET n = n + 1 WHERE id = 'l10'")
		same(what + ", a change later")
	}

	w.sluice.Kill(harness.Replicator)
	differs("slot", 6, func() {
		harness.Eventually(t, soon, "the slot is dropped", func() error {
			_, err := w.pg.Rows("SELECT pg_drop_replication_slot(slot_name)::text FROM pg_replication_slots")
			return err
		})
		w.pg.Exec("UPDATE lists SET name = 'changed' WHERE id IN ('l1', 'l2', 'l3'); DELETE FROM lists WHERE id = 'l4'; INSERT INTO lists VALUES ('m1', 'u', 'new', 1), ('m2', 'u', 'new', 2)")
	})

	w.pg.Stop("fast")
	restore := w.pg.Save()
	w.pg.Start()
	// Much more than what is written after: the log that is put back ends before what
	// is stored.
	w.pg.Exec(`INSERT INTO unrelated SELECT i::text, repeat('z', 1000) FROM generate_series(1, 5000) i;
		INSERT INTO lists SELECT 'n' || i, 'u', repeat('y', 1000), i FROM generate_series(1, 50) i; UPDATE lists SET name = 'forgotten' WHERE id = 'l20'`)
	same("what the source will forget")
	w.sluice.Kill(harness.Replicator)
	differs("history", 50+1+2, func() {
		w.pg.Stop("fast")
		restore()
		w.pg.Start()
		w.pg.Exec("UPDATE lists SET name = 'changed' WHERE id = 'l30'; DELETE FROM lists WHERE id = 'l31'")
	})
}
