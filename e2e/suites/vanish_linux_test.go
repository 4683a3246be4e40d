package suites

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// TestVanishedClient: the network between some clients and the gateway loses every
// packet. The metrics show them within 15 s, and never a client that is merely idle;
// within 30 s the gateway gives them up, and counts them.
func TestVanishedClient(t *testing.T) {
	dir := harness.NeedsServers(t)
	n := harness.StartNetwork(t, 4)
	sluice, source, test, clients := n.Hosts()[0], n.Hosts()[1], n.Hosts()[2], n.Hosts()[3]
	pg := harness.StartPostgresAt(t, dir, source)
	pg.Exec(sourceSchema)
	in := harness.StartInstance(t, dir, pg, harness.Options{Mode: harness.Dev, SyncConfig: syncConfig, Place: func(process string) harness.Place {
		if process == harness.Test {
			return test
		}
		return sluice
	}})
	harness.Eventually(t, soon, "the sync config is active", func() error {
		_, err := in.CLI("status", "--url", in.URLs()[0])
		return err
	})
	metric := func(name string) float64 {
		t.Helper()
		v, err := in.Metric(harness.All, name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for i, c := range []struct {
		at    harness.Place
		http2 bool
	}{{test, false}, {test, true}, {clients, false}, {clients, false}, {clients, true}} {
		idle(t, in.URLs()[0], c.at, fmt.Sprintf("v%d", i), c.http2)
	}
	const healthy, gone, counted = 2, 3, 2 // HTTP/2 gives up connections by itself
	if v := metric("powersync_concurrent_connections"); v != healthy+gone {
		t.Fatalf("%v clients are connected, want %d", v, healthy+gone)
	}
	n.Lose(sluice, clients)
	n.Lose(clients, sluice)
	cut := time.Now()
	// One has something waiting for it, the others are idle.
	pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ('l', 'v2', 'for a client that is gone')")
	took := harness.Eventually(t, named, "the clients are named", func() error {
		silent := metric("sluice_gateway_silent_clients")
		if silent > gone {
			t.Errorf("%v clients are called silent, of which %d are", silent, gone)
		}
		return harness.Equal(silent+metric("sluice_gateway_vanished_clients_total"), gone)
	})
	harness.Eventually(t, time.Until(cut.Add(healed+2*time.Second)), "the clients are given up", func() error {
		return harness.Equal(metric("powersync_concurrent_connections"), healthy)
	})
	if v := metric("sluice_gateway_vanished_clients_total"); v != counted {
		t.Errorf("%v clients are counted, want %d", v, counted)
	}
	if v := metric("sluice_gateway_silent_clients"); v != 0 {
		t.Errorf("%v clients are called silent that have nothing to say", v)
	}
	t.Logf("named after %s, given up after %s", took.Round(time.Millisecond), time.Since(cut).Round(time.Millisecond))
}

// idle opens a stream from a place, and reads it until the test ends.
func idle(t *testing.T, url string, at harness.Place, user string, http2 bool) {
	t.Helper()
	transport := &http.Transport{DialContext: harness.Dial(at), Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetUnencryptedHTTP2(http2)
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/sync/stream", strings.NewReader(`{"client_id":"c"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+harness.Token(t, user, time.Hour, nil))
	req.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, resp.Body) // it is broken off
	}()
	t.Cleanup(func() {
		resp.Body.Close()
		transport.CloseIdleConnections()
		<-done
	})
	if want := map[bool]int{false: 1, true: 2}[http2]; resp.StatusCode != http.StatusOK || resp.ProtoMajor != want {
		t.Fatalf("%s, by HTTP/%d, want 200 by HTTP/%d", resp.Status, resp.ProtoMajor, want)
	}
}
