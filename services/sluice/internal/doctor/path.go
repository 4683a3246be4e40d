package doctor

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// firstLine is how soon the first line of a stream must have come through: a
// gateway sends it at once. Tests have less patience.
var firstLine = 10 * time.Second

// nginx is what proxies are most often, and what it takes there; others need
// the same by other names.
const (
	nginxStream = "proxy_http_version 1.1; proxy_buffering off; proxy_read_timeout 1h; # nginx, in the location of Sluice; others: no buffering of responses, no read timeout below 60 s"
	nginxSocket = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\"; # nginx, in the location of Sluice; others: let WebSocket upgrades pass"
)

// Path looks at the way that clients take to base, proxies and all, with a
// client's token: whether streams pass without delay, and WebSockets at all.
func Path(ctx context.Context, base, token string) []Result {
	base = strings.TrimSuffix(base, "/")
	return []Result{stream(ctx, base, token), socket(ctx, base)}
}

func stream(ctx context.Context, base, token string) Result {
	const check = "path of streams"
	ctx, cancel := context.WithTimeout(ctx, firstLine)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/sync/stream", strings.NewReader(`{"raw_data":true,"client_id":"sluice-doctor"}`))
	if err != nil {
		return result(check, Failed, err.Error())
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Token "+token)
	// A coding would make a proxy's life harder than it is for most clients.
	r.Header.Set("Accept-Encoding", "identity")
	start := time.Now()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true, ForceAttemptHTTP2: true}}
	resp, err := client.Do(r)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return result(check, Failed, fmt.Sprintf("%s: nothing came within %s: a proxy in between buffers responses, or the gateway is stuck", base, firstLine), nginxStream, "curl -N -m 10 -i '"+base+"/probes/liveness'")
		}
		return result(check, Failed, "cannot be reached: "+err.Error(), "curl -v -m 10 '"+base+"/probes/liveness'")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what there is of it
		var failure struct {
			Error struct{ Code, Description string }
		}
		if json.Unmarshal(text, &failure) != nil || failure.Error.Code == "" {
			return result(check, Failed, fmt.Sprintf("%s: HTTP status %s, and not from Sluice: does the proxy pass this path on?", base, resp.Status), "curl -i -m 10 '"+base+"/probes/liveness'")
		}
		detail := fmt.Sprintf("%s: [%s] %s", base, failure.Error.Code, failure.Error.Description)
		if failure.Error.Code == "PSYNC_S2302" {
			return result(check, Skipped, detail)
		}
		return result(check, Failed, detail, "sluice status")
	}
	line, err := bufio.NewReaderSize(resp.Body, 64<<10).ReadSlice('\n')
	took := time.Since(start)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return result(check, Failed, fmt.Sprintf("%s: the first line did not come within %s: a proxy in between buffers responses", base, firstLine), nginxStream)
	case err != nil && len(line) == 0:
		return result(check, Failed, fmt.Sprintf("%s: the stream broke off: %s", base, err), nginxStream)
	}
	return result(check, OK, fmt.Sprintf("%s: the first line came after %s", base, took.Round(time.Millisecond)))
}

func socket(ctx context.Context, base string) Result {
	const check = "path of WebSockets"
	ctx, cancel := context.WithTimeout(ctx, firstLine)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/sync/stream", nil)
	if err != nil {
		return result(check, Failed, err.Error())
	}
	var key [16]byte
	rand.Read(key[:])
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": base64.StdEncoding.EncodeToString(key[:]),
	} {
		r.Header.Set(name, value)
	}
	// An upgrade is of HTTP/1.1.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	resp, err := (&http.Client{Transport: &http.Transport{Protocols: &protocols, DisableKeepAlives: true}}).Do(r)
	if err != nil {
		return result(check, Failed, "cannot be reached: "+err.Error(), "curl -v -m 10 '"+base+"/probes/liveness'")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return result(check, Failed, fmt.Sprintf("%s: an upgrade is answered with HTTP status %s", base, resp.Status), nginxSocket)
	}
	return result(check, OK, base+": upgrades pass")
}
