package bucketstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/services/bucket-store/internal/follow"
	"github.com/sluicesync/sluice/services/bucket-store/internal/forward"
	"github.com/sluicesync/sluice/services/bucket-store/internal/mongodb"
	"github.com/sluicesync/sluice/services/bucket-store/internal/postgres"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// openInterval is how often a database that cannot be reached is tried.
const openInterval = time.Second

// againPause is how long one that has lost the storage leaves it to others.
const againPause = 100 * time.Millisecond

// runPostgres serves on a database, which other processes may have open too.
func runPostgres(ctx context.Context, cfg Config, conns Conns, env service.Env) error {
	p := cfg.Postgres
	return runShared(ctx, cfg, p.Connection.Redacted(), conns, env, func() (store.Shared, error) {
		return postgres.Open(ctx, p.Connection, p.options(env.Log))
	})
}

// runMongoDB is the same on the other database.
func runMongoDB(ctx context.Context, cfg Config, conns Conns, env service.Env) error {
	m := cfg.MongoDB
	return runShared(ctx, cfg, m.Connection.Redacted(), conns, env, func() (store.Shared, error) {
		return mongodb.Open(ctx, m.Connection, m.options(env.Log))
	})
}

// runShared serves on a storage that other processes may have open: reads at
// once, and writes while this process is the owner. Until then, and after it,
// calls that write go to the owner.
func runShared(ctx context.Context, cfg Config, name string, conns Conns, env service.Env, open func() (store.Shared, error)) (err error) {
	env.Health.Start()
	s, err := openShared(ctx, name, env, open)
	if s == nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	n, err := newNode(cfg, s, conns, env)
	if err != nil {
		return err
	}
	defer n.metrics.unregister()
	var owns atomic.Bool
	router := forward.New(func(address string) (forward.Conn, error) { return rpc.DialPeer(address, env) })
	defer router.Close()
	address := advertised(cfg.Advertise, conns.Listener)
	f := follow.New(follow.Options{
		Store: s, NATS: conns.NATS, Catalog: n.catalog.Wake, Ready: env.Health.SetReady, Log: env.Log,
		Owner: func(v store.Overview) {
			if v.Address == address {
				v.Address = "" // it is not to call itself
			}
			if err := router.There(v.Epoch, v.Address); err != nil {
				env.Log.Warn("the owner of the storage cannot be called", "address", v.Address, "error", err)
			}
		},
	})
	n.api.Heads = f
	if err := n.metrics.add(sharedMetrics(f, &owns, time.Now)...); err != nil {
		return err
	}
	eg, ctx := errgroup.WithContext(ctx)
	defer env.Health.SetReady(errors.New("bucket-store is stopping"))
	eg.Go(func() error { return f.Run(ctx) })
	eg.Go(func() error {
		return n.serve(ctx, func(r grpc.ServiceRegistrar) { n.api.Register(router.Registrar(r)) })
	})
	eg.Go(func() error {
		for ctx.Err() == nil {
			owner, err := s.Own(ctx, address, n.waits())
			if err != nil {
				return nil // ctx has ended
			}
			env.Log.Info("this bucket-store writes to the storage from now on", "storage", name)
			owns.Store(true)
			err = n.own(ctx, s, owner, router)
			owns.Store(false)
			if ctx.Err() == nil {
				env.Log.Warn("this bucket-store does not write to the storage any more", "storage", name, "reason", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(againPause):
			}
		}
		return nil
	})
	return eg.Wait()
}

// openShared opens the storage, waiting until it can be reached; nil, nil if ctx
// ends before.
func openShared(ctx context.Context, name string, env service.Env, open func() (store.Shared, error)) (store.Shared, error) {
	said := ""
	for {
		s, err := open()
		if err == nil {
			if said != "" {
				env.Log.Info("storage can be used", "storage", name)
			}
			return s, nil
		}
		retry := errs.IsRetry(err)
		if !retry {
			err = opening(err)
		}
		env.Health.SetReady(err)
		if !retry {
			return nil, err
		}
		if text := errs.Cause(err); text != said && ctx.Err() == nil {
			said = text
			env.Log.Warn("storage cannot be used yet", "storage", name, "reason", text)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(openInterval):
		}
	}
}

// waits returns what is told why this process is not the owner.
func (n *node) waits() func(error) {
	said := ""
	return func(reason error) {
		text := reason.Error()
		switch {
		case text == said:
		case errors.Is(reason, store.ErrOwned):
			n.env.Log.Info("another bucket-store writes to the storage; this one serves reads, and stands by")
		default:
			n.env.Log.Warn("cannot become the one that writes to the storage", "error", reason)
		}
		said = text
	}
}

// own writes until ctx ends or owner has lost its right, and says why.
func (n *node) own(ctx context.Context, s store.Shared, owner store.Owner, router *forward.Router) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	kept := make(chan error, 1) // one value: Keep's
	go func() {
		kept <- owner.Keep(ctx)
		cancel()
	}()
	begin, err := s.Overview(ctx)
	if err == nil {
		err = n.write(ctx, func() bool {
			now, err := s.Overview(ctx)
			return err == nil && now.Epoch == begin.Epoch
		}, router.Here)
	}
	cancel()
	err = errors.Join(<-kept, err)
	if released := owner.Release(); released != nil {
		n.env.Log.Warn("the storage was not given back", "error", released)
	}
	return err
}

// advertised is where other processes find this one: as configured, or where it
// listens. "" = nowhere: it serves its own process only.
func advertised(configured string, lis net.Listener) string {
	if configured != "" {
		return configured
	}
	a, ok := lis.Addr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		name, err := os.Hostname()
		if err != nil {
			return ""
		}
		host = name
	}
	return net.JoinHostPort(host, fmt.Sprint(a.Port))
}
