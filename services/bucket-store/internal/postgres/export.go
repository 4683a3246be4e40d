package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

var _ store.Export = (*Store)(nil)

// LastStream is the highest id that a stream may have had.
func (s *Store) LastStream(ctx context.Context) (id model.StreamID, err error) {
	err = s.read.QueryRow(ctx, `SELECT `+lastStream).Scan(&id)
	return id, err
}

// lastStream is the highest id that a stream may have had.
const lastStream = `greatest((SELECT max(id) FROM streams), (SELECT last_stream FROM owner))`

// Counts counts rows, but for ops, whose number the states of buckets tell.
func (s *Store) Counts(ctx context.Context, id model.StreamID) (n store.Counts, err error) {
	if id == 0 {
		err = s.read.QueryRow(ctx, `SELECT count(*) FROM users`).Scan(&n.Users)
		return n, err
	}
	err = s.read.QueryRow(ctx, of(id, `SELECT coalesce((SELECT sum(count) FROM buckets@), 0)::int8, (SELECT count(*) FROM records@), (SELECT count(*) FROM lookups@), (SELECT count(*) FROM users@)`)).
		Scan(&n.Ops, &n.Records, &n.Entries, &n.Users)
	if err != nil {
		return n, failed(id, "count what there is", err)
	}
	return n, nil
}

// each calls do with the rows of a query, as the server sends them, while it
// returns true. It holds a connection.
func (s *Store) each(ctx context.Context, sql string, do func(v [][]byte) (bool, error), args ...any) error {
	rows, err := s.read.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if more, err := do(rows.RawValues()); err != nil || !more {
			return err
		}
	}
	return rows.Err()
}

const allRecords = `SELECT tbl, rid, value FROM records@ ORDER BY tbl, rid`

// AllRecords yields records by key.
func (s *Store) AllRecords(ctx context.Context, id model.StreamID) iter.Seq2[ledger.KeyedRecord, error] {
	return store.Sequence(func(yield func(ledger.KeyedRecord) bool) error {
		err := s.each(ctx, of(id, allRecords), func(v [][]byte) (bool, error) {
			rec, err := record.Read(string(v[2]))
			if err != nil {
				return false, err
			}
			return yield(ledger.KeyedRecord{Key: model.RowKey{Table: model.TableID(v[0]), Row: model.RowID(v[1])}, Record: rec}), nil
		})
		if err != nil {
			return failed(id, "read records", err)
		}
		return nil
	})
}

// ErrMidway: see AllEntries.
var ErrMidway = errors.New("it stands in the middle of a source transaction that removes parameter lookups: start it, let it reach the end, and stop it again")

// removedMidway tells whether a lookup has a row at the checkpoint $1 and not at
// the end.
const removedMidway = `SELECT EXISTS (SELECT FROM (SELECT DISTINCT ON (lookup, tbl, rid) * FROM lookups@ ORDER BY lookup, tbl, rid, op DESC) h
	WHERE vals = ''::bytea AND op > $1 AND ''::bytea <> (
	  SELECT vals FROM lookups@ v WHERE v.lookup = h.lookup AND v.tbl = h.tbl AND v.rid = h.rid AND v.op <= $1 ORDER BY op DESC LIMIT 1))`

// AllEntries yields the index of the rows that are in it. Lookups stand in it by
// their hashes; it is the records that have their texts, and those only of what a
// row is under now. So what a row is not under any more is left out, as a
// compaction at the checkpoint would; it cannot be if the checkpoint has it.
func (s *Store) AllEntries(ctx context.Context, id model.StreamID) (model.OpID, iter.Seq2[ledger.EntryWrite, error], error) {
	head, err := s.Head(ctx, id)
	if err != nil {
		return 0, nil, err
	}
	var midway bool
	if err := s.read.QueryRow(ctx, of(id, removedMidway), opID(head.Checkpoint.Op)).Scan(&midway); err != nil {
		return 0, nil, failed(id, "read lookups", err)
	}
	if midway {
		return 0, nil, fmt.Errorf("read lookups of stream %d: %w", id, ErrMidway)
	}
	return head.Checkpoint.Op, store.Sequence(func(yield func(ledger.EntryWrite) bool) error {
		p := entryPage{s: s, id: id, texts: map[hash]string{}, yield: yield}
		err := s.each(ctx, of(id, allRecords), func(v [][]byte) (bool, error) {
			rec, err := record.Read(string(v[2]))
			if err != nil {
				return false, err
			}
			for _, l := range rec.Lookups {
				p.add(l.Lookup, [16]byte(v[0]), [16]byte(v[1]))
			}
			if len(p.lookups) < 1000 {
				return true, nil
			}
			return p.read(ctx)
		})
		if err == nil && !p.stopped {
			_, err = p.read(ctx)
		}
		if err != nil {
			return failed(id, "read lookups", err)
		}
		return nil
	}), nil
}

// entryPage reads the entries of some rows under some lookups.
type entryPage struct {
	s                     *Store
	id                    model.StreamID
	texts                 map[hash]string
	lookups, tables, rows [][16]byte
	yield                 func(ledger.EntryWrite) bool
	stopped               bool // yield wants no more
}

func (p *entryPage) add(lookup string, table, row [16]byte) {
	h := hashOf(lookup)
	p.texts[h] = lookup
	p.lookups, p.tables, p.rows = append(p.lookups, h), append(p.tables, table), append(p.rows, row)
}

func (p *entryPage) read(ctx context.Context) (more bool, err error) {
	// By the other pool: the one of reads has one connection at least.
	rows, err := p.s.write.Query(ctx, of(p.id, `SELECT l.lookup, l.tbl, l.rid, l.op, l.vals FROM (SELECT DISTINCT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) k(lookup, tbl, rid)) k
		JOIN lookups@ l ON l.lookup = k.lookup AND l.tbl = k.tbl AND l.rid = k.rid`), p.lookups, p.tables, p.rows)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	for rows.Next() && !p.stopped {
		v := rows.RawValues()
		p.stopped = !p.yield(ledger.EntryWrite{
			ID: model.OpID(binary.BigEndian.Uint64(v[3])), Key: model.RowKey{Table: model.TableID(v[1]), Row: model.RowID(v[2])},
			Lookup: p.texts[hash(v[0])], Values: string(v[4]),
		})
	}
	clear(p.texts)
	p.lookups, p.tables, p.rows = p.lookups[:0], p.tables[:0], p.rows[:0]
	return !p.stopped, rows.Err()
}

// AllUsers yields users by key.
func (s *Store) AllUsers(ctx context.Context, id model.StreamID) iter.Seq2[store.User, error] {
	return store.Sequence(func(yield func(store.User) bool) error {
		table := "users"
		if id != 0 {
			table = of(id, "users@")
		}
		err := s.each(ctx, `SELECT key, id, head, reached_id, reached_head, requested FROM `+table+` ORDER BY hash`, func(v [][]byte) (bool, error) {
			return yield(store.User{Key: string(v[0]), UserCheckpoints: store.UserCheckpoints{
				ID: binary.BigEndian.Uint64(v[1]), Head: model.Position(v[2]), ReachedID: binary.BigEndian.Uint64(v[3]), ReachedHead: model.Position(v[4]),
				Requested: model.Micros(binary.BigEndian.Uint64(v[5])),
			}}), nil
		})
		if err != nil {
			return failed(id, "read write checkpoints", err)
		}
		return nil
	})
}

// AllOps yields ops by the ids of their buckets.
func (s *Store) AllOps(ctx context.Context, id model.StreamID) iter.Seq2[store.ExportedOp, error] {
	return store.Sequence(func(yield func(store.ExportedOp) bool) error {
		var e store.ExportedOp
		// One bucket after the other: the only join that the planner may choose
		// is the one that reads the ops of each by their key.
		err := s.each(ctx, of(id, `SELECT b.name, b.changes, o.op, o.kind, o.checksum, o.target, o.name, o.data FROM buckets@ b, LATERAL (
			  SELECT * FROM ops@ WHERE bucket = b.id ORDER BY op
			) o`), func(v [][]byte) (bool, error) {
			e = store.ExportedOp{Bucket: string(v[0]), Changes: binary.BigEndian.Uint64(v[1]), Op: model.Op{
				ID: model.OpID(binary.BigEndian.Uint64(v[2])), Kind: model.OpKind(binary.BigEndian.Uint16(v[3])), Checksum: model.Checksum(binary.BigEndian.Uint32(v[4])), Data: string(v[7]),
			}}
			if v[5] != nil {
				e.Op.Target = model.OpID(binary.BigEndian.Uint64(v[5]))
			}
			if !target(&e.Op) {
				if err := readName(string(v[6]), &e.Op); err != nil {
					return false, fmt.Errorf("op %s: %w", e.Op.ID, err)
				}
			}
			return yield(e), nil
		})
		if err != nil {
			return failed(id, "read ops", err)
		}
		return nil
	})
}
