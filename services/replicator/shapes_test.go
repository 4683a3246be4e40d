package replicator

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

// TestKeys: whatever the key, the copy goes on in chunks of it across restarts,
// and nothing is left out.
func TestKeys(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	keys := map[string]string{
		"k_int":       "id int PRIMARY KEY",
		"k_text":      `id text COLLATE "C" PRIMARY KEY`,
		"k_uuid":      "id uuid PRIMARY KEY",
		"k_composite": "id text, n int, PRIMARY KEY (n, id)",
		"k_numeric":   "id numeric PRIMARY KEY",
		"k_time":      "id timestamptz PRIMARY KEY",
		"k_bytes":     "id bytea PRIMARY KEY",
		"k_domain":    "id name_d PRIMARY KEY",
		"k_enum":      "id color, n int, PRIMARY KEY (id, n)",
		"k_full":      "id int, n int",
		"k_index":     "id int NOT NULL, n text NOT NULL",
		"k_none":      "id int",
	}
	values := map[string]string{
		"k_int": "i, 'x'", "k_text": `CASE i % 3 WHEN 0 THEN 'it''s \ ' WHEN 1 THEN E'tab\t' ELSE 'ü' END || i, 'x'`, "k_uuid": "gen_random_uuid(), 'x'",
		"k_composite": "'k' || i / 7, i, 'x'", "k_numeric": "i + 0.5, 'x'", "k_time": "now() + i * interval '1 ms', 'x'",
		"k_bytes": `decode(lpad(to_hex(i), 8, '0'), 'hex'), 'x'`, "k_domain": "'n' || i, 'x'", "k_enum": "('{red,green,blue}'::color[])[1 + i % 3], i, 'x'",
		"k_full": "i, i, 'x'", "k_index": "i, 'n' || i, 'x'", "k_none": "i, 'x'",
	}
	sql := publication + `CREATE DOMAIN name_d AS text; CREATE TYPE color AS ENUM ('red', 'green', 'blue');`
	var names []string
	for name, columns := range keys {
		sql += fmt.Sprintf("CREATE TABLE %s (%s); ALTER TABLE %[1]s ADD pad text; INSERT INTO %[1]s SELECT %[3]s FROM generate_series(1, 45000) i;", name, columns, values[name])
		names = append(names, name)
	}
	sql += `ALTER TABLE k_full REPLICA IDENTITY FULL; CREATE UNIQUE INDEX k_i ON k_index (n); ALTER TABLE k_index REPLICA IDENTITY USING INDEX k_i;
		ALTER TABLE k_none REPLICA IDENTITY NOTHING`
	pgtest.Exec(t, conn, sql)
	id := s.ledger.deploy(model.ValueOptions{}, names...)
	for range 8 {
		stop := s.start("a")
		n := s.ledger.copied(id)
		eventually(t, 20*time.Second, "more rows", func() bool { return s.ledger.copied(id) > n })
		stop()
	}
	if s.ledger.head(id).SnapshotDone {
		t.Fatal("the copy was over too soon to say anything of its restarts")
	}
	s.start("b")
	s.caughtUp(id, 60*time.Second)
	for _, name := range names {
		if name == "k_bytes" || name == "k_time" {
			continue // shown in another form than psql's
		}
		expectSame(t, s, id, conn, name)
	}
	for _, name := range []string{"k_bytes", "k_time"} {
		if n := len(s.ledger.rows(id, name)); n != 45000 {
			t.Errorf("%s: %d rows", name, n)
		}
	}
	// Changes by each identity.
	for _, name := range names {
		switch name {
		case "k_none":
			pgtest.Exec(t, conn, `INSERT INTO k_none VALUES (77, 'y')`)
		default:
			pgtest.Exec(t, conn, fmt.Sprintf(`UPDATE %s SET pad = 'y' WHERE ctid IN (SELECT ctid FROM %[1]s LIMIT 100); DELETE FROM %[1]s WHERE ctid IN (SELECT ctid FROM %[1]s LIMIT 50)`, name))
		}
	}
	pgtest.Exec(t, conn, `UPDATE k_full SET id = -id WHERE n < 100; UPDATE k_index SET n = n || '!' WHERE id > 44000; UPDATE k_composite SET id = 'z' WHERE n < 50`)
	s.caughtUp(id, 20*time.Second)
	for _, name := range names {
		if name != "k_bytes" && name != "k_time" && name != "k_none" {
			expectSame(t, s, id, conn, name)
		}
	}
}

// copied is how many rows of a stream are applied.
func (l *ledger) copied(id model.StreamID) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.streams[id].applied
}

// TestToast: unchanged large values are not sent, and keep what they were; with
// identity FULL they are sent as part of the old row.
func TestToast(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication)
	for _, name := range []string{"d", "f", "k"} {
		pgtest.Exec(t, conn, fmt.Sprintf(`CREATE TABLE %s (id text PRIMARY KEY, a text, b text, n int); ALTER TABLE %[1]s ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER id SET STORAGE EXTERNAL`, name))
	}
	pgtest.Exec(t, conn, `ALTER TABLE f REPLICA IDENTITY FULL`)
	id := s.ledger.deploy(model.ValueOptions{}, "d", "f", "k")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	for _, name := range []string{"d", "f", "k"} {
		pgtest.Exec(t, conn, fmt.Sprintf(`INSERT INTO %s SELECT 'row' || i, repeat('a', 9000), repeat('b', 9000), 0 FROM generate_series(1, 20) i;
			UPDATE %[1]s SET n = 1; UPDATE %[1]s SET a = 'short' WHERE id = 'row3'; UPDATE %[1]s SET id = id || 'x' WHERE id = 'row4';
			UPDATE %[1]s SET b = NULL, n = 2 WHERE id = 'row5'`, name))
	}
	pgtest.Exec(t, conn, `INSERT INTO k VALUES (repeat('k', 2500), repeat('a', 9000), 'b', 0); UPDATE k SET n = 5 WHERE length(id) > 2000`)
	s.caughtUp(id, 10*time.Second)
	for _, name := range []string{"d", "f", "k"} {
		expectSame(t, s, id, conn, name)
	}
}

// TestSchemaChanges: tables that appear, change, are renamed and made anew while
// they are replicated.
func TestSchemaChanges(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication+`CREATE TABLE t_a (id int PRIMARY KEY, x text); INSERT INTO t_a SELECT i, 'a' FROM generate_series(1, 100) i`)
	id := s.ledger.deploy(model.ValueOptions{}, "t_%")
	stop := s.start("a")
	same := func(tables ...string) {
		t.Helper()
		s.caughtUp(id, 10*time.Second)
		for _, name := range tables {
			expectSame(t, s, id, conn, name)
		}
	}
	same("t_a")
	// A table that appears, with rows from before its first visible change.
	pgtest.Exec(t, conn, `BEGIN; CREATE TABLE t_b (id int PRIMARY KEY, y text); INSERT INTO t_b SELECT i, 'b' FROM generate_series(1, 3000) i; COMMIT; UPDATE t_b SET y = 'c' WHERE id = 7`)
	same("t_a", "t_b")
	// Columns that come and go: rows written since have the new shape.
	pgtest.Exec(t, conn, `ALTER TABLE t_a ADD z int; UPDATE t_a SET z = id; ALTER TABLE t_b DROP y; UPDATE t_b SET id = -id`)
	same("t_a", "t_b")
	// Dropped and made anew under the same name.
	pgtest.Exec(t, conn, `DROP TABLE t_b; CREATE TABLE t_b (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), y text); INSERT INTO t_b (y) VALUES ('new')`)
	same("t_b")
	// Renamed within the pattern, and out of it.
	pgtest.Exec(t, conn, `ALTER TABLE t_a RENAME TO t_c; INSERT INTO t_c VALUES (1000, 'c', 1)`)
	same("t_c")
	if got := s.ledger.rows(id, "t_a"); len(got) != 0 {
		t.Errorf("t_a is gone, but has %d rows", len(got))
	}
	pgtest.Exec(t, conn, `ALTER TABLE t_b RENAME TO away; INSERT INTO away (y) VALUES ('more')`)
	s.caughtUp(id, 10*time.Second)
	if got := s.ledger.rows(id, "t_b"); len(got) != 0 {
		t.Errorf("t_b is gone, but has %d rows", len(got))
	}
	// Another replica identity.
	pgtest.Exec(t, conn, `ALTER TABLE t_c REPLICA IDENTITY FULL; UPDATE t_c SET x = 'full' WHERE id < 10`)
	same("t_c")
	// A table that appeared while nobody read, in the middle of other changes.
	stop()
	pgtest.Exec(t, conn, `INSERT INTO t_c VALUES (2000, 'x', 1); CREATE TABLE t_d (id int PRIMARY KEY, y text); INSERT INTO t_d SELECT i, 'd' FROM generate_series(1, 30000) i; DELETE FROM t_c WHERE id < 5; UPDATE t_d SET y = 'e' WHERE id % 3 = 0`)
	for range 3 {
		stop := s.start("a")
		n := s.ledger.copied(id)
		eventually(t, 20*time.Second, "more rows", func() bool { return s.ledger.copied(id) > n || s.ledger.copied(id) > 30000 })
		stop()
	}
	s.start("b")
	same("t_c", "t_d")
	pgtest.Exec(t, conn, `TRUNCATE t_c, t_d`)
	same("t_c", "t_d")
}

// TestUnseen: the log has a commit before queries see it, here for as long as a
// synchronous standby is waited for. What is read of the source is read after it.
func TestUnseen(t *testing.T) {
	s := newSuite(t, "synchronous_standby_names='nobody'", "synchronous_commit='local'")
	conn, waiting := s.pg.Connect(t, "postgres"), s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, `CREATE PUBLICATION powersync; CREATE TABLE t_a (id int PRIMARY KEY, x text); INSERT INTO t_a SELECT i, 'a' FROM generate_series(1, 100) i;
		ALTER PUBLICATION powersync ADD TABLE t_a; CREATE TABLE t_b (id int PRIMARY KEY, x text); INSERT INTO t_b SELECT i, 'b' FROM generate_series(1, 100) i`)
	pgtest.Exec(t, waiting, `SET synchronous_commit TO on`)
	id := s.ledger.deploy(model.ValueOptions{}, "t_%")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	is := func(what, sql string) {
		t.Helper()
		eventually(t, 10*time.Second, what, func() (is bool) {
			if err := conn.QueryRow(context.Background(), sql).Scan(&is); err != nil {
				t.Fatal(err)
			}
			return is
		})
	}
	for _, c := range []struct{ unseen, then, table string }{
		{`ALTER TABLE t_a RENAME TO t_c; INSERT INTO t_c VALUES (1000, 'c')`, ``, "t_c"},
		{`ALTER PUBLICATION powersync ADD TABLE t_b`, `INSERT INTO t_b VALUES (1000, 'c')`, "t_b"},
	} {
		began := time.Now().UTC().Format(time.RFC3339Nano)
		done := make(chan error, 1)
		go func() {
			_, err := waiting.Exec(context.Background(), c.unseen, pgx.QueryExecModeSimpleProtocol)
			done <- err
		}()
		is("a commit that waits for a standby", `SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'`)
		pgtest.Exec(t, conn, c.then)
		is("the replicator to wait for it", `SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%virtualtransaction%' AND pid <> pg_backend_pid() AND query_start > '`+began+`'`)
		for _, names := range []string{"", "nobody"} {
			pgtest.Exec(t, conn, fmt.Sprintf(`ALTER SYSTEM SET synchronous_standby_names = '%s'`, names))
			pgtest.Exec(t, conn, `SELECT pg_reload_conf()`)
			if names == "" {
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
		}
		s.caughtUp(id, 10*time.Second)
		expectSame(t, s, id, conn, c.table)
	}
}

// TestHugeTransaction: a transaction larger than memory allows is published in
// parts, a crash in its middle goes on there, and the server hears of us
// throughout.
func TestHugeTransaction(t *testing.T) {
	rows := 300_000
	if v := os.Getenv("SLUICE_TEST_HUGE_ROWS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		rows = n
	}
	s := newSuite(t, "wal_sender_timeout='3s'", "logical_decoding_work_mem='64MB'")
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.ledger.mu.Lock()
	s.ledger.streams[id].countOnly = true
	s.ledger.mu.Unlock()
	stop := s.start("a")
	s.caughtUp(id, 10*time.Second)
	base := s.ledger.copied(id)
	pgtest.Exec(t, conn, fmt.Sprintf(`INSERT INTO todos SELECT i, repeat('x', 180), 0 FROM generate_series(1, %d) i`, rows))
	eventually(t, 120*time.Second, "a third of the rows", func() bool { return s.ledger.copied(id)-base > rows/3 })
	if h := s.ledger.head(id); h.Applied.AtTransactionEnd() {
		t.Error("a part of a transaction ends at offset 0 (D1)")
	}
	stop()
	before := s.ledger.copied(id)
	s.start("a")
	var most uint64
	began := time.Now()
	eventually(t, 600*time.Second, "all rows", func() bool {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapInuse)
		time.Sleep(20 * time.Millisecond)
		return s.ledger.copied(id)-base >= rows
	})
	t.Logf("%d rows in %s, heap in use at most %d MiB", rows+base-before, time.Since(began), most>>20)
	s.caughtUp(id, 10*time.Second)
	if got := s.ledger.copied(id) - base; got != rows {
		t.Errorf("%d rows arrived, of %d", got, rows)
	}
	if most > 256<<20 {
		t.Errorf("heap in use rose to %d MiB", most>>20)
	}
}

// TestKeepaliveWhileBlocked: nothing is taken for longer than the server's
// patience; the connection stays.
func TestKeepaliveWhileBlocked(t *testing.T) {
	s := newSuite(t, "wal_sender_timeout='2s'")
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	pid := func() (pid int) {
		if err := conn.QueryRow(context.Background(), `SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots`).Scan(&pid); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	was := pid()
	s.ledger.setPause(true)
	pgtest.Exec(t, conn, `INSERT INTO todos SELECT i, repeat('x', 500), 0 FROM generate_series(1, 250000) i`) // more than may be under way
	time.Sleep(6 * time.Second)                                                                               // three times the patience
	if now := pid(); now != was || was == 0 {
		t.Errorf("the server ended the connection: process %d, then %d", was, now)
	}
	s.ledger.setPause(false)
	s.caughtUp(id, 60*time.Second)
	expectSame(t, s, id, conn, "todos")
}

func (l *ledger) setPause(pause bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause = pause
}

// TestTypes: values of a real server, copied and streamed, are the same, also of
// types that it defines itself.
func TestTypes(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	row := `'1', 9223372036854775807, 1.5, 'Infinity', true, '\x00ff', '2024-02-29', '2024-02-29 12:34:56.5', '2024-02-29 12:34:56+02', '12:34', '{"b": [1.0]}', '{1,NULL}',
		'{"a b",NULL,"NULL"}', 3.10, 'red', '("x y",5,t)', '[1,5)', '{[1,2),[4,5)}', 7, '{red,blue}', '{"(a,1,f)"}', '$12.50', '1 day 02:00', '10.0.0.1', B'101', '0A1B2C3D-0000-4000-8000-00000000000f'`
	types := `CREATE TYPE irange AS RANGE (subtype = int4, multirange_type_name = imulti);`
	multirange := `[{"lower":1,"upper":2,"lower_exclusive":0,"upper_exclusive":1},{"lower":4,"upper":5,"lower_exclusive":0,"upper_exclusive":1}]`
	if conn.PgConn().ParameterStatus("server_version") < "14" { // has no multiranges
		types = `CREATE TYPE irange AS RANGE (subtype = int4); CREATE DOMAIN imulti AS text;`
		multirange = `{[1,2),[4,5)}`
	}
	pgtest.Exec(t, conn, publication+types+`CREATE TYPE color AS ENUM ('red', 'blue'); CREATE TYPE address AS (street text, number int, ok bool); CREATE DOMAIN small AS int;
		CREATE TABLE v (id text PRIMARY KEY, i8 int8, f4 float4, f8 float8, b bool, by bytea, d date, ts timestamp, tz timestamptz, ti time, j jsonb, ia int[], ta text[], nu numeric, c color,
			a address, r irange, m imulti, s small, ca color[], aa address[], mo money, iv interval, ip inet, bi bit(3), u uuid);
		INSERT INTO v VALUES (`+row+`)`)
	id := s.ledger.deploy(model.ValueOptions{ISO8601: true, CustomTypes: true}, "v")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	pgtest.Exec(t, conn, `INSERT INTO v VALUES (`+strings.Replace(row, "'1'", "'2'", 1)+`)`)
	s.caughtUp(id, 10*time.Second)
	got := s.ledger.rows(id, "v")
	want := `a={"street":"x y","number":5,"ok":1} aa=[{"street":"a","number":1,"ok":0}] b=1 bi=101 by=` + "\x00\xff" + ` c=red ca=["red","blue"] d=2024-02-29 f4=1.5 f8=+Inf i8=9223372036854775807 ia=[1,null] id=1 ip=10.0.0.1 iv=1 day 02:00:00 j={"b": [1.0]} m=` + multirange + ` mo=$12.50 nu=3.10 r={"lower":1,"upper":5,"lower_exclusive":0,"upper_exclusive":1} s=7 ta=["a b",null,"NULL"] ti=12:34:00.000000 ts=2024-02-29T12:34:56.500000 tz=2024-02-29T10:34:56.000000Z u=0a1b2c3d-0000-4000-8000-00000000000f`
	if len(got) != 2 || got[0] != want {
		t.Fatalf("copied:\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if streamed := strings.Replace(got[1], "id=2", "id=1", 1); streamed != want {
		t.Errorf("streamed:\n%s\nwant\n%s", streamed, want)
	}
}
