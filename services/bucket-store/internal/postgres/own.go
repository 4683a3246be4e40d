package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/kit/config"
)

// Owner is the right to be the one process that writes. It is an advisory lock
// of one connection's session: when the process dies, the server gives it to the
// next at once; when its machine dies, as soon as the server notices. Each owner
// raises the epoch, so that one that lost its connection knows whether another
// was there since. (What a former owner may still do then is fenced off by the
// epochs of streams, D5.)
type Owner struct {
	config *config.Postgres
	schema string
	conn   *pgx.Conn // nil while it is lost
	epoch  int64
}

const (
	// ownInterval is how often a process that waits asks for the lock.
	ownInterval = 500 * time.Millisecond
	// keepInterval is how often an owner looks whether it still is one.
	keepInterval = time.Second
	// keepTimeout bounds one such look.
	keepTimeout = 5 * time.Second
)

var (
	// ErrStandby: another process is the owner.
	ErrStandby = errors.New("another bucket-store has this storage: standing by to take over")
	// ErrNotOwner: another process became the owner.
	ErrNotOwner = errors.New("another bucket-store took this storage over")
)

// Own waits until this process is the owner. waits is called with the reason of
// each wait.
func (s *Store) Own(ctx context.Context, c *config.Postgres, waits func(error)) (*Owner, error) {
	o := &Owner{config: c, schema: s.options.Schema}
	for {
		err := o.take(ctx, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `UPDATE owner SET epoch = epoch + 1 RETURNING epoch`).Scan(&o.epoch)
		})
		if err == nil {
			return o, nil
		}
		waits(err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(ownInterval):
		}
	}
}

// take gets the lock, and runs within.
func (o *Owner) take(ctx context.Context, within func(pgx.Tx) error) error {
	p, err := connConfig(o.config, o.schema)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, p)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var got bool
	err = conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, advisory(o.schema, "owner")).Scan(&got)
	if err == nil && !got {
		err = ErrStandby
	}
	if err == nil {
		err = pgx.BeginFunc(ctx, conn, within)
	}
	if err != nil {
		return errors.Join(err, ignored(conn.Close(context.WithoutCancel(ctx))))
	}
	o.conn = conn
	return nil
}

// Keep looks after the lock until ctx ends (nil) or another process has become
// the owner (ErrNotOwner). lost is called when the connection is lost, and with
// nil when it is there again.
func (o *Owner) Keep(ctx context.Context, lost func(error)) error {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := o.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrNotOwner):
			return err
		case err != nil:
			lost(err)
		default:
			lost(nil)
		}
	}
}

// look makes sure that the lock is there.
func (o *Owner) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	if o.conn != nil {
		if err := o.conn.Ping(ctx); err != nil {
			o.conn.Close(ctx)
			o.conn = nil
			return fmt.Errorf("the connection that holds the storage is lost: %w", err)
		}
		return nil
	}
	err := o.take(ctx, func(tx pgx.Tx) error {
		var epoch int64
		if err := tx.QueryRow(ctx, `SELECT epoch FROM owner`).Scan(&epoch); err != nil {
			return err
		}
		if epoch != o.epoch {
			return ErrNotOwner
		}
		return nil
	})
	// The server may not have noticed the end of the former session: then the
	// lock is ours still, or another one's already, and the next look tells.
	return err
}

// Release gives the lock back.
func (o *Owner) Release() error {
	if o.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	if err := o.conn.Close(ctx); err != nil {
		return fmt.Errorf("give the storage back: %w", err)
	}
	return nil
}
