package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/model"
)

func (h *house) do(t testing.TB, method, path, token, contentType, body string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, h.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := h.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

// TestRefused: status and code of what is not served, in the order validate,
// authorize, handle; CORS on all of it.
func TestRefused(t *testing.T) {
	h := newHouse(t, nil)
	good := "Token " + mint("u1", nil)
	const js = "application/json"
	for _, x := range []struct {
		method, path, token, contentType, body string
		status                                 int
		code                                   string
	}{
		{"POST", "/sync/stream", "", js, `{"buckets":1}`, 400, "PSYNC_S2001"}, // before the token
		{"POST", "/sync/stream", "", js, `{}`, 401, "PSYNC_S2106"},
		{"POST", "/sync/stream", "Basic x", js, `{}`, 401, "PSYNC_S2106"},
		{"POST", "/sync/stream", "Token x", js, `{}`, 401, "PSYNC_S2101"},
		{"POST", "/sync/stream", "Token " + mint("u1", map[string]any{"aud": "x"}), js, `{}`, 401, "PSYNC_S2105"},
		{"POST", "/sync/stream", good, js, `{`, 400, "PSYNC_S2001"},
		{"POST", "/sync/stream", good, "text/plain", `{}`, 415, "PSYNC_S2004"},
		{"POST", "/sync/stream", good, js, `{"client_id":"` + strings.Repeat("x", 11<<20) + `"}`, 413, "PSYNC_S2001"},
		{"POST", "/sync/stream", "", js, `{"client_id":"` + strings.Repeat("x", 2<<20) + `"}`, 401, "PSYNC_S2106"}, // before the rest is read
		{"POST", "/sync/stream", good, js, `{"client_id":"` + strings.Repeat("x", 2<<20) + `","buckets":1}`, 400, "PSYNC_S2001"},
		{"GET", "/sync/stream", good, "", "", 404, "PSYNC_S2002"},
		{"GET", "/", "", "", "", 404, "PSYNC_S2002"},
		{"POST", "/sync/data", good, js, "{}", 404, "PSYNC_S2002"},
		{"GET", "/write-checkpoint2.json", "", "", "", 401, "PSYNC_S2106"},
		{"POST", "/write-checkpoint2.json", good, js, "{}", 404, "PSYNC_S2002"},
		{"POST", "/sync/checkpoint-request", "", js, `{}`, 400, "PSYNC_S2001"},
		{"POST", "/sync/checkpoint-request", "", js, `{"client_id":"c","checkpoint_request_id":1}`, 401, "PSYNC_S2106"},
		{"GET", "/write-checkpoint.json", "", "", "", 401, "PSYNC_S2106"},
		{"GET", "/probes/x", "", "", "", 404, "PSYNC_S2002"},
		{"POST", "/api/admin/v1/diagnostics", "", js, "{}", 401, "PSYNC_S2101"},
		{"POST", "/api/admin/v1/diagnostics", good, js, "{}", 401, "PSYNC_S2101"},
		{"POST", "/api/admin/v1/nothing", "Token admin", js, "{}", 404, "PSYNC_S2002"},
		{"GET", "/api/admin/v1/diagnostics", "Token admin", js, "", 404, "PSYNC_S2002"},
	} {
		status, header, body := h.do(t, x.method, x.path, x.token, x.contentType, x.body)
		var e struct {
			Error struct {
				Code, Description, Name string
				Status                  int
				TraceID                 string `json:"trace_id"`
			}
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil {
			t.Errorf("%s %s: %v in %s", x.method, x.path, err, body)
			continue
		}
		if status != x.status || e.Error.Code != x.code || e.Error.Status != x.status || e.Error.Description == "" || !strings.HasPrefix(e.Error.TraceID, "h/") {
			t.Errorf("%s %s: %d %s, want %d %s", x.method, x.path, status, body, x.status, x.code)
		}
		if header.Get("Access-Control-Allow-Origin") != "*" || header.Get("Access-Control-Expose-Headers") != "Content-Type" {
			t.Errorf("%s %s: no CORS in %v", x.method, x.path, header)
		}
	}
	// A handshake that fails is answered like everything else.
	req, err := http.NewRequest("GET", h.url+"/sync/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"8"}}
	res, err := h.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != 426 || res.Header.Get("Sec-Websocket-Version") != "13" || res.Header.Get("Access-Control-Allow-Origin") != "*" ||
		!strings.Contains(string(b), `"code":"PSYNC_S2001","status":426`) || !strings.Contains(string(b), `"trace_id":"s/`) {
		t.Errorf("handshake: %s %v %s %v", res.Status, res.Header, b, err)
	}
	for _, path := range []string{"/sync/stream", "/write-checkpoint2.json?client_id=1", "/sync/checkpoint-request", "/nothing"} {
		status, header, _ := h.do(t, "OPTIONS", path, "", "", "")
		if status != 204 || header.Get("Access-Control-Allow-Methods") != "GET,HEAD,POST" || header.Get("Access-Control-Max-Age") != "3600" ||
			header.Get("Access-Control-Allow-Headers") != "Content-Type, Authorization, User-Agent, X-User-Agent" {
			t.Errorf("OPTIONS %s: %d %v", path, status, header)
		}
	}
	if status, _, body := h.do(t, "GET", "/probes/readiness", "", "", ""); status != 200 || !strings.Contains(body, `"ready":true,"started":true,"touched_at":"2`) {
		t.Errorf("readiness: %d %s", status, body)
	}
	counts := h.counts(t, "sluice_gateway_refused_requests_total")
	if counts["unauthorized"] == 0 || counts["invalid"] <= counts["unauthorized"] || counts["limit"]+counts["unavailable"] != 0 {
		t.Errorf("counted: %v", counts)
	}
}

// counts returns the values of a metric, by those of its one label.
func (h *house) counts(t testing.TB, name string) map[string]float64 {
	t.Helper()
	families, err := h.env.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				counts[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return counts
}

// TestForms: what each Accept and Accept-Encoding gets, decoded by other
// implementations while the stream is open.
func TestForms(t *testing.T) {
	h := newHouse(t, nil)
	h.store.commit(func(tx *tx) {
		for i := range 50 {
			tx.put("1#all[]", "news", fmt.Sprint(i), fmt.Sprintf(`{"id":"n%d","text":"some text"}`, i))
		}
	})
	for _, accept := range []string{"*/*", "application/vnd.powersync.bson-stream;q=0.9,application/x-ndjson;q=0.8"} {
		for _, encoding := range []string{"", "gzip", "zstd"} {
			c := h.open(t, "u1", `{"raw_data":true}`, http.Header{"Accept": {accept}, "Accept-Encoding": {encoding}, "X-User-Agent": {"test"}})
			hd := c.res.Header
			want := "application/x-ndjson"
			if accept != "*/*" {
				want = "application/vnd.powersync.bson-stream"
			}
			if len(hd["Content-Type"]) != 1 || hd["Content-Type"][0] != want || hd.Get("Content-Encoding") != encoding || hd.Get("X-Accel-Buffering") != "no" || hd.Get("Access-Control-Allow-Origin") != "*" {
				t.Fatalf("%v", hd)
			}
			var r io.Reader = c.res.Body
			switch encoding {
			case "gzip":
				r = gunzip(t, r)
			case "zstd":
				z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
				if err != nil {
					t.Fatal(err)
				}
				defer z.Close()
				r = z
			}
			br := bufio.NewReader(r)
			next := func() string {
				if accept == "*/*" {
					l, err := br.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					return l
				}
				n, err := br.Peek(4)
				if err != nil {
					t.Fatal(err)
				}
				doc := make([]byte, int(n[0])|int(n[1])<<8|int(n[2])<<16)
				if _, err := io.ReadFull(br, doc); err != nil {
					t.Fatal(err)
				}
				return string(doc)
			}
			for _, key := range []string{"checkpoint", "data", "checkpoint_complete"} {
				if l := next(); !strings.Contains(l, key) || key == "data" && strings.Count(l, "object_type") != 50 {
					t.Fatalf("%s: %q", key, l)
				}
			}
		}
	}
	// A clean end: the gzip trailer is right.
	c := h.open(t, "u1", `{"raw_data":true}`, http.Header{"Accept-Encoding": {"gzip"}})
	z := gunzip(t, c.res.Body)
	go h.store.activate(2, testConfig)
	all, err := io.ReadAll(z)
	if err != nil || !bytes.Contains(all, []byte("checkpoint_complete")) {
		t.Fatalf("%v after %d bytes", err, len(all))
	}
}

func gunzip(t testing.TB, r io.Reader) io.Reader {
	t.Helper()
	z, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestConfigChange: streams of the replaced config end cleanly, new ones get
// buckets of the new one.
func TestConfigChange(t *testing.T) {
	h := newHouse(t, nil)
	c := h.open(t, "u1", `{"raw_data":true}`, nil)
	c.line()
	c.line()
	h.store.activate(2, "bucket_definitions:\n  other:\n    data:\n      - SELECT * FROM news\n")
	if l, err := c.r.ReadString('\n'); err != io.EOF || l != "" {
		t.Fatalf("%q %v", l, err)
	}
	c = h.open(t, "u1", `{"raw_data":true}`, nil)
	if l := c.line(); !strings.Contains(l, `"bucket":"2#other[]"`) || strings.Contains(l, "1#") {
		t.Fatal(l)
	}
}

// TestServedConfig: streams end cleanly when another config is served from the
// same data, and new ones get that one's buckets of that data. One that needs
// what is not there is not served, and the one before stays.
func TestServedConfig(t *testing.T) {
	h := newHouse(t, nil)
	const one = "bucket_definitions:\n  first:\n    parameters: SELECT id FROM gone WHERE u = request.user_id()\n    data:\n      - SELECT * FROM x WHERE id = bucket.id\n"
	const two = "  kept:\n    parameters: SELECT id FROM lists WHERE u = request.user_id()\n    data:\n      - SELECT * FROM todos WHERE id = bucket.id\n"
	h.store.activate(2, one+two)
	h.store.commit(func(tx *tx) { tx.put(`2#kept["l1"]`, "todos", "t", "{}") })
	h.store.mu.Lock()
	h.store.lookups[`1["u1"]`] = []entry{{1, `[{"id":"l1"}]`}} // the second index of the stream's own config
	h.store.mu.Unlock()
	var c *client
	wait(t, func() bool { // for the gateway to hear of the stream
		c = h.open(t, "u1", `{"raw_data":true}`, nil)
		l := c.line()
		return strings.Contains(l, `"bucket":"2#kept[\"l1\"]"`) && strings.Contains(l, `"name":"first"`)
	})
	h.store.serve("bucket_definitions:\n" + two)
	for {
		if l, err := c.r.ReadString('\n'); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%q %v", l, err)
		}
	}
	served := func() {
		t.Helper()
		c := h.open(t, "u1", `{"raw_data":true,"buckets":[{"name":"2#kept[\"l1\"]","after":"1"}]}`, nil)
		if l := c.line(); !strings.Contains(l, `"bucket":"2#kept[\"l1\"]"`) || strings.Contains(l, "first") {
			t.Fatal(l)
		}
		if l := c.line(); !strings.Contains(l, "checkpoint_complete") {
			t.Fatalf("the client has it, and gets %s", l)
		}
	}
	served()
	const other = "  other:\n    data:\n      - SELECT * FROM news\n"
	h.store.serve("bucket_definitions:\n" + other)
	served()

	// What was added is served from the checkpoint on by which it was copied, and the
	// rest stays what it was.
	h.store.add("bucket_definitions:\n" + two + other)
	h.store.commit(func(tx *tx) { tx.put("2.1#other[]", "news", "n", "{}") })
	wait(t, func() bool {
		l := h.open(t, "u1", `{"raw_data":true,"buckets":[{"name":"2#kept[\"l1\"]","after":"1"}]}`, nil).line()
		if !strings.Contains(l, `"bucket":"2#kept[\"l1\"]"`) || strings.Contains(l, "other") && !strings.Contains(l, `{"bucket":"2.1#other[]","checksum":`) {
			t.Fatal(l)
		}
		return strings.Contains(l, "other") && strings.Count(l, `"count":1`) == 2
	})
}

// admin asks the admin API and returns its answer.
func (h *house) admin(t testing.TB, path, body string) string {
	t.Helper()
	req, err := http.NewRequest("POST", h.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Token admin")
	res, err := h.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSessions: who is connected is told by the admin API.
func TestSessions(t *testing.T) {
	h := newHouse(t, nil)
	c := h.open(t, "u1", `{"raw_data":true,"client_id":"c1"}`, http.Header{"X-User-Agent": {"powersync-test/1"}})
	c.line()
	c.line()
	var got string
	wait(t, func() bool {
		got = h.admin(t, "/api/admin/v1/sluice/sessions", "{}")
		return strings.Contains(got, `"behind":{"checkpoints":0,"ops":0,"ms":0}`)
	})
	if !strings.HasPrefix(got, `{"data":{"gateway":"TestSessions","total":1,"sessions":[{"user":"u1","client_id":"c1","agent":"powersync-test/1","transport":"http","since":"`) ||
		!strings.Contains(got, `"buckets":2,"checkpoint":"0",`) {
		t.Error(got)
	}
}

// TestTornDown: when no config is active any more, streams end cleanly and new
// ones are told so.
func TestTornDown(t *testing.T) {
	h := newHouse(t, nil)
	c := h.open(t, "u1", `{"raw_data":true}`, nil)
	c.line()
	c.line()
	h.store.deactivate()
	if l, err := c.r.ReadString('\n'); err != io.EOF || l != "" {
		t.Fatalf("%q %v", l, err)
	}
	res := h.post(t, "u1", `{}`, nil)
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), "PSYNC_S2302") {
		t.Fatalf("%s %v", b, err)
	}
	h.store.activate(2, testConfig)
	wait(t, func() bool {
		res := h.post(t, "u1", `{}`, nil)
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// TestDrain: streams end at a line's end, and nothing is left.
func TestDrain(t *testing.T) {
	h := newHouse(t, nil)
	var cs []*client
	for range 20 {
		c := h.open(t, "u1", `{"raw_data":true}`, nil)
		c.line()
		c.line()
		cs = append(cs, c)
	}
	start := time.Now()
	h.stop()
	for _, c := range cs {
		if l, err := c.r.ReadString('\n'); err != io.EOF || l != "" {
			t.Fatalf("%q %v", l, err)
		}
	}
	err := <-h.done
	h.done <- nil
	if err != nil || time.Since(start) > 3*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	if h.env.Health.Snapshot().Ready {
		t.Error("still ready")
	}
}

// TestCheckpointRequests: INV-27, INV-28 over HTTP, and the rules for numbers.
func TestCheckpointRequests(t *testing.T) {
	h := newHouse(t, nil)
	c := h.open(t, "u1", `{"raw_data":true,"client_id":"c1"}`, nil)
	c.line()
	c.want(`{"checkpoint_complete":{"last_op_id":"0"}}`)
	token := "Bearer " + mint("u1", nil)
	request := func(id, want string) {
		t.Helper()
		status, _, body := h.do(t, "POST", "/sync/checkpoint-request", token, "application/json", `{"client_id":"c1","checkpoint_request_id":`+id+`}`)
		if status != 200 || body != `{"data":{"checkpoint_request_id":"`+want+`"}}` {
			t.Errorf("%d %s, want %s", status, body, want)
		}
	}
	request(`"5"`, "5")
	c.want(`{"checkpoint_diff":{"last_op_id":"0","write_checkpoint":"5","removed_buckets":[],"updated_buckets":[]}}`, `{"checkpoint_complete":{"last_op_id":"0"}}`)
	request(`3`, "5")
	request(`5`, "5")
	request(`"9223372036854775807"`, "9223372036854775807")
	c.want(`{"checkpoint_diff":{"last_op_id":"0","write_checkpoint":"9223372036854775807","removed_buckets":[],"updated_buckets":[]}}`, `{"checkpoint_complete":{"last_op_id":"0"}}`)
	// The first checkpoint of a later stream has it too.
	c2 := h.open(t, "u1", `{"raw_data":true,"client_id":"c1"}`, nil)
	if l := c2.line(); !strings.Contains(l, `"write_checkpoint":"9223372036854775807"`) {
		t.Error(l)
	}
	// It is the client's, not the user's.
	c3 := h.open(t, "u1", `{"raw_data":true,"client_id":"c2"}`, nil)
	if l := c3.line(); strings.Contains(l, "write_checkpoint") {
		t.Error(l)
	}
	if status, _, body := h.do(t, "GET", "/write-checkpoint.json", token, "", ""); status != 200 || body != `{"data":{"checkpoint":"0"}}` {
		t.Errorf("%d %s", status, body)
	}
}

// TestCustomCheckpoints: a config with events for write checkpoints has them from
// the store alone, with the data of their transaction, and wakes who waits for
// nothing else (D1, INV-26).
func TestCustomCheckpoints(t *testing.T) {
	h := newHouse(t, nil)
	h.store.activate(2, testConfig+"event_definitions:\n  write_checkpoints:\n    payloads:\n      - SELECT * FROM acks\n")
	token := "Bearer " + mint("u1", nil)
	wait(t, func() bool {
		c := h.open(t, "u1", `{}`, nil)
		defer c.close()
		return strings.Contains(c.line(), `"2#all[]"`)
	})
	calls := func() string {
		h.store.mu.Lock()
		defer h.store.mu.Unlock()
		return fmt.Sprint(h.store.calls["Create"], h.store.calls["Position"], h.store.marks)
	}
	before := calls()
	for _, r := range [][3]string{
		{"GET", "/write-checkpoint2.json?client_id=c1"}, {"GET", "/write-checkpoint.json"},
		{"POST", "/sync/checkpoint-request", `{"client_id":"c1","checkpoint_request_id":"5"}`},
	} {
		if status, _, body := h.do(t, r[0], r[1], token, "application/json", r[2]); status != 400 || !strings.Contains(body, "PSYNC_S2001") {
			t.Errorf("%s: %d %s", r[1], status, body)
		}
	}
	if after := calls(); after != before {
		t.Errorf("writes, positions and marks went from %s to %s", before, after)
	}

	c := h.open(t, "u1", `{"raw_data":true,"client_id":"c1"}`, nil)
	c.line()
	c.want(`{"checkpoint_complete":{"last_op_id":"0"}}`)
	give := func(id uint64, change func(*tx)) {
		h.store.mu.Lock()
		h.store.writes["u1/c1"] = model.WriteCheckpoint{UserKey: "u1/c1", ID: id, Head: lsn(h.store.position + 1)}
		h.store.mu.Unlock()
		h.store.commit(change)
	}
	const all = "2#all[]"
	give(7, func(tx *tx) { tx.put(all, "news", "n1", `{"id":"n1"}`) })
	news, _ := model.PutChecksum("news", "n1", `{"id":"n1"}`, nil)
	c.want(
		`{"checkpoint_diff":{"last_op_id":"1","write_checkpoint":"7","removed_buckets":[],"updated_buckets":[`+bucketJSON(all, news, 1, 1)+`]}}`,
		`{"data":{"bucket":"2#all[]","after":"0","has_more":false,"data":[{"op_id":"1","op":"PUT","object_type":"news","object_id":"n1","checksum":`+fmt.Sprint(uint32(news))+`,"subkey":"`+rowKey("n1").Subkey()+`","data":"{\"id\":\"n1\"}"}],"next_after":"1"}}`,
		`{"checkpoint_complete":{"last_op_id":"1"}}`,
	)
	give(8, nil)
	c.want(`{"checkpoint_diff":{"last_op_id":"1","write_checkpoint":"8","removed_buckets":[],"updated_buckets":[]}}`, `{"checkpoint_complete":{"last_op_id":"1"}}`)
	h.store.commit(func(tx *tx) {
		tx.op(all, model.Op{Kind: model.OpRemove, Key: rowKey("n1"), ObjectType: "news", ObjectID: "n1"})
	})
	if l := c.line(); !strings.Contains(l, `"write_checkpoint":"8"`) {
		t.Errorf("INV-26: %s", l)
	}
}

// TestOpenWhileReplaced: a stream that is opening when another sync config
// becomes active is served with that one, and not refused.
func TestOpenWhileReplaced(t *testing.T) {
	h := newHouse(t, nil)
	opening, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.store.mu.Lock()
	h.store.held = func(stream int64) {
		if stream == 1 {
			once.Do(func() { close(opening) })
			<-release
		}
	}
	h.store.mu.Unlock()
	first := make(chan string, 1)
	go func() {
		defer close(first) // also if it is refused
		c := h.open(t, "u1", `{}`, nil)
		defer c.close()
		first <- c.line()
	}()
	<-opening
	h.store.activate(2, testConfig)
	wait(t, func() bool {
		c := h.open(t, "u2", `{}`, nil)
		defer c.close()
		return strings.Contains(c.line(), `"2#all[]"`)
	})
	close(release)
	if l := <-first; !strings.Contains(l, `"2#all[]"`) {
		t.Errorf("first line: %s", l)
	}
}

// TestBatchedCheckpoints: concurrent requests share reads and writes.
func TestBatchedCheckpoints(t *testing.T) {
	h := newHouse(t, nil)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			token := "Bearer " + mint(fmt.Sprint("u", i), nil)
			for range 5 {
				if status, _, body := h.do(t, "GET", "/write-checkpoint2.json?client_id=c", token, "", ""); status != 200 {
					t.Errorf("%d %s", status, body)
				}
			}
		})
	}
	wg.Wait()
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	if n := h.store.calls["Create"]; n >= 300 || n != h.store.calls["Position"] {
		t.Errorf("%d writes, %d positions for 300 requests", n, h.store.calls["Position"])
	}
	for i := range 60 {
		if w := h.store.writes[fmt.Sprintf("u%d/c", i)]; w.ID != 5 {
			t.Errorf("u%d has %d", i, w.ID)
		}
	}
}

// TestNoConfig: S2302 until there is one.
func TestNoConfig(t *testing.T) {
	nc := startNATS(t)
	h := newHouse(t, nil)
	h.store.mu.Lock()
	h.store.streams[0].State = model.Active
	h.store.mu.Unlock()
	_ = nc
	empty := newFakeStore(nc)
	empty.streams = []model.Stream{{ID: 1, State: model.Processing, Config: testConfig}}
	conn := serveStore(t, empty, h.env)
	lis := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	env := h.env
	env.Metrics = nil
	go func() {
		done <- Run(ctx, Config{Auth: testAuth()}, Conns{Store: conn, Source: conn, Compactor: conn, NATS: nc, Listener: lis}, env)
	}()
	other := &house{url: "http://" + lis.Addr().String()}
	wait(t, func() bool {
		status, _, body := other.do(t, "POST", "/sync/stream", "Token "+mint("u1", nil), "application/json", "{}")
		return status == 500 && strings.Contains(body, "PSYNC_S2302")
	})
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLimit: streams beyond the limit are refused with 429 and an empty body,
// and places are given back.
func TestLimit(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.MaxStreams = 2 })
	a := h.open(t, "u1", `{}`, nil)
	h.open(t, "u1", `{}`, nil)
	res := h.post(t, "u1", `{}`, nil)
	b, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != 429 || len(b) != 0 {
		t.Fatalf("%d %s", res.StatusCode, b)
	}
	a.close()
	wait(t, func() bool {
		res := h.post(t, "u1", `{}`, nil)
		_ = res.Body.Close()
		return res.StatusCode == 200
	})
}

// TestBucketLimit: the error names definitions and counts, to the client too.
func TestBucketLimit(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.API.MaxBuckets = 1 })
	res := h.post(t, "u1", `{}`, nil)
	b, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if !strings.Contains(string(b), "PSYNC_S2305") || !strings.Contains(string(b), "mine 1") || !strings.Contains(string(b), "all 1") {
		t.Fatalf("%d %s", res.StatusCode, b)
	}
}

// TestSubscriptionErrors: INV-35. What is wrong with one subscription is told with
// its stream, and the other subscriptions are served; INV-31: nothing is served of
// the bad one.
func TestSubscriptionErrors(t *testing.T) {
	h := newHouse(t, nil)
	h.store.activate(2, `
config: {edition: 3}
streams:
  ids: {query: "SELECT * FROM news WHERE id IN subscription.parameter('ids')"}
  mine: {auto_subscribe: true, query: "SELECT * FROM lists WHERE owner = auth.user_id()"}
`)
	const subscription = `{"stream":"ids","parameters":{"ids":%s},"override_priority":%s}`
	body := `{"raw_data":true,"streams":{"subscriptions":[` +
		fmt.Sprintf(subscription, `["a"]`, "null") + "," + fmt.Sprintf(subscription, `"not an array"`, "null") + "," + fmt.Sprintf(subscription, `["b"]`, "9") + `]}}`
	var first string
	wait(t, func() bool {
		c := h.open(t, "u1", body, nil)
		defer c.close()
		first = c.line()
		return strings.Contains(first, `"2#`)
	})
	var l struct {
		Checkpoint struct {
			Buckets []struct{ Bucket string }
			Streams []struct {
				Name   string
				Errors []struct{ Subscription any }
			}
		}
	}
	if err := json.Unmarshal([]byte(first), &l); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range l.Checkpoint.Buckets {
		names = append(names, b.Bucket)
	}
	if got := fmt.Sprint(names); got != `[2#ids|0["a"] 2#mine|0["u1"]]` {
		t.Errorf("buckets %s", got)
	}
	var failed []any
	for _, s := range l.Checkpoint.Streams {
		for _, e := range s.Errors {
			failed = append(failed, s.Name, e.Subscription)
		}
	}
	if got := fmt.Sprint(failed); got != "[ids 1 ids 2]" {
		t.Errorf("errors of %s: %s", got, first)
	}
}

// TestPrefix serves under a path prefix.
func TestPrefix(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.PathPrefix = "/pre" })
	if status, _, _ := h.do(t, "GET", "/pre/probes/liveness", "", "", ""); status != 200 {
		t.Errorf("with: %d", status)
	}
	if status, _, _ := h.do(t, "GET", "/probes/liveness", "", "", ""); status != 404 {
		t.Errorf("without: %d", status)
	}
}

// TestHTTP2: the same stream over h2c.
func TestHTTP2(t *testing.T) {
	h := newHouse(t, nil)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequest("POST", h.url+"/sync/stream", strings.NewReader(`{"raw_data":true}`))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Token "+mint("u1", nil))
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 || res.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%v", res)
	}
	c := &client{t, res, bufio.NewReader(res.Body)}
	c.line()
	c.want(`{"checkpoint_complete":{"last_op_id":"0"}}`)
	h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "1", "{}") })
	c.line()
	c.line()
	c.want(`{"checkpoint_complete":{"last_op_id":"1"}}`)
	h.stop()
	if _, err := c.r.ReadString('\n'); err != io.EOF {
		t.Fatal(err)
	}
}

// TestHTTP2Unread: D8 over HTTP/2, where other streams of the connection go on.
// An idle stream is none that does not read.
func TestHTTP2Unread(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.WriteTimeout = 200 * time.Millisecond })
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	defer tr.CloseIdleConnections()
	h.http = &http.Client{Transport: tr}
	idle := h.open(t, "u1", `{"raw_data":true}`, nil)
	idle.line()
	idle.line()
	h.store.commit(func(tx *tx) {
		for i := range 6000 { // more than the client's window
			tx.put(`1#mine["u2"]`, "news", fmt.Sprint(i), `{"id":"n","text":"`+strings.Repeat("x", 2000)+`"}`)
		}
	})
	unread := h.open(t, "u2", `{"raw_data":true}`, http.Header{"Accept-Encoding": {"identity"}})
	wait(t, func() bool { return h.slow(t) == 1 })
	if _, err := io.Copy(io.Discard, unread.res.Body); err == nil {
		t.Error("a clean end for who did not read")
	}
	h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "1", "{}") })
	if l := idle.news(); !strings.HasPrefix(l, `{"checkpoint_diff"`) {
		t.Error(l)
	}
}

// slow is the count of streams cut off because their client did not read.
func (h *house) slow(t testing.TB) float64 {
	t.Helper()
	return h.metric(t, "sluice_gateway_slow_clients_total")
}

func (h *house) metric(t testing.TB, name string) float64 {
	t.Helper()
	all, err := h.env.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.GetName() == name {
			return m.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("no such metric")
	return 0
}

// logs keeps what is logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) find(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, text) {
			out = append(out, line)
		}
	}
	return out
}

// TestLog: one line for a refused request and for an ended stream, with the
// fields that operators know; no token and no row data (D10).
func TestLog(t *testing.T) {
	var l logs
	h := newHouse(t, nil)
	nc := startNATS(t)
	h.store.nc = nc
	conn := serveStore(t, h.store, h.env)
	lis := listen(t)
	env := h.env
	env.Log, env.Metrics = slog.New(slog.NewJSONHandler(&l, &slog.HandlerOptions{Level: slog.LevelDebug})), nil
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{Auth: testAuth()}, Conns{Store: conn, Source: conn, Compactor: conn, NATS: nc, Listener: lis}, env)
	}()
	g := &house{url: "http://" + lis.Addr().String(), store: h.store}
	wait(t, func() bool {
		res := g.post(t, "u1", "{}", nil)
		_ = res.Body.Close()
		return res.StatusCode == 200
	})
	wait(t, func() bool { return len(l.find("Sync stream complete")) == 1 })
	h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "1", `{"id":"private"}`) })
	token := mint("somebody", nil)
	parameters := `{"p10":[1],"p11":"` + strings.Repeat("x", 200) + `"`
	for i := 12; i < 40; i++ {
		parameters += fmt.Sprintf(`,"p%d":%d`, i, i)
	}
	parameters += "}"
	c := g.open(t, "somebody", `{"client_id":"cl","app_metadata":{"ver":"3.1"},"parameters":`+parameters+`}`, http.Header{"X-User-Agent": {"powersync-js/1"}, "Authorization": {"Token " + token}})
	for range 3 {
		c.line()
	}
	h.store.commit(func(tx *tx) {
		for i := range 150 {
			tx.put("1#all[]", "news", fmt.Sprint(i), `{"id":"private"}`)
		}
	})
	for !strings.Contains(c.line(), "checkpoint_complete") {
		continue
	}
	c.close()
	wait(t, func() bool { return len(l.find("Sync stream complete")) == 2 })
	status, _, _ := g.do(t, "GET", "/write-checkpoint2.json?client_id=cl", "Token "+token, "", "")
	if status != 200 {
		t.Errorf("write checkpoint: %d", status)
	}
	for event, wants := range map[string][]string{
		"New checkpoint":     {`"user":"somebody"`, `"request":"h/`, `"checkpoint":"1"`, `"write_checkpoint":0`, `"buckets":2`, `"parameter_results":0`, `"named":["1#mine[\"somebody\"]","1#all[]"]`},
		"Updated checkpoint": {`"user":"somebody"`, `"checkpoint":"151"`, `"buckets":2`, `"named":["1#all[]"]`},
		"Write checkpoint":   {`"user":"somebody/cl"`, `"id":1`, `"head":"`},
		"HTTP request":       {`"user":"somebody"`, `"method":"GET"`, `"path":"/write-checkpoint2.json"`, `"status":200`, `"duration_ms":`},
	} {
		lines := l.find(`"msg":"` + event + `"`)
		if len(lines) == 0 {
			t.Errorf("no %s", event)
			continue
		}
		for _, want := range wants {
			if line := lines[len(lines)-1]; !strings.Contains(line, want) {
				t.Errorf("%s lacks %s", line, want)
			}
		}
	}
	started := l.find(`"msg":"Sync stream started"`)
	for _, want := range []string{`"user":"somebody"`, `"client":"cl"`, `"agent":"powersync-js/1"`, `"app_metadata":{"ver":"3.1"}`, `"client_params":{"p10":"[1]","p11":"\"` + strings.Repeat("x", 99) + `",`, `"p29":"29"}`, `"request":"h/`} {
		if !strings.Contains(started[1], want) {
			t.Errorf("%s lacks %s", started[1], want)
		}
	}
	ended := l.find(`"msg":"Sync stream complete"`)
	for _, want := range []string{`"operations_synced":151`, `"large_buckets":{"1#all[]":151}`, `"operation_counts":{"put":151,"remove":0,"move":0,"clear":0}`, `"close_reason":"client closed"`, `"data_synced_bytes":`, `"data_sent_bytes":`, `"stream_ms":`, `"encoding":"application/x-ndjson"`} {
		if !strings.Contains(ended[1], want) {
			t.Errorf("%s lacks %s", ended[1], want)
		}
	}
	res := g.post(t, "u1", "{}", http.Header{"Authorization": {"Token " + token + "x"}})
	_ = res.Body.Close()
	if refused := l.find("request refused"); len(refused) < 1 || !strings.Contains(refused[len(refused)-1], `"code":"PSYNC_S2101"`) || !strings.Contains(refused[len(refused)-1], `"status":401`) {
		t.Errorf("%q", refused)
	}
	if n := len(l.find(token[len(token)-20:])) + len(l.find("private")); n != 0 {
		t.Errorf("D10: %d lines with a token or row data", n)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestUnread: D8. A client that does not read is cut off in bounded time and
// memory; the others go on.
func TestUnread(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.WriteTimeout = 300 * time.Millisecond })
	h.store.commit(func(tx *tx) {
		for i := range 20_000 {
			tx.put("1#all[]", "news", fmt.Sprint(i), `{"id":"n","text":"`+strings.Repeat("x", 2000)+`"}`)
		}
	})
	conn := h.raw(t, "u1", `{"raw_data":true}`, "")
	defer conn.Close()
	if err := conn.Conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool { return h.sessions() == 1 })
	c := h.open(t, "u2", `{"raw_data":true}`, nil)
	for !strings.Contains(c.line(), "checkpoint_complete") {
		continue
	}
	wait(t, func() bool { return h.sessions() == 1 })
	c.close()
	wait(t, func() bool { return h.sessions() == 0 })
}

func (h *house) sessions() int {
	_, _, body := h.do(noT{}, "POST", "/api/admin/v1/sluice/status", "Token admin", "application/json", "{}")
	var s struct{ Data struct{ Sessions int } }
	if json.Unmarshal([]byte(body), &s) != nil {
		return -1
	}
	return s.Data.Sessions
}

type noT struct{ testing.TB }

func (noT) Helper()           {}
func (noT) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// TestHostileClients: each costs its own session only; in the end nothing is
// left and a good client is served (D8).
func TestHostileClients(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.WriteTimeout = 500 * time.Millisecond })
	addr := strings.TrimPrefix(h.url, "http://")
	token := mint("u1", nil)
	head := "POST /sync/stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Token " + token + "\r\n"
	good := h.open(t, "good", `{"raw_data":true}`, nil)
	good.line()
	good.line()
	send := func(parts ...string) func(net.Conn) {
		return func(c net.Conn) {
			for _, p := range parts {
				if _, err := io.WriteString(c, p); err != nil {
					return
				}
			}
			_, _ = io.CopyN(io.Discard, c, 64)
		}
	}
	t.Run("clients", func(t *testing.T) {
		for name, f := range map[string]func(net.Conn){
			"nothing":             func(net.Conn) {},
			"half a request line": send("POST /sy"),
			"half a header":       send("POST /sync/stream HTTP/1.1\r\nHost: x\r\nAuthor"),
			"no body":             send(head+"Content-Length: 100\r\n\r\n", "{"),
			"chunked body cut":    send(head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\""),
			"bad chunk size":      send(head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
			"two lengths":         send(head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
			"length and chunked":  send(head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
			"negative length":     send(head + "Content-Length: -1\r\n\r\n"),
			"huge header":         send("POST / HTTP/1.1\r\nX: " + strings.Repeat("x", 1<<20)),
			"many headers":        send("POST / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 50_000)),
			"not HTTP":            send("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
			"NULs":                send(strings.Repeat("\x00", 10_000)),
			"leaves at once":      func(c net.Conn) { _, _ = io.WriteString(c, head+"Content-Length: 2\r\n\r\n{}") },
			"resets at once": func(c net.Conn) {
				_, _ = io.WriteString(c, head+"Content-Length: 2\r\n\r\n{}")
				_ = c.(*net.TCPConn).SetLinger(0)
			},
			"half-closes": func(c net.Conn) {
				_, _ = io.WriteString(c, head+"Content-Length: 2\r\n\r\n{}")
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.CopyN(io.Discard, c, 64)
			},
			"talks on a stream":          send(head+"Content-Length: 2\r\n\r\n{}", strings.Repeat("x", 200_000)),
			"pipelines":                  send(head+"Content-Length: 2\r\n\r\n{}", head+"Content-Length: 2\r\n\r\n{}"),
			"expects":                    send(head + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
			"upgrade to nothing":         send("GET /sync/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
			"socket without a frame":     send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"),
			"socket with garbage":        send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", strings.Repeat("\xff", 1000)),
			"socket announcing 2^62":     send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", "\x82\xff\x40\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04xx"),
			"HTTP/2 preface and garbage": send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", strings.Repeat("\xff", 1000)),
			"HTTP/1.0":                   send(strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1) + "Content-Length: 2\r\n\r\n{}"),
			"50,000 buckets it lacks": func(c net.Conn) {
				b := `{"buckets":[` + strings.TrimSuffix(strings.Repeat(`{"name":"x","after":"1"},`, 50_000), ",") + `]}`
				send(head+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(b)), b)(c)
			},
			"deep body": func(c net.Conn) {
				b := `{"parameters":` + strings.Repeat(`{"a":`, 100_000) + `1` + strings.Repeat(`}`, 100_000) + `}`
				send(head+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(b)), b)(c)
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				for range 3 {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						t.Fatal(err)
					}
					if err := c.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
						t.Fatal(err)
					}
					f(c)
					_ = c.Close()
				}
			})
		}
	})
	h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "1", "{}") })
	if l := good.news(); !strings.HasPrefix(l, `{"checkpoint_diff"`) {
		t.Fatal(l)
	}
	wait(t, func() bool { return h.sessions() == 1 })
}

// TestKeepalive: a token that ends soon brings the line, then a clean end.
func TestKeepalive(t *testing.T) {
	h := newHouse(t, nil)
	c := h.open(t, "u1", `{}`, http.Header{"Authorization": {"Token " + mint("u1", map[string]any{"exp": float64(time.Now().UnixMilli())/1000 + 0.8})}})
	c.line()
	c.line()
	c.want(`{"token_expires_in":0}`)
	if _, err := c.r.ReadString('\n'); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}
