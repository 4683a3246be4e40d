package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

func environment(kv ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == name {
				return kv[i+1], true
			}
		}
		return "", false
	}
}

func parse(t *testing.T, text string, env ...string) *File {
	t.Helper()
	f, err := Parse([]byte(text), "test.yaml", "/etc/sluice", environment(env...))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestDefaults(t *testing.T) {
	f := parse(t, "replication:\n  connections:\n    - type: postgresql\n      uri: postgresql://u:p@db:5433/app\n")
	if f.Port != 8080 || f.API.MaxConnections != 50_000 || f.API.MaxBuckets != 1000 || f.API.MaxParameterResult != 1000 || f.API.MaxDataFetch != 10 ||
		f.API.BucketCountCacheTTL != time.Hour || f.API.CheckpointRequestRetention != time.Hour || f.Logging.Level != "info" ||
		f.Storage.Type != "embedded" || f.Sync != nil || f.Probes != nil || f.Telemetry.PrometheusPort != 0 {
		t.Errorf("defaults: %+v", f)
	}
	c := f.Connections[0]
	want := Postgres{
		Hostname: "db", Port: 5433, Username: "u", Password: "p", Database: "app", SSLMode: "verify-full", SlotNamePrefix: "powersync_",
		MaxPoolSize: 8, SnapshotSocketTimeout: 30 * time.Second,
	}
	if c.ID != "default" || c.Tag != "default" || c.DebugAPI {
		t.Errorf("connection: %+v", c)
	}
	got := *c.Postgres
	if !got.Reject.Empty() {
		t.Errorf("reject: %+v", got.Reject)
	}
	got.Reject = Ranges{}
	if got.Hostname != want.Hostname || got.Port != want.Port || got.Username != want.Username || got.Password != want.Password ||
		got.Database != want.Database || got.SSLMode != want.SSLMode || got.SlotNamePrefix != want.SlotNamePrefix || got.MaxPoolSize != want.MaxPoolSize ||
		got.SnapshotSocketTimeout != want.SnapshotSocketTimeout || got.HeartbeatInterval != want.HeartbeatInterval || got.ConnectTimeout != 0 {
		t.Errorf("postgres: %+v", got)
	}
	s := f.Sluice
	if s.NATSURL != "nats://127.0.0.1:4222" || s.BucketStore.Address != "127.0.0.1:7441" || s.BucketStore.Advertise != "" || s.Compactor != (Compactor{Service{Address: "127.0.0.1:7443"}, time.Hour, 10, time.Minute, 16, 10, 100}) || s.Data != "sluice-data" {
		t.Errorf("sluice: %+v", s)
	}
}

const full = `
replication:
  connections:
    - type: postgresql
      id: main
      tag: app
      uri: postgres://a:b@old:5433/one?connect_timeout=7
      hostname: new
      password: !env PS_PASSWORD
      sslmode: disable
      debug_api: true
      reject_ip_ranges: [10.0.0.0/8, local]
      heartbeat_interval_seconds: 5
storage: {type: embedded, path: store}
client_auth:
  audience: [one, two]
  jwks_uri: https://example.com/jwks
  jwks:
    keys:
      - {kty: oct, alg: HS256, kid: dev, k: c2VjcmV0}
api:
  tokens: [!env PS_TOKEN]
  parameters: {max_buckets_per_connection: 20000, max_concurrent_connections: 7}
port: !env PS_PORT
sync_config: {path: sync.yaml, exit_on_error: false}
metadata: {team: a}
telemetry: {prometheus_port: 9464, disable_telemetry_sharing: true}
healthcheck: {probes: {use_http: true}}
system: {logging: {level: debug, format: json}}
parameters: {a: 1, b: two, c: true, d: null, e: 1.5}
some_future_key: {x: [1, 2]}
sluice:
  nats: {url: nats://n:4222}
  compactor: {interval: 30m}
  gateway: {max_streams: 9}
  data: /var/lib/sluice
`

func TestFull(t *testing.T) {
	f := parse(t, full, "PS_PASSWORD", "p w", "PS_TOKEN", "tok", "PS_PORT", "9000", "SLUICE_BUCKET_STORE_ADDRESS", "store:1", "SLUICE_COMPACTOR_INTERVAL", "1h")
	c := f.Connections[0].Postgres
	if c.Hostname != "new" || c.Port != 5433 || c.Password != "p w" || c.Username != "a" || c.ConnectTimeout != 7*time.Second || c.HeartbeatInterval != 5*time.Second || c.SSLMode != "disable" {
		t.Errorf("single keys must win over the URI: %+v", c)
	}
	if !f.Connections[0].DebugAPI || f.Connections[0].Tag != "app" {
		t.Errorf("connection: %+v", f.Connections[0])
	}
	if !c.Reject.Rejects(netip.MustParseAddr("10.1.2.3")) || !c.Reject.Rejects(netip.MustParseAddr("::1")) || c.Reject.Rejects(netip.MustParseAddr("8.8.8.8")) {
		t.Errorf("reject: %+v", c.Reject)
	}
	if f.Port != 9000 || !slices.Equal(f.API.Tokens, []string{"tok"}) || f.API.MaxBuckets != 20000 || f.API.MaxConnections != 7 {
		t.Errorf("api: %d %+v", f.Port, f.API)
	}
	if f.Sync.Path != "/etc/sluice/sync.yaml" || f.Sync.ExitOnError {
		t.Errorf("sync config: %+v", f.Sync)
	}
	if f.Storage.Path != "/etc/sluice/store" || f.Metadata["team"] != "a" || f.Telemetry.PrometheusPort != 9464 || f.Probes == nil || !f.Probes.HTTP || f.Probes.Filesystem {
		t.Errorf("the rest: %+v", f)
	}
	if len(f.Auth.Keys) != 1 || f.Auth.Keys[0].K != "c2VjcmV0" || len(f.Auth.JWKSURIs) != 1 || len(f.Auth.Audience) != 2 {
		t.Errorf("auth: %+v", f.Auth)
	}
	if f.Logging != (Logging{Level: "debug", Format: "json"}) {
		t.Errorf("logging: %+v", f.Logging)
	}
	if f.Parameters["a"] != 1 || f.Parameters["b"] != "two" || f.Parameters["c"] != true || f.Parameters["e"] != 1.5 || len(f.Parameters) != 5 {
		t.Errorf("parameters: %#v", f.Parameters)
	}
	s := f.Sluice
	if s.NATSURL != "nats://n:4222" || s.BucketStore.Address != "store:1" || s.Compactor.Interval != time.Hour || s.Gateway.MaxStreams != 9 || s.Data != "/var/lib/sluice" {
		t.Errorf("sluice: %+v", s)
	}
	if len(f.Warnings) > 0 {
		t.Errorf("warnings: %v", f.Warnings)
	}
}

// Each line that must be reported says so: ### and a part of "column: key:
// [code] message".
const broken = `replication:
  connections:
    - type: postgresql ### 7: replication.connections[0]: [PSYNC_S1107] username is missing
      uri: mysql://u:p@h/d ### [PSYNC_S1109] the URI must begin with postgresql:
      hostname: h
      database: d
      password: x
      port: 80 ### [PSYNC_S1110] must be a port from 1024
      sslmode: verify-ca ### [PSYNC_S1104]
      heartbeat_interval_seconds: 61 ### from 5 to 60
      reject_ip_ranges: [nonsense] ### 26: replication.connections[0].reject_ip_ranges[0]: [PSYNC_S9001] must be local or a range
    - {type: oracle} ### 7: replication.connections[1]: [PSYNC_S9001] Only a single replication data source
storage: {type: mongodb, uri: "http://x", database: d, clear_batch_throttle_rate: 21} ### mongodb: or mongodb+srv:
client_auth:
  jwks_uri: [ftp://x/y, "::"] ### [PSYNC_S3103]
  jwks:
    keys:
      - {kty: oct, k: eA} ### needs alg
      - {kty: RSA, kid: a, n: b, e: c, alg: HS256} ### RS256, RS384, RS512
      - {kty: none} ### kty must be one of
  jwks_reject_ip_ranges: 5 ### must be a list, not a number
api:
  tokens: one ### 11: api.tokens: [PSYNC_S9001] must be a list, not text
  parameters: {max_buckets_per_connection: -1} ### at least 1
port: eighty ### must be a port
sync_config: {content: x}
sync_rules: {path: y} ### both given
metadata: [a] ### must be a map, not a list
telemetry: {prometheus_port: 70000} ### to 65535
system: {logging: {level: loud, format: xml}} ### must be one of silly
migrations: {disable_auto_migration: 3} ### must be true or false
healthcheck: !env PATH ### only variables that begin with PS_
parameters: {a: [1]} ### must be text
metadata: {} ### key metadata is given twice
sluice:
  compactor: {interval: soon} ### must be a duration
  bucket_store:
    address: "a:1, nowhere" ### must be host:port
    advertise: nowhere ### must be host:port
  gateway:
    max_streams: 0 ### at least 1
    path_prefix: sync/ ### 18: sluice.gateway.path_prefix: [PSYNC_S9001] must be a path like /sync-service
    limits: {user_streams: none} ### 28: sluice.gateway.limits.user_streams: [PSYNC_S9001] must be a number, not text
    tls:
      certificate: cert.pem ### 20: sluice.gateway.tls.certificate: [PSYNC_S9001] certificate and key must be given together
  tls:
    identities: sluice ### must be like spiffe://sluice/, with a slash at its end
    compactor: {key: key.pem} ### 22: sluice.tls.compactor.key: [PSYNC_S9001] certificate and key must be given together
    nats: {ca: "-----BEGIN"} ### 16: sluice.tls.nats.ca: [PSYNC_S9001] has no certificate in it
`

func TestProblems(t *testing.T) {
	_, err := Parse([]byte(broken), "test.yaml", "/", environment())
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	at := map[int][]string{}
	for _, p := range e.Problems {
		at[p.Line] = append(at[p.Line], strings.TrimPrefix(p.String(), strings.Split(p.String(), ":")[0]+":"))
	}
	for i, line := range strings.Split(broken, "\n") {
		_, want, expected := strings.Cut(line, "### ")
		got := strings.Join(at[i+1], "\n")
		if !expected {
			if got != "" {
				t.Errorf("line %d: unexpected: %s", i+1, got)
			}
			continue
		}
		if !strings.Contains(got, want) {
			t.Errorf("line %d: want %q, got %q", i+1, want, got)
		}
	}
	if code := errs.CodeOf(err); !regexp.MustCompile(`^PSYNC_`).MatchString(string(code)) {
		t.Errorf("code %q", code)
	}
	if !strings.Contains(err.Error(), "test.yaml:3:7: replication.connections[0]: [PSYNC_S1107]") {
		t.Errorf("the text lacks file, line and column:\n%v", err)
	}
}

func TestEnv(t *testing.T) {
	f := parse(t, "port: !env PS_P::number\nsystem: {logging: {level: !env PS_L::string}}\nmigrations: {disable_auto_migration: !env PS_B::boolean}\n",
		"PS_P", "81", "PS_L", "warn", "PS_B", "true", "PS_LOG_LEVEL", "error")
	if f.Port != 81 || !f.DisableAutoMigration || f.Logging.Level != "error" {
		t.Errorf("%+v", f)
	}
	for text, want := range map[string]string{
		"port: !env PS_GONE":           "1:7: [PSYNC_S9001] !env PS_GONE: the environment variable is not set",
		"port: !env HOME":              "only variables that begin with PS_",
		"port: !env PS_SECRET::number": "the value is not a number",
		"port: !env PS_SECRET::date":   "unknown type",
		"port: !env [PS_SECRET]":       "needs the name",
		"migrations: {disable_auto_migration: !env PS_SECRET::boolean}": "neither true nor false",
	} {
		_, err := Parse([]byte(text), "t", "/", environment("PS_SECRET", "hunter2"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := Parse([]byte("{}"), "t", "/", environment("PS_LOG_FORMAT", "xml")); err == nil || !strings.Contains(err.Error(), "PS_LOG_FORMAT") {
		t.Errorf("PS_LOG_FORMAT: %v", err)
	}
}

// D10: messages do not quote secrets.
func TestSecretsStay(t *testing.T) {
	_, err := Parse([]byte(`
replication:
  connections:
    - {type: postgresql, uri: "postgresql://u:hunter2@h:99999/d", password: !env PS_A::number}
storage: {type: mongodb, uri: "mongo://u:hunter2@h/d"}
api: {tokens: hunter2}
port: !env PS_A
`), "t", "/", environment("PS_A", "hunter2"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

func TestUnknownKeys(t *testing.T) {
	f := parse(t, "sluice:\n  bucket_stroe: {address: x:1}\n  nats: {ulr: x}\n  zzzzzzzzz: 1\nelsewhere: 1\n")
	var got []string
	for _, w := range f.Warnings {
		got = append(got, w.String())
	}
	want := []string{"2:17: sluice.bucket_stroe: unknown key; is it bucket_store?", "3:15: sluice.nats.ulr: unknown key; is it url?"}
	if len(got) != 3 || !slices.Equal(got[:2], want) || !strings.Contains(got[2], "there are nats, bucket_store") {
		t.Errorf("warnings: %q", got)
	}
}

// TestNumbers: in the file they are numbers.
func TestNumbers(t *testing.T) {
	f := parse(t, "sluice:\n  compactor: {defragment_mb_per_day: 7, mb_per_second: 0}\n", "SLUICE_COMPACTOR_MIN_CHANGES", "8")
	if c := f.Sluice.Compactor; c.DefragmentMB != 7 || c.MBPerSecond != 0 || c.MinChanges != 8 {
		t.Errorf("%+v", c)
	}
	for _, text := range []string{"-1", "x", "1.5"} {
		if _, err := Parse([]byte("sluice:\n  compactor: {defragment_mb_per_day: "+text+"}\n"), "test.yaml", "/etc/sluice", environment()); err == nil || !strings.Contains(err.Error(), "sluice.compactor.defragment_mb_per_day") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestPercent(t *testing.T) {
	for text, want := range map[string]int{"1": 1, "100": 100, "0": -1, "101": -1, "-5": -1, "half": -1} {
		f, err := Parse([]byte("sluice:\n  compactor: {busy_percent: "+text+"}\n"), "test.yaml", "/etc/sluice", environment())
		if want < 0 && (err == nil || !strings.Contains(err.Error(), "sluice.compactor.busy_percent")) || want > 0 && (err != nil || f.Sluice.Compactor.BusyPercent != want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAdminTokens(t *testing.T) {
	f := parse(t, `
sluice:
  api:
    tokens:
      - {name: ci, token: !env PS_CI, scopes: [read, deploy]}
      - {name: cron, token: the-cron-job-of-mine, scopes: [compact], scope: x}
`, "PS_CI", "0123456789abcdef")
	want := []AdminToken{{"ci", "0123456789abcdef", []Scope{ScopeRead, ScopeDeploy}}, {"cron", "the-cron-job-of-mine", []Scope{ScopeCompact}}}
	if !reflect.DeepEqual(f.Sluice.AdminTokens, want) {
		t.Errorf("%+v", f.Sluice.AdminTokens)
	}
	if len(f.Warnings) != 1 || f.Warnings[0].String() != "6:77: sluice.api.tokens[1].scope: unknown key; is it scopes?" {
		t.Errorf("%v", f.Warnings)
	}
	text := `
sluice:
  api:
    tokens:
      - {name: a b, token: short, scopes: [all]}
      - {name: a, token: 0123456789abcdef, scopes: []}
      - {name: a, token: 0123456789abcdef, scopes: read}
      - just text
`
	_, err := Parse([]byte(text), "c.yaml", "/", environment())
	for _, want := range []string{
		"5:9: sluice.api.tokens[0]: name must be given", "5:9: sluice.api.tokens[0]: token must have at least 16", "5:44: sluice.api.tokens[0].scopes[0]: must be one of read, deploy, compact",
		"6:9: sluice.api.tokens[1]: scopes must name", "7:9: sluice.api.tokens[2]: name is that of another", "7:9: sluice.api.tokens[2]: token is another", "sluice.api.tokens[2].scopes: must be a list",
		"8:9: sluice.api.tokens[3]: must be a map",
	} {
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "[PSYNC_S9001] ", ""), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "0123456789") {
		t.Errorf("a secret is told: %v", err)
	}
}

func TestSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	port := func(n int) string { return "port: " + strconv.Itoa(n) }
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	write("powersync.yaml", port(1))
	other := write("other.yml", port(2))
	js := write("c.json", `{"port": 3, "metadata": {"a": "\ud83d\ude00"}}`)
	bare := write("bare", "{\"port\":\t4}")
	load := func(o Options, env ...string) (*File, error) {
		o.Dir, o.Env = dir, environment(env...)
		return Load(o)
	}
	for name, c := range map[string]struct {
		o    Options
		env  []string
		port int
	}{
		"default":                {Options{}, nil, 1},
		"path":                   {Options{Path: other}, nil, 2},
		"relative path":          {Options{Path: "other.yml"}, nil, 2},
		"path by environment":    {Options{}, []string{"POWERSYNC_CONFIG_PATH", other}, 2},
		"option beats variable":  {Options{Path: js}, []string{"POWERSYNC_CONFIG_PATH", other, "POWERSYNC_CONFIG_B64", b64(port(9))}, 3},
		"base64 beats path":      {Options{Path: other, Base64: b64(port(5))}, nil, 5},
		"base64 by environment":  {Options{}, []string{"POWERSYNC_CONFIG_B64", b64(port(6)), "POWERSYNC_CONFIG_PATH", other}, 6},
		"base64 of JSON":         {Options{Base64: b64("{\"port\":\t7}")}, nil, 7},
		"JSON without extension": {Options{Path: bare}, nil, 4},
	} {
		f, err := load(c.o, c.env...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if f.Port != c.port {
			t.Errorf("%s: port %d, not %d", name, f.Port, c.port)
		}
	}
	f, err := load(Options{Path: js})
	if err != nil || f.Metadata["a"] != "😀" {
		t.Errorf("JSON text: %v %v", f, err)
	}
	f, err = load(Options{Path: other}, "POWERSYNC_SYNC_RULES_B64", b64("bucket_definitions: {}"))
	if err != nil || f.Sync == nil || f.Sync.Content != "bucket_definitions: {}" || f.Sync.Path != "" {
		t.Errorf("sync config by base64: %+v %v", f, err)
	}
	text, name, ok, err := f.SyncText()
	if text != "bucket_definitions: {}" || !strings.Contains(name, "other.yml") || !ok || err != nil {
		t.Errorf("sync text: %q %q %v %v", text, name, ok, err)
	}
	// A source that is given and broken is an error; the next is not tried.
	write("bad.json", "{\n \"port\": 1,,\n}")
	for want, o := range map[string]Options{
		"cannot be read":   {Path: "gone.yaml"},
		"not base64":       {Base64: "***"},
		"bad.json:2:12":    {Path: "bad.json"},
		"sync config is n": {SyncBase64: "***"},
	} {
		if _, err := load(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestLimits(t *testing.T) {
	l := parse(t, "sluice: {gateway: {limits: {user_streams: 5, address_requests: 600, trusted_proxies: [10.1.2.3/8, 192.0.2.1, fd00::/8]}}}",
		"SLUICE_GATEWAY_LIMITS_USER_REQUESTS", "60").Sluice.Gateway.Limits
	proxies := fmt.Sprint(l.Proxies)
	if l.UserStreams != 5 || l.AddressStreams != 0 || l.UserRequests != 60 || l.AddressRequests != 600 || proxies != "[10.0.0.0/8 192.0.2.1/32 fd00::/8]" {
		t.Errorf("%+v %s", l, proxies)
	}
	if l := parse(t, "{}", "SLUICE_GATEWAY_LIMITS_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.1").Sluice.Gateway.Limits; fmt.Sprint(l.Proxies) != "[10.0.0.0/8 192.0.2.1/32]" || l.UserStreams != 0 {
		t.Errorf("%+v", l)
	}
	if _, err := Parse([]byte("sluice: {gateway: {limits: {trusted_proxies: [everyone]}}}"), "t", "/", environment()); err == nil || !strings.Contains(err.Error(), "must be ranges like") {
		t.Error(err)
	}
}

// TestServicesTLS: what is between services is given for all, for one, or in part
// for one; the environment replaces each.
func TestServicesTLS(t *testing.T) {
	if s := parse(t, "sluice: {tls: {}}").Sluice.TLS; s.On() || s.Identities != DefaultIdentities || s.Of("nats") != (Mutual{}) {
		t.Errorf("without: %+v", s)
	}
	s := parse(t, `sluice:
  tls:
    ca: ca.pem
    certificate: /run/c.pem
    key: /run/k.pem
    identities: spiffe://prod.example/ns/sluice/sa/
    gateway: {certificate: g.pem, key: gk.pem}
    nats: {ca: other.pem}
`, "SLUICE_TLS_REPLICATOR_CERTIFICATE", "r.pem", "SLUICE_TLS_REPLICATOR_KEY", "rk.pem", "SLUICE_TLS_CA", "/run/ca.pem").Sluice.TLS
	files := func(certificate, key string) TLS { return TLS{PEM{Path: certificate}, PEM{Path: key}} }
	for name, want := range map[string]Mutual{
		"bucket-store":    {PEM{Path: "/run/ca.pem"}, files("/run/c.pem", "/run/k.pem")},
		"rules-evaluator": {PEM{Path: "/run/ca.pem"}, files("/run/c.pem", "/run/k.pem")},
		"sync-gateway":    {PEM{Path: "/run/ca.pem"}, files("/etc/sluice/g.pem", "/etc/sluice/gk.pem")},
		"replicator":      {PEM{Path: "/run/ca.pem"}, files("r.pem", "rk.pem")},
		"nats":            {PEM{Path: "/etc/sluice/other.pem"}, files("/run/c.pem", "/run/k.pem")},
	} {
		if got := s.Of(name); got != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if !s.On() || s.Identities != "spiffe://prod.example/ns/sluice/sa/" {
		t.Errorf("%+v", s)
	}
	// Whoever names one file means TLS: without the others nothing may start.
	for _, text := range []string{"tls: {ca: c}", "tls: {certificate: c, key: k}", "tls: {nats: {certificate: c, key: k}}"} {
		if !parse(t, "sluice: {"+text+"}").Sluice.TLS.On() {
			t.Errorf("%s is off", text)
		}
	}
	certificate, _ := pair(t)
	if s := parse(t, "{}", "SLUICE_TLS_CA", certificate).Sluice.TLS; s.CA.Text != certificate {
		t.Errorf("text: %+v", s)
	}
	if f := parse(t, "sluice: {tls: {getaway: {}, nats: {cert: x}}}"); len(f.Warnings) != 2 || !strings.Contains(f.Warnings[0].Message, "is it gateway?") {
		t.Errorf("warnings: %v", f.Warnings)
	}
}

// TestTLS: a certificate and its key are PEM text or a file, in the file or in
// the environment; what cannot be served is a problem with its place.
func TestTLS(t *testing.T) {
	certificate, key := pair(t)
	other, _ := pair(t)
	text := func(certificate, key string) string {
		b, err := json.Marshal(map[string]any{"sluice": map[string]any{"gateway": map[string]any{"path_prefix": "/sync", "tls": map[string]string{"certificate": certificate, "key": key}}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	f := parse(t, text("tls/cert.pem", "/run/key.pem"))
	want := TLS{PEM{Path: "/etc/sluice/tls/cert.pem"}, PEM{Path: "/run/key.pem"}}
	if got := f.Sluice.Gateway; got.TLS != want || !got.TLS.On() || got.PathPrefix != "/sync" || got.URL(1) != "https://127.0.0.1:1/sync" {
		t.Errorf("%+v at %s", got, got.URL(1))
	}
	f = parse(t, text(certificate, key))
	if got := f.Sluice.Gateway.TLS; got != (TLS{PEM{Text: certificate}, PEM{Text: key}}) {
		t.Errorf("text: %+v", got)
	}
	if c, k, err := f.Sluice.Gateway.TLS.Pair(); err != nil || string(c) != certificate || string(k) != key {
		t.Errorf("%q %q %v", c, k, err)
	}
	f = parse(t, "{}", "SLUICE_GATEWAY_TLS_CERTIFICATE", "cert.pem", "SLUICE_GATEWAY_TLS_KEY", key)
	if got := f.Sluice.Gateway.TLS; got != (TLS{PEM{Path: "cert.pem"}, PEM{Text: key}}) {
		t.Errorf("environment: %+v", got)
	}
	if _, _, err := f.Sluice.Gateway.TLS.Pair(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if f := parse(t, "{}"); f.Sluice.Gateway.TLS.On() || f.Sluice.Gateway.URL(1) != "http://127.0.0.1:1" {
		t.Errorf("without: %+v", f.Sluice.Gateway)
	}
	for name, c := range map[string]struct {
		text string
		env  []string
		want string
	}{
		"no key":       {text("cert.pem", ""), nil, "sluice.gateway.tls.certificate: [PSYNC_S9001] certificate and key must be given together"},
		"no cert":      {text("", "key.pem"), nil, "sluice.gateway.tls.key: [PSYNC_S9001] certificate and key must be given together"},
		"no key, env":  {"{}", []string{"SLUICE_GATEWAY_TLS_CERTIFICATE", "c"}, "SLUICE_GATEWAY_TLS_CERTIFICATE: [PSYNC_S9001] certificate and key must be given together"},
		"wrong key":    {text(other, key), nil, "private key does not match public key"},
		"not PEM":      {text("-----BEGIN nothing", key), nil, "failed to find any PEM data"},
		"not a map":    {`{"sluice":{"gateway":{"tls":true}}}`, nil, "sluice.gateway.tls: [PSYNC_S9001] must be a map"},
		"prefix, env":  {"{}", []string{"SLUICE_GATEWAY_PATH_PREFIX", "x"}, "SLUICE_GATEWAY_PATH_PREFIX: [PSYNC_S9001] must be a path"},
		"prefix query": {`{"sluice":{"gateway":{"path_prefix":"/a?b"}}}`, nil, "must be a path"},
	} {
		_, err := Parse([]byte(c.text), "t", "/", environment(c.env...))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// pair makes a certificate and its key.
func pair(t *testing.T) (certificate, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	c, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func TestNotAConfig(t *testing.T) {
	for _, text := range []string{"", "- a", "just text", "a: [", "a: &x [*x]\nb: *x", "\x00", "a: b: c"} {
		if f, err := Parse([]byte(text), "t", "/", environment()); err == nil && text != "a: &x [*x]\nb: *x" {
			t.Errorf("%q: %+v", text, f)
		}
	}
}

func TestSupabase(t *testing.T) {
	f := parse(t, `
replication: {connections: [{type: postgresql, uri: "postgresql://u:p@db.abcd.supabase.co/postgres"}]}
client_auth: {supabase: true}
`)
	if f.Auth.SupabaseJWKS != "https://abcd.supabase.co/auth/v1/.well-known/jwks.json" {
		t.Errorf("%+v", f.Auth)
	}
	for _, text := range []string{"client_auth: {supabase: true}", "client_auth: {supabase_jwt_secret: x}"} {
		if f := parse(t, text); len(f.Warnings) != 1 {
			t.Errorf("%s: warnings: %v", text, f.Warnings)
		}
	}
}

func TestOtherSources(t *testing.T) {
	f := parse(t, `
replication: {connections: [{type: mongodb, uri: "mongodb://u:p@a:1,b:2/app?maxPoolSize=3", post_images: read_only}]}
storage: {type: postgresql, hostname: s, username: u, password: p, database: d, batch_limits: {max_record_count: 5}}
`)
	if m := f.Connections[0].MongoDB; m.Database != "app" || m.PostImages != "read_only" {
		t.Errorf("%+v", m)
	}
	if f.Storage.Postgres.Hostname != "s" || f.Storage.Schema != "sluice" || f.Storage.BatchLimits.MaxRecordCount != 5 || f.Storage.BatchLimits.MaxEstimatedSize != 5_000_000 {
		t.Errorf("%+v", f.Storage)
	}
	for _, schema := range []string{"pg_mine", strings.Repeat("x", 64)} {
		text := "storage: {type: postgresql, hostname: s, username: u, password: p, database: d, schema: " + schema + "}"
		if _, err := Parse([]byte(text), "test.yaml", "/", environment()); err == nil || !strings.Contains(err.Error(), "storage.schema: [PSYNC_S3201]") {
			t.Errorf("schema %s: %v", schema, err)
		}
	}
	f = parse(t, `replication: {connections: [{type: mysql, uri: "mysql://u:p@h/d?connectTimeout=5", server_id: 9}]}`)
	if m := f.Connections[0].MySQL; m.Port != 3306 || m.ServerID != 9 || m.ConnectTimeout != 5*time.Millisecond || m.BinlogQueueBytes != 50<<20 {
		t.Errorf("%+v", m)
	}
	f = parse(t, `replication: {connections: [{type: mssql, hostname: h, database: d, authentication: {type: azure-active-directory-service-principal-secret, options: {clientId: a, clientSecret: b, tenantId: c}}}]}`)
	if m := f.Connections[0].MSSQL; m.Azure == nil || m.Schema != "dbo" || m.PollingInterval != time.Second {
		t.Errorf("%+v", m)
	}
	_, err := Parse([]byte(`replication: {connections: [{type: mssql, hostname: h, username: u, password: p, database: d, cacert: x, additionalConfig: {trustServerCertificate: true}}]}`), "t", "/", environment())
	if errs.CodeOf(err) != errs.S1604 {
		t.Errorf("%v", err)
	}
	f = parse(t, `replication: {connections: [{type: convex, deployment_url: "https://x.convex.cloud", deploy_key: k}]}`)
	if m := f.Connections[0].Convex; m.RequestTimeout != time.Minute {
		t.Errorf("%+v", m)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full)
	f.Add(broken)
	f.Add(`{"port": 3, "x": [1, {"y": null}]}`)
	f.Add("a: &a {<<: *a}\nport: *a")
	f.Add("sluice: {gateway: {path_prefix: /a, tls: {certificate: c, key: k}}, tls: {ca: a, identities: spiffe://a/, nats: {key: k}}}")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Parse([]byte(text), "t", "/", environment("PS_A", "x"))
		if (file == nil) == (err == nil) {
			t.Errorf("file %v, error %v", file, err)
		}
	})
}
