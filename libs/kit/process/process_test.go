package process

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/authority"
	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

func file(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// A service gets its config and its surroundings, its private port answers,
// and SIGTERM ends it without an error.
func TestRun(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := lis.Addr().(*net.TCPAddr).Port
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	l := &log{}
	s := Service{
		Name:        "thing",
		MetricsPort: func(s *config.Sluice) int { return s.Compactor.MetricsPort },
		Run: func(ctx context.Context, f *config.File, env service.Env) error {
			if f.Port != 9 || env.Instance == "" {
				return fmt.Errorf("port %d, instance %q", f.Port, env.Instance)
			}
			env.Health.Start()
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			for {
				r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/probes/startup", port))
				if err == nil {
					r.Body.Close()
					if r.StatusCode == 200 {
						break
					}
				}
				if ctx.Err() != nil {
					return errors.New("the private port does not answer")
				}
			}
			r, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/log-level", port))
			if err != nil {
				return err
			}
			level, err := io.ReadAll(r.Body)
			if err != nil || string(level) != "info\n" {
				return fmt.Errorf("log level %q, %w", level, err)
			}
			r.Body.Close()
			if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		},
	}
	path := file(t, fmt.Sprintf("port: 9\nsluice: {compactor: {metrics_port: %d}, gatewya: {}}\n", port))
	if err := s.run(context.Background(), []string{"--config", path}, l); err != nil {
		t.Error(err)
	}
	if !strings.Contains(l.String(), "is it gateway?") {
		t.Errorf("the config's warning is not logged: %s", l)
	}
}

// TestTLS: with sluice.tls a service gets its certificate, whose expiry is a
// metric, or says with a code what is wrong before it runs.
func TestTLS(t *testing.T) {
	a, err := authority.New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, key, err := a.Issue("spiffe://sluice/compactor", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SLUICE_TLS_CA", string(a.Certificate))
	t.Setenv("SLUICE_TLS_COMPACTOR_CERTIFICATE", string(c))
	t.Setenv("SLUICE_TLS_COMPACTOR_KEY", string(key))
	ran := false
	s := Service{
		Name: "compactor", MetricsPort: func(*config.Sluice) int { return 0 },
		Run: func(_ context.Context, _ *config.File, env service.Env) error {
			ran = true
			if env.TLS.Role() != certificate.Compactor {
				t.Errorf("role %q", env.TLS.Role())
			}
			all, err := env.Metrics.(prometheus.Gatherer).Gather()
			if err != nil {
				return err
			}
			want := map[string]time.Time{"sluice_certificate_start_timestamp_seconds": env.TLS.Starts(), "sluice_certificate_expiry_timestamp_seconds": env.TLS.Expires()}
			for _, f := range all {
				if at, ok := want[f.GetName()]; ok {
					if got := f.GetMetric()[0].GetGauge().GetValue(); got != float64(at.Unix()) {
						t.Errorf("%s is %v, not %v", f.GetName(), got, at)
					}
					delete(want, f.GetName())
				}
			}
			if len(want) > 0 || !env.TLS.Starts().Before(env.TLS.Expires()) {
				t.Errorf("no metric: %v", want)
			}
			return nil
		},
	}
	l := &log{}
	if err := s.run(context.Background(), []string{"-c", file(t, "{}")}, l); err != nil || !ran {
		t.Errorf("%v %v", ran, err)
	}
	if text := l.String(); !strings.Contains(text, "TLS certificate read") || strings.Contains(text, "PRIVATE") {
		t.Errorf("D10: %s", text)
	}
	ran = false
	s.Name = "sync-gateway"
	if err := s.run(context.Background(), []string{"-c", file(t, "{}")}, l); errs.CodeOf(err) != errs.S9010 || !strings.Contains(err.Error(), "there is no certificate") || ran {
		t.Errorf("%v %v", ran, err)
	}
}

// A second service on one machine does without the port that all share, and
// fails on a port of its own that is taken.
func TestPortIsTaken(t *testing.T) {
	lis, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	port := lis.Addr().(*net.TCPAddr).Port
	s := Service{
		Name: "thing", MetricsPort: func(s *config.Sluice) int { return s.Compactor.MetricsPort },
		Run: func(context.Context, *config.File, service.Env) error { return nil },
	}
	l := &log{}
	if err := s.run(context.Background(), []string{"-c", file(t, fmt.Sprintf("telemetry: {prometheus_port: %d}", port))}, l); err != nil || !strings.Contains(l.String(), "is taken") {
		t.Errorf("the shared port: %v %s", err, l)
	}
	if err := s.run(context.Background(), []string{"-c", file(t, fmt.Sprintf("sluice: {compactor: {metrics_port: %d}}", port))}, l); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("its own port: %v", err)
	}
}

func TestRunFails(t *testing.T) {
	boom := errors.New("boom")
	s := Service{
		Name: "thing", MetricsPort: func(*config.Sluice) int { return 0 },
		Run: func(context.Context, *config.File, service.Env) error { return boom },
	}
	if err := s.run(context.Background(), []string{"-c", file(t, "{}")}, &log{}); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if err := s.run(context.Background(), []string{"-c", file(t, "port: x")}, &log{}); err == nil || !strings.Contains(err.Error(), "c.yaml:1:7") {
		t.Errorf("%v", err)
	}
	if err := s.run(context.Background(), []string{"extra"}, &log{}); err == nil {
		t.Error("an argument too many is taken")
	}
	if err := s.run(context.Background(), []string{"-h"}, &log{}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("%v", err)
	}
}
