package compact

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// bucket is a history in ascending order, with the two rewrites that a store
// offers.
type bucket []model.Op

func (b bucket) move(moves []Move) bucket {
	b = slices.Clone(b)
	for _, m := range moves {
		i := slices.IndexFunc(b, func(o model.Op) bool { return o.ID == m.ID })
		if i < 0 || (b[i].Kind != model.OpPut && b[i].Kind != model.OpRemove) {
			continue // another compactor was here
		}
		b[i] = model.Op{ID: m.ID, Kind: model.OpMove, Checksum: b[i].Checksum, Target: m.Target}
	}
	return b
}

func (b bucket) clear(to model.OpID) (bucket, error) {
	folded := model.Op{ID: to, Kind: model.OpClear}
	n := 0
	for ; n < len(b) && b[n].ID <= to; n++ {
		if b[n].Kind == model.OpPut {
			return nil, fmt.Errorf("clear to %d: op %d is a PUT", to, b[n].ID)
		}
		folded.Checksum += b[n].Checksum
		folded.Target = max(folded.Target, b[n].Target)
	}
	if n == 0 {
		return b, nil
	}
	return append(bucket{folded}, b[n:]...), nil
}

// compactTo compacts what is at or below upTo and returns every state on the
// way, the original first.
func (b bucket) compactTo(upTo model.OpID, l Limits) ([]bucket, error) {
	states := []bucket{b}
	steps := func(next func() []Move) {
		for moves := next(); moves != nil; moves = next() {
			states = append(states, states[len(states)-1].move(moves))
		}
	}
	p := New(l)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i].ID > upTo {
			continue
		}
		op := b[i]
		op.Data = ""
		p.Add(&op)
		steps(p.Moves)
	}
	steps(p.Rest)
	for _, c := range p.Clears() {
		next, err := states[len(states)-1].move(c.Moves).clear(c.To)
		if err != nil {
			return nil, err
		}
		states = append(states, next)
	}
	return states, nil
}

func (b bucket) checksum(upTo model.OpID) (c model.Checksum) {
	for _, op := range b {
		if op.ID <= upTo {
			c += op.Checksum
		}
	}
	return c
}

// after is what a client at `from` is sent at checkpoint upTo.
func (b bucket) after(from, upTo model.OpID) (ops bucket) {
	for _, op := range b {
		if op.ID > from && op.ID <= upTo {
			ops = append(ops, op)
		}
	}
	return ops
}

func (b bucket) target() (t model.OpID) {
	for _, op := range b {
		t = max(t, op.Target)
	}
	return t
}

// client holds one bucket as a client does: the PUTs that stand, and the sum of
// the checksums of all else.
type client struct {
	rows      map[row]model.Op
	remainder model.Checksum
	at        model.OpID
}

func (b bucket) reduce() *client {
	c := &client{rows: map[row]model.Op{}}
	c.apply(b)
	return c
}

func (c *client) apply(ops []model.Op) {
	for _, op := range ops {
		if op.ID <= c.at {
			panic(fmt.Sprintf("op %d after %d", op.ID, c.at))
		}
		c.at = op.ID
		k := row{op.Key, op.ObjectType, op.ObjectID}
		switch op.Kind {
		case model.OpPut, model.OpRemove:
			if old, ok := c.rows[k]; ok {
				c.remainder += old.Checksum
				delete(c.rows, k)
			}
			if op.Kind == model.OpPut {
				c.rows[k] = op
			} else {
				c.remainder += op.Checksum
			}
		case model.OpMove:
			c.remainder += op.Checksum
		case model.OpClear:
			clear(c.rows)
			c.remainder = op.Checksum
		}
	}
}

func (c *client) checksum() model.Checksum {
	sum := c.remainder
	for _, op := range c.rows {
		sum += op.Checksum
	}
	return sum
}

// sameRows compares what an app sees: op ids and data of the rows.
func (c *client) sameRows(d *client) bool { return maps.Equal(c.rows, d.rows) }
