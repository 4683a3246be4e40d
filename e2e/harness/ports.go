package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// Ports for servers come from below those that the system gives to outgoing
// connections: one of these could otherwise take the port of a server that is
// being restarted.
const (
	firstPort = 20_000
	endPort   = 32_000
)

// ports makes that none is given twice in a row; processes begin anywhere.
var ports = struct {
	sync.Mutex
	next int // guarded by Mutex
}{next: firstPort + rand.IntN(endPort-firstPort)}

// FreePort returns a port that was free a moment ago.
func FreePort(t testing.TB) int {
	t.Helper()
	return freeRun(t, 1)
}

// freePorts returns n different ones.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var list []int
	for range n {
		list = append(list, FreePort(t))
	}
	return list
}

// freeRun returns the first of n free ports in a row.
func freeRun(t testing.TB, n int) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range (endPort - firstPort) / n {
		if ports.next+n > endPort {
			ports.next = firstPort
		}
		first := ports.next
		ports.next += n
		if free(first, n) {
			return first
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

func free(first, n int) bool {
	for port := first; port < first+n; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}
