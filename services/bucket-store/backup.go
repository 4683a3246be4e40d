package bucketstore

import (
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/bucket-store/internal/api"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pebble"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// backupsEnd follows the folder of the store in the name of the backups' folder.
const backupsEnd = "-backups"

// backups returns what makes backups of s in a folder beside dir; nil if it does
// not make any.
func backups(s store.Store, dir string) func(name string) (*api.Backup, error) {
	embedded, ok := s.(*pebble.Store)
	if !ok {
		return nil
	}
	return func(name string) (*api.Backup, error) {
		path, err := filepath.Abs(filepath.Join(dir+backupsEnd, name))
		if err != nil {
			return nil, err
		}
		m, err := embedded.Backup(path)
		if errors.Is(err, pebble.ErrExists) {
			return nil, errs.New(errs.S2001, "there is a backup %s already", path)
		}
		if err != nil {
			return nil, err
		}
		return &api.Backup{Path: path, Bytes: m.Bytes(), Files: len(m.Files)}, nil
	}
}

// Restored is what a restored backup has.
type Restored struct {
	Dir     string
	Created time.Time
	Bytes   int64
	Streams []string // name, state and position
}

// Restore makes the empty folder of cfg from a backup. No bucket-store may run on
// it.
func Restore(cfg Config, from string, log *slog.Logger) (*Restored, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Dir == "" {
		return nil, errs.New(errs.S2001, "this storage is restored with the tools of its database")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	m, err := pebble.Restore(from, dir, pebble.Options{CacheBytes: cfg.CacheBytes, Log: log})
	switch {
	case errors.Is(err, pebble.ErrExists):
		return nil, errs.New(errs.S2001, "%v: stop bucket-store and move it away", err)
	case errors.Is(err, store.ErrDamaged):
		return nil, errs.New(errs.S2404, "%v: take another backup", err)
	case err != nil:
		return nil, err
	}
	r := &Restored{Dir: dir, Created: m.Created, Bytes: m.Bytes()}
	for _, s := range m.Streams {
		r.Streams = append(r.Streams, s.Name+" "+s.State+" at "+string(s.Position))
	}
	return r, nil
}
