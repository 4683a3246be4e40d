package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
)

var secret = []byte("a secret of some length")

func read(t *testing.T, s string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		t.Fatalf("%q has %d parts", s, len(parts))
	}
	for i, to := range []*map[string]any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, to); err != nil {
			t.Fatal(err)
		}
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(parts[0] + "." + parts[1]))
	if want := base64.RawURLEncoding.EncodeToString(mac.Sum(nil)); parts[2] != want {
		t.Errorf("signature %s, not %s", parts[2], want)
	}
	return header, claims
}

func TestMint(t *testing.T) {
	a := config.Auth{Audience: []string{"one", "two"}, Keys: []config.Key{
		{Kty: "RSA", Kid: "r"}, {Kty: "oct", Alg: "HS256", Kid: "dev", K: base64.URLEncoding.EncodeToString(secret)},
	}}
	now := time.Unix(1_700_000_000, 0)
	s, err := Mint(a, Request{User: "u1", TTL: time.Hour, Now: now, Claims: map[string]string{"role": "admin", "teams": `["a", 2]`, "big": "9007199254740993", "odd": "1 2"}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(decode(t, s), `"big":9007199254740993`) {
		t.Errorf("a large number changed: %s", decode(t, s))
	}
	header, claims := read(t, s)
	if !reflect.DeepEqual(header, map[string]any{"typ": "JWT", "alg": "HS256", "kid": "dev"}) {
		t.Errorf("header %v", header)
	}
	delete(claims, "big")
	want := map[string]any{"sub": "u1", "aud": "one", "iat": 1.7e9, "exp": 1.7e9 + 3600, "role": "admin", "teams": []any{"a", 2.0}, "odd": "1 2"}
	if !reflect.DeepEqual(claims, want) {
		t.Errorf("claims %v", claims)
	}
	s, err = Mint(config.Auth{Supabase: true, SupabaseSecret: string(secret)}, Request{User: "u", TTL: 1, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if header, claims = read(t, s); header["kid"] != nil || claims["aud"] != "authenticated" {
		t.Errorf("Supabase: %v %v", header, claims)
	}
}

func decode(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(s, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCannotMint(t *testing.T) {
	if _, err := Mint(config.Auth{Keys: []config.Key{{Kty: "RSA"}}}, Request{}); !errors.Is(err, ErrNoKey) {
		t.Errorf("no key: %v", err)
	}
	key := config.Key{Kty: "oct", Alg: "HS256", Kid: "k", K: "c2VjcmV0"}
	if _, err := Mint(config.Auth{Keys: []config.Key{key}}, Request{}); err == nil || !strings.Contains(err.Error(), "audience") {
		t.Errorf("no audience: %v", err)
	}
	key.K = "***"
	if _, err := Mint(config.Auth{Keys: []config.Key{key}}, Request{}); err == nil || strings.Contains(err.Error(), "***") {
		t.Errorf("a bad key: %v", err)
	}
}
