package auth

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// keyServer serves key sets and counts requests.
type keyServer struct {
	*httptest.Server
	hits   atomic.Int64
	mu     sync.Mutex
	answer func(w http.ResponseWriter, r *http.Request)
}

func newKeyServer(t testing.TB, ks ...remoteKey) *keyServer {
	s := &keyServer{}
	s.serve(ks...)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hits.Add(1)
		s.mu.Lock()
		f := s.answer
		s.mu.Unlock()
		f(w, r)
	}))
	t.Cleanup(s.Server.Close)
	return s
}

func (s *keyServer) set(f func(w http.ResponseWriter, r *http.Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

func (s *keyServer) serve(ks ...remoteKey) {
	b := must(json.Marshal(map[string]any{"keys": ks}))
	s.set(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) })
}

// clock is a verifier's time, moved by the test.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func remoteVerifier(t testing.TB, change func(*config.Auth), uris ...string) (*Verifier, *clock) {
	t.Helper()
	v := verifier(t, func(c *config.Auth) {
		c.Keys, c.JWKSURIs = nil, uris
		if change != nil {
			change(c)
		}
	})
	c := &clock{at: time.Now()}
	v.now = c.now
	return v, c
}

// token is one that is good for a day at the clock's time.
func (c *clock) token(kid string) string {
	at := c.now()
	return sign(m{"alg": "RS256", "kid": kid}, claims(m{"iat": at.Unix(), "exp": at.Add(time.Hour).Unix()}), keys.rsa)
}

func public(kid string) remoteKey { return remoteKey(rsaKey(kid, &keys.rsa.PublicKey)) }

func settle(v *Verifier) {
	for _, r := range v.remotes {
		r.wait()
	}
}

func TestRemoteKeys(t *testing.T) {
	a, b := newKeyServer(t, public("a")), newKeyServer(t, public("b"), remoteKey{Kty: "oct", Alg: "HS256", Kid: "o", K: b64(keys.secret)}, remoteKey{Kty: "RSA", Kid: "bad", N: "!"}, remoteKey{Kty: "RSA", Kid: "enc", Use: "enc", N: keys.keys[4].N, E: keys.keys[4].E})
	v, c := remoteVerifier(t, nil, a.URL, b.URL)
	for _, kid := range []string{"a", "b", "a"} {
		if _, err := v.Verify(t.Context(), c.token(kid)); err != nil {
			t.Errorf("%s: %v", kid, err)
		}
	}
	if a.hits.Load() != 1 || b.hits.Load() != 1 {
		t.Errorf("%d and %d fetches, want 1 and 1", a.hits.Load(), b.hits.Load())
	}
	for _, kid := range []string{"bad", "enc"} {
		if _, err := v.Verify(t.Context(), c.token(kid)); errs.CodeOf(err) != errs.S2101 {
			t.Errorf("%s: %v", kid, err)
		}
	}
	// A symmetric key from the network is never used.
	if _, err := v.Verify(t.Context(), sign(m{"alg": "HS256", "kid": "o"}, claims(nil), keys.secret)); errs.CodeOf(err) != errs.S2101 {
		t.Error(err)
	}
	settle(v)
}

// TestRotation: an unknown key id triggers a refresh; the next request
// succeeds. A key that is gone from the set is gone here.
func TestRotation(t *testing.T) {
	s := newKeyServer(t, public("old"))
	v, c := remoteVerifier(t, nil, s.URL)
	if _, err := v.Verify(t.Context(), c.token("old")); err != nil {
		t.Fatal(err)
	}
	s.serve(public("new"))
	c.add(10 * time.Second)
	if _, err := v.Verify(t.Context(), c.token("new")); errs.CodeOf(err) != errs.S2101 {
		t.Fatal(err)
	}
	settle(v)
	if _, err := v.Verify(t.Context(), c.token("new")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), c.token("old")); errs.CodeOf(err) != errs.S2101 {
		t.Fatal(err)
	}
}

func TestOutage(t *testing.T) {
	s := newKeyServer(t, public("a"))
	v, c := remoteVerifier(t, nil, s.URL)
	if _, err := v.Verify(t.Context(), c.token("a")); err != nil {
		t.Fatal(err)
	}
	s.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	for range 11 {
		c.add(5 * time.Minute)
		if _, err := v.Verify(t.Context(), c.token("a")); err != nil {
			t.Fatal(err)
		}
		settle(v)
	}
	// A token of no known key now is told of the outage, not that it is bad.
	if _, err := v.Verify(t.Context(), c.token("b")); errs.CodeOf(err) != errs.S2204 {
		t.Fatal(err)
	}
	settle(v)
	c.add(6 * time.Minute)
	if _, err := v.Verify(t.Context(), c.token("a")); errs.CodeOf(err) != errs.S2204 {
		t.Fatal(err)
	}
	settle(v)
	s.serve(public("a"))
	if f := v.Fetches(); f.Done != 1 || f.Failed < 11 || f.Failing != 1 {
		t.Errorf("%+v", f)
	}
	c.add(2 * time.Minute)
	if _, err := v.Verify(t.Context(), c.token("a")); err != nil {
		t.Fatal(err)
	}
	settle(v)
	if f := v.Fetches(); f.Done != 2 || f.Failing != 0 {
		t.Errorf("%+v", f)
	}
}

// TestLimiter: requests with made-up key ids do not become requests of ours.
func TestLimiter(t *testing.T) {
	s := newKeyServer(t, public("a"))
	v, c := remoteVerifier(t, nil, s.URL)
	for range 600 { // ten minutes
		if _, err := v.Verify(t.Context(), c.token("made-up")); errs.CodeOf(err) != errs.S2101 {
			t.Fatal(err)
		}
		settle(v)
		c.add(time.Second)
	}
	if n := s.hits.Load(); n < 10 || n > 25 {
		t.Errorf("%d fetches in ten minutes", n)
	}
}

func TestBadKeySets(t *testing.T) {
	for name, f := range map[string]func(http.ResponseWriter, *http.Request){
		"not JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"no keys":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) },
		"too large": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[` + strings.Repeat(" ", 2<<20) + `]}`))
		},
		"status": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"loop":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) },
		"scheme": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newKeyServer(t)
			s.set(f)
			v, c := remoteVerifier(t, nil, s.URL)
			if _, err := v.Verify(t.Context(), c.token("a")); errs.CodeOf(err) != errs.S2204 {
				t.Fatal(err)
			}
		})
	}
}

// TestRejectedAddresses: also through names and redirects.
func TestRejectedAddresses(t *testing.T) {
	s := newKeyServer(t, public("a"))
	_, port, err := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	local := func(c *config.Auth) { c.Reject = config.Ranges{Local: true} }
	for _, uri := range []string{s.URL, "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/"} {
		c := config.Auth{JWKSURIs: []string{uri}}
		local(&c)
		if _, err := New(c); errs.CodeOf(err) != errs.S2203 {
			t.Errorf("%s: %v", uri, err)
		}
	}
	v, c := remoteVerifier(t, local, "http://localhost:"+port)
	if _, err := v.Verify(t.Context(), c.token("a")); errs.CodeOf(err) != errs.S2203 {
		t.Errorf("by name: %v", err)
	}
	settle(v)
	v, c = remoteVerifier(t, func(c *config.Auth) {
		c.Reject = config.Ranges{Prefixes: []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16")}}
	}, s.URL)
	s.set(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
	})
	if _, err := v.Verify(t.Context(), c.token("a")); errs.CodeOf(err) != errs.S2203 {
		t.Errorf("by redirect: %v", err)
	}
	settle(v)
	if _, err := New(config.Auth{JWKSURIs: []string{"http://[2001:db8::1]/"}, BlockIPv6: true}); errs.CodeOf(err) != errs.S2202 {
		t.Errorf("IPv6: %v", err)
	}
	if s.hits.Load() != 1 {
		t.Errorf("%d fetches reached the server, want the redirected one", s.hits.Load())
	}
}

func TestURIs(t *testing.T) {
	for uri, code := range map[string]errs.Code{"ftp://x/": errs.S3103, "file:///etc/passwd": errs.S3102, "": errs.S3102, "://": errs.S3102} {
		if _, err := New(config.Auth{JWKSURIs: []string{uri}}); errs.CodeOf(err) != code {
			t.Errorf("%q: %v", uri, err)
		}
	}
}
