package transport

import (
	"context"
	"net"
	"sync"

	"github.com/sluicesync/sluice/libs/kit/tcp"
)

// clients are the connections that carry streams, with how many things hold each:
// one of HTTP/2 may carry several streams.
type clients struct {
	mu    sync.Mutex
	conns map[net.Conn]int // guarded by mu
}

func (c *clients) add(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		c.conns = map[net.Conn]int{}
	}
	c.conns[conn]++
}

func (c *clients) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[conn]--; c.conns[conn] == 0 {
		delete(c.conns, conn)
	}
}

// Silent says how many connections of clients there are of which nothing has been
// heard for longer than of one that is there, whether or not it has anything to say.
// The kernel is asked, so that nothing runs while nobody wants to know.
func (s *Server) Silent() (n int) {
	s.clients.mu.Lock()
	all := make([]net.Conn, 0, len(s.clients.conns))
	for conn := range s.clients.conns {
		all = append(all, conn)
	}
	s.clients.mu.Unlock()
	for _, conn := range all {
		if tcp.Silence(plain(conn)) > tcp.Heard(vanished) {
			n++
		}
	}
	return n
}

type connKey struct{}

// WithConn is for http.Server.ConnContext: where a stream is not taken over from
// net/http, its connection is found in the context.
func WithConn(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}
