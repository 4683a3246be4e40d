// Package tcp makes the kernel notice peers that have vanished without a word.
//
// Keepalive alone does not: it is silent while something waits to be
// acknowledged, which is sent again for a quarter of an hour. So there is a bound
// for that too. The worst is what is sent just before keepalive would have
// noticed: the sum of both is the limit.
package tcp

import (
	"net"
	"syscall"
	"time"
)

// KeepAlive asks an idle peer for a sign of life so that one that has vanished is
// noticed within limit. It asks at least twice before it gives it up: one packet may
// be lost.
func KeepAlive(limit time.Duration) net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: limit / 4, Interval: limit / 10, Count: 2}
}

// Heard is how seldom something is heard of a peer that is there, on a connection
// with KeepAlive(limit): it has a tenth of limit to answer.
func Heard(limit time.Duration) time.Duration { return limit * 11 / 30 }

// Silence is how long ago something was last heard of conn's peer, be it that it
// acknowledged; 0 if that is not known.
func Silence(conn net.Conn) time.Duration {
	if c, ok := conn.(*net.TCPConn); ok {
		return silence(c)
	}
	return 0
}

// unacknowledged is how long what was sent may wait to be acknowledged.
func unacknowledged(limit time.Duration) time.Duration { return limit * 2 / 5 }

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
		Control(raw, limit)
	}
}

// Control is a net.Dialer's, which should have KeepAlive(limit) too.
func Control(raw syscall.RawConn, limit time.Duration) { userTimeout(raw, unacknowledged(limit)) }
