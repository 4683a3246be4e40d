package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// levelTime is how long another level holds unless told otherwise, and
	// maxLevelTime how long at most: who looked for a fault forgets to turn it back.
	levelTime    = time.Hour
	maxLevelTime = 24 * time.Hour
	// maxLevelText bounds what is read of a request.
	maxLevelText = 64
)

// Level is that of a log, and can be changed while the process runs.
type Level struct {
	configured slog.Level
	now        slog.LevelVar
	log        *slog.Logger

	mu   sync.Mutex
	back *time.Timer // sets the configured level again; nil = it holds
}

// leveled is a handler that knows its level.
type leveled struct {
	slog.Handler
	level *Level
}

// LevelOf returns the level of a log that Logger made, nil of another.
func LevelOf(log *slog.Logger) *Level {
	if h, ok := log.Handler().(leveled); ok {
		return h.level
	}
	return nil
}

// Set changes the level for a while, at most maxLevelTime.
func (l *Level) Set(name string, d time.Duration) error {
	level, ok := levels[name]
	if !ok {
		return fmt.Errorf("level is %q, not one of %s", name, strings.Join(slices.Sorted(maps.Keys(levels)), ", "))
	}
	if d <= 0 || d > maxLevelTime {
		return fmt.Errorf("for is %s, not up to %s", d, maxLevelTime)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.back != nil {
		l.back.Stop()
		l.back = nil
	}
	l.now.Set(level)
	if level == l.configured {
		l.log.Warn("log level is as configured", "level", name)
		return nil
	}
	l.log.Warn("log level changed", "level", name, "for", d.String())
	var back *time.Timer
	back = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.back != back {
			return // it was changed again meanwhile
		}
		l.back = nil
		l.now.Set(l.configured)
		l.log.Warn("log level is as configured again")
	})
	l.back = back
	return nil
}

// String is the name of the level that holds.
func (l *Level) String() string {
	for name, level := range levels {
		if level == l.now.Level() {
			return name
		}
	}
	return l.now.Level().String()
}

// ServeHTTP answers with the level; PUT sets the one in the body before, for the
// time that the parameter for gives, or an hour. (PUT alone: no page in a browser
// can do that unasked.)
func (l *Level) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPut:
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxLevelText))
		d := levelTime
		if text := r.URL.Query().Get("for"); err == nil && text != "" {
			d, err = time.ParseDuration(text)
		}
		if err == nil {
			err = l.Set(strings.TrimSpace(string(body)), d)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT")
		http.Error(w, "GET or PUT", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, l.String()+"\n") // an error is the caller's: it is gone
}
