// Package auth verifies the tokens of clients (spec/06 §5).
//
// Invariants:
//
//   - Only the algorithms of the specification are accepted, never none, and
//     only with a key of their family (TestHostileTokens).
//   - A token that names a key is verified with that key or not at all
//     (TestHostileTokens).
//   - Keys come from the configuration alone: what a token's header offers (jwk,
//     jku, x5u, x5c) is not looked at (TestHostileTokens).
//   - INV-34, D10: a failure has a stable code and never shows key material, a
//     signature or a token (TestHostileTokens).
//   - A token is remembered only with the keys that it was verified with, and
//     until it expires (TestRemembered).
//   - An outage of a key server does not refuse anybody for an hour
//     (TestOutage), and unknown key ids do not make us call it often
//     (TestLimiter).
package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

const (
	// leeway for clocks that differ.
	leeway = 60 * time.Second
	// maxLifetime of a token.
	maxLifetime = 86_400 * time.Second
	// maxSupabaseLifetime is a week and 20 minutes and some.
	maxSupabaseLifetime = 606_000 * time.Second
	// maxToken bounds a token's text.
	maxToken = 16 << 10
	// supabaseAudience of Supabase's tokens.
	supabaseAudience = "authenticated"
)

// Token is a verified token.
type Token struct {
	// UserID is sub as text.
	UserID string
	// Payload has all claims, as they stand in the token.
	Payload json.RawMessage
	Expires time.Time
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	static   []key
	remotes  []*remote
	audience []string
	supabase supabase
	now      func() time.Time
	stop     context.CancelFunc
	cache    cache
}

// New returns a verifier of what client_auth says. Close it.
func New(c config.Auth) (*Verifier, error) {
	ctx, stop := context.WithCancel(context.Background())
	v := &Verifier{audience: c.Audience, supabase: newSupabase(c), now: time.Now, stop: stop}
	var failed []error
	for i, j := range c.Keys {
		k, err := newKey(jwk(j), true)
		if err != nil {
			failed = append(failed, errs.New(errs.S2201, "client_auth.jwks.keys[%d]: %s", i, err.Error()))
			continue
		}
		v.static = append(v.static, k)
	}
	if c.Supabase && c.SupabaseSecret != "" {
		v.static = append(v.static, key{kty: "oct", alg: "HS256", material: []byte(c.SupabaseSecret), supabase: true})
	}
	g := &guard{ranges: c.Reject, no6: c.BlockIPv6}
	add := func(uri string, supabase bool) {
		r, err := newRemote(ctx, uri, g, supabase)
		if err != nil {
			failed = append(failed, err)
			return
		}
		v.remotes = append(v.remotes, r)
	}
	for _, u := range c.JWKSURIs {
		add(u, false)
	}
	if c.SupabaseJWKS != "" {
		add(c.SupabaseJWKS, true)
	}
	if err := errors.Join(failed...); err != nil {
		stop()
		return nil, err
	}
	return v, nil
}

// Close ends what runs in the background.
func (v *Verifier) Close() {
	v.stop()
	for _, r := range v.remotes {
		r.wait()
	}
}

// Fetches says what became of the fetches of key sets.
type Fetches struct {
	Done, Failed uint64
	// Failing is how many key sets could not be fetched at the last attempt.
	Failing int
}

// Fetches sums up those of all key sets.
func (v *Verifier) Fetches() Fetches {
	var sum Fetches
	for _, r := range v.remotes {
		r.mu.Lock()
		sum.Done += r.fetches.Done
		sum.Failed += r.fetches.Failed
		if r.err != nil {
			sum.Failing++
		}
		r.mu.Unlock()
	}
	return sum
}

// Bearer takes the token out of an Authorization header.
func Bearer(header string) (string, error) {
	token, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		token, ok = strings.CutPrefix(header, "Token ")
	}
	if !ok || token == "" || strings.ContainsAny(token, " \t\r\n\v\f") {
		return "", errs.New(errs.S2106, "Authentication required")
	}
	return token, nil
}

func refuse(format string, args ...any) error { return errs.New(errs.S2101, format, args...) }

// header is what is read of a token's header.
type header struct {
	Alg  string          `json:"alg"`
	Kid  *string         `json:"kid"`
	Crit json.RawMessage `json:"crit"`
}

var families = map[string]string{
	"HS256": "oct", "HS384": "oct", "HS512": "oct",
	"RS256": "RSA", "RS384": "RSA", "RS512": "RSA",
	"ES256": "EC", "ES384": "EC", "ES512": "EC",
	"EdDSA": "OKP",
}

// Verify verifies a token. What it returns is shared with other callers and must
// not be changed.
func (v *Verifier) Verify(ctx context.Context, text string) (*Token, error) {
	if len(text) > maxToken {
		return nil, refuse("Token is longer than %d bytes", maxToken)
	}
	// Read before the keys: a refresh between the two makes the entry useless,
	// never wrong.
	keys := v.version()
	if t := v.cache.get(text, keys, v.now()); t != nil {
		return t, nil
	}
	t, err := v.check(ctx, text)
	if err == nil {
		v.cache.put(text, t, keys)
	}
	return t, err
}

// version changes whenever the keys do. Asking for it keeps them fresh.
func (v *Verifier) version() (sum uint64) {
	for _, r := range v.remotes {
		sum += r.version(v.now())
	}
	return sum
}

// check verifies a token that is not known.
func (v *Verifier) check(ctx context.Context, text string) (*Token, error) {
	const malformed = "Token is not a well-formed JWT. Check the token format"
	parts := strings.Split(text, ".")
	// The decoder below would skip line ends.
	if len(parts) != 3 || strings.ContainsAny(text, "\r\n") {
		return nil, refuse(malformed)
	}
	var decoded [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(p)
		if err != nil {
			return nil, refuse(malformed)
		}
		decoded[i] = b
	}
	var h header
	if err := decodeObject(decoded[0], &h); err != nil {
		return nil, refuse(malformed)
	}
	claims := map[string]any{}
	if err := decodeObject(decoded[1], &claims); err != nil {
		return nil, refuse(malformed)
	}
	family, ok := families[h.Alg]
	if !ok {
		return nil, refuse("Unexpected token algorithm %q", clip(h.Alg))
	}
	if h.Crit != nil {
		return nil, refuse("Token has critical header parameters, which are not supported")
	}
	k, err := v.verify(ctx, h, family, text[:len(parts[0])+1+len(parts[1])], decoded[2])
	if err != nil {
		return nil, v.supabase.explain(err, h.Alg, claims["iss"])
	}
	t, err := v.claims(k, claims)
	if err != nil {
		return nil, err
	}
	t.Payload = decoded[1]
	return t, nil
}

// decodeObject decodes one JSON object and nothing after it.
func decodeObject(b []byte, into any) error {
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return errors.New("no object")
	}
	if depth(b) > maxDepth {
		return errors.New("nested too deep")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

// maxDepth of a token's JSON.
const maxDepth = 32

func depth(b []byte) int {
	most, now, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			most = max(most, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return most
}

// clip shortens what a client sent for a message.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// verify finds the key and checks the signature (spec/06 §5.2).
func (v *Verifier) verify(ctx context.Context, h header, family, signed string, signature []byte) (*key, error) {
	keys := slices.Clone(v.static)
	var failed error
	for _, r := range v.remotes {
		ks, err := r.keys(ctx, v.now())
		if err != nil && failed == nil {
			failed = err
		}
		keys = append(keys, ks...)
	}
	method := jwt.GetSigningMethod(h.Alg)
	if h.Kid != nil && *h.Kid != "" {
		for i := range keys {
			k := &keys[i]
			if k.kid != *h.Kid {
				continue
			}
			if !k.fits(h.Alg, family) {
				return nil, refuse("Unexpected token algorithm %s for key %q", h.Alg, clip(*h.Kid))
			}
			if method.Verify(signed, signature, k.material) != nil {
				return nil, refuse("Signature verification failed with key %q", clip(*h.Kid))
			}
			return k, nil
		}
	}
	tried := 0
	for i := range keys {
		k := &keys[i]
		if k.kid != "" || !k.fits(h.Alg, family) {
			continue
		}
		tried++
		if method.Verify(signed, signature, k.material) == nil {
			return k, nil
		}
	}
	if failed != nil {
		return nil, failed
	}
	for _, r := range v.remotes {
		r.refresh(v.now())
	}
	switch {
	case len(keys) == 0 && len(v.remotes) == 0:
		return nil, refuse("No keys are configured: set client_auth")
	case tried > 0:
		return nil, refuse("Signature verification failed")
	case h.Kid != nil:
		return nil, refuse("Could not find an appropriate key in the keystore. The key is missing or no key matched the token key id %q", clip(*h.Kid))
	}
	return nil, refuse("Could not find an appropriate key in the keystore. The token has no key id, and no key without one fits")
}

// claims checks the claims of a token; its payload is left to set.
func (v *Verifier) claims(k *key, claims map[string]any) (*Token, error) {
	for _, name := range []string{"sub", "iat", "exp"} {
		if _, ok := claims[name]; !ok {
			return nil, refuse("JWT payload is missing a required claim %q", name)
		}
	}
	exp, err := seconds(claims["exp"])
	if err != nil {
		return nil, refuse("JWT claim \"exp\" is not a time")
	}
	iat, err := seconds(claims["iat"])
	if err != nil {
		return nil, refuse("JWT claim \"iat\" is not a time")
	}
	now := float64(v.now().UnixMilli()) / 1000
	if now >= exp+leeway.Seconds() {
		return nil, errs.New(errs.S2103, "JWT has expired")
	}
	if raw, ok := claims["nbf"]; ok {
		nbf, err := seconds(raw)
		if err != nil || nbf > now+leeway.Seconds() {
			return nil, refuse("JWT claim \"nbf\" is not in the past")
		}
	}
	allowed, lifetime := v.audience, maxLifetime
	if k.supabase {
		allowed, lifetime = []string{supabaseAudience}, maxSupabaseLifetime
	}
	if err := audience(claims["aud"], allowed); err != nil {
		return nil, err
	}
	if exp-iat > lifetime.Seconds() {
		return nil, errs.New(errs.S2104, "Token must expire in a maximum of %d minutes, got %d minutes",
			int(lifetime.Minutes()), int((exp-iat)/60))
	}
	if p, ok := claims["parameters"]; ok {
		if _, ok := p.(map[string]any); !ok {
			return nil, refuse("Payload parameters must be an object")
		}
	}
	user, err := userID(claims["sub"])
	if err != nil {
		return nil, err
	}
	whole, fraction := math.Modf(exp)
	return &Token{UserID: user, Expires: time.Unix(int64(whole), int64(fraction*1e9))}, nil
}

// maxTime is beyond any time in milliseconds, the usual mistake, which then is
// a lifetime that is too long.
const maxTime = 1e15

func seconds(claim any) (float64, error) {
	n, ok := claim.(json.Number)
	if !ok {
		return 0, errors.New("not a number")
	}
	f, err := strconv.ParseFloat(n.String(), 64)
	if err != nil || f < 0 || f > maxTime {
		return 0, errors.New("out of range")
	}
	return f, nil
}

func audience(claim any, allowed []string) error {
	var values []string
	switch a := claim.(type) {
	case nil:
		return errs.New(errs.S2105, "JWT payload is missing a required claim \"aud\"")
	case string:
		values = []string{a}
	case []any:
		for _, x := range a {
			if s, ok := x.(string); ok {
				values = append(values, s)
			}
		}
	}
	for _, x := range values {
		if slices.Contains(allowed, x) {
			return nil
		}
	}
	shown, err := json.Marshal(claim)
	if err != nil {
		return errs.New(errs.S2105, "Unexpected \"aud\" claim value")
	}
	return errs.New(errs.S2105, "Unexpected \"aud\" claim value: %s", clip(string(shown)))
}

func userID(sub any) (string, error) {
	switch s := sub.(type) {
	case string:
		return s, nil
	case json.Number:
		return s.String(), nil
	case nil:
		return "null", nil
	case bool:
		return strconv.FormatBool(s), nil
	}
	return "", refuse("JWT claim \"sub\" must be text or a number")
}
