package serve

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/kit/service"
)

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".probes")
	synctest.Test(t, func(t *testing.T) {
		h := &service.Health{}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- Files(ctx, dir, map[string]*service.Health{"a": h}) }()
		expect := func(when string, startup, ready bool, poll string) {
			t.Helper()
			for name, want := range map[string]bool{"startup": startup, "ready": ready, "poll": poll != ""} {
				if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
					t.Errorf("%s: %s: %v", when, name, err)
				}
			}
			if b, err := os.ReadFile(filepath.Join(dir, "poll")); poll != "" && (err != nil || string(b) != poll) {
				t.Errorf("%s: poll %q, not %q", when, b, poll)
			}
		}
		synctest.Wait()
		expect("at first", false, false, "")
		h.Start()
		h.SetReady(nil)
		touched := strconv.FormatInt(time.Now().UnixMilli(), 10)
		time.Sleep(filesEvery)
		synctest.Wait()
		expect("ready", true, true, touched)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		expect("at the end", false, false, "")
	})
}
