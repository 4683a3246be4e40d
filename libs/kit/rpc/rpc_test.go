package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluicesync/sluice/libs/kit/certificate"
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
	}}, {StreamName: "Join", ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		var all wrapperspb.StringValue
		for {
			var m wrapperspb.StringValue
			if err := s.RecvMsg(&m); errors.Is(err, io.EOF) {
				return s.SendMsg(&all)
			} else if err != nil {
				return err
			}
			if m.Value == "enough" {
				return nil
			}
			all.Value += m.Value
		}
	}}, {StreamName: "Split", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
		var m wrapperspb.StringValue
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		for _, r := range m.Value {
			if err := s.SendMsg(wrapperspb.String(string(r))); err != nil {
				return err
			}
		}
		return s.RecvMsg(&m) // io.EOF, which crosses as an error like any other
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

// conn is a connection of either kind.
type conn interface {
	grpc.ClientConnInterface
	Close() error
}

// ends gives both kinds of connection.
func ends(t *testing.T, f func(t *testing.T, lis net.Listener, c conn)) {
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
		c, err := Dial(lis.Addr().String(), certificate.BucketStore, service.Env{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f(t, lis, c)
	})
}

func TestErrorCrosses(t *testing.T) {
	ends(t, func(t *testing.T, lis net.Listener, c conn) {
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
		want := otelcodes.Error
		if i == 0 {
			want = otelcodes.Unset
		}
		if server.Status().Code != want || client.Status().Code != want {
			t.Errorf("call %d: %v and %v", i/2, server.Status(), client.Status())
		}
	}
}

// What the generated code and its users rely on of streams.
func TestStreams(t *testing.T) {
	ends(t, func(t *testing.T, lis net.Listener, c conn) {
		_, stop := serve(t, lis)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		open := func(i int) grpc.ClientStream {
			t.Helper()
			s, err := c.NewStream(ctx, &description.Streams[i], "/test.Echo/"+description.Streams[i].StreamName, grpc.WaitForReady(true))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		send := func(s grpc.ClientStream, word string) {
			t.Helper()
			if err := s.SendMsg(wrapperspb.String(word)); err != nil {
				t.Fatal(err)
			}
		}
		receive := func(s grpc.ClientStream) (string, error) {
			var m wrapperspb.StringValue
			err := s.RecvMsg(&m)
			return m.Value, err
		}

		both := open(0)
		send(both, "a")
		send(both, "b")
		send(both, "fail")
		for _, want := range []string{"a", "b"} {
			if got, err := receive(both); got != want || err != nil {
				t.Errorf("%q %v", got, err)
			}
		}
		for range 2 {
			if _, err := receive(both); errs.CodeOf(err) != errs.S2305 {
				t.Errorf("after the messages: %v", err)
			}
		}
		if err := both.SendMsg(wrapperspb.String("c")); err != io.EOF {
			t.Errorf("Send after the end: %v", err)
		}

		both = open(0)
		send(both, "a")
		if err := errors.Join(both.CloseSend(), both.CloseSend()); err != nil {
			t.Error(err)
		}
		if got, err := receive(both); got != "a" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		if _, err := receive(both); err != io.EOF {
			t.Error(err)
		}
		if err := both.SendMsg(wrapperspb.String("c")); status.Code(err) != codes.Internal {
			t.Errorf("Send after CloseSend: %v", err)
		}

		join := open(1)
		send(join, "a")
		send(join, "b")
		if err := join.CloseSend(); err != nil {
			t.Error(err)
		}
		if got, err := receive(join); got != "ab" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		join = open(1)
		send(join, "enough")
		if got, err := receive(join); status.Code(err) != codes.Internal {
			t.Errorf("no reply: %q %v", got, err)
		}

		split := open(2)
		send(split, "xyz")
		if err := split.CloseSend(); err != nil {
			t.Error(err)
		}
		for _, want := range []string{"x", "y", "z"} {
			if got, err := receive(split); got != want || err != nil {
				t.Errorf("%q %v", got, err)
			}
		}
		if _, err := receive(split); status.Code(err) != codes.Internal {
			t.Errorf("split ended with %v", err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// However many calls and streams there are, whoever gives up in the middle,
// whenever the server stops: a message arrives whole, once and in order, a
// stream that ends well has had all, and nothing is left (TestMain).
func TestChaos(t *testing.T) {
	ends(t, func(t *testing.T, lis net.Listener, c conn) {
		_, stop := serve(t, lis)
		if _, err := call(t.Context(), c, "ready"); err != nil {
			t.Fatal(err)
		}
		seed := uint64(time.Now().UnixNano())
		var clients sync.WaitGroup
		for i := range 16 {
			clients.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				for range 60 {
					if err := chaos(r, c); err != nil {
						t.Errorf("seed %d, client %d: %v", seed, i, err)
						return
					}
				}
			})
		}
		clients.Wait()
		stopping := make(chan struct{})
		for i := range 8 { // these meet the stop
			clients.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(100+i)))
				for {
					_ = chaos(r, c)
					select {
					case <-stopping:
						return
					default:
					}
				}
			})
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		close(stopping)
		c.Close() // ends those that wait for a server
		clients.Wait()
	})
}

// chaos makes a random call or stream and returns what is wrong with it.
func chaos(r *rand.Rand, c conn) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	leaves := r.IntN(2) == 0
	if leaves {
		after := time.Duration(r.IntN(2000)) * time.Microsecond
		defer time.AfterFunc(after, cancel).Stop()
	}
	left := func(err error) bool { return leaves && status.Code(err) == codes.Canceled }
	if r.IntN(2) == 0 {
		word := strings.Repeat("w", r.IntN(5000))
		if out, err := call(ctx, c, word); err == nil && out != word || err != nil && !left(err) {
			return fmt.Errorf("%d bytes came back as %d, error %v", len(word), len(out), err)
		}
		return nil
	}
	n, fails := r.IntN(40), r.IntN(3) == 0
	word := func(i int) string { return fmt.Sprint(i, strings.Repeat("x", i*i*i)) }
	s, err := c.NewStream(ctx, &description.Streams[0], "/test.Echo/Stream", grpc.WaitForReady(true))
	if err != nil {
		if left(err) {
			return nil
		}
		return fmt.Errorf("open: %w", err)
	}
	var sender sync.WaitGroup
	defer sender.Wait()
	sender.Go(func() {
		for i := range n {
			if s.SendMsg(wrapperspb.String(word(i))) != nil {
				return
			}
		}
		if fails && s.SendMsg(wrapperspb.String("fail")) != nil {
			return
		}
		_ = s.CloseSend()
	})
	for i := 0; ; i++ {
		var m wrapperspb.StringValue
		err := s.RecvMsg(&m)
		switch {
		case left(err):
			return nil
		case i < n && (err != nil || m.Value != word(i)):
			return fmt.Errorf("message %d is %d bytes, error %v", i, len(m.Value), err)
		case i < n:
		case fails && errs.CodeOf(err) == errs.S2305, !fails && err == io.EOF:
			return nil
		default:
			return fmt.Errorf("the end is %w", err)
		}
		if leaves && r.IntN(100) == 0 {
			return nil // and cancel
		}
	}
}

// A panic costs its own call only.
func TestPanic(t *testing.T) {
	ends(t, func(t *testing.T, lis net.Listener, c conn) {
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
	c, err := Dial(address, certificate.BucketStore, service.Env{})
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
	if _, err := Dial("dns:///\x00", certificate.BucketStore, service.Env{}); err == nil {
		t.Error("a bad target is taken")
	}
}
