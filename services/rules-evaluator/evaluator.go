// Package evaluator is the stateless stage between replicator and bucket-store:
// it takes change batches from JetStream, evaluates them with the sync config
// of their stream and hands them to the ledger. Any number of replicas share
// the work; the chain that each batch carries puts it in order again.
//
// It also deploys the sync config that the configuration names, at the start
// and whenever the file changes; replicas that do so at once deploy the same.
package evaluator

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/telemetry"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/catalog"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/evaluate"
	"github.com/sluicesync/sluice/services/rules-evaluator/internal/flow"
)

// Config of an evaluator. The zero Config is valid.
type Config struct {
	// Workers is how many batches are evaluated at once; 0 = one a core.
	Workers int
	// MaxBytes bounds the messages that are held at once, by their size on
	// JetStream; 0 = 16 MiB. Evaluated they are larger, and the evaluators together
	// should hold less than the reorder buffer of bucket-store, which turns away
	// what goes beyond.
	MaxBytes int64
	// DefaultSchema is the schema of tables that a sync config names without
	// one; "" = public, Postgres's.
	DefaultSchema string
	// SyncConfigPath is a file to deploy and to watch, SyncConfigContent the
	// text to deploy if there is no file; both empty = deployed by the API.
	SyncConfigPath    string
	SyncConfigContent string
	// ExitOnError makes an invalid sync config at the start an error of Run.
	// Otherwise, and later on, it is logged and the old one stays.
	ExitOnError bool
	// SlotPrefix of the names of new streams; "" = the store's default.
	SlotPrefix string
}

// Validate returns everything that is wrong with c.
func (c *Config) Validate() error {
	var all []error
	if c.Workers < 0 {
		all = append(all, fmt.Errorf("workers is %d, less than 0", c.Workers))
	}
	if c.MaxBytes < 0 {
		all = append(all, fmt.Errorf("max bytes is %d, less than 0", c.MaxBytes))
	}
	if c.SyncConfigPath != "" && c.SyncConfigContent != "" {
		all = append(all, errors.New("sync config is given as a file and as text"))
	}
	return errors.Join(all...)
}

const defaultMaxBytes = 16 << 20

// Conns is what an evaluator is handed.
type Conns struct {
	Store grpc.ClientConnInterface
	NATS  *nats.Conn
}

// Run evaluates batches until ctx ends or the configured sync config is found
// invalid at the start (see Config.ExitOnError). At the end it gives back what
// it holds and leaves nothing running.
func Run(ctx context.Context, cfg Config, conns Conns, env service.Env) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("evaluator config: %w", err)
	}
	if cfg.Workers == 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultMaxBytes
	}
	if cfg.DefaultSchema == "" {
		cfg.DefaultSchema = "public"
	}
	plans := catalog.New(pb.NewCatalogClient(conns.Store), cfg.DefaultSchema, env.Log)
	ready := &readiness{health: env.Health, waiting: map[string]error{
		"sync configs": service.ErrStarting, "JetStream": service.ErrStarting, "bucket-store": service.ErrStarting,
	}}
	links := freshness.NewLinks(env.Log, func(peer string, err error) { ready.set("link to "+peer, err) }).
		Add("nats", freshness.NATS(conns.NATS)).
		Add("bucket-store", freshness.GRPC(conns.Store))
	m, err := newMetrics(env.Metrics, freshness.Beats(plans.Beats), links)
	if err != nil {
		return err
	}
	defer m.unregister()
	m.inFlightMax.Set(float64(cfg.MaxBytes))
	problems := newReporter(env.Log, time.Now)
	f := flow.New(flow.Config{Workers: cfg.Workers, MaxBytes: cfg.MaxBytes}, conns.NATS, pb.NewAppenderClient(conns.Store), plans, flow.Observer{
		Batch: func(changes, rows int, size int64, took time.Duration, trace string) {
			m.batches.Inc()
			m.changes.Add(float64(changes))
			m.rows.Add(float64(rows))
			m.bytes.Add(float64(size))
			m.batchChanges.Observe(float64(changes))
			telemetry.Observe(m.duration, took.Seconds(), trace)
		},
		Settled: m.answered,
		Poison: func(err error) {
			m.poisonBatches.Inc()
			env.Log.Error("a batch cannot be decoded and is dropped; the replicator reads it again", "code", errs.S9002, "error", err)
		},
		Problem: func(p evaluate.Problem) {
			if p.Removed || p.Definition == "" {
				m.poisonRows.Inc()
			} else {
				m.rowErrors.Inc()
			}
			problems.report(p)
		},
		Pending: func(n uint64) { m.pending.Set(float64(n)) },
		InFlight: func(messages int, bytes int64) {
			m.held.Set(float64(messages))
			m.inFlight.Set(float64(bytes))
		},
		Fetching: func(err error) { ready.set("JetStream", err) },
		Applying: func(err error) { ready.set("bucket-store", err) },
		Alive:    env.Health.Touch,
		Trace:    env.Trace,
	}, env.Log)

	env.Health.Start()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return plans.Run(ctx, func(err error) { ready.set("sync configs", err) }) })
	g.Go(func() error { return f.Run(ctx) })
	g.Go(func() error { return links.Run(ctx) })
	g.Go(func() error {
		return plans.Deploy(ctx, catalog.Source{
			Path: cfg.SyncConfigPath, Content: cfg.SyncConfigContent, ExitOnError: cfg.ExitOnError, SlotPrefix: cfg.SlotPrefix,
		})
	})
	err = g.Wait()
	env.Health.SetReady(errors.New("stopped"))
	return err
}

// readiness joins what an evaluator needs to do its work.
type readiness struct {
	health  *service.Health
	mu      sync.Mutex
	waiting map[string]error // guarded by mu; what is missing, and why
}

func (r *readiness) set(what string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.waiting, what)
	} else {
		r.waiting[what] = err
	}
	for what, err := range r.waiting {
		r.health.SetReady(fmt.Errorf("%s: %w", what, err))
		return
	}
	r.health.SetReady(nil)
}

// metrics of an evaluator.
type metrics struct {
	registerer                           prometheus.Registerer
	all                                  []prometheus.Collector
	batches, changes, rows, bytes        prometheus.Counter
	rowErrors, poisonRows, poisonBatches prometheus.Counter
	inFlight, inFlightMax, held, pending prometheus.Gauge
	duration, batchChanges               prometheus.Histogram
	settled                              map[pb.ApplyResult]prometheus.Counter
}

// answered counts an answer of bucket-store; one of a later version is unspecified.
func (m *metrics) answered(r pb.ApplyResult) {
	c, known := m.settled[r]
	if !known {
		c = m.settled[pb.ApplyResult_APPLY_RESULT_UNSPECIFIED]
	}
	c.Inc()
}

func newMetrics(r prometheus.Registerer, more ...prometheus.Collector) (*metrics, error) {
	m := &metrics{registerer: r, all: more, settled: map[pb.ApplyResult]prometheus.Counter{}}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "sluice", Subsystem: "evaluator", Name: name, Help: help})
		m.all = append(m.all, c)
		return c
	}
	m.batches = counter("batches_total", "Change batches evaluated, redeliveries included.")
	m.changes = counter("changes_total", "Row changes evaluated.")
	m.rows = counter("rows_total", "Evaluated rows sent to bucket-store.")
	m.bytes = counter("bytes_total", "Bytes of the batches evaluated.")
	m.rowErrors = counter("row_errors_total", "Queries that could not be evaluated for a row.")
	m.poisonRows = counter("poison_rows_total", "Rows that could not be evaluated at all and were taken out of their buckets.")
	m.poisonBatches = counter("poison_batches_total", "Batches that could not be decoded.")
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "sluice", Subsystem: "evaluator", Name: name, Help: help})
		m.all = append(m.all, g)
		return g
	}
	m.inFlight = gauge("in_flight_bytes", "Bytes of batches that were fetched and have no answer of bucket-store.")
	m.inFlightMax = gauge("in_flight_max_bytes", "Bound of the bytes in flight; at it nothing more is fetched.")
	m.held = gauge("in_flight_batches", "Batches that were fetched and have no answer of bucket-store.")
	m.pending = gauge("pending_batches", "Batches in JetStream that no evaluator had fetched when this one fetched its last.")
	m.batchChanges = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "sluice", Subsystem: "evaluator", Name: "batch_changes", Help: "Row changes of a batch.",
		Buckets: prometheus.ExponentialBuckets(1, 4, 10),
	})
	m.duration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "sluice", Subsystem: "evaluator", Name: "batch_seconds", Help: "Time to evaluate and encode a batch.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
	})
	settled := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "sluice", Subsystem: "evaluator", Name: "settled_total", Help: "Answers of bucket-store, by result: committed, obsolete, retry.",
	}, []string{"result"})
	for result, label := range map[pb.ApplyResult]string{
		pb.ApplyResult_APPLY_RESULT_UNSPECIFIED: "unspecified",
		pb.ApplyResult_APPLY_RESULT_COMMITTED:   "committed",
		pb.ApplyResult_APPLY_RESULT_OBSOLETE:    "obsolete",
		pb.ApplyResult_APPLY_RESULT_RETRY:       "retry",
	} {
		m.settled[result] = settled.WithLabelValues(label)
	}
	m.all = append(m.all, m.duration, m.batchChanges, settled)
	for i, c := range m.all {
		if err := r.Register(c); err != nil {
			m.all = m.all[:i]
			m.unregister()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// RegisterMetrics registers what Run does, for whoever documents it.
func RegisterMetrics(r prometheus.Registerer) error {
	_, err := newMetrics(r, freshness.Beats(func() []freshness.Beat { return nil }), freshness.NewLinks(nil, nil))
	return err
}

func (m *metrics) unregister() {
	for _, c := range m.all {
		m.registerer.Unregister(c)
	}
}
