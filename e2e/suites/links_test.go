package suites

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

const (
	// named is how soon a link that fell silent must be named, healed how soon all
	// must be fresh once new connections get through again.
	named  = 15 * time.Second
	healed = 30 * time.Second
	// stale is how old what was last heard or seen may be.
	stale = 10.0
)

var stages = []string{"read", "published", "evaluated", "stored", "noticed", "delivered"}

// links is an instance in which each process has its own way to every other.
type links struct {
	*world
	all       map[string]*harness.Link // "process peer"
	processes []string
	clients   []*harness.Client
	rows      int
}

func newLinks(t *testing.T) *links {
	t.Helper()
	l := &links{all: map[string]*harness.Link{}, processes: []string{
		harness.BucketStore, harness.Replicator, harness.Evaluator1, harness.Gateway1, harness.Gateway2,
	}}
	dir := harness.NeedsServers(t)
	pg := harness.StartPostgres(t, dir)
	pg.Exec(sourceSchema)
	source, err := url.Parse(pg.URL)
	if err != nil {
		t.Fatal(err)
	}
	via := func(process, peer, address string) string {
		l.all[process+" "+peer] = harness.StartLink(t, address)
		return l.all[process+" "+peer].Address()
	}
	source.Host = via(harness.Replicator, "source", source.Host)
	variables := map[string][]string{}
	l.world = &world{pg: pg, sluice: harness.StartInstance(t, dir, pg, harness.Options{
		Mode: harness.Suite, SyncConfig: syncConfig, Source: source.String(), Only: append([]string{harness.NATS}, l.processes...),
		Env: func(in *harness.Instance, process string) []string {
			if env, ok := variables[process]; ok {
				return env // it is started again
			}
			peers := map[string]string{harness.NATS: "SLUICE_NATS_URL", harness.BucketStore: "SLUICE_BUCKET_STORE_ADDRESS", harness.Replicator: "SLUICE_REPLICATOR_ADDRESS"}
			switch process {
			case harness.NATS:
				return nil
			case harness.BucketStore:
				peers = map[string]string{harness.NATS: peers[harness.NATS]}
			case harness.Replicator, harness.Evaluator1:
				delete(peers, harness.Replicator)
			}
			for peer, variable := range peers {
				value := via(process, peer, in.Address(peer))
				if peer == harness.NATS {
					value = "nats://" + value
				}
				variables[process] = append(variables[process], variable+"="+value)
			}
			return variables[process]
		},
	})}
	l.driver = harness.StartDriver(t, dir)
	for i, endpoint := range l.sluice.URLs() {
		l.clients = append(l.clients, l.client(t, "u", func(o *harness.ClientOptions) {
			o.Endpoint, o.Transport = endpoint, []string{"http", "websocket"}[i]
		}))
	}
	for _, c := range l.clients {
		c.FirstSync(2 * time.Minute)
	}
	return l
}

// ages returns how old the samples of a metric that is a time are, by the value of
// a label.
func (l *links) ages(process, metric, label string) (map[string]float64, error) {
	samples, err := l.sluice.Samples(process, metric)
	if err != nil {
		return nil, err
	}
	now := float64(time.Now().UnixMicro()) / 1e6
	ages := map[string]float64{}
	for labels, at := range samples {
		for l := range strings.SplitSeq(labels, ",") {
			if name, value, _ := strings.Cut(l, "="); name == label {
				ages[strings.Trim(value, `"`)] = now - at
			}
		}
	}
	return ages, nil
}

// silent returns the links that are named, as "process peer".
func (l *links) silent() (map[string]bool, error) {
	found := map[string]bool{}
	for _, p := range l.processes {
		ages, err := l.ages(p, "sluice_link_heard_timestamp_seconds", "peer")
		if err != nil {
			return nil, err
		}
		if len(ages) == 0 {
			return nil, fmt.Errorf("%s names no peer", p)
		}
		for peer, age := range ages {
			if age > stale {
				found[p+" "+peer] = true
			}
		}
	}
	return found, nil
}

// stuck returns the first stage that is stale, by the newest heartbeat that any
// process has of it; "" if none is.
func (l *links) stuck() (string, error) {
	newest := map[string]float64{}
	for _, p := range l.processes {
		ages, err := l.ages(p, "sluice_heartbeat_timestamp_seconds", "stage")
		if err != nil {
			return "", err
		}
		for stage, age := range ages {
			if old, ok := newest[stage]; !ok || age < old {
				newest[stage] = age
			}
		}
	}
	for _, stage := range stages {
		if age, ok := newest[stage]; !ok || age > stale {
			return stage, nil
		}
	}
	return "", nil
}

// status returns the stages that sluice status calls stale, of a gateway.
func (l *links) status(gateway int) ([]string, error) {
	out, _ := l.sluice.CLI("status", "--json", "--url", l.sluice.URLs()[gateway]) // it fails if something is stale
	var s struct {
		Stages []struct {
			Name string
			OK   bool
		}
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&s); err != nil {
		return nil, fmt.Errorf("status: %w in %s", err, out)
	}
	var bad []string
	for _, x := range s.Stages {
		if !x.OK {
			bad = append(bad, x.Name)
		}
	}
	return bad, nil
}

// TestSilentLinks: each link between two processes falls silent without being
// closed. The metrics name it, and no other, and the stage that is stuck, within
// 15 s; when new connections get through, data is fresh within 30 s without anyone
// doing anything. Gateways are ready throughout: old data is better than none.
func TestSilentLinks(t *testing.T) {
	l := newLinks(t)
	harness.Eventually(t, soon, "everything is fresh", l.fresh)
	for _, c := range []struct {
		name    string
		cut     []string
		stage   string        // that is stuck
		late    time.Duration // how much later that is named than the link
		status  string        // what sluice status calls the first one
		unready []string      // processes
		also    func(t *testing.T)
	}{
		{name: "Source", cut: []string{"replicator source", "bucket-store nats"}, stage: "read", status: "read", unready: []string{harness.Replicator}},
		{name: "Gateways", cut: []string{"sync-gateway-1 bucket-store", "sync-gateway-2 nats", "sync-gateway-2 replicator"}, stage: "", also: l.oneGateway},
		{name: "ReplicatorToNATS", cut: []string{"replicator nats"}, stage: "published", status: "published", unready: []string{harness.Replicator}},
		{name: "NATSToEvaluator", cut: []string{"rules-evaluator-1 nats"}, stage: "evaluated", status: "evaluated", unready: []string{harness.Evaluator1}},
		// What was evaluated, bucket-store says: a gateway asks nobody else.
		{name: "EvaluatorToBucketStore", cut: []string{"rules-evaluator-1 bucket-store"}, stage: "stored", status: "evaluated", unready: []string{harness.Evaluator1}},
		{name: "ReplicatorToBucketStore", cut: []string{"replicator bucket-store"}, stage: "read", status: "read", unready: []string{harness.Replicator},
			late: 5 * time.Second}, // for so long it has the lease, and reads
	} {
		l.run(t, c.name, func(t *testing.T) {
			want := map[string]bool{}
			for _, name := range c.cut {
				want[name] = true
				l.all[name].Cut()
			}
			since := time.Now()
			took := harness.Eventually(t, named, fmt.Sprintf("%v are named", c.cut), func() error {
				silent, err := l.silent()
				if err != nil {
					return err
				}
				return harness.Equal(fmt.Sprint(silent), fmt.Sprint(want))
			})
			harness.Eventually(t, time.Until(since.Add(named+c.late)), fmt.Sprintf("stage %q is named", c.stage), func() error {
				stage, err := l.stuck()
				if err != nil {
					return err
				}
				return harness.Equal(stage, c.stage)
			})
			if c.stage != "" {
				if bad, err := l.status(1); err != nil || len(bad) == 0 || bad[0] != c.status {
					t.Errorf("sluice status calls %v stale, want %v first; %v", bad, c.status, err)
				}
			}
			if c.also != nil {
				c.also(t)
			}
			for _, p := range l.processes {
				unready := false
				for _, u := range c.unready {
					unready = unready || u == p
				}
				harness.Eventually(t, 5*time.Second, fmt.Sprintf("%s is ready: %v", p, !unready), func() error {
					ready, err := l.sluice.Ready(p)
					if err != nil {
						return err
					}
					return harness.Equal(ready, !unready)
				})
			}
			for _, name := range c.cut {
				l.all[name].Lift()
			}
			t.Logf("named after %s, healed after %s", took.Round(time.Millisecond),
				harness.Eventually(t, healed, "everything is fresh again", l.fresh).Round(time.Millisecond))
		})
	}
}

// fresh is nil if no link is silent, every gateway delivers, every process is
// ready, and a row that is written now comes to every client.
func (l *links) fresh() error {
	silent, err := l.silent()
	if err != nil {
		return err
	}
	if len(silent) > 0 {
		return fmt.Errorf("silent: %v", silent)
	}
	for _, p := range l.processes {
		if ready, err := l.sluice.Ready(p); err != nil || !ready {
			return fmt.Errorf("%s is not ready: %w", p, err)
		}
		if !strings.HasPrefix(p, "sync-gateway") {
			continue
		}
		ages, err := l.ages(p, "sluice_heartbeat_timestamp_seconds", "stage")
		if err != nil {
			return err
		}
		if age, ok := ages["delivered"]; !ok || age > 5 {
			return fmt.Errorf("%s delivered a heartbeat %v s ago", p, age)
		}
	}
	l.rows++
	l.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1, 'u', 'fresh')", fmt.Sprintf("fresh%d", l.rows))
	deadline := time.Now().Add(3 * time.Second)
	for _, c := range l.clients {
		for {
			rows, err := c.Rows("SELECT count(*) FROM lists WHERE id = ?", fmt.Sprintf("fresh%d", l.rows))
			if err != nil {
				return err
			}
			if rows[0] == "1" {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("client %s does not get a row", c.ID)
			}
			time.Sleep(20 * time.Millisecond) // asked again, not waited for
		}
	}
	return nil
}

// oneGateway: the gateway that is cut from bucket-store notices heartbeats and
// delivers none; the one that hears no notices asks instead, and delivers.
func (l *links) oneGateway(t *testing.T) {
	for gateway, fresh := range map[string]map[string]bool{
		harness.Gateway1: {"noticed": true, "delivered": false},
		harness.Gateway2: {"noticed": true, "delivered": true},
	} {
		harness.Eventually(t, 5*time.Second, "the stages of "+gateway, func() error {
			ages, err := l.ages(gateway, "sluice_heartbeat_timestamp_seconds", "stage")
			if err != nil {
				return err
			}
			for stage, want := range fresh {
				if got := ages[stage] < stale; got != want {
					return fmt.Errorf("the newest heartbeat %s is %.1f s old", stage, ages[stage])
				}
			}
			return nil
		})
	}
	if bad, err := l.status(1); err != nil || len(bad) != 0 && bad[0] != "read" { // it cannot ask the replicator
		t.Errorf("the fresh gateway calls %v stale; %v", bad, err)
	}
}
