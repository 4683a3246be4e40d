package bucketstore

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/follow"
	"github.com/sluicesync/sluice/services/bucket-store/internal/writer"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// metrics of bucket-store. Those of spec/06 have its names.
type metrics struct {
	registry prometheus.Registerer
	all      []prometheus.Collector

	commit   prometheus.Histogram
	answer   prometheus.Histogram
	batches  prometheus.Histogram
	rows     prometheus.Histogram
	ops      prometheus.Counter
	changes  prometheus.Counter
	source   prometheus.Counter
	told     prometheus.Counter
	untold   prometheus.Counter
	failures *prometheus.CounterVec
	answers  *prometheus.CounterVec
	buffered *prometheus.GaugeVec

	operationBytes, parameterBytes, replicationBytes prometheus.Gauge
	diskSize, diskFree                               prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		registry: r,
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_store_commit_seconds", Help: "Time of one commit, fsync included.", Buckets: prometheus.ExponentialBuckets(0.0002, 2, 16),
		}),
		answer: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_store_batch_seconds", Help: "From when a batch came until it was answered: its wait for earlier ones and for the commit under way, and its own.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_store_commit_batches", Help: "Batches that share one commit.", Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		rows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_store_commit_rows", Help: "Row changes of one commit.", Buckets: prometheus.ExponentialBuckets(1, 4, 10),
		}),
		ops:              prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_store_ops_total", Help: "Bucket ops stored."}),
		changes:          prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_store_rows_total", Help: "Row changes stored."}),
		source:           prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_store_source_bytes_total", Help: "Bytes of the source's changes that are stored."}),
		told:             prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_store_notices_total", Help: "Checkpoint notices published."}),
		untold:           prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_store_notice_failures_total", Help: "Checkpoint notices that could not be published."}),
		failures:         prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_store_failures_total", Help: "Commits and reads of the ledger that failed."}, []string{"stream"}),
		answers:          prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_store_batches_total", Help: "Batches answered, by result: committed, obsolete (fenced off or of a stream that ended), retry."}, []string{"result"}),
		buffered:         prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_store_reorder_buffer_bytes", Help: "Batches that wait for an earlier one."}, []string{"stream"}),
		operationBytes:   gauge("powersync_operation_storage_size_bytes", "Size of bucket data on disk."),
		parameterBytes:   gauge("powersync_parameter_storage_size_bytes", "Size of the parameter index on disk."),
		replicationBytes: gauge("powersync_replication_storage_size_bytes", "Size of current records on disk."),
		diskSize:         gauge("sluice_store_disk_size_bytes", "Size of the file system that has the embedded store; 0 for other stores."),
		diskFree:         gauge("sluice_store_disk_free_bytes", "Free space of the file system that has the embedded store; 0 for other stores."),
	}
	for _, r := range []ledger.Result{ledger.ResultCommitted, ledger.ResultObsolete, ledger.ResultRetry} {
		m.answers.WithLabelValues(r.String())
	}
	return m, m.add(m.commit, m.answer, m.batches, m.rows, m.ops, m.changes, m.source, m.told, m.untold, m.failures, m.answers, m.buffered, m.operationBytes, m.parameterBytes, m.replicationBytes, m.diskSize, m.diskFree)
}

// add registers collectors; if one fails, none stays.
func (m *metrics) add(all ...prometheus.Collector) error {
	for _, c := range all {
		if err := m.registry.Register(c); err != nil {
			m.unregister()
			return fmt.Errorf("register metrics: %w", err)
		}
		m.all = append(m.all, c)
	}
	return nil
}

// RegisterMetrics registers what Run does, for whoever documents it.
func RegisterMetrics(r prometheus.Registerer) error {
	m, err := newMetrics(r)
	if err != nil {
		return err
	}
	return m.add(append(sharedMetrics(follow.New(follow.Options{}), new(atomic.Bool), time.Now), freshness.Beats(func() []freshness.Beat { return nil }), freshness.NewLinks(nil, nil))...)
}

// sharedMetrics are those of a storage that several processes have open.
func sharedMetrics(f *follow.Follower, owns *atomic.Bool, now func() time.Time) []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	number := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	return []prometheus.Collector{
		gauge("sluice_store_owner", "1: this process is the one that writes to the shared storage.", func() float64 { return number(owns.Load()) }),
		gauge("sluice_store_owned", "1: this process sees that there is a process that writes to the shared storage.", func() float64 { return number(f.Owned()) }),
		gauge("sluice_store_head_age_seconds", "How long ago the newest head was stored that this process sees in the shared storage; 0 = there is none.", func() float64 {
			at := f.StoredAt()
			if at == 0 {
				return 0
			}
			return now().Sub(time.UnixMicro(int64(at))).Seconds()
		}),
	}
}

// unregister lets the next Run in this process register its own.
func (m *metrics) unregister() {
	for _, c := range m.all {
		m.registry.Unregister(c)
	}
}

func label(id model.StreamID) string { return strconv.FormatInt(int64(id), 10) }

func (m *metrics) observer() writer.Observer {
	return writer.Observer{
		Began: func(s *model.Stream) {
			id := label(s.ID)
			m.failures.WithLabelValues(id)
			m.buffered.WithLabelValues(id)
		},
		Ended: func(id model.StreamID) {
			for _, v := range []interface{ DeleteLabelValues(...string) bool }{m.failures, m.buffered} {
				v.DeleteLabelValues(label(id))
			}
		},
		Committed: func(c *ledger.Commit, took time.Duration) {
			m.commit.Observe(took.Seconds())
			m.batches.Observe(float64(c.Batches))
			m.rows.Observe(float64(c.RowCount))
			m.ops.Add(float64(len(c.Ops)))
			m.changes.Add(float64(c.RowCount))
			m.source.Add(float64(c.SourceBytes))
		},
		Failed:   func(id model.StreamID) { m.failures.WithLabelValues(label(id)).Inc() },
		Buffered: func(id model.StreamID, bytes int) { m.buffered.WithLabelValues(label(id)).Set(float64(bytes)) },
		Answered: func(r ledger.Result, took time.Duration, trace string) {
			m.answers.WithLabelValues(r.String()).Inc()
			telemetry.Observe(m.answer, took.Seconds(), trace)
		},
	}
}

func (m *metrics) sizes(s store.Size) {
	m.operationBytes.Set(float64(s.Operations))
	m.parameterBytes.Set(float64(s.Parameters))
	m.replicationBytes.Set(float64(s.Replication))
}
