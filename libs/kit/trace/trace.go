// Package trace makes the spans that follow a change batch, or a client's
// request, from service to service. Between services a span is named by its W3C
// traceparent: in the header of a NATS message, in gRPC metadata, in a message.
//
// Invariants:
//
//   - Where nothing is traced, a *Tracer or *Span is nil; its methods do nothing
//     and allocate nothing (TestOff).
//   - What the sampler leaves out has no traceparent, so that whoever comes after
//     makes no span of it either (TestUnsampled).
//   - Of an error a span has the code, never the text (D10; TestError).
package trace

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// Header is the name under which a traceparent travels.
const Header = "traceparent"

// Kind is a span's place in a conversation.
type Kind = oteltrace.SpanKind

// The kinds that are used.
const (
	Internal = oteltrace.SpanKindInternal
	Server   = oteltrace.SpanKindServer   // answers a call
	Client   = oteltrace.SpanKindClient   // makes one
	Producer = oteltrace.SpanKindProducer // sends a message
	Consumer = oteltrace.SpanKindConsumer // handles one
)

// scope is the instrumentation's name.
const scope = "github.com/sluicesync/sluice"

// Tracer makes the spans of one service.
type Tracer struct{ tracer oteltrace.Tracer }

// New returns a tracer whose spans p takes.
func New(p oteltrace.TracerProvider) *Tracer { return &Tracer{p.Tracer(scope)} }

// Span is something that is going on. End ends it.
type Span struct {
	tracer *Tracer
	span   oteltrace.Span
}

// Root begins a trace. If linked is a traceparent, the trace points to it: that
// of somebody whom we do not let decide what is traced.
func (t *Tracer) Root(name string, kind Kind, linked string) *Span {
	if t == nil {
		return nil
	}
	o := []oteltrace.SpanStartOption{oteltrace.WithSpanKind(kind)}
	if other := parse(linked); other.IsValid() {
		o = append(o, oteltrace.WithLinks(oteltrace.Link{SpanContext: other}))
	}
	return t.start(context.Background(), name, o...)
}

// Child goes on with the trace of a traceparent; without one it returns nil.
func (t *Tracer) Child(parent, name string, kind Kind) *Span {
	if t == nil || parent == "" {
		return nil
	}
	p := parse(parent)
	if !p.IsValid() {
		return nil
	}
	return t.start(oteltrace.ContextWithRemoteSpanContext(context.Background(), p), name, oteltrace.WithSpanKind(kind))
}

func (t *Tracer) start(ctx context.Context, name string, o ...oteltrace.SpanStartOption) *Span {
	_, s := t.tracer.Start(ctx, name, o...)
	if !s.IsRecording() {
		return nil
	}
	return &Span{t, s}
}

func parse(traceparent string) oteltrace.SpanContext {
	if traceparent == "" {
		return oteltrace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{Header: traceparent})
	return oteltrace.SpanContextFromContext(ctx)
}

// Child begins a span within s.
func (s *Span) Child(name string, kind Kind) *Span {
	if s == nil {
		return nil
	}
	return s.tracer.start(oteltrace.ContextWithSpan(context.Background(), s.span), name, oteltrace.WithSpanKind(kind))
}

// Traceparent names s to others; "" if it is nil.
func (s *Span) Traceparent() string {
	if s == nil {
		return ""
	}
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(oteltrace.ContextWithSpan(context.Background(), s.span), c)
	return c[Header]
}

// TraceID is the id of the trace if it is kept, else "".
func (s *Span) TraceID() string {
	if s == nil || !s.span.SpanContext().IsSampled() {
		return ""
	}
	return s.span.SpanContext().TraceID().String()
}

// Int sets an attribute.
func (s *Span) Int(key string, v int64) {
	if s != nil {
		s.span.SetAttributes(attribute.Int64(key, v))
	}
}

// Text sets an attribute. It must hold nothing that a user or a row says.
func (s *Span) Text(key, v string) {
	if s != nil {
		s.span.SetAttributes(attribute.String(key, v))
	}
}

// Error says that s failed.
func (s *Span) Error(err error) {
	if s == nil || err == nil {
		return
	}
	code := string(errs.CodeOf(err))
	if code != "" {
		s.span.SetAttributes(attribute.String("error.type", code))
	}
	s.span.SetStatus(codes.Error, code)
}

// End ends s.
func (s *Span) End() {
	if s != nil {
		s.span.End()
	}
}

type key struct{}

// In returns ctx with s, for the calls that are part of it.
func (s *Span) In(ctx context.Context) context.Context {
	if s == nil {
		return ctx
	}
	return context.WithValue(ctx, key{}, s)
}

// From returns the span of ctx; nil if it has none.
func From(ctx context.Context) *Span {
	s, _ := ctx.Value(key{}).(*Span)
	return s
}
