package compactor

import (
	"time"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// FromFile returns the config of the compactor that f describes.
func FromFile(f *config.File) Config {
	from := f.Sluice.Compactor
	c := Config{
		Interval: from.Interval, RequestRetention: f.API.CheckpointRequestRetention,
		MinChanges: uint64(max(1, from.MinChanges)), Rest: max(from.Rest, time.Millisecond),
		Rate: int64(from.MBPerSecond) * 1_000_000, Busy: float64(from.BusyPercent) / 100,
		Reemit: int64(from.DefragmentMB) * 1_000_000,
	}
	if c.Interval == 0 {
		c.Interval = -1 // 0 in the file is "only on demand"
	}
	if c.Rate == 0 {
		c.Rate = -1 // here "no bound"
	}
	if c.Reemit == 0 {
		c.Reemit = -1 // and here "none"
	}
	return c
}
