package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promotel "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/trace"
)

// Export pushes a process's metrics and spans to an OpenTelemetry collector, if
// the standard OTEL_* variables name one. A nil Export pushes nothing.
//
// The metrics are those of the Prometheus registry: there is one set of them.
type Export struct {
	attributes []attribute.KeyValue
	spans      sdktrace.SpanProcessor // shared by the services of a process; nil = no traces
	metrics    *metric.MeterProvider  // nil = no metrics
}

// closeTime bounds the last push.
const closeTime = 3 * time.Second

// NewExport returns the export that the environment asks for, nil if none. process
// is the name under which the metrics are known.
func NewExport(ctx context.Context, process, instance string, f *config.File, g prometheus.Gatherer, log *slog.Logger) (*Export, error) {
	traces, err := wanted("TRACES")
	if err != nil {
		return nil, err
	}
	metrics, err := wanted("METRICS")
	if err != nil {
		return nil, err
	}
	if traces == "" && metrics == "" {
		return nil, nil
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("telemetry is not taken", "error", err) }))
	e := &Export{attributes: []attribute.KeyValue{
		attribute.String("service.namespace", "sluice"), attribute.String("service.version", version()), attribute.String("service.instance.id", instance),
		attribute.String("storage_type", f.Storage.Type),
	}}
	if len(f.Connections) > 0 {
		e.attributes = append(e.attributes, attribute.String("source_type", f.Connections[0].Type))
	}
	if traces != "" {
		var to sdktrace.SpanExporter
		if traces == "grpc" {
			to, err = otlptracegrpc.New(ctx)
		} else {
			to, err = otlptracehttp.New(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("export traces: %w", err)
		}
		e.spans = sdktrace.NewBatchSpanProcessor(to)
	}
	if metrics != "" {
		var to metric.Exporter
		if metrics == "grpc" {
			to, err = otlpmetricgrpc.New(ctx)
		} else {
			to, err = otlpmetrichttp.New(ctx)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("export metrics: %w", err), e.Close(ctx))
		}
		e.metrics = metric.NewMeterProvider(metric.WithResource(e.resource(process)),
			metric.WithReader(metric.NewPeriodicReader(to, metric.WithProducer(promotel.NewMetricProducer(promotel.WithGatherer(g))))))
	}
	log.Info("OpenTelemetry export is on", "traces", cmp.Or(traces, "off"), "metrics", cmp.Or(metrics, "off"))
	return e, nil
}

// wanted returns the protocol by which a signal is to be exported, "" if not.
func wanted(signal string) (protocol string, err error) {
	env := func(suffix string) string {
		return cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_"+suffix), os.Getenv("OTEL_EXPORTER_OTLP_"+suffix))
	}
	name := "OTEL_" + signal + "_EXPORTER"
	switch exporter := os.Getenv(name); {
	case strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true"), exporter == "none", env("ENDPOINT") == "":
		return "", nil
	case exporter != "" && exporter != "otlp":
		return "", fmt.Errorf("%s is %q: otlp and none are known", name, exporter)
	}
	switch protocol := env("PROTOCOL"); protocol {
	case "", "grpc":
		return "grpc", nil
	case "http/protobuf":
		return protocol, nil
	default:
		return "", fmt.Errorf("the OTLP protocol is %q: grpc and http/protobuf are known", protocol)
	}
}

// resource is who speaks; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before
// what we know.
func (e *Export) resource(service string) *resource.Resource {
	own := resource.NewSchemaless(append([]attribute.KeyValue{attribute.String("service.name", service)}, e.attributes...)...)
	r, err := resource.Merge(own, resource.Environment())
	if err != nil { // schemas that differ; ours has none
		return own
	}
	return r
}

// Tracer returns the tracer of a service in this process.
func (e *Export) Tracer(service string) *trace.Tracer {
	if e == nil || e.spans == nil {
		return nil
	}
	// OTEL_TRACES_SAMPLER is the provider's to read.
	return trace.New(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(e.spans), sdktrace.WithResource(e.resource(service))))
}

// Close pushes what is left.
func (e *Export) Close(ctx context.Context) error {
	if e == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	var errs []error
	if e.spans != nil {
		errs = append(errs, e.spans.Shutdown(ctx))
	}
	if e.metrics != nil {
		errs = append(errs, e.metrics.Shutdown(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("push the last telemetry: %w", err)
	}
	return nil
}

// version is that of the build: a tag, or the commit.
func version() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range b.Settings {
		if s.Key == "vcs.revision" && (b.Main.Version == "" || b.Main.Version == "(devel)") {
			return s.Value
		}
	}
	return b.Main.Version
}
