package mongodb

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// pulse says who the owner is, and that it is there. No clocks are compared: a
// process that waits looks for how long the pulse has stood still.
type pulse struct {
	Epoch   int64  `bson:"epoch"`  // how many owners there were
	Holder  string `bson:"holder"` // "" = none: it was given back
	Address string `bson:"address"`
	Beat    int64  `bson:"beat"`

	since time.Time // when this process saw it first
}

const (
	// ownTime is for how long an owner without a pulse stays one.
	ownTime = 3 * time.Second
	// ownInterval is how often a process that waits looks.
	ownInterval = 200 * time.Millisecond
	// keepInterval is how often the owner renews its right.
	keepInterval = 500 * time.Millisecond
	// ownTimeout bounds one such look, and one renewal.
	ownTimeout = 5 * time.Second
)

// owner is a store.Owner.
type owner struct {
	s     *Store
	epoch int64
}

// observe notes the owner's pulse, and returns it with the time it has had it.
func (s *Store) observe(p pulse) *pulse {
	for {
		old := s.seen.Load()
		if old != nil && (old.Epoch > p.Epoch || old.Epoch == p.Epoch && (old.Beat > p.Beat || old.Beat == p.Beat && old.Holder == p.Holder)) {
			return old
		}
		p.since = time.Now()
		if s.seen.CompareAndSwap(old, &p) {
			return &p
		}
	}
}

// Own waits until this process is the owner.
func (s *Store) Own(ctx context.Context, address string, waits func(error)) (store.Owner, error) {
	holder := rand.Text()
	for {
		epoch, err := s.take(ctx, holder, address)
		if err == nil {
			s.epoch.Store(epoch)
			return &owner{s, epoch}, nil
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
func (s *Store) take(ctx context.Context, holder, address string) (epoch int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	st, err := s.load(ctx)
	if err != nil {
		return 0, fmt.Errorf("look for the owner: %w", err)
	}
	is := s.observe(st.Owner)
	if is.Holder != "" && time.Since(is.since) < ownTime {
		return 0, store.ErrOwned
	}
	next := pulse{Epoch: is.Epoch + 1, Holder: holder, Address: address}
	var now state
	err = s.states().FindOneAndUpdate(ctx, bson.D{{Key: "_id", Value: stateName}, {Key: "owner.epoch", Value: is.Epoch}, {Key: "owner.beat", Value: is.Beat}},
		bson.D{{Key: "$set", Value: bson.D{{Key: "owner", Value: &next}}}, {Key: "$inc", Value: bson.D{{Key: "revision", Value: 1}}}},
		options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&now)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return 0, store.ErrOwned // another one was quicker, or the owner is back
	}
	if err != nil {
		return 0, fmt.Errorf("become the owner: %w", err)
	}
	s.learn(&now)
	s.observe(now.Owner)
	// What the former owner may still be about comes to nothing, unit by unit,
	// before this one's first step.
	s.units.Range(func(_, u any) bool {
		u.(*unit).unsettle()
		return true
	})
	return next.Epoch, nil
}

func (u *unit) unsettle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.settled = false
	u.graves = nil
	u.known.take()
}

// Keep renews the right until ctx ends or another process has it.
func (o *owner) Keep(ctx context.Context) error {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for {
		if err := o.set(ctx, bson.E{Key: "$inc", Value: bson.D{{Key: "owner.beat", Value: 1}}}); errors.Is(err, store.ErrNotOwner) {
			return err
		} else if err != nil && ctx.Err() == nil {
			o.s.options.Log.Warn("the right to write to the storage was not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// set changes the owner's pulse while it is this process's.
func (o *owner) set(ctx context.Context, change bson.E) error {
	ctx, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	r, err := o.s.states().UpdateOne(ctx, bson.D{{Key: "_id", Value: stateName}, {Key: "owner.epoch", Value: o.epoch}}, bson.D{change})
	if err != nil {
		return fmt.Errorf("renew the right to write: %w", err)
	}
	if r.MatchedCount == 0 {
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
	err := o.set(context.Background(), bson.E{Key: "$set", Value: bson.D{{Key: "owner.holder", Value: ""}, {Key: "owner.address", Value: ""}}})
	if err != nil && !errors.Is(err, store.ErrNotOwner) {
		return fmt.Errorf("give the storage back: %w", err)
	}
	return nil
}

// Overview reads the state.
func (s *Store) Overview(ctx context.Context) (store.Overview, error) {
	ctx, cancel := context.WithTimeout(ctx, ownTimeout)
	defer cancel()
	st, err := s.load(ctx)
	if err != nil {
		return store.Overview{}, fmt.Errorf("read the overview: %w", err)
	}
	is := s.observe(st.Owner)
	v := store.Overview{Epoch: uint64(is.Epoch), Catalog: uint64(st.Catalog), Heads: map[model.StreamID]model.StreamHead{}}
	if v.Owned = is.Holder != "" && time.Since(is.since) < ownTime; v.Owned {
		v.Address = is.Address
	}
	for id, u := range st.streams() {
		v.Heads[id] = u.Head.model()
	}
	return v, nil
}
