package bucketstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sluicesync/sluice/services/bucket-store/internal/mongodb"
)

// checkTimeout bounds the wait for a database.
const checkTimeout = 10 * time.Second

// Check says whether the store of cfg can be used from here, without using it:
// where it is, or why not.
func Check(cfg Config) (where string, err error) {
	if err := cfg.Validate(); err != nil {
		return "", err
	}
	if cfg.MongoDB != nil {
		ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
		defer cancel()
		return cfg.MongoDB.Connection.Redacted(), mongodb.Check(ctx, cfg.MongoDB.Connection)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return "", fmt.Errorf("find folder %s: %w", cfg.Dir, err)
	}
	// The store makes what is not there yet in the nearest folder that is.
	at := dir
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			return "", fmt.Errorf("%s is not a folder", at)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return "", fmt.Errorf("look at folder %s: %w", at, err)
		}
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".sluice-check-*")
	if err != nil {
		return "", fmt.Errorf("write to folder %s: %w", at, err)
	}
	return dir, errors.Join(f.Close(), os.Remove(f.Name()))
}
