package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
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
	failed  []string // scenarios; guarded by mu
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

// fail notes a scenario that did not come to its end.
func (r *report) fail(scenario string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, scenario)
}

// save writes the document to a file and, for people, a table to standard
// error.
func (r *report) save(path, mode string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := r.write(f, mode); err != nil {
		return err
	}
	r.table(os.Stderr)
	return f.Close()
}

// table prints the results as Markdown.
func (r *report) table(w io.Writer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(w, "\n| scenario | figure | measured | goal | |\n|---|---|---|---|---|\n")
	for _, x := range r.results {
		goal, met := "", ""
		if x.Goal != 0 {
			sign := "≥"
			if x.Better == "less" {
				sign = "≤"
			}
			goal, met = fmt.Sprintf("%s %s", sign, amount(x.Goal)), "met"
			if !x.Met {
				met = "**not met**"
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s %s | %s | %s |\n", x.Scenario, x.Metric, amount(x.Value), x.Unit, goal, met)
	}
	for _, s := range r.failed {
		fmt.Fprintf(w, "| %s | | failed | | **not met** |\n", s)
	}
}

// amount is a number as people read it: thousands apart, three digits that count.
func amount(x float64) string {
	if x < 1000 {
		return strconv.FormatFloat(x, 'g', 3, 64)
	}
	digits := strconv.FormatInt(int64(x+0.5), 10)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// write prints the document. It is an error if nothing was measured.
func (r *report) write(w io.Writer, mode string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.results) == 0 {
		return errors.New("nothing was measured")
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
	if len(r.failed) > 0 {
		doc["failed"] = r.failed
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
