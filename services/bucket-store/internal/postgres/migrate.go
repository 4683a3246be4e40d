package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

//go:embed migrations
var migrationFiles embed.FS

// migration is one step of the schema: NNNN_name.up.sql, and the way back.
type migration struct{ name, up, down string }

// migrations returns all steps, in order.
func migrations() ([]migration, error) {
	files, err := fs.Glob(migrationFiles, "migrations/*.up.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var out []migration
	for _, f := range files {
		base := strings.TrimSuffix(f, ".up.sql")
		up, err := migrationFiles.ReadFile(f)
		if err != nil {
			return nil, err
		}
		down, err := migrationFiles.ReadFile(base + ".down.sql")
		if err != nil {
			return nil, err
		}
		out = append(out, migration{strings.TrimPrefix(base, "migrations/"), string(up), string(down)})
	}
	return out, nil
}

// minVersion is the least server_version_num; sourceVersion, of a server that is
// the source's as well.
const (
	minVersion    = 130000
	sourceVersion = 140000
)

// migrateFor makes the schema what this program needs, or says that it is not.
func migrateFor(ctx context.Context, c *config.Postgres, o *Options) error {
	m, err := connect(ctx, c, o)
	if err != nil {
		return err
	}
	defer m.close(ctx)
	pending, err := m.pending(ctx)
	if err == nil && o.NoMigration && len(pending) > 0 {
		err = errs.New(errs.S3201, "the storage schema %s lacks %d migrations and migrations.disable_auto_migration is set: run sluice migrate up", o.Schema, len(pending))
	} else if err == nil {
		err = m.up(ctx)
	}
	if err != nil || o.Importing {
		return err
	}
	var importing bool
	if err := m.conn.QueryRow(ctx, `SELECT importing FROM owner`).Scan(&importing); err != nil {
		return fmt.Errorf("look for an import: %w", err)
	}
	if importing {
		return fmt.Errorf("the storage schema %s: %w", o.Schema, store.ErrUnfinished)
	}
	return nil
}

// Migrate takes all steps that are missing, or the last one back if down is
// set: unless there is data, or dropData is set.
func Migrate(ctx context.Context, c *config.Postgres, o Options, down, dropData bool) error {
	o.defaults()
	m, err := connect(ctx, c, &o)
	if err != nil {
		return err
	}
	defer m.close(ctx)
	if down {
		return m.down(ctx, dropData)
	}
	return m.up(ctx)
}

// migrator is a connection that looks after the schema.
type migrator struct {
	conn   *pgx.Conn
	schema string
	log    *slog.Logger
}

func connect(ctx context.Context, c *config.Postgres, o *Options) (*migrator, error) {
	p, err := connConfig(c, o.Schema)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, p)
	if err != nil {
		return nil, errs.Wrap(errs.S2402, err, "cannot connect to the storage database %s", c.Redacted()).Retryable()
	}
	m := &migrator{conn, o.Schema, o.Log}
	var version int
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		m.close(ctx)
		return nil, fmt.Errorf("read the server's version: %w", err)
	}
	switch {
	case version < minVersion:
		err = errs.New(errs.S3201, "the storage database is Postgres %d: 13 or later is needed", version/10000)
	case version < sourceVersion && o.Source:
		err = errs.New(errs.S1144, "storage and source are on one Postgres server, of version %d: that needs 14 or later", version/10000)
	}
	if err != nil {
		m.close(ctx)
		return nil, err
	}
	return m, nil
}

func (m *migrator) close(ctx context.Context) {
	if err := m.conn.Close(context.WithoutCancel(ctx)); err != nil {
		m.log.Debug("close the migrations' connection", "error", err)
	}
}

// locked runs do in a transaction while no other process migrates the schema.
func (m *migrator) locked(ctx context.Context, do func(tx pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, m.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, advisory(m.schema, "migrations")); err != nil {
			return err
		}
		return do(tx)
	})
	if err != nil {
		return fmt.Errorf("migrate the schema %s: %w", m.schema, err)
	}
	return nil
}

// pending returns the steps that are missing.
func (m *migrator) pending(ctx context.Context) ([]migration, error) {
	all, err := migrations()
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	done, err := m.done(ctx, m.conn)
	if err != nil {
		return nil, err
	}
	return all[len(done):], nil
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// done returns the steps that were taken: the first ones of all that there are.
func (m *migrator) done(ctx context.Context, q querier) ([]string, error) {
	var there bool
	if err := q.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, pgx.Identifier{m.schema, "migrations"}.Sanitize()).Scan(&there); err != nil {
		return nil, fmt.Errorf("look for migrations: %w", err)
	}
	if !there {
		return nil, nil
	}
	rows, err := q.Query(ctx, `SELECT name FROM migrations ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	all, err := migrations()
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	for i, name := range names {
		if i >= len(all) || all[i].name != name {
			return nil, errs.New(errs.S3201, "the storage schema %s has the migration %s, which this program does not know: it is of a later version of Sluice", m.schema, name)
		}
	}
	return names, nil
}

// up takes the steps that are missing, all or none.
func (m *migrator) up(ctx context.Context) error {
	pending, err := m.pending(ctx)
	if err != nil || len(pending) == 0 {
		return err
	}
	return m.locked(ctx, func(tx pgx.Tx) error {
		schema := pgx.Identifier{m.schema}.Sanitize()
		// Not IF NOT EXISTS alone: it needs the right to make schemas even if
		// there is this one.
		var there bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, m.schema).Scan(&there); err != nil {
			return err
		}
		if !there {
			if _, err := tx.Exec(ctx, `CREATE SCHEMA `+schema); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, done timestamptz NOT NULL DEFAULT now())`); err != nil {
			return err
		}
		done, err := m.done(ctx, tx)
		if err != nil {
			return err
		}
		all, err := migrations()
		if err != nil {
			return err
		}
		for _, step := range all[len(done):] {
			if _, err := tx.Conn().PgConn().Exec(ctx, step.up).ReadAll(); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			if _, err := tx.Exec(ctx, `INSERT INTO migrations (name) VALUES ($1)`, step.name); err != nil {
				return err
			}
			m.log.Info("storage migration done", "migration", step.name)
		}
		return nil
	})
}

// errData: going back would lose data.
var errData = errors.New("the step back would drop streams with their data; give --drop-data if that is meant")

// down takes the last step back.
func (m *migrator) down(ctx context.Context, dropData bool) error {
	return m.locked(ctx, func(tx pgx.Tx) error {
		done, err := m.done(ctx, tx)
		if err != nil || len(done) == 0 {
			return err
		}
		all, err := migrations()
		if err != nil {
			return err
		}
		step := all[len(done)-1]
		if len(done) == 1 && !dropData {
			var there bool
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM heads WHERE state <> $1)`, int16(model.Terminated)).Scan(&there); err != nil {
				return err
			}
			if there {
				return errData
			}
		}
		if _, err := tx.Conn().PgConn().Exec(ctx, step.down).ReadAll(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		if _, err := tx.Exec(ctx, `DELETE FROM migrations WHERE name = $1`, step.name); err != nil {
			return err
		}
		m.log.Info("storage migration taken back", "migration", step.name)
		return nil
	})
}

// advisory is the key of an advisory lock. Locks are of the whole database; two
// names with one key only wait for one another.
func advisory(names ...string) int64 {
	h := fnv.New64a()
	for _, n := range names {
		fmt.Fprintf(h, "%d:%s", len(n), n)
	}
	return int64(h.Sum64())
}
