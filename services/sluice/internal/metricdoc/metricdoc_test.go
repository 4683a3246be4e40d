package metricdoc

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var rewrite = flag.Bool("rewrite", false, "write docs/metrics.md")

const file = "../../../../docs/metrics.md"

func TestDocument(t *testing.T) {
	text, err := Document()
	if err != nil {
		t.Fatal(err)
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(old) != text {
		t.Errorf("docs/metrics.md is not what the services register: make generate\n%s", text)
	}
}

// TestNames: names say the service and the unit, counters that they are some,
// and no label can have any number of values.
func TestNames(t *testing.T) {
	labels := map[string]bool{"stream": true, "result": true, "reason": true, "transport": true, "stage": true, "peer": true}
	form := regexp.MustCompile(`^(powersync|sluice_(replicator|evaluator|store|gateway|compactor|heartbeat|link))_[a-z_]+[a-z]$`)
	for _, s := range services {
		var r recorder
		if err := s.register(&r); err != nil {
			t.Fatal(err)
		}
		if len(r.found) == 0 {
			t.Errorf("%s has none", s.name)
		}
		for _, m := range r.found {
			if !form.MatchString(m.name) || strings.HasSuffix(m.name, "_total") != (m.kind == "counter") || !strings.HasSuffix(m.help, ".") {
				t.Errorf("%s: %+v", s.name, m)
			}
			for _, l := range m.labels {
				if !labels[l] {
					t.Errorf("%s: label %s of %s is not one of those with few values", s.name, l, m.name)
				}
			}
		}
	}
}

// TestRecorder: what a description has is what was given.
func TestRecorder(t *testing.T) {
	var r recorder
	r.MustRegister(
		prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "h", Help: `a "quoted" {help}, variableLabels: {no}`}, []string{"a", "b"}),
		prometheus.NewCounterVec(prometheus.CounterOpts{Name: "v", Help: "."}, []string{"a"}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "c", Help: "."}, func() float64 { return 1 }),
		prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "g", Help: "."}, []string{"a"}),
	)
	r.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "k", Help: ".", ConstLabels: prometheus.Labels{"a": "x", "b": "y"}}))
	r.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "k", Help: ".", ConstLabels: prometheus.Labels{"a": "z", "b": "y"}}))
	var got []string
	for _, m := range r.found {
		got = append(got, m.name+" "+m.kind+" "+strings.Join(m.labels, "+")+" "+m.help)
	}
	want := "h histogram a+b a \"quoted\" {help}, variableLabels: {no}|v counter a .|c counter  .|g gauge a .|k gauge a+b ."
	if strings.Join(got, "|") != want {
		t.Errorf("%q", got)
	}
	if _, err := parse("Desc{}"); err == nil {
		t.Error("nonsense is understood")
	}
}
