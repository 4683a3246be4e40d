package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// byName orders by name, by the index on what a name begins with.
const byName = `substring(name from 1 for 512), name`

// Dirtiest lists buckets: by name or by dirt, each through its index.
func (s *Store) Dirtiest(ctx context.Context, id model.StreamID, q store.DirtyQuery) ([]store.DirtyBucket, error) {
	var limit *int64
	if q.Limit > 0 {
		limit = new(int64(q.Limit))
	}
	where := `(` + byName + `) > (substring($1::bytea from 1 for 512), $1) OR $1 = ''::bytea`
	var rows pgx.Rows
	var err error
	switch {
	case len(q.Only) > 0:
		rows, err = s.read.Query(ctx, of(id, `SELECT name, count, changes FROM buckets@ WHERE hash = ANY($3::uuid[]) AND (`+where+`) ORDER BY `+byName+` LIMIT $2`), bytesOf(q.After), limit, hashes(q.Only))
	case q.MinChanges == 0 && q.After == "":
		rows, err = s.read.Query(ctx, of(id, `SELECT name, count, changes FROM buckets@ ORDER BY `+byName+` LIMIT $1`), limit)
	case q.MinChanges == 0:
		rows, err = s.read.Query(ctx, of(id, `SELECT name, count, changes FROM buckets@ WHERE (`+byName+`) > (substring($1::bytea from 1 for 512), $1) ORDER BY `+byName+` LIMIT $2`), bytesOf(q.After), limit)
	default:
		rows, err = s.read.Query(ctx, of(id, `SELECT name, count, changes FROM buckets@ WHERE dirt > 0 AND dirt >= $1 AND changes >= $2 ORDER BY dirt DESC LIMIT $3`),
			int16(bits.Len64(q.MinChanges)), int64(q.MinChanges), limit)
	}
	if err != nil {
		return nil, failed(id, "list buckets", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d store.DirtyBucket, err error) {
		var name []byte
		err = row.Scan(&name, &d.Ops, &d.Changes)
		d.Bucket = string(name)
		return d, err
	})
	if err != nil {
		return nil, failed(id, "list buckets", err)
	}
	return out, nil
}

// Replace rewrites ops. They are at or below the checkpoint, so no commit
// touches them; only the bucket's state, which is locked last, is shared with
// commits. The advisory lock keeps replacements of one bucket apart.
func (s *Store) Replace(ctx context.Context, id model.StreamID, r store.Replacement) (removed uint64, err error) {
	err = s.transaction(ctx, func(conn *pgx.Conn) error {
		x := replacer{s: s, conn: conn, id: id, r: &r, moved: map[model.OpID]model.OpID{}}
		if err := x.begin(ctx, advisory(s.options.Schema, strconv.FormatInt(int64(id), 10), r.Bucket)); err != nil {
			return err
		}
		if err := x.move(ctx); err != nil {
			return err
		}
		if r.ClearTo > 0 {
			if removed, err = x.clear(ctx); err != nil {
				return err
			}
		}
		return x.end(ctx, removed)
	})
	if err != nil {
		var refused *store.ReplaceError
		if errors.As(err, &refused) {
			return 0, err
		}
		return 0, failed(id, "replace ops", err)
	}
	return removed, nil
}

// replacer is one Replace.
type replacer struct {
	s      *Store
	conn   *pgx.Conn
	id     model.StreamID
	r      *store.Replacement
	bucket int32
	moved  map[model.OpID]model.OpID
	batch  pgx.Batch // goes with the end
}

func (x *replacer) refuse(op model.OpID, format string, args ...any) error {
	return &store.ReplaceError{Bucket: x.r.Bucket, Op: op, Reason: fmt.Sprintf(format, args...)}
}

func (x *replacer) begin(ctx context.Context, lock int64) error {
	var b pgx.Batch
	var h head
	x.s.begin(&b)
	b.Queue(`SET LOCAL synchronous_commit = off`)
	b.Queue(`SELECT pg_advisory_xact_lock($1)`, lock)
	b.Queue(`SELECT `+headColumns+` FROM heads WHERE stream = $1`, int64(x.id)).QueryRow(func(row pgx.Row) (err error) {
		h, err = readHead(row)
		return there(x.id, &h, err)
	})
	b.Queue(of(x.id, `SELECT id FROM buckets@ WHERE hash = $1`), [16]byte(hashOf(x.r.Bucket))).QueryRow(func(row pgx.Row) error {
		return row.Scan(&x.bucket)
	})
	if err := x.conn.SendBatch(ctx, &b).Close(); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	switch {
	case x.bucket == 0:
		return x.refuse(0, "there is no such bucket")
	case x.r.Checkpoint > h.Checkpoint.Op:
		return x.refuse(x.r.Checkpoint, "it is above the checkpoint")
	case x.r.ClearTo > x.r.Checkpoint:
		return x.refuse(x.r.ClearTo, "it is above the checkpoint")
	}
	return nil
}

// stored is what a move needs to know of an op.
type stored struct {
	kind model.OpKind
	name string
}

func (o stored) isRow() bool { return o.kind == model.OpPut || o.kind == model.OpRemove }

// move notes the moves and writes them, except those that go into the CLEAR.
func (x *replacer) move(ctx context.Context) error {
	moves := x.r.Moves
	if len(moves) == 0 {
		return nil
	}
	moves = slices.SortedFunc(slices.Values(moves), func(a, b store.Move) int { return cmp.Compare(a.ID, b.ID) })
	wanted := make([]int64, 0, 2*len(moves))
	for i, m := range moves {
		if m.ID >= m.Target || m.Target > x.r.Checkpoint {
			return x.refuse(m.ID, "its target %s is not between it and the checkpoint", m.Target)
		}
		if i > 0 && m.ID == moves[i-1].ID {
			return x.refuse(m.ID, "it is named twice")
		}
		wanted = append(wanted, opID(m.ID), opID(m.Target))
	}
	slices.Sort(wanted)
	rows, err := x.conn.Query(ctx, of(x.id, `SELECT o.op, o.kind, o.name FROM unnest($2::int8[]) k(op) JOIN ops@ o ON o.bucket = $1 AND o.op = k.op`), x.bucket, slices.Compact(wanted))
	if err != nil {
		return err
	}
	ops := make(map[model.OpID]stored, len(wanted))
	var op model.OpID
	var o stored
	var name []byte
	if _, err := pgx.ForEachRow(rows, []any{&op, &o.kind, &name}, func() error {
		o.name = string(name)
		ops[op] = o
		return nil
	}); err != nil {
		return err
	}
	var ids, targets []int64
	for _, m := range moves {
		op, found := ops[m.ID]
		switch target := ops[m.Target]; {
		case !found:
			return x.refuse(m.ID, "it is not there")
		case op.kind == model.OpMove: // done before
		case !op.isRow():
			return x.refuse(m.ID, "it is a %s", op.kind)
		case !target.isRow():
			return x.refuse(m.Target, "it is no PUT or REMOVE, and cannot supersede another op")
		case target.name != op.name:
			return x.refuse(m.ID, "op %s is of another row", m.Target)
		default:
			x.moved[m.ID] = m.Target
			if m.ID > x.r.ClearTo {
				ids, targets = append(ids, opID(m.ID)), append(targets, opID(m.Target))
			}
		}
	}
	if len(ids) > 0 {
		x.batch.Queue(of(x.id, `UPDATE ops@ o SET kind = $2, target = k.target, name = NULL, data = NULL
			FROM unnest($3::int8[], $4::int8[]) k(op, target) WHERE o.bucket = $1 AND o.op = k.op`), x.bucket, int16(model.OpMove), ids, targets)
	}
	return nil
}

// clear makes everything up to ClearTo one CLEAR and returns the ops that are
// gone.
func (x *replacer) clear(ctx context.Context) (removed uint64, err error) {
	rows, err := x.conn.Query(ctx, of(x.id, `SELECT op, kind, checksum, coalesce(target, 0) FROM ops@ WHERE bucket = $1 AND op <= $2 ORDER BY op`), x.bucket, opID(x.r.ClearTo))
	if err != nil {
		return 0, err
	}
	var op, last, target, newest model.OpID
	var kind model.OpKind
	var checksum, sum int32
	if _, err := pgx.ForEachRow(rows, []any{&op, &kind, &checksum, &target}, func() error {
		to, moved := x.moved[op]
		if !moved && kind == model.OpPut {
			return x.refuse(op, "it is a PUT and cannot be cleared")
		}
		sum += checksum
		newest = max(newest, target, to)
		last = op
		removed++
		return nil
	}); err != nil {
		return 0, err
	}
	if last != x.r.ClearTo {
		return 0, x.refuse(x.r.ClearTo, "it is not there")
	}
	x.batch.Queue(of(x.id, `DELETE FROM ops@ WHERE bucket = $1 AND op < $2`), x.bucket, opID(last))
	x.batch.Queue(of(x.id, `UPDATE ops@ SET kind = $3, checksum = $4, target = $5, name = NULL, data = NULL WHERE bucket = $1 AND op = $2`),
		x.bucket, opID(last), int16(model.OpClear), sum, opID(newest))
	return removed - 1, nil
}

func (x *replacer) end(ctx context.Context, removed uint64) error {
	cleared := model.OpID(0)
	if removed > 0 {
		cleared = x.r.ClearTo
	}
	if removed > 0 || x.r.Finished {
		x.batch.Queue(of(x.id, `UPDATE buckets@ SET count = count - $2, base_count = CASE WHEN $3 <= base_last THEN base_count - $2 ELSE base_count END,
			cleared = greatest(cleared, $3), changes = CASE WHEN NOT $4 THEN changes WHEN last <= $5 THEN 0 WHEN base_last <= $5 AND $5 < first THEN count - base_count
			ELSE (SELECT count(*) FROM ops@ WHERE bucket = $6 AND op > $5) END WHERE hash = $1`),
			[16]byte(hashOf(x.r.Bucket)), int64(removed), opID(cleared), x.r.Finished, opID(x.r.Checkpoint), x.bucket)
	}
	x.batch.Queue(`COMMIT`)
	return send(ctx, x.conn, &x.batch)
}

// entryKey is the key of an entry of the parameter index.
type entryKey struct {
	lookup, tbl, rid [16]byte
	op               int64
}

func (k *entryKey) group() []byte { return slices.Concat(k.lookup[:], k.tbl[:], k.rid[:]) }

// CompactLookups drops superseded entries, a few thousand in each transaction.
// Who reads at a checkpoint below the newest op that superseded a dropped entry
// is told so (ErrInvalidated). A place is a group: lookup, table, row.
func (s *Store) CompactLookups(ctx context.Context, id model.StreamID, c model.OpID, from []byte, limit int) (removed uint64, next []byte, err error) {
	if len(from) == 0 {
		from = make([]byte, 48)
	}
	if len(from) != 48 {
		return 0, nil, fmt.Errorf("compact lookups: %x is not a place", from)
	}
	if s.epoch.Load() == 0 {
		return 0, nil, store.ErrNotOwner // looking needs no right, but is of use to the owner only
	}
	head, err := s.Head(ctx, id)
	if err != nil {
		return 0, nil, err
	}
	if c > head.Checkpoint.Op {
		return 0, nil, &store.ReplaceError{Op: c, Reason: "it is above the checkpoint"}
	}
	w := lookupWalk{c: int64(c), limit: limit}
	at := entryKey{lookup: [16]byte(from), tbl: [16]byte(from[16:]), rid: [16]byte(from[32:]), op: int64(^uint64(0) >> 1)}
	for inclusive := true; ; inclusive = false {
		page, err := s.lookupPage(ctx, id, at, inclusive)
		if err != nil {
			return removed, nil, failed(id, "compact lookups", err)
		}
		w.gone = w.gone[:0]
		for i := range page {
			if next = w.look(&page[i]); next != nil {
				break
			}
		}
		if len(page) < s.options.lookupStep {
			w.leave()
		}
		if len(w.gone) > 0 {
			n, err := s.dropLookups(ctx, id, w.gone, w.cleared)
			if err != nil {
				return removed, nil, failed(id, "compact lookups", err)
			}
			removed += n
		}
		if next != nil || len(page) < s.options.lookupStep {
			return removed, next, nil
		}
		at = page[len(page)-1].entryKey
	}
}

type entry struct {
	entryKey
	removed bool
}

// lookupPage reads entries that follow at, in the order of the index.
func (s *Store) lookupPage(ctx context.Context, id model.StreamID, at entryKey, inclusive bool) ([]entry, error) {
	rows, err := s.write.Query(ctx, of(id, `SELECT lookup, tbl, rid, op, vals = ''::bytea FROM lookups@
		WHERE (lookup, tbl, rid) >= ($1, $2, $3) AND ((lookup, tbl, rid) > ($1, $2, $3) OR op < $4 OR $5)
		ORDER BY lookup, tbl, rid, op DESC LIMIT $6`), at.lookup, at.tbl, at.rid, at.op, inclusive, s.options.lookupStep)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e entry, err error) {
		err = row.Scan(&e.lookup, &e.tbl, &e.rid, &e.op, &e.removed)
		return e, err
	})
}

// lookupWalk sees entries in the order of the index: newest first in a group.
type lookupWalk struct {
	c      int64
	limit  int
	looked int
	group  []byte
	newest int64 // of group, at most c; 0 = not met yet
	// tombstone of group, if its newest entry is one. It goes last: without it
	// the entries that it removed would be back.
	tombstone *entryKey

	gone    []entryKey
	cleared int64 // the newest op that superseded one of gone
}

// look takes an entry, or returns its place if the walk ends before it.
func (w *lookupWalk) look(e *entry) (next []byte) {
	if g := e.group(); !bytes.Equal(g, w.group) {
		if w.looked >= w.limit && w.limit > 0 {
			w.leave()
			return g
		}
		w.leave()
		w.group, w.newest = g, 0
	}
	w.looked++
	if e.op > w.c {
		return nil
	}
	switch {
	case w.newest != 0:
		w.cleared = max(w.cleared, w.newest)
		w.gone = append(w.gone, e.entryKey)
	case e.removed:
		w.newest, w.tombstone = e.op, &e.entryKey
	default:
		w.newest = e.op
	}
	return nil
}

// leave is called when there are no more entries of the group.
func (w *lookupWalk) leave() {
	if w.tombstone != nil {
		w.cleared = max(w.cleared, w.newest)
		w.gone = append(w.gone, *w.tombstone)
		w.tombstone = nil
	}
}

func (s *Store) dropLookups(ctx context.Context, id model.StreamID, gone []entryKey, cleared int64) (removed uint64, err error) {
	n := len(gone)
	lookups, tables, rows, ops := make([][16]byte, n), make([][16]byte, n), make([][16]byte, n), make([]int64, n)
	for i, k := range gone {
		lookups[i], tables[i], rows[i], ops[i] = k.lookup, k.tbl, k.rid, k.op
	}
	err = s.transaction(ctx, func(conn *pgx.Conn) error {
		var b pgx.Batch
		s.begin(&b)
		b.Queue(`SET LOCAL synchronous_commit = off`)
		b.Queue(of(id, `DELETE FROM lookups@ l USING unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int8[]) k(lookup, tbl, rid, op)
			WHERE l.lookup = k.lookup AND l.tbl = k.tbl AND l.rid = k.rid AND l.op = k.op`), lookups, tables, rows, ops).Exec(func(tag pgconn.CommandTag) error {
			removed = uint64(tag.RowsAffected())
			return nil
		})
		// Last: it locks the head, which commits wait for.
		b.Queue(`UPDATE heads SET lookups_cleared = greatest(lookups_cleared, $2) WHERE stream = $1`, int64(id), cleared)
		b.Queue(`COMMIT`)
		return conn.SendBatch(ctx, &b).Close()
	})
	return removed, err
}
