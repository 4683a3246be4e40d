// Package certificate keeps what the gateway shows its clients over TLS, and
// takes up a new one when its files change.
//
// Invariants:
//
//   - Files that cannot be used, such as a certificate whose key is yet to
//     come, change nothing (TestReload).
//   - D10: no message shows the key (TestReload).
package certificate

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// interval is how often the files are looked at.
const interval = time.Second

// Keeper has the certificate of now.
type Keeper struct {
	from    config.TLS
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]

	// Owned by New, then by Run.
	seen   [2][sha256.Size]byte // of the texts that were looked at last
	failed string               // why they could not be used; "" = they could
}

// New reads the certificate for the first time. Run must run.
func New(from config.TLS, log *slog.Logger) (*Keeper, error) {
	k := &Keeper{from: from, log: log}
	return k, k.read()
}

// read reads the certificate. Without a change it does nothing.
func (k *Keeper) read() error {
	certificate, key, err := k.from.Pair()
	if err != nil {
		return err
	}
	seen := [2][sha256.Size]byte{sha256.Sum256(certificate), sha256.Sum256(key)}
	if seen == k.seen {
		return nil
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return fmt.Errorf("use the certificate: %w", err)
	}
	k.seen = seen
	k.current.Store(&pair)
	k.log.Info("TLS certificate read", "names", pair.Leaf.DNSNames, "not_after", pair.Leaf.NotAfter.UTC())
	if time.Now().After(pair.Leaf.NotAfter) {
		k.log.Warn("the TLS certificate has expired", "not_after", pair.Leaf.NotAfter.UTC())
	}
	return nil
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

// Config is for a server. Connections that stand keep what they began with.
func (k *Keeper) Config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.current.Load(), nil },
	}
}

// Expires is when the certificate of now does.
func (k *Keeper) Expires() time.Time { return k.current.Load().Leaf.NotAfter }
