package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// TestLostSlot: a slot whose WAL is gone means another log, but not while the
// tables are still copied: that would end the same way again and again. Once
// the operator has dropped it, the copy begins again. When it does, whatever slot
// there is makes place for a new one.
func TestLostSlot(t *testing.T) {
	pg := pgtest.Start(t, "max_slot_wal_keep_size='1MB'", "min_wal_size='32MB'")
	conn := pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, `CREATE PUBLICATION powersync FOR ALL TABLES; CREATE TABLE t (id int PRIMARY KEY)`)
	ctx := context.Background()
	src, err := New(pg.Config("postgres"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	stream := &model.Stream{Name: "powersync_1_abcd", Tables: []model.TablePattern{{Connection: "default", Schema: "public", Name: "t"}}}
	log, err := src.Open(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	version, err := src.serverVersion(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if version < 130000 {
		return // nothing limits what is kept
	}
	status := ""
	for range 20 {
		pgtest.Exec(t, conn, `INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t`)
		pgtest.Exec(t, conn, `SELECT pg_switch_wal()`)
		pgtest.Exec(t, conn, `CHECKPOINT`)
		lag, err := log.Lag(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if status = lag.WALStatus; status == "lost" {
			break
		}
	}
	if status != "lost" {
		t.Fatalf("the slot is %s", status)
	}
	copying := *stream
	copying.Head.Applied.Position = log.Start()
	_, err = src.Open(ctx, &copying)
	if errs.CodeOf(err) != errs.S1146 || src.Class(err) == source.Lost || !strings.Contains(fmt.Sprint(err), "SELECT pg_drop_replication_slot('powersync_1_abcd');") {
		t.Errorf("while tables are copied: %v", err)
	}
	done := copying
	done.Head.SnapshotDone = true
	_, err = src.Open(ctx, &done)
	if errs.CodeOf(err) != errs.S1146 || src.Class(err) != source.Lost || !errors.Is(err, source.ErrHistoryLost) {
		t.Errorf("when they are: %v", err)
	}
	again, err := src.Open(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	if lag, err := again.Lag(ctx); err != nil || lag.Missing || lag.WALStatus == "lost" || again.Start() <= log.Start() {
		t.Errorf("made anew at %s: %+v %v", again.Start(), lag, err)
	}
	pgtest.Exec(t, conn, `SELECT pg_drop_replication_slot('powersync_1_abcd')`)
	if lag, err := again.Lag(ctx); err != nil || !lag.Missing {
		t.Errorf("dropped: %+v %v", lag, err)
	}
	for _, s := range []*model.Stream{&copying, &done} {
		if _, err = src.Open(ctx, s); errs.CodeOf(err) != errs.S1146 || src.Class(err) != source.Lost || !strings.Contains(fmt.Sprint(err), "does not exist any more") {
			t.Errorf("dropped: %v", err)
		}
	}
	if log, err = src.Open(ctx, stream); err != nil || log.Start() <= again.Start() {
		t.Errorf("made anew: %v", err)
	}
	// Nothing of this log is stored, but what is stored is of another history.
	other := *stream
	other.Head.Origin = "1:1"
	if _, err := src.Open(ctx, &other); !errors.Is(err, source.ErrOtherHistory) {
		t.Errorf("another cluster: %v", err)
	}
}

// TestGeneratedColumns: those that the log has are copied, and no others.
func TestGeneratedColumns(t *testing.T) {
	pg := pgtest.Start(t)
	conn := pg.Connect(t, "postgres")
	ctx := context.Background()
	src, err := New(pg.Config("postgres"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	version, err := src.serverVersion(ctx)
	if err != nil {
		t.Fatal(err)
	}
	publications := map[string]string{`CREATE PUBLICATION powersync FOR ALL TABLES`: "id"}
	switch {
	case version < 120000:
		return // there are none
	case version >= 180000:
		publications[`CREATE PUBLICATION powersync FOR ALL TABLES WITH (publish_generated_columns = stored)`] = "id twice"
	}
	pgtest.Exec(t, conn, `CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (2 * id) STORED)`)
	for create, want := range publications {
		pgtest.Exec(t, conn, create)
		tables, err := src.tables(ctx, []model.TablePattern{{Connection: "default", Schema: "public", Name: "t"}}, 0)
		if err != nil || len(tables) != 1 {
			t.Fatalf("%d tables, %v", len(tables), err)
		}
		var names []string
		for _, c := range tables[0].Columns {
			names = append(names, c.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: columns %s, want %s", create, got, want)
		}
		pgtest.Exec(t, conn, `DROP PUBLICATION powersync`)
	}
}

// TestSlotAhead: a ledger that is behind its slot, as one restored from a backup
// is, has lost the changes between them: that means another log. One that is not
// behind goes on.
func TestSlotAhead(t *testing.T) {
	pg := pgtest.Start(t)
	conn := pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, `CREATE PUBLICATION powersync FOR ALL TABLES; CREATE TABLE t (id int PRIMARY KEY)`)
	ctx := context.Background()
	src, err := New(pg.Config("postgres"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	stream := &model.Stream{Name: "powersync_1_abcd", Tables: []model.TablePattern{{Connection: "default", Schema: "public", Name: "t"}}}
	if _, err := src.Open(ctx, stream); err != nil {
		t.Fatal(err)
	}
	var begin, end string
	if err := conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots`).Scan(&begin); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, conn, `INSERT INTO t VALUES (1)`)
	if err := conn.QueryRow(ctx, `SELECT end_lsn::text FROM pg_replication_slot_advance('powersync_1_abcd', pg_current_wal_insert_lsn())`).Scan(&end); err != nil {
		t.Fatal(err)
	}
	for at, lost := range map[string]bool{begin: true, end: false} {
		applied, err := parseLSN(at)
		if err != nil {
			t.Fatal(err)
		}
		restored := *stream
		restored.Head = model.StreamHead{SnapshotDone: true, Applied: model.Cursor{Position: applied.position()}}
		_, err = src.Open(ctx, &restored)
		if lost && (errs.CodeOf(err) != errs.S1146 || src.Class(err) != source.Lost || !strings.Contains(fmt.Sprint(err), "is confirmed up to")) {
			t.Errorf("the ledger is behind its slot: %v", err)
		}
		if !lost && err != nil {
			t.Errorf("the ledger is where its slot is: %v", err)
		}
	}
}
