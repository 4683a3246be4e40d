package compactor

import "github.com/sluicesync/sluice/libs/kit/config"

// FromFile returns the config of the compactor that f describes.
func FromFile(f *config.File) Config {
	c := Config{Interval: f.Sluice.Compactor.Interval, RequestRetention: f.API.CheckpointRequestRetention}
	if c.Interval == 0 {
		c.Interval = -1 // 0 in the file is "only on demand"
	}
	return c
}
