package harness

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Network is hosts, each a network namespace of its own, between which the test
// carries every packet: it may keep some back, in one direction or both, or until
// later. Nothing else of the machine is touched, and namespaces have no names, so
// that they are gone with the last process in them, however the test ends.
type Network struct {
	hosts   []*Host // by the last number of their address, from 1
	readers sync.WaitGroup

	mu     sync.Mutex
	faults map[way]fault // guarded by mu
}

type way struct{ from, to *Host }

type fault struct {
	lost  bool
	delay time.Duration
}

// Host is a Place in a Network.
type Host struct {
	number  int
	space   *os.File // the namespace
	packets *os.File // to and from its kernel
}

// prefix is of addresses that are for tests of networks (RFC 2544).
var prefix = [3]byte{198, 18, 73}

// mtu is large: packets cost by their number.
const mtu = 16 << 10

// StartNetwork makes a network with as many hosts. It ends with the test, which is
// skipped, aloud, where namespaces are not allowed.
func StartNetwork(t testing.TB, hosts int) *Network {
	t.Helper()
	n := &Network{faults: map[way]fault{}}
	t.Cleanup(func() {
		for _, h := range n.hosts {
			h.packets.Close()
			h.space.Close()
		}
		n.readers.Wait()
	})
	for number := range hosts {
		h, err := newHost(number + 1)
		if err != nil {
			t.Skipf("SKIPPED: no network of namespaces can be made here: %v. It needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and /dev/net/tun; nothing was shown of networks that lose or delay packets", err)
		}
		n.hosts = append(n.hosts, h)
	}
	for _, h := range n.hosts {
		n.readers.Go(func() { n.carry(h) })
	}
	return n
}

// Hosts are those of the network.
func (n *Network) Hosts() []*Host { return n.hosts }

// Lose makes all packets vanish that one host sends to another from now on.
func (n *Network) Lose(from, to *Host) { n.set(from, to, fault{lost: true}) }

// Delay makes them come later.
func (n *Network) Delay(from, to *Host, by time.Duration) { n.set(from, to, fault{delay: by}) }

func (n *Network) set(from, to *Host, f fault) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults[way{from, to}] = f
}

// Heal makes all packets come at once again.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.faults)
}

// carry takes what a host sends to whom it is for.
func (n *Network) carry(from *Host) {
	buf := make([]byte, mtu)
	for {
		size, err := from.packets.Read(buf)
		if err != nil {
			return // it was closed
		}
		// An IPv4 header has at least 20 bytes, of which the last four are the target.
		if size < 20 || buf[0]>>4 != 4 || [3]byte(buf[16:19]) != prefix || int(buf[19]) > len(n.hosts) || buf[19] == 0 {
			continue
		}
		to := n.hosts[buf[19]-1]
		n.mu.Lock()
		f := n.faults[way{from, to}]
		n.mu.Unlock()
		switch {
		case f.lost:
		case f.delay > 0:
			late := append([]byte(nil), buf[:size]...)
			time.AfterFunc(f.delay, func() { _, _ = to.packets.Write(late) })
		default:
			_, _ = to.packets.Write(buf[:size]) // a host that is gone, or cannot keep up, loses it
		}
	}
}

func newHost(number int) (*Host, error) {
	type made struct {
		h   *Host
		err error
	}
	ch := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		h := &Host{number: number}
		ch <- made{h, h.make()}
	}()
	m := <-ch
	return m.h, m.err
}

// make makes the namespace, of which the thread then is, and its only way out.
func (h *Host) make() (err error) {
	defer func() {
		if err != nil && h.space != nil {
			h.space.Close()
		}
	}()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if h.space, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := configure(fd, h.Address()); err != nil {
		unix.Close(fd)
		return err
	}
	h.packets = os.NewFile(uintptr(fd), "/dev/net/tun")
	return nil
}

// configure makes a tun device of fd, with an address, in the thread's namespace.
func configure(fd int, address string) error {
	device, err := unix.NewIfreq("tun0")
	if err != nil {
		return err
	}
	device.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, device); err != nil {
		return fmt.Errorf("make a tun device: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	up := func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }
	for _, step := range []struct {
		device, what string
		request      uint
		fill         func(*unix.Ifreq) error
	}{
		{"lo", "up", unix.SIOCSIFFLAGS, up},
		{"tun0", "address", unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(netip.MustParseAddr(address).AsSlice()) }},
		{"tun0", "netmask", unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }},
		{"tun0", "mtu", unix.SIOCSIFMTU, func(r *unix.Ifreq) error { r.SetUint32(mtu); return nil }},
		{"tun0", "up", unix.SIOCSIFFLAGS, up},
	} {
		r, err := unix.NewIfreq(step.device)
		if err != nil {
			return err
		}
		if err := step.fill(r); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, step.request, r); err != nil {
			return fmt.Errorf("set %s of %s: %w", step.what, step.device, err)
		}
	}
	return nil
}

// Address implements Place.
func (h *Host) Address() string {
	return netip.AddrFrom4([4]byte{prefix[0], prefix[1], prefix[2], byte(h.number)}).String()
}

// Do implements Place.
func (h *Host) Do(f func()) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(int(h.space.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		panic(fmt.Sprintf("enter the namespace of host %d: %v", h.number, err)) // a bug: it is ours
	}
}
