package certificate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair makes a certificate of a name and its key.
func pair(t *testing.T, name string, expires time.Time) (certificate, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: expires, DNSNames: []string{name}}
	c, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// logged is a log that is written while it is read.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// take returns what was logged since the last take.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.text.Reset()
	return l.text.String()
}

// TestReload rotates a certificate as a tool does that writes one file after
// the other.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	from := config.TLS{Certificate: config.PEM{Path: filepath.Join(dir, "cert")}, Key: config.PEM{Path: filepath.Join(dir, "key")}}
	write := func(p config.PEM, text string) {
		t.Helper()
		if err := os.WriteFile(p.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		soon := time.Now().Add(time.Hour).Truncate(time.Second)
		certificate, key := pair(t, "old", soon)
		write(from.Certificate, certificate)
		write(from.Key, key)
		var log logged
		k, err := New(from, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx) }()
		c := k.Config()
		if c.MinVersion != tls.VersionTLS12 {
			t.Errorf("from version %x", c.MinVersion)
		}
		shows := func(name, warning string) {
			t.Helper()
			log.take()
			time.Sleep(3 * interval) // in the bubble's time
			synctest.Wait()
			got, err := c.GetCertificate(nil)
			if err != nil || got.Leaf.DNSNames[0] != name {
				t.Errorf("shows %v, %v, not %s", got.Leaf.DNSNames, err, name)
			}
			text := log.take()
			if n := strings.Count(text, "WARN"); warning == "" && n != 0 || warning != "" && (n != 1 || !strings.Contains(text, warning)) {
				t.Errorf("log: %s", text)
			}
			for line := range strings.Lines(key) {
				if len(line) > 20 && strings.Contains(text, strings.TrimSpace(line)) {
					t.Errorf("D10: %s", text)
				}
			}
		}
		shows("old", "")
		if !k.Expires().Equal(soon) {
			t.Errorf("expires at %s", k.Expires())
		}
		certificate, key = pair(t, "new", soon)
		write(from.Certificate, certificate)
		shows("old", "private key does not match public key")
		write(from.Key, key)
		shows("new", "")
		write(from.Key, "-----BEGIN nonsense")
		shows("new", "failed to find any PEM data in key input")
		if err := os.Remove(from.Key.Path); err != nil {
			t.Fatal(err)
		}
		shows("new", "no such file")
		certificate, key = pair(t, "gone", time.Now().Add(-time.Hour))
		write(from.Certificate, certificate)
		write(from.Key, key)
		shows("gone", "has expired")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestUnusable(t *testing.T) {
	certificate, _ := pair(t, "a", time.Now().Add(time.Hour))
	_, key := pair(t, "b", time.Now().Add(time.Hour))
	for name, from := range map[string]config.TLS{
		"no file":    {Certificate: config.PEM{Path: "/nowhere"}, Key: config.PEM{Text: key}},
		"not a pair": {Certificate: config.PEM{Text: certificate}, Key: config.PEM{Text: key}},
	} {
		if _, err := New(from, slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
