package replicator

import (
	"errors"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// Each kind of failure is counted under its reason, and all reasons are there
// from the start.
func TestFailureReasons(t *testing.T) {
	r := prometheus.NewRegistry()
	m, err := newMetrics(r, newJobs(), freshness.NewLinks(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer m.unregister(r)
	boom := errors.New("boom")
	for n, f := range []struct {
		reason string
		err    error
		class  source.ErrorClass
	}{
		{"lease_lost", fmt.Errorf("renew: %w", errLeaseLost), source.Other},
		{"restarting", boom, source.Restarting},
		{"unreachable", boom, source.Unreachable},
		{"denied", boom, source.Denied},
		{"history_lost", boom, source.Lost},
		{"other", boom, source.Other},
	} {
		for range n + 1 {
			m.failed(f.err, f.class)
		}
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		reasons := 0
		for _, family := range families {
			if family.GetName() != "sluice_replicator_session_failures_total" {
				continue
			}
			for _, s := range family.GetMetric() {
				reasons++
				if s.GetLabel()[0].GetValue() == f.reason && s.GetCounter().GetValue() != float64(n+1) {
					t.Errorf("%s: %v", f.reason, s)
				}
			}
		}
		if reasons != 6 {
			t.Errorf("%d reasons", reasons)
		}
	}
}
