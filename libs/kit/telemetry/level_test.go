package telemetry

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// buffer is what is logged, also by the timer that ends a level's time.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// take returns what was logged since it was last taken.
func (b *buffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.b.Reset()
	return b.b.String()
}

// TestLevel: another level holds for its time, for every log that comes of it, and
// a bad one changes nothing.
func TestLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b buffer
		log := Logger(&b, config.Logging{Level: "warn"}, "text")
		derived := log.With("service", "x").WithGroup("g")
		level := LevelOf(log)
		logged := func() bool {
			b.take()
			derived.Debug("said")
			return strings.Contains(b.take(), "said")
		}
		do := func(method, path, body string) (int, string) {
			w := httptest.NewRecorder()
			level.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
			return w.Code, strings.TrimSpace(w.Body.String())
		}
		expect := func(when, want string, debug bool) {
			t.Helper()
			synctest.Wait()
			if code, got := do("GET", "/", ""); code != 200 || got != want || logged() != debug {
				t.Errorf("%s: %d %s, debug %v", when, code, got, logged())
			}
		}
		expect("at first", "warn", false)
		if code, got := do("PUT", "/?for=10m", "debug\n"); code != 200 || got != "debug" {
			t.Errorf("%d %s", code, got)
		}
		if got := b.take(); !strings.Contains(got, "log level changed") {
			t.Errorf("log %s", got)
		}
		expect("changed", "debug", true)
		time.Sleep(9 * time.Minute)
		do("PUT", "/", "silly") // for an hour
		time.Sleep(59 * time.Minute)
		expect("the first time is over, the second is not", "silly", true)
		time.Sleep(2 * time.Minute)
		expect("over", "warn", false)
		for _, bad := range []struct{ method, path, body string }{
			{"PUT", "/", "loud"}, {"PUT", "/", ""}, {"PUT", "/?for=25h", "debug"}, {"PUT", "/?for=-1s", "debug"}, {"PUT", "/?for=x", "debug"},
			{"PUT", "/", strings.Repeat("d", 100)}, {"POST", "/", "debug"}, {"DELETE", "/", ""},
		} {
			if code, _ := do(bad.method, bad.path, bad.body); code < 400 {
				t.Errorf("%v: %d", bad, code)
			}
		}
		expect("after bad ones", "warn", false)
		do("PUT", "/", "debug")
		do("PUT", "/", "warn")
		expect("as configured before its time", "warn", false)
		time.Sleep(2 * time.Hour)
		expect("and later", "warn", false)
		if LevelOf(slog.New(slog.DiscardHandler)) != nil {
			t.Error("another's log has a level")
		}
	})
}
