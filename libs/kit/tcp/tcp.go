// Package tcp makes the kernel notice peers that have vanished without a word.
//
// Keepalive alone does not: it is silent while something waits to be
// acknowledged, which is sent again for a quarter of an hour.
package tcp

import (
	"net"
	"syscall"
	"time"
)

// KeepAlive asks an idle peer for a sign of life so that one that has vanished is
// noticed within limit.
func KeepAlive(limit time.Duration) net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: limit * 3 / 5, Interval: limit / 5, Count: 2}
}

// Tune makes conn, a TCP connection, end within limit when its peer has vanished,
// idle or not. Where that cannot be had, and for other connections, it does
// nothing: the connection lives some minutes longer.
func Tune(conn net.Conn, limit time.Duration) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	_ = c.SetKeepAliveConfig(KeepAlive(limit))
	if raw, err := c.SyscallConn(); err == nil {
		userTimeout(raw, limit)
	}
}

// Control is a net.Dialer's, which should have KeepAlive(limit) too.
func Control(raw syscall.RawConn, limit time.Duration) { userTimeout(raw, limit) }
