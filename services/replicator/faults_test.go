package replicator

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/pgtest"
)

// writeLoad changes rows, key changes and owner changes of the same rows among
// them, until the returned function is called.
func writeLoad(t testing.TB, s *suite, seed uint64) (stop func()) {
	t.Helper()
	conn := s.pg.Connect(t, "postgres")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := rand.New(rand.NewPCG(seed, 1))
		for n := 0; ctx.Err() == nil; n++ {
			time.Sleep(2 * time.Millisecond) // a rate that a busy machine can follow
			var sql string
			switch id := r.IntN(2000); r.IntN(6) {
			case 0:
				sql = fmt.Sprintf("INSERT INTO todos VALUES (%d, 'new %d', 0) ON CONFLICT (id) DO UPDATE SET done = todos.done + 1", id, n)
			case 1:
				sql = fmt.Sprintf("UPDATE todos SET id = %d WHERE id = %d AND NOT EXISTS (SELECT FROM todos WHERE id = %d)", r.IntN(2000), id, r.IntN(2000))
			case 2:
				sql = fmt.Sprintf("DELETE FROM todos WHERE id = %d", id)
			case 3:
				sql = fmt.Sprintf("UPDATE todos SET done = done + 1, list = 'moved %d' WHERE id BETWEEN %d AND %d", n, id, id+50)
			case 4:
				sql = fmt.Sprintf("INSERT INTO todos SELECT %d + i, repeat('y', 300), 0 FROM generate_series(1, 3000) i; DELETE FROM todos WHERE id > 5000", 10000+5000*n)
			case 5:
				sql = fmt.Sprintf("UPDATE todos SET list = 'x' WHERE id = %d", id)
			}
			_, _ = conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol) // a key clash, or the server is down: no change
			if conn.IsClosed() && ctx.Err() == nil {
				if c, err := pgx.Connect(ctx, s.pg.URI("postgres")+"?sslmode=disable"); err == nil {
					conn = c
					defer c.Close(context.Background())
				}
			}
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop) // before the connection is closed
	return stop
}

const todos = publication + `CREATE TABLE todos (id int PRIMARY KEY, list text, done int);`

// TestCrash holds decision 1 and D4: the replicator dies at random moments,
// during the copy and during streaming, under load; each change arrives once.
func TestCrash(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos+`INSERT INTO todos SELECT i, repeat('row', 60), 0 FROM generate_series(1, 60000) i`)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	r := rand.New(rand.NewPCG(7, 7))
	for range 6 { // the copy
		stop := s.start("a")
		time.Sleep(time.Duration(10+r.IntN(150)) * time.Millisecond) // a random moment, not a wait
		stop()
	}
	stopLoad := writeLoad(t, s, 3)
	for range 14 {
		stop := s.start("a")
		time.Sleep(time.Duration(10+r.IntN(400)) * time.Millisecond)
		stop()
	}
	stopLoad()
	s.start("b")
	s.caughtUp(id, 20*time.Second)
	expectSame(t, s, id, conn, "todos")
	if got := s.ledger.head(id).Epoch; got < 15 {
		t.Errorf("only %d sessions", got)
	}
}

// TestNATSWiped: JetStream loses everything; the pipeline heals by itself.
func TestNATSWiped(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	stopLoad := writeLoad(t, s, 4)
	for range 2 {
		time.Sleep(300 * time.Millisecond)
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
		if err := os.RemoveAll(s.dir); err != nil {
			t.Fatal(err)
		}
		s.startNATS(s.port)
		began := time.Now()
		s.caughtUp(id, 10*time.Second)
		t.Logf("fresh %s after NATS was wiped", time.Since(began))
	}
	stopLoad()
	s.caughtUp(id, 10*time.Second)
	expectSame(t, s, id, conn, "todos")
}

// TestBatchesLost: somebody acknowledges batches without applying them.
func TestBatchesLost(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	set := func(discard bool) {
		s.ledger.mu.Lock()
		s.ledger.discard = discard
		s.ledger.mu.Unlock()
	}
	set(true)
	pgtest.Exec(t, conn, `INSERT INTO todos SELECT i, 'x', 0 FROM generate_series(1, 1000) i`)
	time.Sleep(500 * time.Millisecond)
	set(false)
	began := time.Now()
	s.caughtUp(id, 10*time.Second)
	t.Logf("fresh %s after batches were lost", time.Since(began))
	expectSame(t, s, id, conn, "todos")
}

// TestPostgresRestart: the source stops and comes back.
func TestPostgresRestart(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	stopLoad := writeLoad(t, s, 5)
	for _, mode := range []string{"fast", "immediate"} {
		time.Sleep(200 * time.Millisecond)
		s.pg.Stop(t, mode)
		s.pg.StartAgain(t)
		began := time.Now()
		s.caughtUp(id, 10*time.Second)
		t.Logf("fresh %s after a %s restart", time.Since(began), mode)
	}
	stopLoad()
	s.caughtUp(id, 10*time.Second)
	expectSame(t, s, id, s.pg.Connect(t, "postgres"), "todos")
}

// TestSilentSource: a connection that goes silent while a table is copied is
// given up, and the copy goes on behind the last row stored.
func TestSilentSource(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, publication+`CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 60000) i`)
	id := s.ledger.deploy(model.ValueOptions{}, "t")
	port, stalled := stallOnce(t, s.pg.Port, 8<<20)
	s.tweak = func(c *Config) {
		c.Connection.Postgres.Port = port
		c.Connection.Postgres.SnapshotSocketTimeout = time.Second
	}
	s.start("a")
	s.caughtUp(id, 20*time.Second)
	expectSame(t, s, id, conn, "t")
	if !stalled.Load() {
		t.Fatal("no connection went silent")
	}
	s.ledger.mu.Lock()
	applied, reported := s.ledger.streams[id].applied, s.ledger.streams[id].reported
	s.ledger.mu.Unlock()
	if applied != 60000 {
		t.Errorf("%d rows were applied: some were copied twice", applied)
	}
	if len(reported) != 1 || !strings.Contains(reported[0], "PSYNC_S1121") {
		t.Errorf("reported: %q", reported)
	}
}

// stallOnce forwards connections to a port. The first over which limit bytes
// have come from there goes silent.
func stallOnce(t *testing.T, to int, limit int) (port int, stalled *atomic.Bool) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stalled = new(atomic.Bool)
	var silent atomic.Pointer[net.Conn] // the connection that went silent
	var running sync.WaitGroup
	t.Cleanup(func() { lis.Close(); running.Wait() })
	running.Go(func() {
		for {
			client, err := lis.Accept()
			if err != nil {
				return
			}
			if given := silent.Swap(nil); given != nil {
				(*given).Close() // its owner has given it up, and connects anew
			}
			server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", to))
			if err != nil {
				client.Close()
				continue
			}
			running.Go(func() { // until the client goes
				defer server.Close()
				_, _ = io.Copy(server, client)
			})
			running.Go(func() {
				n, err := io.Copy(client, io.LimitReader(server, int64(limit)))
				if err == nil && n == int64(limit) && stalled.CompareAndSwap(false, true) {
					silent.Store(&client)
					return
				}
				defer client.Close()
				_, _ = io.Copy(client, server)
			})
		}
	})
	return lis.Addr().(*net.TCPAddr).Port, stalled
}

// TestTakeover holds D5: a second replicator waits, takes over a slot that is
// still in use, and the first one, revived, does no harm.
func TestTakeover(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	stopLoad := writeLoad(t, s, 6)
	s.start("b") // waits for the lease
	time.Sleep(700 * time.Millisecond)
	for range 3 {
		// The lease runs out although its holder lives, as if it had been paused.
		s.ledger.mu.Lock()
		was := s.ledger.streams[id].holder
		s.ledger.streams[id].holder = "somebody else"
		s.ledger.streams[id].until = time.Now()
		epoch := s.ledger.streams[id].Head.Epoch
		s.ledger.mu.Unlock()
		eventually(t, 10*time.Second, "another session after that of "+was, func() bool { return s.ledger.head(id).Epoch > epoch })
		s.caughtUp(id, 10*time.Second)
	}
	stopLoad()
	s.caughtUp(id, 10*time.Second)
	expectSame(t, s, id, conn, "todos")
}

// TestStopped: a stream that is stopped is cleaned up, with its slot.
func TestStopped(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos)
	id := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(id, 10*time.Second)
	s.ledger.mu.Lock()
	s.ledger.streams[id].State = model.Stopped
	s.ledger.signal()
	s.ledger.mu.Unlock()
	eventually(t, 10*time.Second, "the stopped stream is terminated", func() bool {
		s.ledger.mu.Lock()
		defer s.ledger.mu.Unlock()
		return s.ledger.streams[id].State == model.Terminated
	})
	var slots int
	if err := conn.QueryRow(context.Background(), `SELECT count(*) FROM pg_replication_slots`).Scan(&slots); err != nil || slots != 0 {
		t.Errorf("%d slots are left, %v", slots, err)
	}
}

// TestTwoStreams: during a deploy a second stream has its own copy and slot
// beside the first, which goes on.
func TestTwoStreams(t *testing.T) {
	s := newSuite(t)
	conn := s.pg.Connect(t, "postgres")
	pgtest.Exec(t, conn, todos+`CREATE TABLE lists (id int PRIMARY KEY, name text); INSERT INTO lists VALUES (1, 'a')`)
	first := s.ledger.deploy(model.ValueOptions{}, "todos")
	s.start("a")
	s.caughtUp(first, 10*time.Second)
	stopLoad := writeLoad(t, s, 8)
	second := s.ledger.deploy(model.ValueOptions{}, "todos", "lists")
	s.caughtUp(second, 20*time.Second)
	stopLoad()
	for _, id := range []model.StreamID{first, second} {
		s.caughtUp(id, 10*time.Second)
		expectSame(t, s, id, conn, "todos")
	}
	expectSame(t, s, second, conn, "lists")
	s.ledger.mu.Lock()
	s.ledger.streams[first].State = model.Stopped
	s.ledger.signal()
	s.ledger.mu.Unlock()
	eventually(t, 10*time.Second, "one slot is left", func() bool {
		var slots int
		err := conn.QueryRow(context.Background(), `SELECT count(*) FROM pg_replication_slots`).Scan(&slots)
		return err == nil && slots == 1
	})
	pgtest.Exec(t, conn, `DELETE FROM todos`)
	s.caughtUp(second, 10*time.Second)
	expectSame(t, s, second, conn, "todos")
}
