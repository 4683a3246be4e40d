package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"sync"
	"unsafe"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Checksums returns the states of buckets at c: the running sums at the head
// and at the visible checkpoint, else by subtracting the ops above c.
func (s *Store) Checksums(ctx context.Context, id model.StreamID, c model.OpID, buckets []string) ([]model.BucketState, error) {
	rows, err := s.read.Query(ctx, of(id, `
		SELECT k.i, $2 < b.cleared,
		  CASE WHEN b.last <= $2 THEN b.checksum WHEN b.base_last <= $2 AND $2 < b.first THEN b.base_checksum ELSE b.checksum - o.checksum END,
		  CASE WHEN b.last <= $2 THEN b.count WHEN b.base_last <= $2 AND $2 < b.first THEN b.base_count ELSE b.count - o.count END
		FROM unnest($1::uuid[]) WITH ORDINALITY k(hash, i) JOIN buckets@ b ON b.hash = k.hash
		LEFT JOIN LATERAL (
		  SELECT coalesce(sum(checksum), 0) AS checksum, count(*) AS count FROM ops@
		  WHERE bucket = b.id AND op > $2 AND op <= b.last AND b.last > $2 AND NOT (b.base_last <= $2 AND $2 < b.first)
		) o ON true`), hashes(buckets), opID(c))
	if err != nil {
		return nil, failed(id, "read checksums", err)
	}
	defer rows.Close()
	out := make([]model.BucketState, len(buckets))
	for rows.Next() {
		var i, checksum, count int64
		var cleared bool
		if err := rows.Scan(&i, &cleared, &checksum, &count); err != nil {
			return nil, failed(id, "read checksums", err)
		}
		if cleared {
			return nil, store.ErrInvalidated
		}
		out[i-1] = model.BucketState{Checksum: model.Checksum(checksum), Count: uint64(count)}
	}
	if err := rows.Err(); err != nil {
		return nil, failed(id, "read checksums", err)
	}
	return out, nil
}

func hashes(names []string) [][16]byte {
	out := make([][16]byte, len(names))
	for i, n := range names {
		out[i] = hashOf(n)
	}
	return out
}

// errCompacted: a bucket was cleared between two pages of a read.
var errCompacted = errors.New("the bucket was compacted while it was being read: read it again")

// opsPage reads some ops of a bucket, and where its CLEAR is.
const opsPage = `SELECT b.cleared, o.op, o.kind, o.checksum, o.target, o.name, o.data FROM buckets@ b LEFT JOIN LATERAL (
	  SELECT * FROM (
	    SELECT op, kind, checksum, target, name, data, sum(octet_length(data)) OVER (ORDER BY op ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
	    FROM ops@ WHERE bucket = b.id AND op > $2 AND op <= $3 ORDER BY op LIMIT $4
	  ) p WHERE before IS NULL OR before < $5
	) o ON true WHERE b.hash = $1`

// Ops yields a bucket's ops. It reads them in pages, each by a statement of its
// own: a MOVE between two pages is as good as what was there before, and a
// CLEAR of what is not read yet is an error.
func (s *Store) Ops(ctx context.Context, id model.StreamID, bucket string, after, upTo model.OpID) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		p := pages.Get().(*page)
		defer p.free()
		for begin := after; after < upTo; {
			err := s.page(ctx, p, id, of(id, opsPage),
				[16]byte(hashOf(bucket)), opID(after), opID(upTo), s.options.pageOps, s.options.pageBytes)
			switch {
			case err != nil:
				yield(model.Op{}, err)
				return
			case upTo < p.cleared && after == begin:
				yield(model.Op{}, store.ErrInvalidated)
				return
			case after < p.cleared && after > begin:
				yield(model.Op{}, errCompacted)
				return
			}
			for i := range p.ops {
				if !yield(p.ops[i], nil) {
					return
				}
				after = p.ops[i].ID
			}
			if len(p.ops) < s.options.pageOps && p.data < s.options.pageBytes {
				return
			}
		}
	}
}

// scanOps bounds a page of Scan.
const scanOps = 5000

// Scan yields a bucket's ops without data, in pages as Ops does.
func (s *Store) Scan(ctx context.Context, id model.StreamID, bucket string, downTo, upTo model.OpID, ascending bool) iter.Seq2[model.Op, error] {
	return func(yield func(model.Op, error) bool) {
		order := "DESC"
		if ascending {
			order = "ASC"
		}
		p := pages.Get().(*page)
		defer p.free()
		for downTo < upTo {
			err := s.page(ctx, p, id, of(id, `
				SELECT 0::int8, o.op, o.kind, o.checksum, o.target, o.name, NULL::bytea FROM buckets@ b JOIN LATERAL (
				  SELECT op, kind, checksum, target, name FROM ops@ WHERE bucket = b.id AND op > $2 AND op <= $3 ORDER BY op `+order+` LIMIT $4
				) o ON true WHERE b.hash = $1`),
				[16]byte(hashOf(bucket)), opID(downTo), opID(upTo), scanOps)
			if err != nil {
				yield(model.Op{}, err)
				return
			}
			for i := range p.ops {
				if !yield(p.ops[i], nil) {
					return
				}
			}
			if len(p.ops) < scanOps {
				return
			}
			if last := p.ops[len(p.ops)-1].ID; ascending {
				downTo = last
			} else {
				upTo = last - 1
			}
		}
	}
}

// page is some ops, in memory that the next page uses again.
type page struct {
	cleared model.OpID // of the bucket
	ops     []model.Op
	data    int // bytes of data
	buf     []byte
	spans   []span
}

// pages are those that nobody reads.
var pages = sync.Pool{New: func() any { return &page{} }}

// maxPage bounds the memory of a page that is kept for the next read.
const maxPage = 4 << 20

func (p *page) free() {
	if cap(p.buf) <= maxPage {
		pages.Put(p)
	}
}

// span is where an op's name and data are in buf.
type span struct{ name, data, end int }

// page reads a page and gives the connection back.
func (s *Store) page(ctx context.Context, p *page, id model.StreamID, sql string, args ...any) error {
	p.cleared, p.ops, p.data, p.buf, p.spans = 0, p.ops[:0], 0, p.buf[:0], p.spans[:0]
	rows, err := s.read.Query(ctx, sql, args...)
	if err != nil {
		return failed(id, "read ops", err)
	}
	defer rows.Close()
	for rows.Next() {
		v := rows.RawValues()
		p.cleared = model.OpID(binary.BigEndian.Uint64(v[0]))
		if v[1] == nil {
			continue // a bucket, but no op of it in the range
		}
		op := model.Op{ID: model.OpID(binary.BigEndian.Uint64(v[1])), Kind: model.OpKind(binary.BigEndian.Uint16(v[2])), Checksum: model.Checksum(binary.BigEndian.Uint32(v[3]))}
		if v[4] != nil {
			op.Target = model.OpID(binary.BigEndian.Uint64(v[4]))
		}
		at := span{name: len(p.buf), data: len(p.buf) + len(v[5]), end: len(p.buf) + len(v[5]) + len(v[6])}
		p.buf = append(append(p.buf, v[5]...), v[6]...)
		p.data += len(v[6])
		p.ops, p.spans = append(p.ops, op), append(p.spans, at)
	}
	if err := rows.Err(); err != nil {
		return failed(id, "read ops", err)
	}
	// Only now, when buf stays where it is.
	all := unsafe.String(unsafe.SliceData(p.buf), len(p.buf))
	for i, at := range p.spans {
		op := &p.ops[i]
		op.Data = all[at.data:at.end]
		if op.Kind == model.OpPut || op.Kind == model.OpRemove {
			if err := readName(all[at.name:at.data], op); err != nil {
				return failed(id, fmt.Sprintf("read op %s", op.ID), err)
			}
		}
	}
	return nil
}

// A name of an op: source table, source row, length of the object type, object
// type, object id.

func appendName(dst []byte, op *model.Op) []byte {
	dst = append(dst, op.Key.Table[:]...)
	dst = append(dst, op.Key.Row[:]...)
	dst = binary.AppendUvarint(dst, uint64(len(op.ObjectType)))
	dst = append(dst, op.ObjectType...)
	return append(dst, op.ObjectID...)
}

func readName(name string, op *model.Op) error {
	if len(name) < 33 {
		return record.ErrCorrupt
	}
	copy(op.Key.Table[:], name)
	copy(op.Key.Row[:], name[16:])
	n, size := binary.Uvarint(unsafe.Slice(unsafe.StringData(name), len(name))[32:])
	if size <= 0 || n > uint64(len(name)-32-size) {
		return record.ErrCorrupt
	}
	name = name[32+size:]
	op.ObjectType, op.ObjectID = name[:n], name[n:]
	return nil
}

// Lookups returns the values under each lookup at c.
func (s *Store) Lookups(ctx context.Context, id model.StreamID, c model.OpID, lookups []string, limit int) ([][]string, error) {
	rows, err := s.read.Query(ctx, of(id, `
		SELECT h.lookups_cleared, x.i, x.vals FROM heads h LEFT JOIN LATERAL (
		  SELECT k.i, l.vals FROM unnest($2::uuid[]) WITH ORDINALITY k(lookup, i), LATERAL (
		    SELECT DISTINCT ON (tbl, rid) vals FROM lookups@ WHERE lookup = k.lookup AND op <= $3 ORDER BY tbl, rid, op DESC
		  ) l WHERE l.vals <> ''::bytea LIMIT $4
		) x ON true WHERE h.stream = $1`), int64(id), hashes(lookups), opID(c), int64(min(limit, math.MaxInt32))+1)
	if err != nil {
		return nil, failed(id, "read lookups", err)
	}
	defer rows.Close()
	results := make([][]string, len(lookups))
	found := 0
	for rows.Next() {
		v := rows.RawValues()
		if c < model.OpID(binary.BigEndian.Uint64(v[0])) {
			return nil, store.ErrInvalidated
		}
		if v[1] == nil {
			continue
		}
		if found++; found > limit {
			return nil, &store.LimitError{Limit: limit}
		}
		i := binary.BigEndian.Uint64(v[1]) - 1
		results[i] = append(results[i], string(v[2]))
	}
	if err := rows.Err(); err != nil {
		return nil, failed(id, "read lookups", err)
	}
	return results, nil
}

// bytesOf is a text's bytes, which are not to be changed; not nil, which is NULL.
func bytesOf(s string) []byte {
	if s == "" {
		return []byte{}
	}
	return unsafe.Slice(unsafe.StringData(s), len(s))
}
