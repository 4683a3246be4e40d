package suites

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/e2e/harness"
)

const acks = `
CREATE TABLE acks (user_id text, client_id text, checkpoint bigint NOT NULL, PRIMARY KEY (user_id, client_id));
INSERT INTO acks VALUES ('copied', 'c', 3);
`

const ackEvents = `
event_definitions:
  write_checkpoints:
    payloads:
      - SELECT user_id, client_id, checkpoint FROM acks
`

// TestCustomCheckpoints: the backend writes the write checkpoints, in the
// transaction of the data, into a table that no bucket has.
func TestCustomCheckpoints(t *testing.T) {
	w := newWorld(t, harness.Dev, acks, func(o *harness.Options) { o.SyncConfig = syncConfig + ackEvents })
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"WriteLoop", customWriteLoop},
		{"WithTheData", customWithTheData},
		{"NoneHandedOut", customOnly},
		{"AfterARestart", customRestart}, // the last: it ends the others' streams
	} {
		w.run(t, test.name, func(t *testing.T) { test.run(t, w) })
	}
}

// customWriteLoop is writeLoop with an app and a backend of custom write
// checkpoints: INV-27 and INV-28.
func customWriteLoop(t *testing.T, w *world) {
	user := w.user()
	var c *harness.Client
	opened := make(chan struct{})
	given := 0
	upload := func(crud []harness.Crud) (string, error) {
		<-opened
		err := w.uploadWith(t, crud, func(ctx context.Context, tx pgx.Tx) error {
			return tx.QueryRow(ctx, `INSERT INTO acks VALUES ($1, $2, 1)
				ON CONFLICT (user_id, client_id) DO UPDATE SET checkpoint = acks.checkpoint + 1 RETURNING checkpoint`, user, c.ID).Scan(&given)
		})
		return fmt.Sprint(given), err
	}
	c = w.client(t, user, func(o *harness.ClientOptions) { o.UploadCustom = upload })
	close(opened)
	c.FirstSync(soon)
	write := func(want string, s harness.Statement) {
		t.Helper()
		c.Execute(s)
		written := time.Now()
		harness.Eventually(t, soon, "the row comes back from the source", func() error {
			// What comes before the upload has ended, the SDK applies with the
			// next checkpoint only.
			if time.Since(written) > time.Second {
				written = time.Now()
				w.pg.Exec("INSERT INTO announcements VALUES (gen_random_uuid(), 'the next checkpoint')")
			}
			rows, err := c.Rows("SELECT name FROM lists")
			if err != nil {
				return err
			}
			if len(rows) != 1 {
				t.Fatalf("a written row flickered away: %v", rows)
			}
			return harness.Equal(rows[0], want+" (from the source)")
		})
		harness.Converged(t, w.pg, soon, lists(c, user))
	}
	write("mine", harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES (?, ?, 'mine', 3)", Args: []any{user + "-w1", user}})
	if got := c.Stats().WriteCheckpoint; got != "1" {
		t.Errorf("write checkpoint %q after the first upload, want 1", got)
	}
	write("changed", harness.Statement{SQL: "UPDATE lists SET name = 'changed'"})
	if got := c.Stats().WriteCheckpoint; got != "2" {
		t.Errorf("write checkpoint %q after the second upload, want 2", got)
	}
	if rows, err := c.Rows("SELECT count(*) FROM ps_crud"); err != nil || rows[0] != "0" {
		t.Errorf("upload queue: %v %v", rows, err)
	}
	if s := c.Status(); s.UploadError != "" || s.DownloadError != "" {
		t.Errorf("errors that the app sees: %+v", s)
	}
	c.Sound()
	c.Close()
}

// checkpointLine is a checkpoint or checkpoint_diff line.
type checkpointLine struct {
	WriteCheckpoint string `json:"write_checkpoint"`
	Buckets         []struct {
		Bucket string `json:"bucket"`
		Count  int    `json:"count"`
	} `json:"buckets"`
	Updated []struct {
		Bucket string `json:"bucket"`
		Count  int    `json:"count"`
	} `json:"updated_buckets"`
}

// checkpointLines has the checkpoint and checkpoint_diff lines of a stream.
type checkpointLines struct {
	t     *testing.T
	body  io.Closer
	lines *bufio.Scanner
}

// stream opens a stream of user and client c.
func (w *world) stream(t *testing.T, user string) (*checkpointLines, error) {
	t.Helper()
	resp, err := w.request(t, user, http.MethodPost, "/sync/stream", `{"raw_data":true,"client_id":"c"}`)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("stream: %s", resp.Status)
	}
	c := &checkpointLines{t: t, body: resp.Body, lines: bufio.NewScanner(resp.Body)}
	c.lines.Buffer(nil, 64<<20)
	return c, nil
}

func (c *checkpointLines) next() checkpointLine {
	c.t.Helper()
	for c.lines.Scan() {
		var l struct {
			Checkpoint *checkpointLine `json:"checkpoint"`
			Diff       *checkpointLine `json:"checkpoint_diff"`
		}
		if err := json.Unmarshal(c.lines.Bytes(), &l); err != nil {
			c.t.Fatalf("%q: %v", c.lines.Bytes(), err)
		}
		if l.Checkpoint != nil {
			return *l.Checkpoint
		}
		if l.Diff != nil {
			return *l.Diff
		}
	}
	c.t.Fatalf("the stream ended: %v", c.lines.Err())
	return checkpointLine{}
}

// request is a request of user; the answer must be read within two minutes.
func (w *world) request(t *testing.T, user, method, path, body string) (*http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, w.sluice.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Token "+harness.Token(t, user, time.Hour, nil))
	req.Header.Set("Content-Type", "application/json")
	return http.DefaultClient.Do(req)
}

// customWithTheData holds D1 on the wire: a write checkpoint comes with all of
// its transaction, however large, and alone if there is nothing else.
func customWithTheData(t *testing.T, w *world) {
	user := w.user()
	c, err := w.stream(t, user)
	if err != nil {
		t.Fatal(err)
	}
	defer c.body.Close()
	next := c.next
	if l := next(); l.WriteCheckpoint != "" {
		t.Errorf("write checkpoint %q before there is one", l.WriteCheckpoint)
	}
	const rows = 20_000
	w.pg.Exec(fmt.Sprintf(`BEGIN;
		INSERT INTO acks VALUES ('%[1]s', 'c', 7);
		INSERT INTO counters SELECT '%[1]s' || i, '%[1]s', 0 FROM generate_series(1, %[2]d) i;
		COMMIT`, user, rows))
	l := next()
	for l.WriteCheckpoint == "" && len(l.Updated) == 0 {
		l = next() // of a transaction before it
	}
	if l.WriteCheckpoint != "7" || len(l.Updated) != 1 || l.Updated[0].Count != rows {
		t.Errorf("D1: %+v, want write checkpoint 7 with %d rows", l, rows)
	}
	w.pg.Exec("UPDATE acks SET checkpoint = 9 WHERE user_id = $1", user)
	for l = next(); l.WriteCheckpoint == "7"; l = next() {
	}
	if l.WriteCheckpoint != "9" || len(l.Updated) != 0 {
		t.Errorf("%+v, want write checkpoint 9 alone", l)
	}
	// A lower one, a deleted and an invalid one change nothing.
	w.pg.Exec(fmt.Sprintf(`BEGIN;
		UPDATE acks SET checkpoint = 8 WHERE user_id = '%[1]s';
		DELETE FROM acks WHERE user_id = '%[1]s';
		INSERT INTO acks VALUES ('%[1]s', 'c', 0);
		INSERT INTO lists(id, owner_id, name) VALUES ('%[1]s-after', '%[1]s', 'after');
		COMMIT`, user))
	if l = next(); l.WriteCheckpoint != "9" || len(l.Updated) != 1 {
		t.Errorf("INV-26: %+v, want write checkpoint 9 with a list", l)
	}
}

// customOnly: the service hands out none.
func customOnly(t *testing.T, w *world) {
	user := w.user()
	for _, r := range [][3]string{
		{http.MethodGet, "/write-checkpoint2.json?client_id=c"}, {http.MethodGet, "/write-checkpoint.json"},
		{http.MethodPost, "/sync/checkpoint-request", `{"client_id":"c","checkpoint_request_id":"5"}`},
	} {
		resp, err := w.request(t, user, r[0], r[1], r[2])
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "PSYNC_S2001") {
			t.Errorf("%s: %s %s %v", r[1], resp.Status, body, err)
		}
	}
}

// customRestart: what was copied at the start, and what came later, is there
// after a crash.
func customRestart(t *testing.T, w *world) {
	user := w.user()
	w.pg.Exec("INSERT INTO acks VALUES ($1, 'c', 5)", user)
	first := func(user, want string) {
		t.Helper()
		harness.Eventually(t, soon, "the write checkpoint of "+user, func() error {
			c, err := w.stream(t, user)
			if err != nil {
				return err
			}
			defer c.body.Close()
			return harness.Equal(c.next().WriteCheckpoint, want)
		})
	}
	first(user, "5")
	first("copied", "3")
	w.sluice.Kill(harness.All)
	w.sluice.Start(harness.All)
	first(user, "5")
	first("copied", "3")
	first(w.user(), "")
}
