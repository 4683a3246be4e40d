package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type value = wrapperspb.BytesValue

var (
	limits = Options{MaxMessage: 1 << 20, Window: 10 << 10, Connect: time.Second}
	wait   = grpc.WaitForReady(true)
	both   = &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
)

// service has a call and a stream.
type service struct {
	call   func(context.Context, *value) (*value, error)
	stream func(grpc.ServerStream) error
}

var description = grpc.ServiceDesc{
	ServiceName: "test", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var m value
		if err := decode(&m); err != nil {
			return nil, err
		}
		return srv.(service).call(ctx, &m)
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ClientStreams: true, ServerStreams: true, Handler: func(srv any, s grpc.ServerStream) error {
		return srv.(service).stream(s)
	}}},
}

// serve serves s until the test's end, or until the server is stopped before.
func serve(t *testing.T, l *Listener, s service) *Server {
	t.Helper()
	server := NewServer(nil, nil)
	server.RegisterService(&description, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return server
}

func start(t *testing.T, s service) (*Conn, *Server) {
	t.Helper()
	l, c := Pipe(limits)
	t.Cleanup(func() { c.Close() })
	return c, serve(t, l, s)
}

func invoke(ctx context.Context, c *Conn, b []byte, opts ...grpc.CallOption) ([]byte, error) {
	var reply value
	err := c.Invoke(ctx, "/test/Call", &value{Value: b}, &reply, append(opts, wait)...)
	return reply.Value, err
}

func open(t *testing.T, ctx context.Context, c *Conn) grpc.ClientStream {
	t.Helper()
	s, err := c.NewStream(ctx, both, "/test/Stream", wait)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Whatever a sender does with its message afterwards, small or pooled, the
// receiver has what was sent.
func TestOwn(t *testing.T) {
	var kept [][]byte
	c, _ := start(t, service{
		call: func(_ context.Context, m *value) (*value, error) {
			kept = append(kept, m.Value)
			return &value{Value: m.Value}, nil
		},
		stream: func(s grpc.ServerStream) error {
			for {
				var m value
				if err := s.RecvMsg(&m); err != nil {
					return nil
				}
				kept = append(kept, bytes.Clone(m.Value))
				if err := s.SendMsg(&m); err != nil {
					return err
				}
				clear(m.Value)
			}
		},
	})
	sizes := []int{1, minPooled - 2, minPooled, 5000, 100_000}
	b := make([]byte, 100_000)
	var replies [][]byte
	for i, size := range sizes {
		copy(b, bytes.Repeat([]byte{byte(i + 1)}, size))
		reply, err := invoke(t.Context(), c, b[:size])
		if err != nil {
			t.Fatal(err)
		}
		replies = append(replies, bytes.Clone(reply))
		clear(reply)
	}
	s := open(t, t.Context(), c)
	for i, size := range sizes {
		copy(b, bytes.Repeat([]byte{byte(i + 1)}, size))
		if err := s.SendMsg(&value{Value: b[:size]}); err != nil {
			t.Fatal(err)
		}
		clear(b)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for range sizes {
		var m value
		if err := s.RecvMsg(&m); err != nil {
			t.Fatal(err)
		}
		replies = append(replies, m.Value)
	}
	if err := s.RecvMsg(&value{}); err != io.EOF {
		t.Fatal(err)
	}
	for i := range 2 * len(sizes) {
		n := i % len(sizes)
		want := bytes.Repeat([]byte{byte(n + 1)}, sizes[n])
		if !bytes.Equal(kept[i], want) || !bytes.Equal(replies[i], want) {
			t.Errorf("message %d: it or its reply is otherwise", i)
		}
	}
}

type key struct{}

func TestCrosses(t *testing.T) {
	cause := errors.New("secret")
	c, _ := start(t, service{
		call: func(ctx context.Context, m *value) (*value, error) {
			if ctx.Value(key{}) != nil {
				return nil, errors.New("a value crossed")
			}
			if string(m.Value) == "wait" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			if string(m.Value) == "exit" {
				runtime.Goexit()
			}
			if string(m.Value) == "fail" {
				return nil, fmt.Errorf("wrapped %w and %w", status.Error(codes.NotFound, "nothing"), cause)
			}
			if string(m.Value) == "big" {
				return &value{Value: make([]byte, limits.MaxMessage+1)}, nil
			}
			deadline, _ := ctx.Deadline()
			in, _ := metadata.FromIncomingContext(ctx)
			if err := errors.Join(grpc.SetHeader(ctx, metadata.Pairs("h", "1")), grpc.SendHeader(ctx, metadata.Pairs("h", "2")), grpc.SetTrailer(ctx, metadata.Pairs("t", "3"))); err != nil {
				return nil, err
			}
			if grpc.SetHeader(ctx, metadata.Pairs("h", "4")) == nil {
				return nil, errors.New("the header is sent twice")
			}
			return &value{Value: fmt.Append(nil, deadline.UnixNano(), in["trace"])}, nil
		},
		stream: func(s grpc.ServerStream) error {
			if err := s.SetHeader(metadata.Pairs("h", "1")); err != nil {
				return err
			}
			if err := s.SendMsg(&value{}); err != nil {
				return err
			}
			s.SetTrailer(metadata.Pairs("t", "3"))
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, 1), time.Hour)
	defer cancel()
	deadline, _ := ctx.Deadline()
	var header, trailer metadata.MD
	out, err := invoke(metadata.AppendToOutgoingContext(ctx, "Trace", "x"), c, nil, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil || string(out) != fmt.Sprint(deadline.UnixNano(), []string{"x"}) || fmt.Sprint(header["h"], trailer["t"]) != "[1 2] [3]" {
		t.Errorf("%s %v %v %v", out, err, header["h"], trailer["t"])
	}
	if _, err := invoke(ctx, c, []byte("fail")); status.Code(err) != codes.NotFound || errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
	if _, err := invoke(ctx, c, []byte("exit")); status.Code(err) != codes.Internal {
		t.Errorf("a handler that exits: %v", err)
	}
	for _, b := range [][]byte{[]byte("big"), make([]byte, limits.MaxMessage+1)} {
		if _, err := invoke(ctx, c, b); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("too large: %v", err)
		}
	}
	if err := c.Invoke(ctx, "/test/None", &value{}, &value{}, wait); status.Code(err) != codes.Unimplemented {
		t.Errorf("no such method: %v", err)
	}
	if err := c.Invoke(ctx, "/test/Stream", &value{}, &value{}, wait); status.Code(err) != codes.Unimplemented {
		t.Errorf("a stream called: %v", err)
	}
	if _, err := c.NewStream(ctx, both, "/test/Call", wait); status.Code(err) != codes.Unimplemented {
		t.Errorf("a call opened: %v", err)
	}
	if _, err := invoke(ctx, c, nil, grpc.UseCompressor("gzip")); status.Code(err) != codes.Internal {
		t.Errorf("an option that has no effect: %v", err)
	}
	short, cancel2 := context.WithTimeout(ctx, time.Millisecond)
	defer cancel2()
	if _, err := invoke(short, c, []byte("wait")); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}

	sctx, stop := context.WithCancel(ctx)
	s := open(t, sctx, c)
	if h, err := s.Header(); err != nil || fmt.Sprint(h["h"]) != "[1]" {
		t.Errorf("stream's header %v %v", h["h"], err)
	}
	if err := s.RecvMsg(&value{}); err != nil {
		t.Error(err)
	}
	stop()
	if err := s.RecvMsg(&value{}); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	if err := s.SendMsg(&value{}); err != io.EOF {
		t.Errorf("Send after the end: %v", err)
	}
}

// The caller's context and the connection end a call though its handler goes on;
// Stop and GracefulStop wait for the handler.
func TestCallerLeaves(t *testing.T) {
	for name, end := range map[string]func(cancel context.CancelFunc, c *Conn){
		"cancel": func(cancel context.CancelFunc, _ *Conn) { cancel() },
		"close":  func(_ context.CancelFunc, c *Conn) { c.Close() },
	} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			contexts := make(chan context.Context, 2)
			c, server := start(t, service{
				call: func(ctx context.Context, _ *value) (*value, error) {
					contexts <- ctx
					<-release
					return &value{}, nil
				},
				stream: func(s grpc.ServerStream) error {
					contexts <- s.Context()
					<-release
					return nil
				},
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ends := make(chan error, 2)
			go func() {
				_, err := invoke(ctx, c, nil)
				ends <- err
			}()
			s := open(t, ctx, c)
			go func() { ends <- s.RecvMsg(&value{}) }()
			inner := []context.Context{<-contexts, <-contexts}
			end(cancel, c)
			for range 2 {
				if err := <-ends; status.Code(err) != codes.Canceled {
					t.Errorf("%s: %v", name, err)
				}
			}
			for _, ctx := range inner {
				<-ctx.Done()
			}
			stops := make(chan struct{}, 2)
			go func() { server.GracefulStop(); stops <- struct{}{} }()
			go func() { server.Stop(); stops <- struct{}{} }()
			synctest.Wait()
			if len(stops) > 0 {
				t.Error("the server has stopped and handlers run")
			}
			close(release)
			<-stops
			<-stops
		})
	}
}

// A stream that begins while the connection is closed or the server stops ends.
func TestBeginMeetsEnd(t *testing.T) {
	handler := service{stream: func(s grpc.ServerStream) error {
		<-s.Context().Done()
		return nil
	}}
	for i := range 2000 {
		l, c := Pipe(limits)
		server := NewServer(nil, nil)
		server.RegisterService(&description, handler)
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		ends := make(chan error, 4)
		for range cap(ends) {
			go func() {
				s, err := c.NewStream(t.Context(), both, "/test/Stream", wait)
				if err == nil {
					err = s.RecvMsg(&value{})
				}
				ends <- err
			}()
		}
		<-c.p.ready
		if i%2 == 0 {
			server.Stop()
		}
		c.Close()
		for range cap(ends) {
			if err := <-ends; status.Code(err) != codes.Canceled && status.Code(err) != codes.Unavailable {
				t.Errorf("ended with %v", err)
			}
		}
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// Send waits when as much is on the way as the window allows, in both
// directions, and goes on when there is space, or ends with the stream.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := make(chan int)
		sent := make(chan int, 1000)
		c, _ := start(t, service{stream: func(s grpc.ServerStream) error {
			for n := range read {
				for range n {
					if err := s.RecvMsg(&value{}); err != nil {
						return err
					}
				}
			}
			for i := range 1000 {
				if err := s.SendMsg(&value{Value: make([]byte, 1000)}); err != nil {
					return err
				}
				sent <- i
			}
			return nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		s := open(t, ctx, c)
		took := make(chan int, 1000)
		sender := make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				if err := s.SendMsg(&value{Value: make([]byte, 1000)}); err != nil {
					sender <- err
					return
				}
				took <- i
			}
		}()
		const fit = 9 // of 1003 bytes and the overhead in 10 KiB
		synctest.Wait()
		if len(took) != fit {
			t.Errorf("%d sent to nobody", len(took))
		}
		read <- 4
		synctest.Wait()
		if len(took) != fit+4 {
			t.Errorf("%d sent after 4 were read", len(took))
		}
		close(read)
		synctest.Wait()
		if len(sent) != fit {
			t.Errorf("%d replies to nobody", len(sent))
		}
		if err := s.RecvMsg(&value{}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(sent) != fit+1 {
			t.Errorf("%d replies after one was read", len(sent))
		}
		cancel()
		if err := <-sender; err != io.EOF {
			t.Errorf("a Send that waited: %v", err)
		}
	})
}

// A message passes whatever its size, and empty ones are bounded too.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, stop := newQueue(1000), make(chan struct{})
		if !q.put(message{bytes: make([]byte, 5000)}, stop, nil) {
			t.Error("a large message does not pass")
		}
		if m, got := q.take(stop); got != taken || len(m.bytes) != 5000 {
			t.Errorf("%d bytes, %d", len(m.bytes), got)
		}
		n := 0
		go func() {
			for q.put(message{}, stop, nil) {
				n++
			}
		}()
		synctest.Wait()
		if n != 1000/overhead {
			t.Errorf("%d empty messages", n)
		}
		close(stop)
	})
}

// A call waits for the server to begin, for ready or for a moment; when the
// server has gone the latter fail at once.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, c := Pipe(limits)
		began := time.Now()
		if err := c.Invoke(t.Context(), "/test/Call", &value{}, &value{}); status.Code(err) != codes.Unavailable || time.Since(began) != limits.Connect {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ends := make(chan error, 2)
		for _, opts := range [][]grpc.CallOption{{wait}, nil} {
			go func() { ends <- c.Invoke(ctx, "/test/Call", &value{}, &value{}, opts...) }()
		}
		time.Sleep(limits.Connect / 2)
		server := serve(t, l, service{call: func(context.Context, *value) (*value, error) { return &value{}, nil }})
		for range 2 {
			if err := <-ends; err != nil {
				t.Error(err)
			}
		}
		server.GracefulStop()
		began = time.Now()
		if err := c.Invoke(ctx, "/test/Call", &value{}, &value{}); status.Code(err) != codes.Unavailable || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if _, err := invoke(ctx, c, nil); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("nobody there: %v", err)
		}
		go func() {
			_, err := invoke(t.Context(), c, nil)
			ends <- err
		}()
		synctest.Wait()
		c.Close()
		if err := <-ends; status.Code(err) != codes.Canceled {
			t.Errorf("closed: %v", err)
		}
		if _, err := c.NewStream(t.Context(), both, "/test/Stream", wait); status.Code(err) != codes.Canceled {
			t.Errorf("after Close: %v", err)
		}
		if err := NewServer(nil, nil).Serve(l); err == nil {
			t.Error("a pipe is served twice")
		}

		l, c = Pipe(limits)
		if _, err := l.Accept(); err == nil {
			t.Error("a pipe has connections")
		}
		l.Close()
		if err := c.Invoke(t.Context(), "/test/Call", &value{}, &value{}); status.Code(err) != codes.Unavailable {
			t.Errorf("never served: %v", err)
		}
	})
}
