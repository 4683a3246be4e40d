// Package pgtest starts a Postgres server for a test, by scripts/postgres.
package pgtest

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// Server is a server of one test, stopped when it ends. It does not fsync: tests
// crash it, not the machine.
type Server struct {
	dir string
	URL *url.URL
}

// Start starts a server. A test that needs it fails without it, and is skipped
// by -short.
func Start(t testing.TB) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a Postgres server")
	}
	dir, err := os.MkdirTemp("", "sluice-pg-") // not below t.TempDir, which other users may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: filepath.Join(dir, "data")}
	t.Cleanup(func() {
		if err := s.Crash(); err != nil {
			t.Logf("stop Postgres: %v", err)
		}
	})
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Up starts the server again, on the same port.
func (s *Server) Up() error {
	out, err := script("up", s.dir, "0", "-c", "fsync=off")
	if err != nil {
		return err
	}
	s.URL, err = url.Parse(out)
	return err
}

// Crash ends the server as a crash would.
func (s *Server) Crash() error {
	_, err := script("down", s.dir, "immediate")
	return err
}

// Config of a connection to the server.
func (s *Server) Config() *config.Postgres {
	port, err := strconv.Atoi(s.URL.Port())
	if err != nil {
		panic(err) // scripts/postgres always says it
	}
	return &config.Postgres{Hostname: s.URL.Hostname(), Port: port, Username: "postgres", Password: "any", Database: "postgres", SSLMode: "disable"}
}

func script(args ...string) (string, error) {
	_, file, _, _ := runtime.Caller(0)
	out, err := exec.Command(filepath.Join(filepath.Dir(file), "../../../../scripts/postgres"), args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("scripts/postgres %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}
