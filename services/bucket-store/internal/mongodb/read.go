package mongodb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"math"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"golang.org/x/sync/errgroup"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// sumsAtOnce bounds the buckets that are summed up side by side.
const sumsAtOnce = 8

// Checksums returns the states of buckets at c: the running sums at the head and
// at the visible checkpoint, else by subtracting the ops above c.
func (s *Store) Checksums(ctx context.Context, id model.StreamID, c model.OpID, buckets []string) ([]model.BucketState, error) {
	hashes := make([]hash, len(buckets))
	for i := range buckets {
		hashes[i] = hashOf(buckets[i])
	}
	found, err := s.buckets(ctx, id, hashes)
	if err != nil {
		return nil, failed(id, "read checksums", err)
	}
	u, err := s.after(ctx, id, c, len(found) < len(buckets), func(u *unitState) bool {
		for _, b := range found {
			if b.Attempt > u.Attempt {
				return false
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	out := make([]model.BucketState, len(buckets))
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(sumsAtOnce)
	for i, h := range hashes {
		b := found[h]
		if b == nil {
			continue
		}
		now := b.counts(u)
		switch at := opID(c); {
		case now == nil:
		case at < now.Cleared:
			return nil, errors.Join(store.ErrInvalidated, ignored(eg.Wait()))
		case now.Last <= at:
			out[i] = model.BucketState{Checksum: model.Checksum(now.Checksum), Count: uint64(now.Count)}
		case now.BaseLast <= at && at < now.First:
			out[i] = model.BucketState{Checksum: model.Checksum(now.BaseChecksum), Count: uint64(now.BaseCount)}
		default:
			eg.Go(func() error {
				above, err := s.sum(ctx, id, h, c, model.OpID(now.Last))
				out[i] = model.BucketState{Checksum: model.Checksum(now.Checksum) - above.Checksum, Count: uint64(now.Count) - above.Count}
				return err
			})
		}
	}
	if err := eg.Wait(); errors.Is(err, store.ErrInvalidated) {
		return nil, store.ErrInvalidated
	} else if err != nil {
		return nil, failed(id, "read checksums", err)
	}
	return out, nil
}

// ignored is nil: the error says again what another one says.
func ignored(error) error { return nil }

// after returns a unit as it is known after what was read: from memory if it has
// everything up to op, nothing is missing and it is as new as what was read.
func (s *Store) after(ctx context.Context, id model.StreamID, op model.OpID, missing bool, enough func(*unitState) bool) (*unitState, error) {
	if !missing {
		if u, err := s.current(ctx, id, op); err != nil || enough(u) {
			return u, err
		}
	}
	return s.fresh(ctx, id)
}

// sum adds up a bucket's ops in (after, upTo].
func (s *Store) sum(ctx context.Context, id model.StreamID, bucket hash, after, upTo model.OpID) (sum model.BucketState, err error) {
	r := pages{s: s, id: id, bucket: bucket, after: after, upTo: upTo}
	for more := true; more; {
		var p *page
		if p, more, err = r.next(ctx); err != nil {
			return sum, err
		}
		if p.cleared > after {
			return sum, store.ErrInvalidated
		}
		for i := range p.ops {
			sum.Checksum += p.ops[i].Checksum
			sum.Count++
		}
	}
	return sum, nil
}

// pages reads a bucket's ops in (after, upTo], in pages: chunks by one command,
// and then what is known of the bucket by another. A MOVE between two pages is as
// good as what was there before; a CLEAR of what is not read yet shows in cleared.
type pages struct {
	s           *Store
	id          model.StreamID
	bucket      hash
	after, upTo model.OpID
	descending  bool
	data        bool

	read   int        // pages
	place  []byte     // id of the last chunk that was read
	last   model.OpID // everything up to it is read; descending: from it on
	merges int64
}

// page is some ops of a bucket. They are valid as long as it is.
type page struct {
	cleared model.OpID // the bucket's CLEAR
	ops     []model.Op
}

const (
	// pageBytes ends a reader's first page, and maxGrow is how often the ones
	// after it are twice as large.
	pageBytes = 1 << 20
	maxGrow   = 2
	// maxChunks bounds the chunks that one command reads.
	maxChunks = 320
)

// errCompacted: a bucket was compacted between two pages of a read.
var errCompacted = errors.New("the bucket was compacted while it was being read: read it again")

// next reads a page. more: there may be another one.
func (r *pages) next(ctx context.Context) (p *page, more bool, err error) {
	s := r.s
	u, err := s.current(ctx, r.id, r.upTo)
	if err != nil {
		return nil, false, err
	}
	if r.read++; r.read == 1 {
		// What an attempt under way has written is above the head.
		r.upTo = min(r.upTo, model.OpID(u.Head.Persisted))
		if r.last = r.after; r.descending {
			r.last = r.upTo + 1
		}
	}
	if r.after >= r.upTo {
		return &page{}, false, nil
	}
	found, more, err := r.find(ctx)
	if err != nil {
		return nil, false, err
	}
	known, err := s.buckets(ctx, r.id, []hash{r.bucket})
	if err != nil {
		return nil, false, err
	}
	b := known[r.bucket]
	if u, err = s.after(ctx, r.id, r.upTo, b == nil, func(u *unitState) bool { return b.Attempt <= u.Attempt }); err != nil {
		return nil, false, err
	}
	p = &page{}
	if b == nil {
		return p, false, nil
	}
	now := b.counts(u)
	if now == nil {
		return p, false, nil
	}
	if r.descending && r.read > 1 && b.Merges != r.merges {
		return nil, false, errCompacted
	}
	r.merges = b.Merges
	more, err = r.take(u, now, found, p, more)
	return p, more, err
}

// find reads the chunks of a page: few first, and more if they are small.
func (r *pages) find(ctx context.Context) (found []*chunk, more bool, err error) {
	grow := 1 << min(max(r.read-1, 0), maxGrow) // who reads on reads more at once
	ops, size := 0, 0
	for limit := r.s.options.pageChunks * grow; ; limit = min(4*limit, maxChunks) {
		n := len(found)
		if found, more, err = r.some(ctx, found, limit, pageBytes*grow-size); err != nil || !more {
			return found, false, err
		}
		for _, c := range found[n:] {
			ops += int(c.Ops)
			size += len(c.Data) + len(c.Heads)
		}
		if ops >= r.s.options.pageOps*grow || size >= pageBytes*grow {
			return found, true, nil
		}
	}
}

// some reads the next chunks: at most so many, and so many bytes, but one.
func (r *pages) some(ctx context.Context, found []*chunk, limit, bytes int) (all []*chunk, more bool, err error) {
	order, project := 1, bson.D{}
	if r.descending {
		order = -1
	}
	if !r.data {
		project = bson.D{{Key: "d", Value: 0}, {Key: "p", Value: 0}}
	}
	cursor, err := r.s.of(r.id, opsName).Find(ctx, fromTo(r.bucket, r.after, r.upTo, r.place, r.descending), options.Find().SetSort(bson.D{{Key: "_id", Value: order}}).
		SetProjection(project).SetLimit(int64(limit)).SetBatchSize(int32(limit)))
	if err != nil {
		return nil, false, err
	}
	defer cursor.Close(ctx)
	n := 0
	for cursor.Next(ctx) {
		c := &chunk{}
		if err := cursor.Decode(c); err != nil {
			return nil, false, err
		}
		if len(c.Parts) > 0 && r.data {
			if c.Data, _, err = r.s.value(ctx, r.id, c.ID, c.Parts); err != nil {
				return nil, false, err
			}
		}
		found = append(found, c)
		r.place = c.ID
		n++
		if bytes -= len(c.Data) + len(c.Heads); bytes <= 0 {
			return found, true, nil
		}
	}
	return found, n == limit, cursor.Err()
}

// take puts what counts of chunks into a page.
func (r *pages) take(u *unitState, now *bucketState, found []*chunk, p *page, more bool) (bool, error) {
	moves, err := readMoves(now.Moves)
	if err != nil {
		return false, err
	}
	p.cleared = model.OpID(now.Cleared)
	clear := model.Op{ID: p.cleared, Kind: model.OpClear, Checksum: model.Checksum(now.ClearChecksum), Target: model.OpID(now.ClearTarget)}
	isIn := clear.ID > r.after && clear.ID <= r.upTo
	if isIn && !r.descending && r.last < clear.ID {
		p.ops = append(p.ops, clear)
		r.last = clear.ID
	}
	for _, c := range found {
		if !u.visible(c.Attempt) {
			continue
		}
		begin := len(p.ops)
		if err := c.unpack(func(op *model.Op) bool {
			// A chunk may have been made of others that are there still.
			if op.ID <= clear.ID || op.ID <= r.after || op.ID > r.upTo || !r.descending && op.ID <= r.last || r.descending && op.ID >= r.last {
				return true
			}
			if target, ok := moves[op.ID]; ok && op.Kind != model.OpMove {
				*op = model.Op{ID: op.ID, Kind: model.OpMove, Checksum: op.Checksum, Target: target}
			}
			p.ops = append(p.ops, *op)
			return true
		}); err != nil {
			return false, err
		}
		if r.descending {
			slices.Reverse(p.ops[begin:])
			r.last = min(r.last, model.OpID(c.First))
		} else {
			r.last = max(r.last, c.last())
		}
	}
	if isIn && r.descending && (!more || r.last <= clear.ID) {
		p.ops = append(p.ops, clear)
		more = false
	}
	return more, nil
}

// Ops yields a bucket's ops.
func (s *Store) Ops(ctx context.Context, id model.StreamID, bucket string, after, upTo model.OpID) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		if after >= upTo {
			return
		}
		r := pages{s: s, id: id, bucket: hashOf(bucket), after: after, upTo: upTo, data: true}
		for more, begin := true, after; more; {
			from := r.last
			var p *page
			var err error
			p, more, err = r.next(ctx)
			switch {
			case err != nil && !errors.Is(err, store.ErrNoStream):
				err = failed(id, "read ops", err)
			case err == nil && from <= begin && upTo < p.cleared:
				err = store.ErrInvalidated
			case err == nil && from > begin && from < p.cleared:
				err = failed(id, "read ops", errCompacted)
			}
			if err != nil {
				yield(model.Op{}, err)
				return
			}
			for i := range p.ops {
				if !yield(p.ops[i], nil) {
					return
				}
			}
		}
	}
}

// Scan yields a bucket's ops without data, in pages as Ops does.
func (s *Store) Scan(ctx context.Context, id model.StreamID, bucket string, downTo, upTo model.OpID, ascending bool) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		if downTo >= upTo {
			return
		}
		r := pages{s: s, id: id, bucket: hashOf(bucket), after: downTo, upTo: upTo, descending: !ascending}
		for more := true; more; {
			var p *page
			var err error
			if p, more, err = r.next(ctx); err != nil {
				yield(model.Op{}, failed(id, "scan ops", err))
				return
			}
			for i := range p.ops {
				if !yield(p.ops[i], nil) {
					return
				}
			}
		}
	}
}

// lookupsAtOnce bounds the lookups that one command reads.
const lookupsAtOnce = 500

// Lookups returns the values under each lookup at c.
func (s *Store) Lookups(ctx context.Context, id model.StreamID, c model.OpID, lookups []string, limit int) ([][]string, error) {
	before, err := s.current(ctx, id, c)
	if err != nil {
		return nil, err
	}
	upTo := min(opID(c), before.Head.Persisted)
	index := make(map[hash][]int, len(lookups))
	var hashes []hash
	for i, l := range lookups {
		h := hashOf(l)
		if index[h] == nil {
			hashes = append(hashes, h)
		}
		index[h] = append(index[h], i)
	}
	results := make([][]string, len(lookups))
	found := 0
	err = inBatches(hashes, lookupsAtOnce, func(hashes []hash) error {
		ranges := make(bson.A, len(hashes))
		for i, h := range hashes {
			ranges[i] = bson.D{{Key: "_id", Value: bson.D{{Key: "$gte", Value: entryID(h, &model.RowKey{}, math.MaxUint64, 0)}, {Key: "$lte", Value: slices.Concat(h[:], bytes.Repeat([]byte{math.MaxUint8}, 48))}}}}
		}
		cursor, err := s.of(id, lookupsName).Find(ctx, bson.D{{Key: "$or", Value: ranges}, {Key: "o", Value: bson.D{{Key: "$lte", Value: upTo}}}},
			options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}))
		if err != nil {
			return err
		}
		defer cursor.Close(ctx)
		var group []byte
		for cursor.Next(ctx) {
			var e entry
			if err := cursor.Decode(&e); err != nil {
				return err
			}
			if len(e.ID) != groupBytes+16 {
				return record.ErrCorrupt
			}
			if !before.visible(e.Attempt) || bytes.Equal(e.ID[:groupBytes], group) {
				continue
			}
			group = e.ID[:groupBytes] // its newest one
			if e.Removed {
				continue
			}
			for _, i := range index[hash(group)] {
				if found++; found > limit {
					return &store.LimitError{Limit: limit}
				}
				results[i] = append(results[i], string(e.Values))
			}
		}
		return cursor.Err()
	})
	var tooMany *store.LimitError
	if err != nil && !errors.As(err, &tooMany) {
		return nil, failed(id, "read lookups", err)
	}
	after, ferr := s.fresh(ctx, id)
	switch {
	case ferr != nil:
		return nil, ferr
	case opID(c) < after.Superseded:
		return nil, store.ErrInvalidated
	case err != nil:
		return nil, err
	}
	return results, nil
}

// A list of moves: of each the id and the target.

func appendMoves(dst []byte, moves map[model.OpID]model.OpID) []byte {
	for id, target := range moves {
		dst = binary.AppendUvarint(dst, uint64(id))
		dst = binary.AppendUvarint(dst, uint64(target))
	}
	return dst
}

func readMoves(b []byte) (map[model.OpID]model.OpID, error) {
	if len(b) == 0 {
		return nil, nil
	}
	moves := map[model.OpID]model.OpID{}
	r := record.NewReader(textOf(b))
	for r.More() && r.Err() == nil {
		id := model.OpID(r.Uvarint())
		moves[id] = model.OpID(r.Uvarint())
	}
	return moves, r.Err()
}
