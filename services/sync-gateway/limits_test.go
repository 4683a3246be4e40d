package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/services/sync-gateway/internal/rsocket"
)

// TestLimits: what a user or an address has too much of is refused, by HTTP and by
// WebSocket, with what clients understand; it can be had again when it is given
// back, and others never notice.
func TestLimits(t *testing.T) {
	refused := func(t *testing.T, res *http.Response, what string) {
		t.Helper()
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != 429 || !strings.Contains(string(b), "PSYNC_S2304") || !strings.Contains(string(b), what) {
			t.Errorf("want %q, got %d %s", what, res.StatusCode, b)
		}
	}
	rejected := func(t *testing.T, c *socketClient, what string) {
		t.Helper()
		if f := c.frame(); f.Code != rsocket.RejectedSetup || string(f.Data) != "[PSYNC_S2304] "+what {
			t.Errorf("want %q, got %+v %s", what, f, f.Data)
		}
	}
	// stands sets a socket up and waits until it is.
	stands := func(h *house, user string) *socketClient {
		c := h.dial(t, false)
		c.send(setup("application/json", authMetadata(user)))
		c.send(keepalive("x"))
		c.frame()
		return c
	}

	t.Run("streams of a user", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.Limits = config.Limits{UserStreams: 3} })
		a := h.open(t, "u1", `{}`, nil)
		c := stands(h, "u1") // one, though it has no stream yet
		c.send(requestStream(1, 1, 0, streamRoute, []byte(`{}`)))
		c.line(1)
		c.send(requestStream(3, 1, 0, streamRoute, []byte(`{}`)))
		c.line(3)
		const many = "Too many sync streams of this user"
		refused(t, h.post(t, "u1", `{}`, nil), many)
		d := h.dial(t, false)
		d.send(setup("application/json", authMetadata("u1")))
		rejected(t, d, many)
		c.send(requestStream(5, 1, 0, streamRoute, []byte(`{}`)))
		if f := c.frame(); f.Stream != 5 || f.Code != rsocket.ApplicationError || string(f.Data) != "[PSYNC_S2304] "+many {
			t.Errorf("%+v %s", f, f.Data)
		}
		h.open(t, "u2", `{}`, nil).close()

		a.close()
		wait(t, func() bool {
			res := h.post(t, "u1", `{}`, nil)
			_ = res.Body.Close()
			return res.StatusCode == 200
		})
		// All that the socket has, and no more, comes back with it.
		_ = c.ws.CloseNow()
		wait(t, func() bool { return h.sessions() == 0 })
		var open []*client
		wait(t, func() bool {
			res := h.post(t, "u1", `{}`, nil)
			if res.StatusCode != 200 {
				_ = res.Body.Close()
				return false
			}
			open = append(open, &client{res: res})
			return len(open) == 3
		})
		refused(t, h.post(t, "u1", `{}`, nil), many)
		for _, c := range open {
			c.close()
		}
	})

	t.Run("streams of an address", func(t *testing.T) {
		h := newHouse(t, func(c *Config) {
			c.Limits = config.Limits{AddressStreams: 1, Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
		})
		from := func(address string) http.Header { return http.Header{"X-Forwarded-For": {"203.0.113.1, " + address}} }
		h.open(t, "u1", `{}`, from("192.0.2.1"))
		refused(t, h.post(t, "u2", `{}`, from("192.0.2.1")), "Too many sync streams of this address")
		h.open(t, "u1", `{}`, from("192.0.2.2"))
		stands(h, "u1") // from the proxy itself
		c := h.dial(t, false)
		c.send(setup("application/json", authMetadata("u2")))
		rejected(t, c, "Too many sync streams of this address")
	})

	t.Run("requests of a user", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.Limits = config.Limits{UserRequests: 3} })
		const many = "Too many requests of this user"
		// A large body is authorized before it is read, and counts once.
		large := fmt.Sprintf(`{"parameters":{"x":%q}}`, strings.Repeat("x", 2<<20))
		if res := h.post(t, "u1", large, nil); res.StatusCode != 200 {
			t.Fatal(res.Status)
		} else {
			_ = res.Body.Close()
		}
		c := stands(h, "u1")
		for _, stream := range []uint32{1, 3} {
			c.send(requestStream(stream, 1, 0, streamRoute, []byte(`{}`)))
			c.line(stream)
		}
		c.send(requestStream(5, 1, 0, streamRoute, []byte(`{}`)))
		if f := c.frame(); string(f.Data) != "[PSYNC_S2304] "+many {
			t.Errorf("%+v %s", f, f.Data)
		}
		d := h.dial(t, false)
		d.send(setup("application/json", authMetadata("u1")))
		rejected(t, d, many)
		status, header, body := h.do(t, "GET", "/write-checkpoint2.json", "Token "+mint("u1", nil), "", "")
		after, err := strconv.Atoi(header.Get("Retry-After"))
		if status != 429 || err != nil || after < 1 || after > 20 || !strings.Contains(body, many) {
			t.Errorf("%d %s %s", status, header, body)
		}
		if status, _, body := h.do(t, "GET", "/write-checkpoint2.json", "Token "+mint("u2", nil), "", ""); status != 200 {
			t.Errorf("another user: %d %s", status, body)
		}
	})

	t.Run("requests of an address", func(t *testing.T) {
		h := newHouse(t, func(c *Config) { c.Limits = config.Limits{AddressRequests: 2} })
		for range 2 { // without a token, too
			if status, _, _ := h.do(t, "GET", "/api/admin/v1/diagnostics", "", "", ""); status == 429 {
				t.Fatal("too early")
			}
		}
		// Whoever is not a known proxy does not get another address by saying so.
		refused(t, h.post(t, "u1", `{}`, http.Header{"X-Forwarded-For": {"192.0.2.1"}}), "Too many requests of this address")
		res, err := h.client().Do(upgrade(t, h.url))
		if err != nil {
			t.Fatal(err)
		}
		refused(t, res, "Too many requests of this address")
		if status, _, _ := h.do(t, "GET", "/probes/startup", "", "", ""); status != 200 {
			t.Errorf("probes are limited: %d", status)
		}
		if n := h.metric(t, "sluice_gateway_limited_total"); n != 2 {
			t.Errorf("%v are counted", n)
		}
	})
}

// upgrade is the request that makes a WebSocket.
func upgrade(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequest("GET", url+"/sync/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	return req
}
