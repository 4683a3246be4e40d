package trace

import (
	"context"
	"errors"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

func recorder(o ...sdktrace.TracerProviderOption) (*Tracer, *tracetest.SpanRecorder) {
	r := tracetest.NewSpanRecorder()
	return New(sdktrace.NewTracerProvider(append(o, sdktrace.WithSpanProcessor(r))...)), r
}

const foreign = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestFollow: a trace goes on wherever its traceparent or context is handed to.
func TestFollow(t *testing.T) {
	a, ra := recorder()
	b, rb := recorder()
	root := a.Root("root", Producer, "")
	child := b.Child(root.Traceparent(), "child", Consumer)
	inner := From(child.In(context.Background())).Child("inner", Client)
	inner.Int("n", 7)
	inner.Text("s", "x")
	for _, s := range []*Span{inner, child, root} {
		s.End()
	}
	first, rest := ra.Ended(), rb.Ended()
	if len(first) != 1 || len(rest) != 2 {
		t.Fatalf("%d and %d spans", len(first), len(rest))
	}
	if rest[1].Parent().SpanID() != first[0].SpanContext().SpanID() || rest[0].Parent().SpanID() != rest[1].SpanContext().SpanID() {
		t.Error("spans have other parents")
	}
	if rest[0].SpanContext().TraceID() != first[0].SpanContext().TraceID() || len(rest[0].Attributes()) != 2 || rest[0].SpanKind() != Client {
		t.Errorf("%+v", rest[0])
	}
}

// TestLinked: a trace of others is pointed to, and decides nothing.
func TestLinked(t *testing.T) {
	a, r := recorder(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
	a.Root("request", Server, foreign[:len(foreign)-1]+"0").End()
	a.Root("request", Server, "nonsense").End()
	spans := r.Ended()
	if len(spans) != 2 || spans[0].Parent().IsValid() || len(spans[0].Links()) != 1 || spans[0].Links()[0].SpanContext.TraceID().String() != foreign[3:35] || len(spans[1].Links()) != 0 {
		t.Errorf("%+v", spans)
	}
}

func TestUnsampled(t *testing.T) {
	a, _ := recorder(sdktrace.WithSampler(sdktrace.NeverSample()))
	if s := a.Root("root", Producer, ""); s != nil || s.Traceparent() != "" {
		t.Error("a span was made of what is not sampled")
	}
	b, _ := recorder()
	for _, parent := range []string{"", "nonsense", "00-00000000000000000000000000000000-b7ad6b7169203331-01"} {
		if b.Child(parent, "child", Consumer) != nil {
			t.Errorf("a span was made within %q", parent)
		}
	}
	if b.Child(foreign[:len(foreign)-1]+"0", "child", Consumer) != nil {
		t.Error("a span was made within one that is not sampled")
	}
}

func TestError(t *testing.T) {
	a, r := recorder()
	for _, err := range []error{errs.New(errs.S2103, "secret"), errors.New("secret"), nil} {
		s := a.Root("x", Internal, "")
		s.Error(err)
		s.End()
	}
	spans := r.Ended()
	if st := spans[0].Status(); st.Code != codes.Error || st.Description != string(errs.S2103) {
		t.Errorf("%+v", st)
	}
	if st := spans[1].Status(); st.Code != codes.Error || st.Description == "secret" {
		t.Errorf("%+v", st)
	}
	if st := spans[2].Status(); st.Code != codes.Unset {
		t.Errorf("%+v", st)
	}
	if len(spans[0].Events()) != 0 {
		t.Error("the error's text is in an event")
	}
}

func TestOff(t *testing.T) {
	var off *Tracer
	ctx := context.Background()
	err := errors.New("x")
	if n := testing.AllocsPerRun(100, func() {
		s := off.Root("root", Producer, foreign)
		c := off.Child(s.Traceparent(), "child", Consumer)
		c.Int("n", 1)
		c.Text("s", "x")
		c.Error(err)
		From(c.In(ctx)).Child("inner", Client).End()
		c.End()
		s.End()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
