package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bufio"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// Config says how to reach a Postgres database: the keys of spec/06 §2.2. A
// single key wins over the same part of URI.
type Config struct {
	// URI is postgresql://user:password@host:port/database?connect_timeout=10.
	// Its other parameters have no effect.
	URI      string
	Hostname string
	Port     int // 0 = 5432
	Username string
	Password string
	Database string
	// SSLMode is verify-full (also ""), verify-ca or disable.
	SSLMode           string
	CACert            string // PEM; required by verify-ca, else the system's
	ClientCertificate string // PEM, with ClientPrivateKey
	ClientPrivateKey  string
	TLSServerName     string // instead of Hostname
	// RejectIPRanges are CIDR ranges not to connect to; "local" is everything
	// that is not a public unicast address.
	RejectIPRanges []string
	SlotNamePrefix string // "" = powersync_
	MaxPoolSize    int    // 0 = 8
	// ConnectTimeout bounds one attempt to connect; 0 = 30 s.
	ConnectTimeout time.Duration
	// Publication is the name of the publication; "" = powersync.
	Publication string
}

// Resolve merges URI into the single keys, sets defaults, and returns every
// problem at once.
func (c Config) Resolve() (Config, error) {
	var problems []error
	if c.URI != "" {
		u, err := url.Parse(c.URI)
		switch {
		case err != nil:
			// The error of url.Parse quotes the URI, password and all (D10).
			problems = append(problems, errs.New(errs.S1109, "uri: cannot be parsed"))
		case u.Scheme != "postgresql" && u.Scheme != "postgres":
			problems = append(problems, errs.New(errs.S1109, "uri: the scheme is %q, not postgresql", u.Scheme))
		default:
			c.Hostname = first(c.Hostname, u.Hostname())
			c.Username = first(c.Username, u.User.Username())
			if password, ok := u.User.Password(); ok {
				c.Password = first(c.Password, password)
			}
			c.Database = first(c.Database, strings.TrimPrefix(u.Path, "/"))
			if port := u.Port(); c.Port == 0 && port != "" {
				if c.Port, err = strconv.Atoi(port); err != nil {
					problems = append(problems, errs.New(errs.S1110, "uri: port %q is not a number", port))
				}
			}
			if s := u.Query().Get("connect_timeout"); s != "" && c.ConnectTimeout == 0 {
				seconds, err := strconv.ParseFloat(s, 64)
				if err != nil || seconds < 0 {
					problems = append(problems, errs.New(errs.S1109, "uri: connect_timeout %q is not a number of seconds", s))
				}
				c.ConnectTimeout = time.Duration(seconds * float64(time.Second))
			}
		}
	}
	need := func(value string, code errs.Code, key string) {
		if value == "" {
			problems = append(problems, errs.New(code, "%s is missing: give it on its own or in uri", key))
		}
	}
	need(c.Database, errs.S1105, "database")
	need(c.Hostname, errs.S1106, "hostname")
	need(c.Username, errs.S1107, "username")
	need(c.Password, errs.S1108, "password")
	if c.Port == 0 {
		c.Port = 5432
	}
	if c.Port < 1024 || c.Port > 65535 {
		problems = append(problems, errs.New(errs.S1110, "port %d is outside 1024-65535", c.Port))
	}
	c.SSLMode = first(c.SSLMode, "verify-full")
	switch c.SSLMode {
	case "verify-full", "disable":
	case "verify-ca":
		if c.CACert == "" {
			problems = append(problems, errs.New(errs.S1104, "sslmode verify-ca needs cacert"))
		}
	default:
		problems = append(problems, errs.New(errs.S1109, "sslmode %q is none of verify-full, verify-ca, disable", c.SSLMode))
	}
	if _, err := c.tls(); err != nil {
		problems = append(problems, err)
	}
	reject, err := parseRanges(c.RejectIPRanges)
	if err != nil {
		problems = append(problems, err)
	}
	if ip, err := netip.ParseAddr(c.Hostname); err == nil {
		if err := reject.check(ip); err != nil {
			problems = append(problems, err)
		}
	}
	c.SlotNamePrefix = first(c.SlotNamePrefix, "powersync_")
	c.Publication = first(c.Publication, "powersync")
	if c.MaxPoolSize <= 0 {
		c.MaxPoolSize = 8
	}
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = 30 * time.Second
	}
	return c, errors.Join(problems...)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// Redacted is the URI without credentials.
func (c Config) Redacted() string {
	return (&url.URL{Scheme: "postgresql", Host: net.JoinHostPort(c.Hostname, strconv.Itoa(c.Port)), Path: "/" + c.Database}).String()
}

func (c Config) tls() (*tls.Config, error) {
	if c.SSLMode == "disable" {
		return nil, nil
	}
	t := &tls.Config{ServerName: first(c.TLSServerName, c.Hostname), MinVersion: tls.VersionTLS12}
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
func (c Config) connConfig() (*pgx.ConnConfig, error) {
	// Host and sslmode are given so that nothing is taken from PG* variables.
	p, err := pgx.ParseConfig((&url.URL{Scheme: "postgres", Host: net.JoinHostPort(c.Hostname, strconv.Itoa(c.Port)),
		User: url.UserPassword(c.Username, c.Password), Path: "/" + c.Database, RawQuery: "sslmode=disable"}).String())
	if err != nil {
		return nil, errs.New(errs.S1109, "connection options cannot be used") // err may quote them
	}
	if p.TLSConfig, err = c.tls(); err != nil {
		return nil, err
	}
	reject, err := parseRanges(c.RejectIPRanges)
	if err != nil {
		return nil, err
	}
	p.Fallbacks = nil
	p.ConnectTimeout = c.ConnectTimeout
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
	dialer := &net.Dialer{KeepAlive: 15 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		// Here, where the name is resolved, so that no answer of DNS slips by.
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %s: %w", address, err)
		}
		return reject.check(at.Addr())
	}}
	p.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, address)
	}
	p.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, readBuffer), w)
	}
	return p, nil
}

// ranges are addresses that must not be connected to.
type ranges struct {
	prefixes []netip.Prefix
	local    bool
}

func parseRanges(texts []string) (ranges, error) {
	var r ranges
	for _, s := range texts {
		if s == "local" {
			r.local = true
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return r, errs.New(errs.S1109, "reject_ip_ranges: %q is neither a CIDR range nor local", s)
		}
		r.prefixes = append(r.prefixes, p.Masked())
	}
	return r, nil
}

// shared are ranges besides those that netip names that are not public.
var shared = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("100::/64"),
}

func (r ranges) check(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	rejected := r.local && (!ip.IsGlobalUnicast() || ip.IsPrivate())
	if r.local {
		for _, p := range shared {
			rejected = rejected || p.Contains(ip)
		}
	}
	for _, p := range r.prefixes {
		rejected = rejected || p.Contains(ip)
	}
	if rejected {
		return errs.New(errs.S2203, "address %s is in reject_ip_ranges", ip)
	}
	return nil
}
