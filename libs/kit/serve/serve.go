// Package serve is the private HTTP server of a process: metrics, profiles and
// probes, on a port that clients never see.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluicesync/sluice/libs/kit/service"
)

const (
	// aliveFor is how long after a sign of life a service counts as alive.
	aliveFor  = 10 * time.Second
	drainTime = 2 * time.Second
)

// Probe is the body of /probes/* (spec/06 §7.2).
type Probe struct {
	Ready     bool      `json:"ready"`
	Started   bool      `json:"started"`
	TouchedAt time.Time `json:"touched_at"`
	// Reason is ours: why it is not ready.
	Reason string `json:"reason,omitempty"`
}

// Joined is the state of several services in one process: of the worst of them.
func Joined(all map[string]*service.Health) Probe {
	p := Probe{Ready: true, Started: true}
	first := true // a zero TouchedAt is a service that never gave a sign of life
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := all[name].Snapshot()
		p.Started = p.Started && s.Started
		if !s.Ready {
			p.Ready = false
			if p.Reason != "" {
				p.Reason += "; "
			}
			p.Reason += name + ": " + s.Reason.Error()
		}
		if first || s.Touched.Before(p.TouchedAt) {
			p.TouchedAt, first = s.Touched, false
		}
	}
	return p
}

// Handler serves /metrics, /debug/pprof/, /probes/{startup,liveness,readiness} and,
// unless it is nil, logLevel at /debug/log-level.
func Handler(g prometheus.Gatherer, all map[string]*service.Health, logLevel http.Handler) http.Handler {
	m := http.NewServeMux()
	if logLevel != nil {
		m.Handle("/debug/log-level", logLevel)
	}
	m.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	m.HandleFunc("/debug/pprof/", pprof.Index)
	m.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("/debug/pprof/profile", pprof.Profile)
	m.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("/debug/pprof/trace", pprof.Trace)
	probe := func(ok func(Probe) bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			p := Joined(all)
			w.Header().Set("Content-Type", "application/json")
			if !ok(p) {
				w.WriteHeader(http.StatusBadRequest)
			}
			// An error here is the prober's: it is gone.
			_ = json.NewEncoder(w).Encode(p)
		}
	}
	m.Handle("GET /probes/startup", probe(func(p Probe) bool { return p.Started }))
	m.Handle("GET /probes/readiness", probe(func(p Probe) bool { return p.Ready }))
	m.Handle("GET /probes/liveness", probe(func(p Probe) bool { return time.Since(p.TouchedAt) < aliveFor }))
	return m
}

// Listen listens on a private port; 0 = none, and the listener is nil.
func Listen(port int) (net.Listener, error) {
	if port == 0 {
		return nil, nil
	}
	lis, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, fmt.Errorf("listen for metrics and probes: %w", err)
	}
	return lis, nil
}

// Serve serves h on lis, which it owns, until ctx ends. Without a listener it
// only waits.
func Serve(ctx context.Context, lis net.Listener, h http.Handler) error {
	if lis == nil {
		<-ctx.Done()
		return nil
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1) // one value: Serve's
	go func() { done <- s.Serve(lis) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := s.Shutdown(drain); err != nil {
		if err := s.Close(); err != nil {
			return fmt.Errorf("close %s: %w", lis.Addr(), err)
		}
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", lis.Addr(), err)
	}
	return nil
}
