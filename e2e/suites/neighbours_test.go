package suites

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// TestNeighbours: all works while each service hears from every other what one of
// the next version may say, and what it does not know yet is told to whoever asks.
func TestNeighbours(t *testing.T) {
	dir := harness.NeedsServers(t)
	pg := harness.StartPostgres(t, dir)
	pg.Exec(sourceSchema)
	later := harness.NewNeighbours(t)
	w := &world{pg: pg, sluice: harness.StartInstance(t, dir, pg, harness.Options{
		Mode: harness.Suite, Replicas: 1, SyncConfig: syncConfig,
		Env: func(in *harness.Instance, process string) []string {
			store := func(unknown ...string) string {
				return "SLUICE_BUCKET_STORE_ADDRESS=" + later.GRPC(in.Address(harness.BucketStore), unknown...)
			}
			nats := func() string { return "SLUICE_NATS_URL=nats://" + later.NATS(in.Address(harness.NATS)) }
			switch process {
			case harness.NATS:
				return nil
			case harness.BucketStore:
				return []string{nats()}
			case harness.Compactor:
				return []string{store()}
			case harness.Gateway1:
				return []string{
					nats(), store("/sluice.v1.Storage/Backup"),
					"SLUICE_REPLICATOR_ADDRESS=" + later.GRPC(in.Address(harness.Replicator)),
					"SLUICE_COMPACTOR_ADDRESS=" + later.GRPC(in.Address(harness.Compactor)),
				}
			}
			return []string{nats(), store()}
		},
		Only: []string{harness.NATS, harness.BucketStore, harness.Replicator, harness.Evaluator1, harness.Compactor, harness.Gateway1},
	})}
	w.driver = harness.StartDriver(t, dir)
	user := w.user()
	c := w.client(t, user)
	c.FirstSync(2 * time.Minute)

	// Rows, one of which has a value that the log leaves out when it stays.
	pg.Exec(`INSERT INTO lists(id, owner_id, name) SELECT 'n' || i, $1, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300)) FROM generate_series(1, 3) i`, user)
	for range 30 {
		pg.Exec(`UPDATE lists SET n = n + 1`)
	}
	pg.Exec(`DELETE FROM lists WHERE id = 'n3'`)
	pg.Exec(`INSERT INTO members(list_id, user_id) VALUES ('n1', $1)`, user)
	pg.Exec(`INSERT INTO todos(id, list_id) VALUES ('t1', 'n1')`)
	harness.Converged(t, pg, soon, lists(c, user), todos(c, user))

	// What a client writes comes back to it.
	c.Execute(harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name) VALUES ('mine', ?, 'mine')", Args: []any{user}})
	harness.Eventually(t, soon, "the written row is back", func() error {
		rows, err := c.Rows("SELECT name FROM lists WHERE id = 'mine'")
		if err != nil {
			return err
		}
		return harness.Equal(strings.Join(rows, ""), "mine (from the source)")
	})
	if out, err := w.sluice.CLI("compact"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}

	// Another config, with a copy of its own: values are converted in another way.
	pg.Exec(`INSERT INTO announcements VALUES ('a1', 'soft')`)
	w.sluice.File("sync.yaml", strings.Replace(syncConfig, "SELECT * FROM announcements", "SELECT id, upper(body) AS body FROM announcements", 1)+"\nconfig:\n  timestamps_iso8601: true\n")
	harness.Eventually(t, time.Minute, "the other config is active", func() error {
		rows, err := c.Rows("SELECT body FROM announcements")
		if err != nil {
			return err
		}
		return harness.Equal(strings.Join(rows, ","), "SOFT")
	})
	harness.Converged(t, pg, soon, lists(c, user), todos(c, user))

	if out, err := w.sluice.CLI("storage", "backup", "b"); err == nil || !strings.Contains(out, "PSYNC_S9012") || !strings.Contains(out, "older version") {
		t.Errorf("a backup that the store does not know: %v\n%s", err, out)
	}
	harness.Eventually(t, soon, "the instance is healthy", func() error {
		out, err := w.sluice.CLI("status")
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})

	for _, name := range []string{
		"sluice.changes.1", "sluice.changes.2", "sluice.checkpoints.1", "sluice.checkpoints.2",
		"/sluice.v1.Appender/Apply", "/sluice.v1.Appender/PreviousRows",
		"/sluice.v1.Replication/OpenSession", "/sluice.v1.Replication/RenewLease", "/sluice.v1.Replication/Committed", "/sluice.v1.Replication/Terminate",
		"/sluice.v1.Catalog/Deploy", "/sluice.v1.Catalog/Watch", "/sluice.v1.Catalog/List",
		"/sluice.v1.Reader/Head", "/sluice.v1.Reader/Lookups", "/sluice.v1.Reader/Checksums", "/sluice.v1.Reader/Ops",
		"/sluice.v1.WriteCheckpoints/Create", "/sluice.v1.Source/Position", "/sluice.v1.Source/Diagnose",
		"/sluice.v1.Compaction/Dirtiest", "/sluice.v1.Compaction/Scan", "/sluice.v1.Compaction/Replace", "/sluice.v1.Compactor/Compact",
	} {
		harness.Eventually(t, soon, "somebody hears of a later version by "+name, func() error { // some come in the background
			if later.Seen(name) == 0 {
				return errors.New("nobody has")
			}
			return nil
		})
	}
}
