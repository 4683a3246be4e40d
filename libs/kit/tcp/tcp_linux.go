package tcp

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func userTimeout(raw syscall.RawConn, timeout time.Duration) {
	// Without it nothing breaks.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
	})
}

func silence(conn *net.TCPConn) time.Duration {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var ago uint32 // ms
	// It fails for a connection that is closed: that is no silence.
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			ago = min(info.Last_ack_recv, info.Last_data_recv)
		}
	})
	return time.Duration(ago) * time.Millisecond
}
