package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
)

func file(t *testing.T, extra string) *config.File {
	t.Helper()
	f, err := config.Parse([]byte(`
replication: {connections: [{type: postgresql, uri: "postgresql://u:secret-password@127.0.0.1:1999/d", sslmode: disable, connect_timeout: 2}]}
`+extra), "test.yaml", t.TempDir(), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// text is results as "check state detail | fixes", a line each.
func text(t *testing.T, rs ...Result) string {
	t.Helper()
	var out []string
	for _, r := range rs {
		if r.State == Failed && r.Check != "keys" && r.Check != "audience" && r.Check != "storage" && len(r.Fixes) == 0 {
			t.Errorf("%s has failed and has no fix", r.Check)
		}
		out = append(out, fmt.Sprintf("%s %s %s | %s", r.Check, r.State, r.Detail, strings.Join(r.Fixes, " && ")))
	}
	return strings.Join(out, "\n")
}

func TestSource(t *testing.T) {
	got := text(t, Source(context.Background(), file(t, ""), nil)...)
	if !strings.HasPrefix(got, "source failed cannot be reached: ") || !strings.HasSuffix(got, "| pg_isready -h 127.0.0.1 -p 1999 && psql 'host=127.0.0.1 port=1999 user=u dbname=d' -c 'SELECT 1'") ||
		strings.Contains(got, "secret-password") {
		t.Error(got)
	}
}

func TestClock(t *testing.T) {
	for ahead, want := range map[time.Duration]string{
		time.Second:       "clock of x ok 1s ahead of this machine's | ",
		-3 * time.Second:  "clock of x warning 3s behind this machine's: freshness is told wrongly | sudo timedatectl",
		30 * time.Second:  "clock of x failed 30s ahead of this machine's: tokens and freshness are judged wrongly | sudo timedatectl",
		-30 * time.Second: "clock of x failed 30s behind",
	} {
		if got := text(t, Clock("x", ahead)); !strings.HasPrefix(got, want) {
			t.Error(got)
		}
	}
}

func TestGatewayClock(t *testing.T) {
	offset := time.Duration(0)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(offset).UTC().Format(http.TimeFormat))
	}))
	for _, want := range []struct {
		offset time.Duration
		state  State
	}{{0, OK}, {-10 * time.Second, Warning}, {time.Hour, Failed}} {
		offset = want.offset
		if r := Gateway(context.Background(), nil, s.URL); r.State != want.state {
			t.Errorf("%s: %+v", want.offset, r)
		}
	}
	s.Close()
	if r := Gateway(context.Background(), nil, s.URL); r.State != Skipped {
		t.Errorf("%+v", r)
	}
}

func TestKeys(t *testing.T) {
	answer := `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
	defer s.Close()
	f := file(t, "client_auth: {audience: [a], jwks_uri: '"+s.URL+"/keys?secret=x'}")
	keys := func() string { return text(t, Keys(context.Background(), f)...) }
	if got := keys(); got != "keys at "+s.URL+"/keys ok 1 keys | " {
		t.Error(got)
	}
	answer = `{"keys":[]}`
	if got := keys(); !strings.Contains(got, "failed has no key that can be used") || !strings.Contains(got, "| curl -sS -m 10 '"+s.URL+"/keys'") {
		t.Error(got)
	}
	answer = `<html>`
	if got := keys(); !strings.Contains(got, "[PSYNC_S2204] JWKS response is not a key set") {
		t.Error(got)
	}
	s.Close()
	if got := keys(); !strings.Contains(got, "failed [PSYNC_S2204] JWKS request failed") || !strings.Contains(got, "refused") || strings.Contains(got, "secret") {
		t.Error(got)
	}
	f = file(t, "client_auth: {audience: [a], jwks_uri: '"+strings.Replace(s.URL, "127.0.0.1", "localhost", 1)+"', jwks_reject_ip_ranges: [local]}")
	if got := keys(); !strings.Contains(got, "PSYNC_S2203") {
		t.Error(got)
	}
	f = file(t, "")
	if got := keys(); !strings.Contains(got, "keys failed client_auth has no key") || !strings.Contains(got, "audience failed client_auth.audience is empty") {
		t.Error(got)
	}
	f = file(t, "client_auth: {audience: [a], jwks: {keys: [{kty: oct, alg: HS256, kid: k, k: c2VjcmV0}]}}")
	if got := keys(); got != "keys ok 1 in the config | " {
		t.Error(got)
	}
}

func TestStorage(t *testing.T) {
	dir := t.TempDir()
	f := file(t, "storage: {type: embedded, path: "+filepath.Join(dir, "not", "yet")+"}")
	if got := text(t, Storage(f)); got != "storage ok "+filepath.Join(dir, "not", "yet")+" | " {
		t.Error(got)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("the check left %v, %v", names, err)
	}
	plain := filepath.Join(dir, "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f = file(t, "storage: {type: embedded, path: "+plain+"}")
	if got := text(t, Storage(f)); !strings.Contains(got, "is not a folder | ls -ld '"+plain+"'") {
		t.Error(got)
	}
}

func TestServices(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	// Ports below 1024 that nobody has.
	const away = "sluice: {nats: {url: 'nats://127.0.0.1:3'}, bucket_store: {address: '%s'}, replicator: {address: '127.0.0.1:5'}, compactor: {address: '127.0.0.1:6'}}"
	if got := text(t, Services(context.Background(), file(t, fmt.Sprintf(away, "127.0.0.1:4")))...); !strings.HasPrefix(got, "services skipped") {
		t.Error(got)
	}
	got := text(t, Services(context.Background(), file(t, fmt.Sprintf(away, lis.Addr())))...)
	if !strings.Contains(got, "NATS failed ") || !strings.Contains(got, "| nc -vz 127.0.0.1 3") || !strings.Contains(got, "bucket-store ok listens on "+lis.Addr().String()) {
		t.Error(got)
	}
}

// way is a gateway behind a proxy of some kind.
func way(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil { // else it is not seen when the client goes
			t.Error(err)
		}
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestPath: what proxies do wrong is told apart.
func TestPath(t *testing.T) {
	upgrade := func(w http.ResponseWriter) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
	}
	refuse := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			if code == "" {
				fmt.Fprint(w, "<html>not here</html>")
				return
			}
			if err := json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": code, "description": "no"}}); err != nil {
				t.Error(err)
			}
		}
	}
	for name, c := range map[string]struct {
		proxy                http.HandlerFunc
		wantStream, wantSock string
	}{
		"passes": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Upgrade") != "" {
				upgrade(w)
				return
			}
			if r.URL.Path != "/sync/stream" || r.Header.Get("Authorization") != "Token tok" || r.Header.Get("Accept-Encoding") != "identity" {
				t.Errorf("%s %v", r.URL, r.Header)
			}
			fmt.Fprintln(w, `{"checkpoint":{}}`)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "path of streams ok", "path of WebSockets ok"},
		"no upgrades": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, `{"checkpoint":{}}`)
		}, "path of streams ok", "an upgrade is answered with HTTP status 200 OK | proxy_http_version 1.1; proxy_set_header Upgrade"},
		"cuts":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }, "the stream broke off: EOF | proxy_http_version 1.1; proxy_buffering off", "200 OK"},
		"elsewhere": {refuse(404, ""), "HTTP status 404 Not Found, and not from Sluice", "404"},
		"token":     {refuse(401, "PSYNC_S2105"), "failed http", "401"},
		"no config": {refuse(500, "PSYNC_S2302"), "skipped http", "500"},
	} {
		t.Run(name, func(t *testing.T) {
			rs := Path(context.Background(), way(t, c.proxy)+"/", "tok")
			if got := text(t, rs[0]); !strings.Contains(got, c.wantStream) {
				t.Error(got)
			}
			if got := text(t, rs[1]); !strings.Contains(got, c.wantSock) {
				t.Error(got)
			}
		})
	}
	if rs := Path(context.Background(), "http://127.0.0.1:3", "tok"); rs[0].State != Failed || rs[1].State != Failed {
		t.Errorf("%+v", rs)
	}
}

// TestBuffering: a proxy that keeps what is sent to itself, headers or lines.
func TestBuffering(t *testing.T) {
	defer func(d time.Duration) { firstLine = d }(firstLine)
	firstLine = 300 * time.Millisecond
	for _, headers := range []bool{false, true} {
		url := way(t, func(w http.ResponseWriter, r *http.Request) {
			if headers {
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})
		if got := text(t, Path(context.Background(), url, "tok")[0]); !strings.Contains(got, "a proxy in between buffers responses") || !strings.Contains(got, "| proxy_http_version 1.1; proxy_buffering off") {
			t.Errorf("headers %v: %s", headers, got)
		}
	}
}

func TestWorst(t *testing.T) {
	if err := Worst([]Result{{State: OK}, {State: Warning}, {State: Skipped}}); err != nil {
		t.Error(err)
	}
	if err := Worst([]Result{{Check: "a", State: Failed}, {State: OK}, {Check: "b", State: Failed}}); err == nil || err.Error() != "failed: a, b" {
		t.Error(err)
	}
}
