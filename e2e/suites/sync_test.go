package suites

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

const seed = `
INSERT INTO announcements SELECT 'a' || i, 'announcement ' || i FROM generate_series(1, 20) i;
INSERT INTO lists SELECT 'seed' || i, 'seeded' || i % 3, 'list ' || i, i FROM generate_series(1, 3000) i;
INSERT INTO members(list_id, user_id) SELECT 'seed' || i, 'seeded0' FROM generate_series(3, 30, 3) i;
INSERT INTO todos(id, list_id, body) SELECT 't' || i, 'seed' || i % 60, 'todo ' || i FROM generate_series(1, 600) i;
`

func TestDev(t *testing.T) { runSync(t, newWorld(t, harness.Dev, seed)) }

func TestSuite(t *testing.T) { runSync(t, newWorld(t, harness.Suite, seed)) }

// TestDevPostgresStorage is the same with storage on Postgres.
func TestDevPostgresStorage(t *testing.T) {
	runSync(t, newWorld(t, harness.Dev, seed, storage("postgresql")))
}

// TestDevMongoStorage runs what touches storage most with it on MongoDB, or on a
// fake of that, also over a crash.
func TestDevMongoStorage(t *testing.T) {
	w := newWorld(t, harness.Dev, seed, storage("mongodb"))
	runSync(t, w, "InitialSync", "LiveChanges", "MembershipThroughParameterTable", "WriteLoop", "Truncate", "LargeTransactionIsAtomic", "CompactionWhileConnected")
	w.sluice.Kill(harness.All)
	w.sluice.Start(harness.All)
	runSync(t, w, "RowMovesBetweenUsers", "ResumeWithoutDownload", "DeployAnotherConfig")
}

// runSync runs the tests, or only those named.
func runSync(t *testing.T, w *world, only ...string) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"InitialSync", initialSync},
		{"LiveChanges", liveChanges},
		{"RowMovesBetweenUsers", rowMoves},
		{"MembershipThroughParameterTable", membership},
		{"WriteLoop", writeLoop},
		{"WriteLoopWebSocketCheckpointRequests", writeLoopRequests},
		{"ResumeWithoutDownload", resume},
		{"KeyChangeThenOwnerChange", keyChange},
		{"Truncate", truncate},
		{"LargeTransactionIsAtomic", largeTransaction},
		{"TransfersKeepTheirSum", transfers},
		{"CompactionWhileConnected", compaction},
		{"TokenOfAnother", refusedToken},
		{"DeployAnotherConfig", deploy}, // the last: it replaces the config of the others
	} {
		if len(only) > 0 && !slices.Contains(only, test.name) {
			continue
		}
		if !w.run(t, test.name, func(t *testing.T) { test.run(t, w) }) && !alive(w) {
			t.Fatalf("nothing after %s can work: the instance is gone", test.name)
		}
	}
}

// alive says whether the gateway still answers.
func alive(w *world) bool {
	_, err := w.sluice.CLI("status")
	return err == nil
}

func initialSync(t *testing.T, w *world) {
	for _, kind := range []string{"http", "websocket"} {
		c := w.client(t, "seeded0", transport(kind))
		c.FirstSync(2 * time.Minute)
		took := harness.Converged(t, w.pg, soon, lists(c, "seeded0"), todos(c, "seeded0"), announcements(c))
		s := c.Stats()
		if s.OpsTotal != 20+1000+100 {
			t.Errorf("%s: %d ops downloaded for 1120 rows", kind, s.OpsTotal)
		}
		t.Logf("%s: %d ops, equal to the source %s after the first sync", kind, s.OpsTotal, took)
		c.Sound()
		c.Close()
	}
}

func liveChanges(t *testing.T, w *world) {
	user := w.user()
	c := w.client(t, user)
	c.FirstSync(soon)
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ('live1', $1, 'one'), ('live2', $1, NULL)", user)
	insert := harness.Converged(t, w.pg, soon, lists(c, user))
	w.pg.Exec("UPDATE lists SET name = 'one, changed', n = 7 WHERE id = 'live1'")
	update := harness.Converged(t, w.pg, soon, lists(c, user))
	w.pg.Exec("DELETE FROM lists WHERE id = 'live1'")
	remove := harness.Converged(t, w.pg, soon, lists(c, user))
	w.pg.Exec("INSERT INTO unrelated VALUES ('x', 'y'); UPDATE announcements SET body = body || '!' WHERE id = 'a1'")
	harness.Converged(t, w.pg, soon, announcements(c))
	t.Logf("insert %s, update %s, delete %s", insert, update, remove)
	c.Sound()
	c.Close()
}

// rowMoves holds INV-11: a row that leaves a bucket is removed there in the same
// checkpoint in which it appears elsewhere.
func rowMoves(t *testing.T, w *world) {
	from, to := w.user(), w.user()
	a, b := w.client(t, from), w.client(t, to, transport("websocket"))
	a.FirstSync(soon)
	b.FirstSync(soon)
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) SELECT 'move' || i, $1, 'moves' FROM generate_series(1, 50) i", from)
	harness.Converged(t, w.pg, soon, lists(a, from), lists(b, to))
	w.pg.Exec("UPDATE lists SET owner_id = $2 WHERE owner_id = $1 AND id <> 'move7'", from, to)
	harness.Converged(t, w.pg, soon, lists(a, from), lists(b, to))
	w.pg.Exec("UPDATE lists SET owner_id = $2 WHERE owner_id = $1", to, from)
	harness.Converged(t, w.pg, soon, lists(a, from), lists(b, to))
	for _, c := range []*harness.Client{a, b} {
		c.Sound()
		c.Close()
	}
}

func membership(t *testing.T, w *world) {
	user := w.user()
	c := w.client(t, user)
	c.FirstSync(soon)
	w.pg.Exec("INSERT INTO todos(id, list_id, body) SELECT 'm' || i, 'shared', 'shared ' || i FROM generate_series(1, 40) i")
	w.pg.Exec("INSERT INTO members(list_id, user_id) VALUES ('shared', $1)", user)
	harness.Converged(t, w.pg, soon, todos(c, user))
	connects := c.Stats().Connects
	w.pg.Exec("UPDATE todos SET done = true WHERE id = 'm3'")
	harness.Converged(t, w.pg, soon, todos(c, user))
	w.pg.Exec("DELETE FROM members WHERE user_id = $1", user)
	harness.Converged(t, w.pg, soon, todos(c, user)) // INV-32
	w.pg.Exec("INSERT INTO members(list_id, user_id) VALUES ('shared', $1)", user)
	harness.Converged(t, w.pg, soon, todos(c, user))
	if again := c.Stats().Connects; again != connects {
		t.Errorf("the client connected %d more times: changes of membership need no new stream", again-connects)
	}
	c.Sound()
	c.Close()
}

func writeLoop(t *testing.T, w *world) { writes(t, w) }

func writeLoopRequests(t *testing.T, w *world) {
	writes(t, w, transport("websocket"), func(o *harness.ClientOptions) { o.CheckpointMode = "requests" })
}

// writes holds INV-27 and INV-28 as an app sees them: what it wrote locally
// comes back from the source, is acknowledged, and the upload queue ends empty.
func writes(t *testing.T, w *world, more ...with) {
	user := w.user()
	c := w.client(t, user, more...)
	c.FirstSync(soon)
	before := c.Stats().WriteCheckpoint
	c.Execute(
		harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES (?, ?, 'mine', 3)", Args: []any{user + "-w1", user}},
		harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES (?, ?, 'also mine', 4)", Args: []any{user + "-w2", user}},
	)
	if rows, err := c.Rows("SELECT name FROM lists ORDER BY id"); err != nil || !slices.Equal(rows, []string{"mine", "also mine"}) {
		t.Fatalf("local rows right after the write: %v %v", rows, err)
	}
	harness.Eventually(t, soon, "the rows come back from the source", func() error {
		rows, err := c.Rows("SELECT name FROM lists ORDER BY id")
		if err != nil {
			return err
		}
		if len(rows) != 2 {
			t.Fatalf("a written row flickered away: %v", rows)
		}
		return harness.Equal(strings.Join(rows, ","), "mine (from the source),also mine (from the source)")
	})
	harness.Converged(t, w.pg, soon, lists(c, user))
	if rows, err := c.Rows("SELECT count(*) FROM ps_crud"); err != nil || rows[0] != "0" {
		t.Errorf("upload queue: %v %v", rows, err)
	}
	after := c.Stats().WriteCheckpoint
	if after == "" || after == before {
		t.Errorf("write checkpoint %q after the upload, %q before", after, before)
	}

	// On an idle source as well, and while not connected at the time of writing.
	c.Disconnect()
	c.Execute(harness.Statement{SQL: "UPDATE lists SET name = 'changed' WHERE id = ?", Args: []any{user + "-w1"}},
		harness.Statement{SQL: "DELETE FROM lists WHERE id = ?", Args: []any{user + "-w2"}})
	c.Connect()
	harness.Eventually(t, soon, "the offline change comes back", func() error {
		rows, err := c.Rows("SELECT name FROM lists ORDER BY id")
		if err != nil {
			return err
		}
		return harness.Equal(strings.Join(rows, ","), "changed (from the source)")
	})
	harness.Converged(t, w.pg, soon, lists(c, user))
	c.Sound()
	c.Close()
}

func resume(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) SELECT 'r' || i, $1, 'resume' FROM generate_series(1, 300) i", user)
	c := w.client(t, user)
	c.FirstSync(soon)
	harness.Converged(t, w.pg, soon, lists(c, user))
	c.Disconnect()
	base := c.Stats()
	w.pg.Exec("UPDATE lists SET name = 'while away' WHERE id IN ('r1', 'r2')")
	w.pg.Exec("DELETE FROM lists WHERE id = 'r3'")
	c.Connect()
	harness.Converged(t, w.pg, soon, lists(c, user))
	if got := c.Stats().OpsTotal - base.OpsTotal; got != 3 {
		t.Errorf("%d ops were downloaded after 3 changes", got)
	}
	// A broken connection is resumed in the same way, by the SDK itself.
	base = c.Stats()
	w.sluice.Cut()
	harness.Eventually(t, soon, "the client connects again", func() error {
		if s := c.Stats(); s.Connects == base.Connects || s.Lines["checkpoint_complete"] == base.Lines["checkpoint_complete"] {
			return fmt.Errorf("%d connects, %v", s.Connects, s.Lines)
		}
		return nil
	})
	w.pg.Exec("UPDATE lists SET n = 1 WHERE id = 'r9'")
	harness.Converged(t, w.pg, soon, lists(c, user))
	if got := c.Stats().OpsTotal - base.OpsTotal; got != 1 {
		t.Errorf("%d ops were downloaded after 1 change", got)
	}
	c.Sound()
	c.Close()
}

// keyChange holds INV-12 on the road of issue 2: a primary key changes, then the
// owner of the same row, in one transaction and in two.
func keyChange(t *testing.T, w *world) {
	from, to := w.user(), w.user()
	a, b := w.client(t, from), w.client(t, to)
	a.FirstSync(soon)
	b.FirstSync(soon)
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) SELECT 'key' || i, $1, 'key' FROM generate_series(1, 20) i", from)
	harness.Converged(t, w.pg, soon, lists(a, from), lists(b, to))
	w.pg.Exec("UPDATE lists SET id = id || '-new' WHERE owner_id = $1", from)
	w.pg.Exec("UPDATE lists SET owner_id = $2 WHERE owner_id = $1", from, to)
	harness.Converged(t, w.pg, soon, lists(a, from), lists(b, to))
	w.pg.Exec(fmt.Sprintf(`BEGIN;
		UPDATE lists SET id = id || '-er' WHERE owner_id = '%[2]s';
		UPDATE lists SET owner_id = '%[1]s' WHERE owner_id = '%[2]s';
		UPDATE lists SET id = 'swap' WHERE id = 'key1-new-er';
		UPDATE lists SET id = 'key1-new-er' WHERE id = 'key2-new-er';
		UPDATE lists SET id = 'key2-new-er' WHERE id = 'swap';
		COMMIT`, from, to))
	harness.Converged(t, w.pg, soon, lists(a, from), lists(b, to))
	for _, c := range []*harness.Client{a, b} {
		c.Sound()
		c.Close()
	}
}

func truncate(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO counters SELECT 'tr' || i, $1, i FROM generate_series(1, 200) i", user)
	c := w.client(t, user)
	c.FirstSync(soon)
	harness.Converged(t, w.pg, soon, counters(c, user))
	w.pg.Exec("BEGIN; TRUNCATE counters; INSERT INTO counters VALUES ('after', '" + user + "', 1); COMMIT")
	harness.Converged(t, w.pg, soon, counters(c, user))
	c.Sound()
	c.Close()
}

// largeTransaction holds D1: a client sees none of a transaction or all of it.
func largeTransaction(t *testing.T, w *world) {
	user := w.user()
	c := w.client(t, user)
	c.FirstSync(soon)
	const rows = 20_000
	none, zeros, ones := "0|NULL", fmt.Sprintf("%d|0", rows), fmt.Sprintf("%d|%d", rows, rows)
	for _, step := range []struct{ sql, before, after string }{
		{fmt.Sprintf("INSERT INTO counters SELECT $1 || i, $1, 0 FROM generate_series(1, %d) i", rows), none, zeros},
		{"UPDATE counters SET n = n + 1 WHERE owner_id = $1", zeros, ones},
		{"DELETE FROM counters WHERE owner_id = $1", ones, none},
	} {
		w.pg.Exec(step.sql, user)
		took := harness.Eventually(t, 2*time.Minute, "the whole transaction", func() error {
			got, err := c.Rows("SELECT count(*), sum(n) FROM counters")
			if err != nil {
				return err
			}
			if got[0] != step.before && got[0] != step.after {
				t.Fatalf("D1: the client holds %s, which was never committed (%s, then %s)", got[0], step.before, step.after)
			}
			return harness.Equal(got[0], step.after)
		})
		t.Logf("%s: %d rows held after %s", strings.Fields(step.sql)[0], rows, took)
	}
	c.Sound()
	c.Close()
}

// transfers holds D1 for many small transactions: money moves between accounts,
// and at no moment does a client see another sum.
func transfers(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO accounts SELECT $1 || i, $1, 100 FROM generate_series(1, 10) i", user)
	c := w.client(t, user)
	c.FirstSync(soon)
	harness.Converged(t, w.pg, soon, accounts(c, user))
	load := startTransfers(t, w.pg, user, 2*time.Millisecond)
	checks := 0
	for start := time.Now(); time.Since(start) < 3*time.Second; checks++ {
		got, err := c.Rows("SELECT sum(balance), count(*) FROM accounts")
		if err != nil {
			t.Fatal(err)
		}
		if got[0] != "1000|10" {
			t.Fatalf("D1: sum and count of the accounts are %s, want 1000|10", got[0])
		}
	}
	moved := load.stop()
	took := harness.Converged(t, w.pg, soon, accounts(c, user))
	t.Logf("%d transfers, the sum was right in %d checks; equal %s after the last", moved, checks, took)
	c.Sound()
	c.Close()
}

// compaction holds D6 and INV-18: clients that were connected, that were away,
// and that are new hold the same after the history was rewritten.
func compaction(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) SELECT 'c' || i, $1, 'v0' FROM generate_series(1, 40) i", user)
	connected, away := w.client(t, user), w.client(t, user, transport("websocket"))
	connected.FirstSync(soon)
	away.FirstSync(soon)
	harness.Converged(t, w.pg, soon, lists(connected, user), lists(away, user))
	away.Disconnect()
	for v := range 50 {
		w.pg.Exec("UPDATE lists SET n = $2 WHERE owner_id = $1", user, v)
	}
	w.pg.Exec("DELETE FROM lists WHERE owner_id = $1 AND id < 'c2'", user)
	harness.Converged(t, w.pg, soon, lists(connected, user))
	before := bucketOf(t, connected, "own")
	if out, err := w.sluice.CLI("compact"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.pg.Exec("UPDATE lists SET name = 'after compaction' WHERE owner_id = $1 AND id < 'c3'", user)
	harness.Converged(t, w.pg, soon, lists(connected, user))
	away.Connect()
	fresh := w.client(t, user)
	fresh.FirstSync(soon)
	harness.Converged(t, w.pg, soon, lists(connected, user), lists(away, user), lists(fresh, user))
	after := bucketOf(t, fresh, "own")
	s := fresh.Stats()
	t.Logf("history of %d ops; a new client got %v of %d", before.Count, s.Ops, after.Count)
	if live := s.Ops["PUT"]; live > 2*40 {
		t.Errorf("a new client got %d PUTs for at most 40 rows: the history was not compacted", live)
	}
	for _, c := range []*harness.Client{connected, away, fresh} {
		c.Sound()
		c.Close()
	}
}

func refusedToken(t *testing.T, w *world) {
	user := w.user()
	c := w.client(t, user, func(o *harness.ClientOptions) {
		o.Token = harness.Token(t, user, time.Hour, map[string]any{"aud": "someone-else"})
	})
	harness.Eventually(t, soon, "the refusal reaches the app", func() error {
		if s := c.Status(); !strings.Contains(s.DownloadError, "PSYNC_S2105") {
			return fmt.Errorf("download error %q", s.DownloadError)
		}
		return nil
	})
	c.SetToken(harness.Token(t, user, time.Hour, nil))
	c.FirstSync(soon)
	c.Close()
}

// deploy holds INV-36 and INV-37: clients go over to a new config without an
// error, and a config that does not compile changes nothing.
func deploy(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ('d1', $1, 'one')", user)
	w.pg.Exec("INSERT INTO unrelated VALUES ($1, 'now synced')", user)
	c := w.client(t, user, func(o *harness.ClientOptions) {
		o.Schema = maps.Clone(o.Schema)
		o.Schema["unrelated"] = map[string]string{"x": "text"}
	})
	c.FirstSync(soon)
	harness.Converged(t, w.pg, soon, lists(c, user))

	if out, err := w.sluice.TryDeploy(strings.Replace(syncConfig, "bucket.user_id", "bucket.nobody", 1)); err == nil {
		t.Errorf("a config that does not compile was deployed:\n%s", out)
	}
	w.pg.Exec("UPDATE lists SET name = 'two' WHERE id = 'd1'")
	harness.Converged(t, w.pg, soon, lists(c, user))

	w.sluice.Deploy(syncConfig + `
  unrelated:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT * FROM unrelated WHERE id = bucket.user_id
`)
	unrelated := harness.Same{
		Client: c,
		Local:  "SELECT id, x FROM unrelated",
		Source: fmt.Sprintf("SELECT id, x FROM unrelated WHERE id = '%s'", user),
	}
	harness.Converged(t, w.pg, soon, unrelated, lists(c, user))
	w.pg.Exec("UPDATE lists SET name = 'three' WHERE id = 'd1'")
	harness.Converged(t, w.pg, soon, unrelated, lists(c, user))
	c.Sound()
	c.Close()
}
