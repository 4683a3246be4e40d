package suites

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/e2e/harness"
)

// storeNames are the bucket-stores of TestStoreReplicas.
var storeNames = []string{harness.BucketStore, harness.BucketStore + "-2", harness.BucketStore + "-3"}

// TestStoreReplicas: of three bucket-stores on one database the one that writes
// is killed, and paused and resumed, under load. Another takes over within 5 s;
// no client's stream ends; and what was written is in the storage once.
func TestStoreReplicas(t *testing.T) {
	w := newWorld(t, harness.Suite, "", storage("postgresql"), func(o *harness.Options) { o.Stores, o.Replicas = len(storeNames), 1 })
	clients := map[string]*harness.Client{"a": w.client(t, "a", transport("http")), "b": w.client(t, "b", transport("websocket"))}
	var same []harness.Same
	for user, c := range clients {
		c.FirstSync(time.Minute)
		same = append(same, announcements(c), counters(c, user))
	}
	connects := map[string]int{}
	for user, c := range clients {
		connects[user] = c.Stats().Connects
	}
	for _, name := range storeNames {
		harness.Eventually(t, soon, name+" serves reads", func() error {
			ready, err := w.sluice.Ready(name)
			if err == nil {
				err = harness.Equal(ready, true)
			}
			return err
		})
	}
	n := 0
	l := start(t, w.pg, 20*time.Millisecond, func(ctx context.Context, tx pgx.Tx) error {
		n++
		_, err := tx.Exec(ctx, "INSERT INTO announcements VALUES ($1, $2)", fmt.Sprintf("row %d", n), "once")
		if err == nil {
			_, err = tx.Exec(ctx, "INSERT INTO counters VALUES ($1, $2, $3)", fmt.Sprintf("c%d", n), []string{"a", "b"}[n%2], n)
		}
		return err
	})
	// writer is the one that writes, of those that are not away.
	writer := func(away string) string {
		for _, name := range storeNames {
			if name == away {
				continue
			}
			if v, err := w.sluice.Metric(name, "sluice_store_owner"); err == nil && v == 1 {
				return name
			}
		}
		return ""
	}
	// arrives waits until a row that is written now is with every client.
	marks := 0
	arrives := func() time.Duration {
		t.Helper()
		marks++
		id := fmt.Sprintf("mark %d", marks)
		w.pg.Exec(fmt.Sprintf("INSERT INTO announcements VALUES ('%s', 'once')", id))
		return harness.Eventually(t, soon, id+" is with every client", func() error {
			for user, c := range clients {
				rows, err := c.Rows("SELECT count(*) FROM announcements WHERE id = ?", id)
				if err == nil {
					err = harness.Equal(rows[0], "1")
				}
				if err != nil {
					return fmt.Errorf("client %s: %w", user, err)
				}
			}
			return nil
		})
	}
	for round, x := range []struct {
		name       string
		end, begin func(string)
	}{
		{"killed", w.sluice.Kill, w.sluice.Start},
		{"paused", w.sluice.Pause, w.sluice.Resume},
		{"killed", w.sluice.Kill, w.sluice.Start},
		{"paused", w.sluice.Pause, w.sluice.Resume},
	} {
		arrives()
		former := writer("")
		if former == "" {
			t.Fatal("no bucket-store writes")
		}
		x.end(former)
		begin := time.Now()
		next := ""
		for next == "" {
			if next = writer(former); next == "" && time.Since(begin) > soon {
				t.Fatalf("nobody takes over from %s, which was %s", former, x.name)
			}
			time.Sleep(20 * time.Millisecond)
		}
		took := time.Since(begin)
		if took > 5*time.Second {
			t.Errorf("round %d: %s was %s, and %s took over after %s", round, former, x.name, next, took)
		}
		t.Logf("round %d: %s was %s, %s took over after %s, and a row written then was with the clients %s later",
			round, former, x.name, next, took.Round(time.Millisecond), arrives().Round(time.Millisecond))
		x.begin(former)
		harness.Eventually(t, soon, former+" serves reads again, and does not write", func() error {
			ready, err := w.sluice.Ready(former)
			if err != nil {
				return err
			}
			owner, err := w.sluice.Metric(former, "sluice_store_owner")
			if err != nil {
				return err
			}
			return harness.Equal(fmt.Sprint(ready, owner), "true 0")
		})
	}
	written := l.stop()
	took := harness.Converged(t, w.pg, time.Minute, same...)
	for user, c := range clients {
		c.Sound()
		if got := c.Stats().Connects; got != connects[user] {
			t.Errorf("client %s: its stream ended %d times", user, got-connects[user])
		}
	}
	t.Logf("%d transactions; equal %s after the last", written, took.Round(time.Millisecond))
	w.once(t)
}

// once holds that each row that was inserted once, and not touched since, is in
// the storage as one op.
func (w *world) once(t *testing.T) {
	t.Helper()
	u, err := url.Parse(w.pg.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/sluice_storage"
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var stream int64
	if err := conn.QueryRow(t.Context(), `SELECT max(stream) FROM sluice.heads`).Scan(&stream); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), fmt.Sprintf(`SELECT convert_from(data, 'UTF8') FROM sluice.ops_%d WHERE data IS NOT NULL`, stream))
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	want, err := w.pg.Rows("SELECT (SELECT count(*) FROM announcements) + (SELECT count(*) FROM counters)")
	if err != nil {
		t.Fatal(err)
	}
	if got := []string{fmt.Sprint(len(all))}; !slices.Equal(got, want) {
		slices.Sort(all)
		twice := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return strings.Count(strings.Join(all, "\n"), s) < 2 })
		t.Errorf("D4: %s ops for %s rows; twice: %.20q", got, want, twice)
	}
}
