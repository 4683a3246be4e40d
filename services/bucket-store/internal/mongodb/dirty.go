package mongodb

import (
	"cmp"
	"context"
	"math/bits"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Dirtiest lists buckets: by name or by dirt, each through its index.
func (s *Store) Dirtiest(ctx context.Context, id model.StreamID, q store.DirtyQuery) ([]store.DirtyBucket, error) {
	u, err := s.fresh(ctx, id)
	if err != nil {
		return nil, err
	}
	var out []store.DirtyBucket
	byNeed := q.MinChanges > 0 && len(q.Only) == 0
	take := func(b *bucket) {
		now := b.counts(u)
		if now == nil && b.Attempt > u.Attempt {
			now = b.Was
		}
		name := string(b.Name)
		switch {
		case now == nil:
		case byNeed && (uint64(now.Changes) < q.MinChanges || now.dirt() == 0):
		case !byNeed && q.After != "" && name <= q.After:
		default:
			out = append(out, store.DirtyBucket{Bucket: name, Ops: uint64(now.Count), Changes: uint64(now.Changes)})
		}
	}
	byName := func(a, b store.DirtyBucket) int { return cmp.Compare(a.Bucket, b.Bucket) }
	switch {
	case len(q.Only) > 0:
		hashes := make([]hash, len(q.Only))
		for i := range q.Only {
			hashes[i] = hashOf(q.Only[i])
		}
		found, err := s.buckets(ctx, id, hashes)
		if err != nil {
			return nil, failed(id, "list buckets", err)
		}
		for _, b := range found {
			take(b)
		}
		slices.SortFunc(out, byName)
	case !byNeed:
		if err := s.byName(ctx, id, q, &out, take); err != nil {
			return nil, failed(id, "list buckets", err)
		}
	default:
		if err := s.byDirt(ctx, id, q, &out, take); err != nil {
			return nil, failed(id, "list buckets", err)
		}
	}
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[:q.Limit]
	}
	return out, nil
}

// byDirt takes buckets, the dirtiest first, until there are enough of them. An
// attempt under way, or one that came to nothing, may have made a bucket seem
// dirtier than it is.
func (s *Store) byDirt(ctx context.Context, id model.StreamID, q store.DirtyQuery, out *[]store.DirtyBucket, take func(*bucket)) error {
	find := options.Find().SetSort(bson.D{{Key: dirtField, Value: -1}})
	if q.Limit > 0 {
		find.SetBatchSize(int32(min(q.Limit+1, s.options.batch)))
	}
	cursor, err := s.of(id, bucketsName).Find(ctx, bson.D{{Key: dirtField, Value: bson.D{{Key: "$gte", Value: int32(bits.Len64(q.MinChanges))}}}}, find)
	if err != nil {
		return err
	}
	defer cursor.Close(ctx)
	for (q.Limit == 0 || len(*out) < q.Limit) && cursor.Next(ctx) {
		var b bucket
		if err := cursor.Decode(&b); err != nil {
			return err
		}
		take(&b)
	}
	slices.SortStableFunc(*out, func(a, b store.DirtyBucket) int {
		return cmp.Compare(store.Dirt(b.Ops, b.Changes), store.Dirt(a.Ops, a.Changes))
	})
	return cursor.Err()
}

// byName takes buckets in the order of their names until there are enough of them.
func (s *Store) byName(ctx context.Context, id model.StreamID, q store.DirtyQuery, out *[]store.DirtyBucket, take func(*bucket)) error {
	find := options.Find().SetSort(bson.D{{Key: "o", Value: 1}})
	if q.Limit > 0 {
		find.SetBatchSize(int32(min(q.Limit+1, s.options.batch)))
	}
	cursor, err := s.of(id, bucketsName).Find(ctx, bson.D{{Key: "o", Value: bson.D{{Key: "$gte", Value: orderOf(q.After)}}}}, find)
	if err != nil {
		return err
	}
	defer cursor.Close(ctx)
	order, begin := "", 0 // of names that begin alike
	sort := func() {
		slices.SortFunc((*out)[begin:], func(a, b store.DirtyBucket) int { return cmp.Compare(a.Bucket, b.Bucket) })
	}
	for cursor.Next(ctx) {
		var b bucket
		if err := cursor.Decode(&b); err != nil {
			return err
		}
		if b.Order != order {
			if sort(); q.Limit > 0 && len(*out) >= q.Limit {
				return nil
			}
			order, begin = b.Order, len(*out)
		}
		take(&b)
	}
	sort()
	return cursor.Err()
}
