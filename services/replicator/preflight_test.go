package replicator

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixes lists what Diagnose asks for, as "code message -> fix" lines.
func fixes(ps []*pb.Problem) string {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintf(&b, "%v %s %s -> %s\n", p.GetFatal(), strings.TrimPrefix(p.GetCode(), "PSYNC_"), p.GetMessage(), p.GetFix())
	}
	return b.String()
}

// TestPreflight: each missing setting and grant is named, with a fix that works
// when it is pasted, and replication begins once all are pasted.
func TestPreflight(t *testing.T) {
	s := newSuite(t)
	admin := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, admin, `CREATE ROLE repl LOGIN PASSWORD 'trusted'; CREATE SCHEMA s; CREATE TABLE s.a (id int PRIMARY KEY, x text); CREATE TABLE s.b (id int); CREATE TABLE s.c (id int PRIMARY KEY);
		ALTER TABLE s.c ENABLE ROW LEVEL SECURITY; INSERT INTO s.a VALUES (1, 'x'); INSERT INTO s.b VALUES (1); INSERT INTO s.c VALUES (1)`)
	s.tweak = func(c *Config) { c.Connection.Postgres.Username = "repl" }
	id := s.ledger.deploy(model.ValueOptions{}, "s.a", "s.b", "s.c", "s.missing")
	s.start("a")
	diagnose := func() *pb.DiagnoseReply {
		t.Helper()
		var tables []*pb.TablePattern
		for _, name := range []string{"a", "b", "c", "missing"} {
			tables = append(tables, &pb.TablePattern{Connection: "default", Schema: "s", Name: name})
		}
		d, err := s.source.Diagnose(context.Background(), &pb.DiagnoseRequest{Streams: []*pb.StreamTables{{Stream: int64(id), Name: fmt.Sprintf("powersync_%d_abcd", id), Tables: tables}}})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	expect := func(what, got, want string) {
		t.Helper()
		if strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
		}
	}
	d := diagnose()
	if !d.GetConnected() || strings.Contains(d.GetUri(), "trusted") || !strings.Contains(d.GetUri(), "127.0.0.1") {
		t.Errorf("connected %v to %s", d.GetConnected(), d.GetUri())
	}
	expect("source", fixes(d.GetProblems()), `
true  role "repl" may not replicate -> ALTER ROLE "repl" REPLICATION;
true S1141 publication "powersync" does not exist -> CREATE PUBLICATION "powersync" FOR ALL TABLES;`)
	eventually(t, 10*time.Second, "the error is reported", func() bool {
		return strings.Contains(s.ledger.head(id).LastError, "S1141") && strings.Contains(s.ledger.head(id).LastError, "CREATE PUBLICATION")
	})
	pgtest.Exec(t, admin, `CREATE PUBLICATION powersync FOR TABLE s.a WITH (publish = 'insert', publish_via_partition_root = true)`)
	d = diagnose()
	expect("publication", fixes(d.GetProblems()[1:]), `
true S1142 publication "powersync" does not publish all of insert, update, delete and truncate -> ALTER PUBLICATION "powersync" SET (publish = 'insert, update, delete, truncate');
true S1143 publication "powersync" publishes via the partition root, which is not supported -> ALTER PUBLICATION "powersync" SET (publish_via_partition_root = false);`)
	var tables string
	for _, td := range d.GetStreams()[0].GetTables() {
		tables += td.GetName() + " " + strings.Join(td.GetReplicationId(), ",") + "\n" + fixes(td.GetProblems())
	}
	expect("tables", tables, `
a id
true  table "s"."a" may not be read -> GRANT USAGE ON SCHEMA "s" TO "repl"; GRANT SELECT ON "s"."a" TO "repl";
b 
true S1141 table "s"."b" is not in publication "powersync" -> ALTER PUBLICATION "powersync" ADD TABLE "s"."b";
true  table "s"."b" may not be read -> GRANT USAGE ON SCHEMA "s" TO "repl"; GRANT SELECT ON "s"."b" TO "repl";
true  table "s"."b" has no replica identity: its rows cannot be updated or deleted -> ALTER TABLE "s"."b" REPLICA IDENTITY FULL; -- or give it a primary key
c id
true S1141 table "s"."c" is not in publication "powersync" -> ALTER PUBLICATION "powersync" ADD TABLE "s"."c";
true  table "s"."c" may not be read -> GRANT USAGE ON SCHEMA "s" TO "repl"; GRANT SELECT ON "s"."c" TO "repl";
false S1145 row-level security on table "s"."c" may hide rows from replication -> ALTER ROLE "repl" BYPASSRLS;
missing 
false  table s.missing not found -> `)
	for range 2 {
		d := diagnose()
		all := d.GetProblems()
		for _, td := range d.GetStreams()[0].GetTables() {
			all = append(all, td.GetProblems()...)
		}
		for _, p := range all {
			if p.GetFix() != "" {
				pgtest.Exec(t, admin, p.GetFix())
			}
		}
	}
	d = diagnose()
	if len(d.GetProblems()) > 0 {
		t.Errorf("after the fixes: %s", fixes(d.GetProblems()))
	}
	pgtest.Exec(t, admin, `UPDATE s.b SET id = 2`)
	s.caughtUp(id, 30*time.Second)
	for _, name := range []string{"s.a", "s.b", "s.c"} {
		s.ledger.mu.Lock()
		n := 0
		for tid, known := range s.ledger.streams[id].names {
			if known == name {
				n += len(s.ledger.streams[id].tables[fmt.Sprintf("%x", tid[:])])
			}
		}
		s.ledger.mu.Unlock()
		if n != 1 {
			t.Errorf("%s has %d rows", name, n)
		}
	}
	eventually(t, 5*time.Second, "a heartbeat is published", func() bool { return diagnose().GetStreams()[0].GetHeartbeatPublished() != 0 })
	sd := diagnose().GetStreams()[0]
	if !sd.GetRunning() || sd.GetLagBytes() < 0 || sd.GetWalStatus() != "reserved" || sd.GetMaxSlotWalKeepSize() != -1 {
		t.Errorf("stream: %v", sd)
	}
}

// TestAPI: what gateways and developers ask of the source.
func TestAPI(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication+`CREATE TABLE todos (id uuid PRIMARY KEY, n int, r float8, b bytea, ok bool)`)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.tweak = func(c *Config) { c.Heartbeat = time.Hour } // markers only
	stop := s.start("a")
	s.caughtUp(id, 10*time.Second)
	ctx := context.Background()

	for range 20 {
		// As a write checkpoint does: a client's write, the head, the marker.
		pgtest.Exec(t, conn, `INSERT INTO todos VALUES (gen_random_uuid(), 1)`)
		head, err := s.source.Position(ctx, &pb.PositionRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var now string
		if err := conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&now); err != nil {
			t.Fatal(err)
		}
		if _, err := s.source.Mark(ctx, &pb.MarkRequest{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 2*time.Second, "a checkpoint at the head "+head.GetPosition(), func() bool {
			return s.ledger.head(id).Checkpoint.Position >= model.Position(head.GetPosition())
		})
	}
	if n := len(s.ledger.rows(id, "todos")); n != 20 {
		t.Errorf("%d rows", n)
	}

	estimate := func() (rows, bytes int64) {
		schema, err := s.source.Schema(ctx, &pb.SchemaRequest{})
		if err != nil || len(schema.GetTables()) != 1 {
			t.Fatal(schema, err)
		}
		return schema.GetTables()[0].GetRows(), schema.GetTables()[0].GetBytes()
	}
	if rows, bytes := estimate(); rows != -1 || bytes != -1 {
		t.Errorf("%d rows, %d bytes before there are statistics", rows, bytes)
	}
	pgtest.Exec(t, conn, `ANALYZE todos`)
	if rows, bytes := estimate(); rows != 20 || bytes != 8192 {
		t.Errorf("%d rows, %d bytes, want 20 and a page", rows, bytes)
	}

	schema, err := s.source.Schema(ctx, &pb.SchemaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, table := range schema.GetTables() {
		got += table.GetSchema() + "." + table.GetName() + ":"
		for _, c := range table.GetColumns() {
			got += " " + c.GetName() + " " + c.GetType() + "=" + c.GetSqliteType()
		}
	}
	if want := "public.todos: id uuid=text n integer=integer r double precision=real b bytea=blob ok boolean=integer"; got != want {
		t.Errorf("schema: %s, want %s", got, want)
	}

	result, err := s.source.ExecuteSQL(ctx, &pb.ExecuteSQLRequest{Query: `SELECT n, $1::text AS a, $2::int AS b FROM todos LIMIT 1`, JsonArgs: []string{`"x"`, `7`}})
	if err != nil || !result.GetSuccess() || strings.Join(result.GetJsonRows(), "") != `[1,"x",7]` || strings.Join(result.GetColumns(), " ") != "n a b" {
		t.Errorf("query: %v, %v", result, err)
	}
	result, err = s.source.ExecuteSQL(ctx, &pb.ExecuteSQLRequest{Query: `SELEC`})
	if err != nil || result.GetSuccess() || !strings.Contains(result.GetError(), "syntax error") {
		t.Errorf("bad query: %v, %v", result, err)
	}
	for query, want := range map[string]string{
		`INSERT INTO todos VALUES (gen_random_uuid(), 1)`:         "read-only transaction",
		`WITH x AS (DELETE FROM todos RETURNING 1) SELECT 1`:      "read-only transaction",
		`SELECT set_config('transaction_read_only', 'off', true)`: "read-write mode",
		`COMMIT; DELETE FROM todos`:                               "multiple commands",
		`SELECT generate_series(1, 1001)`:                         "more than 1000 rows or 8 MiB: add a LIMIT",
		`SELECT repeat('x', 9000000)`:                             "more than 1000 rows or 8 MiB: add a LIMIT",
		`SELECT pg_sleep(60)`:                                     "statement timeout",
	} {
		if result, err := s.source.ExecuteSQL(ctx, &pb.ExecuteSQLRequest{Query: query}); err != nil || result.GetSuccess() || !strings.Contains(result.GetError(), want) {
			t.Errorf("%s: %v, %v", query, result, err)
		}
	}
	// Arguments are bound, not pasted, and nothing that a query sets outlives it.
	for range 2 {
		result, err = s.source.ExecuteSQL(ctx, &pb.ExecuteSQLRequest{Query: `SELECT $1::text AS a, pg_try_advisory_lock(7) AS locked, (SELECT count(*)::int FROM todos) AS n`, JsonArgs: []string{`"'; DROP TABLE todos; --"`}})
		if err != nil || strings.Join(result.GetJsonRows(), "") != `["'; DROP TABLE todos; --",true,20]` {
			t.Errorf("query: %v, %v", result, err)
		}
	}
	stop()
	s.tweak = func(c *Config) { c.Connection.DebugAPI = false }
	s.start("b")
	if _, err := s.source.ExecuteSQL(ctx, &pb.ExecuteSQLRequest{Query: `SELECT 1`}); err == nil {
		t.Error("a query was run although debug_api is off")
	}
}

// TestLargeRow holds INV-13: a row that is too large is not replicated, and what
// there was of it is removed; the others go on.
func TestLargeRow(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication+`CREATE TABLE todos (id int PRIMARY KEY, x text); ALTER TABLE todos ALTER x SET STORAGE EXTERNAL;
		INSERT INTO todos VALUES (1, 'small'), (2, repeat('x', 16000000)), (3, 'small'), (4, repeat('y', 6000000))`)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 20*time.Second)
	ids := func() string {
		var out []string
		for _, r := range s.ledger.rows(id, "todos") {
			out = append(out, r[:4])
		}
		return strings.Join(out, " ")
	}
	if got := ids(); got != "id=1 id=3 id=4" {
		t.Errorf("copied: %s", got)
	}
	pgtest.Exec(t, conn, `UPDATE todos SET x = repeat('z', 17000000) WHERE id = 1; UPDATE todos SET x = 'small again' WHERE id = 2; INSERT INTO todos VALUES (5, repeat('x', 15500000)), (6, 'small');
		UPDATE todos SET id = 7, x = repeat('z', 17000000) WHERE id = 3`)
	s.caughtUp(id, 20*time.Second)
	if got := ids(); got != "id=2 id=4 id=6" {
		t.Errorf("streamed: %s", got)
	}
	rows, err := conn.Query(context.Background(), `SELECT id FROM todos`)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := pgx.CollectRows(rows, pgx.RowTo[int]); err != nil || len(all) != 7-1 {
		t.Errorf("the source has %v, %v", all, err)
	}
}
