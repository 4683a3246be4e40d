package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// minVersion is the oldest server that can be replicated.
const minVersion = 110000

// Check names every missing setting and grant, each with its fix.
func (s *Source) Check(ctx context.Context) ([]source.Problem, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	version, err := s.serverVersion(ctx)
	if err != nil {
		return nil, err
	}
	var problems []source.Problem
	fatal := func(code errs.Code, fix, message string, args ...any) {
		problems = append(problems, source.Problem{Fatal: true, Code: string(code), Message: fmt.Sprintf(message, args...), Fix: fix})
	}
	if version < minVersion {
		fatal("", "", "the server is Postgres %d; version 11 or later is needed", version/10000)
		return problems, nil
	}
	var user, walLevel string
	var recovery, replication, rds bool
	var slots, slotsUsed, senders int
	err = s.pool.QueryRow(ctx, `SELECT current_user::text, current_setting('wal_level'), pg_is_in_recovery(),
		coalesce((SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user), false),
		EXISTS (SELECT FROM pg_roles r WHERE r.rolname IN ('rds_replication', 'rds_superuser') AND pg_has_role(current_user, r.oid, 'member')),
		current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots)::int, current_setting('max_wal_senders')::int`).
		Scan(&user, &walLevel, &recovery, &replication, &rds, &slots, &slotsUsed, &senders)
	if err != nil {
		return nil, fmt.Errorf("read server settings: %w", err)
	}
	if recovery {
		fatal("", "", "the server is a standby: connect to the primary")
	}
	if walLevel != "logical" {
		fatal("", "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server", "wal_level is %q, not logical", walLevel)
	}
	if !replication && !rds {
		fatal("", "ALTER ROLE "+quote(user)+" REPLICATION;", "role %s may not replicate", quote(user))
	}
	if senders == 0 {
		fatal("", "ALTER SYSTEM SET max_wal_senders = 10; -- then restart the server", "max_wal_senders is 0")
	}
	if slots == 0 {
		fatal("", "ALTER SYSTEM SET max_replication_slots = 10; -- then restart the server", "max_replication_slots is 0")
	} else if slotsUsed >= slots {
		problems = append(problems, source.Problem{Message: fmt.Sprintf("all %d replication slots are in use: no other can be made", slots),
			Fix: fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d; -- then restart the server", 2*slots)})
	}
	name := publication
	root := "false"
	if version >= 130000 {
		root = "pubviaroot"
	}
	var inserts, updates, deletes, truncates, viaRoot bool
	err = s.pool.QueryRow(ctx, `SELECT pubinsert, pubupdate, pubdelete, pubtruncate, `+root+` FROM pg_publication WHERE pubname = $1`, name).
		Scan(&inserts, &updates, &deletes, &truncates, &viaRoot)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		fatal(errs.S1141, "CREATE PUBLICATION "+quote(name)+" FOR ALL TABLES;", "publication %s does not exist", quote(name))
	case err != nil:
		return nil, fmt.Errorf("read publication: %w", err)
	default:
		if !inserts || !updates || !deletes || !truncates {
			fatal(errs.S1142, "ALTER PUBLICATION "+quote(name)+" SET (publish = 'insert, update, delete, truncate');", "publication %s does not publish all of insert, update, delete and truncate", quote(name))
		}
		if viaRoot {
			fatal(errs.S1143, "ALTER PUBLICATION "+quote(name)+" SET (publish_via_partition_root = false);", "publication %s publishes via the partition root, which is not supported", quote(name))
		}
	}
	return problems, nil
}

// tableState is what diagnosis needs of a table.
type tableState struct {
	schema, name string
	identity     string
	estimate     int64 // of its rows
	published    bool
	selectable   bool
	rls          bool // row-level security applies to us
	key          []string
}

const tableStatesQuery = `
SELECT n.nspname::text, c.relname::text, c.relreplident::text, greatest(c.reltuples, 0)::int8,
  EXISTS (SELECT FROM pg_publication_tables p WHERE p.pubname = $1 AND p.schemaname = n.nspname AND p.tablename = c.relname),
  has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
  c.relrowsecurity AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user)
    AND (c.relforcerowsecurity OR NOT pg_has_role(current_user, c.relowner, 'USAGE')),
  coalesce(CASE c.relreplident
    WHEN 'f' THEN (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
    WHEN 'n' THEN '{}'
    ELSE (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_index x JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(x.indkey::int2[])
          WHERE x.indrelid = c.oid AND x.indisvalid AND x.indimmediate AND CASE c.relreplident WHEN 'd' THEN x.indisprimary ELSE x.indisreplident END) END, '{}')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_toast%' AND n.nspname NOT LIKE 'pg\_temp%'
ORDER BY 1, 2`

func (s *Source) tableStates(ctx context.Context) ([]tableState, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	rows, err := s.pool.Query(ctx, tableStatesQuery, publication)
	if err != nil {
		return nil, fmt.Errorf("read tables: %w", err)
	}
	states, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t tableState, err error) {
		err = row.Scan(&t.schema, &t.name, &t.identity, &t.estimate, &t.published, &t.selectable, &t.rls, &t.key)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("read tables: %w", err)
	}
	return states, nil
}

// diagnose says what is wrong with one table that a stream reads.
func (s *Source) diagnose(t *tableState) []source.Problem {
	var problems []source.Problem
	table := quote(t.schema) + "." + quote(t.name)
	if !t.published {
		problems = append(problems, source.Problem{Fatal: true, Code: string(errs.S1141), Message: "table " + table + " is not in publication " + quote(publication),
			Fix: "ALTER PUBLICATION " + quote(publication) + " ADD TABLE " + table + ";"})
	}
	if !t.selectable {
		problems = append(problems, source.Problem{Fatal: true, Message: "table " + table + " may not be read",
			Fix: "GRANT USAGE ON SCHEMA " + quote(t.schema) + " TO " + quote(s.config.Username) + "; GRANT SELECT ON " + table + " TO " + quote(s.config.Username) + ";"})
	}
	if len(t.key) == 0 && t.identity != "n" {
		problems = append(problems, source.Problem{Fatal: true, Message: "table " + table + " has no replica identity: its rows cannot be updated or deleted",
			Fix: "ALTER TABLE " + table + " REPLICA IDENTITY FULL; -- or give it a primary key"})
	}
	if t.rls {
		problems = append(problems, source.Problem{Code: string(errs.S1145), Message: "row-level security on table " + table + " may hide rows from replication",
			Fix: "ALTER ROLE " + quote(s.config.Username) + " BYPASSRLS;"})
	}
	return problems
}

// Diagnose tells the state of the source and of the given streams in it.
func (s *Source) Diagnose(ctx context.Context, streams []source.StreamTables) (*source.Diagnosis, error) {
	d := &source.Diagnosis{URI: s.config.Redacted(), DefaultSchema: "public"}
	var err error
	if d.Problems, err = s.Check(ctx); err != nil {
		return nil, err
	}
	states, err := s.tableStates(ctx)
	if err != nil {
		return nil, err
	}
	for _, st := range streams {
		sd := source.StreamDiagnosis{ID: st.ID, Lag: source.Lag{Bytes: -1, SafeWALSize: -1, MaxSlotWALKeepSize: -1}}
		if st.Name != "" {
			if sd.Lag, err = s.lag(ctx, st.Name); err != nil {
				return nil, err
			}
		}
		for _, p := range st.Tables {
			found := false
			wildcard := strings.HasSuffix(p.Name, "%") || strings.HasSuffix(p.Schema, "%")
			for i := range states {
				t := &states[i]
				if !matches(p, t.schema, t.name) || wildcard && !t.published {
					continue
				}
				found = true
				td := source.TableDiagnosis{Schema: t.schema, Name: t.name, Key: t.key, Estimate: t.estimate, Problems: s.diagnose(t)}
				if wildcard {
					td.Pattern = p.Name
				}
				sd.Tables = append(sd.Tables, td)
			}
			if !found {
				td := source.TableDiagnosis{Schema: p.Schema, Name: p.Name, Missing: true, Problems: []source.Problem{{Message: fmt.Sprintf("table %s.%s not found", p.Schema, p.Name)}}}
				if wildcard {
					td.Pattern = p.Name
				}
				sd.Tables = append(sd.Tables, td)
			}
		}
		d.Streams = append(d.Streams, sd)
	}
	return d, nil
}

// Schema lists the tables that may be read, with the SQLite types that their
// columns' values have.
func (s *Source) Schema(ctx context.Context) ([]source.SchemaTable, error) {
	rows, err := s.pool.Query(ctx, `SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.atttypid::oid,
		CASE WHEN c.relkind = 'p' THEN 0 WHEN c.relpages = 0 AND c.reltuples = 0 THEN -1 ELSE c.reltuples END::int8, (c.relpages + coalesce(long.relpages, 0))::int8 * current_setting('block_size')::int8
		FROM pg_class c LEFT JOIN pg_class long ON long.oid = c.reltoastrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_toast%' AND n.nspname NOT LIKE 'pg\_temp%'
		ORDER BY 1, 2, a.attnum`)
	if err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	var tables []source.SchemaTable
	var oids []uint32
	for rows.Next() {
		var schema, name string
		var c source.SchemaColumn
		var oid uint32
		var count, bytes int64
		if err := rows.Scan(&schema, &name, &c.Name, &c.Type, &oid, &count, &bytes); err != nil {
			rows.Close()
			return nil, fmt.Errorf("read schema: %w", err)
		}
		if n := len(tables); n == 0 || tables[n-1].Schema != schema || tables[n-1].Name != name {
			if count < 0 {
				bytes = -1 // never analyzed
			}
			tables = append(tables, source.SchemaTable{Schema: schema, Name: name, Rows: count, Bytes: bytes})
		}
		t := &tables[len(tables)-1]
		t.Columns = append(t.Columns, c)
		oids = append(oids, oid)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	types, err := s.types.get(ctx, s.pool, oids)
	if err != nil {
		return nil, err
	}
	i := 0
	for _, t := range tables {
		for c := range t.Columns {
			t.Columns[c].SQLiteType = sqliteType(types[i])
			i++
		}
	}
	return tables, nil
}

func sqliteType(t *pgType) string {
	switch t.kind {
	case kindInteger, kindBool:
		return "integer"
	case kindReal:
		return "real"
	case kindBytes:
		return "blob"
	case kindDomain:
		if t.elem != nil {
			return sqliteType(t.elem)
		}
	}
	return "text"
}

const (
	// queryTime bounds a developer's query.
	queryTime = 10 * time.Second
	// maxQueryRows and maxQueryBytes bound its result.
	maxQueryRows  = 1000
	maxQueryBytes = 8 << 20
)

// Execute runs one query for a developer (debug_api): in a transaction that
// reads only, for a bounded time and result, on a connection of its own, so that
// nothing it sets or locks outlives it.
func (s *Source) Execute(ctx context.Context, query string, args []string) (*source.Result, error) {
	values := make([]any, len(args), len(args)+1)
	for i, a := range args {
		if err := json.Unmarshal([]byte(a), &values[i]); err != nil {
			return nil, errs.New(errs.S2001, "argument %d is not JSON", i+1)
		}
	}
	// The arguments' types are the server's to say: text works for all.
	for i, v := range values {
		switch v := v.(type) {
		case nil, string:
		case bool:
			values[i] = fmt.Sprint(v)
		default:
			values[i] = strings.TrimSpace(args[i])
		}
	}
	ctx, cancel := context.WithTimeout(ctx, queryTime+5*time.Second) // the server's own limit is the usual one
	defer cancel()
	c, err := connConfig(s.config)
	if err != nil {
		return nil, err
	}
	c.RuntimeParams["default_transaction_read_only"] = "on"
	c.RuntimeParams["statement_timeout"] = strconv.FormatInt(queryTime.Milliseconds(), 10)
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `BEGIN READ ONLY`); err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	// One statement is all that the protocol takes with arguments, so nothing
	// ends the transaction and goes on. Without a COMMIT nothing of it stays.
	rows, err := conn.Query(ctx, query, slices.Insert(values, 0, any(pgx.QueryExecModeExec))...)
	if err != nil {
		return nil, fmt.Errorf("run query: %w", err)
	}
	defer rows.Close()
	r := &source.Result{}
	for _, f := range rows.FieldDescriptions() {
		r.Columns = append(r.Columns, f.Name)
	}
	size := 0
	for rows.Next() {
		v, err := rows.Values()
		if err != nil {
			return nil, fmt.Errorf("run query: %w", err)
		}
		line, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("run query: %w", err)
		}
		if size += len(line); len(r.Rows) == maxQueryRows || size > maxQueryBytes {
			cancel() // do not read the rest
			return nil, fmt.Errorf("the result has more than %d rows or %d MiB: add a LIMIT", maxQueryRows, maxQueryBytes>>20)
		}
		r.Rows = append(r.Rows, string(line))
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("run query: %w", err)
	}
	return r, nil
}
