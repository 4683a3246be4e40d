package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var secret = []byte("a development secret of some length")

const testConfig = `
bucket_definitions:
  mine:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT * FROM lists WHERE owner = bucket.user_id
  all:
    data:
      - SELECT * FROM news
`

func mint(user string, claims jwt.MapClaims) string {
	c := jwt.MapClaims{"sub": user, "aud": "sluice", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		c[k] = v
	}
	t := jwt.NewWithClaims(jwt.SigningMethodHS256, c)
	t.Header["kid"] = "dev"
	s, err := t.SignedString(secret)
	if err != nil {
		panic(err)
	}
	return s
}

func testAuth() config.Auth {
	return config.Auth{Audience: []string{"sluice"}, Keys: []config.Key{{Kty: "oct", Kid: "dev", Alg: "HS256", K: base64.RawURLEncoding.EncodeToString(secret)}}}
}

// newHouse starts a gateway on a fake store with one active stream.
func newHouse(t testing.TB, change func(*Config)) *house {
	t.Helper()
	h := buildHouse(t, change, true)
	wait(t, func() bool { return h.env.Health.Snapshot().Ready })
	return h
}

// buildHouse does not wait until the gateway is ready. Without a checkpoint it
// does not become so.
func buildHouse(t testing.TB, change func(*Config), checkpoint bool) *house {
	t.Helper()
	return buildLoudHouse(t, change, checkpoint, logWriter{t})
}

// buildLoudHouse logs to w.
func buildLoudHouse(t testing.TB, change func(*Config), checkpoint bool, w io.Writer) *house {
	t.Helper()
	nc := startNATS(t)
	env := service.Env{Log: slog.New(slog.NewTextHandler(w, nil)), Metrics: prometheus.NewRegistry(), Health: new(service.Health), Instance: t.Name()}
	h := &house{store: newFakeStore(nc), env: env, done: make(chan error, 1)}
	h.store.activate(1, testConfig)
	if checkpoint {
		h.store.commit(nil)
	}
	conn := serveStore(t, h.store, env)
	lis := listen(t)
	h.url = "http://" + lis.Addr().String()
	cfg := Config{Auth: testAuth(), API: config.API{Tokens: []string{"admin"}}, Drain: 2 * time.Second}
	if change != nil {
		change(&cfg)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go func() {
		h.done <- Run(ctx, cfg, Conns{Store: conn, Source: conn, Compactor: conn, NATS: nc, Listener: lis}, env)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-h.done; err != nil {
			t.Errorf("run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return h
}

// gauge is the value of a metric with this label value, or with no label if that
// is ""; -1 if there is none.
func (h *house) gauge(t testing.TB, name, label string) float64 {
	t.Helper()
	families, err := h.env.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			found := label == "" && len(m.GetLabel()) == 0
			for _, l := range m.GetLabel() {
				found = found || l.GetValue() == label
			}
			if found {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// TestReadiness: that the store answers is not enough to be ready; that data is
// old is not enough to be unready. How old it is shows in the metrics.
func TestReadiness(t *testing.T) {
	h := buildHouse(t, nil, false)
	wait(t, func() bool { return h.gauge(t, "sluice_link_heard_timestamp_seconds", "bucket-store") > 0 })
	if h.env.Health.Snapshot().Ready {
		t.Fatal("ready before a session could be served")
	}
	beat := time.Now().Add(-time.Hour).Truncate(time.Second)
	h.store.beat(beat)
	wait(t, func() bool { return h.env.Health.Snapshot().Ready })
	for _, stage := range []string{"noticed", "delivered"} {
		wait(t, func() bool { return h.gauge(t, "sluice_heartbeat_timestamp_seconds", stage) == float64(beat.Unix()) })
	}
	if n := h.gauge(t, "powersync_concurrent_connections", ""); n != 0 {
		t.Errorf("%v connections", n)
	}
	h.stop()
	wait(t, func() bool { return !h.env.Health.Snapshot().Ready })
}

// slowLog takes its time for a line that is like this one.
type slowLog string

func (l slowLog) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(l)) {
		time.Sleep(200 * time.Millisecond)
	}
	return len(p), nil
}

// TestReadyServes: a gateway that says that it is ready opens streams, from that
// moment on.
func TestReadyServes(t *testing.T) {
	h := buildLoudHouse(t, nil, true, slowLog("serving sync config"))
	wait(t, func() bool { return h.env.Health.Snapshot().Ready })
	h.open(t, "u1", `{}`, nil) // fails unless the answer is a stream
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	if testing.Verbose() {
		fmt.Print(string(p))
	}
	return len(p), nil
}

// wait polls for a state that another goroutine brings about.
func wait(t testing.TB, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatal("timeout")
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// client reads the lines of one stream.
type client struct {
	t   testing.TB
	res *http.Response
	r   *bufio.Reader
}

func (h *house) open(t testing.TB, user, body string, header http.Header) *client {
	t.Helper()
	res := h.post(t, user, body, header)
	if res.StatusCode != 200 {
		b, _ := io.ReadAll(res.Body)
		t.Fatalf("status %d: %s", res.StatusCode, b)
	}
	c := &client{t, res, bufio.NewReader(res.Body)}
	t.Cleanup(c.close)
	return c
}

func (h *house) post(t testing.TB, user, body string, header http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequest("POST", h.url+"/sync/stream", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+mint(user, nil))
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := h.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func (c *client) close() { _ = c.res.Body.Close() }

// line reads the next line.
func (c *client) line() string {
	c.t.Helper()
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// news reads the next line that is no keepalive.
func (c *client) news() string {
	c.t.Helper()
	for {
		if l := c.line(); !strings.HasPrefix(l, `{"token_expires_in"`) {
			return l
		}
	}
}

func (c *client) want(lines ...string) {
	c.t.Helper()
	for _, w := range lines {
		if got := c.line(); got != w {
			c.t.Fatalf("got  %s\nwant %s", got, w)
		}
	}
}

const reasons = `"subscriptions":[{"default":%d}]}`

func bucketJSON(id string, sum model.Checksum, count, def int) string {
	b, _ := json.Marshal(id)
	return fmt.Sprintf(`{"bucket":%s,"checksum":%d,"count":%d,"priority":3,`+reasons, b, sum, count, def)
}

// TestStream: first sync, live change, nothing of others (INV-31), write checkpoint.
func TestStream(t *testing.T) {
	h := newHouse(t, nil)
	mine, all := `1#mine["u1"]`, `1#all[]`
	h.store.commit(func(tx *tx) { tx.put(mine, "lists", "l1", `{"id":"l1","owner":"u1"}`) })
	c := h.open(t, "u1", `{"raw_data":true,"client_id":"c1"}`, nil)
	sum, _ := model.PutChecksum("lists", "l1", `{"id":"l1","owner":"u1"}`, nil)
	key := rowKey("l1").Subkey()
	c.want(
		`{"checkpoint":{"last_op_id":"1","buckets":[`+bucketJSON(all, 0, 0, 1)+`,`+bucketJSON(mine, sum, 1, 0)+`],"streams":[{"name":"mine","is_default":true,"errors":[]},{"name":"all","is_default":true,"errors":[]}]}}`,
		`{"data":{"bucket":"1#mine[\"u1\"]","after":"0","has_more":false,"data":[{"op_id":"1","op":"PUT","object_type":"lists","object_id":"l1","checksum":`+fmt.Sprint(uint32(sum))+`,"subkey":"`+key+`","data":"{\"id\":\"l1\",\"owner\":\"u1\"}"}],"next_after":"1"}}`,
		`{"checkpoint_complete":{"last_op_id":"1"}}`,
	)
	// A change of somebody else's bucket says nothing; one of ours does.
	h.store.commit(func(tx *tx) { tx.put(`1#mine["u2"]`, "lists", "x", `{}`) })
	h.store.commit(func(tx *tx) { tx.put(all, "news", "n1", `{"id":"n1"}`) })
	news, _ := model.PutChecksum("news", "n1", `{"id":"n1"}`, nil)
	c.want(
		`{"checkpoint_diff":{"last_op_id":"3","removed_buckets":[],"updated_buckets":[`+bucketJSON(all, news, 1, 1)+`]}}`,
		`{"data":{"bucket":"1#all[]","after":"0","has_more":false,"data":[{"op_id":"3","op":"PUT","object_type":"news","object_id":"n1","checksum":`+fmt.Sprint(uint32(news))+`,"subkey":"`+rowKey("n1").Subkey()+`","data":"{\"id\":\"n1\"}"}],"next_after":"3"}}`,
		`{"checkpoint_complete":{"last_op_id":"3"}}`,
	)
	// INV-28: acknowledged although the source is idle.
	req, _ := http.NewRequest("GET", h.url+"/write-checkpoint2.json?client_id=c1", nil)
	req.Header.Set("Authorization", "Token "+mint("u1", nil))
	res, err := h.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if string(b) != `{"data":{"write_checkpoint":"1"}}` {
		t.Fatalf("%s", b)
	}
	c.want(
		`{"checkpoint_diff":{"last_op_id":"3","write_checkpoint":"1","removed_buckets":[],"updated_buckets":[]}}`,
		`{"checkpoint_complete":{"last_op_id":"3"}}`,
	)
}
