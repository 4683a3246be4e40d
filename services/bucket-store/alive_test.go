package bucketstore

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/services/bucket-store/store/memory"
)

// The liveness probe wants a sign of life in the last 10 s, at any moment.
func TestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		env := service.Env{Health: &service.Health{}, Log: slog.New(slog.DiscardHandler)}
		m, err := newMetrics(prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- watch(ctx, memory.New(), "", m, env) }()
		synctest.Wait()
		for range 60 {
			time.Sleep(time.Second - time.Nanosecond) // up to just before the next sign
			if age := time.Since(env.Health.Snapshot().Touched); age > 8*time.Second {
				t.Errorf("no sign of life for %v", age)
				break
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
