package postgres

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/tcp"
)

// publication is the one that spec/04 §2 asks for.
const publication = "powersync"

const (
	// connectTimeout bounds an attempt to connect unless the config does.
	connectTimeout = 10 * time.Second
	// vanished is how soon the kernel gives up a server of which nothing comes.
	vanished = 20 * time.Second
	// catalogTime bounds what asks the catalog, on a connection that may be dead
	// though the kernel does not know.
	catalogTime = 25 * time.Second
)

// Redacted is the URI of a connection without credentials.
func Redacted(c *config.Postgres) string {
	return (&url.URL{Scheme: "postgresql", Host: net.JoinHostPort(c.Hostname, strconv.Itoa(c.Port)), Path: "/" + c.Database}).String()
}

func tlsConfig(c *config.Postgres) (*tls.Config, error) {
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

// readBuffer is how much is read from a connection at once. Copies and logs
// come as many small messages.
const readBuffer = 128 << 10

// connConfig is the driver's config. Values are asked for in the text form that
// converter knows, whatever the server's or role's defaults are.
func connConfig(c *config.Postgres) (*pgx.ConnConfig, error) {
	// Host and sslmode are given so that nothing is taken from PG* variables.
	p, err := pgx.ParseConfig((&url.URL{Scheme: "postgres", Host: net.JoinHostPort(c.Hostname, strconv.Itoa(c.Port)),
		User: url.UserPassword(c.Username, c.Password), Path: "/" + c.Database, RawQuery: "sslmode=disable"}).String())
	if err != nil {
		return nil, errs.New(errs.S1109, "connection options cannot be used") // err may quote them
	}
	if p.TLSConfig, err = tlsConfig(c); err != nil {
		return nil, err
	}
	p.Fallbacks = nil
	if p.ConnectTimeout = c.ConnectTimeout; p.ConnectTimeout == 0 {
		p.ConnectTimeout = connectTimeout
	}
	p.DefaultQueryExecMode = pgx.QueryExecModeExec
	p.RuntimeParams = map[string]string{
		"application_name":   "sluice",
		"client_encoding":    "UTF8",
		"DateStyle":          "ISO",
		"IntervalStyle":      "postgres",
		"TimeZone":           "UTC",
		"bytea_output":       "hex",
		"extra_float_digits": "1",
	}
	dialer := &net.Dialer{KeepAliveConfig: tcp.KeepAlive(vanished), Control: func(_, address string, raw syscall.RawConn) error {
		tcp.Control(raw, vanished)
		// Here, where the name is resolved, so that no answer of DNS slips by.
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %s: %w", address, err)
		}
		if c.Reject.Rejects(at.Addr()) {
			return errs.New(errs.S2203, "address %s is in reject_ip_ranges", at.Addr())
		}
		return nil
	}}
	p.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, address)
	}
	p.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, readBuffer), w)
	}
	return p, nil
}
