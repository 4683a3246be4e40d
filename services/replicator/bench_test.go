package replicator

import (
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

// BenchmarkSnapshot: a table of 500,000 rows of about 200 bytes, from a real
// server through JetStream to a ledger that only counts.
func BenchmarkSnapshot(b *testing.B) {
	const rows = 500_000
	s := newSuite(b)
	conn := s.pg.Connect(b, "postgres")
	pgtest.Exec(b, conn, publication+`CREATE TABLE todos (id uuid PRIMARY KEY, list uuid, text text, done bool, n int, at timestamptz);
		INSERT INTO todos SELECT gen_random_uuid(), gen_random_uuid(), repeat('buy milk ', 10), true, i, now() FROM generate_series(1, 500000) i`)
	pgtest.Exec(b, conn, `VACUUM ANALYZE todos`)
	for b.Loop() {
		id := s.ledger.deploy(model.ValueOptions{}, "todos")
		s.ledger.mu.Lock()
		s.ledger.streams[id].countOnly = true
		s.ledger.mu.Unlock()
		stop := s.start("a")
		eventually(b, time.Minute, "all rows", func() bool { return s.ledger.head(id).SnapshotDone })
		stop()
		s.ledger.mu.Lock()
		s.ledger.streams[id].State = model.Terminated
		s.ledger.mu.Unlock()
	}
	b.ReportMetric(float64(b.N)*rows/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkTransactions: 20,000 transactions of one row, written before they are
// read.
func BenchmarkTransactions(b *testing.B) {
	const transactions = 20_000
	s := newSuite(b)
	conn := s.pg.Connect(b, "postgres")
	pgtest.Exec(b, conn, todos+`CREATE PROCEDURE load(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..n LOOP INSERT INTO todos SELECT coalesce(max(id), 0) + 1, repeat('x', 180), 0 FROM todos; COMMIT; END LOOP; END $$`)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.ledger.mu.Lock()
	s.ledger.streams[id].countOnly = true
	s.ledger.mu.Unlock()
	stop := s.start("a")
	s.caughtUp(id, 10*time.Second)
	stop()
	for b.Loop() {
		b.StopTimer()
		pgtest.Exec(b, conn, `CALL load(20000)`)
		n := s.ledger.copied(id)
		b.StartTimer()
		stop := s.start("a")
		eventually(b, time.Minute, "all rows", func() bool { return s.ledger.copied(id) >= n+transactions })
		stop()
	}
	b.ReportMetric(float64(b.N)*transactions/b.Elapsed().Seconds(), "tx/s")
}

// BenchmarkLatency: one transaction at a time, commit to stored.
func BenchmarkLatency(b *testing.B) {
	s := newSuite(b)
	conn := s.pg.Connect(b, "postgres")
	pgtest.Exec(b, conn, todos+`INSERT INTO todos VALUES (1, 'x', 0)`)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	for b.Loop() {
		n := s.ledger.copied(id)
		pgtest.Exec(b, conn, `UPDATE todos SET done = done + 1`)
		for s.ledger.copied(id) == n {
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// BenchmarkBigTransaction: one transaction of 100,000 rows, from its commit.
func BenchmarkBigTransaction(b *testing.B) {
	const rows = 100_000
	s := newSuite(b)
	conn := s.pg.Connect(b, "postgres")
	pgtest.Exec(b, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.ledger.mu.Lock()
	s.ledger.streams[id].countOnly = true
	s.ledger.mu.Unlock()
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	for b.Loop() {
		b.StopTimer()
		n := s.ledger.copied(id)
		pgtest.Exec(b, conn, `INSERT INTO todos SELECT coalesce((SELECT max(id) FROM todos), 0) + i, repeat('x', 180), 0 FROM generate_series(1, 100000) i`)
		b.StartTimer()
		eventually(b, time.Minute, "all rows", func() bool { return s.ledger.copied(id) >= n+rows })
	}
	b.ReportMetric(float64(b.N)*rows/b.Elapsed().Seconds(), "rows/s")
}
