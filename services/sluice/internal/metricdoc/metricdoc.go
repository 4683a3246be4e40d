// Package metricdoc makes docs/metrics.md of what the services register.
//
// Invariants:
//
//   - docs/metrics.md is what Document makes (TestDocument).
//   - A running instance exposes what is documented and nothing else (the
//     TestTrace… of e2e/suites).
package metricdoc

import (
	"cmp"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/sluicesync/sluice/libs/kit/telemetry"
	bucketstore "github.com/sluicesync/sluice/services/bucket-store"
	"github.com/sluicesync/sluice/services/compactor"
	"github.com/sluicesync/sluice/services/replicator"
	evaluator "github.com/sluicesync/sluice/services/rules-evaluator"
	gateway "github.com/sluicesync/sluice/services/sync-gateway"
)

var services = []struct {
	name     string
	register func(prometheus.Registerer) error
}{
	{"replicator", replicator.RegisterMetrics},
	{"rules-evaluator", evaluator.RegisterMetrics},
	{"bucket-store", bucketstore.RegisterMetrics},
	{"sync-gateway", gateway.RegisterMetrics},
	{"compactor", compactor.RegisterMetrics},
}

// runtime are the metrics of the Go runtime and of the process that the alerts
// and boards use, of the many that there are.
var runtime = []string{
	"go_gc_duration_seconds", "go_goroutines", "go_memstats_heap_alloc_bytes", "process_cpu_seconds_total", "process_max_fds", "process_open_fds",
	"process_resident_memory_bytes", "process_start_time_seconds",
}

const preamble = `# Metrics

<!-- Made by "make generate" of what the services register. -->

Every service has these on its private port at ` + "`/metrics`" + `, and pushes them to an [OpenTelemetry collector](operations.md#opentelemetry) if one is configured.
Names that begin with ` + "`powersync_`" + ` are the reference server's. ` + "`sluice dev`" + `, one process with all services, adds a label ` + "`service`" + ` to each but those of the process;
elsewhere have Prometheus add it, as the Helm chart does: the boards use it.

Everything is there from the start, at zero; what has the label ` + "`stream`" + `, the number of a replication stream, as long as the stream is replicated. Labels have few values: no
user, table, bucket or address is ever in one. A histogram has the suffixes ` + "`_bucket`, `_sum` and `_count`" + `.

[What to watch](operations.md#metrics), the [alerts](runbooks.md) and the boards in ` + "`deploy/helm/sluice/files`" + ` are made of them.
`

// Document returns the text of docs/metrics.md.
func Document() (string, error) {
	var b strings.Builder
	b.WriteString(preamble)
	for _, s := range services {
		var r recorder
		if err := s.register(&r); err != nil {
			return "", fmt.Errorf("%s: %w", s.name, err)
		}
		section(&b, s.name, r.found)
	}
	var every recorder
	telemetry.Env("any", "any", nil, slog.New(slog.DiscardHandler), &every)
	of := len(every.found) + len(runtime)
	families, err := telemetry.Registry().Gather()
	if err != nil {
		return "", fmt.Errorf("gather those of the process: %w", err)
	}
	for _, f := range families {
		if slices.Contains(runtime, f.GetName()) {
			every.found = append(every.found, metric{name: f.GetName(), kind: kindOf(f.GetType()), help: f.GetHelp()})
		}
	}
	if len(every.found) != of {
		return "", fmt.Errorf("of %v only %v are exposed", runtime, every.found)
	}
	section(&b, "Every process", every.found)
	b.WriteString("\nand the rest of what the Prometheus client for Go says of its process (`go_…`, `process_…`).\n")
	return b.String(), nil
}

func section(b *strings.Builder, title string, all []metric) {
	fmt.Fprintf(b, "\n## %s\n\n| name | type | unit | labels | |\n|---|---|---|---|---|\n", title)
	slices.SortFunc(all, func(x, y metric) int { return cmp.Compare(x.name, y.name) })
	for _, m := range all {
		labels := ""
		if len(m.labels) > 0 {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", m.name, m.kind, unit(m.name), labels, strings.ReplaceAll(m.help, "|", `\|`))
	}
}

// metric is one of them, as it is documented.
type metric struct {
	name, kind, help string
	labels           []string
}

// unit is in the name.
func unit(name string) string {
	name = strings.TrimSuffix(name, "_total")
	switch {
	case strings.HasSuffix(name, "_timestamp_seconds"), strings.HasSuffix(name, "_time_seconds"):
		return "Unix time, s"
	case strings.HasSuffix(name, "_seconds"):
		return "s"
	case strings.HasSuffix(name, "_bytes"):
		return "bytes"
	}
	return ""
}

// recorder is a registry that notes what is registered.
type recorder struct{ found []metric }

func (r *recorder) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		c.Describe(descs)
	}()
	kind := kind(c)
	for d := range descs {
		m, err := parse(d.String())
		if err != nil {
			return err
		}
		m.kind = kind
		// Those that differ in the value of a label are one.
		if !slices.ContainsFunc(r.found, func(o metric) bool { return o.name == m.name }) {
			r.found = append(r.found, m)
		}
	}
	return nil
}

func (r *recorder) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

func (r *recorder) Unregister(prometheus.Collector) bool { return true }

// kind is the type of a collector's metrics. Of one of ours, which has nothing to
// say yet, they are gauges.
func kind(c prometheus.Collector) string {
	switch c.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.HistogramVec:
		return "histogram"
	}
	samples := make(chan prometheus.Metric)
	go func() {
		defer close(samples)
		c.Collect(samples)
	}()
	kind := "gauge"
	for s := range samples {
		var m dto.Metric
		switch err := s.Write(&m); {
		case err != nil:
			kind = err.Error()
		case m.Counter != nil:
			kind = "counter"
		case m.Histogram != nil:
			kind = "histogram"
		}
	}
	return kind
}

func kindOf(t dto.MetricType) string { return strings.ToLower(t.String()) }

var labelLists = regexp.MustCompile(`constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// parse reads a description as client_golang prints it, its only way to say
// what is in it.
func parse(desc string) (m metric, err error) {
	rest := desc
	quoted := func(before string) string {
		_, after, ok := strings.Cut(rest, before)
		if !ok {
			err = fmt.Errorf("%s: no %s", desc, before)
			return ""
		}
		q, qerr := strconv.QuotedPrefix(after)
		if qerr != nil {
			err = fmt.Errorf("%s: %w", desc, qerr)
			return ""
		}
		rest = after[len(q):]
		text, _ := strconv.Unquote(q) // QuotedPrefix has seen that it can
		return text
	}
	m.name, m.help = quoted("fqName: "), quoted("help: ")
	if err != nil {
		return m, err
	}
	// Neither names nor the values that we give have anything of this in them.
	parts := labelLists.FindStringSubmatch(rest)
	if parts == nil {
		return m, fmt.Errorf("%s: no labels", desc)
	}
	for _, list := range parts[1:] {
		for l := range strings.SplitSeq(list, ",") {
			if name, _, _ := strings.Cut(l, "="); name != "" {
				m.labels = append(m.labels, name)
			}
		}
	}
	return m, nil
}
