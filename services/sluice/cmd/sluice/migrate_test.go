package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMigrate(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a Postgres server")
	}
	dir, err := os.MkdirTemp("", "sluice-pg-") // not below t.TempDir, which other users may not enter
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	dir = filepath.Join(dir, "data")
	script := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("../../../../scripts/postgres", args...).Output()
		if err != nil {
			t.Fatalf("scripts/postgres: %v", err)
		}
		return strings.TrimSpace(string(out))
	}
	uri := script("up", dir, "0", "-c", "fsync=off")
	defer script("down", dir, "immediate")
	storage := func(more string) string {
		return files(t, service+"storage: {type: postgresql, sslmode: disable, uri: '"+uri+"', schema: other"+more+"}\nmigrations: {disable_auto_migration: true}\n", explained)
	}
	for _, c := range []struct {
		command, config string
		code            int
		want            string
	}{
		{"up", storage(""), 0, "the schema other of postgresql://127.0.0.1"},
		{"up", storage(""), 0, "is up to date"},
		{"down", storage(""), 0, "one migration less"},
		{"up", storage(", port: 1024"), 1, "S2402"},
		{"up", files(t, service, explained), 0, "no migrations"},
		{"sideways", storage(""), 2, "sideways"},
	} {
		code, out, stderr := sluice("-c", c.config, "migrate", c.command)
		if code != c.code || !strings.Contains(out+stderr, c.want) {
			t.Errorf("%s: %d %s %s, want %d %s", c.command, code, out, stderr, c.code, c.want)
		}
	}
}
