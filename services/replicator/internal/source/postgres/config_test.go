package postgres

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// TestConnConfig: the driver is given what the config says and nothing of the
// environment's.
func TestConnConfig(t *testing.T) {
	t.Setenv("PGHOST", "elsewhere")
	t.Setenv("PGUSER", "somebody")
	c := config.Postgres{Hostname: "db.example", Port: 5544, Username: "u", Password: "p /?@w", Database: "app", SSLMode: "verify-full"}
	p, err := connConfig(&c)
	if err != nil {
		t.Fatal(err)
	}
	if p.Host != "db.example" || p.Port != 5544 || p.User != "u" || p.Password != "p /?@w" || p.Database != "app" || len(p.Fallbacks) != 0 {
		t.Errorf("%s:%d %s %s, %d fallbacks", p.Host, p.Port, p.User, p.Database, len(p.Fallbacks))
	}
	if p.TLSConfig == nil || p.TLSConfig.ServerName != "db.example" || p.TLSConfig.InsecureSkipVerify {
		t.Error("verify-full does not verify")
	}
	if got := c.Redacted(); got != "postgresql://db.example:5544/app" {
		t.Errorf("redacted: %s", got)
	}
	c.CACert, c.SSLMode = "no PEM", "verify-ca"
	if _, err := connConfig(&c); err == nil || !strings.Contains(err.Error(), "S1109") {
		t.Errorf("bad cacert: %v", err)
	}
}

// TestReject: addresses are checked where names are resolved.
func TestReject(t *testing.T) {
	c := config.Postgres{Hostname: "localhost", Port: 5544, Username: "u", Password: "p", Database: "d", SSLMode: "disable",
		Reject: config.Ranges{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}}
	p, err := connConfig(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.DialFunc(context.Background(), "tcp", "localhost:5544"); err == nil || !strings.Contains(err.Error(), "S2203") {
		t.Errorf("dial: %v", err)
	}
}
