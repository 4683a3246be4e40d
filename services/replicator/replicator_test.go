package replicator

import (
	"context"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

const publication = `CREATE PUBLICATION powersync FOR ALL TABLES;`

// expectSame compares the ledger's rows of a table with the source's.
func expectSame(t testing.TB, s *suite, id model.StreamID, conn *pgx.Conn, table string) {
	t.Helper()
	rows, err := conn.Query(context.Background(), "SELECT * FROM "+pgx.Identifier{table}.Sanitize(), pgx.QueryExecModeSimpleProtocol, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for rows.Next() {
		var columns []string
		for i, f := range rows.FieldDescriptions() {
			v := "NULL"
			if raw := rows.RawValues()[i]; raw != nil {
				v = string(raw)
			}
			columns = append(columns, f.Name+"="+v)
		}
		sort.Strings(columns)
		want = append(want, strings.Join(columns, " "))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	sort.Strings(want)
	if got := s.ledger.rows(id, table); !reflect.DeepEqual(got, want) {
		t.Fatalf("table %s: the ledger has %d rows, the source %d:\n%.2000s\nwant\n%.2000s", table, len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestConnectionTag: the connection's tag is a name for people. Tables are
// copied, streamed and diagnosed as with any other.
func TestConnectionTag(t *testing.T) {
	s := newSuite(t)
	s.tweak = func(c *Config) { c.Connection.Tag = "app" }
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication+`CREATE TABLE todos (id int PRIMARY KEY); INSERT INTO todos SELECT generate_series(1, 10)`)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	stop := s.start("a")
	s.caughtUp(id, 20*time.Second)
	pgtest.Exec(t, conn, `INSERT INTO todos VALUES (11)`)
	s.caughtUp(id, 10*time.Second)
	expectSame(t, s, id, conn, "todos")
	d, err := s.source.Diagnose(context.Background(), &pb.DiagnoseRequest{Streams: []*pb.StreamTables{{
		Stream: int64(id), Tables: []*pb.TablePattern{{Connection: "default", Schema: "public", Name: "todos"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if tables := d.GetStreams()[0].GetTables(); len(tables) != 1 || len(tables[0].GetProblems()) != 0 {
		t.Errorf("diagnosed %v", tables)
	}
	// Another tag names the same tables: nothing is copied again.
	stop()
	s.tweak = nil
	copied := s.ledger.copied(id)
	s.start("b")
	pgtest.Exec(t, conn, `INSERT INTO todos VALUES (12)`)
	s.caughtUp(id, 10*time.Second)
	expectSame(t, s, id, conn, "todos")
	if n := s.ledger.copied(id) - 1; n != copied {
		t.Errorf("%d rows copied again", n-copied)
	}
}

// TestHeartbeatInterval: with rare heartbeats, the replicator is alive all the
// same, and what needs the log to move on does not wait for them.
func TestHeartbeatInterval(t *testing.T) {
	s := newSuite(t)
	s.tweak = func(c *Config) { c.Heartbeat = time.Hour }
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication+`CREATE TABLE early (id int PRIMARY KEY); INSERT INTO early VALUES (1)`)
	id := s.ledger.deploy(model.ValueOptions{}, "early", "late")
	s.start("a")
	eventually(t, 10*time.Second, "the first checkpoint", func() bool { return s.ledger.head(id).Checkpoint.Position != "" })
	before := s.ledger.head(id).Checkpoint.Position
	// The table is copied when its first change comes; a checkpoint has to wait
	// until the log has passed the copy.
	pgtest.Exec(t, conn, `CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)`)
	eventually(t, 10*time.Second, "a checkpoint with the table that came later", func() bool {
		return s.ledger.head(id).Checkpoint.Position > before && len(s.ledger.rows(id, "late")) == 1
	})
	touched := s.health.Snapshot().Touched
	eventually(t, 5*time.Second, "a sign of life", func() bool { return s.health.Snapshot().Touched.After(touched) })
}

// TestFromFile: an interval that the file gives is kept.
func TestFromFile(t *testing.T) {
	f := &config.File{Connections: []config.Connection{{Type: "postgresql", Postgres: &config.Postgres{HeartbeatInterval: 20 * time.Second}}}}
	c, err := FromFile(f)
	if err != nil || c.Heartbeat != 20*time.Second {
		t.Errorf("%s %v", c.Heartbeat, err)
	}
	f.Connections[0] = config.Connection{Type: "mysql"}
	if _, err := FromFile(f); err == nil {
		t.Error("a source that cannot be replicated is accepted")
	}
}

// TestSnapshotAndStream is the main line: rows that were there, then changes of
// every kind.
func TestSnapshotAndStream(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication+`
		CREATE TABLE lists (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text);
		CREATE TABLE todos (id int PRIMARY KEY, list text, done int, big text);
		CREATE TABLE other (id int PRIMARY KEY);
		ALTER TABLE todos ALTER big SET STORAGE EXTERNAL;
		INSERT INTO lists (name) SELECT 'list ' || i FROM generate_series(1, 1000) i;
		INSERT INTO todos SELECT i, E'tab\t newline\n back\\slash ' || i, i % 2, NULL FROM generate_series(1, 30000) i;
		INSERT INTO other VALUES (1)`)
	id := s.ledger.deploy(model.ValueOptions{}, "lists", "todos")
	s.start("a")
	s.caughtUp(id, 20*time.Second)
	expectSame(t, s, id, conn, "lists")
	expectSame(t, s, id, conn, "todos")

	pgtest.Exec(t, conn, `
		INSERT INTO todos VALUES (100001, 'new', 0, repeat('x', 5000));
		UPDATE todos SET done = 7 WHERE id = 100001;
		UPDATE todos SET id = 100002 WHERE id = 100001;
		UPDATE todos SET id = id + 200000 WHERE id < 10;
		DELETE FROM todos WHERE id BETWEEN 1000 AND 2000;
		DELETE FROM lists WHERE name LIKE 'list 9%'; UPDATE lists SET name = name || '!';
		INSERT INTO other VALUES (2)`)
	s.caughtUp(id, 10*time.Second)
	expectSame(t, s, id, conn, "todos")
	expectSame(t, s, id, conn, "lists")
	if got := s.ledger.rows(id, "other"); len(got) != 0 {
		t.Errorf("table other is not in the config, but arrived: %v", got)
	}

	pgtest.Exec(t, conn, `TRUNCATE lists; INSERT INTO lists (name) VALUES ('after')`)
	s.caughtUp(id, 10*time.Second)
	expectSame(t, s, id, conn, "lists")

	families, err := s.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		values[f.GetName()] = f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
	}
	for name, least := range map[string]float64{"powersync_rows_replicated_total": 33000, "powersync_data_replicated_bytes_total": 1 << 20, "powersync_transactions_replicated_total": 2,
		"powersync_chunks_replicated_total": 3, "powersync_replication_lag_seconds": 0, "sluice_replicator_snapshot_rows_total": 31000, "sluice_replicator_slot_lag_bytes": 0, "sluice_replicator_in_flight_bytes": 0} {
		if v, ok := values[name]; !ok || v < least {
			t.Errorf("metric %s is %v (%v), want %v or more", name, v, ok, least)
		}
	}

	before := s.ledger.head(id)
	eventually(t, 5*time.Second, "an idle source moves on, with heartbeats", func() bool {
		h := s.ledger.head(id)
		return h.Checkpoint.Position > before.Checkpoint.Position && h.Heartbeat > before.Heartbeat
	})
	var confirmed bool
	eventually(t, 5*time.Second, "the slot is confirmed", func() bool {
		err := conn.QueryRow(context.Background(), fmt.Sprintf(`SELECT confirmed_flush_lsn > restart_lsn AND pg_current_wal_lsn() - confirmed_flush_lsn < 100000 FROM pg_replication_slots WHERE slot_name = 'powersync_%d_abcd'`, id)).Scan(&confirmed)
		return err == nil && confirmed
	})
}
