package bucketstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/pebble"
	"github.com/sluicesync/sluice/services/bucket-store/internal/postgres"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// CopyProgress is how far a copy is.
type CopyProgress = store.CopyProgress

// Copied is what a copy has brought.
type Copied struct {
	From, To string   // where
	Streams  []string // name, state and position
	Items    uint64   // records, parameters, write checkpoints, operations
	Took     time.Duration
}

// Copy copies the storage of from, on which no bucket-store may run, into that
// of to, in which nothing may be. It is there as a whole or not at all: what a
// copy that was cut short has left is removed by the next, and no bucket-store
// runs on it. progress is called often.
func Copy(ctx context.Context, from, to Config, log *slog.Logger, progress func(CopyProgress)) (*Copied, error) {
	begin := time.Now()
	c := &Copied{}
	var err error
	if c.From, err = place(&from); err != nil {
		return nil, err
	}
	if c.To, err = place(&to); err != nil {
		return nil, err
	}
	if c.From == c.To {
		return nil, errs.New(errs.S2001, "both configs name the storage %s", c.From)
	}
	err = c.copy(ctx, from, to, log, func(p CopyProgress) {
		c.Items = p.Done
		progress(p)
	})
	if err != nil {
		return nil, err
	}
	c.Took = time.Since(begin)
	return c, nil
}

// place makes cfg valid, and names where its storage is.
func place(cfg *Config) (_ string, err error) {
	if err := cfg.Validate(); err != nil {
		return "", err
	}
	if m := cfg.MongoDB; m != nil {
		return "", errs.New(errs.S2001, "storage on MongoDB (%s) is neither copied nor copied to: what is on it is copied from the source anew", m.Connection.Redacted())
	}
	if p := cfg.Postgres; p != nil {
		return fmt.Sprintf("schema %s of %s", p.options(nil).Place(), p.Connection.Redacted()), nil
	}
	cfg.Dir, err = filepath.Abs(cfg.Dir)
	return cfg.Dir, err
}

func (c *Copied) copy(ctx context.Context, from, to Config, log *slog.Logger, progress func(CopyProgress)) (err error) {
	eg, ctx := errgroup.WithContext(ctx)
	ctx, done := context.WithCancel(ctx)
	defer func() {
		done()
		if waited := eg.Wait(); waited != nil { // what it ended for, if it was lost
			err = waited
		}
	}()
	source, err := c.source(ctx, from, eg, log)
	if err != nil {
		return err
	}
	defer func() {
		done()
		err = errors.Join(err, source.Close())
	}()
	streams, err := source.Streams(ctx)
	if err != nil {
		return err
	}
	for i := range streams {
		if s := &streams[i]; s.State != model.Terminated {
			c.Streams = append(c.Streams, s.Name+" "+s.State.String()+" at "+string(s.Head.Applied.Position))
		}
	}
	if len(c.Streams) == 0 {
		return errs.New(errs.S2001, "%s has no replication streams: there is nothing to copy", c.From)
	}
	target, err := c.target(ctx, to, eg, log)
	if err != nil {
		return err
	}
	defer func() {
		done()
		err = errors.Join(err, target.Close())
	}()
	if err := store.Copy(ctx, source, target, progress); err != nil {
		return fmt.Errorf("copy %s to %s: %w", c.From, c.To, err)
	}
	return nil
}

// exported is an open store.
type exported interface {
	store.Export
	Close() error
}

// source opens the storage to copy, for this process alone.
func (c *Copied) source(ctx context.Context, cfg Config, eg *errgroup.Group, log *slog.Logger) (exported, error) {
	if cfg.Postgres == nil {
		if _, err := os.Stat(cfg.Dir); err != nil {
			return nil, errs.New(errs.S2001, "there is no storage to copy: %v", err)
		}
		s, err := pebble.Open(cfg.Dir, pebble.Options{CacheBytes: cfg.CacheBytes, Log: log})
		if err != nil {
			return nil, opening(err)
		}
		return s, nil
	}
	s, err := postgres.Open(ctx, cfg.Postgres.Connection, cfg.Postgres.options(log))
	if err != nil {
		return nil, opening(err)
	}
	if err := own(ctx, s, c.From, eg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// target begins to fill the storage of cfg.
func (c *Copied) target(ctx context.Context, cfg Config, eg *errgroup.Group, log *slog.Logger) (store.Import, error) {
	if cfg.Postgres == nil {
		to, err := pebble.NewImport(cfg.Dir, pebble.Options{CacheBytes: cfg.CacheBytes, Log: log})
		if errors.Is(err, pebble.ErrExists) {
			return nil, errs.New(errs.S2001, "%v: move it away, or copy into another folder (storage.path)", err)
		}
		if err != nil {
			return nil, opening(err)
		}
		return to, nil
	}
	o := cfg.Postgres.options(log)
	o.Importing = true
	s, err := postgres.Open(ctx, cfg.Postgres.Connection, o)
	if err != nil {
		return nil, opening(err)
	}
	if err := own(ctx, s, c.To, eg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	to, err := s.Import(ctx)
	if errors.Is(err, postgres.ErrExists) {
		err = errs.New(errs.S2001, "%v: copy into another schema (storage.schema)", err)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return to, nil
}

// own makes this process the owner of a storage, at once or not at all, and ends
// the group if it is not any more. The store gives it back when it is closed.
func own(ctx context.Context, s *postgres.Store, where string, eg *errgroup.Group) error {
	asking, refuse := context.WithCancelCause(ctx)
	defer refuse(nil)
	owner, err := s.Own(asking, "", func(err error) { refuse(err) })
	if err != nil {
		if err = context.Cause(asking); errors.Is(err, store.ErrOwned) {
			err = errs.New(errs.S2402, "%s is in use by a bucket-store, or by another copy: stop it", where)
		}
		return err
	}
	eg.Go(func() error { return owner.Keep(ctx) })
	return nil
}
