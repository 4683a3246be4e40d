package bucketstore

import (
	"path/filepath"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// FromFile returns the config of the bucket-store that f describes.
func FromFile(f *config.File) (Config, error) {
	if f.Storage.Type != "embedded" {
		return Config{}, errs.New(errs.S3201, "storage of type %s is not available; leave storage out or use type embedded", f.Storage.Type)
	}
	dir := f.Storage.Path
	if dir == "" {
		dir = filepath.Join(f.Sluice.Data, "store")
	}
	return Config{Dir: dir}, nil
}
