package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/rsocket"
)

// authority makes certificates that its pool trusts.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	pool *x509.CertPool
	last int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool(), last: 1}
	a.key = newTLSKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.root)
	return a
}

func newTLSKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue writes a new certificate of 127.0.0.1 and returns its serial number.
func (a *authority) issue(to config.TLS) int64 {
	a.t.Helper()
	a.last++
	key := newTLSKey(a.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(a.last), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{to.Certificate.Path: {Type: "CERTIFICATE", Bytes: der}, to.Key.Path: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return a.last
}

// newTLSHouse is a house whose clients come over TLS, with HTTP/1.1.
func newTLSHouse(t *testing.T, change func(*Config)) (*house, *authority, config.TLS) {
	t.Helper()
	a, dir := newAuthority(t), t.TempDir()
	files := config.TLS{Certificate: config.PEM{Path: filepath.Join(dir, "cert.pem")}, Key: config.PEM{Path: filepath.Join(dir, "key.pem")}}
	a.issue(files)
	h := newHouse(t, func(c *Config) {
		c.TLS = files
		if change != nil {
			change(c)
		}
	})
	h.url = strings.Replace(h.url, "http://", "https://", 1)
	h.http = a.client(t, false)
	return h, a, files
}

// client speaks HTTP/2 or HTTP/1.1, each by ALPN.
func (a *authority) client(t *testing.T, two bool) *http.Client {
	var protocols http.Protocols
	protocols.SetHTTP1(!two)
	protocols.SetHTTP2(two)
	tr := &http.Transport{Protocols: &protocols, TLSClientConfig: &tls.Config{RootCAs: a.pool}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestTLS: first sync, a live change and the end of the process, over HTTP/1.1
// and HTTP/2, plain and compressed.
func TestTLS(t *testing.T) {
	for _, two := range []bool{false, true} {
		for _, encoding := range []string{"identity", "gzip"} {
			t.Run(map[bool]string{false: "1.1", true: "2"}[two]+" "+encoding, func(t *testing.T) {
				h, a, _ := newTLSHouse(t, nil)
				h.http = a.client(t, two)
				h.store.commit(func(tx *tx) {
					for range 20 { // chunks far larger than a record
						tx.put("1#all[]", "news", "1", `{"id":"1","text":"`+strings.Repeat("x", 100<<10)+`"}`)
					}
				})
				c := h.open(t, "u1", `{"raw_data":true}`, http.Header{"Accept-Encoding": {encoding}})
				if c.res.ProtoMajor == 2 != two || c.res.TLS == nil || c.res.Header.Get("X-Accel-Buffering") != "no" {
					t.Fatalf("%s %v", c.res.Proto, c.res.Header)
				}
				if encoding == "gzip" {
					c.r = bufio.NewReader(gunzip(t, c.res.Body))
				}
				c.line()
				n := 0
				for l := c.line(); !strings.HasPrefix(l, `{"checkpoint_complete"`); l = c.line() {
					n += strings.Count(l, `"op":"PUT"`)
				}
				if n != 20 {
					t.Errorf("%d ops", n)
				}
				h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "2", "{}") })
				c.line()
				c.line()
				c.want(`{"checkpoint_complete":{"last_op_id":"21"}}`)
				if status, _, body := h.do(t, "GET", "/write-checkpoint2.json", "Token "+mint("u1", nil), "", ""); status != 200 {
					t.Errorf("%d %s", status, body)
				}
				h.stop()
				for err := error(nil); ; {
					if _, err = c.r.ReadString('\n'); errors.Is(err, io.EOF) {
						break
					} else if err != nil {
						t.Fatalf("not a clean end: %v", err)
					}
				}
			})
		}
	}
}

// TestTLSSocket: a WebSocket over TLS, with and without permessage-deflate.
func TestTLSSocket(t *testing.T) {
	for _, compress := range []bool{false, true} {
		h, _, _ := newTLSHouse(t, nil)
		h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "1", `{"id":"1","text":"`+strings.Repeat("x", 100<<10)+`"}`) })
		c := h.dial(t, compress)
		c.send(setup("application/json", authMetadata("u1")))
		c.send(requestStream(1, 100, 0, streamRoute, []byte(`{}`)))
		for _, want := range []string{`{"checkpoint":`, `{"data":`, `{"checkpoint_complete":{"last_op_id":"1"}}`} {
			if l := c.line(1); !strings.HasPrefix(l, want) {
				t.Fatalf("got %s, want %s", l, want)
			}
		}
		c.send(keepalive("ping"))
		if f := c.frame(); f.Type != rsocket.Keepalive {
			t.Fatalf("%+v", f)
		}
		h.stop()
		if f := c.frame(); f.Type != rsocket.Payload || f.Flags != rsocket.FlagComplete {
			t.Fatalf("%+v", f)
		}
	}
}

// TestTLSReload: new connections get the new certificate, a stream goes on.
func TestTLSReload(t *testing.T) {
	h, a, files := newTLSHouse(t, nil)
	c := h.open(t, "u1", `{"raw_data":true}`, nil)
	c.line()
	c.line()
	serial := a.issue(files)
	wait(t, func() bool {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(h.url, "https://"), &tls.Config{RootCAs: a.pool})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64() == serial
	})
	h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "1", "{}") })
	c.line()
	c.line()
	c.want(`{"checkpoint_complete":{"last_op_id":"1"}}`)
	if n := c.res.TLS.PeerCertificates[0].SerialNumber.Int64(); n == serial {
		t.Error("the stream's connection is not the one from before")
	}
}

// TestTLSUnread: D8 over TLS. Who does not read is cut off, whoever else goes on.
func TestTLSUnread(t *testing.T) {
	h, _, _ := newTLSHouse(t, func(c *Config) { c.WriteTimeout = 200 * time.Millisecond })
	h.store.commit(func(tx *tx) {
		for range 6000 {
			tx.put(`1#mine["u2"]`, "lists", "1", `{"id":"n","text":"`+strings.Repeat("x", 2000)+`"}`)
		}
	})
	other := h.open(t, "u1", `{"raw_data":true}`, nil)
	other.line()
	other.line()
	h.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(16 << 10)
		}
		return c, err
	}
	h.open(t, "u2", `{"raw_data":true}`, http.Header{"Accept-Encoding": {"identity"}})
	wait(t, func() bool { return h.slow(t) == 1 })
	h.store.commit(func(tx *tx) { tx.put("1#all[]", "news", "1", "{}") })
	if l := other.news(); !strings.HasPrefix(l, `{"checkpoint_diff"`) {
		t.Error(l)
	}
}

// TestTLSOnly: no old versions, no clear text.
func TestTLSOnly(t *testing.T) {
	h, a, _ := newTLSHouse(t, nil)
	address := strings.TrimPrefix(h.url, "https://")
	if c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: a.pool, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 is spoken")
	}
	res, err := http.Get("http://" + address + "/probes/liveness")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("clear text: %s", res.Status)
	}
}

func TestTLSUnusable(t *testing.T) {
	lis := listen(t)
	err := Run(t.Context(), Config{TLS: config.TLS{Certificate: config.PEM{Path: "/nowhere/cert.pem"}, Key: config.PEM{Text: "x"}}}, Conns{Listener: lis}, newHouse(t, nil).env)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "sluice.gateway.tls") {
		t.Errorf("%v", err)
	}
	if _, err := lis.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}
