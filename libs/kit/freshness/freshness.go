// Package freshness is the proof that a process is up to date, as metrics: which
// heartbeat each of its stages has seen last (Beats), and when it last heard of
// each process that it depends on (Links). Both are times, so that their age
// grows by itself when nothing happens any more; that no error was seen says
// nothing.
//
// Invariant: a peer that falls silent without closing its connections is named
// within Patience and a probe (TestSilentPeer).
package freshness

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Patience is how old the newest heartbeat may be, beyond the interval at which
// they are written, and how long nothing may be heard of a peer.
const Patience = 9 * time.Second

// Stage of the pipeline that heartbeats pass, in this order.
type Stage string

const (
	Read      Stage = "read"      // by the replicator, in the source's log
	Published Stage = "published" // by the replicator, to JetStream
	Evaluated Stage = "evaluated" // by a rules-evaluator
	Stored    Stage = "stored"    // by bucket-store, durably
	Noticed   Stage = "noticed"   // by a sync-gateway
	Delivered Stage = "delivered" // to the canary among a sync-gateway's sessions
)

// Beat is the newest heartbeat that a stage has seen of a replication stream.
type Beat struct {
	Stage  Stage
	Stream int64
	At     int64 // when it was written at the source, µs since 1970; 0 = none yet
}

var beatDesc = prometheus.NewDesc("sluice_heartbeat_timestamp_seconds",
	"When the newest heartbeat that this stage has seen was written at the source.", []string{"stage", "stream"}, nil)

// Beats is a metric: what list returns whenever it is read.
func Beats(list func() []Beat) prometheus.Collector { return beats(list) }

type beats func() []Beat

func (beats) Describe(ch chan<- *prometheus.Desc) { ch <- beatDesc }

func (b beats) Collect(ch chan<- prometheus.Metric) {
	for _, x := range b() {
		if x.At > 0 {
			ch <- prometheus.MustNewConstMetric(beatDesc, prometheus.GaugeValue, float64(x.At)/1e6, string(x.Stage), strconv.FormatInt(x.Stream, 10))
		}
	}
}
