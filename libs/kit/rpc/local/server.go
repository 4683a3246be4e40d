package local

import (
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Server is to a pipe what grpc.Server is to a network: its methods do the same.
type Server struct {
	intercept       grpc.UnaryServerInterceptor
	interceptStream grpc.StreamServerInterceptor
	handlers        map[string]handler // by /service/method; complete when Serve begins

	quit    chan struct{} // closed when stopped is set
	running sync.WaitGroup
	mu      sync.Mutex
	stopped bool               // no call begins any more; guarded by mu
	calls   map[*call]struct{} // those whose handler runs; guarded by mu
}

// handler is a method: either unary or stream is set.
type handler struct {
	service any
	unary   grpc.MethodHandler
	stream  *grpc.StreamDesc
}

// NewServer returns a server that calls its handlers through the interceptors.
func NewServer(unary grpc.UnaryServerInterceptor, stream grpc.StreamServerInterceptor) *Server {
	return &Server{intercept: unary, interceptStream: stream, handlers: map[string]handler{}, quit: make(chan struct{}), calls: map[*call]struct{}{}}
}

// RegisterService adds a service, before Serve.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, service any) {
	for _, m := range desc.Methods {
		s.handlers["/"+desc.ServiceName+"/"+m.MethodName] = handler{service: service, unary: m.Handler}
	}
	for i := range desc.Streams {
		s.handlers["/"+desc.ServiceName+"/"+desc.Streams[i].StreamName] = handler{service: service, stream: &desc.Streams[i]}
	}
}

// Serve takes the calls of a pipe, whose Listener lis is, until Stop or
// GracefulStop (nil) or until lis is closed.
func (s *Server) Serve(lis net.Listener) error {
	l, ok := lis.(*Listener)
	if !ok {
		return fmt.Errorf("%T is not the end of a pipe", lis)
	}
	defer l.Close()
	if ended(s.quit) {
		return grpc.ErrServerStopped
	}
	if ended(l.p.gone) {
		return net.ErrClosed
	}
	served := true
	l.p.begin.Do(func() {
		served = false
		l.p.server = s
		close(l.p.ready)
	})
	if served {
		return fmt.Errorf("a pipe is served once")
	}
	select {
	case <-s.quit:
		return nil
	case <-l.p.gone:
	}
	if ended(s.quit) {
		return nil
	}
	return net.ErrClosed
}

// GracefulStop takes no more calls and returns when those that run have ended.
func (s *Server) GracefulStop() {
	s.refuse()
	s.running.Wait()
}

// Stop takes no more calls, ends those that run and returns when their handlers
// have returned.
func (s *Server) Stop() {
	s.refuse()
	s.cut(nil, errStopped)
	s.running.Wait()
}

func (s *Server) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		close(s.quit)
	}
}

// cut ends the calls of p, or all, with err.
func (s *Server) cut(p *pipe, err error) {
	s.mu.Lock()
	var calls []*call
	for c := range s.calls {
		if p == nil || c.pipe == p {
			calls = append(calls, c)
		}
	}
	s.mu.Unlock()
	for _, c := range calls {
		c.finish(err, message{})
	}
}

// begin finds the handler of c, which it counts, and may be cut, until c.end.
func (s *Server) begin(c *call) (handler, error) {
	h, ok := s.handlers[c.method]
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case ended(c.pipe.closed): // before cut finds c, or cut does
		return h, errClosed
	case s.stopped:
		return h, errStopped
	case !ok || (h.stream != nil) != (c.requests != nil):
		return h, status.Errorf(codes.Unimplemented, "no method, or no stream, %s", c.method)
	}
	c.server = s
	s.calls[c] = struct{}{}
	s.running.Add(1)
	return h, nil
}

func (s *Server) end(c *call) {
	s.mu.Lock()
	delete(s.calls, c)
	s.mu.Unlock()
	s.running.Done()
}
