package suites

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/e2e/harness"
	"github.com/sluicesync/sluice/libs/kit/telemetry/oteltest"
)

// TestTraceDev and TestTraceSuite: one trace follows a change from the replicator
// to the gateways, another a client's request, and the metrics are those that are
// documented, and are pushed.
func TestTraceDev(t *testing.T) { runTrace(t, harness.Dev) }

func TestTraceSuite(t *testing.T) { runTrace(t, harness.Suite) }

func runTrace(t *testing.T, mode harness.Mode) {
	collector := oteltest.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
	w := newWorld(t, mode, "")
	const user, secret = "confidential-user", "confidential-text"
	c := w.client(t, user)
	c.FirstSync(soon)
	w.pg.Exec(fmt.Sprintf(`INSERT INTO announcements VALUES ('traced', '%s')`, secret))
	harness.Converged(t, w.pg, soon, announcements(c))
	c.Execute(harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES ('traced', ?, ?, 1)", Args: []any{user, secret}})
	harness.Converged(t, w.pg, soon, lists(c, user))
	harness.Eventually(t, soon, "a trace of the change through all services", func() error {
		return chain(collector, "replicator publish batch", "rules-evaluator evaluate batch", "bucket-store commit batch", "sync-gateway tell checkpoint")
	})
	harness.Eventually(t, soon, "a trace of the write checkpoint", func() error {
		if err := chain(collector, "sync-gateway GET /write-checkpoint2.json", "sync-gateway sluice.v1.Source/Position", "replicator sluice.v1.Source/Position"); err != nil {
			return err
		}
		return chain(collector, "sync-gateway GET /write-checkpoint2.json", "sync-gateway sluice.v1.WriteCheckpoints/Create", "bucket-store sluice.v1.WriteCheckpoints/Create")
	})
	harness.Eventually(t, soon, "the trace of a delivery", func() error {
		gateways := []string{harness.All}
		if mode == harness.Suite {
			gateways = []string{harness.Gateway1, harness.Gateway2} // the client is at one of them
		}
		var ids []string
		for _, g := range gateways {
			more, err := w.sluice.Exemplars(g, "sluice_gateway_delivery_seconds")
			if err != nil {
				return err
			}
			ids = append(ids, more...)
		}
		for _, s := range collector.Spans() {
			if s.Name == "tell checkpoint" && slices.Contains(ids, s.Trace) {
				return nil
			}
		}
		return fmt.Errorf("%q are of no checkpoint that was told", ids)
	})
	checkMetrics(t, w, mode)
	c.Disconnect()
	harness.Eventually(t, soon, "the span of the client's stream", func() error {
		for _, s := range collector.Spans() {
			if s.Name == "POST /sync/stream" && s.Attributes["sluice.close_reason"] == "client closed" && s.Attributes["sluice.operations"] != "" && s.Nanos > 0 {
				return nil
			}
		}
		return fmt.Errorf("not among %d spans", len(collector.Spans()))
	})
	harness.Eventually(t, soon, "metrics", func() error {
		for service, metric := range map[string]string{
			"replicator": "powersync_rows_replicated_total", "rules-evaluator": "sluice_evaluator_batches_total", "bucket-store": "powersync_operation_storage_size_bytes",
			"sync-gateway": "powersync_concurrent_connections", "compactor": "go_goroutines",
		} {
			if mode == harness.Dev {
				service = "sluice" // one process, one registry
			}
			if !collector.Metric(service, metric) {
				return fmt.Errorf("%s has not sent %s", service, metric)
			}
		}
		return nil
	})
	// D10: no span says what rows, tokens and users are.
	for _, s := range collector.Spans() {
		if text := fmt.Sprint(s); strings.Contains(text, "confidential") || strings.Contains(text, "eyJ") {
			t.Errorf("a span says too much: %s", text)
		}
	}
	// Heartbeats have come all the time, and are no changes: of the two there were.
	if n := roots(collector); n != 2 {
		t.Errorf("%d traces of batches began, not 2", n)
	}
}

// chain looks for spans of which each is the parent of the next.
func chain(c *oteltest.Collector, names ...string) error {
	spans := c.Spans()
	reached := map[string]bool{} // ids of spans that end a chain so far
	for i, name := range names {
		next := map[string]bool{}
		for _, s := range spans {
			if s.Service+" "+s.Name == name && (i == 0 && s.Parent == "" || i > 0 && reached[s.Trace+s.Parent]) {
				next[s.Trace+s.ID] = true
			}
		}
		if len(next) == 0 {
			return fmt.Errorf("no span %q after %q among %d", name, names[:i], len(spans))
		}
		reached = next
	}
	return nil
}

func roots(c *oteltest.Collector) int {
	n := 0
	for _, s := range c.Spans() {
		if s.Name == "publish batch" {
			n++
		}
	}
	return n
}
