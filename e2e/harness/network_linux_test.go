package harness

import (
	"io"
	"net"
	"testing"
	"time"
)

// TestNetwork: what is sent arrives; what is to be lost does not, in one direction
// only if so told, and arrives later once the network is healed.
func TestNetwork(t *testing.T) {
	n := StartNetwork(t, 3)
	client, server := n.Hosts()[0], n.Hosts()[1]
	var lis net.Listener
	var err error
	server.Do(func() { lis, err = net.Listen("tcp", net.JoinHostPort(server.Address(), "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	there := make(chan net.Conn, 1)
	go func() {
		if c, err := lis.Accept(); err == nil {
			there <- c
		}
		close(there)
	}()
	here, err := Dial(client)(t.Context(), "tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	conn := <-there
	defer conn.Close()
	if _, err := net.DialTimeout("tcp", lis.Addr().String(), 200*time.Millisecond); err == nil {
		t.Error("the server is reached from outside the network")
	}
	send := func(from net.Conn, text string) {
		t.Helper()
		if _, err := from.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(at net.Conn, within time.Duration) string {
		t.Helper()
		if err := at.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := io.ReadFull(at, b); err != nil {
			return err.Error()
		}
		return string(b)
	}
	const long, short = 20 * time.Second, 200 * time.Millisecond
	send(here, "ping")
	if got := read(conn, long); got != "ping" {
		t.Fatal(got)
	}
	n.Lose(server, client)
	send(here, "half")
	if got := read(conn, long); got != "half" {
		t.Fatal(got)
	}
	send(conn, "lost")
	if got := read(here, short); got == "lost" {
		t.Error("it arrived")
	}
	n.Heal()
	if got := read(here, long); got != "lost" {
		t.Error(got)
	}
	const late = 300 * time.Millisecond
	n.Delay(client, server, late)
	begin := time.Now()
	send(here, "late")
	if got := read(conn, long); got != "late" || time.Since(begin) < late {
		t.Errorf("%s after %s", got, time.Since(begin))
	}
}
