package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/config"
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

func TestEnv(t *testing.T) {
	r := Registry()
	e := Env("thing", Instance(), slog.New(slog.DiscardHandler), r)
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
