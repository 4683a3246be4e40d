package suites

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/e2e/harness"
	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/model"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// storeNames are the bucket-stores of TestStoreReplicas.
var storeNames = []string{harness.BucketStore, harness.BucketStore + "-2", harness.BucketStore + "-3"}

// TestStoreReplicas: of three bucket-stores on one database the one that writes
// is killed, and paused and resumed, under load. Another has committed within
// 5 s; no client's stream ends; what was written is in the storage once; and each
// of them tells of a commit within 100 ms.
func TestStoreReplicas(t *testing.T) {
	w := newWorld(t, harness.Suite, "", storage("postgresql"), func(o *harness.Options) { o.Stores = len(storeNames) })
	clients := map[string]*harness.Client{}
	var same []harness.Same
	for n, url := range w.sluice.URLs() { // a client at each gateway
		user := []string{"a", "b"}[n]
		c := w.client(t, user, transport([]string{"http", "websocket"}[n]), func(o *harness.ClientOptions) { o.Endpoint = url })
		c.FirstSync(time.Minute)
		clients[user] = c
		same = append(same, announcements(c), counters(c, user))
	}
	connects := map[string]int{}
	for user, c := range clients {
		connects[user] = c.Stats().Connects
	}
	for _, name := range storeNames {
		w.reads(t, name)
	}
	s := openStorage(t, w.pg)
	n := 0
	l := start(t, w.pg, 20*time.Millisecond, func(ctx context.Context, tx pgx.Tx) error {
		n++
		_, err := tx.Exec(ctx, "INSERT INTO announcements VALUES ($1, $2)", fmt.Sprintf("row %d", n), "once")
		if err == nil {
			_, err = tx.Exec(ctx, "INSERT INTO counters VALUES ($1, $2, $3)", fmt.Sprintf("c%d", n), []string{"a", "b"}[n%2], n)
		}
		return err
	})
	for _, name := range storeNames {
		w.fresh(t, name, s.stream())
	}
	for round, x := range []struct {
		name       string
		end, begin func(string)
	}{
		{"killed", w.sluice.Kill, w.sluice.Start},
		{"paused", w.sluice.Pause, w.sluice.Resume},
		{"killed", w.sluice.Kill, w.sluice.Start},
		{"paused", w.sluice.Pause, w.sluice.Resume},
	} {
		former, epoch := w.owner(t), s.owner().epoch
		x.end(former)
		begin := time.Now()
		var first owned // what the next owner found
		for after := first; first.persisted == 0 || after.persisted == first.persisted; time.Sleep(10 * time.Millisecond) {
			if after = s.owner(); after.epoch > epoch && first.persisted == 0 {
				first = after
			}
			if time.Since(begin) > soon {
				t.Fatalf("round %d: %s was %s, and nobody commits; found %+v, then %+v", round, former, x.name, first, after)
			}
		}
		took := time.Since(begin)
		if took > harness.Patience(5*time.Second) {
			t.Errorf("round %d: %s was %s, and the next commit came after %s", round, former, x.name, took)
		}
		arrived := w.arrives(t, fmt.Sprintf("mark %d", round), clients)
		t.Logf("round %d: %s was %s, the next commit came after %s, and a row written then was with the clients %s later",
			round, former, x.name, took.Round(time.Millisecond), arrived.Round(time.Millisecond))
		x.begin(former)
		w.reads(t, former)
		if next := w.owner(t); next == former {
			t.Errorf("round %d: %s writes again", round, former)
		}
	}
	written := l.stop()
	took := harness.Converged(t, w.pg, time.Minute, same...)
	for user, c := range clients {
		c.Sound()
		if got := c.Stats().Connects; got != connects[user] {
			t.Errorf("client %s: its stream ended %d times", user, got-connects[user])
		}
	}
	t.Logf("%d transactions; equal %s after the last", written, took.Round(time.Millisecond))
	s.once(t, w.pg)
}

// owner waits until one bucket-store alone says that it writes, and returns its name.
func (w *world) owner(t *testing.T) (name string) {
	t.Helper()
	harness.Eventually(t, soon, "one bucket-store writes", func() error {
		var writing []string
		for _, name := range storeNames {
			v, err := w.sluice.Metric(name, "sluice_store_owner")
			if err != nil {
				return err
			}
			if v == 1 {
				writing = append(writing, name)
			}
		}
		if len(writing) != 1 {
			return fmt.Errorf("%v do", writing)
		}
		name = writing[0]
		return nil
	})
	return name
}

// reads waits until a bucket-store serves reads.
func (w *world) reads(t *testing.T, name string) {
	t.Helper()
	harness.Eventually(t, soon, name+" serves reads", func() error {
		ready, err := w.sluice.Ready(name)
		if err == nil {
			err = harness.Equal(ready, true)
		}
		return err
	})
}

// fresh holds how soon a bucket-store tells of commits.
func (w *world) fresh(t *testing.T, name string, stream model.StreamID) {
	t.Helper()
	conn, err := rpc.Dial(w.sluice.Address(name), certificate.BucketStore, service.Env{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	heads, err := pb.NewReplicationClient(conn).Committed(ctx, &pb.CommittedRequest{Stream: int64(stream)})
	if err != nil {
		t.Fatal(err)
	}
	var ages []time.Duration
	for range 31 {
		r, err := heads.Recv()
		if err != nil {
			t.Fatalf("%s ends what it tells of commits, after %d: %v", name, len(ages), err)
		}
		ages = append(ages, time.Since(time.UnixMicro(r.GetHead().GetStoredAt())))
	}
	ages = ages[1:] // the first one is of any age
	slices.Sort(ages)
	median := ages[len(ages)/2]
	if median > harness.Patience(100*time.Millisecond) {
		t.Errorf("%s tells of half of the commits later than after %s", name, median)
	}
	t.Logf("%s tells of commits after %s (median), %s (longest)", name, median.Round(time.Millisecond), ages[len(ages)-1].Round(time.Millisecond))
}

// arrives waits until a row that is written now is with every client.
func (w *world) arrives(t *testing.T, id string, clients map[string]*harness.Client) time.Duration {
	t.Helper()
	w.pg.Exec(fmt.Sprintf("INSERT INTO announcements VALUES ('%s', 'once')", id))
	return harness.Eventually(t, soon, id+" is with every client", func() error {
		for user, c := range clients {
			rows, err := c.Rows("SELECT count(*) FROM announcements WHERE id = ?", id)
			if err == nil {
				err = harness.Equal(rows[0], "1")
			}
			if err != nil {
				return fmt.Errorf("client %s: %w", user, err)
			}
		}
		return nil
	})
}

// stored is a session in the database that the storage is in.
type stored struct {
	t    *testing.T
	conn *pgx.Conn
}

func openStorage(t *testing.T, pg *harness.Postgres) stored {
	t.Helper()
	u, err := url.Parse(pg.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/sluice_storage"
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return stored{t, conn}
}

// stream is the one that there is.
func (s stored) stream() (id model.StreamID) {
	s.t.Helper()
	if err := s.conn.QueryRow(s.t.Context(), `SELECT stream FROM sluice.heads`).Scan(&id); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// owned is what the storage says of its owner, and the last op that is in it.
type owned struct{ epoch, persisted int64 }

func (s stored) owner() (v owned) {
	s.t.Helper()
	if err := s.conn.QueryRow(s.t.Context(), `SELECT o.epoch, h.persisted FROM sluice.owner o, sluice.heads h`).Scan(&v.epoch, &v.persisted); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// once holds D4: each row, inserted once and not touched since, is in the storage
// as one op.
func (s stored) once(t *testing.T, source *harness.Postgres) {
	t.Helper()
	rows, err := s.conn.Query(t.Context(), fmt.Sprintf(`SELECT convert_from(data, 'UTF8') FROM sluice.ops_%d WHERE data IS NOT NULL ORDER BY 1`, s.stream()))
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	want, err := source.Rows("SELECT (SELECT count(*) FROM announcements) + (SELECT count(*) FROM counters)")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(len(all)); got != strings.Join(want, "") {
		var twice []string
		for i := range all {
			if i > 0 && all[i] == all[i-1] {
				twice = append(twice, all[i])
			}
		}
		t.Errorf("D4: %s ops for %s rows; %d twice: %.1000q", got, want, len(twice), twice)
	}
}
