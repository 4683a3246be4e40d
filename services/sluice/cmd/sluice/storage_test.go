package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
)

func TestPace(t *testing.T) {
	p := pace{begin: time.Unix(0, 0)}
	for _, c := range []struct {
		progress bucketstore.CopyProgress
		want     string
	}{
		{bucketstore.CopyProgress{Doing: "write checkpoints", Total: 9}, "write checkpoints: 0 of 9 in all"},
		{bucketstore.CopyProgress{Stream: "s_1", Doing: "operations", Done: 250, Total: 1000}, "operations of s_1: 250 of 1000 in all (25%), about 1m0s left"},
		{bucketstore.CopyProgress{Stream: "s_1", Doing: "operations", Done: 11, Total: 10}, "operations of s_1: 11 of 10 in all"},
	} {
		if got := p.line(time.Unix(20, 0), c.progress); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestStorageCopyRefused(t *testing.T) {
	t.Chdir(t.TempDir())
	path := files(t, service, syncConfig)
	if code, _, stderr := sluice("storage", "copy", "-c", path); code != exitUsage || !strings.Contains(stderr, "--to") {
		t.Errorf("without --to: %d %s", code, stderr)
	}
	for want, args := range map[string][]string{
		"no such file":       {"--to", filepath.Join(t.TempDir(), "none.yaml")},
		"both configs name":  {"--to", path, "--data", "a", "--to-data", "a"},
		"no storage to copy": {"--to", path, "--data", "a", "--to-data", "b"},
	} {
		if code, _, stderr := sluice(append([]string{"storage", "copy", "-c", path}, args...)...); code != exitFailed || !strings.Contains(stderr, want) {
			t.Errorf("%v: %d %s, want %s", args, code, stderr, want)
		}
	}
}
