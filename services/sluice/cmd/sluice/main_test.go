package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const service = `
replication: {connections: [{type: postgresql, uri: "postgresql://u:p@h/d"}]}
client_auth: {audience: [a], jwks: {keys: [{kty: oct, alg: HS256, kid: k, k: c2VjcmV0}]}}
api: {tokens: [adm]}
port: 9000
sync_config: {path: sync.yaml}
sluice: {gateway: {metrics_port: 9100}}
`

const syncConfig = "bucket_definitions:\n  all:\n    data: [SELECT * FROM todos]\n"

// files writes a service and a sync config and returns the first one's path.
func files(t *testing.T, service, syncConfig string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"powersync.yaml": service, "sync.yaml": syncConfig} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "powersync.yaml")
}

func sluice(args ...string) (code int, out, err string) {
	var o, e bytes.Buffer
	code = run(args, terminal{&o, &e})
	return code, o.String(), e.String()
}

func TestValidate(t *testing.T) {
	code, out, stderr := sluice("validate", "--offline", "-c", files(t, service, syncConfig))
	if code != 0 || !strings.Contains(out, "are valid") || !strings.Contains(out, "not checked against the source: --offline") || stderr != "" {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	// Every problem of both files, with its place.
	path := files(t, strings.Replace(service, "9000", "x", 1)+"storage: {type: paper}\n", syncConfig)
	code, out, _ = sluice("validate", "--config", path, filepath.Join(filepath.Dir(path), "sync.yaml"))
	if code != 1 || !strings.Contains(out, "powersync.yaml:5:7: port:") || !strings.Contains(out, "powersync.yaml:8:17: storage.type:") ||
		!strings.Contains(out, "not checked against the source") {
		t.Errorf("%d %s", code, out)
	}
	code, out, _ = sluice("validate", "--offline", "-c", files(t, service, "bucket_definitions:\n  all:\n    data: [SELECT, SELECT * FORM x]\n"))
	if code != 1 || strings.Count(out, "sync.yaml:3:") < 2 {
		t.Errorf("%d %s", code, out)
	}
}

// Unknown names are warned of when an instance tells the source's tables; when
// none does, that is said.
func TestValidateSource(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/admin/v1/schema" || r.Header.Get("Authorization") != "Token adm" {
			t.Errorf("%s with %q", r.URL, r.Header.Get("Authorization"))
		}
		fmt.Fprint(w, `{"data":{"connections":[{"tag":"default","schemas":[{"name":"public","tables":[{"name":"todos","columns":[`+
			`{"name":"id","sqlite_type":"text"},{"name":"owner_id","sqlite_type":"text"}]}]}]}]}}`)
	}))
	path := files(t, service, "bucket_definitions:\n  all:\n    data:\n      - SELECT * FROM todoz\n      - SELECT id FROM todos WHERE ownr_id = 'x'\n")
	code, out, stderr := sluice("validate", "--url", s.URL, "-c", path)
	for _, want := range []string{
		"sync.yaml:4:23: table public.todoz does not exist; is it todos? (warning)\n",
		"sync.yaml:5:36: column ownr_id does not exist; is it owner_id? (warning)\n",
		"were checked against the source, as the instance at " + s.URL, "are valid\n",
	} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("no %q: %d %s %s", want, code, out, stderr)
		}
	}
	s.Close()
	if code, out, _ := sluice("validate", "--url", s.URL, "-c", path); code != 0 || strings.Contains(out, "todoz") || !strings.Contains(out, "not checked against the source: reach the instance") {
		t.Errorf("nobody there: %d %s", code, out)
	}
}

func TestToken(t *testing.T) {
	path := files(t, service, syncConfig)
	code, out, stderr := sluice("token", "--user", "u1", "--ttl", "2h", "--claim", "role=admin", "--claim", `x={"a":1,"b":2}`, "--config", path)
	if code != 0 || strings.Count(out, ".") != 2 || stderr != "" {
		t.Errorf("%d %q %q", code, out, stderr)
	}
	if code, _, stderr := sluice("token", "--user", "u1", "--ttl", "25h", "-c", path); code != 1 || !strings.Contains(stderr, "PSYNC_S2104") {
		t.Errorf("%d %q", code, stderr)
	}
}

func TestConfig(t *testing.T) {
	path := files(t, service, syncConfig)
	for key, want := range map[string]string{"port": "9000", "sluice.gateway.metrics_port": "9100", "sluice.gateway.port": "9000", "sluice.rules_evaluator.metrics_port": "0"} {
		if code, out, _ := sluice("config", "--config", path, "--get", key); code != 0 || out != want+"\n" {
			t.Errorf("%s: %d %q", key, code, out)
		}
	}
	if code, _, stderr := sluice("config", "--config", path, "--get", "prot"); code != 1 || !strings.Contains(stderr, "prot") {
		t.Errorf("%d %q", code, stderr)
	}
	if code, out, _ := sluice("config", "--config", path); code != 0 || strings.Contains(out, "adm") || !strings.Contains(out, "port: 9000") {
		t.Errorf("%d %q", code, out)
	}
}

func TestInstance(t *testing.T) {
	healthy := "true"
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		replies := map[string]string{
			"/api/admin/v1/sluice/status": `{"data":{"healthy":` + healthy + `,"stages":[{"name":"read","heartbeat_at":"2026-01-01T00:00:00Z","age_ms":1500,"ok":true,"detail":""},` +
				`{"name":"stored","heartbeat_at":null,"age_ms":null,"ok":false,"detail":"never"}],"links":[{"peer":"nats","age_ms":12500,"ok":false}],"streams":[{"id":1,"name":"s_1","state":"ACTIVE","checkpoint":"7","position":"P","last_error":""}],"sessions":3}}`,
			"/api/admin/v1/sluice/compact": `{"data":{"buckets":2}}`,
			"/api/admin/v1/sluice/backup":  `{"data":{"path":"/store-backups/n","files":3,"bytes":5}}`,
			"/api/sync-rules/v1/deploy":    `{"data":{"slot_name":"s_1"}}`,
		}
		w.Write([]byte(replies[r.URL.Path]))
	}))
	defer s.Close()
	path := files(t, service, syncConfig)
	t.Setenv("SLUICE_URL", s.URL)
	code, out, stderr := sluice("status", "--config", path)
	for _, want := range []string{"read", "1.5s", "stored", "stale", "never", "nats", "12.5s", "silent", "s_1", "ACTIVE", "3 clients"} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q: %d %s %s", want, code, out, stderr)
		}
	}
	if code != 0 {
		t.Errorf("status of a healthy instance: %d", code)
	}
	healthy = "false"
	if code, out, _ := sluice("status", "--json", "--config", path); code != 1 || !strings.HasPrefix(out, `{"healthy":false`) {
		t.Errorf("status of a stale instance: %d %s", code, out)
	}
	if code, out, stderr := sluice("deploy", filepath.Join(filepath.Dir(path), "sync.yaml"), "--config", path); code != 0 || out != "s_1 is active\n" {
		t.Errorf("deploy: %d %s %s", code, out, stderr)
	}
	if code, out, stderr := sluice("compact", "--config", path); code != 0 || !strings.HasPrefix(out, "compacted 2 buckets: 0 ops read") {
		t.Errorf("compact: %d %s %s", code, out, stderr)
	}
	if code, out, stderr := sluice("storage", "backup", "n", "--config", path); code != 0 || out != "/store-backups/n: 3 files, 5 bytes\n" {
		t.Errorf("backup: %d %s %s", code, out, stderr)
	}
	if code, _, stderr := sluice("storage", "restore", t.TempDir(), "--config", path, "--data", t.TempDir()); code != 1 || !strings.Contains(stderr, "is no backup") {
		t.Errorf("restore: %d %s", code, stderr)
	}
	if code, _, stderr := sluice("compact", "--config", path, "-b", "a"); code != 1 || !strings.Contains(stderr, "full bucket id") {
		t.Errorf("compact: %d %s", code, stderr)
	}
	// An invalid sync config is not even sent.
	bad := files(t, strings.Replace(service, "[adm]", "[]", 1), "bucket_definitions: {a: {data: [SELECT]}}")
	if code, out, stderr := sluice("deploy", filepath.Join(filepath.Dir(bad), "sync.yaml"), "--config", path); code != 1 || !strings.Contains(stderr, "sync.yaml:1:") || !strings.Contains(stderr, "PSYNC_R0001") {
		t.Errorf("deploy of an invalid config: %d %s %s", code, out, stderr)
	}
	if code, _, stderr := sluice("status", "--config", bad); code != 1 || !strings.Contains(stderr, "api.tokens") {
		t.Errorf("status without a token: %d %s", code, stderr)
	}
}

func TestRollback(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		replies := map[string]string{
			"/api/admin/v1/sluice/status":   `{"data":{"streams":[{"name":"s_3","state":"ACTIVE"}]}}`,
			"/api/admin/v1/sluice/rollback": `{"data":{"slot_name":"s_3","to":"s_1","activated_at":"2026-01-02T03:04:05Z"}}`,
		}
		fmt.Fprint(w, replies[r.URL.Path])
	}))
	defer s.Close()
	t.Setenv("SLUICE_URL", s.URL)
	code, out, stderr := sluice("rollback", "-c", files(t, service, syncConfig))
	if code != 0 || out != "s_3 is active\n" || !strings.HasPrefix(stderr, "going back to the config of s_1, which became active at 2026-01-02T03:04:05Z\n") {
		t.Errorf("%d %q %q", code, out, stderr)
	}
}

// TestInstanceTLS: an instance whose certificate is of another name, under a
// path prefix, is found through the config that it has too.
func TestInstanceTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/pre/api/admin/v1/sluice/status" {
			fmt.Fprint(w, `{"data":{"healthy":true}}`)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	own, other := selfSigned(t), selfSigned(t)
	s.TLS.Certificates = []tls.Certificate{own}
	config := func(c tls.Certificate) string {
		text := fmt.Sprintf("%s  gateway: {port: %d, path_prefix: /pre, tls: {certificate: cert.pem, key: key.pem}}\n",
			strings.Replace(service, "sluice: {gateway: {metrics_port: 9100}}\n", "sluice:\n", 1), s.Listener.Addr().(*net.TCPAddr).Port)
		path := files(t, text, syncConfig)
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: der}} {
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), pem.EncodeToMemory(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	path := config(own)
	if code, _, stderr := sluice("status", "--config", path); code != 0 {
		t.Errorf("status: %d %s", code, stderr)
	}
	if code, out, _ := sluice("config", "--config", path, "--get", "sluice.gateway.tls"); code != 0 || out != "true\n" {
		t.Errorf("config: %d %s", code, out)
	}
	if code, out, _ := sluice("validate", "--offline", "--config", path); code != 0 || strings.Contains(out, "tls") {
		t.Errorf("validate: %d %s", code, out)
	}
	if code, _, stderr := sluice("status", "--config", path, "--url", s.URL+"/pre"); code != 3 || !strings.Contains(stderr, "certificate") {
		t.Errorf("an address that is given is verified as usual: %d %s", code, stderr)
	}
	if code, _, stderr := sluice("status", "--config", config(other)); code != 3 || !strings.Contains(stderr, "does not show the certificate of the config") {
		t.Errorf("another's certificate: %d %s", code, stderr)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(path), "key.pem")); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := sluice("validate", "--offline", "--config", path); code != 0 || !strings.Contains(out, "sluice.gateway.tls: read the key: ") {
		t.Errorf("validate without the key: %d %s", code, out)
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"sync.example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestUsage(t *testing.T) {
	if code, out, _ := sluice("--help"); code != 0 || !strings.Contains(out, "dev") || !strings.Contains(out, "compact") {
		t.Errorf("%d %s", code, out)
	}
	if code, _, stderr := sluice("frobnicate"); code != 2 || !strings.Contains(stderr, "frobnicate") {
		t.Errorf("%d %s", code, stderr)
	}
	for command, want := range map[string]int{"dev": 1, "start": 150} {
		if code, _, stderr := sluice(command, "--config", "gone.yaml"); code != want || !strings.Contains(stderr, "gone.yaml") {
			t.Errorf("%s: %d %s", command, code, stderr)
		}
	}
	for runner, want := range map[string]string{"api": "run sync-gateway", "sync": "run bucket-store, replicator"} {
		if code, _, stderr := sluice("start", "-r", runner); code != 150 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d %s", runner, code, stderr)
		}
	}
	if code, _, stderr := sluice("start", "-r", "all"); code != 2 || !strings.Contains(stderr, "unified") {
		t.Errorf("%d %s", code, stderr)
	}
	if code, _, stderr := sluice("teardown"); code != 1 || !strings.Contains(stderr, "[PSYNC_S0102]") {
		t.Errorf("%d %s", code, stderr)
	}
}
