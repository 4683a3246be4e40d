package transport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/services/sync-gateway/internal/fanout"
)

// encrypted is a connection over TLS, in memory and without a buffer.
func encrypted(t *testing.T) (server, client *tls.Conn) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	server = tls.Server(a, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, SessionTicketsDisabled: true})
	client = tls.Client(b, &tls.Config{InsecureSkipVerify: true})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// TestWriteEncrypted: D8 over TLS. A client that takes something within the
// timeout goes on, however long all of it takes; one that takes nothing is slow.
func TestWriteEncrypted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 30 * time.Second
		server, client := encrypted(t)
		list := net.Buffers{[]byte("head"), bytes.Repeat([]byte("a"), 100<<10), nil, bytes.Repeat([]byte("b"), 3), bytes.Repeat([]byte("c"), 40<<10), []byte("\r\n")}
		all := bytes.Join(list, nil)
		type result struct {
			sent int64
			err  error
		}
		done := make(chan result, 1)
		write := func(list net.Buffers) {
			sent, err := writeAll(server, list, timeout)
			done <- result{sent, err}
		}
		go write(list)
		start := time.Now()
		got := make([]byte, len(all))
		for at := 0; at < len(got); {
			time.Sleep(timeout * 2 / 3)
			n, err := io.ReadAtLeast(client, got[at:], min(record, len(got)-at))
			if err != nil {
				t.Fatalf("after %d bytes: %v", at, err)
			}
			at += n
		}
		if r := <-done; r.err != nil || r.sent != int64(len(all)) || !bytes.Equal(got, all) {
			t.Fatalf("%d of %d bytes, %v", r.sent, len(all), r.err)
		}
		if took := time.Since(start); took < 3*timeout {
			t.Errorf("it took %s, which tries nothing", took)
		}
		start = time.Now()
		go write(net.Buffers{make([]byte, 100<<10)})
		if r := <-done; !errors.Is(r.err, fanout.ErrSlow) || time.Since(start) != timeout {
			t.Errorf("unread: %v after %s", r.err, time.Since(start))
		}
		// Broken off at once, though the client does not read.
		start = time.Now()
		(&chunked{conn: server}).Abort()
		if took := time.Since(start); took != 0 {
			t.Errorf("aborted after %s", took)
		}
		if _, err := client.Read(got); err == nil {
			t.Error("still open")
		}
		// A client that went is not a slow one.
		server, client = encrypted(t)
		if err := plain(client).Close(); err != nil {
			t.Fatal(err)
		}
		go write(net.Buffers{[]byte("x")})
		if r := <-done; !errors.Is(r.err, io.EOF) {
			t.Errorf("gone: %v", r.err)
		}
	})
}
