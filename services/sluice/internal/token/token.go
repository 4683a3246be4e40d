// Package token mints development tokens from the key of a service config.
package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// Request says what the token is for.
type Request struct {
	User     string
	TTL      time.Duration
	Now      time.Time
	Audience string            // "" = the config's first
	Claims   map[string]string // a value that is JSON is that value, else text
}

// ErrNoKey is a config without a key that can sign.
var ErrNoKey = errors.New("the config has no symmetric key: add one to client_auth.jwks.keys, as {kty: oct, alg: HS256, kid: dev, k: <base64url>}")

// Mint returns a signed JWT that an instance with this config accepts.
func Mint(a config.Auth, r Request) (string, error) {
	secret, header, err := key(a)
	if err != nil {
		return "", err
	}
	claims := map[string]any{"sub": r.User, "iat": r.Now.Unix(), "exp": r.Now.Add(r.TTL).Unix()}
	switch {
	case r.Audience != "":
		claims["aud"] = r.Audience
	case len(a.Audience) > 0:
		claims["aud"] = a.Audience[0]
	case header["kid"] == nil && a.Supabase:
		claims["aud"] = "authenticated"
	default:
		return "", errors.New("client_auth.audience is empty, so that no token is accepted: add one")
	}
	for k, v := range r.Claims {
		var x any
		d := json.NewDecoder(strings.NewReader(v))
		d.UseNumber() // an integer beyond 2^53 stays what it is
		if err := d.Decode(&x); err != nil || d.More() {
			x = v
		}
		claims[k] = x
	}
	sign, ok := hashes[header["alg"].(string)]
	if !ok {
		return "", fmt.Errorf("cannot sign with %s", header["alg"])
	}
	var parts []string
	for _, m := range []map[string]any{header, claims} {
		b, err := json.Marshal(m)
		if err != nil {
			return "", fmt.Errorf("encode the token: %w", err)
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(b))
	}
	text := strings.Join(parts, ".")
	mac := hmac.New(sign, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

var hashes = map[string]func() hash.Hash{"HS256": sha256.New, "HS384": sha512.New384, "HS512": sha512.New}

// key returns the first key that can sign and the header that names it.
func key(a config.Auth) (secret []byte, header map[string]any, err error) {
	for _, k := range a.Keys {
		if k.Kty != "oct" {
			continue
		}
		secret, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(k.K, "="))
		if err != nil {
			return nil, nil, fmt.Errorf("key %q of the config is not base64url", k.Kid)
		}
		header := map[string]any{"typ": "JWT", "alg": k.Alg}
		if k.Kid != "" {
			header["kid"] = k.Kid
		}
		return secret, header, nil
	}
	if a.Supabase && a.SupabaseSecret != "" {
		return []byte(a.SupabaseSecret), map[string]any{"typ": "JWT", "alg": "HS256"}, nil
	}
	return nil, nil, ErrNoKey
}
