package postgres

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestResolve(t *testing.T) {
	c, err := Config{URI: "postgresql://u:p%20w@db.example:5544/app?connect_timeout=2", Username: "other"}.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if c.Hostname != "db.example" || c.Port != 5544 || c.Username != "other" || c.Password != "p w" || c.Database != "app" ||
		c.ConnectTimeout != 2*time.Second || c.SSLMode != "verify-full" || c.SlotNamePrefix != "powersync_" {
		t.Errorf("resolved to %+v", c)
	}
	if got := c.Redacted(); got != "postgresql://db.example:5544/app" {
		t.Errorf("redacted: %s", got)
	}
	if tls, err := c.tls(); err != nil || tls.ServerName != "db.example" {
		t.Errorf("tls: %v", err)
	}
}

// TestResolveProblems: every problem is named at once, with its code, and
// without a secret (D10).
func TestResolveProblems(t *testing.T) {
	for _, tt := range []struct {
		c     Config
		codes string
	}{
		{Config{}, "S1105 S1106 S1107 S1108"},
		{Config{URI: "mysql://u:secret@h/d"}, "S1109 S1105 S1106 S1107 S1108"},
		{Config{URI: "postgres://u:sec ret@h:1/d%"}, "S1109 S1105 S1106 S1107 S1108"},
		{Config{URI: "postgres://u:secret@h:80/d"}, "S1110"},
		{Config{URI: "postgres://u:secret@h/d", SSLMode: "verify-ca"}, "S1104"},
		{Config{URI: "postgres://u:secret@h/d", SSLMode: "prefer", RejectIPRanges: []string{"x"}}, "S1109 S1109"},
		{Config{URI: "postgres://u:secret@127.0.0.1/d", RejectIPRanges: []string{"local"}}, "S2203"},
	} {
		_, err := tt.c.Resolve()
		if err == nil {
			t.Errorf("%+v accepted", tt.c)
			continue
		}
		if strings.Contains(err.Error(), "sec") && strings.Contains(err.Error(), "ret") {
			t.Errorf("secret in %q", err)
		}
		var codes []string
		for _, line := range strings.Split(err.Error(), "\n") {
			codes = append(codes, strings.TrimPrefix(strings.TrimSuffix(strings.Fields(line)[0], "]"), "[PSYNC_"))
		}
		if got := strings.Join(codes, " "); got != tt.codes {
			t.Errorf("got %s, want %s: %v", got, tt.codes, err)
		}
	}
}

func TestRejectIPRanges(t *testing.T) {
	local, err := parseRanges([]string{"local"})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "0.0.0.0", "224.0.0.1", "100.64.1.1"} {
		if local.check(netip.MustParseAddr(ip)) == nil {
			t.Errorf("local accepts %s", ip)
		}
	}
	if err := local.check(netip.MustParseAddr("8.8.8.8")); err != nil {
		t.Error(err)
	}
	one, err := parseRanges([]string{"8.8.0.0/16"})
	if err != nil {
		t.Fatal(err)
	}
	if one.check(netip.MustParseAddr("8.8.8.8")) == nil || one.check(netip.MustParseAddr("127.0.0.1")) != nil {
		t.Error("range not applied")
	}
}
