//go:build unix

package process

import (
	"os"
	"syscall"
)

// ending are the signals that end a process in order.
var ending = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGUSR2}
