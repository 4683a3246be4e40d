package config

import (
	"net"
	"strings"
)

// Redacted is the connection without its secrets and options, to show.
func (c *MongoDB) Redacted() string {
	scheme, rest, _ := strings.Cut(c.URI, "://")
	rest, _, _ = strings.Cut(rest, "?")
	rest = rest[strings.LastIndex(rest, "@")+1:]
	hosts, _, _ := strings.Cut(rest, "/")
	return scheme + "://" + hosts + "/" + c.Database
}

// Dialer refuses addresses in reject_ip_ranges, and its connections end when the
// server has vanished.
func (c *MongoDB) Dialer() *net.Dialer { return dialer(c.Reject) }
