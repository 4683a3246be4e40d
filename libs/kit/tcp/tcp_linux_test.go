package tcp

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTune: the kernel has been told, of accepted connections and of dialed ones.
// That it then notices is shown in e2e/suites.
func TestTune(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	const limit = 30 * time.Second
	dialer := net.Dialer{KeepAliveConfig: KeepAlive(limit), Control: func(_, _ string, raw syscall.RawConn) error {
		Control(raw, limit)
		return nil
	}}
	client, err := dialer.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	Tune(server, limit)
	for name, conn := range map[string]net.Conn{"dialed": client, "accepted": server} {
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for option, want := range map[int]int{unix.TCP_USER_TIMEOUT: 12000, unix.TCP_KEEPIDLE: 8, unix.TCP_KEEPINTVL: 3, unix.TCP_KEEPCNT: 2} {
			var got int
			if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option) }); cerr != nil || err != nil {
				t.Fatal(cerr, err)
			}
			if got != want {
				t.Errorf("%s: option %d is %d, want %d", name, option, got, want)
			}
		}
	}
	here, there := net.Pipe() // no TCP: nothing to do
	defer here.Close()
	defer there.Close()
	Tune(here, limit)
}

// TestSilence: it begins anew with what the peer sends and with what it acknowledges.
func TestSilence(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	client, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	long := func() time.Time {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); Silence(server) < 50*time.Millisecond; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("nothing is sent, and silence is %s", Silence(server))
			}
		}
		return time.Now()
	}
	for name, say := range map[string]func() error{
		"sends":        func() error { _, err := client.Write([]byte("x")); return err },
		"acknowledges": func() error { _, err := server.Write([]byte("x")); return err },
	} {
		at := long()
		if err := say(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if s := Silence(server); s <= time.Since(at) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the peer %s, and silence is %s", name, Silence(server))
			}
		}
	}
	server.Close()
	if s := Silence(server); s != 0 {
		t.Errorf("a closed connection is silent for %s", s)
	}
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	if s := Silence(here); s != 0 {
		t.Errorf("of no TCP connection silence is %s", s)
	}
}
