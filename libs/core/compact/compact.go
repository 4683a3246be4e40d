// Package compact rewrites the history of one bucket so that a new client
// downloads less, without changing what any client ends up with.
//
// A Plan is fed the ops of a bucket, newest first, and says what to do: turn
// superseded ops into MOVEs (the row's newer op makes them moot; only their
// checksum still counts), then fold the run of ops at the start of the bucket
// that no longer put anything into one CLEAR.
//
// Invariants:
//
//   - D7: a compacted bucket reduces to the rows and the checksum that the
//     original reduces to (TestSameState).
//   - INV-17: no checksum changes at any checkpoint at or above the one that
//     the compaction started from (TestSameState).
//   - D6, INV-18: a client that stops anywhere in the original and goes on with
//     the compacted bucket ends the same (TestResumeAnywhere).
//   - INV-20: whatever prefix of the steps is carried out, all of the above
//     hold, and compacting again finishes the work (TestInterrupted); compacting
//     what is compacted changes nothing (TestIdempotent).
//   - Memory is bounded by Limits.Memory; rows beyond it are compacted less, never
//     wrongly (TestMemoryLimit).
//
// Where old rows that still stand hold back a long tail of dead ops, Reemit names
// them: put again as the newest ops of the bucket they let the next compaction
// fold the tail (TestReemit).
//
// It is a function from ops to steps: no I/O, no clock, no goroutine.
package compact

import (
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// Limits bound one Plan and its steps. Zero fields have the defaults.
type Limits struct {
	// Memory for the rows seen, in bytes. Default 64 MiB.
	Memory int
	// Moves in one step. Default 2000.
	Moves int
	// Clear is how many ops one CLEAR step folds at most, at least 2. Default 5000.
	Clear int
	// Held is how many superseded ops are held back, for a CLEAR may fold them
	// and spare writing the MOVEs. Default 50,000; negative: none.
	Held int
	// Worth is how many dead ops a row must hold back, on average and beyond what
	// the older rows do, for Reemit to name it. Default 20.
	Worth int
}

func (l Limits) orDefault() Limits {
	if l.Memory <= 0 {
		l.Memory = 64 << 20
	}
	if l.Moves <= 0 {
		l.Moves = 2000
	}
	if l.Clear <= 0 {
		l.Clear = 5000
	}
	l.Clear = max(l.Clear, 2)
	if l.Held == 0 {
		l.Held = 50_000
	}
	if l.Worth <= 0 {
		l.Worth = 20
	}
	return l
}

// Move makes the op ID a MOVE with this Target: it keeps its id and checksum
// and loses its row.
type Move struct {
	ID, Target model.OpID
}

// Clear folds all the ops up to To into one CLEAR there. In the same step,
// before it, Moves make those that are PUTs still MOVEs.
type Clear struct {
	To    model.OpID
	Moves []Move
}

// Plan compacts one bucket. Feed it with Add, carry out the steps of Moves as
// they come due and, after the oldest op, those of Rest and of Clears.
type Plan struct {
	limits Limits
	seen   map[row]model.OpID // newest PUT or REMOVE of a row
	types  map[string]string  // object types, each kept once
	memory int                // bytes that seen and types hold, estimated
	moves  []Move

	// The run of ops below the oldest PUT so far, none of which is a PUT:
	// clears are the ids at which to fold it, newest first, Limits.Clear ops
	// apart; folded counts the ops since the last of them, run all but CLEARs.
	clears []model.OpID
	folded int
	run    int
	held   []Move // of the run, newest first

	// The oldest rows that stand, newest first, and the dead ops above each of
	// them, up to the next.
	standing []standing

	ops       uint64
	untracked uint64
}

// standing is a PUT that no newer op supersedes.
type standing struct {
	row
	id   model.OpID
	dead int
}

type row struct {
	key        model.RowKey
	objectType string
	objectID   string
}

// rowSize is what a row costs in memory besides its id: the key and value of
// the map at its mean load.
const rowSize = 128

// New returns a plan for a bucket of which nothing has been added yet.
func New(l Limits) *Plan {
	return &Plan{limits: l.orDefault(), seen: map[row]model.OpID{}, types: map[string]string{}}
}

// Add takes the next older op of the bucket, at or below the checkpoint from
// which the compaction started. It keeps nothing of op's memory.
func (p *Plan) Add(op *model.Op) {
	p.ops++
	put := false
	var kept row
	switch op.Kind {
	case model.OpPut, model.OpRemove:
		k := row{op.Key, op.ObjectType, op.ObjectID}
		if newest, ok := p.seen[k]; ok {
			p.held = append(p.held, Move{op.ID, newest})
			if len(p.held) > p.limits.Held {
				p.release()
			}
			break
		}
		put = op.Kind == model.OpPut
		kept = p.track(k, op.ID)
	}
	switch {
	case put:
		p.stand(kept, op.ID)
		p.release()
		p.clears, p.folded, p.run = p.clears[:0], 0, 0
	case op.Kind == model.OpClear && len(p.clears) == 0:
		// Alone at the start: nothing to fold it into.
	default:
		if p.folded == 0 || p.folded == p.limits.Clear-1 {
			// Each step folds its own ops and the CLEAR of the step before it.
			p.clears, p.folded = append(p.clears, op.ID), 0
		}
		p.folded++
		if op.Kind != model.OpClear {
			p.run++
		}
	}
}

// track notes the newest op of a row and returns the row without op's memory; the
// zero row if there is no room.
func (p *Plan) track(k row, id model.OpID) row {
	size := rowSize + len(k.objectID)
	kept, known := p.types[k.objectType]
	if !known {
		size += rowSize + len(k.objectType)
	}
	if p.memory+size > p.limits.Memory {
		p.untracked++
		return row{}
	}
	p.memory += size
	if !known {
		kept = strings.Clone(k.objectType)
		p.types[kept] = kept
	}
	k.objectType, k.objectID = kept, strings.Clone(k.objectID)
	p.seen[k] = id
	return k
}

// release makes MOVEs of what was held back.
func (p *Plan) release() {
	p.moves = append(p.moves, p.held...)
	p.held = p.held[:0]
}

// Moves returns the next full step of MOVEs, nil if none is due yet. The slice
// is the caller's.
func (p *Plan) Moves() []Move {
	if len(p.moves) < p.limits.Moves {
		return nil
	}
	return p.take(p.limits.Moves)
}

// Rest returns the next step of the MOVEs that are left, nil if there is none.
// Call it after the oldest op.
func (p *Plan) Rest() []Move {
	if p.run < 2 {
		p.release()
	}
	if len(p.moves) == 0 {
		return nil
	}
	return p.take(min(len(p.moves), p.limits.Moves))
}

func (p *Plan) take(n int) []Move {
	m := p.moves[:n:n]
	p.moves = p.moves[n:]
	return m
}

// Clears returns the CLEAR steps, oldest first, to be carried out after every
// MOVE. Call it after the oldest op.
func (p *Plan) Clears() []Clear {
	if p.run < 2 {
		return nil
	}
	steps := make([]Clear, len(p.clears))
	held := p.held // newest first, as clears are
	for i, to := range p.clears {
		n := len(held)
		if i+1 < len(p.clears) {
			n = 0
			for n < len(held) && held[n].ID > p.clears[i+1] {
				n++
			}
		}
		steps[len(steps)-1-i] = Clear{To: to, Moves: held[:n:n]}
		held = held[n:]
	}
	return steps
}

// Ops is how many ops were added; Untracked how many of them were rows for
// which Limits.Memory had no room.
func (p *Plan) Ops() (added, untracked uint64) { return p.ops, p.untracked }
