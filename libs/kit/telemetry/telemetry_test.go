package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/serve"
)

func TestLogger(t *testing.T) {
	var b bytes.Buffer
	l := Logger(&b, config.Logging{Level: "verbose", Format: "json"}, "text")
	l.Debug("too fine")
	l.Log(context.Background(), slog.LevelDebug+2, "fits", "stream", 7)
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line["msg"] != "fits" || line["stream"] != 7.0 {
		t.Errorf("%s %v", b.String(), err)
	}
	b.Reset()
	l = Logger(&b, config.Logging{}, "text")
	l.Debug("no")
	l.Info("yes")
	if s := b.String(); !strings.Contains(s, "msg=yes") || strings.Contains(s, "no\n") {
		t.Errorf("%s", s)
	}
}

func TestFormat(t *testing.T) {
	for env, want := range map[string]string{"": "json", "production": "json", "development": "text"} {
		t.Setenv("NODE_ENV", env)
		if got := Format(); got != want {
			t.Errorf("NODE_ENV=%s: %s", env, got)
		}
	}
}

// TestObserve: a value of a trace that is kept has its id, for whoever wants to see
// what took so long.
func TestObserve(t *testing.T) {
	r := prometheus.NewRegistry()
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "h", Buckets: []float64{1, 2}})
	r.MustRegister(h)
	Observe(h, 0.5, "")
	Observe(h, 1.5, "0af7651916cd43dd8448eb211c80319c")
	w := httptest.NewRecorder()
	request := httptest.NewRequest("GET", "/metrics", nil)
	request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	serve.Handler(r, nil, nil).ServeHTTP(w, request)
	var with []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.Contains(line, " # {") {
			with = append(with, line)
		}
	}
	if len(with) != 1 || !strings.HasPrefix(with[0], `h_bucket{le="2.0"} 2 # {trace_id="0af7651916cd43dd8448eb211c80319c"} 1.5`) {
		t.Errorf("%q", with)
	}
}

func TestEnv(t *testing.T) {
	r := Registry()
	e := Env("thing", Instance(), nil, slog.New(slog.DiscardHandler), r)
	if e.Health == nil || e.Metrics == nil || e.Instance == Instance() {
		t.Errorf("%+v", e)
	}
	for _, ready := range []bool{false, true} {
		if ready {
			e.Health.SetReady(nil)
		}
		all, err := r.Gather()
		if err != nil || len(all) < 10 {
			t.Errorf("%d metrics, %v", len(all), err)
		}
		for _, m := range all {
			if m.GetName() == "sluice_ready" && (m.GetMetric()[0].GetGauge().GetValue() == 1) != ready {
				t.Errorf("ready is %v, not %v", m, ready)
			}
		}
	}
}
