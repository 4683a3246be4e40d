package conformance

import (
	"fmt"
	"io"
	"sort"
)

// Level is a level of comparison.
type Level int

const (
	Acceptance Level = iota + 1
	RowData
	Requests
	Buckets
	BucketIDs
	Other // checksums and the like, which have no levels
)

func (l Level) String() string {
	return [...]string{"", "1 acceptance", "2 row data", "3 requests", "4 buckets", "5 bucket ids", "  other areas"}[l]
}

// Report counts checks.
type Report struct {
	areas  []string
	counts map[key]*count
	// Failures of enforced checks, and what was found but is not enforced.
	Failures, Notes []string
}

type key struct {
	area  string
	level Level
}

type count struct{ passed, failed, free int }

func (r *Report) at(area string, l Level) *count {
	if r.counts == nil {
		r.counts = map[key]*count{}
	}
	k := key{area, l}
	if r.counts[k] == nil {
		r.counts[k] = &count{}
		known := false
		for _, a := range r.areas {
			known = known || a == area
		}
		if !known {
			r.areas = append(r.areas, area)
		}
	}
	return r.counts[k]
}

// check counts one comparison. free says why it is not enforced, "" if it is.
func (r *Report) check(area, name string, l Level, problem, free string) {
	c := r.at(area, l)
	switch {
	case problem == "" && free == "":
		c.passed++
	case free != "":
		c.free++
		if problem != "" {
			r.Notes = append(r.Notes, fmt.Sprintf("%s level %d (not enforced: %s): %s", name, l, free, problem))
		}
	default:
		c.failed++
		r.Failures = append(r.Failures, fmt.Sprintf("%s level %d: %s", name, l, problem))
	}
}

// Totals returns the numbers of enforced checks.
func (r *Report) Totals() (passed, failed int) {
	for _, c := range r.counts {
		passed += c.passed
		failed += c.failed
	}
	return passed, failed
}

// Write prints the report: failures, counts for each level and area, totals.
func (r *Report) Write(w io.Writer, verbose bool) {
	for _, f := range r.Failures {
		fmt.Fprintln(w, "FAIL", f)
	}
	if verbose {
		for _, n := range r.Notes {
			fmt.Fprintln(w, "note", n)
		}
	}
	for l := Acceptance; l <= Other; l++ {
		var lines []string
		var sum count
		for _, a := range r.areas {
			if c := r.counts[key{a, l}]; c != nil {
				lines = append(lines, fmt.Sprintf("    %-24s %6d passed %6d failed %6d not enforced", a, c.passed, c.failed, c.free))
				sum.passed += c.passed
				sum.failed += c.failed
				sum.free += c.free
			}
		}
		if len(lines) == 0 {
			continue
		}
		sort.Strings(lines)
		fmt.Fprintf(w, "level %-22s %6d passed %6d failed %6d not enforced\n", l, sum.passed, sum.failed, sum.free)
		for _, line := range lines {
			fmt.Fprintln(w, line)
		}
	}
	passed, failed := r.Totals()
	fmt.Fprintf(w, "%d passed, %d failed\n", passed, failed)
}
