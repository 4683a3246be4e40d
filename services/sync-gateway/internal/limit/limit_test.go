package limit

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

func TestStreams(t *testing.T) {
	var refused atomic.Uint64
	l := New("user", 2, 0, &refused)
	for _, key := range []string{"a", "a", "b"} {
		if err := l.Open(key); err != nil {
			t.Fatal(err)
		}
	}
	err := l.Open("a")
	if errs.CodeOf(err) != errs.S2304 || err.Error() != "[PSYNC_S2304] Too many sync streams of this user" || !strings.Contains(errs.Cause(err), "user a has 2") || refused.Load() != 1 {
		t.Errorf("the third: %v, %d", errs.Cause(err), refused.Load())
	}
	l.Close("a")
	if err := l.Open("a"); err != nil {
		t.Errorf("after one was given back: %v", err)
	}
	for _, key := range []string{"a", "a", "b"} {
		l.Close(key)
	}
	if len(l.all) != 0 {
		t.Errorf("left: %v", l.all)
	}
	if wait, err := l.Request("a"); wait != 0 || err != nil {
		t.Errorf("requests are not limited: %v %v", wait, err)
	}
}

func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Uint64
		l := New("address", 0, 6, &refused)
		take := func(key string) (taken int, wait time.Duration) {
			for {
				w, err := l.Request(key)
				if err != nil {
					if errs.CodeOf(err) != errs.S2304 || w <= 0 {
						t.Fatalf("%v after %s", err, w)
					}
					return taken, w
				}
				taken++
			}
		}
		if n, wait := take("a"); n != 6 || wait != 10*time.Second {
			t.Errorf("at first %d, then wait %s", n, wait)
		}
		if n, _ := take("b"); n != 6 {
			t.Errorf("another's: %d", n)
		}
		time.Sleep(9 * time.Second) // in the bubble's time
		if n, wait := take("a"); n != 0 || wait != time.Second {
			t.Errorf("too early %d, then wait %s", n, wait)
		}
		time.Sleep(time.Second)
		if n, _ := take("a"); n != 1 {
			t.Errorf("after as long as was said: %d", n)
		}
		time.Sleep(time.Hour)
		if n, _ := take("a"); n != 6 {
			t.Errorf("after an hour: %d", n)
		}
		if err := l.Open("a"); err != nil || refused.Load() != 5 {
			t.Errorf("streams are not limited: %v; refused %d", err, refused.Load())
		}
		l.Close("a")
	})
}

func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New("address", 1, 1, new(atomic.Uint64))
		l.most = 100
		for i := range 50 {
			if err := l.Open(fmt.Sprint("held", i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 10_000 {
			if _, err := l.Request(fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			if len(l.all) > 100 {
				t.Fatalf("%d entries", len(l.all))
			}
		}
		for i := range 50 {
			if err := l.Open(fmt.Sprint("held", i)); err == nil {
				t.Fatal("a stream was forgotten")
			}
			l.Close(fmt.Sprint("held", i))
		}
		time.Sleep(time.Minute)
		if _, err := l.Request("x"); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.forget(time.Now()); len(l.all) != 1 {
			t.Errorf("%d entries after a minute", len(l.all))
		}
	})
}

func TestNothing(t *testing.T) {
	l := New("user", 0, 0, nil)
	if _, err := l.Request("a"); l != nil || err != nil || l.Open("a") != nil {
		t.Error("nothing is limited")
	}
	l.Close("a")
}

func TestAddress(t *testing.T) {
	proxies := Proxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		from, want string
		forwarded  []string
	}{
		{"198.51.100.7:1234", "198.51.100.7", nil},
		{"198.51.100.7:1234", "198.51.100.7", []string{"192.0.2.1"}}, // no proxy of ours
		{"10.1.2.3:1234", "10.1.2.3", nil},
		{"10.1.2.3:1234", "192.0.2.1", []string{"192.0.2.1"}},
		{"10.1.2.3:1234", "192.0.2.1", []string{"203.0.113.9, 192.0.2.1"}}, // the first is the client's word
		{"10.1.2.3:1234", "192.0.2.1", []string{"203.0.113.9,192.0.2.1:5555, 10.9.9.9"}},
		{"10.1.2.3:1234", "192.0.2.1", []string{"203.0.113.9", "192.0.2.1", "10.9.9.9"}},
		{"10.1.2.3:1234", "10.9.9.9", []string{"192.0.2.1, unknown, 10.9.9.9"}},
		{"10.1.2.3:1234", "10.1.2.3", []string{"' OR 1=1"}},
		{"10.1.2.3:1234", "10.8.8.8", []string{"10.8.8.8"}},
		{"[2001:db8:1:2:3:4:5:6]:1234", "2001:db8:1:2::/64", nil},
		{"[fd00::1]:1234", "2001:db8:1:2::/64", []string{"[2001:db8:1:2::9]:443"}},
		{"[::ffff:10.1.2.3]:1234", "192.0.2.1", []string{"::ffff:192.0.2.1"}},
		{"[fe80::1%eth0]:1", "fe80::/64", nil},
		{"@", "@", []string{"192.0.2.1"}},
	} {
		r := &http.Request{RemoteAddr: c.from, Header: http.Header{"X-Forwarded-For": c.forwarded}}
		if got := proxies.Address(r); got != c.want {
			t.Errorf("%s, forwarded for %q: %s, not %s", c.from, c.forwarded, got, c.want)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	l := New("user", 10, 1<<30, new(atomic.Uint64))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Request("user"); err != nil {
			b.Fatal(err)
		}
	}
}
