package admin

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
)

// Each returns a client for every address that the name in c's URL stands for,
// in order, and those addresses: all gateways behind a name that resolves to
// each of them, as a headless service's does.
func (c *Client) Each(ctx context.Context) (all []*Client, addresses []string, err error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" {
		return nil, nil, fmt.Errorf("%q is not a URL", c.URL)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	hosts, err := net.DefaultResolver.LookupHost(ctx, u.Hostname())
	if err != nil {
		return nil, nil, &UnreachableError{err}
	}
	slices.Sort(hosts)
	base, ok := http.DefaultTransport.(*http.Transport)
	if c.HTTP != nil {
		base, ok = c.HTTP.Transport.(*http.Transport)
	}
	if !ok {
		return []*Client{c}, []string{u.Host}, nil
	}
	for _, h := range slices.Compact(hosts) {
		address := net.JoinHostPort(h, port)
		t := base.Clone()
		t.Proxy, t.DisableKeepAlives = nil, true
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		}
		all = append(all, &Client{URL: c.URL, Token: c.Token, HTTP: &http.Client{Transport: t}})
		addresses = append(addresses, address)
	}
	return all, addresses, nil
}
