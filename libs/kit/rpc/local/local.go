// Package local is gRPC within a process: calls reach the services' handlers
// without a network, and mean what they mean over one.
//
// Invariants:
//
//   - A message is its receiver's own: the sender may change what it sent, and
//     what it points to, once the call or Send has returned (TestOwn).
//   - Besides messages only metadata, the deadline and cancellation cross: no
//     value of a context, no cause of an error (TestCrosses).
//   - A call ends for its caller as soon as the caller's context does, whatever
//     the handler does (TestCallerLeaves).
//   - A stream holds, each way, one message or as many as fit into the window;
//     then Send waits (D8; TestSlowReader, TestQueue).
//   - Messages arrive in order, and all before the end of a stream that ends
//     well; no handler outlasts Stop (TestChaos of package rpc, which puts pipes
//     and networks to the same tests).
package local

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Options are what both ends of a pipe agree on.
type Options struct {
	MaxMessage int           // bytes; a larger message is an error
	Window     int           // bytes that a stream holds each way
	Connect    time.Duration // how long a call waits for the server to begin, unless it waits for ready
	Unary      grpc.UnaryClientInterceptor
	Stream     grpc.StreamClientInterceptor
}

// pipe is what a Listener and a Conn are the ends of. It is served once, like
// any listener.
type pipe struct {
	Options
	begin  sync.Once
	server *Server       // set before ready is closed
	ready  chan struct{} // closed when a server begins
	leave  sync.Once
	gone   chan struct{} // closed when the listener is
	hangUp sync.Once
	closed chan struct{} // closed when the connection is
}

// Pipe returns the two ends of a connection.
func Pipe(o Options) (*Listener, *Conn) {
	p := &pipe{Options: o, ready: make(chan struct{}), gone: make(chan struct{}), closed: make(chan struct{})}
	return &Listener{p}, &Conn{p}
}

// Listener is where a Server serves a pipe.
type Listener struct{ p *pipe }

// Accept fails: there are no connections, a Server takes calls as they are.
func (l *Listener) Accept() (net.Conn, error) {
	return nil, errors.New("a pipe within the process is served by a local.Server only")
}

// Close ends serving.
func (l *Listener) Close() error {
	l.p.leave.Do(func() { close(l.p.gone) })
	return nil
}

// Addr is for logs.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "local" }
func (addr) String() string  { return "in-process" }

// Conn is where calls are made. Of the call options it takes WaitForReady,
// StaticMethod, Header and Trailer; a call with any other fails.
type Conn struct{ p *pipe }

var (
	errClosed      = status.Error(codes.Canceled, "the connection is closed")
	errUnavailable = status.Error(codes.Unavailable, "the server within the process is not serving")
	errStopped     = status.Error(codes.Unavailable, "the server within the process stopped")
)

// Close ends the calls that run; none can be made any more.
func (c *Conn) Close() error {
	c.p.hangUp.Do(func() {
		close(c.p.closed)
		if ended(c.p.ready) {
			c.p.server.cut(c.p, errClosed)
		}
	})
	return nil
}

// Invoke makes a unary call.
func (c *Conn) Invoke(ctx context.Context, method string, request, reply any, opts ...grpc.CallOption) error {
	if c.p.Unary == nil {
		return c.invoke(ctx, method, request, reply, nil, opts...)
	}
	return c.p.Unary(ctx, method, request, reply, nil, c.invoke, opts...)
}

// NewStream begins a stream. It ends, and holds nothing any more, when Recv has
// returned an error, when ctx ends or when the connection is closed.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if c.p.Stream == nil {
		return c.open(ctx, desc, nil, method, opts...)
	}
	return c.p.Stream(ctx, desc, nil, method, c.open, opts...)
}

func (c *Conn) invoke(ctx context.Context, method string, request, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
	o, err := read(opts)
	if err != nil {
		return err
	}
	m, err := encode(request, c.p.MaxMessage)
	if err != nil {
		return err
	}
	call, h, err := c.begin(ctx, method, false, o.wait)
	if err != nil {
		return err
	}
	go call.unary(h, m)
	select {
	case <-call.done:
	case <-ctx.Done():
		call.finish(status.FromContextError(ctx.Err()).Err(), message{})
	}
	<-call.done
	o.fill(call)
	if call.err != nil {
		return call.err
	}
	return call.reply.decode(reply)
}

func (c *Conn) open(ctx context.Context, desc *grpc.StreamDesc, _ *grpc.ClientConn, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	o, err := read(opts)
	if err != nil {
		return nil, err
	}
	call, h, err := c.begin(ctx, method, true, o.wait)
	if err != nil {
		return nil, err
	}
	go call.stream(h)
	return &clientStream{call: call, desc: desc, options: o}, nil
}

// begin starts a call once there is somebody to take it.
func (c *Conn) begin(ctx context.Context, method string, stream, wait bool) (*call, handler, error) {
	var late <-chan time.Time // never, for those who wait
	gone := c.p.gone
	if wait {
		gone = nil
	}
	if !ended(c.p.ready) {
		if !wait {
			t := time.NewTimer(c.p.Connect)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-c.p.ready:
		case <-c.p.closed:
			return nil, handler{}, errClosed
		case <-ctx.Done():
			return nil, handler{}, status.FromContextError(ctx.Err()).Err()
		case <-gone:
			return nil, handler{}, errUnavailable
		case <-late:
			return nil, handler{}, errUnavailable
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, handler{}, status.FromContextError(err).Err()
	}
	call := newCall(ctx, c.p, method, stream)
	h, err := c.p.server.begin(call)
	if err == nil {
		return call, h, nil
	}
	call.cancel()
	if wait && err == errStopped {
		select {
		case <-c.p.closed:
			err = errClosed
		case <-ctx.Done():
			err = status.FromContextError(ctx.Err()).Err()
		}
	}
	return nil, handler{}, err
}

// options is what call options say.
type options struct {
	wait            bool
	header, trailer *metadata.MD // nil: not asked for
}

func read(opts []grpc.CallOption) (o options, err error) {
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.FailFastCallOption:
			o.wait = !opt.FailFast
		case grpc.HeaderCallOption:
			o.header = opt.HeaderAddr
		case grpc.TrailerCallOption:
			o.trailer = opt.TrailerAddr
		case grpc.StaticMethodCallOption, grpc.EmptyCallOption:
		default:
			return o, status.Errorf(codes.Internal, "call option %T is not for calls within a process", opt)
		}
	}
	return o, nil
}

// fill gives the caller what it asked for of a call that has ended.
func (o options) fill(c *call) {
	if o.header == nil && o.trailer == nil {
		return
	}
	header, trailer := c.metadata()
	if o.header != nil {
		*o.header = header
	}
	if o.trailer != nil {
		*o.trailer = trailer
	}
}

// ended reports whether a channel that is only ever closed is.
func ended(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
