// Package service has what every service is handed besides its config and
// connections: a log, a metrics registry, a tracer, and the health that probes read.
package service

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/trace"
)

// Env is a service's surroundings.
type Env struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer
	Health  *Health
	// Instance is unique per process.
	Instance string
	// Trace makes the service's spans; nil unless they are exported.
	Trace *trace.Tracer
	// TLS is what is shown to other services, and whom of them to trust; nil =
	// connections are plain, or within the process.
	TLS *certificate.Keeper
}

// LevelHTTP is the reference's log level between debug and info: requests that
// were served.
const LevelHTTP = slog.LevelDebug + 3

// ErrStarting is the reason of a Health that nobody has reported to yet.
var ErrStarting = errors.New("starting")

// Health is what the probes of one service say (spec/06 §7.2). The zero Health
// is: not started, not ready. It is safe for concurrent use.
type Health struct {
	mu      sync.Mutex
	started bool
	ready   bool
	reason  error
	touched time.Time
}

// Status is a Health at one moment.
type Status struct {
	Started bool
	Ready   bool
	// Reason is why it is not ready; nil if it is.
	Reason error
	// Touched is when the service last showed that it is alive.
	Touched time.Time
}

// Start says that the service has come up: configuration read, ports open.
func (h *Health) Start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = true
	h.touched = time.Now()
}

// SetReady says whether the service can do its work now: nil, or the reason why
// not.
func (h *Health) SetReady(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready, h.reason = err == nil, err
	h.touched = time.Now()
}

// Touch says that the service is alive: call it on each piece of work and each
// idle round.
func (h *Health) Touch() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.touched = time.Now()
}

// Snapshot returns the present state.
func (h *Health) Snapshot() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := Status{Started: h.started, Ready: h.ready, Reason: h.reason, Touched: h.touched}
	if !s.Ready && s.Reason == nil {
		s.Reason = ErrStarting
	}
	return s
}
