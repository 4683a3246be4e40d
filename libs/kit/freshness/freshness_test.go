package freshness

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// samples are the values of a collector, by their labels.
func samples(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			all[name] = m.GetGauge().GetValue()
		}
	}
	return all
}

func TestBeats(t *testing.T) {
	list := []Beat{{Stage: Read, Stream: 3, At: 1_500_000}, {Stage: Published, Stream: 3}}
	c := Beats(func() []Beat { return list })
	if got, want := samples(t, c), map[string]float64{"sluice_heartbeat_timestamp_seconds read 3": 1.5}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	list = nil
	if got := samples(t, c); len(got) != 0 {
		t.Errorf("a stream that is gone has an age: %v", got)
	}
	// Several services of one process have the same metric.
	r := prometheus.NewRegistry()
	for _, name := range []string{"one", "two"} {
		if err := prometheus.WrapRegistererWith(prometheus.Labels{"service": name}, r).Register(c); err != nil {
			t.Error(err)
		}
	}
}

// TestSilentPeer: a peer that hangs is named within Patience and a probe, and
// one that answers is not; when it is back it is heard at once.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		said := map[string]error{}
		var mu sync.Mutex // guards said
		l := NewLinks(slog.New(slog.DiscardHandler), func(peer string, err error) {
			mu.Lock()
			defer mu.Unlock()
			said[peer] = err
		}).
			Add("good", func(context.Context) error { return nil }).
			Add("bad", func(ctx context.Context) error {
				if hangs.Load() {
					<-ctx.Done()
				}
				return ctx.Err()
			})
		of := func(peer string) error {
			mu.Lock()
			defer mu.Unlock()
			return said[peer]
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		wait := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		wait(10 * time.Second)
		if of("good") != nil || of("bad") != nil {
			t.Fatalf("both answer: %v, %v", of("good"), of("bad"))
		}
		hangs.Store(true)
		cut := time.Now()
		wait(Patience - probeEvery)
		if of("bad") != nil {
			t.Errorf("named too soon: %v", of("bad"))
		}
		wait(probeEvery + probeTime)
		if of("bad") == nil || of("good") != nil {
			t.Errorf("after %s: %v, %v", time.Since(cut), of("bad"), of("good"))
		}
		if at := l.peers[1].last(); at.After(cut) {
			t.Errorf("heard at %s, after it went silent at %s", at, cut)
		}
		hangs.Store(false)
		wait(probeTime + probeEvery)
		if of("bad") != nil {
			t.Errorf("it answers again: %v", of("bad"))
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := samples(t, l); len(got) != 2 || got["sluice_link_heard_timestamp_seconds bad"] == 0 {
			t.Errorf("the metric: %v", got)
		}
	})
}
