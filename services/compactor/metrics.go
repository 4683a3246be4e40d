package compactor

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/freshness"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/compactor/internal/scan"
)

type metrics struct {
	read, moved, cleared, untracked, lookups, requests prometheus.Counter
	reemits, reemitBytes                               prometheus.Counter
	buckets                                            *prometheus.CounterVec // result: ok, failed
	runs                                               *prometheus.CounterVec // result: ok, stopped
	seconds                                            prometheus.Histogram
	lastDone, interval                                 prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, links *freshness.Links) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_compactor_" + name, Help: help})
	}
	vec := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_compactor_" + name, Help: help}, []string{"result"})
	}
	m := &metrics{
		read:        counter("ops_read_total", "Ops read."),
		moved:       counter("ops_moved_total", "Ops turned into MOVEs."),
		cleared:     counter("ops_cleared_total", "Ops removed by CLEARs."),
		untracked:   counter("ops_untracked_total", "Ops beyond the memory limit, compacted less than possible."),
		reemits:     counter("ops_reemitted_total", "Rows put again to fold the history that they held back."),
		reemitBytes: counter("reemitted_bytes_total", "Bytes of rows put again."),
		lookups:     counter("lookups_removed_total", "Superseded parameter entries removed."),
		requests:    counter("requests_expired_total", "Checkpoint requests dropped because they were old."),
		buckets:     vec("buckets_total", "Buckets compacted, by result: ok, failed."),
		runs:        vec("runs_total", "Runs that had something to do, by themselves and on demand, by result: ok, stopped."),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_compactor_run_seconds", Help: "Duration of runs that had something to do.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 9),
		}),
		lastDone: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_compactor_last_run_timestamp_seconds", Help: "When a run last ended well, or the compactor started.",
		}),
		interval: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_compactor_interval_seconds", Help: "From one walk over the parameter index to the next; 0 if nothing runs by itself.",
		}),
	}
	m.lastDone.SetToCurrentTime()
	for _, result := range []string{"ok", "failed"} {
		m.buckets.WithLabelValues(result)
	}
	for _, result := range []string{"ok", "stopped"} {
		m.runs.WithLabelValues(result)
	}
	for _, c := range []prometheus.Collector{m.read, m.moved, m.cleared, m.untracked, m.reemits, m.reemitBytes, m.lookups, m.requests, m.buckets, m.runs, m.seconds, m.lastDone, m.interval, links} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register compactor metrics: %w", err)
		}
	}
	return m, nil
}

// RegisterMetrics registers what Run does, for whoever documents it.
func RegisterMetrics(r prometheus.Registerer) error {
	_, err := newMetrics(r, freshness.NewLinks(nil, nil))
	return err
}

func (m *metrics) ops(r scan.Result) {
	m.read.Add(float64(r.Read))
	m.moved.Add(float64(r.Moved))
	m.cleared.Add(float64(r.Cleared))
	m.untracked.Add(float64(r.Untracked))
}

func (m *metrics) reemitted(r *pb.ReemitReply) {
	m.reemits.Add(float64(r.GetOps()))
	m.reemitBytes.Add(float64(r.GetBytes()))
}

func (m *metrics) ran(t *tally, err error, d time.Duration) {
	m.lookups.Add(float64(t.lookups))
	m.requests.Add(float64(t.requests))
	m.buckets.WithLabelValues("ok").Add(float64(t.buckets))
	m.buckets.WithLabelValues("failed").Add(float64(t.failed))
	if err == nil && !t.any() {
		m.lastDone.SetToCurrentTime()
		return
	}
	m.seconds.Observe(d.Seconds())
	if err != nil {
		m.runs.WithLabelValues("stopped").Inc()
		return
	}
	m.runs.WithLabelValues("ok").Inc()
	m.lastDone.SetToCurrentTime()
}
