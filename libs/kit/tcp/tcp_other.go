//go:build !linux

package tcp

import (
	"net"
	"syscall"
	"time"
)

func userTimeout(syscall.RawConn, time.Duration) {}

func silence(*net.TCPConn) time.Duration { return 0 }
