package bucketstore

import (
	"path/filepath"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// FromFile returns the config of the bucket-store that f describes.
func FromFile(f *config.File) (Config, error) {
	s := &f.Storage
	switch s.Type {
	case "embedded":
		dir := s.Path
		if dir == "" {
			dir = filepath.Join(f.Sluice.Data, "store")
		}
		return Config{Dir: dir}, nil
	case "postgresql":
		p := &Postgres{Connection: s.Postgres, Schema: s.Schema, RecordBytes: int(s.BatchLimits.MaxCurrentDataBatchSize), NoMigration: f.DisableAutoMigration}
		if len(f.Connections) > 0 && f.Connections[0].Postgres != nil {
			source := f.Connections[0].Postgres
			p.Source = source.Hostname == s.Postgres.Hostname && source.Port == s.Postgres.Port
		}
		return Config{Postgres: p, Advertise: f.Sluice.BucketStore.Advertise, GroupBytes: int(s.BatchLimits.MaxEstimatedSize), GroupRows: s.BatchLimits.MaxRecordCount}, nil
	case "mongodb":
		return Config{MongoDB: &MongoDB{Connection: s.MongoDB, NoMigration: f.DisableAutoMigration}, Advertise: f.Sluice.BucketStore.Advertise}, nil
	}
	return Config{}, errs.New(errs.S3201, "storage of type %s is not available; leave storage out, or use type embedded, postgresql or mongodb", s.Type)
}
