package gateway

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/certificate"
)

// register adds the gateway's metrics: those of spec/06 §7.1, and our own.
func (g *gateway) register(r prometheus.Registerer, shown *certificate.Keeper, more ...prometheus.Collector) error {
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
	chunks := func(f func(hits, misses, shared uint64, bytes int64) float64) func() float64 {
		return func() float64 {
			g.mu.Lock()
			a := g.active
			g.mu.Unlock()
			if a == nil {
				return 0
			}
			return f(a.chunks.Stats())
		}
	}
	s := &g.stats
	counter("powersync_data_synced_bytes_total", "Uncompressed bytes of lines for clients.", &s.PlainBytes)
	counter("powersync_data_sent_bytes_total", "Bytes sent to clients, after compression.", &s.SentBytes)
	counter("powersync_operations_synced_total", "Operations sent to clients.", &s.Ops)
	gauge("powersync_concurrent_connections", "Sync streams now.", func() float64 { return float64(s.Sessions.Load()) })
	counter("sluice_gateway_notices_total", "Checkpoint notices heard.", &s.Notices)
	counter("sluice_gateway_comparisons_total", "Comparisons of everything, after a gap or silence.", &s.Compared)
	counter("sluice_gateway_wakeups_total", "Sessions woken by checkpoints.", &s.Wakeups)
	counter("sluice_gateway_deliveries_total", "Checkpoints completed for clients.", &s.Deliveries)
	counter("sluice_gateway_superseded_total", "Checkpoints replaced by newer ones while being sent.", &s.Superseded)
	counter("sluice_gateway_slow_clients_total", "Streams cut off because the client did not read.", &s.Dropped)
	counter("sluice_gateway_limited_total", "Requests and streams refused because the user or the address has had its part.", &g.limited)
	counter("sluice_gateway_vanished_clients_total", "Connections given up because the client was not heard any more.", &s.Vanished)
	gauge("sluice_gateway_chunk_hits", "Chunks of the active stream that were there.", chunks(func(h, _, _ uint64, _ int64) float64 { return float64(h) }))
	gauge("sluice_gateway_chunk_misses", "Chunks of the active stream that were read.", chunks(func(_, m, _ uint64, _ int64) float64 { return float64(m) }))
	gauge("sluice_gateway_chunk_shared", "Chunks of the active stream that were being read already.", chunks(func(_, _, s uint64, _ int64) float64 { return float64(s) }))
	gauge("sluice_gateway_chunk_bytes", "Memory of kept chunks of the active stream.", chunks(func(_, _, _ uint64, b int64) float64 { return float64(b) }))
	if shown != nil {
		gauge("sluice_gateway_certificate_expiry_timestamp_seconds", "When the TLS certificate expires.", func() float64 { return float64(shown.Expires().Unix()) })
	}
	for _, c := range more {
		failed = append(failed, r.Register(c))
	}
	return errors.Join(failed...)
}
