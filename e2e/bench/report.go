package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Result is one measured number.
type Result struct {
	Scenario string  `json:"scenario"`
	Metric   string  `json:"metric"`
	Value    float64 `json:"value"`
	Unit     string  `json:"unit"`
	// Goal is what the project asks for; better is "more" or "less".
	Goal   float64 `json:"goal,omitempty"`
	Better string  `json:"better"`
	Met    bool    `json:"met"`
	// Limit is the same work without Sluice, measured in the same run.
	Limit     float64 `json:"limit,omitempty"`
	LimitWhat string  `json:"limit_what,omitempty"`
}

// report collects the results of a run.
type report struct {
	mu      sync.Mutex
	results []Result // guarded by mu
}

var results report

func (r *report) add(x Result) {
	if x.Better == "less" {
		x.Met = x.Goal == 0 || x.Value <= x.Goal
	} else {
		x.Met = x.Value >= x.Goal
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, x)
}

// write prints the document, or nothing if nothing was measured.
func (r *report) write(w io.Writer, mode string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.results) == 0 {
		return nil
	}
	physical, err := limits()
	if err != nil {
		return err
	}
	doc := map[string]any{
		"time":     time.Now().UTC().Format(time.RFC3339),
		"mode":     mode,
		"machine":  machine(),
		"physical": physical,
		"results":  r.results,
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}

func machine() map[string]any {
	m := map[string]any{"cpus": runtime.NumCPU(), "go": runtime.Version(), "os": runtime.GOOS + "/" + runtime.GOARCH}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m["cpu"] = field(string(text), "model name")
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		m["memory"] = field(string(text), "MemTotal")
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m["load_at_end"] = strings.TrimSpace(string(text))
	}
	return m
}

func field(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// percentile returns the p-th part (0..1) of the samples in milliseconds.
func percentile(samples []time.Duration, p float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	return float64(sorted[min(len(sorted)-1, int(p*float64(len(sorted))))].Microseconds()) / 1000
}
