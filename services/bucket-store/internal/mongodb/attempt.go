package mongodb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// attempt is one step of a unit: documents are written under its number, and then
// one change of the state decides that they count. The unit's mu is locked.
type attempt struct {
	s      *Store
	unit   *unit
	id     model.StreamID
	was    *unitState // as the step begins
	number int64

	mu     sync.Mutex
	graves []grave // that the step makes; guarded by mu
}

// begin begins a step. The number is nobody else's: whoever might be using it is
// outrun by settle first.
func (s *Store) begin(ctx context.Context, u *unit, id model.StreamID) (*attempt, error) {
	if s.epoch.Load() == 0 {
		return nil, store.ErrNotOwner
	}
	if !u.settled {
		if err := s.settle(ctx, u, id); err != nil {
			return nil, err
		}
	}
	a := &attempt{s: s, unit: u, id: id}
	was, err := s.view.Load().at(id)
	if err != nil {
		if was, err = s.fresh(ctx, id); err != nil {
			return nil, err
		}
	}
	a.was, a.number = was, was.Attempt+1
	return a, nil
}

// settle gives up the attempt that may be under way, here or in a process that was
// stalled: from now on it cannot be decided any more.
func (s *Store) settle(ctx context.Context, u *unit, id model.StreamID) error {
	for {
		st, err := s.load(ctx)
		if err != nil {
			return err
		}
		if err := s.owned(st); err != nil {
			return err
		}
		was, err := st.at(id)
		if err != nil {
			return err
		}
		next := *was
		if len(next.Aborted) >= s.options.abortedMax {
			if next.Aborted, err = s.heal(ctx, id, next.Aborted); err != nil {
				return failed(id, "remove what failed steps left", err)
			}
		}
		next.Version++
		next.Attempt++
		next.Aborted = append(slices.Clone(next.Aborted), next.Attempt)
		// Not what decides a step: so it is another command.
		key := "units." + unitKey(id)
		r, err := s.states().UpdateOne(ctx, bson.D{{Key: "_id", Value: stateName}, {Key: "owner.epoch", Value: s.epoch.Load()}, {Key: key + ".version", Value: was.Version}},
			bson.D{{Key: "$inc", Value: bson.D{{Key: "revision", Value: 1}}}, {Key: "$set", Value: bson.D{{Key: key, Value: &next}}}})
		if err != nil {
			return failed(id, "settle", err)
		}
		if r.MatchedCount == 0 {
			continue // changed meanwhile
		}
		if _, err := s.load(ctx); err != nil {
			return err
		}
		u.settled = true
		return nil
	}
}

// outrun tells whether what another attempt wrote is of one that this one does not
// know of: this process is no more the owner. What counts of it is not known here.
func (a *attempt) outrun(by int64) bool { return by > a.was.Attempt }

// write writes the documents of the step, by parts that run side by side.
func (a *attempt) write(ctx context.Context, parts ...func(context.Context) error) error {
	a.unit.settled = false // unless it is decided
	return atOnce(ctx, parts...)
}

// decide makes the step count, with change of the unit, if the unit is as it was.
// set and inc are what changes besides, while the state is as guard says.
func (a *attempt) decide(ctx context.Context, change func(*unitState), guard, set, inc bson.D) error {
	next := *a.was
	next.Version++
	next.Attempt = a.number
	if change != nil {
		change(&next)
	}
	key := "units." + unitKey(a.id)
	guard = append(bson.D{{Key: key + ".version", Value: a.was.Version}}, guard...)
	a.unit.settled = false
	if err := a.s.flip(ctx, guard, append(bson.D{{Key: key, Value: &next}}, set...), inc); err != nil {
		return err
	}
	a.unit.settled = true
	a.unit.graves = append(a.unit.graves, a.graves...)
	return nil
}

// attempts bounds those of one step.
const attempts = 5

// step makes a step of a unit that does not depend on what is there besides.
func (s *Store) step(ctx context.Context, id model.StreamID, do func(*attempt) error) error {
	u := s.unit(id)
	u.mu.Lock()
	defer u.mu.Unlock()
	s.changing.RLock()
	defer s.changing.RUnlock()
	for range attempts {
		a, err := s.begin(ctx, u, id)
		if err != nil {
			return err
		}
		if err = do(a); !errors.Is(err, errMoved) {
			return err
		}
		// Nobody but the owner changes it: this process is not, or has changed it
		// in another way meanwhile.
		st, err := s.load(ctx)
		if err != nil {
			return err
		}
		if err := s.owned(st); err != nil {
			return err
		}
	}
	return fmt.Errorf("stream %d: %w", id, errMoved)
}
