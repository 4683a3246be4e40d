package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

const (
	// ownTime is how long an owner that does not renew its right stays one, by
	// the server's clock.
	ownTime = 3 * time.Second
	// ownInterval is how often a process that waits looks whether there is one.
	ownInterval = 250 * time.Millisecond
	// keepInterval is how often the owner renews its right.
	keepInterval = 750 * time.Millisecond
	// ownTimeout bounds one such look, and one renewal.
	ownTimeout = 5 * time.Second
	// ownConns is how many connections there are for it, so that neither reads
	// nor writes hold it up.
	ownConns = 2
)

// Names of sessions in pg_stat_activity.
const readerName = "sluice bucket-store"

func writerName() string { return readerName + " writer " + rand.Text()[:16] }

// notOwner is the SQLSTATE of the function fence.
const notOwner = "SL001"

// owner is a store.Owner.
type owner struct {
	s     *Store
	epoch int64

	mu       sync.Mutex // held while the right is set
	released bool       // guarded by mu
}

// begin begins a transaction that only the owner may commit.
func (s *Store) begin(b *pgx.Batch) {
	b.Queue(`BEGIN`)
	b.Queue(`SELECT fence($1, $2)`, s.ownerLock(), s.epoch.Load())
}

func (s *Store) ownerLock() int64 { return advisory(s.options.Schema, "owner") }

// fenced tells a write that was refused by fence.
func fenced(err error) error {
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Code == notOwner {
		return store.ErrNotOwner
	}
	return err
}

// Own waits until this process is the owner.
func (s *Store) Own(ctx context.Context, address string, waits func(error)) (store.Owner, error) {
	for {
		epoch, err := s.take(ctx, address)
		if err == nil {
			s.write.Reset()
			s.epoch.Store(epoch)
			o := &owner{s: s, epoch: epoch}
			s.owner.Store(o)
			return o, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		waits(err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(ownInterval):
		}
	}
}

// take makes this process the owner if there is none.
func (s *Store) take(ctx context.Context, address string) (epoch int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	var owned bool
	if err := s.own.QueryRow(ctx, `SELECT until >= clock_timestamp() FROM owner`).Scan(&owned); err != nil {
		return 0, fmt.Errorf("look for the owner: %w", err)
	}
	if owned {
		return 0, store.ErrOwned
	}
	err = pgx.BeginFunc(ctx, s.own, func(tx pgx.Tx) error {
		var former string
		err := tx.QueryRow(ctx, `SELECT holder FROM owner WHERE until < clock_timestamp() FOR UPDATE`).Scan(&former)
		if errors.Is(err, pgx.ErrNoRows) {
			return store.ErrOwned // another one was quicker
		}
		if err != nil {
			return err
		}
		// What the former owner has begun may be open for as long as it is
		// stalled, with its locks: that ends here.
		if former != s.writer {
			if _, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()`, former); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, s.ownerLock()); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `UPDATE owner SET epoch = epoch + 1, holder = $1, address = $2, until = clock_timestamp() + $3::interval RETURNING epoch`,
			s.writer, address, ownTime).Scan(&epoch)
	})
	if err != nil && !errors.Is(err, store.ErrOwned) {
		err = fmt.Errorf("become the owner: %w", err)
	}
	return epoch, err
}

// Keep renews the right until ctx ends or another process has it.
func (o *owner) Keep(ctx context.Context) error {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for {
		switch err := o.set(ctx, ownTime); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrNotOwner):
			return err
		case err != nil:
			o.s.options.Log.Warn("the right to write to the storage was not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// set makes the right end after that time; a negative one gives it back.
func (o *owner) set(ctx context.Context, after time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.released {
		return store.ErrNotOwner
	}
	o.released = after < 0
	ctx, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	tag, err := o.s.own.Exec(ctx, `UPDATE owner SET until = clock_timestamp() + $2::interval WHERE epoch = $1`, o.epoch, after)
	if err != nil {
		return fmt.Errorf("set the end of ownership: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return store.ErrNotOwner
	}
	return nil
}

// Release gives the right back.
func (o *owner) Release() error {
	// From now on nothing is written with it, even if it cannot be given back.
	if !o.s.epoch.CompareAndSwap(o.epoch, 0) {
		return nil // given back before
	}
	o.s.write.Reset() // the next owner may have ended the sessions
	if err := o.set(context.Background(), -time.Microsecond); err != nil && !errors.Is(err, store.ErrNotOwner) {
		return fmt.Errorf("give the storage back: %w", err)
	}
	return nil
}

// Overview reads owner, catalog and then heads, in one round trip.
func (s *Store) Overview(ctx context.Context) (store.Overview, error) {
	ctx, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	v := store.Overview{Heads: map[model.StreamID]model.StreamHead{}}
	var b pgx.Batch
	b.Queue(`SELECT epoch, address, until >= clock_timestamp(), version FROM owner, catalog`).QueryRow(func(row pgx.Row) error {
		return row.Scan(&v.Epoch, &v.Address, &v.Owned, &v.Catalog)
	})
	b.Queue(`SELECT stream, `+headColumns+` FROM heads WHERE state <> $1`, int16(model.Terminated)).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var id model.StreamID
			h, err := readHead(rows, &id)
			if err != nil {
				return err
			}
			v.Heads[id] = h.StreamHead
		}
		return rows.Err()
	})
	if err := s.own.SendBatch(ctx, &b).Close(); err != nil {
		return v, fmt.Errorf("read the overview: %w", err)
	}
	if !v.Owned {
		v.Address = ""
	}
	return v, nil
}
