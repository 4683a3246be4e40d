package suites

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// TestVanishedClient: the network of clients drops every packet. The gateway gives
// them up within 30 s, and counts them.
func TestVanishedClient(t *testing.T) {
	n := harness.StartNetns(t)
	w := newWorld(t, harness.Dev, "")
	u, err := url.Parse(w.sluice.URLs()[0])
	if err != nil {
		t.Fatal(err)
	}
	const body = `{"client_id":"c"}`
	metric := func(name string) float64 {
		t.Helper()
		v, err := w.sluice.Metric(harness.All, name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	harness.Eventually(t, soon, "the sync config is active", func() error {
		_, err := w.sluice.CLI("status")
		return err
	})
	const clients = 3
	for i := range clients {
		n.Stream(u.Port(), fmt.Sprintf("POST /sync/stream HTTP/1.1\r\nHost: sluice\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
			harness.Token(t, fmt.Sprintf("v%d", i), time.Hour, nil), len(body), body))
	}
	harness.Eventually(t, soon, "the clients are connected", func() error {
		return harness.Equal(metric("powersync_concurrent_connections"), clients)
	})
	n.Unplug()
	// One has something waiting for it, the others are idle.
	w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ('l', 'v0', 'for a client that is gone')")
	took := harness.Eventually(t, healed+2*time.Second, "the clients are given up", func() error {
		return harness.Equal(metric("powersync_concurrent_connections"), 0)
	})
	if v := metric("sluice_gateway_vanished_clients_total"); v != clients {
		t.Errorf("%v clients are counted, want %d", v, clients)
	}
	t.Logf("given up after %s", took.Round(time.Millisecond))
}
