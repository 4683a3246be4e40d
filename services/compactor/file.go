package compactor

import "github.com/sluicesync/sluice/libs/kit/config"

// FromFile returns the config of the compactor that f describes.
func FromFile(f *config.File) Config {
	c := Config{
		Interval: f.Sluice.Compactor.Interval, RequestRetention: f.API.CheckpointRequestRetention,
		Reemit: int64(f.Sluice.Compactor.DefragmentMB) * 1_000_000,
	}
	if c.Interval == 0 {
		c.Interval = -1 // 0 in the file is "only on demand"
	}
	if c.Reemit == 0 {
		c.Reemit = -1 // and here "none"
	}
	return c
}
