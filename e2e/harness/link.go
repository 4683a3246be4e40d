package harness

import (
	"net"
	"sync"
	"testing"
)

// Link is the way from one process to another, which can fall silent as a network
// does that drops every packet: nobody is told, nothing is closed. What stands at
// its ends still acknowledges, so neither does the kernel learn of it.
type Link struct {
	listener net.Listener
	to       string
	wg       sync.WaitGroup

	mu     sync.Mutex
	cut    bool               // guarded by mu
	open   map[*pair]struct{} // guarded by mu
	closed bool               // guarded by mu
}

// pair is one connection over a link.
type pair struct {
	ends [2]net.Conn   // client, server; the latter is nil if it was made while the link was cut
	dead chan struct{} // closed when nothing passes any more
}

// StartLink listens for connections to an address; it ends with the test.
func StartLink(t testing.TB, to string) *Link {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{listener: lis, to: to, open: map[*pair]struct{}{}}
	l.wg.Go(l.serve)
	t.Cleanup(func() {
		lis.Close()
		l.mu.Lock()
		l.closed = true
		for p := range l.open {
			p.close()
		}
		l.mu.Unlock()
		l.wg.Wait()
	})
	return l
}

// Address is where the client of the link connects.
func (l *Link) Address() string { return l.listener.Addr().String() }

// Cut makes the connections over the link silent for ever, and those that are made
// from now on.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for p := range l.open {
		p.kill()
	}
}

// Lift lets new connections through. Those that were cut stay as they are: nobody
// remembers them.
func (l *Link) Lift() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

func (l *Link) serve() {
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.carry(conn) })
	}
}

func (l *Link) carry(client net.Conn) {
	p := &pair{dead: make(chan struct{})}
	p.ends[0] = client
	l.mu.Lock()
	cut := l.cut
	l.mu.Unlock()
	if !cut {
		server, err := net.Dial("tcp", l.to)
		if err != nil {
			client.Close() // the process is not there: that is no silence
			return
		}
		p.ends[1] = server
	}
	l.mu.Lock()
	if l.cut {
		p.kill()
	}
	if l.closed {
		l.mu.Unlock()
		p.close()
		return
	}
	l.open[p] = struct{}{}
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.pipe(0, 1) })
	if p.ends[1] != nil {
		both.Go(func() { p.pipe(1, 0) })
	}
	both.Wait()
	l.mu.Lock()
	delete(l.open, p)
	l.mu.Unlock()
	p.close()
}

// kill makes the connection silent.
func (p *pair) kill() {
	select {
	case <-p.dead:
	default:
		close(p.dead)
	}
}

func (p *pair) close() {
	for _, c := range p.ends {
		if c != nil {
			c.Close()
		}
	}
}

// pipe carries what one end sends, or, once the connection is dead, reads it and
// tells nobody, not even of its end.
func (p *pair) pipe(from, to int) {
	buf := make([]byte, 64<<10)
	for {
		n, err := p.ends[from].Read(buf)
		select {
		case <-p.dead:
			if err != nil {
				return
			}
			continue
		default:
		}
		if n > 0 {
			if _, werr := p.ends[to].Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			p.close() // the other end hears of it
			return
		}
	}
}
