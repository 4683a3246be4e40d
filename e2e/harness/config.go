package harness

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// storageDatabase is the one that Sluice's own data is in, if it is in Postgres.
const storageDatabase = "sluice_storage"

// storageText is the config's section for a kind of storage.
func (in *Instance) storageText(p *Postgres, kind string) string {
	switch kind {
	case "mongodb":
		return mongoStorage(in.t, in.bin)
	case "postgresql":
		return fmt.Sprintf("storage: {type: postgresql, sslmode: disable, uri: %q, database: %s}\n", p.URL, storageDatabase)
	}
	return "storage: {type: " + kind + "}\n"
}

// OtherStorage writes the instance's config with another kind of storage, and
// returns its path.
func (in *Instance) OtherStorage(p *Postgres, kind string) string {
	in.t.Helper()
	if kind == "postgresql" {
		p.Exec("CREATE DATABASE " + storageDatabase)
	}
	text, err := os.ReadFile(in.config)
	if err != nil {
		in.t.Fatal(err)
	}
	return in.File(kind+".yaml", strings.Replace(string(text), in.storage, in.storageText(p, kind), 1))
}

// UseConfig makes another config the instance's, from its next start on.
func (in *Instance) UseConfig(path string) { in.config = path }

// configText is a config file as a user of the reference server writes it, with
// our own section for the ports of the inner services.
func configText(in *Instance, p *Postgres, o Options) string {
	interval := ""
	if o.CompactOnDemand {
		interval = `, interval: "0s"`
	}
	in.storage = in.storageText(p, o.Storage)
	gateway := freeRun(in.t, in.replicas)
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
%s`, cmp.Or(o.Source, p.URL), Audience, keyID, encodedKey(), AdminToken, gateway, in.storage)
	if in.mode == Dev {
		in.gateways = []string{in.listens(All, gateway)}
		in.metrics[All] = FreePort(in.t)
		return text + fmt.Sprintf("telemetry:\n  prometheus_port: %d\nsluice:\n  compactor: {address: \"127.0.0.1:%d\"%s}\n",
			in.metrics[All], FreePort(in.t), interval)
	}
	ports := freePorts(in.t, 3)
	stores, storeMetrics := freeRun(in.t, max(1, o.Stores)), freeRun(in.t, max(1, o.Stores))
	var addresses []string
	for i := range max(1, o.Stores) {
		name := BucketStore
		if i > 0 {
			name = fmt.Sprintf("%s-%d", BucketStore, i+1)
		}
		in.inner[name], in.metrics[name] = in.listens(name, stores+i), storeMetrics+i
		addresses = append(addresses, in.inner[name])
	}
	evaluators, gateways := freeRun(in.t, in.replicas), freeRun(in.t, in.replicas)
	replicators, replicatorMetrics := freeRun(in.t, 2), freeRun(in.t, 2)
	for i := range in.replicas {
		name := fmt.Sprintf("sync-gateway-%d", i+1)
		in.inner[name] = in.listens(name, gateway+i)
		in.gateways = append(in.gateways, in.inner[name])
		in.metrics[fmt.Sprintf("rules-evaluator-%d", i+1)] = evaluators + i
		in.metrics[name] = gateways + i
	}
	in.metrics[Compactor] = ports[2]
	in.metrics[Replicator], in.metrics[Replicator2] = replicatorMetrics, replicatorMetrics+1
	for name, port := range map[string]int{NATS: ports[0], Replicator: replicators, Compactor: ports[1]} {
		in.inner[name] = in.listens(name, port)
	}
	return text + fmt.Sprintf(`sluice:
  nats: {url: "nats://%s"}
  bucket_store: {address: %q, metrics_port: %d}
  replicator: {address: %q, metrics_port: %d}
  compactor: {address: %q, metrics_port: %d%s}
  rules_evaluator: {metrics_port: %d}
  gateway: {metrics_port: %d}
`, in.inner[NATS], strings.Join(addresses, ","), storeMetrics, in.inner[Replicator], replicatorMetrics, in.inner[Compactor], ports[2], interval, evaluators, gateways)
}

// listens is where others find a process that listens on a port.
func (in *Instance) listens(process string, port int) string {
	return net.JoinHostPort(address(in.place(process)), strconv.Itoa(port))
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
