package bench

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var r report
	r.add(Result{Scenario: "Download", Metric: "NDJSON", Value: 1234567.4, Unit: "rows/s", Goal: 250_000, Better: "more"})
	r.add(Result{Scenario: "Download", Metric: "shrinks to", Value: 17.84, Unit: "%", Better: "less"})
	r.add(Result{Scenario: "SharedBucket", Metric: "last client p99", Value: 500.4, Unit: "ms", Goal: 400, Better: "less"})
	r.fail("Reconnect")
	var b strings.Builder
	r.table(&b)
	const want = `
| scenario | figure | measured | goal | |
|---|---|---|---|---|
| Download | NDJSON | 1,234,567 rows/s | ≥ 250,000 | met |
| Download | shrinks to | 17.8 % |  |  |
| SharedBucket | last client p99 | 500 ms | ≤ 400 | **not met** |
| Reconnect | | failed | | **not met** |
`
	if b.String() != want {
		t.Errorf("got %s", b.String())
	}
}
