package replicator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

// What todos hold is made by their number.
const fillTodos = `INSERT INTO todos SELECT i, repeat('x', 200), 0 FROM generate_series(%d, %d) i`

// compared waits until the stream has gone over to another log, and holds what the
// comparison changed against want: "put ID" and "remove ID", of FROM-TO as well.
func (s *suite) compared(id model.StreamID, restarts int, why string, otherHistory bool, want ...string) {
	s.t.Helper()
	eventually(s.t, 30*time.Second, "another log: "+why, func() bool {
		x := s.ledger.stream(id)
		return x.restarts == restarts && x.Head.SnapshotDone
	})
	x := s.ledger.stream(id)
	if !strings.HasPrefix(x.reason, "[PSYNC_S1146] ") || !strings.Contains(x.reason, why) || x.otherHistory != otherHistory {
		s.t.Errorf("the reason is %q, other history %t; want %s, %t", x.reason, x.otherHistory, why, otherHistory)
	}
	var all []string
	for _, w := range want {
		var op string
		var from, to int
		if n, _ := fmt.Sscanf(w, "%s %d-%d", &op, &from, &to); n == 2 {
			to = from
		}
		for ; from <= to; from++ {
			all = append(all, fmt.Sprintf("%s %d|", op, from))
		}
	}
	slices.Sort(all)
	got := slices.Sorted(slices.Values(x.diff))
	if !slices.Equal(got, all) {
		s.t.Errorf("%s: the comparison made %d changes, want %d:\n%.500s\nwant\n%.500s", why, len(got), len(all), strings.Join(got, ", "), strings.Join(all, ", "))
	}
	if x.skipped == 0 {
		s.t.Errorf("%s: nothing was found to be the same", why)
	}
	conn := s.pg.Connect(s.t, "postgres")
	s.caughtUp(id, 30*time.Second)
	expectSame(s.t, s, id, conn, "todos")
	// The log that follows is read from where the comparison began.
	pgtest.Exec(s.t, conn, `UPDATE todos SET done = done + 1 WHERE id % 50 = 7`)
	s.caughtUp(id, 30*time.Second)
	expectSame(s.t, s, id, conn, "todos")
}

// dropSlot drops a stream's slot once the server has seen that nobody reads it.
func (s *suite) dropSlot(id model.StreamID) {
	s.t.Helper()
	conn := s.pg.Connect(s.t, "postgres")
	eventually(s.t, 10*time.Second, "the slot can be dropped", func() bool {
		_, err := conn.Exec(context.Background(), fmt.Sprintf(`SELECT pg_drop_replication_slot('powersync_%d_abcd')`, id), pgx.QueryExecModeSimpleProtocol)
		return err == nil
	})
}

// TestSlotLost: a slot that is gone, and one whose log is, mean that tables are
// compared with what is stored: the same stream goes on, and only what differs is
// changed. A comparison that is cut short goes on where it was.
func TestSlotLost(t *testing.T) {
	s := newSuite(t, "max_slot_wal_keep_size='32MB'", "min_wal_size='32MB'", "max_wal_size='64MB'")
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos+fmt.Sprintf(fillTodos, 1, 20_000))
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	stop := s.start("a")
	s.caughtUp(id, 30*time.Second)

	stop()
	s.dropSlot(id)
	pgtest.Exec(t, conn, `UPDATE todos SET list = 'changed' WHERE id = 1; DELETE FROM todos WHERE id = 20000; INSERT INTO todos VALUES (20001, 'new', 0)`)
	stop = s.start("a")
	s.compared(id, 1, "it does not exist any more", false, "put 1", "remove 20000", "put 20001")

	var version int
	if err := conn.QueryRow(context.Background(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	restarts := 1
	if version >= 130000 { // before, nothing limits what is kept
		stop()
		lost := false
		for n := 0; n < 20 && !lost; n++ {
			pgtest.Exec(t, conn, fmt.Sprintf(`INSERT INTO todos VALUES (%d, 'new', 0)`, 30_000+n))
			pgtest.Exec(t, conn, `SELECT pg_switch_wal()`)
			pgtest.Exec(t, conn, `CHECKPOINT`)
			if err := conn.QueryRow(context.Background(), `SELECT wal_status = 'lost' FROM pg_replication_slots`).Scan(&lost); err != nil {
				t.Fatal(err)
			}
		}
		if !lost {
			t.Fatal("the slot is not lost")
		}
		pgtest.Exec(t, conn, `DELETE FROM todos WHERE id BETWEEN 100 AND 199; DELETE FROM todos WHERE id > 30000`)
		stop = s.start("a")
		restarts++
		s.compared(id, restarts, "its WAL is gone", false, "remove 100-199", "put 30000")
	}

	// The process dies in the middle of the comparison, twice; and its slot with it.
	stop()
	s.dropSlot(id)
	pgtest.Exec(t, conn, `UPDATE todos SET list = 'later' WHERE id IN (2, 19000); DELETE FROM todos WHERE id IN (3, 30000)`)
	for range 2 {
		s.ledger.mu.Lock()
		s.ledger.left = 3
		s.ledger.mu.Unlock()
		stop = s.start("a")
		eventually(t, 30*time.Second, "a part is compared", func() bool {
			s.ledger.mu.Lock()
			defer s.ledger.mu.Unlock()
			return s.ledger.discard
		})
		stop()
		if h := s.ledger.head(id); h.SnapshotDone || h.Checkpoint.Position.Mark() == h.Applied.Position.Mark() {
			t.Errorf("D1: in the middle of the comparison the head is %+v", h)
		}
		s.ledger.mu.Lock()
		s.ledger.discard = false
		s.ledger.mu.Unlock()
	}
	pgtest.Exec(t, conn, `DELETE FROM todos WHERE id = 4`) // it was compared before
	s.start("a")
	restarts++
	s.compared(id, restarts, "it does not exist any more", false, "put 2", "put 19000", "remove 3", "remove 30000")
	if n := s.ledger.stream(id).skipped; n > 20_100 {
		t.Errorf("%d rows were compared of 20,000: the comparison has begun anew", n)
	}
}

// TestSourceHistory: a source that is promoted goes on. One that was put back to
// an earlier state, by its files or by a recovery to a point in time, and another
// cluster in its place, even one that was loaded from a dump, are each named, and
// compared with what is stored.
func TestSourceHistory(t *testing.T) {
	s := newSuite(t)
	pgtest.Exec(t, s.pg.Connect(t, "postgres"), todos+fmt.Sprintf(fillTodos, 1, 1000))
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	stop := s.start("a")
	s.caughtUp(id, 30*time.Second)
	forget := func(n int) { // what the source will not remember
		conn := s.pg.Connect(t, "postgres")
		pgtest.Exec(t, conn, fmt.Sprintf(fillTodos, n+1, n+5000))
		s.caughtUp(id, 30*time.Second)
		expectSame(t, s, id, conn, "todos")
	}

	origin := s.ledger.head(id).Origin
	s.pg.Stop(t, "fast")
	s.pg.Recover(t)
	s.pg.StartAgain(t)
	forget(10_000)
	if now := s.ledger.head(id).Origin; !strings.HasSuffix(origin, ":1") || now != strings.TrimSuffix(origin, "1")+"2" {
		t.Errorf("the origin was %s and is %s after the promotion", origin, now)
	}
	if n := s.ledger.stream(id).restarts; n != 0 {
		t.Errorf("%d comparisons after the promotion", n)
	}

	s.pg.Stop(t, "fast")
	saved := s.pg.Save(t)
	s.pg.StartAgain(t)
	forget(20_000)
	stop()
	s.pg.Stop(t, "fast")
	s.pg.Restore(t, saved)
	s.pg.StartAgain(t)
	pgtest.Exec(t, s.pg.Connect(t, "postgres"), `UPDATE todos SET list = 'changed' WHERE id = 1; DELETE FROM todos WHERE id = 2; INSERT INTO todos VALUES (1001, 'new', 0)`)
	stop = s.start("a")
	s.compared(id, 1, "its log ends at ", true, "remove 20001-25000", "put 1", "remove 2", "put 1001")

	s.pg.Stop(t, "fast")
	saved = s.pg.Save(t)
	s.pg.StartAgain(t)
	forget(30_000)
	stop()
	s.pg.Stop(t, "fast")
	s.pg.Restore(t, saved)
	s.pg.Recover(t)
	s.pg.StartAgain(t)
	// It has gone on beyond what is stored before anybody looks.
	pgtest.Exec(t, s.pg.Connect(t, "postgres"), fmt.Sprintf(fillTodos, 40_001, 50_000)+`; DELETE FROM todos WHERE id = 3`)
	stop = s.start("a")
	s.compared(id, 2, "its timeline 3 left timeline 2 at ", true, "remove 30001-35000", "put 40001-50000", "remove 3")

	stop()
	rows, err := s.pg.Connect(t, "postgres").Query(context.Background(), `SELECT id, list, done FROM todos WHERE id <> 4`)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]any
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, values)
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	s.pg = pgtest.Start(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, `CREATE TABLE another (oid oid); `+todos) // so that todos has another oid
	if _, err := conn.CopyFrom(context.Background(), pgx.Identifier{"todos"}, []string{"id", "list", "done"}, pgx.CopyFromRows(all)); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, conn, `UPDATE todos SET list = 'elsewhere' WHERE id = 5; INSERT INTO todos VALUES (2, 'again', 0)`)
	stop = s.start("a")
	s.compared(id, 3, "it is another database cluster: its system identifier is ", true, "remove 4", "put 5", "put 2")

	// It is the same table also to a process that has not compared it.
	stop()
	s.start("a")
	pgtest.Exec(t, conn, `DELETE FROM todos WHERE id = 6`)
	s.caughtUp(id, 30*time.Second)
	expectSame(t, s, id, conn, "todos")
	if n := len(s.ledger.stream(id).progress); n != 1 {
		t.Errorf("%d tables are known", n)
	}
}
