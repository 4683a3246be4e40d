package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// ring are private keys of every kind, and the public ones as configured.
type ring struct {
	secret []byte
	wild   []byte // a secret without kid
	rsa    *rsa.PrivateKey
	ec     map[string]*ecdsa.PrivateKey
	ed     ed25519.PrivateKey
	keys   []config.Key
}

func rsaKey(kid string, k *rsa.PublicKey) config.Key {
	return config.Key{Kty: "RSA", Kid: kid, N: b64(k.N.Bytes()), E: b64(big.NewInt(int64(k.E)).Bytes())}
}

func ecKey(kid, crv string, k *ecdsa.PublicKey) config.Key {
	p := must(k.Bytes())
	n := (len(p) - 1) / 2
	return config.Key{Kty: "EC", Kid: kid, Crv: crv, X: b64(p[1 : 1+n]), Y: b64(p[1+n:])}
}

var keys = func() *ring {
	r := &ring{
		secret: []byte("secret number one, long enough"), wild: []byte("secret number two, long enough"),
		rsa: must(rsa.GenerateKey(rand.Reader, 2048)), ec: map[string]*ecdsa.PrivateKey{},
	}
	_, r.ed, _ = ed25519.GenerateKey(rand.Reader)
	r.keys = []config.Key{
		{Kty: "oct", Kid: "hs", Alg: "HS256", K: b64(r.secret)},
		{Kty: "oct", Kid: "hs384", Alg: "HS384", K: b64(r.secret)},
		{Kty: "oct", Kid: "hs512", Alg: "HS512", K: b64(r.secret)},
		{Kty: "oct", Alg: "HS256", K: b64(r.wild)},
		rsaKey("rsa", &r.rsa.PublicKey),
		{Kty: "OKP", Kid: "ed", Crv: "Ed25519", Alg: "EdDSA", X: b64(r.ed.Public().(ed25519.PublicKey))},
		{Kty: "OKP", Kid: "ed448", Crv: "Ed448", Alg: "EdDSA", X: b64(make([]byte, 57))},
	}
	rs256 := rsaKey("rs256", &r.rsa.PublicKey)
	rs256.Alg = "RS256"
	r.keys = append(r.keys, rs256)
	for crv, c := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		r.ec[crv] = must(ecdsa.GenerateKey(c, rand.Reader))
		r.keys = append(r.keys, ecKey(crv, crv, &r.ec[crv].PublicKey))
	}
	return r
}()

var now = time.Now()

type m = map[string]any

// claims are good ones, changed: nil removes a claim.
func claims(change m) m {
	c := m{"sub": "u1", "aud": "sluice", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	maps.Copy(c, change)
	for k, v := range c {
		if v == nil {
			delete(c, k)
		}
	}
	return c
}

// sign makes a token with any header.
func sign(header, payload m, key any) string {
	return signText(string(must(json.Marshal(header))), string(must(json.Marshal(payload))), fmt.Sprint(header["alg"]), key)
}

func signText(header, payload, alg string, key any) string {
	text := b64([]byte(header)) + "." + b64([]byte(payload))
	method := jwt.GetSigningMethod(alg)
	if method == nil {
		method = jwt.SigningMethodHS256
		if _, ok := key.([]byte); !ok {
			key = keys.secret
		}
	}
	return text + "." + b64(must(method.Sign(text, key)))
}

func hs(change m) string { return sign(m{"alg": "HS256", "kid": "hs"}, claims(change), keys.secret) }

func verifier(t testing.TB, change func(*config.Auth)) *Verifier {
	t.Helper()
	c := config.Auth{Audience: []string{"sluice", "other"}, Keys: keys.keys}
	if change != nil {
		change(&c)
	}
	v, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func TestAccepted(t *testing.T) {
	v := verifier(t, nil)
	for name, x := range map[string]struct {
		token string
		user  string
	}{
		"HS256":               {hs(nil), "u1"},
		"HS384":               {sign(m{"alg": "HS384", "kid": "hs384"}, claims(nil), keys.secret), "u1"},
		"HS512":               {sign(m{"alg": "HS512", "kid": "hs512"}, claims(nil), keys.secret), "u1"},
		"wildcard, no kid":    {sign(m{"alg": "HS256"}, claims(nil), keys.wild), "u1"},
		"wildcard, other kid": {sign(m{"alg": "HS256", "kid": "unknown"}, claims(nil), keys.wild), "u1"},
		"wildcard, empty kid": {sign(m{"alg": "HS256", "kid": ""}, claims(nil), keys.wild), "u1"},
		"RS256":               {sign(m{"alg": "RS256", "kid": "rsa"}, claims(nil), keys.rsa), "u1"},
		"RS384":               {sign(m{"alg": "RS384", "kid": "rsa"}, claims(nil), keys.rsa), "u1"},
		"RS512":               {sign(m{"alg": "RS512", "kid": "rsa"}, claims(nil), keys.rsa), "u1"},
		"RS256 of its alg":    {sign(m{"alg": "RS256", "kid": "rs256"}, claims(nil), keys.rsa), "u1"},
		"ES256":               {sign(m{"alg": "ES256", "kid": "P-256"}, claims(nil), keys.ec["P-256"]), "u1"},
		"ES384":               {sign(m{"alg": "ES384", "kid": "P-384"}, claims(nil), keys.ec["P-384"]), "u1"},
		"ES512":               {sign(m{"alg": "ES512", "kid": "P-521"}, claims(nil), keys.ec["P-521"]), "u1"},
		"EdDSA":               {sign(m{"alg": "EdDSA", "kid": "ed"}, claims(nil), keys.ed), "u1"},
		"typ":                 {sign(m{"alg": "HS256", "kid": "hs", "typ": "JWT"}, claims(nil), keys.secret), "u1"},
		"number as sub":       {hs(m{"sub": 42}), "42"},
		"big number as sub":   {hs(m{"sub": json.Number("12345678901234567890123")}), "12345678901234567890123"},
		"empty sub":           {hs(m{"sub": ""}), ""},
		"null sub":            {signText(`{"alg":"HS256","kid":"hs"}`, fmt.Sprintf(`{"sub":null,"aud":"sluice","iat":%d,"exp":%d}`, now.Unix(), now.Unix()+60), "HS256", keys.secret), "null"},
		"aud list":            {hs(m{"aud": []any{"x", "other"}}), "u1"},
		"aud list, mixed":     {hs(m{"aud": []any{1, "sluice"}}), "u1"},
		"expired within 60 s": {hs(m{"exp": now.Add(-50 * time.Second).Unix()}), "u1"},
		"nbf within 60 s":     {hs(m{"nbf": now.Add(50 * time.Second).Unix()}), "u1"},
		"nbf":                 {hs(m{"nbf": now.Add(-time.Hour).Unix()}), "u1"},
		"fractional times":    {hs(m{"iat": float64(now.UnixMilli()) / 1000, "exp": float64(now.UnixMilli())/1000 + 60.5}), "u1"},
		"exponent":            {signText(`{"alg":"HS256","kid":"hs"}`, fmt.Sprintf(`{"sub":"u1","aud":"sluice","iat":%d,"exp":%de0}`, now.Unix(), now.Unix()+60), "HS256", keys.secret), "u1"},
		"exactly a day":       {hs(m{"exp": now.Unix() + 86400}), "u1"},
		"iat in the future":   {hs(m{"iat": now.Add(time.Hour).Unix()}), "u1"},
		"parameters":          {hs(m{"parameters": m{"a": []any{1}}}), "u1"},
		"foreign header jwk":  {sign(m{"alg": "HS256", "kid": "hs", "jwk": m{"kty": "oct", "k": "AAAA"}}, claims(nil), keys.secret), "u1"},
		"foreign header jku":  {sign(m{"alg": "HS256", "kid": "hs", "jku": "http://169.254.169.254/"}, claims(nil), keys.secret), "u1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), x.token)
			if err != nil {
				t.Fatal(err)
			}
			if got.UserID != x.user {
				t.Errorf("user %q, want %q", got.UserID, x.user)
			}
			if d := time.Until(got.Expires); d < -time.Minute || d > 25*time.Hour {
				t.Errorf("expires in %s", d)
			}
		})
	}
}

// TestHostileTokens: INV-34, and every way round the signature that is known.
func TestHostileTokens(t *testing.T) {
	v := verifier(t, nil)
	good := hs(nil)
	parts := strings.Split(good, ".")
	stranger := must(rsa.GenerateKey(rand.Reader, 2048))
	_, strangerEd, _ := ed25519.GenerateKey(rand.Reader)
	strangerEC := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	strangerSecret := []byte("what somebody else has thought of")
	publicPEM := []byte(keys.keys[4].N)
	unsigned := func(header string) string {
		return b64([]byte(header)) + "." + parts[1] + "."
	}
	type x struct {
		name, token string
		code        errs.Code
	}
	var cases []x
	add := func(name, token string, code errs.Code) { cases = append(cases, x{name, token, code}) }
	// No algorithm, however written, with and without a signature.
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "none ", " none", "", "null", "nOne\\u0000", "0", "undefined"} {
		h := fmt.Sprintf(`{"alg":"%s"}`, alg)
		add("alg "+alg+" unsigned", unsigned(h), errs.S2101)
		add("alg "+alg+" signed", b64([]byte(h))+"."+parts[1]+"."+parts[2], errs.S2101)
		hk := fmt.Sprintf(`{"alg":"%s","kid":"hs"}`, alg)
		add("alg "+alg+" with kid", unsigned(hk), errs.S2101)
	}
	for _, h := range []string{`{}`, `{"kid":"hs"}`, `{"alg":null}`, `{"alg":1}`, `{"alg":["HS256"]}`, `{"alg":{"a":1}}`, `{"alg":true}`, `[]`, `"HS256"`, `null`, `1`, ``, ` `, `{`, `{"alg":"HS256"`, `{"alg":"HS256"}{}`, `{"alg":"HS256","kid":1}`, `{"alg":"HS256","kid":["hs"]}`, strings.Repeat(`{"a":`, 1000) + `1` + strings.Repeat(`}`, 1000)} {
		add("header "+clip(h), b64([]byte(h))+"."+parts[1]+"."+parts[2], errs.S2101)
	}
	// Algorithms that are not ours.
	for _, alg := range []string{"HS1", "HS257", "RS1", "ES256K", "PS256", "PS384", "PS512", "Ed25519", "Ed448", "dir", "A128KW", "RSA-OAEP", "hs256", "Hs256", "HS256 ", "HS256\\n", "HMAC", "RS256/HS256", "../HS256"} {
		h := fmt.Sprintf(`{"alg":"%s","kid":"hs"}`, alg)
		mac := hmac.New(sha256.New, keys.secret)
		text := b64([]byte(h)) + "." + parts[1]
		mac.Write([]byte(text))
		add("alg "+alg, text+"."+b64(mac.Sum(nil)), errs.S2101)
	}
	// Key confusion: a public key as a secret, and the families crossed.
	for _, secret := range [][]byte{publicPEM, must(base64.RawURLEncoding.DecodeString(keys.keys[4].N)), []byte(keys.keys[4].N + "." + keys.keys[4].E), {}} {
		for _, kid := range []any{"rsa", "rs256", "P-256", "ed", "", nil} {
			h := m{"alg": "HS256"}
			if kid != nil {
				h["kid"] = kid
			}
			add(fmt.Sprintf("public key as secret of %v (%d)", kid, len(secret)), sign(h, claims(nil), secret), errs.S2101)
		}
	}
	add("HS256 with rsa kid", sign(m{"alg": "HS256", "kid": "rsa"}, claims(nil), keys.secret), errs.S2101)
	add("RS256 with hs kid", sign(m{"alg": "RS256", "kid": "hs"}, claims(nil), keys.rsa), errs.S2101)
	add("RS384 with key of RS256", sign(m{"alg": "RS384", "kid": "rs256"}, claims(nil), keys.rsa), errs.S2101)
	add("HS512 with key of HS256", sign(m{"alg": "HS512", "kid": "hs"}, claims(nil), keys.secret), errs.S2101)
	add("ES256 with P-384", sign(m{"alg": "ES256", "kid": "P-384"}, claims(nil), keys.ec["P-256"]), errs.S2101)
	add("ES384 with P-256", sign(m{"alg": "ES384", "kid": "P-256"}, claims(nil), keys.ec["P-384"]), errs.S2101)
	add("EdDSA with Ed448", sign(m{"alg": "EdDSA", "kid": "ed448"}, claims(nil), keys.ed), errs.S2101)
	add("RSA without kid", sign(m{"alg": "RS256"}, claims(nil), keys.rsa), errs.S2101)
	add("kid of another secret", sign(m{"alg": "HS256", "kid": "hs"}, claims(nil), keys.wild), errs.S2101)
	add("no kid, secret with kid", sign(m{"alg": "HS256"}, claims(nil), keys.secret), errs.S2101)
	// Strangers, with their key in the header.
	jwk := m{"kty": "RSA", "n": b64(stranger.N.Bytes()), "e": "AQAB", "kid": "rsa"}
	for name, h := range map[string]m{
		"stranger":            {"alg": "RS256", "kid": "rsa"},
		"stranger, jwk":       {"alg": "RS256", "kid": "rsa", "jwk": jwk},
		"stranger, jwk alone": {"alg": "RS256", "jwk": jwk},
		"stranger, jku":       {"alg": "RS256", "kid": "rsa", "jku": "https://attacker.example/jwks.json"},
		"stranger, x5u":       {"alg": "RS256", "kid": "rsa", "x5u": "https://attacker.example/cert.pem"},
		"stranger, x5c":       {"alg": "RS256", "kid": "rsa", "x5c": []string{"AAAA"}},
		"stranger, own kid":   {"alg": "RS256", "kid": "mine"},
	} {
		add(name, sign(h, claims(nil), stranger), errs.S2101)
	}
	add("stranger EdDSA", sign(m{"alg": "EdDSA", "kid": "ed"}, claims(nil), strangerEd), errs.S2101)
	add("stranger ES256", sign(m{"alg": "ES256", "kid": "P-256"}, claims(nil), strangerEC), errs.S2101)
	add("stranger HS256", sign(m{"alg": "HS256", "kid": "hs"}, claims(nil), strangerSecret), errs.S2101)
	add("stranger wildcard", sign(m{"alg": "HS256"}, claims(nil), strangerSecret), errs.S2101)
	for _, kid := range []string{"../../dev/null", "' OR 1=1 --", "hs\x00", "HS", " hs", "hs ", "/etc/passwd", "http://127.0.0.1/", strings.Repeat("k", 5000), "💥"} {
		add("kid "+clip(kid), sign(m{"alg": "HS256", "kid": kid}, claims(nil), strangerSecret), errs.S2101)
	}
	for _, crit := range []any{[]string{"b64"}, []string{"exp"}, []string{}, "x", m{}} {
		add(fmt.Sprintf("crit %v", crit), sign(m{"alg": "HS256", "kid": "hs", "crit": crit}, claims(nil), keys.secret), errs.S2101)
	}
	add("b64 false", sign(m{"alg": "HS256", "kid": "hs", "b64": false, "crit": []string{"b64"}}, claims(nil), keys.secret), errs.S2101)
	// Signatures.
	flip := func(s string, i int) string {
		b := []byte(s)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return string(b)
	}
	add("signature changed", parts[0]+"."+parts[1]+"."+flip(parts[2], 3), errs.S2101)
	add("payload changed", parts[0]+"."+b64([]byte(`{"sub":"admin","aud":"sluice","iat":1,"exp":9999999999}`))+"."+parts[2], errs.S2101)
	add("header changed", b64([]byte(`{"alg":"HS256","kid":"hs","x":1}`))+"."+parts[1]+"."+parts[2], errs.S2101)
	add("signature empty", parts[0]+"."+parts[1]+".", errs.S2101)
	add("signature short", parts[0]+"."+parts[1]+"."+parts[2][:10], errs.S2101)
	add("signature long", parts[0]+"."+parts[1]+"."+parts[2]+"AAAA", errs.S2101)
	add("signature zero, ES256", b64([]byte(`{"alg":"ES256","kid":"P-256"}`))+"."+parts[1]+"."+b64(make([]byte, 64)), errs.S2101)
	add("signature zero, EdDSA", b64([]byte(`{"alg":"EdDSA","kid":"ed"}`))+"."+parts[1]+"."+b64(make([]byte, 64)), errs.S2101)
	es := sign(m{"alg": "ES256", "kid": "P-256"}, claims(nil), keys.ec["P-256"])
	esParts := strings.Split(es, ".")
	digest := sha256.Sum256([]byte(esParts[0] + "." + esParts[1]))
	der := must(keys.ec["P-256"].Sign(rand.Reader, digest[:], crypto.SHA256))
	add("signature in DER", esParts[0]+"."+esParts[1]+"."+b64(der), errs.S2101)
	// Form.
	for name, s := range map[string]string{
		"empty": "", "one part": "abc", "two parts": parts[0] + "." + parts[1], "four parts": good + ".x", "five parts (JWE)": "a.b.c.d.e",
		"dots": "..", "padding": parts[0] + "=." + parts[1] + "." + parts[2], "standard base64": "+/+/." + parts[1] + "." + parts[2],
		"space": " " + good, "newline": good + "\n", "inner space": parts[0] + " ." + parts[1] + "." + parts[2], "NUL": good + "\x00",
		"not base64": "!!!." + parts[1] + "." + parts[2], "unicode": "é." + parts[1] + "." + parts[2],
		"trailing bits": parts[0] + "." + parts[1] + "." + parts[2][:len(parts[2])-1] + "_", "huge": strings.Repeat("A", 1<<20),
		"huge payload": sign(m{"alg": "HS256", "kid": "hs"}, claims(m{"x": strings.Repeat("y", 20_000)}), keys.secret),
		"huge header":  sign(m{"alg": "HS256", "kid": "hs", "x": strings.Repeat("y", 20_000)}, claims(nil), keys.secret),
	} {
		add("form: "+name, s, errs.S2101)
	}
	for _, p := range []string{`[]`, `"x"`, `1`, `null`, ``, `{`, `{"sub":"u1"`, `{"sub":"u1"} x`, strings.Repeat("[", 3000), `{"a":` + strings.Repeat("[", 3000) + strings.Repeat("]", 3000) + `}`, "\xff\xfe"} {
		add("payload "+clip(p), signText(`{"alg":"HS256","kid":"hs"}`, p, "HS256", keys.secret), errs.S2101)
	}
	// Claims.
	for name, x := range map[string]struct {
		change m
		code   errs.Code
	}{
		"no sub": {m{"sub": nil}, errs.S2101}, "no iat": {m{"iat": nil}, errs.S2101}, "no exp": {m{"exp": nil}, errs.S2101},
		"no aud": {m{"aud": nil}, errs.S2105}, "aud": {m{"aud": "someone-else"}, errs.S2105}, "aud empty": {m{"aud": ""}, errs.S2105},
		"aud empty list": {m{"aud": []any{}}, errs.S2105}, "aud number": {m{"aud": 1}, errs.S2105}, "aud object": {m{"aud": m{"sluice": true}}, errs.S2105},
		"aud nested": {m{"aud": []any{[]any{"sluice"}}}, errs.S2105}, "aud prefix": {m{"aud": "sluice "}, errs.S2105}, "aud case": {m{"aud": "Sluice"}, errs.S2105},
		"expired": {m{"exp": now.Add(-61 * time.Second).Unix()}, errs.S2103}, "expired long ago": {m{"exp": 1, "iat": 0}, errs.S2103}, "exp zero": {m{"exp": 0}, errs.S2103},
		"exp text": {m{"exp": "9999999999"}, errs.S2101}, "exp bool": {m{"exp": true}, errs.S2101}, "exp list": {m{"exp": []any{1}}, errs.S2101}, "exp negative": {m{"exp": -1}, errs.S2101},
		"exp huge": {m{"exp": json.Number("1e308")}, errs.S2101}, "exp beyond": {m{"exp": json.Number("1e400")}, errs.S2101}, "exp int64 overflow": {m{"exp": json.Number("9223372036854775808")}, errs.S2101},
		"exp in ms": {m{"exp": now.UnixMilli()}, errs.S2104}, "iat text": {m{"iat": "1"}, errs.S2101}, "iat object": {m{"iat": m{}}, errs.S2101}, "iat huge": {m{"iat": json.Number("1e300")}, errs.S2101},
		"nbf": {m{"nbf": now.Add(2 * time.Minute).Unix()}, errs.S2101}, "nbf text": {m{"nbf": "1"}, errs.S2101}, "nbf null": {m{"nbf": json.RawMessage("null")}, errs.S2101},
		"lifetime": {m{"exp": now.Unix() + 86401}, errs.S2104}, "lifetime, old iat": {m{"iat": now.Unix() - 86400}, errs.S2104}, "iat zero": {m{"iat": 0}, errs.S2104},
		"sub object": {m{"sub": m{"a": 1}}, errs.S2101}, "sub list": {m{"sub": []any{"u1"}}, errs.S2101},
		"parameters text": {m{"parameters": "x"}, errs.S2101}, "parameters list": {m{"parameters": []any{}}, errs.S2101}, "parameters null": {m{"parameters": json.RawMessage("null")}, errs.S2101},
	} {
		add("claim "+name, hs(x.change), x.code)
	}
	if len(cases) < 150 {
		t.Errorf("only %d cases", len(cases))
	}
	for _, x := range cases {
		t.Run(x.name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), x.token)
			if err == nil {
				t.Fatalf("accepted as %q", got.UserID)
			}
			if errs.CodeOf(err) != x.code {
				t.Errorf("%v, want %s", err, x.code)
			}
			msg := errs.Cause(err)
			for _, secret := range []string{string(keys.secret), b64(keys.secret), string(keys.wild), parts[2], keys.keys[4].N} {
				if strings.Contains(msg, secret) {
					t.Errorf("INV-34: %s", msg)
				}
			}
			if len(msg) > 400 {
				t.Errorf("message of %d bytes", len(msg))
			}
		})
	}
	t.Logf("%d cases", len(cases))
}

func TestNoAudienceConfigured(t *testing.T) {
	v := verifier(t, func(c *config.Auth) { c.Audience = nil })
	if _, err := v.Verify(t.Context(), hs(nil)); errs.CodeOf(err) != errs.S2105 {
		t.Fatal(err)
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{"Token abc": "abc", "Bearer a.b.c": "a.b.c"} {
		if got, err := Bearer(header); err != nil || got != want {
			t.Errorf("%q: %q, %v", header, got, err)
		}
	}
	for _, header := range []string{"", "Token", "Token ", "Bearer  a", "bearer a", "TOKEN a", "Basic a", "Token a b", "Token a\tb", " Token a", "Tokena"} {
		if got, err := Bearer(header); errs.CodeOf(err) != errs.S2106 {
			t.Errorf("%q: %q, %v", header, got, err)
		}
	}
}

func TestBadKeys(t *testing.T) {
	for name, k := range map[string]config.Key{
		"kty":        {Kty: "x"},
		"oct alg":    {Kty: "oct", K: b64(keys.secret)},
		"oct k":      {Kty: "oct", Alg: "HS256"},
		"rsa n":      {Kty: "RSA", Kid: "a", N: "!", E: "AQAB"},
		"rsa small":  {Kty: "RSA", Kid: "a", N: "AQAB", E: "AQAB"},
		"rsa e even": {Kty: "RSA", Kid: "a", N: keys.keys[4].N, E: "BA"},
		"rsa alg":    {Kty: "RSA", Kid: "a", N: keys.keys[4].N, E: "AQAB", Alg: "HS256"},
		"ec curve":   {Kty: "EC", Crv: "P-1"},
		"ec point":   {Kty: "EC", Crv: "P-256", X: b64(make([]byte, 32)), Y: b64(make([]byte, 32))},
		"ec alg":     {Kty: "EC", Crv: "P-256", Alg: "ES384", X: "AA", Y: "AA"},
		"okp length": {Kty: "OKP", Crv: "Ed25519", X: "AAAA"},
		"use":        {Kty: "oct", Alg: "HS256", K: b64(keys.secret), Use: "enc"},
	} {
		_, err := New(config.Auth{Keys: []config.Key{k}})
		if errs.CodeOf(err) != errs.S2201 {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && k.K != "" && strings.Contains(err.Error(), k.K) {
			t.Errorf("%s: INV-34: %v", name, err)
		}
	}
}

func TestSupabase(t *testing.T) {
	v := verifier(t, func(c *config.Auth) { c.Supabase, c.SupabaseSecret = true, "supabase's secret, long enough" })
	token := func(change m) string {
		return sign(m{"alg": "HS256"}, claims(change), []byte("supabase's secret, long enough"))
	}
	if _, err := v.Verify(t.Context(), token(m{"aud": "authenticated", "exp": now.Unix() + 606_000})); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), token(nil)); errs.CodeOf(err) != errs.S2105 {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), token(m{"aud": "authenticated", "exp": now.Unix() + 606_001})); errs.CodeOf(err) != errs.S2104 {
		t.Error(err)
	}
}

// TestSupabaseHints: spec/06 §5.4. What a token of Supabase's that is refused
// tells the app's developer; the projects' names stay in the log.
func TestSupabaseHints(t *testing.T) {
	s := newKeyServer(t, public("a"))
	const secret = "supabase's secret, long enough"
	const mine, others = "https://mine.supabase.co/auth/v1", "https://others.supabase.co/auth/v1"
	shared := func(iss string) string {
		return sign(m{"alg": "HS256", "kid": "k"}, claims(m{"iss": iss}), []byte("another secret, long enough"))
	}
	asymmetric := func(iss string) string {
		return sign(m{"alg": "ES256", "kid": "k"}, claims(m{"iss": iss}), keys.ec["P-256"])
	}
	const none = ""
	for name, x := range map[string]struct {
		c     supabase
		token string
		want  string
		log   string
	}{
		"not enabled":                 {supabase{}, shared(mine), "Supabase Auth is not enabled", none},
		"not enabled, key":            {supabase{}, asymmetric(mine), "Supabase Auth is not enabled", none},
		"not enabled, anonymous key":  {supabase{}, shared("supabase"), "Supabase Auth is not enabled", none},
		"not enabled, own host":       {supabase{}, shared("http://127.0.0.1:54321/auth/v1"), "Supabase Auth is not enabled", none},
		"no secret":                   {supabase{on: true, project: "mine"}, shared(mine), "set client_auth.supabase_jwt_secret", none},
		"no secret, project unknown":  {supabase{on: true}, shared(mine), "set client_auth.supabase_jwt_secret", none},
		"wrong secret":                {supabase{on: true, secret: true, project: "mine"}, shared(mine), "not the one in client_auth.supabase_jwt_secret", none},
		"another project, secret":     {supabase{on: true, secret: true, project: "mine"}, shared(others), "of another Supabase project", "the token is of project others, the source's is mine"},
		"another project, key":        {supabase{on: true, project: "mine"}, asymmetric(others), "of another Supabase project", "the token is of project others, the source's is mine"},
		"key, project unknown":        {supabase{on: true, secret: true}, asymmetric(mine), "set client_auth.jwks_uri", none},
		"key of the project, unknown": {supabase{on: true, project: "mine"}, asymmetric(mine), none, none},
		"somebody else's":             {supabase{on: true}, shared("https://idp.example/"), none, none},
		"no issuer":                   {supabase{}, sign(m{"alg": "HS256"}, claims(nil), []byte("x")), none, none},
		"issuer is no text":           {supabase{}, sign(m{"alg": "HS256"}, claims(m{"iss": m{}}), []byte("x")), none, none},
		"looks alike":                 {supabase{}, shared("https://x.supabase.co.example/"), none, none},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, func(c *config.Auth) {
				c.Supabase = x.c.on
				if x.c.secret {
					c.SupabaseSecret = secret
				}
			})
			v.supabase.project = x.c.project // its keys would be fetched from Supabase
			if x.c.on && x.c.project != "" {
				r := must(newRemote(t.Context(), s.URL, &guard{}, true))
				v.remotes = append(v.remotes, r)
			}
			_, err := v.Verify(t.Context(), x.token)
			if errs.CodeOf(err) != errs.S2101 {
				t.Fatal(err)
			}
			if told := err.Error(); x.want == none && strings.Contains(told, "Supabase") || !strings.Contains(told, x.want) || strings.Contains(told, "others") {
				t.Errorf("told %q, want %q", told, x.want)
			}
			if logged := errs.Cause(err); !strings.Contains(logged, x.log) {
				t.Errorf("logged %q, want %q", logged, x.log)
			}
		})
	}
	if got := newSupabase(config.Auth{Supabase: true, SupabaseSecret: "x", SupabaseJWKS: "https://mine.supabase.co/auth/v1/.well-known/jwks.json"}); got != (supabase{true, true, "mine"}) {
		t.Errorf("%+v", got)
	}
	// The secret counts only with Supabase Auth.
	v := verifier(t, func(c *config.Auth) { c.SupabaseSecret = secret })
	if _, err := v.Verify(t.Context(), sign(m{"alg": "HS256"}, claims(m{"aud": "authenticated"}), []byte(secret))); errs.CodeOf(err) != errs.S2101 {
		t.Errorf("not enabled: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	v, err := New(config.Auth{Audience: []string{"sluice"}, Keys: keys.keys})
	if err != nil {
		f.Fatal(err)
	}
	defer v.Close()
	f.Add(`{"alg":"HS256","kid":"hs"}`, `{"sub":"u1"}`, []byte("x"))
	f.Add(`{"alg":"none"}`, `{}`, []byte(nil))
	f.Add(`{"alg":"ES256","kid":"P-256"}`, `{"aud":[]}`, make([]byte, 64))
	f.Fuzz(func(t *testing.T, header, payload string, signature []byte) {
		token := b64([]byte(header)) + "." + b64([]byte(payload)) + "." + b64(signature)
		if _, err := v.Verify(context.Background(), token); err == nil {
			t.Fatalf("accepted %s", token)
		} else if errs.CodeOf(err) == "" {
			t.Fatalf("no code: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	v := verifier(b, nil)
	for name, token := range map[string]string{
		"HS256": hs(nil), "RS256": sign(m{"alg": "RS256", "kid": "rsa"}, claims(nil), keys.rsa), "EdDSA": sign(m{"alg": "EdDSA", "kid": "ed"}, claims(nil), keys.ed),
	} {
		for kind, verify := range map[string]func(context.Context, string) (*Token, error){"first": v.check, "again": v.Verify} {
			b.Run(name+"/"+kind, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := verify(b.Context(), token); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
