package bucketstore

import (
	"testing"

	"github.com/sluicesync/sluice/libs/kit/config"
)

func TestFromFile(t *testing.T) {
	parse := func(storage string) *config.File {
		t.Helper()
		f, err := config.Parse([]byte(`
replication: {connections: [{type: postgresql, uri: "postgresql://u:p@h:5433/d"}]}
client_auth: {audience: [a], jwks: {keys: [{kty: oct, alg: HS256, kid: k, k: c2VjcmV0}]}}
migrations: {disable_auto_migration: true}
sluice: {bucket_store: {advertise: "store-1:7441"}}
storage: `+storage), "c.yaml", "/", func(string) (string, bool) { return "", false })
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	c, err := FromFile(parse(`{type: postgresql, uri: "postgresql://u:p@h:5433/other", schema: mine, max_pool_size: 5, batch_limits: {max_record_count: 7, max_estimated_size: 8, max_current_data_batch_size: 9}}`))
	if err != nil {
		t.Fatal(err)
	}
	p := c.Postgres
	if c.Dir != "" || c.Advertise != "store-1:7441" || c.GroupRows != 7 || c.GroupBytes != 8 || p.RecordBytes != 9 || p.Schema != "mine" || !p.Source || !p.NoMigration || p.Connection.Database != "other" || p.options(nil).MaxConns != 5 {
		t.Errorf("%+v %+v", c, p)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c, err = FromFile(parse(`{type: postgresql, uri: "postgresql://u:p@elsewhere:5433/d"}`)); err != nil || c.Postgres.Source || c.Postgres.Schema != "sluice" {
		t.Errorf("%+v %v", c.Postgres, err)
	}
	if c, err = FromFile(parse(`{path: /x}`)); err != nil || c.Dir != "/x" || c.Postgres != nil || c.GroupRows != 0 {
		t.Errorf("%+v %v", c, err)
	}
	c, err = FromFile(parse(`{type: mongodb, uri: "mongodb://u:secret@h:27018/other?tls=true", database: d, max_pool_size: 5}`))
	if err != nil {
		t.Fatal(err)
	}
	if m := c.MongoDB; c.Dir != "" || c.Postgres != nil || !m.NoMigration || m.Connection.Database != "d" || m.Connection.MaxPoolSize != 5 || m.Connection.Redacted() != "mongodb://h:27018/d" {
		t.Errorf("%+v %+v", c, m)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
