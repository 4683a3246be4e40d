package suites

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

// wires are all links between hosts: who uses it, what it calls the other end, and
// on whose host that is.
var wires = []struct{ process, peer, host string }{
	{harness.Replicator, "source", "postgres"},
	{harness.Replicator, "nats", harness.NATS},
	{harness.Replicator, "bucket-store", harness.BucketStore},
	{harness.Evaluator1, "nats", harness.NATS},
	{harness.Evaluator1, "bucket-store", harness.BucketStore},
	{harness.BucketStore, "nats", harness.NATS},
	{harness.BucketStore, "storage", "postgres"},
	{harness.Compactor, "bucket-store", harness.BucketStore},
	{harness.Gateway1, "nats", harness.NATS},
	{harness.Gateway1, "bucket-store", harness.BucketStore},
	{harness.Gateway1, "replicator", harness.Replicator},
	{"clients", "gateway", harness.Gateway1},
}

// TestNetworkFaults: each service, NATS, Postgres and the clients are hosts of their
// own. Link by link all packets vanish, or those of one direction (half-open), or
// they are late. The metrics name each link that loses packets, and no other, within
// 15 s; when the network is whole again, data is fresh everywhere within 30 s without
// anyone doing anything. Each round has a fault on every link, and over the rounds
// each link has every fault.
//
// The clients whose link has faults are idle streams, new ones for each round: when a
// client of the SDK notices is not for the services to decide. The SDK's are on another
// host, and see what comes of the services' links.
//
// That a stage is named that is stuck, and that connections are made anew when the
// old ones are never heard of again, TestSilentLinks shows.
func TestNetworkFaults(t *testing.T) {
	dir := harness.NeedsServers(t)
	hosts := map[string]*harness.Host{}
	names := []string{"postgres", harness.NATS, harness.BucketStore, harness.Replicator, harness.Evaluator1, harness.Compactor, harness.Gateway1, "clients", harness.Test}
	network := harness.StartNetwork(t, len(names))
	for i, name := range names {
		hosts[name] = network.Hosts()[i]
	}
	l := &links{world: &world{pg: harness.StartPostgresAt(t, dir, hosts["postgres"])}, processes: names[2:7]}
	l.pg.Exec(sourceSchema)
	l.sluice = harness.StartInstance(t, dir, l.pg, harness.Options{
		Mode: harness.Suite, Replicas: 1, SyncConfig: syncConfig, Storage: "postgresql", CompactOnDemand: true, Only: names[1:7],
		Place: func(process string) harness.Place { return hosts[process] },
	})
	l.driver = harness.StartDriverAt(t, dir, hosts[harness.Test])
	for _, kind := range []string{"http", "websocket"} {
		l.clients = append(l.clients, l.client(t, "u", func(o *harness.ClientOptions) { o.Transport = kind }))
	}
	for _, c := range l.clients {
		c.FirstSync(2 * time.Minute)
	}
	harness.Eventually(t, soon, "everything is fresh", l.fresh)

	const late = 250 * time.Millisecond // each way
	faults := []struct {
		name   string
		silent bool
		begin  func(a, b *harness.Host)
	}{
		{"lost", true, func(a, b *harness.Host) { network.Lose(a, b); network.Lose(b, a) }},
		{"half-open", true, func(a, b *harness.Host) { network.Lose(a, b) }},
		{"half-open the other way", true, func(a, b *harness.Host) { network.Lose(b, a) }},
		{"late", false, func(a, b *harness.Host) { network.Delay(a, b, late); network.Delay(b, a, late) }},
	}
	for round := range faults {
		l.run(t, fmt.Sprint(round), func(t *testing.T) {
			defer network.Heal()
			const idlers = 2
			for range idlers {
				idle(t, l.sluice.URLs()[0], hosts["clients"], "idle", false)
			}
			given, err := l.vanished()
			if err != nil {
				t.Fatal(err)
			}
			want, clients := map[string]bool{}, 0.0
			for i, w := range wires {
				f := faults[(i+round)%len(faults)]
				t.Logf("%s %s: %s", w.process, w.peer, f.name)
				f.begin(hosts[w.process], hosts[w.host])
				switch {
				case f.silent && w.process == "clients":
					clients = idlers
				case f.silent:
					want[w.process+" "+w.peer] = true
				}
			}
			took := harness.Eventually(t, named, "the links that lose packets are named, and no others", func() error {
				found, err := l.silent()
				if err == nil {
					err = harness.Equal(fmt.Sprint(found), fmt.Sprint(want))
				}
				if err != nil {
					return err
				}
				silent, err := l.sluice.Metric(harness.Gateway1, "sluice_gateway_silent_clients")
				if err != nil {
					return err
				}
				vanished, err := l.vanished()
				if err == nil {
					err = harness.Equal(silent+vanished-given, clients)
				}
				if err != nil {
					return fmt.Errorf("clients: %w", err)
				}
				return nil
			})
			network.Heal()
			t.Logf("named after %s, healed after %s", took.Round(time.Millisecond),
				harness.Eventually(t, healed, "everything is fresh again", l.fresh).Round(time.Millisecond))
			idle(t, l.sluice.URLs()[0], hosts["clients"], "idle", false) // new ones get through
		})
	}
}

// vanished is how many clients gateways have given up.
func (l *links) vanished() (float64, error) {
	var all float64
	for _, p := range l.processes {
		if !strings.HasPrefix(p, "sync-gateway") {
			continue
		}
		n, err := l.sluice.Metric(p, "sluice_gateway_vanished_clients_total")
		if err != nil {
			return 0, err
		}
		all += n
	}
	return all, nil
}
