package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a service with a call and a stream that do what they are told.
type echo struct{ blocked chan struct{} }

func do(ctx context.Context, e *echo, word string) error {
	switch word {
	case "fail":
		return errs.Wrap(errs.S2305, errors.New("secret"), "too many")
	case "panic":
		panic("on purpose")
	case "block":
		close(e.blocked)
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

var description = grpc.ServiceDesc{
	ServiceName: "test.Echo", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
		var m wrapperspb.StringValue
		if err := dec(&m); err != nil {
			return nil, err
		}
		return in(ctx, &m, &grpc.UnaryServerInfo{FullMethod: "/test.Echo/Call"}, func(ctx context.Context, _ any) (any, error) {
			return &m, do(ctx, srv.(*echo), m.Value)
		})
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true, Handler: func(srv any, s grpc.ServerStream) error {
		for {
			var m wrapperspb.StringValue
			if err := s.RecvMsg(&m); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			if err := do(s.Context(), srv.(*echo), m.Value); err != nil {
				return err
			}
			if err := s.SendMsg(&m); err != nil {
				return err
			}
		}
	}}},
}

func call(ctx context.Context, c grpc.ClientConnInterface, word string) (string, error) {
	var out wrapperspb.StringValue
	err := c.Invoke(ctx, "/test.Echo/Call", wrapperspb.String(word), &out, grpc.WaitForReady(true))
	return out.Value, err
}

func exchange(ctx context.Context, c grpc.ClientConnInterface, word string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.NewStream(ctx, &description.Streams[0], "/test.Echo/Stream", grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	if err := s.SendMsg(wrapperspb.String(word)); err != nil {
		return "", err
	}
	var out wrapperspb.StringValue
	err = s.RecvMsg(&out)
	return out.Value, err
}

// serve serves echo on lis; stop ends it and returns Serve's error.
func serve(t *testing.T, lis net.Listener) (e *echo, stop func() error) {
	t.Helper()
	e = &echo{blocked: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, lis, service.Env{Log: slog.New(slog.DiscardHandler)}, func(r grpc.ServiceRegistrar) { r.RegisterService(&description, e) })
	}()
	return e, func() error {
		cancel()
		return <-ended
	}
}

// ends gives both kinds of connection.
func ends(t *testing.T, f func(t *testing.T, lis net.Listener, c *grpc.ClientConn)) {
	t.Run("in process", func(t *testing.T) {
		lis, c := Pipe()
		defer c.Close()
		f(t, lis, c)
	})
	t.Run("TCP", func(t *testing.T) {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f(t, lis, c)
	})
}

func TestErrorCrosses(t *testing.T) {
	ends(t, func(t *testing.T, lis net.Listener, c *grpc.ClientConn) {
		_, stop := serve(t, lis)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for name, f := range map[string]func(context.Context, grpc.ClientConnInterface, string) (string, error){"call": call, "stream": exchange} {
			if out, err := f(ctx, c, "hello"); out != "hello" || err != nil {
				t.Errorf("%s: %q %v", name, out, err)
			}
			_, err := f(ctx, c, "fail")
			if errs.CodeOf(err) != errs.S2305 || err.Error() != "[PSYNC_S2305] too many" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if big := strings.Repeat("x", 20<<20); true {
			if out, err := call(ctx, c, big); out != big || err != nil {
				t.Errorf("20 MiB: %d bytes, %v", len(out), err)
			}
		}
		h, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{})
		if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health: %v %v", h, err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A call made within a trace has a span at both ends, one within the other; others
// have none.
func TestTrace(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tracer := trace.New(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)))
	lis, c := Pipe()
	defer c.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, lis, service.Env{Log: slog.New(slog.DiscardHandler), Trace: tracer}, func(r grpc.ServiceRegistrar) {
			r.RegisterService(&description, &echo{})
		})
	}()
	root := tracer.Root("root", trace.Internal, "")
	for _, word := range []string{"hello", "fail", "panic"} {
		if _, err := call(root.In(ctx), c, word); (err == nil) != (word == "hello") {
			t.Errorf("%s: %v", word, err)
		}
		if _, err := call(ctx, c, word); (err == nil) != (word == "hello") {
			t.Errorf("%s, not traced: %v", word, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	spans := recorder.Ended()
	if len(spans) != 6 {
		t.Fatalf("%d spans", len(spans))
	}
	for i := 0; i < len(spans); i += 2 {
		server, client := spans[i], spans[i+1]
		if server.Name() != "test.Echo/Call" || server.Parent().SpanID() != client.SpanContext().SpanID() || client.Parent().TraceID() != server.SpanContext().TraceID() {
			t.Errorf("%v within %v", server, client)
		}
		want := codes.Error
		if i == 0 {
			want = codes.Unset
		}
		if server.Status().Code != want || client.Status().Code != want {
			t.Errorf("call %d: %v and %v", i/2, server.Status(), client.Status())
		}
	}
}

// A panic costs its own call only.
func TestPanic(t *testing.T) {
	ends(t, func(t *testing.T, lis net.Listener, c *grpc.ClientConn) {
		_, stop := serve(t, lis)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for name, f := range map[string]func(context.Context, grpc.ClientConnInterface, string) (string, error){"call": call, "stream": exchange} {
			if _, err := f(ctx, c, "panic"); errs.CodeOf(err) != errs.S0001 || strings.Contains(err.Error(), "on purpose") {
				t.Errorf("%s: %v", name, err)
			}
			if out, err := f(ctx, c, "still there"); out != "still there" || err != nil {
				t.Errorf("%s: %q %v", name, out, err)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// Serve returns only when no handler runs, and cuts one that does not end.
func TestServeStops(t *testing.T) {
	lis, c := Pipe()
	defer c.Close()
	e, stop := serve(t, lis)
	ended := make(chan error, 1)
	go func() {
		_, err := call(context.Background(), c, "block")
		ended <- err
	}()
	<-e.blocked
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("a call that was cut succeeded")
	}
}

// A server that comes late, or again, is found.
func TestDialWaits(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := lis.Addr().String()
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Connect()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 2 {
		if lis, err = net.Listen("tcp", address); err != nil {
			t.Fatal(err)
		}
		_, stop := serve(t, lis)
		if out, err := call(ctx, c, "x"); out != "x" || err != nil {
			t.Errorf("%q %v", out, err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Dial("dns:///\x00"); err == nil {
		t.Error("a bad target is taken")
	}
}
