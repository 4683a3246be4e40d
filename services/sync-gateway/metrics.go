package gateway

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/auth"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/chunk"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/transport"
)

// RegisterMetrics registers what Run does, for whoever documents it.
func RegisterMetrics(r prometheus.Registerer) error {
	return new(gateway).register(r, transport.New(transport.Options{}), new(auth.Verifier), nil,
		freshness.Beats(func() []freshness.Beat { return nil }), freshness.NewLinks(nil, nil))
}

// register adds the gateway's metrics: those of spec/06 §7.1, and our own.
func (g *gateway) register(r prometheus.Registerer, server *transport.Server, verifier *auth.Verifier, shown *certificate.Keeper, more ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	var failed []error
	counter := func(name, help string, n *atomic.Uint64) {
		failed = append(failed, r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return float64(n.Load()) })))
	}
	gauge := func(name, help string, f func() float64) {
		failed = append(failed, r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)))
	}
	// split is a counter with a label that has the values given.
	split := func(name, help, label, value string, f func() float64) {
		failed = append(failed, r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{label: value}}, f)))
	}
	traced := func(name, help string, buckets []float64) func(time.Duration, string) {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		failed = append(failed, r.Register(h))
		return func(d time.Duration, trace string) { telemetry.Observe(h, d.Seconds(), trace) }
	}
	histogram := func(name, help string, buckets []float64) func(time.Duration) {
		observe := traced(name, help, buckets)
		return func(d time.Duration) { observe(d, "") }
	}
	chunks := func(f func(*chunk.Cache) int64) func() float64 {
		return func() float64 {
			g.mu.Lock()
			a := g.active
			g.mu.Unlock()
			if a == nil {
				return 0
			}
			return float64(f(a.chunks))
		}
	}
	s := &g.stats
	counter("powersync_data_synced_bytes_total", "Uncompressed bytes of lines for clients.", &s.PlainBytes)
	counter("powersync_data_sent_bytes_total", "Bytes sent to clients, after compression.", &s.SentBytes)
	counter("powersync_operations_synced_total", "Operations sent to clients.", &s.Ops)
	gauge("powersync_concurrent_connections", "Sync streams now.", func() float64 { return float64(s.Sessions.Load()) })
	counter("sluice_gateway_notices_total", "Checkpoint notices heard.", &s.Notices)
	counter("sluice_gateway_store_reads_total", "Calls of bucket-store to read what sessions need: they are made for all of them together, and do not grow with the clients of a bucket.", &s.Reads)
	counter("sluice_gateway_comparisons_total", "Comparisons of everything, after a gap or silence.", &s.Compared)
	counter("sluice_gateway_wakeups_total", "Sessions woken by checkpoints.", &s.Wakeups)
	counter("sluice_gateway_deliveries_total", "Checkpoints completed for clients.", &s.Deliveries)
	counter("sluice_gateway_superseded_total", "Checkpoints replaced by newer ones while being sent.", &s.Superseded)
	counter("sluice_gateway_slow_clients_total", "Streams cut off because the client did not read.", &s.Dropped)
	counter("sluice_gateway_limited_total", "Requests and streams refused because the user or the address has had its part.", &g.limited)
	counter("sluice_gateway_vanished_clients_total", "Connections given up because the client was not heard any more.", &s.Vanished)
	gauge("sluice_gateway_silent_clients", "Connections of clients of which nothing has been heard for 11 s: those that are there acknowledge something every 8 s.",
		func() float64 { return float64(server.Silent()) })
	for i, reason := range transport.Refusals {
		split("sluice_gateway_refused_requests_total", "Requests and sockets refused, by reason: unauthorized, limit, invalid, unavailable.", "reason", reason,
			func() float64 { return float64(server.Refused()[i]) })
	}
	const streams = "sluice_gateway_streams"
	for i, transport := range []string{"http", "websocket"} {
		failed = append(failed, r.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: streams, Help: "HTTP streams and WebSockets now, by transport: http, websocket. Each may be as many as sluice_gateway_max_streams.",
			ConstLabels: prometheus.Labels{"transport": transport},
		}, func() float64 {
			http, sockets := server.Open()
			return float64([]int64{http, sockets}[i])
		})))
	}
	gauge("sluice_gateway_max_streams", "Bound of the HTTP streams, and again of the WebSockets.", func() float64 { return float64(server.Limit()) })
	s.Opened = histogram("sluice_gateway_first_checkpoint_seconds", "From a stream's request until its first checkpoint was sent.", prometheus.ExponentialBuckets(0.001, 2, 17))
	s.Caught = traced("sluice_gateway_delivery_seconds", "From when the gateway had heard of a change until it was sent to a client that has it.", prometheus.ExponentialBuckets(0.0005, 2, 17))
	g.acknowledged = histogram("sluice_gateway_write_checkpoint_seconds", "Time to answer a request for a write checkpoint.", prometheus.ExponentialBuckets(0.0005, 2, 15))
	counter("sluice_gateway_chunk_hits_total", "Chunks that were there.", &g.chunks.Hits)
	counter("sluice_gateway_chunk_misses_total", "Chunks that were read.", &g.chunks.Misses)
	counter("sluice_gateway_chunk_shared_total", "Chunks that were being read already.", &g.chunks.Shared)
	gauge("sluice_gateway_chunk_bytes", "Memory of kept chunks of the active stream.", chunks((*chunk.Cache).Bytes))
	gauge("sluice_gateway_pinned_bytes", "Memory of chunks of the active stream that are on their way to clients.", chunks((*chunk.Cache).Pinned))
	for _, result := range []string{"ok", "failed"} {
		split("sluice_gateway_jwks_fetches_total", "Fetches of key sets, by result: ok, failed.", "result", result, func() float64 {
			f := verifier.Fetches()
			if result == "ok" {
				return float64(f.Done)
			}
			return float64(f.Failed)
		})
	}
	gauge("sluice_gateway_jwks_failing", "Key sets that could not be fetched at the last attempt.", func() float64 { return float64(verifier.Fetches().Failing) })
	gauge("sluice_gateway_certificate_expiry_timestamp_seconds", "When the TLS certificate expires; 0 without TLS.", func() float64 {
		if shown == nil {
			return 0
		}
		return float64(shown.Expires().Unix())
	})
	for _, c := range more {
		failed = append(failed, r.Register(c))
	}
	return errors.Join(failed...)
}
