package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// key is a public key or a shared secret.
type key struct {
	kid      string // "" = wildcard
	kty      string
	alg      string // "" = any of the family that the curve allows
	material any    // what golang-jwt verifies with; nil = nothing can be
	supabase bool
}

// fits reports whether a token's algorithm may be verified with k.
func (k *key) fits(alg, family string) bool {
	if k.material == nil || k.kty != family {
		return false
	}
	return k.alg == "" || k.alg == alg
}

// jwk is a JSON web key.
type jwk config.Key

// remoteKey is a jwk as key servers write it.
type remoteKey struct {
	Kty    string   `json:"kty"`
	Kid    string   `json:"kid"`
	Alg    string   `json:"alg"`
	Use    string   `json:"use"`
	KeyOps []string `json:"key_ops"`
	N      string   `json:"n"`
	E      string   `json:"e"`
	K      string   `json:"k"`
	Crv    string   `json:"crv"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
}

var errNotForUs = errors.New("not a key for verifying tokens")

var curves = map[string]struct {
	curve elliptic.Curve
	alg   string
}{
	"P-256": {elliptic.P256(), "ES256"},
	"P-384": {elliptic.P384(), "ES384"},
	"P-521": {elliptic.P521(), "ES512"},
}

const (
	minRSABits = 1024
	maxRSABits = 16384
)

// newKey makes a key of a JWK; of symmetric ones only if allowed. Errors name
// the fault and never the key.
func newKey(j jwk, symmetric bool) (key, error) {
	if j.Use != "" && j.Use != "sig" || len(j.KeyOps) > 0 && !slices.Contains(j.KeyOps, "verify") {
		return key{}, errNotForUs
	}
	k := key{kid: j.Kid, kty: j.Kty, alg: j.Alg}
	if j.Alg != "" && families[j.Alg] != j.Kty {
		return key{}, fmt.Errorf("alg %q does not go with kty %q", j.Alg, j.Kty)
	}
	switch j.Kty {
	case "RSA":
		n, err1 := number(j.N)
		e, err2 := number(j.E)
		if err1 != nil || err2 != nil {
			return key{}, errors.New("n and e must be base64url")
		}
		if n.BitLen() < minRSABits || n.BitLen() > maxRSABits || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 {
			return key{}, errors.New("not a usable RSA key")
		}
		k.material = &rsa.PublicKey{N: n, E: int(e.Int64())}
	case "EC":
		c, ok := curves[j.Crv]
		if !ok {
			return key{}, fmt.Errorf("unknown curve %q", j.Crv)
		}
		if k.alg == "" {
			k.alg = c.alg
		}
		if k.alg != c.alg {
			return key{}, fmt.Errorf("alg %q does not go with curve %q", j.Alg, j.Crv)
		}
		x, err1 := number(j.X)
		y, err2 := number(j.Y)
		size := (c.curve.Params().BitSize + 7) / 8
		if err1 != nil || err2 != nil || len(x.Bytes()) > size || len(y.Bytes()) > size {
			return key{}, errors.New("x and y must be base64url numbers of the curve's size")
		}
		point := make([]byte, 1+2*size)
		point[0] = 4
		x.FillBytes(point[1 : 1+size])
		y.FillBytes(point[1+size:])
		p, err := ecdsa.ParseUncompressedPublicKey(c.curve, point)
		if err != nil {
			return key{}, errors.New("not a point of the curve")
		}
		k.material = p
	case "OKP":
		x, err := decode(j.X)
		switch {
		case err != nil:
			return key{}, errors.New("x must be base64url")
		case j.Crv == "Ed25519" && len(x) == ed25519.PublicKeySize:
			k.material = ed25519.PublicKey(x)
		case j.Crv == "Ed25519":
			return key{}, errors.New("x has the wrong length")
		case j.Crv != "Ed448":
			return key{}, fmt.Errorf("unknown curve %q", j.Crv)
		}
		// Ed448 is allowed in a configuration; no token can be verified with it.
	case "oct":
		if !symmetric {
			return key{}, errNotForUs
		}
		if families[j.Alg] != "oct" {
			return key{}, errors.New("alg must be HS256, HS384 or HS512")
		}
		secret, err := decode(j.K)
		if err != nil || len(secret) == 0 {
			return key{}, errors.New("k must be base64url")
		}
		k.material = secret
	default:
		return key{}, fmt.Errorf("unknown kty %q", j.Kty)
	}
	return k, nil
}

// decode reads base64url, with or without padding.
func decode(s string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
}

func number(s string) (*big.Int, error) {
	b, err := decode(s)
	if err != nil || len(b) == 0 {
		return nil, errors.New("not a number")
	}
	return new(big.Int).SetBytes(b), nil
}
