// Package telemetry sets up what a process tells of itself: its log, its metrics
// registry, and its traces. Metrics are fetched; they, and traces, are sent only
// where the standard OpenTelemetry variables say (Export).
package telemetry

import (
	"crypto/rand"
	"encoding/hex"
	"io"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/service"
)

// levels are the reference's names. Between ours lie http and verbose.
var levels = map[string]slog.Level{
	"silly": slog.LevelDebug - 4, "debug": slog.LevelDebug, "verbose": slog.LevelDebug + 2, "http": service.LevelHTTP,
	"info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// Logger returns a log as configured, whose level can be changed (LevelOf). format
// is used where the config has none.
func Logger(w io.Writer, l config.Logging, format string) *slog.Logger {
	level, ok := levels[l.Level]
	if !ok {
		level = slog.LevelInfo
	}
	if l.Format != "" {
		format = l.Format
	}
	at := &Level{configured: level}
	at.now.Set(level)
	o := &slog.HandlerOptions{Level: &at.now}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if format == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	at.log = slog.New(leveled{h, at})
	return at.log
}

// Format is the log format of a process that nobody configured: JSON, as
// machines read it, unless NODE_ENV says that this is not production.
func Format() string {
	if env := os.Getenv("NODE_ENV"); env != "" && env != "production" {
		return "text"
	}
	return "json"
}

// Registry returns a metrics registry with those of the Go runtime and of the
// process.
func Registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Env returns the surroundings of the service name in this process, and registers
// what r has of every service. shown is its certificate, nil without TLS between
// services.
func Env(name, instance string, shown *certificate.Keeper, log *slog.Logger, r prometheus.Registerer) service.Env {
	h := &service.Health{}
	r.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_ready", Help: "1 if the service can do its work now, as its readiness probe says, else 0."}, func() float64 {
			if h.Snapshot().Ready {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_build_info", Help: "Always 1; the label says which version runs.", ConstLabels: prometheus.Labels{"version": version()}},
			func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_certificate_start_timestamp_seconds", Help: "From when the certificate that other services are shown is valid; 0 without TLS between services."}, func() float64 {
			if shown == nil {
				return 0
			}
			return float64(shown.Starts().Unix())
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_certificate_expiry_timestamp_seconds", Help: "When the certificate that other services are shown expires; 0 without TLS between services."}, func() float64 {
			if shown == nil {
				return 0
			}
			return float64(shown.Expires().Unix())
		}),
	)
	return service.Env{Log: log.With("service", name), Metrics: r, Health: h, Instance: instance, TLS: shown}
}

// Observe puts v into h, with the id of the trace that it is of as an exemplar; ""
// = none.
func Observe(h prometheus.Histogram, v float64, traceID string) {
	if traceID != "" {
		if e, ok := h.(prometheus.ExemplarObserver); ok {
			e.ObserveWithExemplar(v, prometheus.Labels{"trace_id": traceID})
			return
		}
	}
	h.Observe(v)
}

// Instance returns a name that no other process has.
func Instance() string {
	var b [8]byte
	rand.Read(b[:]) // never fails, as its documentation says
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "-" + hex.EncodeToString(b[:])
}
