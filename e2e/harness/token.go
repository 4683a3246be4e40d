package harness

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"
)

// The secrets of every instance; the logs are searched for them.
const (
	keyID      = "e2e"
	Audience   = "sluice-e2e"
	AdminToken = "e2e-admin-9f0c2b7d"
)

var signingKey = []byte("a signing key of the e2e harness")

// Token mints a client token for user, with extra claims.
func Token(t testing.TB, user any, ttl time.Duration, claims map[string]any) string {
	t.Helper()
	now := time.Now()
	body := map[string]any{"sub": user, "aud": Audience, "iat": now.Unix(), "exp": now.Add(ttl).Unix()}
	for k, v := range claims {
		body[k] = v
	}
	head, err := json.Marshal(map[string]string{"alg": "HS256", "typ": "JWT", "kid": keyID})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode(head) + "." + encode(payload)
	mac := hmac.New(sha256.New, signingKey)
	mac.Write([]byte(signed))
	return signed + "." + encode(mac.Sum(nil))
}
