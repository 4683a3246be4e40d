package freshness

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	probeEvery = 2 * time.Second
	// probeTime bounds one probe. A peer may be slow for a moment.
	probeTime = 4 * time.Second
)

// Probe asks a peer for a sign of life.
type Probe func(ctx context.Context) error

// Links are what a process needs of others.
type Links struct {
	log   *slog.Logger
	told  func(peer string, err error)
	peers []*link
}

type link struct {
	peer  string
	probe Probe

	mu     sync.Mutex
	heard  time.Time // guarded by mu; zero before Run
	silent bool      // owned by the goroutine that watches
}

// NewLinks returns links without a peer. told, which may be nil, is called after
// each probe: with nil if the peer has been heard lately, else with what is wrong.
func NewLinks(log *slog.Logger, told func(peer string, err error)) *Links {
	if told == nil {
		told = func(string, error) {}
	}
	return &Links{log: log, told: told}
}

// Add adds a peer; before Run.
func (l *Links) Add(peer string, probe Probe) *Links {
	l.peers = append(l.peers, &link{peer: peer, probe: probe})
	return l
}

// GRPC is a probe of a process that Serve of package rpc serves.
func GRPC(conn grpc.ClientConnInterface) Probe {
	c := healthpb.NewHealthClient(conn)
	return func(ctx context.Context) error {
		_, err := c.Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	}
}

// NATS is a probe of a NATS server.
func NATS(nc *nats.Conn) Probe { return nc.FlushWithContext }

// Heard returns when each peer was last heard.
func (l *Links) Heard() map[string]time.Time {
	all := map[string]time.Time{}
	for _, p := range l.peers {
		if at := p.last(); !at.IsZero() {
			all[p.peer] = at
		}
	}
	return all
}

// Run probes the peers until ctx ends.
func (l *Links) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, p := range l.peers {
		p.hear(time.Now()) // from here on it owes a sign of life
		all.Go(func() { l.watch(ctx, p) })
	}
	all.Wait()
	return nil
}

func (l *Links) watch(ctx context.Context, p *link) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		asked := time.Now()
		attempt, cancel := context.WithTimeout(ctx, probeTime)
		err := p.probe(attempt)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			p.hear(asked)
		}
		switch age := time.Since(p.last()); {
		case age <= Patience:
			if p.silent {
				l.log.Info("a peer is heard again", "peer", p.peer)
			}
			p.silent = false
			l.told(p.peer, nil)
		default:
			if !p.silent {
				l.log.Warn("a peer is silent", "peer", p.peer, "seconds", int(age.Seconds()), "error", err)
			}
			p.silent = true
			l.told(p.peer, fmt.Errorf("nothing was heard of %s for %s", p.peer, age.Round(time.Second)))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *link) hear(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = at
}

func (p *link) last() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard
}

var linkDesc = prometheus.NewDesc("sluice_link_heard_timestamp_seconds",
	"When this process last heard of a peer that it depends on.", []string{"peer"}, nil)

// Describe makes Links a prometheus.Collector.
func (l *Links) Describe(ch chan<- *prometheus.Desc) { ch <- linkDesc }

// Collect makes Links a prometheus.Collector.
func (l *Links) Collect(ch chan<- prometheus.Metric) {
	for peer, at := range l.Heard() {
		ch <- prometheus.MustNewConstMetric(linkDesc, prometheus.GaugeValue, float64(at.UnixMilli())/1e3, peer)
	}
}
