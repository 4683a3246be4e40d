package suites

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/e2e/harness"
)

var documentedRow = regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (\\w+) \\| [^|]* \\| ([^|]*) \\| (.*) \\|")

// checkMetrics: a running instance with clients exposes every metric that
// docs/metrics.md has, of its type and with its labels, and no other. (Those of a
// shared storage only if it has one.)
func checkMetrics(t *testing.T, w *world, mode harness.Mode) {
	t.Helper()
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	shared := map[string]bool{} // those of a storage that several processes have open
	for _, row := range documentedRow.FindAllStringSubmatch(string(b), -1) {
		documented[row[1]] = row[2] + " " + strings.ReplaceAll(row[3], "`", "")
		shared[row[1]] = strings.Contains(row[4], "the shared storage")
	}
	harness.Eventually(t, soon, "every metric that is documented", func() error {
		found := map[string]string{}
		processes := []string{harness.All}
		if mode == harness.Suite {
			processes = []string{harness.BucketStore, harness.Compactor, harness.Replicator, harness.Evaluator1, harness.Evaluator2, harness.Gateway1, harness.Gateway2}
		}
		for _, p := range processes {
			text, err := w.sluice.Metrics(p)
			if err != nil {
				return err
			}
			maps.Copy(found, described(text))
		}
		var wrong []string
		for name, want := range documented {
			if got := found[name]; got != want && !(got == "" && shared[name]) {
				wrong = append(wrong, fmt.Sprintf("%s is %q, and documented as %q", name, got, want))
			}
		}
		for name, got := range found {
			if _, ok := documented[name]; !ok && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
				wrong = append(wrong, fmt.Sprintf("%s, %s, is not documented", name, got))
			}
		}
		if len(wrong) > 0 {
			slices.Sort(wrong)
			return fmt.Errorf("%s", strings.Join(wrong, "\n"))
		}
		return nil
	})
}

// described reads types and labels from the text of /metrics. The label that
// says the service in one process, and those of a type, are left out.
func described(text string) map[string]string {
	found := map[string]string{}
	var name, kind string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ = strings.Cut(strings.TrimSpace(rest), " ")
			continue
		}
		if strings.HasPrefix(line, "#") || found[name] != "" {
			continue
		}
		var labels []string
		if open := strings.Index(line, "{"); open >= 0 {
			for l := range strings.SplitSeq(line[open+1:strings.LastIndex(line, "}")], ",") {
				if l, _, _ = strings.Cut(l, "="); l != "service" && l != "le" && l != "quantile" {
					labels = append(labels, l)
				}
			}
		}
		found[name] = kind + " " + strings.Join(labels, ", ")
	}
	return found
}
