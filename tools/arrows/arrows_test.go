package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// found writes the files of one small tree and returns what check says.
func found(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	problems, _, err := check(root)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(problems, "\n")
}

func imports(names ...string) string {
	text := "package x\n"
	for _, n := range names {
		text += "import _ \"" + n + "\"\n"
	}
	return text
}

func TestArrows(t *testing.T) {
	for _, c := range []struct{ file, imported, want string }{
		{"libs/model/a.go", ours + "libs/kit", "libs/model/a.go:2: libs/model may not import libs/kit"},
		{"libs/model/a.go", "example.org/x", "libs/model/a.go:2: libs/model imports only the standard library, not example.org/x"},
		{"libs/kit/rpc/a.go", ours + "libs/model", "libs/kit/rpc/a.go:2: libs/kit may not import libs/model"},
		{"libs/rules/eval/a.go", ours + "libs/rules/plan", ""},
		{"libs/rules/eval/a.go", ours + "libs/wire", "libs/rules/eval/a.go:2: libs/rules may not import libs/wire"},
		{"libs/wire/a.go", ours + "proto/sluice/v1", ""},
		{"services/compactor/a.go", ours + "libs/core/compact", ""},
		{"services/compactor/a.go", ours + "libs/core/ledger", "services/compactor/a.go:2: services/compactor may not import libs/core/ledger"},
		{"services/compactor/a.go", ours + "services/bucket-store/store", "services/compactor/a.go:2: services/compactor may not import services/bucket-store/store"},
		{"services/compactor/a_test.go", ours + "services/bucket-store/store", "services/compactor/a_test.go:2: services/compactor may not import services/bucket-store/store"},
		{"services/sync-gateway/internal/fanout/a.go", ours + "libs/core/session", ""},
		{"services/replicator/a.go", ours + "libs/rules", "services/replicator/a.go:2: services/replicator may not import libs/rules"},
		{"services/sluice/a.go", ours + "services/compactor", ""},
		{"services/compactor/a.go", ours + "services/sluice", "services/compactor/a.go:2: services/compactor imports services/sluice: nothing imports that"},
		{"services/sluice/a.go", ours + "e2e/harness", "services/sluice/a.go:2: services/sluice imports e2e: nothing imports that"},
		{"e2e/a.go", ours + "libs/core/session", ""},
		{"elsewhere/a.go", "fmt", "elsewhere/a.go:1: elsewhere is in no module of the house plan"},
	} {
		want := strings.Replace(c.want, "imports e2e: ", "imports e2e/harness: ", 1)
		if got := found(t, map[string]string{c.file: imports(c.imported)}); got != want {
			t.Errorf("%s imports %s:\n got %q\nwant %q", c.file, c.imported, got, want)
		}
	}
}

func TestDrivers(t *testing.T) {
	for _, c := range []struct {
		file, imported string
		refused        bool
	}{
		{"services/bucket-store/internal/pebble/a.go", "github.com/cockroachdb/pebble/v2", false},
		{"services/compactor/a.go", "github.com/cockroachdb/pebble/v2", true},
		{"services/replicator/internal/source/postgres/a.go", "github.com/jackc/pglogrepl", false},
		{"services/replicator/internal/publish/a.go", "github.com/jackc/pgx/v5", true},
		{"services/replicator/internal/publish/a_test.go", "github.com/jackc/pgx/v5", false},
		{"e2e/harness/a.go", "github.com/jackc/pgx/v5", false},
	} {
		got := found(t, map[string]string{c.file: imports(c.imported)})
		if refused := strings.Contains(got, "may not be imported in"); refused != c.refused {
			t.Errorf("%s imports %s: %q", c.file, c.imported, got)
		}
	}
}

func TestPure(t *testing.T) {
	got := found(t, map[string]string{
		"libs/core/ledger/a.go": `package ledger
import ("context"; "time")
var _ context.Context
func f() time.Time { go f(); return time.Now() }
func g(t time.Time) time.Duration { return t.Sub(t) }
`,
		"libs/core/storetest/a.go":    "package storetest\nimport _ \"os\"\n",
		"libs/rules/conformance/a.go": "package conformance\nimport _ \"os\"\n",
		"libs/rules/eval/b.go":        "package eval\nimport _ \"" + ours + "libs/rules/conformance\"\n",
		"libs/core/ledger/a_test.go":  "package ledger\nimport _ \"os\"\nfunc h() { go h() }\n",
	})
	want := `libs/core/ledger/a.go:2: libs/core decides and does nothing: it may not import context
libs/core/ledger/a.go:4: libs/core decides and does nothing: it may not start a goroutine
libs/core/ledger/a.go:4: libs/core has no clock: it may not use time.Now
libs/rules/eval/b.go:2: libs/rules/eval imports libs/rules/conformance, which is for tests`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestNames(t *testing.T) {
	got := found(t, map[string]string{"libs/kit/util/a.go": "package util\n", "libs/kit/testdata/b.go": "package util\n"})
	if want := "libs/kit/util/a.go:1: package util: name it after what it is for"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
