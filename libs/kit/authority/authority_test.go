package authority

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"
)

// What a CA issues is of it, of the names, and of the identity, and so is what the
// same CA issues after it was read back.
func TestIssue(t *testing.T) {
	made, err := New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, err := New("other", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// As ca.pem is while the CA is changed.
	read, err := Load(append(append([]byte{}, made.Certificate...), other.Certificate...), made.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots, strange := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(made.Certificate)
	strange.AppendCertsFromPEM(other.Certificate)
	for _, a := range []*Authority{made, read} {
		c, key, err := a.Issue("spiffe://a/b", []string{"h.example", "10.0.0.1", "::1"}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(c, key)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"h.example", "10.0.0.1", "::1"} {
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
				if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: strange}); err == nil {
			t.Error("another CA's")
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: time.Now().Add(2 * time.Minute)}); err == nil {
			t.Error("it does not expire")
		}
		if len(pair.Leaf.URIs) != 1 || pair.Leaf.URIs[0].String() != "spiffe://a/b" || pair.Leaf.IsCA {
			t.Errorf("%v, CA %t", pair.Leaf.URIs, pair.Leaf.IsCA)
		}
		for want, try := range map[string]func() error{
			"it is none":          func() error { _, err := Load(c, key); return err },
			"not match public":    func() error { _, err := Load(other.Certificate, a.Key); return err },
			"it is not PEM":       func() error { _, err := Load([]byte("x"), a.Key); return err },
			"issue a certificate": func() error { _, _, err := a.Issue("\x00", nil, time.Minute); return err },
		} {
			if err := try(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("want %q, got %v", want, err)
			}
		}
	}
}
