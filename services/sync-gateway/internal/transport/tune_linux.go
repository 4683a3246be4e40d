package transport

import (
	"net"
	"syscall"
	"time"
)

// unacknowledged is how long the kernel keeps what a vanished client does not
// acknowledge.
const unacknowledged = 45 * time.Second

// tcpUserTimeout is TCP_USER_TIMEOUT, which package syscall lacks.
const tcpUserTimeout = 18

// tune makes the kernel notice vanished clients.
func tune(conn net.Conn) {
	c, ok := plain(conn).(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	// Without it such a connection lives some minutes longer; nothing breaks.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(unacknowledged.Milliseconds()))
	})
}
