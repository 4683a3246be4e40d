package tcp

import (
	"net"
	"syscall"
	"testing"
	"time"
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
		for option, want := range map[int]int{tcpUserTimeout: 12000, syscall.TCP_KEEPIDLE: 12, syscall.TCP_KEEPINTVL: 4, syscall.TCP_KEEPCNT: 2} {
			var got int
			if cerr := raw.Control(func(fd uintptr) { got, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option) }); cerr != nil || err != nil {
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
