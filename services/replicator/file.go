package replicator

import (
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

// FromFile returns the config of the replicator that f describes. The
// heartbeat is not the file's: heartbeat_interval_seconds is the reference's
// pause between two, and freshness here needs one a second.
func FromFile(f *config.File) (Config, error) {
	if len(f.Connections) == 0 {
		return Config{}, errs.New(errs.S9001, "replication.connections names no source database")
	}
	c := &f.Connections[0]
	if c.Postgres == nil {
		return Config{}, errs.New(errs.S9001, "a source of type %s is not available; there is postgresql", c.Type)
	}
	p := c.Postgres
	return Config{
		Type: c.Type, Tag: c.Tag, DebugAPI: c.DebugAPI,
		Postgres: Postgres{
			Hostname: p.Hostname, Port: p.Port, Username: p.Username, Password: p.Password, Database: p.Database,
			SSLMode: p.SSLMode, CACert: p.CACert, ClientCertificate: p.ClientCertificate, ClientPrivateKey: p.ClientPrivateKey,
			TLSServerName: p.TLSServerName, RejectIPRanges: p.Reject.Strings(), SlotNamePrefix: p.SlotNamePrefix,
			MaxPoolSize: p.MaxPoolSize, ConnectTimeout: p.ConnectTimeout,
		},
	}, nil
}
