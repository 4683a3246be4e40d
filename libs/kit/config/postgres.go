package config

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/tcp"
)

// Redacted is the URI of a connection without credentials.
func (c *Postgres) Redacted() string {
	return (&url.URL{Scheme: "postgresql", Host: net.JoinHostPort(c.Hostname, strconv.Itoa(c.Port)), Path: "/" + c.Database}).String()
}

// ForDriver is the URI of c for a driver, with its credentials. Everything is given, so
// that nothing is taken from PG* variables; TLS and Dialer are to be set beside it.
func (c *Postgres) ForDriver() string {
	return (&url.URL{Scheme: "postgres", Host: net.JoinHostPort(c.Hostname, strconv.Itoa(c.Port)),
		User: url.UserPassword(c.Username, c.Password), Path: "/" + c.Database, RawQuery: "sslmode=disable"}).String()
}

// TLS is what sslmode and the certificates mean; nil: no TLS.
func (c *Postgres) TLS() (*tls.Config, error) {
	if c.SSLMode == "disable" {
		return nil, nil
	}
	t := &tls.Config{ServerName: cmp.Or(c.TLSServerName, c.Hostname), MinVersion: tls.VersionTLS12}
	if c.CACert != "" {
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM([]byte(c.CACert)) {
			return nil, errs.New(errs.S1109, "cacert has no PEM certificate")
		}
	}
	if c.ClientCertificate != "" || c.ClientPrivateKey != "" {
		pair, err := tls.X509KeyPair([]byte(c.ClientCertificate), []byte(c.ClientPrivateKey))
		if err != nil {
			return nil, errs.Wrap(errs.S1109, err, "client_certificate and client_private_key are not a pair")
		}
		t.Certificates = []tls.Certificate{pair}
	}
	if c.SSLMode == "verify-ca" {
		// The chain is verified, the name is not.
		t.InsecureSkipVerify = true
		t.VerifyConnection = func(s tls.ConnectionState) error {
			o := x509.VerifyOptions{Roots: t.RootCAs, Intermediates: x509.NewCertPool()}
			for _, cert := range s.PeerCertificates[1:] {
				o.Intermediates.AddCert(cert)
			}
			_, err := s.PeerCertificates[0].Verify(o)
			return err
		}
	}
	return t, nil
}

// vanished is how soon the kernel gives up a server of which nothing comes.
const vanished = 20 * time.Second

// Dialer refuses addresses in reject_ip_ranges, and its connections end when the
// server has vanished.
func (c *Postgres) Dialer() *net.Dialer { return dialer(c.Reject) }

func dialer(reject Ranges) *net.Dialer {
	return &net.Dialer{KeepAliveConfig: tcp.KeepAlive(vanished), Control: func(_, address string, raw syscall.RawConn) error {
		tcp.Control(raw, vanished)
		// Here, where the name is resolved, so that no answer of DNS slips by.
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %s: %w", address, err)
		}
		if reject.Rejects(at.Addr()) {
			return errs.New(errs.S2203, "address %s is in reject_ip_ranges", at.Addr())
		}
		return nil
	}}
}
