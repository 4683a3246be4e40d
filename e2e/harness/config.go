package harness

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// configText is a config file as a user of the reference server writes it, with
// our own section for the ports of the inner services.
func configText(in *Instance, p *Postgres, ports []int) string {
	next := func() int {
		port := ports[0]
		ports = ports[1:]
		return port
	}
	gateway := freeRun(in.t, max(1, in.replicas))
	text := fmt.Sprintf(`replication:
  connections:
    - type: postgresql
      uri: %s
      sslmode: disable
client_auth:
  audience: [%s]
  jwks:
    keys:
      - {kty: oct, alg: HS256, kid: %s, k: %s}
api:
  tokens: [%s]
port: %d
sync_config:
  path: sync.yaml
`, p.URL, Audience, keyID, encodedKey(), AdminToken, gateway)
	in.gateways = []string{fmt.Sprintf("127.0.0.1:%d", gateway)}
	if in.mode == Dev {
		in.metrics[All] = next()
		return text + fmt.Sprintf("telemetry:\n  prometheus_port: %d\nsluice:\n", in.metrics[All])
	}
	for i := 1; i < in.replicas; i++ {
		in.gateways = append(in.gateways, fmt.Sprintf("127.0.0.1:%d", gateway+i))
	}
	return text + fmt.Sprintf(`sluice:
  nats: {url: "nats://127.0.0.1:%d"}
  bucket_store: {address: "127.0.0.1:%d"}
  replicator: {address: "127.0.0.1:%d"}
  compactor: {address: "127.0.0.1:%d"}
`, next(), next(), next(), next())
}

func encodedKey() string { return base64.RawURLEncoding.EncodeToString(signingKey) }

// tokenHead is how every token that Token mints begins.
func tokenHead() string {
	head, err := json.Marshal(map[string]string{"alg": "HS256", "typ": "JWT", "kid": keyID})
	if err != nil {
		panic(err) // strings always marshal
	}
	return base64.RawURLEncoding.EncodeToString(head) + "."
}
