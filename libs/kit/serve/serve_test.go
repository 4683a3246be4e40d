package serve

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServe(t *testing.T) {
	r := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total"})
	r.MustRegister(c)
	c.Inc()
	a, b := &service.Health{}, &service.Health{}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, lis, Handler(r, map[string]*service.Health{"a": a, "b": b}, nil)) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		t.Helper()
		r, err := client.Get("http://" + lis.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "things_total 1") {
		t.Errorf("metrics: %d %s", code, body)
	}
	if code, _ := get("/debug/pprof/cmdline"); code != 200 {
		t.Errorf("pprof: %d", code)
	}
	probes := func() (codes [3]int) {
		for i, p := range []string{"startup", "readiness", "liveness"} {
			code, body := get("/probes/" + p)
			var probe Probe
			if err := json.Unmarshal([]byte(body), &probe); err != nil {
				t.Errorf("%s: %s", p, body)
			}
			codes[i] = code
		}
		return codes
	}
	if got := probes(); got != [3]int{400, 400, 400} {
		t.Errorf("at first: %v", got)
	}
	a.Start()
	a.SetReady(nil)
	if got := probes(); got != [3]int{400, 400, 400} {
		t.Errorf("one of two: %v", got)
	}
	b.Start()
	b.SetReady(errors.New("no source"))
	if got := probes(); got != [3]int{200, 400, 200} {
		t.Errorf("started: %v", got)
	}
	if _, body := get("/probes/readiness"); !strings.Contains(body, "b: no source") {
		t.Errorf("the reason: %s", body)
	}
	b.SetReady(nil)
	if got := probes(); got != [3]int{200, 200, 200} {
		t.Errorf("ready: %v", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A service that never gave a sign of life makes the process not alive, in
// whichever order the services are looked at.
func TestJoinedUntouched(t *testing.T) {
	a, b := &service.Health{}, &service.Health{}
	a.Start()
	for range 100 {
		if p := Joined(map[string]*service.Health{"a": a, "b": b}); !p.TouchedAt.IsZero() {
			t.Fatalf("touched at %v", p.TouchedAt)
		}
		if p := Joined(map[string]*service.Health{"a": b, "b": a}); !p.TouchedAt.IsZero() {
			t.Fatalf("touched at %v", p.TouchedAt)
		}
	}
}

func TestListen(t *testing.T) {
	none, err := Listen(0)
	if none != nil || err != nil {
		t.Errorf("%v %v", none, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, nil, nil) }() // nothing to serve: waits
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	lis, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	if _, err := Listen(lis.Addr().(*net.TCPAddr).Port); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken: %v", err)
	}
}
