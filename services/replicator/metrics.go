package replicator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// metrics are the reference's, by its names, and our own (sluice_replicator_…).
type metrics struct {
	dataBytes, rows, transactions, chunks prometheus.Counter
	publishedBytes, copied                prometheus.Counter
	sessions, unbeaten                    prometheus.Counter
	failures                              map[string]prometheus.Counter // by reason
	batchRows, batchBytes                 prometheus.Histogram
	collectors                            []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer, js *jobs, links *freshness.Links) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		dataBytes:      counter("powersync_data_replicated_bytes_total", "Bytes read from the source."),
		rows:           counter("powersync_rows_replicated_total", "Row changes replicated."),
		transactions:   counter("powersync_transactions_replicated_total", "Source transactions replicated."),
		chunks:         counter("powersync_chunks_replicated_total", "Batches replicated."),
		publishedBytes: counter("sluice_replicator_published_bytes_total", "Bytes of batches published."),
		copied:         counter("sluice_replicator_snapshot_rows_total", "Rows copied from tables."),
		sessions:       counter("sluice_replicator_sessions_total", "Times that this process got the lease of a stream."),
		unbeaten:       counter("sluice_replicator_heartbeat_failures_total", "Heartbeats that could not be written to the source."),
		failures:       map[string]prometheus.Counter{},
		batchRows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_replicator_batch_rows", Help: "Row changes of a batch.", Buckets: prometheus.ExponentialBuckets(1, 4, 10),
		}),
		batchBytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_replicator_batch_bytes", Help: "Size of a batch.", Buckets: prometheus.ExponentialBuckets(256, 4, 10),
		}),
	}
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_replicator_session_failures_total", Help: "Sessions of a stream that ended with an error, by reason: lease_lost, restarting, unreachable, denied, history_lost, other.",
	}, []string{"reason"})
	for _, reason := range []string{leaseLost, "restarting", "unreachable", "denied", "history_lost", "other"} {
		m.failures[reason] = failures.WithLabelValues(reason)
	}
	m.collectors = []prometheus.Collector{m.dataBytes, m.rows, m.transactions, m.chunks, m.publishedBytes, m.copied, m.sessions, m.unbeaten, m.batchRows, m.batchBytes, failures, &gauges{jobs: js}, freshness.Beats(js.beats), links}
	for i, c := range m.collectors {
		if err := reg.Register(c); err != nil {
			for _, done := range m.collectors[:i] {
				reg.Unregister(done)
			}
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// RegisterMetrics registers what Run does, for whoever documents it.
func RegisterMetrics(r prometheus.Registerer) error {
	_, err := newMetrics(r, newJobs(), freshness.NewLinks(nil, nil))
	return err
}

func (m *metrics) unregister(reg prometheus.Registerer) {
	for _, c := range m.collectors {
		reg.Unregister(c)
	}
}

func (m *metrics) batch(rows, transactions int, sourceBytes uint64, size int) {
	m.rows.Add(float64(rows))
	m.transactions.Add(float64(transactions))
	m.dataBytes.Add(float64(sourceBytes))
	m.chunks.Inc()
	m.publishedBytes.Add(float64(size))
	m.batchRows.Observe(float64(rows))
	m.batchBytes.Observe(float64(size))
}

const leaseLost = "lease_lost"

// failed counts a session that ended with an error of class c.
func (m *metrics) failed(err error, c source.ErrorClass) {
	reason := "other"
	switch {
	case errors.Is(err, errLeaseLost):
		reason = leaseLost
	case c == source.Restarting:
		reason = "restarting"
	case c == source.Unreachable:
		reason = "unreachable"
	case c == source.Denied:
		reason = "denied"
	case c == source.Lost:
		reason = "history_lost"
	}
	m.failures[reason].Inc()
}

func (m *metrics) snapshotRows(n int) { m.copied.Add(float64(n)) }

var (
	lagDesc      = prometheus.NewDesc("powersync_replication_lag_seconds", "Age of the oldest change that is not stored.", nil, nil)
	heldDesc     = prometheus.NewDesc("sluice_replicator_sessions", "Streams whose lease this process has.", nil, nil)
	batchesDesc  = prometheus.NewDesc("sluice_replicator_in_flight_batches", "Batches published and not committed.", []string{"stream"}, nil)
	inFlightDesc = prometheus.NewDesc("sluice_replicator_in_flight_bytes", "Bytes published and not committed.", []string{"stream"}, nil)
	slotDesc     = prometheus.NewDesc("sluice_replicator_slot_lag_bytes", "Log that the source keeps for the stream.", []string{"stream"}, nil)
	safeDesc     = prometheus.NewDesc("sluice_replicator_slot_safe_bytes", "Log that may be written before the slot is lost; +Inf if the source sets no bound.", []string{"stream"}, nil)
)

// gauges are read when they are asked for.
type gauges struct {
	jobs *jobs

	mu   sync.Mutex
	lags map[int64]lagAt // guarded by mu
}

type lagAt struct {
	lag source.Lag
	at  time.Time
}

// lagInterval is how often the source is asked for a slot's lag, at most.
const lagInterval = 10 * time.Second

func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lagDesc, heldDesc, batchesDesc, inFlightDesc, slotDesc, safeDesc} {
		ch <- d
	}
}

func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	newest := int64(-1)
	lag := 0.0
	held := 0
	for _, j := range g.jobs.list() {
		if j.running.Load() {
			held++
		}
		p := j.publisher.Load()
		if p == nil {
			// Failing: nothing has been stored since.
			if at := j.commitTime.Load(); at != 0 && j.problem.Load() != nil && int64(j.stream.ID) > newest {
				newest, lag = int64(j.stream.ID), time.Since(time.UnixMicro(at)).Seconds()
			}
			continue
		}
		stream := strconv.FormatInt(int64(j.stream.ID), 10)
		messages, bytes := p.InFlight()
		ch <- prometheus.MustNewConstMetric(batchesDesc, prometheus.GaugeValue, float64(messages), stream)
		ch <- prometheus.MustNewConstMetric(inFlightDesc, prometheus.GaugeValue, float64(bytes), stream)
		if l, ok := g.slot(j); ok && l.Bytes >= 0 {
			ch <- prometheus.MustNewConstMetric(slotDesc, prometheus.GaugeValue, float64(l.Bytes), stream)
			safe := math.Inf(1)
			if l.SafeWALSize >= 0 {
				safe = float64(l.SafeWALSize)
			}
			ch <- prometheus.MustNewConstMetric(safeDesc, prometheus.GaugeValue, safe, stream)
		}
		if id := int64(j.stream.ID); id > newest {
			newest, lag = id, 0
			if at := j.commitTime.Load(); messages > 0 && at != 0 {
				lag = max(time.Since(time.UnixMicro(at)).Seconds(), 0)
			}
		}
	}
	ch <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, lag)
	ch <- prometheus.MustNewConstMetric(heldDesc, prometheus.GaugeValue, float64(held))
}

// slot returns the lag of a job's slot, not older than lagInterval.
func (g *gauges) slot(j *job) (source.Lag, bool) {
	log := j.reader.Load()
	if log == nil {
		return source.Lag{}, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	id := int64(j.stream.ID)
	if known, ok := g.lags[id]; ok && time.Since(known.at) < lagInterval {
		return known.lag, true
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	l, err := (*log).Lag(ctx)
	if err != nil {
		return source.Lag{}, false
	}
	if g.lags == nil {
		g.lags = map[int64]lagAt{}
	}
	g.lags[id] = lagAt{l, time.Now()}
	return l, true
}
