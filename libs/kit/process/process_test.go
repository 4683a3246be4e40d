package process

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/config"
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
