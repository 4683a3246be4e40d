// Package authority makes certificates for services: for trying out, and for
// tests. It is no PKI: its key lies in a file, and it revokes nothing.
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

// skew is how far the clocks of machines may be apart.
const skew = 5 * time.Minute

// Authority is a CA with its key.
type Authority struct {
	// Certificate and Key are PEM.
	Certificate, Key []byte

	parsed *x509.Certificate
	signer crypto.Signer
}

// New makes a CA.
func New(name string, valid time.Duration) (*Authority, error) {
	c := template(name, valid)
	c.IsCA, c.BasicConstraintsValid, c.MaxPathLenZero = true, true, true
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	certificate, key, err := issue(c, nil)
	if err != nil {
		return nil, err
	}
	return Load(certificate, key)
}

// Load takes up a CA that New has made. Certificates after the first are other
// CAs, and ignored.
func Load(certificate, key []byte) (*Authority, error) {
	first, _ := pem.Decode(certificate)
	if first == nil {
		return nil, fmt.Errorf("use the CA: it is not PEM")
	}
	pair, err := tls.X509KeyPair(pem.EncodeToMemory(first), key)
	if err != nil {
		return nil, fmt.Errorf("use the CA: %w", err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("use the CA: it is none")
	}
	return &Authority{Certificate: pem.EncodeToMemory(first), Key: key, parsed: pair.Leaf, signer: signer}, nil
}

// Issue makes a certificate and its key, as PEM. Names are of hosts and addresses;
// the identity is a URI ("" = none).
func (a *Authority) Issue(identity string, names []string, valid time.Duration) (certificate, key []byte, err error) {
	c := template(identity, valid)
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if identity != "" {
		u, err := url.Parse(identity)
		if err != nil {
			return nil, nil, fmt.Errorf("issue a certificate: %w", err)
		}
		c.URIs = []*url.URL{u}
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	return issue(c, a)
}

func template(name string, valid time.Duration) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-skew), NotAfter: now.Add(valid)}
}

// issue makes a certificate that by signs, or that signs itself.
func issue(c *x509.Certificate, by *Authority) (certificate, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, nil, fmt.Errorf("make a serial number: %w", err)
	}
	parent, signer := c, crypto.Signer(k)
	if by != nil {
		parent, signer = by.parsed, by.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, k.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), nil
}
