package transport

import (
	"net"
	"testing"
)

// TestClients: a connection is looked at as long as something holds it, and not
// called silent while it is not; that it is called so, TestVanishedClient in
// e2e/suites shows.
func TestClients(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	conn, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := New(Options{})
	s.clients.add(conn)
	s.clients.add(conn) // a second stream of HTTP/2
	if n := s.Silent(); n != 0 {
		t.Errorf("%d connections are silent that have just been made", n)
	}
	s.clients.remove(conn)
	if len(s.clients.conns) != 1 {
		t.Error("it is not looked at while a stream is left")
	}
	s.clients.remove(conn)
	if len(s.clients.conns) != 0 {
		t.Error("it is kept when nothing holds it")
	}
}
