package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sluicesync/sluice/libs/kit/service"
)

// filesEvery is how often probe files are brought up to date.
const filesEvery = time.Second

// Files keeps the probe files of spec/06 §7.2 in dir until ctx ends: startup
// and ready exist while that is so, poll has the time of the last sign of life
// in milliseconds. At the end all are removed.
func Files(ctx context.Context, dir string, all map[string]*service.Health) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of probe files: %w", err)
	}
	tick := time.NewTicker(filesEvery)
	defer tick.Stop()
	for {
		p := Joined(all)
		if err := p.write(dir); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return Probe{}.write(dir)
		case <-tick.C:
		}
	}
}

// write makes the files of dir say p.
func (p Probe) write(dir string) error {
	poll := ""
	if !p.TouchedAt.IsZero() {
		poll = strconv.FormatInt(p.TouchedAt.UnixMilli(), 10)
	}
	for name, f := range map[string]struct {
		there bool
		text  string
	}{"startup": {p.Started, ""}, "ready": {p.Ready, ""}, "poll": {poll != "", poll}} {
		path := filepath.Join(dir, name)
		if !f.there {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove probe file: %w", err)
			}
			continue
		}
		// A reader must not find a file half written.
		if err := os.WriteFile(path+".new", []byte(f.text), 0o644); err != nil {
			return fmt.Errorf("write probe file: %w", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return fmt.Errorf("write probe file: %w", err)
		}
	}
	return nil
}
