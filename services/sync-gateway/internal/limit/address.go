package limit

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Proxies are whose word is taken for where a request came from.
type Proxies []netip.Prefix

// Address is where a request came from: the peer, or if that is a proxy the last
// address in X-Forwarded-For that is none. Each proxy appends whom it heard the
// request from, so that what comes before is the client's invention. Of IPv6 it is
// the network of 64 bits, which is what one customer has.
func (p Proxies) Address(r *http.Request) string {
	at, ok := parse(r.RemoteAddr)
	if !ok {
		return r.RemoteAddr // no TCP
	}
	if p.trusts(at) {
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		for _, hop := range slices.Backward(hops) {
			next, ok := parse(strings.TrimSpace(hop))
			if !ok {
				break
			}
			if at = next; !p.trusts(at) {
				break
			}
		}
	}
	if at.Is6() {
		if net, err := at.Prefix(64); err == nil {
			return net.String()
		}
	}
	return at.String()
}

func (p Proxies) trusts(a netip.Addr) bool {
	return slices.ContainsFunc(p, func(r netip.Prefix) bool { return r.Contains(a) })
}

// parse reads an address, with or without a port.
func parse(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}
