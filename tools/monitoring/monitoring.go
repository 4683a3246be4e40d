// Command monitoring checks what others are to watch Sluice with: the alerts and
// boards of the Helm chart, and docs/runbooks.md.
//
// It reads the repository at the folder given (default: the working directory)
// and fails on
//
//   - an expression that PromQL does not understand, or that asks for a metric or
//     label which docs/metrics.md does not have
//   - an alert without severity, summary, description and a section of its own in
//     docs/runbooks.md, and a section without an alert
//   - a section that does not say what it means, what users notice, what to check
//     and how to mend it, or that names a command which sluice does not have
//   - a board that Grafana cannot load, or a panel without a unit
//   - a metric that no alert and no board asks for
//
// Whether alerts fire when they should is what the tests in rules/ say, which
// promtool runs (make alerts).
package main

import (
	"fmt"
	"os"
)

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	c, err := open(root)
	if err != nil {
		fmt.Fprintln(os.Stderr, "monitoring:", err)
		os.Exit(2)
	}
	c.all()
	for _, f := range c.found {
		fmt.Println(f)
	}
	if len(c.found) > 0 {
		os.Exit(1)
	}
	fmt.Printf("monitoring: %d metrics, %d alerts, %d panels\n", len(c.metrics), len(c.anchors), c.panels)
}
