package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Netns is a network of its own, with a cable to the one of the test.
type Netns struct {
	t    testing.TB
	name string
	// Host is the address of the test's end of the cable, as seen from within.
	Host string
}

// StartNetns makes one; it ends with the test, which is skipped, aloud, where that
// is not allowed.
func StartNetns(t testing.TB) *Netns {
	t.Helper()
	n := &Netns{t: t, name: fmt.Sprintf("sluice%d", os.Getpid()), Host: "198.18.73.1"}
	outside := fmt.Sprintf("sl%d", os.Getpid())
	if out, err := ip("netns", "add", n.name); err != nil {
		t.Skipf("SKIPPED: no network namespace can be made here (ip netns: %v %s): nothing was shown of clients that vanish", err, out)
	}
	t.Cleanup(func() {
		_, _ = ip("link", "del", outside) // the cable goes with the namespace too
		if out, err := ip("netns", "del", n.name); err != nil {
			t.Errorf("remove the namespace: %v %s", err, out)
		}
	})
	for _, args := range [][]string{
		{"link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", n.name},
		{"addr", "add", n.Host + "/30", "dev", outside},
		{"link", "set", outside, "up"},
		{"-n", n.name, "addr", "add", "198.18.73.2/30", "dev", "eth0"},
		{"-n", n.name, "link", "set", "eth0", "up"},
	} {
		if out, err := ip(args...); err != nil {
			t.Skipf("SKIPPED: ip %v: %v %s: nothing was shown of clients that vanish", args, err, out)
		}
	}
	return n
}

// Unplug makes everything that is sent from or to it vanish.
func (n *Netns) Unplug() {
	n.t.Helper()
	if out, err := ip("-n", n.name, "link", "set", "eth0", "down"); err != nil {
		n.t.Fatalf("unplug: %v %s", err, out)
	}
}

// Stream is a client within that sends a request to a port of the test's network
// and reads the answer until the test ends.
func (n *Netns) Stream(port, request string) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", n.name, "bash", "-c", `exec 3<>"/dev/tcp/$0/$1"; printf %s "$2" >&3; exec cat <&3 >/dev/null`, n.Host, port, request)
	if err := cmd.Start(); err != nil {
		cancel()
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
}

func ip(args ...string) (string, error) {
	out, err := exec.Command("ip", args...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
