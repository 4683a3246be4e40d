package suites

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/e2e/harness"
)

// load writes transactions at a pace until it is stopped. The pace of all loads of a
// test together is for the slowest machine, half of it for the services built
// with -race: what is measured is recovery, not throughput. A load goes on through a restart of
// the source; a transaction whose commit was lost is simply not counted.
type load struct {
	end func() // closes what the writer looks at between two transactions
	wg  sync.WaitGroup

	mu    sync.Mutex
	done  int   // guarded by mu; committed transactions
	fatal error // guarded by mu
	t     testing.TB
}

// start runs one transaction after the other.
func start(t testing.TB, pg *harness.Postgres, pause time.Duration, transaction func(context.Context, pgx.Tx) error) *load {
	ctx, ended := t.Context(), make(chan struct{})
	l := &load{end: sync.OnceFunc(func() { close(ended) }), t: t}
	l.wg.Go(func() {
		var conn *pgx.Conn
		defer func() {
			if conn != nil {
				conn.Close(context.Background())
			}
		}()
		pace := time.NewTicker(pause)
		defer pace.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ended:
				return
			case <-pace.C:
			}
			if conn == nil || conn.IsClosed() {
				c, err := pgx.Connect(ctx, pg.URL)
				if err != nil {
					continue // the source is down; the pace keeps this from spinning
				}
				conn = c
			}
			err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return transaction(ctx, tx) })
			l.mu.Lock()
			if err == nil {
				l.done++
			} else if ctx.Err() == nil && !conn.IsClosed() && l.fatal == nil {
				l.fatal = err
			}
			l.mu.Unlock()
		}
	})
	t.Cleanup(func() { l.end(); l.wg.Wait() })
	return l
}

// committed returns the number of committed transactions so far.
func (l *load) committed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done
}

// stop ends the load and returns the number of committed transactions.
func (l *load) stop() int {
	l.t.Helper()
	l.end()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fatal != nil {
		l.t.Fatalf("load: %v", l.fatal)
	}
	return l.done
}

// startTransfers moves money between the ten accounts of user.
func startTransfers(t testing.TB, pg *harness.Postgres, user string, pause time.Duration) *load {
	return start(t, pg, pause, func(ctx context.Context, tx pgx.Tx) error {
		from, to := 1+rand.IntN(10), 1+rand.IntN(10)
		amount := rand.IntN(50)
		if _, err := tx.Exec(ctx, "UPDATE accounts SET balance = balance - $2 WHERE id = $1", fmt.Sprint(user, from), amount); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "UPDATE accounts SET balance = balance + $2 WHERE id = $1", fmt.Sprint(user, to), amount)
		return err
	})
}

// churn is what the faults run under: rows come and go, move between users, and
// change their key and right after it their owner. Each writer has its own rows.
type churn struct {
	loads []*load
}

func startChurn(t testing.TB, pg *harness.Postgres, users []string, seed uint64) *churn {
	c := &churn{}
	for writer := range 3 {
		random := rand.New(rand.NewPCG(seed, uint64(writer)))
		serial := 0
		prefix := fmt.Sprintf("churn%d-%d-", seed, writer)
		pick := func() string { return users[random.IntN(len(users))] }
		one := "(SELECT id FROM lists WHERE id LIKE $1 || '%' ORDER BY md5(id || $2) LIMIT 1)"
		c.loads = append(c.loads, start(t, pg, 25*time.Millisecond, func(ctx context.Context, tx pgx.Tx) error {
			serial++
			salt := fmt.Sprint(serial)
			var err error
			switch random.IntN(6) {
			case 0, 1:
				_, err = tx.Exec(ctx, "INSERT INTO lists(id, owner_id, name) VALUES ($1, $2, $3)", prefix+salt, pick(), "v"+salt)
			case 2:
				_, err = tx.Exec(ctx, "UPDATE lists SET name = 'v' || $2, n = n + 1 WHERE id = "+one, prefix, salt)
			case 3:
				_, err = tx.Exec(ctx, "UPDATE lists SET owner_id = $3 WHERE id = "+one, prefix, salt, pick())
			case 4: // a new key, then a new owner of the same row; the old key comes back at times
				var id, moved string
				err = tx.QueryRow(ctx, "SELECT id FROM lists WHERE id LIKE $1 || '%' ORDER BY md5(id || $2) LIMIT 1", prefix, salt).Scan(&id)
				if err == pgx.ErrNoRows {
					return nil
				}
				if err == nil {
					err = tx.QueryRow(ctx, "UPDATE lists SET id = $2 WHERE id = $1 RETURNING id", id, prefix+"k"+salt).Scan(&moved)
				}
				if err == nil {
					_, err = tx.Exec(ctx, "UPDATE lists SET owner_id = $2 WHERE id = $1", moved, pick())
				}
				if err == nil && random.IntN(3) == 0 {
					_, err = tx.Exec(ctx, "INSERT INTO lists(id, owner_id, name) VALUES ($1, $2, 'takes the old key')", id, pick())
				}
			case 5:
				_, err = tx.Exec(ctx, "DELETE FROM lists WHERE id = "+one, prefix, salt)
			}
			return err
		}))
	}
	return c
}

// stop ends every writer and returns the number of committed transactions.
func (c *churn) stop() int {
	sum := 0
	for _, l := range c.loads {
		sum += l.stop()
	}
	return sum
}

// startCounting adds one to one of the five counters in each transaction.
func startCounting(t testing.TB, pg *harness.Postgres) *load {
	return start(t, pg, 20*time.Millisecond, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE counters SET n = n + 1 WHERE id = 'count' || $1::int", 1+rand.IntN(5))
		return err
	})
}
