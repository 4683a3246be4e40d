package telemetry

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/telemetry/oteltest"
	"github.com/sluicesync/sluice/libs/kit/trace"
)

var file = &config.File{Storage: config.Storage{Type: "embedded"}, Connections: []config.Connection{{Type: "postgresql"}}}

// clean takes the variables away that the tests' own surroundings may have.
func clean(t *testing.T) {
	for _, name := range []string{"OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER",
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		t.Setenv(name, "")
	}
}

// TestExport: the registry's metrics and the spans of each service arrive, and
// say who sent them.
func TestExport(t *testing.T) {
	clean(t)
	c := oteltest.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", c.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	r := Registry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total", Help: "Things."})
	r.MustRegister(counter)
	counter.Add(3)
	ctx := context.Background()
	e, err := NewExport(ctx, "both", "host-1", file, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := e.Tracer("one").Root("work", trace.Producer, "")
	e.Tracer("two").Child(s.Traceparent(), "more work", trace.Consumer).End()
	s.End()
	if err := e.Close(ctx); err != nil {
		t.Fatal(err)
	}
	spans := map[string]oteltest.Span{}
	for _, s := range c.Spans() {
		spans[s.Service+" "+s.Name] = s
	}
	one, two := spans["one work"], spans["two more work"]
	if len(spans) != 2 || two.Parent != one.ID || two.Trace != one.Trace {
		t.Errorf("%+v", c.Spans())
	}
	for key, want := range map[string]string{"service.namespace": "sluice", "service.instance.id": "host-1", "source_type": "postgresql", "storage_type": "embedded", "deployment.environment.name": "test"} {
		if one.Resource[key] != want {
			t.Errorf("%s is %q", key, one.Resource[key])
		}
	}
	if one.Resource["service.version"] == "" {
		t.Error("no version")
	}
	for _, name := range []string{"things_total", "go_goroutines"} {
		if !c.Metric("both", name) {
			t.Errorf("metric %s has not come", name)
		}
	}
}

// TestExportVariables: each signal is exported where its variables want it.
func TestExportVariables(t *testing.T) {
	const here = "http://127.0.0.1:1"
	for _, test := range []struct {
		env             map[string]string
		traces, metrics bool
		err             string
	}{
		{env: nil},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": here}, traces: true, metrics: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": here}, traces: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": here, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, metrics: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": here, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "otlp"}, metrics: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": here, "OTEL_SDK_DISABLED": "true"}},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": here, "OTEL_TRACES_EXPORTER": "zipkin"}, err: "OTEL_TRACES_EXPORTER"},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": here, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, err: "http/json"},
	} {
		clean(t)
		for k, v := range test.env {
			t.Setenv(k, v)
		}
		e, err := NewExport(context.Background(), "x", "i", file, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%v: %v", test.env, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", test.env, err)
			continue
		}
		if got := e.Tracer("x") != nil; got != test.traces || (e != nil && e.metrics != nil) != test.metrics {
			t.Errorf("%v: traces %v, %+v", test.env, got, e)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if e != nil && e.metrics != nil {
			_ = e.metrics.Shutdown(ctx) // nobody listens
		}
		if e != nil && e.spans != nil {
			_ = e.spans.Shutdown(ctx)
		}
	}
}

// TestExportAway: a collector that is not there costs a warning.
func TestExportAway(t *testing.T) {
	clean(t)
	t.Setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:1")
	var b bytes.Buffer
	ctx := context.Background()
	e, err := NewExport(ctx, "x", "i", file, Registry(), slog.New(slog.NewTextHandler(&b, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(ctx); err == nil || !strings.Contains(err.Error(), "push the last telemetry") {
		t.Errorf("%v", err)
	}
}
