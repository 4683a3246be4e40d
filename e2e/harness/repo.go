package harness

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Repo returns the root of the working copy.
func Repo() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// services are the commands that make the binaries of both modes.
var services = []string{"bucket-store", "compactor", "replicator", "rules-evaluator", "sluice", "sync-gateway"}

var build = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("SLUICE_E2E_BIN"); dir != "" {
		return dir, nil
	}
	dir := filepath.Join(Repo(), "bin")
	args := []string{"build"}
	if raceEnabled {
		dir = filepath.Join(dir, "race")
		args = append(args, "-race")
	}
	args = append(args, "-o", dir+string(filepath.Separator))
	for _, s := range services {
		args = append(args, "./services/"+s+"/cmd/"+s)
	}
	args = append(args, "./services/bucket-store/internal/mongotest/mongofake")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = Repo()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %v: %w\n%s", args, err, out)
	}
	return dir, nil
})

// Binaries builds the services and returns their folder.
func Binaries(t testing.TB) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var (
	client = sync.OnceValue(func() error { return npm("client") })
	web    = sync.OnceValue(func() error { return npm("web") })
)

// npm installs what a folder of e2e asks for, unless it is there.
func npm(folder string) error {
	dir := filepath.Join(Repo(), "e2e", folder)
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json")); err == nil {
		return nil
	}
	cmd := exec.Command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci in e2e/%s: %w\n%s", folder, err, out)
	}
	return nil
}

// NeedsServers skips the test, aloud, with -short; else it makes sure that the
// client SDK is installed and gives the folder of this test. The folder can be
// entered by every user, for Postgres runs as another one.
func NeedsServers(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: no real servers")
	}
	if err := client(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("SLUICE_E2E_KEEP") != "" {
			t.Logf("kept %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's folder: %v", err)
		}
	})
	return dir
}

// script runs one of scripts/ in a place (nil = the test's own network) and returns what
// it prints.
func script(t testing.TB, at Place, env []string, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(filepath.Join(Repo(), "scripts", name), args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := start(at, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("scripts/%s %v: %w\n%s%s", name, args, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), nil
}
