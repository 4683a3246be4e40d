package evaluator

import "github.com/sluicesync/sluice/libs/kit/config"

// FromFile returns the config of the evaluator that f describes.
func FromFile(f *config.File) Config {
	c := Config{DefaultSchema: f.DefaultSchema(), SlotPrefix: f.SlotPrefix()}
	if f.Sync != nil {
		c.SyncConfigPath, c.SyncConfigContent, c.ExitOnError = f.Sync.Path, f.Sync.Content, f.Sync.ExitOnError
	}
	return c
}
