package suites

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/e2e/harness"
)

// deployed is a stream as `sluice status --json` shows it.
type deployed struct {
	Name      string
	State     string
	LastError string `json:"last_error"`
}

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

	const other = `
  unrelated:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT * FROM unrelated WHERE id = bucket.user_id
`
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

	// What was added is taken back, and added again: now it is all there.
	before, name = c.Stats(), second.Name
	without := unrelated
	without.Source += " AND false"
	served("", 0, without, lists(c, user))
	served(syncConfig+other, 1, unrelated, lists(c, user))
	c.Sound()
	c.Close()
}
