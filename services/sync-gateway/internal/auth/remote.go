package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

const (
	// staleAfter is when keys are fetched again while the old ones serve.
	staleAfter = 5 * time.Minute
	// keepFor is how long keys serve without having been confirmed.
	keepFor = 60 * time.Minute
	// waitFor is how long a request waits for keys when there are none.
	waitFor = 3 * time.Second
	// fetchTimeout bounds one fetch.
	fetchTimeout = 30 * time.Second
	// maxKeySet bounds a key set's text.
	maxKeySet = 1 << 20
	// maxRedirects of a fetch.
	maxRedirects = 3
)

// remote is a key set at a URI.
type remote struct {
	uri      string
	supabase bool
	client   *http.Client
	ctx      context.Context
	fetching sync.WaitGroup

	mu        sync.Mutex
	known     []key
	changes   uint64    // of known
	fetched   time.Time // when known was confirmed
	attempted time.Time
	err       error         // of the last attempt
	running   chan struct{} // closed when the fetch under way ends; nil = none
	limiter   limiter
	fetches   Fetches // but for Failing
}

func newRemote(ctx context.Context, uri string, g *guard, supabase bool) (*remote, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" {
		return nil, errs.New(errs.S3102, "jwks_uri is not a URI")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, errs.New(errs.S3103, "jwks_uri must begin with http:// or https://, not %s", clip(u.Scheme))
	}
	if err := g.literal(u.Hostname()); err != nil {
		return nil, err
	}
	return &remote{
		uri: uri, supabase: supabase, ctx: ctx, limiter: limiter{level: limiterSize},
		client: &http.Client{
			Timeout: fetchTimeout,
			Transport: &http.Transport{
				DialContext:            g.dial,
				TLSHandshakeTimeout:    10 * time.Second,
				MaxResponseHeaderBytes: 64 << 10,
				DisableKeepAlives:      true,
			},
			CheckRedirect: func(r *http.Request, via []*http.Request) error {
				if len(via) > maxRedirects {
					return errors.New("too many redirects")
				}
				if r.URL.Scheme != "http" && r.URL.Scheme != "https" {
					return errors.New("redirect to another scheme")
				}
				return g.literal(r.URL.Hostname())
			},
		},
	}, nil
}

// keys returns the keys to verify with now. An error says that the source
// cannot be reached; the keys are good even so.
func (r *remote) keys(ctx context.Context, now time.Time) ([]key, error) {
	r.mu.Lock()
	if !r.fetched.IsZero() && now.Sub(r.fetched) < keepFor {
		if now.Sub(r.attempted) >= staleAfter || r.err != nil {
			r.start(now)
		}
		defer r.mu.Unlock()
		return r.known, r.err
	}
	r.drop()
	r.start(now)
	running, err := r.running, r.err
	r.mu.Unlock()
	if running == nil {
		if err == nil {
			err = errs.New(errs.S2204, "JWKS request failed: too many attempts").Retryable()
		}
		return nil, err
	}
	t := time.NewTimer(waitFor)
	defer t.Stop()
	select {
	case <-running:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		return nil, errs.New(errs.S2204, "JWKS request failed: no answer within %s", waitFor).Retryable()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known, r.err
}

// drop forgets keys that are too old. r.mu is held.
func (r *remote) drop() {
	if r.known != nil {
		r.known = nil
		r.changes++
	}
}

// version counts the changes of the keys; it fetches and drops them like keys,
// without waiting.
func (r *remote) version(now time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.fetched) >= keepFor {
		r.drop()
	} else if now.Sub(r.attempted) >= staleAfter || r.err != nil {
		r.start(now)
	}
	return r.changes
}

// refresh fetches the keys again, if the limiter allows it.
func (r *remote) refresh(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.start(now)
}

// start starts a fetch, unless one runs or the limiter forbids it. r.mu is held.
func (r *remote) start(now time.Time) {
	if r.running != nil || r.ctx.Err() != nil || !r.limiter.allow(now) {
		return
	}
	done := make(chan struct{})
	r.running, r.attempted = done, now
	r.fetching.Go(func() {
		keys, err := r.fetch()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err, r.running = err, nil
		if err == nil {
			r.fetches.Done++
		} else {
			r.fetches.Failed++
		}
		if err == nil {
			r.known, r.fetched = keys, now
			r.changes++
		}
		close(done)
	})
}

func (r *remote) wait() { r.fetching.Wait() }

func (r *remote) fetch() ([]key, error) {
	ctx, cancel := context.WithTimeout(r.ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.uri, nil)
	if err != nil {
		return nil, errs.Wrap(errs.S2204, err, "JWKS request failed")
	}
	req.Header.Set("Accept", "application/json")
	res, err := r.client.Do(req)
	if err != nil {
		if code := errs.CodeOf(err); code != "" {
			var e *errs.Error
			errors.As(err, &e)
			return nil, e
		}
		return nil, errs.Wrap(errs.S2204, err, "JWKS request failed").Retryable()
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, errs.New(errs.S2204, "JWKS request failed with status %d", res.StatusCode).Retryable()
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxKeySet+1))
	if err != nil {
		return nil, errs.Wrap(errs.S2204, err, "JWKS request failed").Retryable()
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"` // a bad one does not spoil the others
	}
	if len(body) > maxKeySet || json.Unmarshal(body, &set) != nil || set.Keys == nil {
		return nil, errs.New(errs.S2204, "JWKS response is not a key set").Retryable()
	}
	keys := make([]key, 0, len(set.Keys))
	for _, raw := range set.Keys {
		// A key that is not for us is none of our business.
		var j remoteKey
		if json.Unmarshal(raw, &j) != nil {
			continue
		}
		if k, err := newKey(jwk(j), false); err == nil {
			k.supabase = r.supabase
			keys = append(keys, k)
		}
	}
	return keys, nil
}

const (
	limiterSize   = 10
	limiterRefill = time.Minute
)

// limiter is a leaky bucket that also spaces grants, the more the emptier it
// is (spec/06 §5.3).
type limiter struct {
	level float64
	seen  time.Time
	next  time.Time
}

func (l *limiter) allow(now time.Time) bool {
	if !l.seen.IsZero() {
		l.level = min(limiterSize, l.level+now.Sub(l.seen).Seconds()/limiterRefill.Seconds())
	}
	l.seen = now
	if l.level < 1 || now.Before(l.next) {
		return false
	}
	l.level--
	missing := limiterSize - l.level
	l.next = now.Add(time.Duration(missing * missing / 100 * float64(time.Minute)))
	return true
}

// guard keeps fetches away from addresses that were ruled out.
type guard struct {
	ranges config.Ranges
	no6    bool
}

func (g *guard) check(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if g.no6 && a.Is6() {
		return errs.New(errs.S2202, "IPv6 is not allowed for JWKS")
	}
	if g.ranges.Rejects(a) {
		return errs.New(errs.S2203, "IPs in this range are not supported for JWKS")
	}
	return nil
}

// literal checks a host that is an address already.
func (g *guard) literal(host string) error {
	if a, err := netip.ParseAddr(host); err == nil {
		return g.check(a)
	}
	return nil
}

// dial checks every address that DNS gives, and once more the one that is
// connected to, so that nothing can change in between.
func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look up key server: %w", err)
	}
	for _, a := range addrs {
		if err := g.check(a); err != nil {
			return nil, err
		}
	}
	d := net.Dialer{
		Timeout: 10 * time.Second,
		Control: func(_, address string, _ syscall.RawConn) error {
			a, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("check address: %w", err)
			}
			return g.check(a.Addr())
		},
	}
	for _, a := range addrs {
		var c net.Conn
		if c, err = d.DialContext(ctx, network, net.JoinHostPort(a.String(), port)); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("connect to key server: %w", err)
}
