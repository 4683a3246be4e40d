package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// deploy makes a stream with a session.
func deploy(t testing.TB, s *Store) (model.StreamID, model.StreamHead) {
	t.Helper()
	made, err := s.Change(t.Context(), func([]model.Stream) store.Change { return store.Change{New: &model.Stream{State: model.Active}} })
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.OpenSession(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	return made.ID, head
}

// next is a commit on head of one PUT of row n in bucket "b", checksum 1.
func next(id model.StreamID, head model.StreamHead, n int) *ledger.Commit {
	op := head.Persisted + 1
	c := &ledger.Commit{Stream: id, Previous: head.Applied, PreviousOp: head.Persisted, Head: head, Published: true,
		Buckets: []ledger.BucketChange{{Bucket: "b", Checksum: 1, Count: 1, First: op, Last: op}},
		Ops:     []ledger.BucketOp{{Op: model.Op{ID: op, Kind: model.OpPut, Checksum: 1, Key: key(n), ObjectType: "t", ObjectID: strconv.Itoa(n), Data: "{}"}}},
		Rows:    []ledger.RowWrite{{Key: key(n), Record: &ledger.Record{Buckets: []ledger.Membership{{Bucket: "b", ObjectType: "t", ObjectID: strconv.Itoa(n)}}}}},
	}
	c.Head.Applied = model.Cursor{Position: model.Position(fmt.Sprintf("%08d", op))}
	c.Head.Persisted = op
	c.Head.Checkpoint = model.Checkpoint{Op: op, Position: c.Head.Applied.Position}
	return c
}

func key(n int) model.RowKey {
	return model.RowKey{Table: model.TableID{1}, Row: model.RowID{byte(n >> 8), byte(n)}}
}

// whole holds that the bucket has ops 1 to n, once each (D2, D7).
func whole(t *testing.T, s *Store, id model.StreamID, n model.OpID) {
	t.Helper()
	last := model.OpID(0)
	for op, err := range s.Ops(t.Context(), id, "b", 0, n+10) {
		if err != nil || op.ID != last+1 {
			t.Fatalf("op %s after %s: %v", op.ID, last, err)
		}
		last = op.ID
	}
	sums, err := s.Checksums(t.Context(), id, n, []string{"b"})
	if err != nil || last != n || sums[0] != (model.BucketState{Checksum: model.Checksum(n), Count: uint64(n)}) {
		t.Errorf("%s ops, checksums %+v, want %s: %v", last, sums, n, err)
	}
}

// wire is a network that can be cut.
type wire struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn // of clients; guarded by mu
	wg    sync.WaitGroup
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l}
	w.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, client)
			w.mu.Unlock()
			w.wg.Go(func() { io.Copy(server, client); time.AfterFunc(3*time.Second, func() { server.Close() }) })
			w.wg.Go(func() { io.Copy(client, server); client.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); w.cut(); w.wg.Wait() })
	return w
}

// cut ends all connections for the clients; the server notices later.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

// TestAnswerLost breaks the connection while the server commits, so that the
// commit happens or not after Commit has failed: Head tells which.
func TestAnswerLost(t *testing.T) {
	pg := pgtest.Start(t)
	w := newWire(t, pg.URL.Host)
	c := pg.Config()
	_, port, _ := net.SplitHostPort(w.Addr().String())
	c.Port, _ = strconv.Atoi(port)
	s := owning(t, c, Options{})
	defer s.Close()
	id, head := deploy(t, s)
	admin := session(t, pg)
	exec := func(sql string) {
		t.Helper()
		if _, err := admin.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	// The driver asks for cancellations when its connection breaks: here they come too late.
	exec(`CREATE FUNCTION sluice.nap() RETURNS trigger LANGUAGE plpgsql AS $$
		DECLARE
		  finish timestamptz := clock_timestamp() + '1 s';
		BEGIN
		  WHILE clock_timestamp() < finish LOOP
		    BEGIN
		      PERFORM pg_sleep(0.5);
		    EXCEPTION WHEN query_canceled THEN
		      NULL;
		    END;
		  END LOOP;
		  RETURN NULL;
		END $$`)
	for name, x := range map[string]struct {
		broken func()
		stored model.OpID
	}{
		"cut":        {w.cut, 1},
		"terminated": {func() { exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'`) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			exec(`CREATE CONSTRAINT TRIGGER nap AFTER UPDATE ON sluice.heads DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sluice.nap()`)
			failed := make(chan error, 1)
			go func() { failed <- s.Commit(context.Background(), next(id, head, 1)) }()
			for napping := false; !napping; {
				if err := admin.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')`).Scan(&napping); err != nil {
					t.Fatal(err)
				}
			}
			x.broken()
			if err := <-failed; err == nil {
				t.Fatal("the commit was answered")
			}
			var found model.StreamHead
			err := errors.New("not asked")
			for range 10 { // connections that were cut are found out one by one
				if found, err = s.Head(t.Context(), id); err == nil {
					break
				}
			}
			if err != nil || found.Persisted != head.Persisted+x.stored {
				t.Fatalf("head %+v after %s, want %d more: %v", found, head.Persisted, x.stored, err)
			}
			exec(`DROP TRIGGER nap ON sluice.heads`)
			again := next(id, head, 1)
			var moved *store.MovedError
			if err := s.Commit(t.Context(), again); x.stored > 0 && !errors.As(err, &moved) || x.stored == 0 && err != nil {
				t.Errorf("the same commit again: %v", err)
			}
			if head, err = s.Head(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			whole(t, s, id, head.Persisted)
		})
	}
}

// TestRestarts crashes the server while commits go on.
func TestRestarts(t *testing.T) {
	pg := pgtest.Start(t)
	s := owning(t, pg.Config(), Options{})
	defer s.Close()
	id, head := deploy(t, s)
	var committed, failures int
	crashed := make(chan struct{})
	go func() {
		defer close(crashed)
		for range 2 {
			time.Sleep(300 * time.Millisecond) // commits go on meanwhile; how many does not matter
			if err := pg.Crash(); err != nil {
				t.Error(err)
			}
			if err := pg.Up(); err != nil {
				t.Error(err)
			}
		}
	}()
	for over := false; !over; {
		select {
		case <-crashed:
			over = true
		default:
		}
		c := next(id, head, committed%300)
		err := s.Commit(t.Context(), c)
		if err == nil {
			head = c.Head
			committed++
			continue
		}
		failures++
		for {
			found, err := s.Head(t.Context(), id)
			if err != nil {
				time.Sleep(10 * time.Millisecond) // the writer pauses as well
				continue
			}
			if found != head && found != c.Head {
				t.Fatalf("head %+v, neither that before the commit nor after it", found)
			}
			head = found
			break
		}
	}
	if failures == 0 {
		t.Error("no commit failed")
	}
	whole(t, s, id, head.Persisted)
}

// TestPoolExhausted has more readers than connections, each in the middle of a
// bucket: none waits for another, and commits go on.
func TestPoolExhausted(t *testing.T) {
	pg := pgtest.Start(t)
	s := owning(t, pg.Config(), Options{MaxConns: 3, pageOps: 5})
	defer s.Close()
	id, head := deploy(t, s)
	for n := range 20 {
		c := next(id, head, n)
		if err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		head = c.Head
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 30 {
		more, stop := iter.Pull2(s.Ops(ctx, id, "b", 0, head.Persisted))
		defer stop()
		for range 7 {
			if _, err, _ := more(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if _, err := s.Checksums(ctx, id, head.Persisted, []string{"b"}); err != nil {
				t.Error(err)
			}
		})
	}
	c := next(id, head, 21)
	if err := s.Commit(ctx, c); err != nil {
		t.Error(err)
	}
	wg.Wait()
	whole(t, s, id, c.Head.Persisted)
}

// TestPages: a CLEAR between two pages of a read is no matter if it is of what
// was read, and an error if it is of what was not.
func TestPages(t *testing.T) {
	pg := pgtest.Start(t)
	s := owning(t, pg.Config(), Options{pageOps: 4})
	defer s.Close()
	id, head := deploy(t, s)
	for range 12 {
		c := next(id, head, 1)
		if err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		head = c.Head
	}
	for _, x := range []struct {
		clear model.OpID
		last  model.OpID
		want  error
	}{{3, 12, nil}, {8, 6, errCompacted}} {
		last, err := model.OpID(0), error(nil)
		for op, fault := range s.Ops(t.Context(), id, "b", 0, 12) {
			if err = fault; err != nil {
				break
			}
			if last == 0 { // the first page is read
				r := store.Replacement{Bucket: "b", Checkpoint: 12, ClearTo: x.clear}
				for m := op.ID + 1; m <= x.clear; m++ {
					r.Moves = append(r.Moves, store.Move{ID: m, Target: 12})
				}
				if op.Kind == model.OpPut {
					r.Moves = append(r.Moves, store.Move{ID: op.ID, Target: 12})
				}
				if _, err := s.Replace(t.Context(), id, r); err != nil {
					t.Fatal(err)
				}
			}
			last = op.ID
		}
		if last != x.last || !errors.Is(err, x.want) {
			t.Errorf("clear to %s: read up to %s, %v", x.clear, last, err)
		}
	}
}
