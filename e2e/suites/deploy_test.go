package suites

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// deployed is a stream as `sluice status --json` shows it.
type deployed struct {
	Name      string
	State     string
	LastError string `json:"last_error"`
	Adding    bool
	Copy      struct{ Rows int }
}

// otherDefinition may follow those of syncConfig.
const otherDefinition = `
  unrelated:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT * FROM unrelated WHERE id = bucket.user_id
`

func streams(t *testing.T, w *world) []deployed {
	t.Helper()
	out, err := w.sluice.CLI("status", "--json")
	if err != nil && !strings.Contains(out, "S9003") {
		t.Fatalf("status: %v: %s", err, out)
	}
	var s struct{ Streams []deployed }
	if err := json.Unmarshal([]byte(out[:strings.LastIndexByte(out, '}')+1]), &s); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return s.Streams
}

// TestDeploys holds what deploying costs, and what it leaves: a config of the
// same content costs nothing; one that fails says why, harms nobody and can be
// given up; what was replaced is cleaned up; and there is a way back (INV-36,
// INV-37).
func TestDeploys(t *testing.T) {
	w := newWorld(t, harness.Dev, "")
	user := w.user()
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ('l1', $1, 'one')", user)
	w.pg.Exec("INSERT INTO unrelated VALUES ($1, 'x')", user)
	c := w.client(t, user, func(o *harness.ClientOptions) {
		o.Schema = maps.Clone(o.Schema)
		o.Schema["unrelated"] = map[string]string{"x": "text"}
	})
	c.FirstSync(soon)
	harness.Converged(t, w.pg, soon, lists(c, user))
	first := streams(t, w)
	if len(first) != 1 || first[0].State != "ACTIVE" {
		t.Fatalf("streams %+v", first)
	}
	// unharmed changes the one row and holds that its client got that change, over
	// the connection that it had, and nothing else.
	before := c.Stats()
	updates := 0
	unharmed := func(when string) {
		t.Helper()
		updates++
		name := fmt.Sprint(when, " ", updates) // never the same: the client must get it
		w.pg.Exec("UPDATE lists SET name = $1 WHERE id = 'l1'", name)
		harness.Converged(t, w.pg, soon, lists(c, user))
		now := c.Stats()
		if now.Connects != before.Connects || now.OpsTotal != before.OpsTotal+1 {
			t.Errorf("%s: %d connections and %d ops, after %d and %d", name, now.Connects, now.OpsTotal, before.Connects, before.OpsTotal)
		}
		before = now
	}

	head, rest, _ := strings.Cut(syncConfig, "  own:\n")
	reworded := "# Who gets what.\nbucket_definitions:\n\n  own: # theirs\n" + strings.ReplaceAll(rest, "request.user_id()", "request.user_id( )") +
		strings.TrimPrefix(strings.TrimSpace(head), "bucket_definitions:\n") + "\n"
	w.sluice.Deploy(reworded)
	unharmed("reworded")
	if got := streams(t, w); len(got) != 1 || got[0].Name != first[0].Name {
		t.Errorf("streams after a rewording: %+v", got)
	}

	// Another conversion of values concerns all there is: a new version.
	const other = otherDefinition + "config:\n  timestamps_iso8601: true\n"
	w.pg.Exec(`SELECT pg_create_logical_replication_slot('taken_' || i, 'pgoutput')
		FROM generate_series(1, current_setting('max_replication_slots')::int - (SELECT count(*)::int FROM pg_replication_slots)) i`)
	out, err := w.sluice.TryDeploy(syncConfig + other)
	if err == nil || !strings.Contains(out, "does not become active") || !strings.Contains(out, "all replication slots are in use") {
		t.Errorf("no slot for the new version: %v: %s", err, out)
	}
	if got := streams(t, w); len(got) != 2 || got[0].State != "ACTIVE" || got[0].LastError != "" || got[1].State != "PROCESSING" || !strings.Contains(got[1].LastError, "all replication slots are in use") {
		t.Errorf("streams while one fails: %+v", got)
	}
	unharmed("beside one that fails")
	if out, err := w.sluice.CLI("rollback"); err != nil || !strings.Contains(out, "going back to the config of "+first[0].Name) {
		t.Errorf("rollback: %v: %s", err, out)
	}
	w.pg.Exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'taken_%'`)
	alone := func() deployed {
		t.Helper()
		var left []deployed
		harness.Eventually(t, soon, "one stream is left, with the only slot", func() error {
			slots, err := w.pg.Rows(`SELECT slot_name FROM pg_replication_slots`)
			if err != nil {
				return err
			}
			if left = streams(t, w); len(left) != 1 || len(slots) != 1 || slots[0] != left[0].Name {
				return fmt.Errorf("streams %+v, slots %q", left, slots)
			}
			return nil
		})
		return left[0]
	}
	if got := alone(); got.Name != first[0].Name {
		t.Errorf("%+v is left", got)
	}
	unharmed("given up")

	// Less, and another priority: all of it is there. Clients get their streams
	// anew, and nothing that they have.
	w.pg.Exec("INSERT INTO counters VALUES ('c1', $1, 7)", user)
	harness.Converged(t, w.pg, soon, counters(c, user), lists(c, user))
	before = c.Stats()
	name := first[0].Name
	served := func(text string, ops int, all ...harness.Same) {
		t.Helper()
		if text == "" {
			if out, err := w.sluice.CLI("rollback"); err != nil {
				t.Errorf("rollback: %v: %s", err, out)
			}
		} else {
			w.sluice.Deploy(text)
		}
		harness.Converged(t, w.pg, soon, all...)
		harness.Eventually(t, soon, "the client has a new stream", func() error {
			if now := c.Stats(); now.Connects <= before.Connects || !c.Status().Connected {
				return fmt.Errorf("%d connections, after %d", now.Connects, before.Connects)
			}
			return nil
		})
		if now := c.Stats(); now.OpsTotal != before.OpsTotal+ops {
			t.Errorf("%d ops were downloaded, want %d", now.OpsTotal-before.OpsTotal, ops)
		}
		before = c.Stats()
		unharmed("served by another config")
		if got := alone(); got.Name != name {
			t.Errorf("%+v is left", got)
		}
	}
	_, after, _ := strings.Cut(syncConfig, "  shared:\n")
	less := strings.Replace(syncConfig[:strings.Index(syncConfig, "  counters:\n")]+"  shared:\n"+after, "  own:\n", "  own:\n    priority: 1\n", 1)
	if out, _ := w.sluice.CLI("diff", "--deployed", w.sluice.File("less.yaml", less)); !strings.Contains(out, "definition counters       dropped\n") || !strings.Contains(out, "nothing is copied") {
		t.Errorf("diff: %s", out)
	}
	none := counters(c, user)
	none.Source = "SELECT 1 WHERE false"
	served(less, 0, none, lists(c, user))
	served("", 1, counters(c, user), lists(c, user)) // back: the counter comes again

	unrelated := harness.Same{
		Client: c,
		Local:  "SELECT id, x FROM unrelated",
		Source: fmt.Sprintf("SELECT id, x FROM unrelated WHERE id = '%s'", user),
	}
	w.sluice.Deploy(syncConfig + other)
	harness.Converged(t, w.pg, soon, unrelated, lists(c, user))
	second := alone()
	if second.Name == name || second.State != "ACTIVE" {
		t.Errorf("%+v is left", second)
	}

	// What the new one has besides is taken back, and added again: it is all there.
	before, name = c.Stats(), second.Name
	without := unrelated
	without.Source += " AND false"
	served(syncConfig+"config:\n  timestamps_iso8601: true\n", 0, without, lists(c, user))
	served("", 1, unrelated, lists(c, user))
	c.Sound()
	c.Close()
}

// TestDeployAdds holds that a config that adds or edits definitions reuses the
// others: only the tables are read of what is new, while clients write and are
// served what there is, and clients download that and nothing that they have
// (INV-38), also if a process is killed in the middle; and the way back is there
// at once.
func TestDeployAdds(t *testing.T) {
	w := newWorld(t, harness.Suite, "", func(o *harness.Options) { o.Replicas = 1 })
	user := w.user()
	const many = 3_000
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) SELECT 'l' || i, $1, repeat('name ', 400) FROM generate_series(1, 300) i", user)
	w.pg.Exec("INSERT INTO counters VALUES ('c1', $1, 0)", user)
	w.pg.Exec("INSERT INTO unrelated SELECT 'other' || i, 'x' FROM generate_series(2, $1::int) i", many)
	w.pg.Exec("INSERT INTO unrelated VALUES ($1, 'mine')", user)
	open := func() *harness.Client {
		return w.client(t, user, func(o *harness.ClientOptions) {
			o.Schema = maps.Clone(o.Schema)
			o.Schema["unrelated"] = map[string]string{"x": "text"}
		})
	}
	stays, returns := open(), open()
	unrelated := func(c *harness.Client, x string) harness.Same {
		return harness.Same{Client: c, Local: "SELECT id, x FROM unrelated", Source: fmt.Sprintf("SELECT id, %s FROM unrelated WHERE id = '%s'", x, user)}
	}
	for _, c := range []*harness.Client{stays, returns} {
		c.FirstSync(soon)
		harness.Converged(t, w.pg, soon, lists(c, user), counters(c, user))
	}
	all := stays.Stats()
	if all.OpsTotal < 301 || all.Bytes < 600_000 {
		t.Fatalf("%d ops and %d bytes at first", all.OpsTotal, all.Bytes)
	}
	first := streams(t, w)[0].Name
	read := func() int {
		t.Helper()
		n, err := w.sluice.Metric(harness.Replicator, "sluice_replicator_snapshot_rows_total")
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	// costs holds that a client has downloaded so many ops since, and hardly more
	// bytes than they have, and that it went on with every bucket that it had.
	costs := func(when string, c *harness.Client, before harness.Stats, ops int) {
		t.Helper()
		now := c.Stats()
		if got := now.OpsTotal - before.OpsTotal; got != ops {
			t.Errorf("%s: %d ops were downloaded, not %d", when, got, ops)
		}
		if got := now.Bytes - before.Bytes; got > 20_000 {
			t.Errorf("%s: %d bytes were downloaded, of %d in all", when, got, all.Bytes)
		}
		t.Logf("%s: %d bytes and %d ops were downloaded, by a new client %d and %d", when, now.Bytes-before.Bytes, now.OpsTotal-before.OpsTotal, all.Bytes, all.OpsTotal)
	}

	// A definition is added.
	returns.Disconnect()
	was, away, rows := stays.Stats(), returns.Stats(), read()
	if out, _ := w.sluice.CLI("diff", "--deployed", w.sluice.File("more.yaml", syncConfig+otherDefinition)); !strings.Contains(out, "definition unrelated      added\n") || !strings.Contains(out, "public.unrelated") || strings.Contains(out, "public.lists") || !strings.Contains(out, "keep what they have of the rest") {
		t.Errorf("diff: %s", out)
	}
	w.sluice.Deploy(syncConfig + otherDefinition)
	returns.Connect()
	harness.Converged(t, w.pg, soon, unrelated(stays, "x"), unrelated(returns, "x"), lists(stays, user), lists(returns, user))
	costs("added, to one that stays", stays, was, 1)
	costs("added, to one that comes back", returns, away, 1)
	if got := read() - rows; got != many {
		t.Errorf("%d rows were read, not the %d of the table", got, many)
	}
	if got := streams(t, w); len(got) != 1 || got[0].Name != first || got[0].State != "ACTIVE" {
		t.Errorf("streams %+v", got)
	}

	// It is edited, under writes, and processes are killed in the middle.
	edited := strings.Replace(syncConfig+otherDefinition, "SELECT * FROM unrelated", "SELECT id, upper(x) AS x FROM unrelated", 1)
	stop, writes := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		pace := time.NewTicker(20 * time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				writes <- n
				return
			case <-pace.C:
			}
			n++
			w.pg.Exec("UPDATE unrelated SET x = $1 WHERE id = $2", fmt.Sprint("mine ", n), user)
			w.pg.Exec("UPDATE counters SET n = $1 WHERE id = 'c1'", n)
		}
	}()
	ended := make(chan error, 1)
	go func() {
		out, err := w.sluice.TryDeploy(edited)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	for _, process := range []string{harness.Replicator, harness.BucketStore, harness.Evaluator1} {
		last := -1
		harness.Eventually(t, soon, "the copy goes on", func() error {
			if len(ended) > 0 {
				return nil
			}
			got, err := w.sluice.CLI("status", "--json")
			if err != nil && !strings.Contains(got, "S9003") {
				return fmt.Errorf("%w: %s", err, got)
			}
			var s struct{ Streams []deployed }
			if err := json.Unmarshal([]byte(got[:strings.LastIndexByte(got, '}')+1]), &s); err != nil {
				return err
			}
			if len(s.Streams) != 1 || !s.Streams[0].Adding || s.Streams[0].Copy.Rows <= max(last, 0) {
				return fmt.Errorf("streams %+v", s.Streams)
			}
			return nil
		})
		if len(ended) > 0 {
			t.Logf("the copy was done before %s was killed", process)
			break
		}
		w.sluice.Kill(process)
		w.sluice.Start(process)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	close(stop)
	t.Logf("%d writes of each row meanwhile", <-writes)
	harness.Converged(t, w.pg, soon, unrelated(stays, "upper(x)"), unrelated(returns, "upper(x)"), counters(stays, user), lists(stays, user), lists(returns, user))
	if got := streams(t, w); len(got) != 1 || got[0].Name != first || got[0].Adding {
		t.Errorf("streams %+v", got)
	}

	// The way back is there at once, and so is the way forth.
	for _, x := range []string{"x", "upper(x)"} {
		was, rows = stays.Stats(), read()
		if out, err := w.sluice.CLI("rollback"); err != nil {
			t.Fatalf("rollback: %v: %s", err, out)
		}
		harness.Converged(t, w.pg, soon, unrelated(stays, x), lists(stays, user))
		now := stays.Stats()
		if got := now.Bytes - was.Bytes; got > all.Bytes/2 || read() != rows { // the history of one row
			t.Errorf("back: %d bytes were downloaded, of %d in all, and %d rows read", got, all.Bytes, read()-rows)
		}
	}
	stays.Sound()
	returns.Sound()
	stays.Close()
	returns.Close()
}
