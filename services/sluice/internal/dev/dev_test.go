package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waiting is a part that runs until it is stopped, and notes that in order.
func waiting(name string, order *[]string, err error) part {
	return part{name, func(ctx context.Context) error {
		<-ctx.Done()
		*order = append(*order, name) // one after the other: no lock needed
		return err
	}}
}

func TestStopOrder(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var order []string
	parts := []part{waiting("store", &order, nil), waiting("source", &order, nil), waiting("gateway", &order, nil)}
	cancel()
	if err := supervise(ctx, parts); err != nil {
		t.Error(err)
	}
	if !slices.Equal(order, []string{"gateway", "source", "store"}) {
		t.Errorf("stopped in order %v", order)
	}
}

func TestPartFails(t *testing.T) {
	boom := errors.New("boom")
	var order []string
	late := errors.New("late")
	err := supervise(context.Background(), []part{
		waiting("store", &order, late),
		{"source", func(context.Context) error { return boom }},
		waiting("gateway", &order, nil),
	})
	if !errors.Is(err, boom) || !errors.Is(err, late) || !strings.HasPrefix(err.Error(), "source: boom") {
		t.Errorf("%v", err)
	}
	if !slices.Equal(order, []string{"gateway", "store"}) {
		t.Errorf("stopped in order %v", order)
	}
}

func TestPartEndsByItself(t *testing.T) {
	err := supervise(context.Background(), []part{{"source", func(context.Context) error { return nil }}})
	if err == nil || err.Error() != "source ended by itself" {
		t.Errorf("%v", err)
	}
}

// log gathers what is logged.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// file is a config whose database is not there; everything else is.
func file(t *testing.T, port int, extra string) *config.File {
	t.Helper()
	f, err := config.Parse([]byte(fmt.Sprintf(`
replication: {connections: [{type: postgresql, uri: "postgresql://u:p@127.0.0.1:1999/d", sslmode: disable}]}
port: %d
api: {tokens: [t]}
client_auth: {audience: [a], jwks: {keys: [{kty: oct, alg: HS256, kid: k, k: c2VjcmV0}]}}
sluice: {data: %s}
`, port, filepath.Join(t.TempDir(), "data"))+extra), "test.yaml", "/", func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// All parts run in one process, answer on their ports, and end when told.
func TestRun(t *testing.T) {
	var free [2]int
	for i := range free {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		free[i] = lis.Addr().(*net.TCPAddr).Port
		defer lis.Close()
		if err := lis.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f := file(t, free[0], fmt.Sprintf("sync_config: {content: 'bucket_definitions: {a: {data: [SELECT * FROM t]}}'}\ntelemetry: {prometheus_port: %d}\n", free[1]))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l := &log{}
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, f, slog.New(slog.NewTextHandler(l, nil))) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(port int, path string) int {
		r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			return 0
		}
		r.Body.Close()
		return r.StatusCode
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for get(free[0], "/probes/startup") != 200 || get(free[1], "/metrics") != 200 || !strings.Contains(l.String(), "sync config deployed") {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("ended: %v\n%s", err, l)
		case <-deadline:
			t.Fatalf("does not come up:\n%s", l)
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Errorf("does not end:\n%s", l)
	}
}

// What makes a start fail is said, and nothing stays behind.
func TestCannotStart(t *testing.T) {
	lis, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	for want, f := range map[string]*config.File{
		"address already in use":   file(t, lis.Addr().(*net.TCPAddr).Port, ""),
		"the sync config is inval": file(t, 0, "sync_config: {content: 'bucket_definitions: {a: {data: [SELECT]}}'}"),
	} {
		if err := Run(context.Background(), f, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
