package bench

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluicesync/sluice/e2e/harness"
)

// BenchmarkScale is gateways of one processor each. 1, 2 and 4 of them serve the same
// clients, and what one processor's time delivers must not shrink. Then one serves more
// and more clients, on one bucket and on one each, and what a checkpoint costs
// bucket-store and NATS must not grow.
func BenchmarkScale(b *testing.B) {
	const gateways = 4
	most := scaled(4000)
	needFiles(b, most+200)
	w := newWorld(b, "")
	w.start(func(o *harness.Options) {
		o.Mode, o.Replicas = harness.Suite, gateways
		o.Only = []string{harness.NATS, harness.BucketStore, harness.Replicator, harness.Evaluator1, harness.Gateway1}
		o.Env = func(_ *harness.Instance, process string) []string {
			if strings.HasPrefix(process, "sync-gateway") {
				return []string{"GOMAXPROCS=1"}
			}
			return nil
		}
	})
	s := &scale{world: w, running: 1}
	nc, err := nats.Connect("nats://" + w.sluice.Address(harness.NATS))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	if _, err := nc.Subscribe(">", func(*nats.Msg) { s.messages.Add(1) }); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s.cost([]int{most / 16, most / 4, most})
		s.efficiency([]int{1, 2, gateways}, scaled(1000))
		if len(s.missed) > 0 && scaled(100) == 100 { // a small run says nothing of goals
			b.Errorf("not met: %s", strings.Join(s.missed, "; "))
		}
	}
}

type scale struct {
	*world
	running  int // gateways
	fans     int // so far, for the names of their buckets
	missed   []string
	messages atomic.Int64
}

// use makes just the first n gateways run, and clients connect to all of them.
func (s *scale) use(n int) {
	s.Helper()
	for ; s.running < n; s.running++ {
		s.sluice.Start(gateway(s.running + 1))
	}
	for ; s.running > n; s.running-- {
		s.sluice.Stop(gateway(s.running))
	}
	s.urls = nil
	for i := range n {
		harness.Eventually(s, time.Minute, gateway(i+1)+" is ready", func() error {
			ready, err := s.sluice.Ready(gateway(i + 1))
			if err == nil {
				err = harness.Equal(ready, true)
			}
			return err
		})
		s.urls = append(s.urls, "http://"+s.sluice.Address(gateway(i+1)))
	}
}

func gateway(number int) string { return fmt.Sprintf("sync-gateway-%d", number) }

// counts are what the processes have done so far.
type counts struct{ deliveries, seconds, reads, checkpoints, messages float64 }

func (s *scale) counts() (c counts) {
	s.Helper()
	of := func(process, name string) float64 {
		v, err := s.sluice.Metric(process, name)
		if err != nil {
			s.Fatal(err)
		}
		return v
	}
	for i := range s.running {
		c.deliveries += of(gateway(i+1), "sluice_gateway_deliveries_total")
		c.seconds += of(gateway(i+1), "process_cpu_seconds_total")
		c.reads += of(gateway(i+1), "sluice_gateway_store_reads_total")
	}
	c.checkpoints = of(harness.BucketStore, "sluice_store_notices_total")
	c.messages = float64(s.messages.Load())
	return c
}

// during returns what is done while f runs.
func (s *scale) during(f func()) counts {
	s.Helper()
	x := s.counts()
	f()
	y := s.counts()
	return counts{y.deliveries - x.deliveries, y.seconds - x.seconds, y.reads - x.reads, y.checkpoints - x.checkpoints, y.messages - x.messages}
}

// bucket is that of a new fan.
func (s *scale) bucket() string {
	s.fans++
	return fmt.Sprintf("fan%d", s.fans)
}

// efficiency has numbers of gateways deliver the same to the same clients, several
// times in turn: the machine's speed may change meanwhile.
func (s *scale) efficiency(numbers []int, clients int) {
	s.Helper()
	rounds, warm, transactions := 3, 20, scaled(250)
	speeds := make([][]float64, len(numbers)) // deliveries per CPU-second
	beside := make([][]float64, len(numbers)) // as a part of the first one's in the same round
	for range rounds {
		for i, n := range numbers {
			s.use(n)
			f := s.fan(s.bucket(), clients, warm+transactions)
			for seq := range warm {
				f.step(seq + 1)
			}
			c := s.during(func() {
				for seq := range transactions {
					f.step(warm + seq + 1)
				}
			})
			f.crowd.close()
			speeds[i] = append(speeds[i], c.deliveries/c.seconds)
			beside[i] = append(beside[i], 100*speeds[i][len(speeds[i])-1]/speeds[0][len(speeds[i])-1])
		}
	}
	for i, n := range numbers {
		slices.Sort(speeds[i])
		slices.Sort(beside[i])
		s.report(Result{Metric: fmt.Sprintf("deliveries per CPU-second, gateways: %d", n), Value: speeds[i][rounds/2], Unit: "1/s", Better: "more"})
	}
	for i, n := range numbers[1:] {
		s.goal(Result{Metric: fmt.Sprintf("%d gateways beside one", n), Value: beside[i+1][rounds/2], Unit: "%", Goal: 90, Better: "more"})
	}
}

// cost has one gateway serve more and more clients, with four checkpoints a second.
func (s *scale) cost(numbers []int) {
	s.Helper()
	const pace = 250 * time.Millisecond
	transactions := scaled(40)
	s.use(1)
	for _, kind := range []string{"one bucket", "a bucket each"} {
		var reads, messages []float64
		for _, clients := range numbers {
			var step func(seq int)
			var c *crowd
			if kind == "one bucket" {
				f := s.fan(s.bucket(), clients, transactions)
				c, step = f.crowd, func(seq int) { f.step(seq) }
			} else {
				bucket := s.bucket()
				owner := func(i int) string { return fmt.Sprintf("%s-%d", bucket, i) }
				held := make(chan int64, transactions) // each is put once
				c = s.connect(clients, owner, func(_ int, x *Stream, _ time.Time) { held <- x.Seq })
				step = func(seq int) {
					s.commit(owner(seq%clients), int64(seq))
					select {
					case <-held:
					case <-time.After(20 * time.Second):
						s.Fatalf("transaction %d did not reach its client within 20 s", seq)
					}
				}
			}
			n := s.during(func() {
				tick := time.NewTicker(pace)
				defer tick.Stop()
				for seq := range transactions {
					<-tick.C
					step(seq + 1)
				}
			})
			c.close()
			reads, messages = append(reads, n.reads/n.checkpoints), append(messages, n.messages/n.checkpoints)
			name := fmt.Sprintf("%d clients on %s", clients, kind)
			s.report(Result{Metric: name + ", store reads per checkpoint", Value: reads[len(reads)-1], Unit: "", Better: "less"})
			s.report(Result{Metric: name + ", NATS messages per checkpoint", Value: messages[len(messages)-1], Unit: "", Better: "less"})
		}
		last := len(numbers) - 1
		name := fmt.Sprintf("%d clients beside %d on %s", numbers[last], numbers[0], kind)
		s.goal(Result{Metric: name + ", store reads", Value: 100 * reads[last] / reads[0], Unit: "%", Goal: 110, Better: "less"})
		s.goal(Result{Metric: name + ", NATS messages", Value: 100 * messages[last] / messages[0], Unit: "%", Goal: 110, Better: "less"})
	}
}

// goal reports a result for which the benchmark fails, in the end, if its goal is not
// met.
func (s *scale) goal(r Result) {
	s.Helper()
	s.report(r)
	if r.Better == "more" && r.Value < r.Goal || r.Better == "less" && r.Value > r.Goal {
		s.missed = append(s.missed, r.Metric)
	}
}
