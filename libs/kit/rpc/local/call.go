package local

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// call is one call, unary or stream. Its end for the caller (done) and the
// return of its handler (end) are apart: either may come first.
type call struct {
	pipe   *pipe
	server *Server
	method string
	caller context.Context    // the caller's
	ctx    context.Context    // the handler's; ends with the caller's or with the call
	cancel context.CancelFunc // of ctx

	requests, replies *queue // of a stream; nil for a unary call

	done  chan struct{} // closed by finish
	err   error         // valid when done is closed
	reply message       // of a unary call, valid when done is closed without err

	mu       sync.Mutex
	finished bool          // guarded by mu
	headed   chan struct{} // closed when the header cannot change any more: sent, or finished
	sent     bool          // guarded by mu
	header   metadata.MD   // guarded by mu
	trailer  metadata.MD   // guarded by mu
}

// newCall returns a call, or stream, that the server does not know yet.
func newCall(caller context.Context, p *pipe, method string, stream bool) *call {
	c := &call{pipe: p, method: method, caller: caller, done: make(chan struct{}), headed: make(chan struct{})}
	if stream {
		c.requests, c.replies = newQueue(p.Window), newQueue(p.Window)
	}
	ctx, cancel := context.WithCancel(valueless{caller})
	if md, ok := metadata.FromOutgoingContext(caller); ok {
		ctx = metadata.NewIncomingContext(ctx, md)
	}
	c.ctx, c.cancel = grpc.NewContextWithServerTransportStream(ctx, c), cancel
	return c
}

// valueless is a context without its values. Its AfterFunc spares the goroutine
// that package context would need to follow it.
type valueless struct{ context.Context }

func (valueless) Value(any) any                    { return nil }
func (v valueless) AfterFunc(f func()) func() bool { return context.AfterFunc(v.Context, f) }

// unary runs the handler of a unary call.
func (c *call) unary(h handler, request message) {
	defer c.end()
	reply, err := h.unary(h.service, c.ctx, request.decode, c.server.intercept)
	var m message
	if err == nil {
		m, err = encode(reply, c.pipe.MaxMessage)
	}
	c.finish(crossing(err), m)
}

// stream runs the handler of a stream.
func (c *call) stream(h handler) {
	defer c.end()
	s := serverStream{c}
	info := &grpc.StreamServerInfo{FullMethod: c.method, IsClientStream: h.stream.ClientStreams, IsServerStream: h.stream.ServerStreams}
	var err error
	if c.server.interceptStream != nil {
		err = c.server.interceptStream(h.service, s, info, h.stream.Handler)
	} else {
		err = h.stream.Handler(h.service, s)
	}
	c.finish(crossing(err), message{})
}

// crossing is what the caller gets to see of a handler's err: a status, without
// what caused it.
func crossing(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	return s.Err()
}

// finish ends the call for the caller, unless it has ended.
func (c *call) finish(err error, reply message) {
	c.mu.Lock()
	if c.finished {
		c.mu.Unlock()
		return
	}
	c.finished = true
	if !c.sent {
		close(c.headed)
	}
	c.err, c.reply = err, reply
	c.mu.Unlock()
	close(c.done)
	if c.replies != nil {
		c.replies.close()
	}
	c.cancel()
}

// end is when the handler has returned, or there is none.
func (c *call) end() {
	c.finish(status.Error(codes.Internal, "the handler did not return"), message{}) // it called runtime.Goexit
	c.server.end(c)
}

// Method, SetHeader, SendHeader and SetTrailer are for handlers: a call is the
// grpc.ServerTransportStream of its context.
func (c *call) Method() string { return c.method }

func (c *call) SetHeader(md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent || c.finished {
		return status.Error(codes.Internal, "the header was sent before")
	}
	c.header = metadata.Join(c.header, md)
	return nil
}

func (c *call) SendHeader(md metadata.MD) error {
	if err := c.SetHeader(md); err != nil {
		return err
	}
	c.sendHeader()
	return nil
}

func (c *call) SetTrailer(md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.finished {
		c.trailer = metadata.Join(c.trailer, md)
	}
	return nil
}

func (c *call) sendHeader() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sent && !c.finished {
		c.sent = true
		close(c.headed)
	}
}

// metadata returns the caller's own header and trailer.
func (c *call) metadata() (header, trailer metadata.MD) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.header.Copy(), c.trailer.Copy()
}
