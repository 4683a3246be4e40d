// Package oteltest is an OpenTelemetry collector for tests: it takes spans and
// metrics by OTLP over gRPC and keeps them.
package oteltest

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"strconv"
	"sync"
	"testing"

	collectmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collecttraces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/grpc"
)

// Collector is a running collector.
type Collector struct {
	// URL is what OTEL_EXPORTER_OTLP_ENDPOINT wants.
	URL string

	mu      sync.Mutex
	spans   []Span
	metrics map[string]map[string]bool // by name, the services that have it
}

// Span is a span that came.
type Span struct {
	Service, Name     string
	Trace, ID, Parent string
	Linked            []string // ids of traces
	Attributes        map[string]string
	Resource          map[string]string
	Failed            bool
	Nanos             int64 // duration
}

// Start starts a collector until the test ends.
func Start(t testing.TB) *Collector {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{URL: "http://" + lis.Addr().String(), metrics: map[string]map[string]bool{}}
	s := grpc.NewServer()
	collecttraces.RegisterTraceServiceServer(s, traceServer{c: c})
	collectmetrics.RegisterMetricsServiceServer(s, metricsServer{c: c})
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return c
}

// Spans returns what has come so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Metric reports whether a metric of a service has come.
func (c *Collector) Metric(service, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.metrics[name][service]
}

type traceServer struct {
	collecttraces.UnimplementedTraceServiceServer
	c *Collector
}

func (s traceServer) Export(_ context.Context, r *collecttraces.ExportTraceServiceRequest) (*collecttraces.ExportTraceServiceResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		resource := texts(rs.GetResource().GetAttributes())
		for _, ss := range rs.GetScopeSpans() {
			for _, x := range ss.GetSpans() {
				span := Span{
					Service: resource["service.name"], Name: x.GetName(), Resource: resource, Attributes: texts(x.GetAttributes()),
					Trace: hex.EncodeToString(x.GetTraceId()), ID: hex.EncodeToString(x.GetSpanId()), Parent: hex.EncodeToString(x.GetParentSpanId()),
					Failed: x.GetStatus().GetCode() == 2, Nanos: int64(x.GetEndTimeUnixNano() - x.GetStartTimeUnixNano()),
				}
				for _, l := range x.GetLinks() {
					span.Linked = append(span.Linked, hex.EncodeToString(l.GetTraceId()))
				}
				s.c.spans = append(s.c.spans, span)
			}
		}
	}
	return &collecttraces.ExportTraceServiceResponse{}, nil
}

type metricsServer struct {
	collectmetrics.UnimplementedMetricsServiceServer
	c *Collector
}

func (s metricsServer) Export(_ context.Context, r *collectmetrics.ExportMetricsServiceRequest) (*collectmetrics.ExportMetricsServiceResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for _, rm := range r.GetResourceMetrics() {
		service := texts(rm.GetResource().GetAttributes())["service.name"]
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				if points(m) == 0 {
					continue
				}
				if s.c.metrics[m.GetName()] == nil {
					s.c.metrics[m.GetName()] = map[string]bool{}
				}
				s.c.metrics[m.GetName()][service] = true
			}
		}
	}
	return &collectmetrics.ExportMetricsServiceResponse{}, nil
}

func points(m *metrics.Metric) int {
	return len(m.GetSum().GetDataPoints()) + len(m.GetGauge().GetDataPoints()) + len(m.GetHistogram().GetDataPoints()) + len(m.GetSummary().GetDataPoints())
}

func texts(all []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range all {
		out[kv.GetKey()] = kv.GetValue().GetStringValue()
		if v, ok := kv.GetValue().GetValue().(*common.AnyValue_IntValue); ok {
			out[kv.GetKey()] = strconv.FormatInt(v.IntValue, 10)
		}
	}
	return out
}
