package main

import (
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
)

// TestCertificates: what is printed is a config by which each service has its
// certificate; the CA stays until there is a new one, which then signs.
func TestCertificates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certificates")
	make := func(args ...string) string {
		t.Helper()
		code, out, stderr := sluice(append([]string{"certificates", dir}, args...)...)
		if code != 0 || stderr != "" {
			t.Fatalf("%d %s", code, stderr)
		}
		return out
	}
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	// by says which of the CAs in ca.pem, from the first on, has signed nats.pem.
	by := func() (which, of int) {
		t.Helper()
		block, _ := pem.Decode(read("nats.pem"))
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		which = -1
		for rest := read("ca.pem"); ; of++ {
			if block, rest = pem.Decode(rest); block == nil {
				return which, of
			}
			ca, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if leaf.CheckSignatureFrom(ca) == nil {
				which = of
			}
		}
	}
	text := make("-n", "store.internal", "-n", "10.0.0.1", "--days", "7")
	f, err := config.Parse([]byte(text), "t", "/", func(string) (string, bool) { return "", false })
	if err != nil || len(f.Warnings) > 0 {
		t.Fatalf("%v %v:\n%s", err, f.Warnings, text)
	}
	for _, r := range certificate.Roles {
		k, err := certificate.ForService(f.Sluice.TLS, r, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		pair, err := k.Pair()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"localhost", "127.0.0.1", string(r), "store.internal", "10.0.0.1"} {
			if err := pair.Leaf.VerifyHostname(name); err != nil {
				t.Errorf("%s: %v", r, err)
			}
		}
		if info, err := os.Stat(filepath.Join(dir, string(r)+"-key.pem")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", r, info, err)
		}
	}
	first := read("nats.pem")
	make()
	if which, of := by(); which != 0 || of != 1 || string(read("nats.pem")) == string(first) {
		t.Errorf("again: by %d of %d", which, of)
	}
	if out := make("--new-ca"); !strings.Contains(out, "a new CA before the old one") {
		t.Errorf("%s", out)
	}
	if which, of := by(); which != 1 || of != 2 {
		t.Errorf("with a new CA: by %d of %d", which, of)
	}
	make()
	if which, of := by(); which != 0 || of != 2 {
		t.Errorf("by the new CA: by %d of %d", which, of)
	}
	if code, _, stderr := sluice("certificates", dir, "--days", "0"); code != 1 || !strings.Contains(stderr, "at least 1") {
		t.Errorf("%d %s", code, stderr)
	}
	if text := make("--identities", "spiffe://a/b/"); !strings.Contains(text, "identities: spiffe://a/b/\n") {
		t.Errorf("%s", text)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca-key.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := sluice("certificates", dir); code != 1 || !strings.Contains(stderr, "use the CA") {
		t.Errorf("%d %s", code, stderr)
	}
}
