// Package certificate keeps what a process shows others over TLS and whom it
// trusts, and takes up new ones when their files change. Between services the
// certificate also says which service it is of: its role.
//
// Invariants:
//
//   - Files that cannot be used, such as a certificate whose key is yet to
//     come, change nothing (TestReload).
//   - Between services both ends show a certificate of a CA that the other
//     trusts at that moment, the server's has the name that was dialled, and
//     neither passes for another role (TestMutual, TestRotation).
//   - D10: no message shows the key (TestReload, TestUnusable).
package certificate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// interval is how often the files are looked at.
const interval = time.Second

// Keeper has the certificate of now.
type Keeper struct {
	from       config.Mutual
	role       Role   // of a service; "" = for clients, who show nothing
	identities string // before the role in a URI
	log        *slog.Logger
	current    atomic.Pointer[shown]

	// Owned by New or ForService, then by Run.
	seen   [3][sha256.Size]byte // of the texts that were looked at last
	failed string               // why they could not be used; "" = they could
}

// shown is what new connections begin with.
type shown struct {
	pair  tls.Certificate
	roots *x509.CertPool // nil = clients show nothing
}

// New reads, for the first time, the certificate that clients are shown. Run must
// run.
func New(from config.TLS, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{from: config.Mutual{TLS: from}, log: log}
	return k, k.read()
}

// ForService reads, for the first time, what the service of a role shows the
// others. Run must run. It returns nil if there is no TLS between services.
func ForService(from config.ServicesTLS, role Role, log *slog.Logger) (*Keeper, error) {
	if !from.On() {
		return nil, nil
	}
	k := &Keeper{from: from.Of(string(role)), role: role, identities: from.Identities, log: log}
	switch {
	case k.from.CA == config.PEM{}:
		return nil, errs.New(errs.S9010, "sluice.tls cannot be used by %s: there is no ca", role)
	case !k.from.On():
		return nil, errs.New(errs.S9010, "sluice.tls cannot be used by %s: there is no certificate", role)
	}
	if err := k.read(); err != nil {
		return nil, errs.New(errs.S9010, "sluice.tls cannot be used by %s: %v", role, err)
	}
	return k, nil
}

// read reads the files. Without a change it does nothing.
func (k *Keeper) read() error {
	certificate, key, err := k.from.Pair()
	if err != nil {
		return err
	}
	var ca []byte
	if k.role != "" {
		if ca, err = k.from.CA.Read(); err != nil {
			return fmt.Errorf("read the CA: %w", err)
		}
	}
	seen := [3][sha256.Size]byte{sha256.Sum256(certificate), sha256.Sum256(key), sha256.Sum256(ca)}
	if seen == k.seen {
		return nil
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("use the certificate: %w", err)
	}
	s := &shown{pair: pair}
	now, attrs := time.Now(), []any{"names", pair.Leaf.DNSNames, "not_after", pair.Leaf.NotAfter.UTC()}
	expired := now.After(pair.Leaf.NotAfter)
	if k.role != "" {
		if s.roots, err = k.trust(pair, ca, now); err != nil {
			return err
		}
		attrs = append(attrs, "role", k.role)
	}
	k.seen = seen
	k.current.Store(s)
	k.log.Info("TLS certificate read", attrs...)
	if expired {
		k.log.Warn("the TLS certificate has expired", "not_after", pair.Leaf.NotAfter.UTC())
	}
	return nil
}

// trust returns the CAs of a service, or why no other service could accept pair.
func (k *Keeper) trust(pair tls.Certificate, ca []byte, now time.Time) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("there is no certificate in the CA")
	}
	switch c := pair.Leaf; {
	case now.After(c.NotAfter):
		return nil, fmt.Errorf("the certificate has expired at %s", c.NotAfter.UTC())
	case now.Before(c.NotBefore):
		return nil, fmt.Errorf("the certificate is not valid before %s", c.NotBefore.UTC())
	case roleOf(k.identities, c) != k.role:
		return nil, fmt.Errorf("the certificate is not of role %s: its only URI must be %s", k.role, Identity(k.identities, k.role))
	}
	chain := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			chain.AddCert(c)
		}
	}
	usage := x509.ExtKeyUsageClientAuth
	if k.role == NATS {
		usage = x509.ExtKeyUsageServerAuth
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: chain, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		// The others may have another CA; with this one they refuse it.
		k.log.Warn("services that trust the same CA will refuse the TLS certificate", "error", err)
	}
	return roots, nil
}

// Run looks at the files until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		failed := ""
		if err := k.read(); err != nil {
			failed = err.Error()
		}
		if failed != "" && failed != k.failed {
			k.log.Warn("the new TLS certificate cannot be used; the old one serves on", "error", failed)
		}
		k.failed = failed
	}
}

// Config is for a server whose clients show nothing. Connections that stand keep
// what they began with.
func (k *Keeper) Config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &k.current.Load().pair, nil },
	}
}

// Server is for what other services connect to: each shows a certificate. A
// connection begins with what is there then.
func (k *Keeper) Server() *tls.Config {
	c := k.server()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.server(), nil }
	return c
}

func (k *Keeper) server() *tls.Config {
	now := k.current.Load()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{now.pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: now.roots,
		NextProtos: []string{"h2"}, // gRPC's; NATS asks for none
		// A ticket would outlive the CA that it was given under.
		SessionTicketsDisabled: true,
	}
}

// Client is for one connection to a service of a role; whoever connects adds the
// server's name. NATS may be a server that is none of ours: its certificate may be
// of no role.
func (k *Keeper) Client(server Role) *tls.Config {
	now := k.current.Load()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{now.pair}, RootCAs: now.roots,
		VerifyConnection: func(s tls.ConnectionState) error {
			role := k.RoleOf(s)
			if role == server || role == "" && server == NATS {
				return nil
			}
			return fmt.Errorf("this is not %s: the certificate is of role %s", server, cmp.Or(role, "none"))
		},
	}
}

// Pair and Roots are Client's parts of now, for a library that makes each
// connection's configuration itself.
func (k *Keeper) Pair() (tls.Certificate, error) { return k.current.Load().pair, nil }
func (k *Keeper) Roots() (*x509.CertPool, error) { return k.current.Load().roots, nil }

// RoleOf is the role of the other end; "" = none.
func (k *Keeper) RoleOf(s tls.ConnectionState) Role {
	if len(s.PeerCertificates) == 0 {
		return ""
	}
	return roleOf(k.identities, s.PeerCertificates[0])
}

// Role is the process's own.
func (k *Keeper) Role() Role { return k.role }

// Identities is what stands before the role in a certificate's URI.
func (k *Keeper) Identities() string { return k.identities }

// Expires is when the certificate of now does.
func (k *Keeper) Expires() time.Time { return k.current.Load().pair.Leaf.NotAfter }

// Starts is from when the certificate that is shown now is valid.
func (k *Keeper) Starts() time.Time { return k.current.Load().pair.Leaf.NotBefore }
