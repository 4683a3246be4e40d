package harness

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Balancer stands in front of several gateways as a load balancer does: each
// connection goes to the next gateway in turn that accepts one. Cut breaks all
// connections, as a failing network does.
type Balancer struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu       sync.Mutex
	backends []string              // guarded by mu
	next     int                   // guarded by mu
	open     map[net.Conn]struct{} // guarded by mu; both ends of each connection
	closed   bool                  // guarded by mu
	down     bool                  // guarded by mu; SetDown
}

// StartBalancer listens on a free port; it ends with the test.
func StartBalancer(t testing.TB, backends ...string) *Balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &Balancer{listener: l, backends: backends, open: map[net.Conn]struct{}{}}
	b.wg.Go(b.serve)
	t.Cleanup(func() {
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		l.Close()
		b.Cut()
		b.wg.Wait()
	})
	return b
}

// URL is where clients connect.
func (b *Balancer) URL() string { return "http://" + b.listener.Addr().String() }

// Use makes connections from now on go to these gateways.
func (b *Balancer) Use(backends ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.backends = backends
}

// Cut closes every connection that is open now.
func (b *Balancer) Cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.open {
		c.Close()
	}
}

// SetDown makes every gateway unreachable, and breaks what is open, or ends that.
func (b *Balancer) SetDown(down bool) {
	b.mu.Lock()
	b.down = down
	b.mu.Unlock()
	if down {
		b.Cut()
	}
}

func (b *Balancer) serve() {
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.wg.Go(func() { b.carry(conn) })
	}
}

func (b *Balancer) carry(client net.Conn) {
	defer client.Close()
	server, err := b.dial()
	if err != nil {
		return // the client sees a closed connection and retries
	}
	defer server.Close()
	if !b.track(client, server) {
		return
	}
	defer b.forget(client, server)
	var both sync.WaitGroup
	// When one direction ends the other must too, so both ends are closed.
	pipe := func(to, from net.Conn) {
		io.Copy(to, from)
		to.Close()
		from.Close()
	}
	both.Go(func() { pipe(server, client) })
	both.Go(func() { pipe(client, server) })
	both.Wait()
}

func (b *Balancer) dial() (net.Conn, error) {
	b.mu.Lock()
	first := b.next
	b.next++
	backends := b.backends
	b.mu.Unlock()
	for i := range backends {
		conn, err := net.DialTimeout("tcp", backends[(first+i)%len(backends)], 5*time.Second)
		if err == nil {
			return conn, nil
		}
	}
	return nil, fmt.Errorf("none of %v accepts a connection", backends)
}

func (b *Balancer) track(conns ...net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.down {
		return false
	}
	for _, c := range conns {
		b.open[c] = struct{}{}
	}
	return true
}

func (b *Balancer) forget(conns ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		delete(b.open, c)
	}
}
