package suites

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// TestCommands: what the command line says of a real instance and its source,
// and how it ends both.
func TestCommands(t *testing.T) {
	dir := harness.NeedsServers(t)
	pg := harness.StartPostgres(t, dir)
	pg.Exec(sourceSchema + `INSERT INTO lists VALUES ('l1', 'u1', 'one')`)
	pg.Exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '2GB'`)
	pg.Exec(`SELECT pg_reload_conf()`)
	in := harness.StartInstance(t, dir, pg, harness.Options{Mode: harness.Dev, SyncConfig: syncConfig})
	harness.Eventually(t, time.Minute, "the instance is healthy", func() error {
		out, err := in.CLI("status")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if !strings.Contains(out, " by file\n") {
			return fmt.Errorf("nobody deployed it: %s", out)
		}
		return nil
	})
	base := in.URLs()[0]

	// A client that is connected is listed, and is not behind.
	body := openStream(t, base, "u1")
	defer body.Close()
	harness.Eventually(t, time.Minute, "the session is listed", func() error {
		out, err := in.CLI("sessions", "--json")
		var got struct {
			Gateways []struct {
				Total    int
				Sessions []struct {
					User    string
					Client  string `json:"client_id"`
					Buckets int
					Behind  struct{ Checkpoints, Ops int }
				}
			}
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if len(got.Gateways) != 1 || got.Gateways[0].Total != 1 {
			return fmt.Errorf("not one session: %s", out)
		}
		if s := got.Gateways[0].Sessions[0]; s.User != "u1" || s.Client != "c1" || s.Buckets == 0 || s.Behind.Checkpoints != 0 {
			return fmt.Errorf("another session: %s", out)
		}
		return nil
	})

	if out, err := in.CLI("test-connection"); err != nil || !strings.Contains(out, "source  ok     postgresql://127.0.0.1:") {
		t.Errorf("%v: %s", err, out)
	}
	// Everything is right, through the way of clients too.
	out, err := in.CLI("doctor", "--via", base, "--json")
	var report struct {
		OK     bool
		Checks []struct {
			Check, State, Detail string
			Fixes                []string
		}
	}
	if jerr := json.Unmarshal([]byte(out), &report); err != nil || jerr != nil || !report.OK {
		t.Fatalf("%v, %v: %s", err, jerr, out)
	}
	for _, c := range report.Checks {
		// The harness's password is trusted and its tables have no rows for some.
		if c.State != "ok" && c.Check != "services" {
			t.Errorf("%+v", c)
		}
	}
	// A table that loses its identity, and one that is not published.
	pg.Exec(`ALTER TABLE todos DROP CONSTRAINT todos_pkey`)
	out, err = in.CLI("doctor")
	if err == nil || !strings.Contains(out, `ALTER TABLE "public"."todos" REPLICA IDENTITY FULL;`) {
		t.Errorf("%v: %s", err, out)
	}
	pg.Exec(`ALTER TABLE todos ADD PRIMARY KEY (id)`)

	// Torn down: no slot, no data, and clients are told.
	if out, err := in.CLI("teardown"); err == nil || !strings.Contains(out, "PSYNC_S0102") {
		t.Errorf("%v: %s", err, out)
	}
	if n := slots(t, pg); n != 1 {
		t.Fatalf("%d slots", n)
	}
	if out, err := in.CLI("teardown", "TEARDOWN"); err != nil || !strings.Contains(out, "its slot dropped and its data cleared") {
		t.Fatalf("%v: %s", err, out)
	}
	if n := slots(t, pg); n != 0 {
		t.Errorf("%d slots are left", n)
	}
	if rest, err := io.ReadAll(body); err != nil {
		t.Errorf("the stream did not end cleanly: %v after %q", err, rest)
	}
	out, err = in.CLI("doctor", "--via", base)
	if err == nil || !strings.Contains(out, "PSYNC_S2302") {
		t.Errorf("%v: %s", err, out)
	}

	// Deployed again by hand, and torn down without an instance.
	in.Deploy(strings.Replace(syncConfig, "announcements:", "news:", 1))
	harness.Eventually(t, time.Minute, "the new stream is healthy", func() error {
		out, err := in.CLI("status")
		if err != nil || !strings.Contains(out, " by api.tokens[0]\n") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	in.Stop(harness.All)
	if out, err := in.CLI("status"); exitCode(err) != 3 {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := in.CLI("teardown", "TEARDOWN", "--offline", "--json"); err != nil || !strings.Contains(out, `{"removed":["powersync_2_`) {
		t.Errorf("%v: %s", err, out)
	}
	if n := slots(t, pg); n != 0 {
		t.Errorf("%d slots are left", n)
	}
}

func exitCode(err error) int {
	var e interface{ ExitCode() int }
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

func slots(t *testing.T, pg *harness.Postgres) (n int) {
	t.Helper()
	if err := pg.Connect().QueryRow(t.Context(), `SELECT count(*) FROM pg_replication_slots`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// openStream opens a stream and reads it until its first checkpoint is complete.
func openStream(t *testing.T, base, user string) io.ReadCloser {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/sync/stream", strings.NewReader(`{"raw_data":true,"client_id":"c1"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Token "+harness.Token(t, user, time.Hour, nil))
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("HTTP status %s", resp.Status)
	}
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, `"checkpoint_complete"`) {
			return resp.Body
		}
	}
}
