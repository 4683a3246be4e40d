package harness

import (
	"context"
	"net"
	"os/exec"
)

// Place is a network that processes are started in and connections are made from,
// where that is not the test's own.
type Place interface {
	// Address is where others find what listens there.
	Address() string
	// Do calls f. Processes that f starts, and connections that it makes to an
	// address, are of the place for good.
	Do(f func())
}

// do is p.Do, or in the test's own network if p is nil.
func do(p Place, f func()) {
	if p == nil {
		f()
		return
	}
	p.Do(f)
}

// address is p.Address, or that of the test's own network if p is nil.
func address(p Place) string {
	if p == nil {
		return "127.0.0.1"
	}
	return p.Address()
}

// Dial returns a net.Dialer's DialContext, from p. It takes addresses, not names.
func Dial(p Place) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		do(p, func() { conn, err = new(net.Dialer).DialContext(ctx, network, address) })
		return conn, err
	}
}

// start starts cmd in p.
func start(p Place, cmd *exec.Cmd) (err error) {
	do(p, func() { err = cmd.Start() })
	return err
}
