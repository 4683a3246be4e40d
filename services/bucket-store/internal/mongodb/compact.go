package mongodb

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Replace decides by the bucket's document that ops are MOVEs and a CLEAR; only
// then the chunks are made so. What a crash leaves of that is done by the next one.
func (s *Store) Replace(ctx context.Context, id model.StreamID, r store.Replacement) (removed uint64, err error) {
	u := s.unit(id)
	u.compact.Lock()
	defer u.compact.Unlock()
	x := replacer{s: s, id: id, r: &r, hash: hashOf(r.Bucket), moved: map[model.OpID]model.OpID{}}
	if err := x.check(ctx); err != nil {
		return 0, x.failed(err)
	}
	if err := x.look(ctx); err != nil {
		return 0, x.failed(err)
	}
	var a *attempt
	if err := s.step(ctx, id, func(made *attempt) error {
		a = made
		return x.decide(ctx, a)
	}); err != nil {
		return 0, x.failed(err)
	}
	if err := x.apply(ctx, a); err != nil {
		s.options.Log.Warn("the chunks of a compacted bucket are not rewritten yet", "stream", id, "error", err)
	}
	return x.removed, nil
}

// replacer is one Replace.
type replacer struct {
	s       *Store
	id      model.StreamID
	r       *store.Replacement
	hash    hash
	moved   map[model.OpID]model.OpID
	clear   model.Op
	removed uint64
}

func (x *replacer) failed(err error) error {
	var refused *store.ReplaceError
	if errors.As(err, &refused) {
		return err
	}
	return failed(x.id, "replace ops", err)
}

func (x *replacer) refuse(op model.OpID, format string, args ...any) error {
	return &store.ReplaceError{Bucket: x.r.Bucket, Op: op, Reason: fmt.Sprintf(format, args...)}
}

// bucket reads the bucket's document.
func (x *replacer) bucket(ctx context.Context) (*bucket, error) {
	found, err := x.s.buckets(ctx, x.id, []hash{x.hash})
	return found[x.hash], err
}

func (x *replacer) check(ctx context.Context) error {
	b, err := x.bucket(ctx)
	if err != nil {
		return err
	}
	st, err := x.s.load(ctx)
	if err != nil {
		return err
	}
	u, err := st.at(x.id)
	if err != nil {
		return err
	}
	if err := x.s.owned(st); err != nil {
		return err
	}
	switch {
	case b == nil || b.counts(u) == nil:
		return x.refuse(0, "there is no such bucket")
	case opID(x.r.Checkpoint) > u.Head.Checkpoint:
		return x.refuse(x.r.Checkpoint, "it is above the checkpoint")
	case x.r.ClearTo > x.r.Checkpoint:
		return x.refuse(x.r.ClearTo, "it is above the checkpoint")
	}
	for i, m := range slices.SortedFunc(slices.Values(x.r.Moves), func(a, b store.Move) int { return cmp.Compare(a.ID, b.ID) }) {
		if m.ID >= m.Target || m.Target > x.r.Checkpoint {
			return x.refuse(m.ID, "its target %s is not between it and the checkpoint", m.Target)
		}
		if _, twice := x.moved[m.ID]; twice && i > 0 {
			return x.refuse(m.ID, "it is named twice")
		}
		x.moved[m.ID] = m.Target
	}
	return nil
}

// rowName is what a move and its target have in common.
type rowName struct {
	key     model.RowKey
	typ, id string
}

// look reads the ops that are moved, their targets, and those that are cleared.
func (x *replacer) look(ctx context.Context) error {
	wanted := map[model.OpID]bool{}
	from, to := model.OpID(math.MaxUint64), model.OpID(0)
	for id, target := range x.moved {
		wanted[id], wanted[target] = true, true
		from, to = min(from, id), max(to, target)
	}
	if x.r.ClearTo > 0 {
		from, to = 1, max(to, x.r.ClearTo)
	}
	if from > to {
		return nil
	}
	kinds := map[model.OpID]model.OpKind{}
	names := map[model.OpID]rowName{}
	r := pages{s: x.s, id: x.id, bucket: x.hash, after: from - 1, upTo: to}
	var cleared, newest model.OpID
	var puts []model.OpID
	for more := true; more; {
		p, rest, err := r.next(ctx)
		if err != nil {
			return err
		}
		more = rest
		for i := range p.ops {
			op := &p.ops[i]
			if wanted[op.ID] {
				kinds[op.ID] = op.Kind
				if !targeted(op) {
					names[op.ID] = rowName{op.Key, op.ObjectType, op.ObjectID}
				}
			}
			if op.ID > x.r.ClearTo {
				continue
			}
			if _, moved := x.moved[op.ID]; !moved && op.Kind == model.OpPut {
				puts = append(puts, op.ID)
			}
			x.clear.Checksum += op.Checksum
			newest = max(newest, op.Target, x.moved[op.ID])
			cleared = op.ID
			x.removed++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(x.moved)) {
		target := x.moved[id]
		kind, found := kinds[id]
		name, isRow := names[target]
		switch {
		case !found:
			return x.refuse(id, "it is not there")
		case kind == model.OpMove: // done before
			delete(x.moved, id)
		case kind == model.OpClear:
			return x.refuse(id, "it is a %s", kind)
		case !isRow:
			return x.refuse(target, "it is no PUT or REMOVE, and cannot supersede another op")
		case names[id] != name:
			return x.refuse(id, "op %s is of another row", target)
		case id <= x.r.ClearTo:
			delete(x.moved, id)
		}
	}
	if x.r.ClearTo == 0 {
		return nil
	}
	if len(puts) > 0 {
		return x.refuse(puts[0], "it is a PUT and cannot be cleared")
	}
	if cleared != x.r.ClearTo {
		return x.refuse(x.r.ClearTo, "it is not there")
	}
	x.clear.ID, x.clear.Target = cleared, newest
	x.removed--
	return nil
}

func (x *replacer) decide(ctx context.Context, a *attempt) error {
	b, err := x.bucket(ctx)
	if err != nil {
		return err
	}
	if b == nil || a.outrun(b.Attempt) || b.counts(a.was) == nil {
		return errMoved
	}
	now := *b.counts(a.was)
	moves, err := readMoves(now.Moves)
	if err != nil {
		return err
	}
	if x.r.ClearTo > 0 {
		now.Count -= int64(x.removed)
		if opID(x.r.ClearTo) <= now.BaseLast {
			now.BaseCount -= int64(x.removed)
		}
		if opID(x.clear.ID) >= now.Cleared {
			now.Cleared, now.ClearChecksum, now.ClearTarget = opID(x.clear.ID), int64(x.clear.Checksum), opID(x.clear.Target)
		}
	}
	all := map[model.OpID]model.OpID{}
	for _, from := range []map[model.OpID]model.OpID{moves, x.moved} {
		for id, target := range from {
			if opID(id) > now.Cleared {
				all[id] = target
			}
		}
	}
	now.Moves = appendMoves(nil, all)
	if x.r.Finished {
		if now.Changes, err = x.above(ctx, &now); err != nil {
			return err
		}
	}
	// Until it is decided the bucket must be found as dirty as it was.
	now.Dirt = max(b.counts(a.was).Dirt, now.dirt())
	filter, change := a.change(b, &now)
	if err := a.write(ctx, func(ctx context.Context) error {
		return a.replace(ctx, x.s.of(x.id, bucketsName), []mongo.WriteModel{mongo.NewUpdateOneModel().SetFilter(filter).SetUpdate(change)})
	}); err != nil {
		return err
	}
	return a.decide(ctx, nil, nil, nil, nil)
}

// above is how many ops the bucket has above the checkpoint.
func (x *replacer) above(ctx context.Context, now *bucketState) (int64, error) {
	at := opID(x.r.Checkpoint)
	switch {
	case now.Last <= at:
		return 0, nil
	case now.BaseLast <= at && at < now.First:
		return now.Count - now.BaseCount, nil
	}
	n := int64(0)
	if at < now.Cleared {
		at, n = now.Cleared, 1
	}
	sum, err := x.s.sum(ctx, x.id, x.hash, model.OpID(at), model.OpID(now.Last))
	return n + int64(sum.Count), err
}

// apply makes the chunks what the bucket's document says. Each change leaves them
// as good as before, and only what compaction has not changed meanwhile is changed.
func (x *replacer) apply(ctx context.Context, a *attempt) error {
	u, err := x.s.fresh(ctx, x.id)
	if err != nil {
		return err
	}
	b, err := x.bucket(ctx)
	if err != nil {
		return err
	}
	if b == nil || b.counts(u) == nil {
		return nil // the stream is being cleared
	}
	now := b.counts(u)
	if dirt := now.dirt(); dirt != now.Dirt {
		if _, err := x.s.of(x.id, bucketsName).UpdateOne(ctx, bson.D{{Key: "_id", Value: x.hash[:]}, {Key: "a", Value: a.number}},
			bson.D{{Key: "$set", Value: bson.D{{Key: dirtField, Value: dirt}}}}); err != nil {
			return fmt.Errorf("say how dirty the bucket is: %w", err)
		}
	}
	ops := x.s.of(x.id, opsName)
	if now.Cleared > 0 {
		gone := bson.D{{Key: "_id", Value: bson.D{{Key: "$gte", Value: chunkID(x.hash, 0, 0)}, {Key: "$lte", Value: chunkID(x.hash, model.OpID(now.Cleared), math.MaxInt64)}}}}
		if err := x.dropParts(ctx, gone); err != nil {
			return err
		}
		if _, err := ops.DeleteMany(ctx, gone); err != nil {
			return fmt.Errorf("remove cleared chunks: %w", err)
		}
	}
	moves, err := readMoves(now.Moves)
	if err != nil {
		return err
	}
	if len(moves) > 0 {
		if err := x.rewrite(ctx, a, u, moves); err != nil {
			return err
		}
		// The moves are in the chunks. A commit that has changed the document
		// meanwhile has them still, which does no harm.
		if _, err := x.s.of(x.id, bucketsName).UpdateOne(ctx, bson.D{{Key: "_id", Value: x.hash[:]}, {Key: "a", Value: b.Attempt}},
			bson.D{{Key: "$unset", Value: bson.D{{Key: "s.v", Value: ""}}}}); err != nil {
			return fmt.Errorf("forget moves: %w", err)
		}
	}
	if x.r.Finished {
		return x.merge(ctx, a, u)
	}
	return nil
}

// rewrite makes ops of chunks MOVEs.
func (x *replacer) rewrite(ctx context.Context, a *attempt, u *unitState, moves map[model.OpID]model.OpID) error {
	from, to := model.OpID(math.MaxUint64), model.OpID(0)
	for id := range moves {
		from, to = min(from, id), max(to, id)
	}
	return x.each(ctx, u, from-1, to, true, func(c *chunk) error {
		p := packer{bucket: x.hash, ops: math.MaxInt, bytes: math.MaxInt} // one chunk stays one
		changed := false
		if err := c.unpack(func(op *model.Op) bool {
			if target, ok := moves[op.ID]; ok && op.Kind != model.OpMove {
				changed = true
				op = &model.Op{ID: op.ID, Kind: model.OpMove, Checksum: op.Checksum, Target: target}
			}
			p.add(op)
			return true
		}); err != nil || !changed {
			return err
		}
		next := p.chunk
		next.ID, next.Attempt, next.Version, next.Size = c.ID, c.Attempt, c.Version+1, int64(len(next.Data))
		if err := a.keepChunk(ctx, next); err != nil {
			return err
		}
		r, err := x.s.of(x.id, opsName).ReplaceOne(ctx, bson.D{{Key: "_id", Value: c.ID}, {Key: "v", Value: c.Version}}, next)
		if err != nil {
			return fmt.Errorf("rewrite a chunk: %w", err)
		}
		if r.MatchedCount == 1 && len(c.Parts) > 0 {
			return x.drop(ctx, c)
		}
		return nil
	})
}

// each calls do for the chunks that have ops in (after, upTo] and count.
func (x *replacer) each(ctx context.Context, u *unitState, after, upTo model.OpID, data bool, do func(*chunk) error) error {
	r := pages{s: x.s, id: x.id, bucket: x.hash, after: after, upTo: upTo, data: data}
	for more := true; more; {
		r.read++
		var found []*chunk
		var err error
		if found, more, err = r.find(ctx); err != nil {
			return err
		}
		for _, c := range found {
			if !u.visible(c.Attempt) {
				continue
			}
			if err := do(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop removes the parts of a chunk.
func (x *replacer) drop(ctx context.Context, c *chunk) error {
	for n := range parts(c.Parts) {
		if _, err := x.s.of(x.id, partsName).DeleteOne(ctx, bson.D{{Key: "_id", Value: partID(c.ID, partsOf(c.Parts), n)}}); err != nil {
			return fmt.Errorf("remove a part: %w", err)
		}
	}
	return nil
}

// dropParts removes the parts of the chunks that a filter selects.
func (x *replacer) dropParts(ctx context.Context, filter bson.D) error {
	cursor, err := x.s.of(x.id, opsName).Find(ctx, append(slices.Clone(filter), bson.E{Key: "p", Value: bson.D{{Key: "$exists", Value: true}}}))
	if err != nil {
		return fmt.Errorf("look for parts: %w", err)
	}
	var chunks []*chunk
	if err := cursor.All(ctx, &chunks); err != nil {
		return fmt.Errorf("look for parts: %w", err)
	}
	for _, c := range chunks {
		if err := x.drop(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// merge makes runs of small chunks, as small commits leave them, one chunk each.
// That is there before they go, and is in their order the last: whoever reads on
// in that order meets all ops, some of them twice.
func (x *replacer) merge(ctx context.Context, a *attempt, u *unitState) error {
	o := &x.s.options
	var run []*chunk
	ops, size := 0, 0
	end := func() error {
		merged := run
		run, ops, size = nil, 0, 0
		if len(merged) < o.mergeRun {
			return nil
		}
		return x.mergeRun(ctx, a, merged)
	}
	if err := x.each(ctx, u, 0, x.r.Checkpoint, false, func(c *chunk) error {
		of := len(c.Heads) + int(c.Size)
		small := int(c.Ops) <= o.chunkOps/2 && of <= o.chunkBytes/2 && c.last() <= x.r.Checkpoint
		if !small || ops+int(c.Ops) > o.chunkOps || size+of > o.chunkBytes {
			if err := end(); err != nil {
				return err
			}
		}
		if small {
			run, ops, size = append(run, c), ops+int(c.Ops), size+of
		}
		return nil
	}); err != nil {
		return err
	}
	return end()
}

func (x *replacer) mergeRun(ctx context.Context, a *attempt, run []*chunk) error {
	collection := x.s.of(x.id, opsName)
	ids := make([][]byte, len(run))
	for i, c := range run {
		ids[i] = c.ID
	}
	cursor, err := collection.Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: ids}}}}, options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}))
	if err != nil {
		return fmt.Errorf("read chunks: %w", err)
	}
	run = nil
	if err := cursor.All(ctx, &run); err != nil {
		return fmt.Errorf("read chunks: %w", err)
	}
	if len(run) < len(ids) {
		return nil // compacted by another process
	}
	p := packer{bucket: x.hash, ops: x.s.options.chunkOps, bytes: x.s.options.chunkBytes}
	last := model.OpID(0)
	for _, c := range run {
		if err := c.unpack(func(op *model.Op) bool {
			if op.ID > last {
				p.add(op)
				last = op.ID
			}
			return true
		}); err != nil {
			return err
		}
	}
	p.end()
	// What an earlier merge has made may be there, with what it was made of.
	for _, c := range run {
		if slices.ContainsFunc(p.done, func(made *chunk) bool { return bytes.Equal(made.ID, c.ID) }) {
			p.done = nil
			run = slices.DeleteFunc(run, func(old *chunk) bool { return old == c || old.First < c.First || old.last() > c.last() })
			break
		}
	}
	if err := a.writeChunks(ctx, p.done); err != nil {
		return err
	}
	if _, err := x.s.of(x.id, bucketsName).UpdateOne(ctx, bson.D{{Key: "_id", Value: x.hash[:]}}, bson.D{{Key: "$inc", Value: bson.D{{Key: "m", Value: 1}}}}); err != nil {
		return fmt.Errorf("count merges: %w", err)
	}
	old := make(bson.A, len(run))
	for i, c := range run {
		old[i] = bson.D{{Key: "_id", Value: c.ID}, {Key: "v", Value: c.Version}}
	}
	if _, err := collection.DeleteMany(ctx, bson.D{{Key: "$or", Value: old}}); err != nil {
		return fmt.Errorf("remove merged chunks: %w", err)
	}
	return nil
}
