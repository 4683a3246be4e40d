package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pgtest"
	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func session(t testing.TB, pg *pgtest.Server) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, pg.URL.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func open(t testing.TB, c *config.Postgres, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// owning opens a store that may be written, at once if no other is open.
func owning(t testing.TB, c *config.Postgres, o Options) *Store {
	t.Helper()
	s := open(t, c, o)
	own(t, s)
	return s
}

func own(t testing.TB, s *Store) {
	t.Helper()
	if _, err := s.own.Exec(t.Context(), `UPDATE owner SET until = '-infinity'`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Own(t.Context(), "", func(err error) { t.Log(err) }); err != nil {
		t.Fatal(err)
	}
}

// breaker breaks the connection of the next transaction: when it has begun, or
// when it is committed and only its answer is to come.
type breaker struct{ after atomic.Pointer[string] }

func (b *breaker) set(persisted bool) {
	after := "BEGIN\x00"
	if persisted {
		after = "COMMIT\x00"
	}
	b.after.Store(&after)
}

type brokenConn struct {
	net.Conn
	*breaker
}

func (c brokenConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if after := c.after.Load(); after != nil && bytes.Contains(p[:n], []byte(*after)) && c.after.CompareAndSwap(after, nil) {
		c.Close()
		return 0, errors.New("the connection is broken")
	}
	return n, err
}

// importing begins an import into the schema of o, and returns what opens it.
func importing(t testing.TB, c *config.Postgres, o Options) (store.Import, func() (store.Store, error)) {
	t.Helper()
	into := o
	into.Importing = true
	to, err := owning(t, c, into).Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return to, func() (store.Store, error) {
		s, err := Open(t.Context(), c, o)
		if err != nil {
			return nil, err
		}
		own(t, s)
		return s, nil
	}
}

func TestStore(t *testing.T) {
	pg := pgtest.Start(t)
	n := 0
	for name, o := range map[string]Options{
		"": {},
		// Every page is short, everything is copied, records one by one.
		"tiny": {MaxConns: 3, RecordBytes: 1, pageOps: 2, pageBytes: 1, copyRows: 1, lookupStep: 2},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Instance {
				for _, long := range []string{"/Meanwhile", "/LikeTheModel", "/ManyBuckets", "/LargeBucket"} {
					if name == "tiny" && strings.HasSuffix(t.Name(), long) {
						t.Skip("a read in many pages is ended by a compaction between them (TestPages), and takes long")
					}
				}
				var b breaker
				n++
				o := o
				o.wrap = func(c net.Conn) net.Conn { return brokenConn{c, &b} }
				o.Schema = fmt.Sprintf("s \"%d'$\\ü;--", n)
				s := owning(t, pg.Config(), o)
				t.Cleanup(func() { s.Close() })
				other := o
				other.Schema += " copy"
				return storetest.Instance{Store: s, Small: name == "tiny", Survives: true, Break: b.set, Import: func() (store.Import, func() (store.Store, error)) {
					return importing(t, pg.Config(), other)
				}, Reopen: func() store.Store {
					b.after.Store(nil)
					s.Close()
					s = owning(t, pg.Config(), o)
					return s
				}}
			})
		})
	}
}
