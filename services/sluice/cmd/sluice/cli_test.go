package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// answers is an instance that answers each path with a text.
func answers(t *testing.T, token string, replies map[string]string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Token "+token {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error":{"code":"PSYNC_S2101","status":401,"description":"Authorization failed"}}`)
			return
		}
		fmt.Fprint(w, replies[r.URL.Path])
	}))
	t.Cleanup(s.Close)
	return s
}

const someSessions = `{"data":{"gateway":"gw-1","total":3,"sessions":[` +
	`{"user":"u1","client_id":"c1","agent":"powersync-js/1","transport":"websocket","since":"2026-01-02T03:04:05Z","buckets":2,"checkpoint":"7","behind":{"checkpoints":3,"ops":5,"ms":1200}},` +
	`{"user":"` + "a-user-whose-name-is-longer-than-forty-letters" + `","client_id":"","agent":"","transport":"http","since":"2026-01-02T03:04:05Z","buckets":0,"checkpoint":"12","behind":{"checkpoints":0,"ops":0,"ms":0}}]}}`

func TestSessions(t *testing.T) {
	s := answers(t, "adm", map[string]string{"/api/admin/v1/sluice/sessions": someSessions})
	path := files(t, service, syncConfig)
	// One gateway at two addresses is one.
	code, out, stderr := sluice("sessions", "-c", path, "--url", s.URL, "--url", strings.Replace(s.URL, "127.0.0.1", "localhost", 1))
	for _, want := range []string{"gw-1     u1 ", " websocket ", " 3 checkpoints, 5 ops, 1.2s\n", "a-user-whose-name-is-longer-than-forty-… ", "gw-1: these are 2 of 3; --limit and --user show others\n"} {
		if code != 0 || stderr != "" || strings.Count(out, want) != 1 {
			t.Errorf("not once %q: %d %s %s", want, code, out, stderr)
		}
	}
	code, out, stderr = sluice("sessions", "-c", path, "--json", "--url", s.URL, "--url", "http://127.0.0.1:3")
	var got struct {
		Gateways []struct {
			URL, Address, Gateway, Error string
			Sessions                     []struct{ Behind struct{ Ops int } }
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 3 || len(got.Gateways) != 2 || got.Gateways[0].Gateway != "gw-1" || got.Gateways[0].Sessions[0].Behind.Ops != 5 ||
		got.Gateways[0].Address != strings.TrimPrefix(s.URL, "http://") || !strings.Contains(got.Gateways[1].Error, "refused") || !strings.Contains(stderr, "reach the instance") {
		t.Errorf("%d %s %s %v", code, out, stderr, err)
	}
}

// A token of one's own and an address need no service config.
func TestWithoutConfig(t *testing.T) {
	t.Chdir(t.TempDir())
	s := answers(t, "scoped", map[string]string{
		"/api/admin/v1/sluice/status":  `{"data":{"healthy":true,"streams":[{"name":"s_1","state":"PROCESSING","copy":{"tables":3,"tables_done":1,"rows":50,"rows_estimated":200,"eta_ms":90000},"deployed_at":"2026-01-02T03:04:05Z","deployed_by":"ci"}]}}`,
		"/api/admin/v1/sluice/compact": `{"data":{"buckets":2,"ops_read":7}}`,
	})
	t.Setenv("SLUICE_URL", s.URL)
	if code, _, stderr := sluice("status"); code != 1 || !strings.Contains(stderr, "powersync.yaml") {
		t.Errorf("without a token: %d %s", code, stderr)
	}
	t.Setenv("SLUICE_TOKEN", "scoped")
	code, out, stderr := sluice("status")
	if code != 0 || !strings.Contains(out, "s_1: copying 25%, 50 of about 200 rows, 1 of 3 tables, about 1m30s left\n") || !strings.Contains(out, "2026-01-02T03:04:05Z by ci\n") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	if code, out, _ := sluice("compact", "--json"); code != 0 || !strings.HasPrefix(out, `{"buckets":2,"ops_read":7,`) {
		t.Errorf("%d %s", code, out)
	}
	t.Setenv("SLUICE_TOKEN", "another")
	if code, _, stderr := sluice("status"); code != 3 || !strings.Contains(stderr, "PSYNC_S2101") {
		t.Errorf("another token: %d %s", code, stderr)
	}
}

func TestValidateJSON(t *testing.T) {
	code, out, _ := sluice("validate", "--offline", "--json", "-c", files(t, service, "bucket_definitions:\n  all:\n    data: [SELECT]\n"))
	var got struct {
		Valid    bool
		Problems []finding
		Source   string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || got.Valid || len(got.Problems) == 0 || got.Problems[0].Line != 3 || !got.Problems[0].Fatal || !strings.Contains(got.Source, "--offline") {
		t.Errorf("%d %s %v", code, out, err)
	}
}

// TestDoctor: everything is looked at, whatever is away, and what failed makes
// the exit code.
func TestDoctor(t *testing.T) {
	s := answers(t, "adm", map[string]string{
		"/api/admin/v1/sluice/status": `{"data":{"healthy":false,"stages":[{"name":"read","ok":false,"detail":"has not moved for 1m0s"}]}}`,
		"/sync/stream":                "{}\n",
	})
	path := files(t, strings.Replace(service, "postgresql://u:p@h/d", "postgresql://u:secret-password@127.0.0.1:1999/d", 1)+
		"  bucket_store: {address: '127.0.0.1:4'}\n  nats: {url: 'nats://127.0.0.1:3'}\n  replicator: {address: '127.0.0.1:5'}\n  compactor: {address: '127.0.0.1:6'}\n", syncConfig)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), "sluice: {gateway: {metrics_port: 9100}}\n", "sluice:\n", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := sluice("doctor", "-c", path, "--url", s.URL, "--via", s.URL, "--json")
	var got struct {
		OK     bool
		Checks []struct {
			Check, State, Detail string
			Fixes                []string
		}
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.OK || code != 1 {
		t.Fatalf("%d %s %s %v", code, out, stderr, err)
	}
	var states []string
	for _, c := range got.Checks {
		states = append(states, c.Check+" "+c.State)
	}
	want := []string{"config ok", "sync config ok", "source failed", "storage ok", "keys ok", "services skipped", "instance failed", "clock of gateway ok", "path of streams failed", "path of WebSockets failed"}
	if !slices.Equal(states, want) {
		t.Errorf("%q, want %q", states, want)
	}
	code, out, stderr = sluice("doctor", "-c", path, "--url", s.URL)
	for _, want := range []string{"CHECK ", "source       ", "\n# source\npg_isready -h 127.0.0.1 -p 1999\n", "stale: read: has not moved for 1m0s", "path of clients", "give the address that clients use with --via"} {
		if code != 1 || !strings.Contains(out, want) || strings.Contains(out+stderr, "secret-password") {
			t.Errorf("no %q: %d %s %s", want, code, out, stderr)
		}
	}
	if code, out, stderr := sluice("test-connection", "-c", path); code != 1 || !strings.Contains(out, "cannot be reached") || !strings.Contains(stderr, "failed: source") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
}

// TestDocumented holds docs/cli.md to the program: every command and every flag
// is on the page, and no other.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	k, err := kong.New(&cli{}, kong.Vars{"identities": config.DefaultIdentities})
	if err != nil {
		t.Fatal(err)
	}
	flag := regexp.MustCompile("`(--[a-z0-9-]+)")
	section := func(name string) string {
		_, after, ok := strings.Cut(page, "\n### "+name+"\n")
		if !ok {
			t.Errorf("docs/cli.md has no section %s", name)
		}
		text, _, _ := strings.Cut(after, "\n##")
		return text
	}
	compare := func(name, text string, flags []*kong.Flag) {
		var have, documented []string
		for _, f := range flags {
			if f.Name != "help" {
				have = append(have, "--"+f.Name)
			}
		}
		for _, m := range flag.FindAllStringSubmatch(text, -1) {
			if m[1] != "--config" || name == "every command" {
				documented = append(documented, m[1])
			}
		}
		slices.Sort(have)
		slices.Sort(documented)
		// Two commands of one section may have a flag of one name.
		if have, documented = slices.Compact(have), slices.Compact(documented); !slices.Equal(have, documented) {
			t.Errorf("%s: the program has %v, the page %v", name, have, documented)
		}
	}
	_, general, _ := strings.Cut(page, "\n## For every command\n")
	general, _, _ = strings.Cut(general, "\n## ")
	compare("every command", general, k.Model.Flags)
	var commands []string
	for _, c := range k.Model.Children {
		commands = append(commands, c.Name)
		text := section(c.Name)
		if !strings.Contains(text, "```\nsluice "+c.Name) {
			t.Errorf("%s has no example", c.Name)
		}
		flags := c.Flags
		for _, sub := range c.Children {
			flags = append(flags, sub.Flags...)
		}
		compare(c.Name, text, flags)
	}
	for _, m := range regexp.MustCompile(`(?m)^### ([a-z-]+)$`).FindAllStringSubmatch(page, -1) {
		if !slices.Contains(commands, m[1]) {
			t.Errorf("docs/cli.md has a section %s, and the program no such command", m[1])
		}
	}
}
