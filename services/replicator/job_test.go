package replicator

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
)

// TestStandsStill: a stream that is read and of which nothing comes is named,
// though nothing has failed; one that is not read, or moves, is not.
func TestStandsStill(t *testing.T) {
	m, err := newMetrics(prometheus.NewRegistry(), newJobs(), freshness.NewLinks(slog.New(slog.DiscardHandler), nil))
	if err != nil {
		t.Fatal(err)
	}
	r := &replicator{cfg: Config{Heartbeat: time.Second}, jobs: newJobs(), metrics: m, env: service.Env{Health: &service.Health{}}}
	j := &job{r: r, stream: model.Stream{ID: 3}}
	r.jobs.all[3] = j
	j.moved.Store(time.Now().Add(-time.Minute).UnixNano())
	if err := j.still(); err != nil {
		t.Errorf("not read: %v", err)
	}
	j.reading.Store(true)
	if err := j.still(); err == nil || !strings.Contains(err.Error(), "stream 3 stands still") || !strings.Contains(err.Error(), "1m0s") {
		t.Errorf("silent for a minute: %v", err)
	}
	j.observer().Published(0)
	if err := j.still(); err != nil {
		t.Errorf("a batch came: %v", err)
	}
	// Heartbeats that are rarer are waited for.
	j.moved.Store(time.Now().Add(-15 * time.Second).UnixNano())
	if j.still() == nil {
		t.Error("silent for 15 s")
	}
	r.cfg.Heartbeat = 10 * time.Second
	if err := j.still(); err != nil {
		t.Errorf("silent for 15 s, with a heartbeat each 10 s: %v", err)
	}
}

// TestBeats: a stage has the heartbeat of what is stored until it sees a newer
// one, and nobody waits for those of a stream that is stopped.
func TestBeats(t *testing.T) {
	js := newJobs()
	j := &job{stream: model.Stream{ID: 3}}
	js.all[3] = j
	js.all[4] = &job{stream: model.Stream{ID: 4}, stop: true}
	j.read.Store(9)
	j.published.Store(8)
	if got := js.beats(); len(got) != 2 || got[0].At != 9 || got[1].At != 8 || got[0].Stream != 3 {
		t.Errorf("%+v", got)
	}
}
