//go:build !linux

package tcp

import (
	"syscall"
	"time"
)

func userTimeout(syscall.RawConn, time.Duration) {}
