package stream

import (
	"github.com/nats-io/nats.go"

	"github.com/sluicesync/sluice/libs/kit/certificate"
)

// secured begins each connection with the certificate and the CAs of then.
func secured(k *certificate.Keeper) nats.Option {
	return func(o *nats.Options) error {
		// Only the certificate and the CAs of Client change with time.
		o.Secure, o.TLSConfig = true, k.Client(certificate.NATS)
		o.TLSCertCB = k.Pair
		o.RootCAsCB = k.Roots
		return nil
	}
}
