package suites

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// webConfig has what the browser tests need of Sync Streams: default streams of
// two priorities, on-demand ones with parameters, and a large one.
const webConfig = `
config: {edition: 3}
streams:
  news:
    auto_subscribe: true
    priority: 1
    query: SELECT * FROM announcements
  mine:
    auto_subscribe: true
    query: SELECT * FROM lists WHERE owner_id = auth.user_id()
  bank:
    auto_subscribe: true
    query: SELECT id, balance FROM accounts WHERE owner_id = auth.user_id()
  list_todos:
    query: SELECT * FROM todos WHERE list_id = subscription.parameter('list_id') AND list_id IN (SELECT list_id FROM members WHERE user_id = auth.user_id())
  archive:
    query: SELECT * FROM counters WHERE owner_id = subscription.parameter('owner')
    accept_potentially_dangerous_queries: true
`

const webSeed = `
INSERT INTO announcements SELECT 'a' || i, 'announcement ' || i FROM generate_series(1, 20) i;
INSERT INTO lists SELECT 'seed' || i, 'seeded' || i % 3, 'list ' || i, i FROM generate_series(1, 3000) i;
INSERT INTO members(list_id, user_id) SELECT 'seed' || i, 'seeded0' FROM generate_series(3, 30, 3) i;
INSERT INTO todos(id, list_id, body) SELECT 't' || i, 'seed' || i % 60, 'todo ' || i FROM generate_series(1, 600) i;
INSERT INTO counters SELECT 'c' || i, 'large', i FROM generate_series(1, 4000) i;
`

// TestWeb runs the official web SDK in Chromium against `sluice dev`: the database
// and the sync client in the SDK's workers, the page on another origin than the
// service, so that every request needs CORS.
func TestWeb(t *testing.T) {
	dir := harness.NeedsServers(t)
	w := &world{pg: harness.StartPostgres(t, dir)}
	w.pg.Exec(sourceSchema + webSeed)
	w.sluice = harness.StartInstance(t, dir, w.pg, harness.Options{Mode: harness.Dev, SyncConfig: webConfig})
	w.driver = harness.StartWebDriver(t, dir)
	timeToLive := startTimeToLive(t, w)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"FirstSyncAndLiveChanges", webFirstSync},
		{"FileSystemOfTheBrowser", webFileSystem},
		{"WriteLoop", webWriteLoop},
		{"OfflineAndOnline", webOffline},
		{"TabsShareOneStream", webTabs},
		{"OnDemandStreams", webStreams},
		{"PriorityAndProgress", webProgress},
		{"TransfersKeepTheirSum", webTransfers},
		{"TokenRefresh", webTokens},
		{"SignOut", webSignOut},
		{"TimeToLive", timeToLive}, // the last: it has waited meanwhile
	} {
		if !w.run(t, test.name, func(t *testing.T) { test.run(t, w) }) && !alive(w) {
			t.Fatalf("nothing after %s can work: the instance is gone", test.name)
		}
	}
}

var transports = []string{"http", "websocket"}

func webFirstSync(t *testing.T, w *world) {
	for _, kind := range transports {
		c := w.client(t, "seeded0", transport(kind))
		c.FirstSync(2 * time.Minute)
		harness.Converged(t, w.pg, soon, lists(c, "seeded0"), announcements(c))
		w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ('web1', 'seeded0', 'one'), ('web2', 'seeded0', NULL)")
		insert := harness.Converged(t, w.pg, soon, lists(c, "seeded0"))
		w.pg.Exec("UPDATE lists SET name = 'changed', n = 7 WHERE id = 'web1'")
		update := harness.Converged(t, w.pg, soon, lists(c, "seeded0"))
		w.pg.Exec("DELETE FROM lists WHERE id IN ('web1', 'web2')")
		remove := harness.Converged(t, w.pg, soon, lists(c, "seeded0"))
		t.Logf("%s: insert %s, update %s, delete %s", kind, insert, update, remove)
		c.Sound()
		c.Close()
	}
}

// webFileSystem syncs into a file of the browser's private file system, whose
// database lives in a worker of its own tab, and finds it again in a new tab.
func webFileSystem(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) SELECT $1 || i, $1, 'kept' FROM generate_series(1, 200) i", user)
	private := func(o *harness.ClientOptions) { o.Web = harness.Web{Profile: user, VFS: "OPFSCoopSyncVFS"} }
	c := w.client(t, user, private)
	c.FirstSync(soon)
	harness.Converged(t, w.pg, soon, lists(c, user))
	c.Close()
	w.pg.Exec("UPDATE lists SET name = 'while closed' WHERE id = $1 || '7'", user)
	c = w.client(t, user, private)
	if rows, err := c.Rows("SELECT count(*) FROM lists"); err != nil || rows[0] != "200" {
		t.Errorf("rows of the last tab in the next: %v %v", rows, err)
	}
	harness.Converged(t, w.pg, soon, lists(c, user))
	c.Sound()
	c.Close()
}

// webWriteLoop holds INV-27 and INV-28 in the browser, for both ways to ask for a
// checkpoint: what was written locally comes back from the source and never
// flickers away, and the upload queue ends empty.
func webWriteLoop(t *testing.T, w *world) {
	for i, mode := range []string{"legacy", "requests"} {
		user := w.user()
		c := w.client(t, user, transport(transports[i]), func(o *harness.ClientOptions) { o.CheckpointMode = mode })
		c.FirstSync(soon)
		c.Execute(harness.Statement{
			SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES (?1 || '-w1', ?1, 'mine', 3), (?1 || '-w2', ?1, 'also mine', 4)", Args: []any{user},
		})
		harness.Eventually(t, soon, mode+": the rows come back from the source", func() error {
			rows, err := c.Rows("SELECT name FROM lists ORDER BY id")
			if err != nil {
				return err
			}
			if len(rows) != 2 {
				t.Fatalf("%s: a written row flickered away: %v", mode, rows)
			}
			return harness.Equal(strings.Join(rows, ","), "mine (from the source),also mine (from the source)")
		})
		harness.Converged(t, w.pg, soon, lists(c, user))
		if rows, err := c.Rows("SELECT count(*) FROM ps_crud"); err != nil || rows[0] != "0" {
			t.Errorf("%s: upload queue: %v %v", mode, rows, err)
		}
		if mode == "requests" {
			c.RequestCheckpoint(soon)
		}
		c.Sound()
		c.Close()
	}
}

// webOffline loses the network in two ways, from inside the browser and by a
// service that cannot be reached, writes meanwhile on both ends, and comes back.
func webOffline(t *testing.T, w *world) {
	for _, kind := range transports {
		user := w.user()
		c := w.client(t, user, transport(kind))
		c.FirstSync(soon)
		for i, lose := range []func(bool){c.Offline, w.sluice.Unreachable} {
			lose(true)
			w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1, $2, 'by the source')", fmt.Sprintf("%s-s%d", user, i), user)
			c.Execute(harness.Statement{
				SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES (?, ?, 'offline', 0)", Args: []any{fmt.Sprintf("%s-o%d", user, i), user},
			})
			if i == 1 { // the SDK notices, and says so
				harness.Eventually(t, soon, kind+": the loss is shown to the app", func() error {
					if s := c.Status(); s.Connected {
						return fmt.Errorf("connected, download error %q", s.DownloadError)
					}
					return nil
				})
			}
			if rows, err := c.Rows("SELECT name FROM lists WHERE id = ?", fmt.Sprintf("%s-o%d", user, i)); err != nil || !slices.Equal(rows, []string{"offline"}) {
				t.Errorf("%s: the local write while offline: %v %v", kind, rows, err)
			}
			lose(false)
			harness.Converged(t, w.pg, soon, lists(c, user))
		}
		if rows, err := c.Rows("SELECT count(*) FROM lists"); err != nil || rows[0] != "4" {
			t.Errorf("%s: rows at the end: %v %v", kind, rows, err)
		}
		c.Sound()
		c.Close()
	}
}

// webTabs opens three tabs of one app: one stream serves them all, their
// subscriptions are united, and closing any of them leaves the others in sync.
func webTabs(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO members(list_id, user_id) VALUES ('tab1', $1), ('tab2', $1)", user)
	w.pg.Exec("INSERT INTO todos(id, list_id, body) VALUES ($1 || 't1', 'tab1', 'one'), ($1 || 't2', 'tab2', 'two')", user)
	const others = 1 // TimeToLive keeps a stream meanwhile
	streamsNow := func() (float64, error) { return w.sluice.Metric(harness.All, "powersync_concurrent_connections") }
	harness.Eventually(t, soon, "the streams of the tests before have ended", func() error {
		n, err := streamsNow()
		return cmp.Or(err, harness.Equal(n, others))
	})
	shared := func(o *harness.ClientOptions) { o.Web.Profile = user }
	tabs := []*harness.Client{w.client(t, user, shared), w.client(t, user, shared), w.client(t, user, shared)}
	for _, c := range tabs {
		c.FirstSync(soon)
		if c.ID != tabs[0].ID {
			t.Errorf("a tab has client id %s, the first %s", c.ID, tabs[0].ID)
		}
	}
	tabs[0].Subscribe("one", "list_todos", map[string]any{"list_id": "tab1"}, soon)
	tabs[1].Subscribe("two", "list_todos", map[string]any{"list_id": "tab2"}, soon)
	same := func(c *harness.Client) []harness.Same { return []harness.Same{lists(c, user), todos(c, user)} }
	for _, c := range tabs {
		harness.Converged(t, w.pg, soon, same(c)...)
	}
	// An old stream ends a moment after the new one has begun.
	harness.Eventually(t, soon, "one stream for three tabs", func() error {
		n, err := streamsNow()
		return cmp.Or(err, harness.Equal(n, others+1))
	})
	tabs[1].Execute(harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES (?1 || '-tab', ?1, 'from a tab', 0)", Args: []any{user}})
	for _, c := range tabs {
		harness.Converged(t, w.pg, soon, same(c)...)
	}
	for len(tabs) > 1 {
		// The last tab is the one that the SDK asks for tokens and uploads.
		tabs[len(tabs)-1].Close()
		tabs = tabs[:len(tabs)-1]
		w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1, $2, 'after a tab has closed')", fmt.Sprintf("%s-left%d", user, len(tabs)), user)
		w.pg.Exec("UPDATE todos SET body = body || '!' WHERE list_id = 'tab1'")
		for _, c := range tabs {
			harness.Converged(t, w.pg, soon, lists(c, user))
			harness.Converged(t, w.pg, soon, todosOf(c, "tab1"))
		}
	}
	tabs[0].Sound()
	tabs[0].Close()
}

// todosOf says that a client holds one list's todos.
func todosOf(c *harness.Client, list string) harness.Same {
	return harness.Same{
		Client: c,
		Local:  fmt.Sprintf("SELECT id, body FROM todos WHERE list_id = '%s' ORDER BY id", list),
		Source: fmt.Sprintf(`SELECT id, body FROM todos WHERE list_id = '%s' ORDER BY id COLLATE "C"`, list),
	}
}

// stream returns what the SDK shows of a subscription, or nil.
func stream(c *harness.Client, name string, params map[string]any) *harness.StreamStatus {
	for _, s := range c.Status().Streams {
		if s.Name == name && fmt.Sprint(s.Parameters) == fmt.Sprint(params) {
			return &s
		}
	}
	return nil
}

// webStreams subscribes on demand: parameters choose the rows, a membership is
// needed for them, the subscription's priority is what the client asked for, and
// live changes follow.
func webStreams(t *testing.T, w *world) {
	for _, kind := range transports {
		c := w.client(t, "seeded0", transport(kind))
		c.FirstSync(time.Minute)
		if rows, err := c.Rows("SELECT count(*) FROM todos"); err != nil || rows[0] != "0" {
			t.Errorf("%s: todos without a subscription: %v %v", kind, rows, err)
		}
		urgent := 1
		three, six := map[string]any{"list_id": "seed3"}, map[string]any{"list_id": "seed6"}
		c.SubscribeWith(harness.Subscription{As: "three", Stream: "list_todos", Params: three, Priority: &urgent}, soon)
		c.Subscribe("six", "list_todos", six, soon)
		c.Subscribe("foreign", "list_todos", map[string]any{"list_id": "seed1"}, soon) // no member of it
		harness.Converged(t, w.pg, soon, todosOf(c, "seed3"), todosOf(c, "seed6"))
		if rows, err := c.Rows("SELECT DISTINCT list_id FROM todos ORDER BY 1"); err != nil || !slices.Equal(rows, []string{"seed3", "seed6"}) {
			t.Errorf("%s: todos of %v, %v", kind, rows, err)
		}
		if s := stream(c, "list_todos", three); s == nil || !s.Active || !s.HasSynced || s.Priority == nil || *s.Priority != urgent {
			t.Errorf("%s: the urgent subscription shows as %+v", kind, s)
		}
		if s := stream(c, "list_todos", six); s == nil || !s.Active || !s.HasSynced || s.Priority == nil || *s.Priority != 3 {
			t.Errorf("%s: the other subscription shows as %+v", kind, s)
		}
		w.pg.Exec("UPDATE todos SET body = body || '!' WHERE list_id IN ('seed3', 'seed6')")
		harness.Converged(t, w.pg, soon, todosOf(c, "seed3"), todosOf(c, "seed6"))
		w.pg.Exec("UPDATE members SET list_id = 'gone' WHERE list_id = 'seed6' AND user_id = 'seeded0'")
		harness.Eventually(t, soon, kind+": the rows of the lost membership go", func() error {
			rows, err := c.Rows("SELECT DISTINCT list_id FROM todos")
			return cmp.Or(err, harness.Equal(strings.Join(rows, ","), "seed3"))
		})
		w.pg.Exec("UPDATE members SET list_id = 'seed6' WHERE list_id = 'gone'")
		harness.Converged(t, w.pg, soon, todosOf(c, "seed6"))
		c.Sound()
		c.Close()
	}
}

// startTimeToLive subscribes to two streams and unsubscribes at once. Its result
// holds what must have become of them: the data of the one that is to be kept
// stays, that of the other goes after its time, without a new connection, for the
// service's regular token_expires_in lines are the SDK's clock.
func startTimeToLive(t *testing.T, w *world) func(*testing.T, *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO members(list_id, user_id) VALUES ('long', $1), ('short', $1)", user)
	w.pg.Exec("INSERT INTO todos(id, list_id, body) SELECT k || i, k, 'lives ' || i FROM generate_series(1, 20) i, (VALUES ('long'), ('short')) v(k)")
	c := w.client(t, user)
	c.FirstSync(time.Minute)
	long, short := time.Hour, time.Second
	c.SubscribeWith(harness.Subscription{As: "long", Stream: "list_todos", Params: map[string]any{"list_id": "long"}, TTL: &long}, soon)
	c.SubscribeWith(harness.Subscription{As: "short", Stream: "list_todos", Params: map[string]any{"list_id": "short"}, TTL: &short}, soon)
	harness.Converged(t, w.pg, soon, todosOf(c, "long"), todosOf(c, "short"))
	c.Unsubscribe("long")
	c.Unsubscribe("short")
	return func(t *testing.T, w *world) {
		harness.Eventually(t, 50*time.Second, "only the stream that is to be kept is kept", func() error {
			rows, err := c.Rows("SELECT DISTINCT list_id FROM todos")
			return cmp.Or(err, harness.Equal(strings.Join(rows, ","), "long"))
		})
		if s := stream(c, "list_todos", map[string]any{"list_id": "long"}); s == nil || !s.Active || !s.HasSynced {
			t.Errorf("the subscription that is to be kept shows as %+v", s)
		}
		if s := stream(c, "list_todos", map[string]any{"list_id": "short"}); s != nil && s.Active {
			t.Errorf("the expired subscription shows as %+v", s)
		}
		w.pg.Exec("UPDATE todos SET body = body || '!' WHERE list_id IN ('long', 'short')")
		harness.Converged(t, w.pg, soon, todosOf(c, "long"))
		c.Sound()
		c.Close()
	}
}

// webProgress downloads much: the urgent rows are there before the others, and the
// progress that an app shows only grows and ends complete.
func webProgress(t *testing.T, w *world) {
	for _, kind := range transports {
		c := w.client(t, "seeded1", transport(kind))
		c.FirstSync(time.Minute)
		c.Progress()
		const rows = 4000
		c.Subscribe("large", "archive", map[string]any{"owner": "large"}, 2*time.Minute)
		if got, err := c.Rows("SELECT count(*) FROM counters"); err != nil || got[0] != fmt.Sprint(rows) {
			t.Errorf("%s: rows of the large stream: %v %v", kind, got, err)
		}
		samples := c.Progress()
		var before harness.Sample
		steps := 0
		for _, s := range samples {
			if s.Total < rows {
				continue // of the checkpoint before
			}
			if s.Downloaded < before.Downloaded || s.Downloaded > s.Total {
				t.Errorf("%s: progress %d of %d after %d of %d", kind, s.Downloaded, s.Total, before.Downloaded, before.Total)
			}
			if s.Downloaded > before.Downloaded {
				steps++
			}
			before = s
		}
		if before.Downloaded != before.Total || before.Total != rows {
			t.Errorf("%s: the last progress was %d of %d", kind, before.Downloaded, before.Total)
		}
		if steps < 3 {
			t.Errorf("%s: the progress of %d rows moved %d times", kind, rows, steps)
		}
		if n := len(before.Streams); n == 0 || !slices.ContainsFunc(before.Streams, func(s harness.StreamStatus) bool {
			return s.Name == "archive" && s.Downloaded == rows && s.Total == rows
		}) {
			t.Errorf("%s: the stream's own progress at the end: %+v", kind, before.Streams)
		}
		t.Logf("%s: %d rows in %d steps", kind, rows, steps)
		c.Sound()
		c.Close()

		// A new client with both: the announcements can be read while the large
		// stream still comes.
		c = w.client(t, "seeded2", transport(kind))
		c.Subscribe("large", "archive", map[string]any{"owner": "large"}, 0)
		c.FirstSyncOf(1, 2*time.Minute)
		if got, err := c.Rows("SELECT (SELECT count(*) FROM announcements) > 0"); err != nil || got[0] != "1" {
			t.Errorf("%s: urgent rows after their first sync: %v %v", kind, got, err)
		}
		c.FirstSync(2 * time.Minute)
		harness.Converged(t, w.pg, soon, announcements(c), lists(c, "seeded2"))
		c.Sound()
		c.Close()
	}
}

// webTransfers holds D1 in the browser: the app reads all the time and never sees
// half a transaction, in either of two tabs.
func webTransfers(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO accounts SELECT $1 || i, $1, 100 FROM generate_series(1, 10) i", user)
	shared := func(o *harness.ClientOptions) { o.Web.Profile = user }
	tabs := []*harness.Client{w.client(t, user, shared), w.client(t, user, shared)}
	for _, c := range tabs {
		c.FirstSync(soon)
		harness.Converged(t, w.pg, soon, accounts(c, user))
		c.Check("sum", "SELECT sum(balance), count(*) FROM accounts HAVING sum(balance) <> 1000 OR count(*) <> 10")
	}
	load := startTransfers(t, w.pg, user, 2*time.Millisecond)
	harness.Eventually(t, soon, "a good number of transfers", func() error {
		if n := load.committed(); n < 200 {
			return fmt.Errorf("%d so far", n)
		}
		return nil
	})
	moved := load.stop()
	for _, c := range tabs {
		harness.Converged(t, w.pg, soon, accounts(c, user))
		reads, violations := c.CheckStop("sum")
		if len(violations) > 0 {
			t.Errorf("D1: the app saw sums that were never committed: %v", violations)
		}
		if reads == 0 {
			t.Error("the app read nothing meanwhile")
		}
		t.Logf("%d transfers, the sum was right in %d reads", moved, reads)
		c.Sound()
	}
	for _, c := range tabs {
		c.Close()
	}
}

// webTokens lets tokens expire while streaming: the SDK is told, asks for a new one
// and goes on, and the app notices nothing.
func webTokens(t *testing.T, w *world) {
	for _, kind := range transports {
		user := w.user()
		const life = 6 * time.Second
		end := time.Now().Add(life)
		c := w.client(t, user, transport(kind), func(o *harness.ClientOptions) {
			o.Token = harness.Token(t, user, life, nil)
		})
		fetched := func(n int) {
			t.Helper()
			harness.Eventually(t, soon, fmt.Sprintf("%s: the SDK gets token %d", kind, n), func() error {
				if got := c.Stats().CredentialFetches; got < n {
					return fmt.Errorf("%d so far", got)
				}
				return nil
			})
		}
		fetched(1)
		c.SetToken(harness.Token(t, user, time.Hour, nil))
		c.FirstSync(soon)
		fetched(2)
		w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1 || '-1', $1, 'with the next token')", user)
		harness.Converged(t, w.pg, soon, lists(c, user))
		harness.Eventually(t, soon, "the first token's end", func() error {
			if left := time.Until(end); left > 0 {
				return fmt.Errorf("in %s", left)
			}
			return nil
		})
		w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1 || '-2', $1, 'after the first has expired')", user)
		harness.Converged(t, w.pg, soon, lists(c, user))
		harness.Eventually(t, soon, kind+": connected without an error", func() error {
			if s := c.Status(); !s.Connected || s.DownloadError != "" {
				return fmt.Errorf("connected %v, download error %q", s.Connected, s.DownloadError)
			}
			return nil
		})
		if n := c.Stats().CredentialFetches; n > 4 {
			t.Errorf("%s: the SDK asked for a token %d times", kind, n)
		}
		c.Sound()
		c.Close()

		// A refused token: the browser may read the answer, and the app gets the code.
		c = w.client(t, user, transport(kind), func(o *harness.ClientOptions) {
			o.Token = harness.Token(t, user, time.Hour, map[string]any{"aud": "someone-else"})
		})
		harness.Eventually(t, soon, kind+": the refusal reaches the app", func() error {
			if s := c.Status(); !strings.Contains(s.DownloadError, "PSYNC_S2105") {
				return fmt.Errorf("download error %q", s.DownloadError)
			}
			return nil
		})
		c.SetToken(harness.Token(t, user, time.Hour, nil))
		c.FirstSync(soon)
		c.Close()
	}
}

// webSignOut signs a user out, which leaves nothing, and another one in.
func webSignOut(t *testing.T, w *world) {
	for _, kind := range transports {
		first, second := w.user(), w.user()
		w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1 || '-1', $1, 'of the first'), ($2 || '-1', $2, 'of the second')", first, second)
		c := w.client(t, first, transport(kind))
		c.FirstSync(soon)
		harness.Converged(t, w.pg, soon, lists(c, first))
		c.SignOut()
		if s := c.Status(); s.Connected || s.HasSynced {
			t.Errorf("%s: after the sign-out: connected %v, synced %v", kind, s.Connected, s.HasSynced)
		}
		for _, table := range []string{"lists", "announcements", "ps_oplog", "ps_buckets"} {
			if rows, err := c.Rows("SELECT count(*) FROM " + table); err != nil || rows[0] != "0" {
				t.Errorf("%s: rows of %s after the sign-out: %v %v", kind, table, rows, err)
			}
		}
		c.SetToken(harness.Token(t, second, time.Hour, nil))
		c.Connect()
		c.FirstSync(soon)
		harness.Converged(t, w.pg, soon, lists(c, second), announcements(c))
		c.Sound()
		c.Close()
	}
}
