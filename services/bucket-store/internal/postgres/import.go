package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// ErrExists: an import into a schema that has streams or write checkpoints.
var ErrExists = errors.New("there is something already")

// Import fills a schema, which no process may use: the schema says that it is
// being filled until Finish.
type Import struct {
	s    *Store
	made map[model.StreamID]bool // whose tables are there
}

// Import begins to fill the schema, which was opened for it. It removes what an
// import that was cut short has left. The caller is the owner.
func (s *Store) Import(ctx context.Context) (*Import, error) {
	err := s.transaction(ctx, func(conn *pgx.Conn) error {
		var b pgx.Batch
		s.begin(&b)
		b.Queue(changing)
		if err := send(ctx, conn, &b); err != nil {
			return err
		}
		var importing, something bool
		if err := conn.QueryRow(ctx, `SELECT importing, EXISTS (SELECT FROM streams) OR EXISTS (SELECT FROM users) FROM owner`).Scan(&importing, &something); err != nil {
			return err
		}
		if something && !importing {
			return ErrExists
		}
		b = pgx.Batch{}
		// The tables of streams that are not in the catalog yet.
		b.Queue(`SELECT drop_stream(substring(relname FROM 5)::int8) FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind = 'r' AND relname ~ '^ops_[0-9]+$'`,
			pgx.Identifier{s.options.Schema}.Sanitize())
		b.Queue(`DELETE FROM users`)
		b.Queue(`UPDATE owner SET importing = true`)
		b.Queue(`COMMIT`)
		return send(ctx, conn, &b)
	})
	if err != nil {
		return nil, fmt.Errorf("copy into the schema %s: %w", s.options.Schema, err)
	}
	return &Import{s, map[model.StreamID]bool{}}, nil
}

// Add stores a part in one transaction, which Finish makes durable.
func (i *Import) Add(ctx context.Context, p *store.Part) error {
	w := commit{s: i.s, c: &ledger.Commit{Stream: p.Stream, Ops: p.Ops, Entries: p.Entries, Progress: p.Tables}, rows: copies.Get().(*copyRows)}
	defer w.rows.free()
	for n := range p.Buckets {
		b := &p.Buckets[n]
		w.buckets = append(w.buckets, int32(b.Number))
		w.c.Buckets = append(w.c.Buckets, ledger.BucketChange{Bucket: b.Bucket})
	}
	for n := range p.Ops {
		w.c.Buckets[p.Ops[n].Bucket].Count++
	}
	known := make(map[model.RowKey]string, len(p.Records)) // no row is there yet
	for _, r := range p.Records {
		w.c.Rows = append(w.c.Rows, ledger.RowWrite(r))
		known[r.Key] = ""
	}
	table := "users"
	if p.Stream != 0 {
		table = of(p.Stream, "users@")
	}
	return i.s.transaction(ctx, func(conn *pgx.Conn) error {
		var b pgx.Batch
		i.s.begin(&b)
		b.Queue(`SET LOCAL synchronous_commit = off`)
		if p.Stream != 0 && !i.made[p.Stream] {
			b.Queue(`SELECT make_stream($1)`, int64(p.Stream))
			i.made[p.Stream] = true
		}
		if err := send(ctx, conn, &b); err != nil {
			return err
		}
		if err := errors.Join(w.ops(ctx, conn), w.records(ctx, conn, known), w.entries(ctx, conn), w.progress()); err != nil {
			return err
		}
		queueUsers(&w.batch, table, p.Users)
		queueBuckets(&w.batch, p)
		w.batch.Queue(`COMMIT`)
		return send(ctx, conn, &w.batch)
	})
}

// queueBuckets writes the states of a part's buckets.
func queueBuckets(b *pgx.Batch, p *store.Part) {
	n := len(p.Buckets)
	if n == 0 {
		return
	}
	columns := make([][]int64, 10)
	var names [][]byte
	keys := make([]string, n)
	for i := range p.Buckets {
		s := &p.Buckets[i]
		keys[i], names = s.Bucket, append(names, bytesOf(s.Bucket))
		for c, v := range [...]int64{
			int64(s.Number), int64(s.Head.Checksum), int64(s.Head.Count), opID(s.Head.Last),
			int64(s.Base.Checksum), int64(s.Base.Count), opID(s.Base.Last), opID(s.First), opID(s.Cleared), int64(s.Changes),
		} {
			columns[c] = append(columns[c], v)
		}
	}
	args := []any{hashes(keys), names}
	for _, c := range columns {
		args = append(args, c)
	}
	b.Queue(of(p.Stream, `INSERT INTO buckets@ (hash, name, id, checksum, count, last, base_checksum, base_count, base_last, first, cleared, changes)
		SELECT hash, name, id::int4, checksum, count, last, base_checksum, base_count, base_last, first, cleared, changes
		FROM unnest($1::uuid[], $2::bytea[], $3::int8[], $4::int8[], $5::int8[], $6::int8[], $7::int8[], $8::int8[], $9::int8[], $10::int8[], $11::int8[], $12::int8[])
		  k(hash, name, id, checksum, count, last, base_checksum, base_count, base_last, first, cleared, changes)
		ON CONFLICT (hash) DO UPDATE SET checksum = excluded.checksum, count = excluded.count, last = excluded.last,
		  base_checksum = excluded.base_checksum, base_count = excluded.base_count, base_last = excluded.base_last,
		  first = excluded.first, cleared = excluded.cleared`), args...)
}

// Finish writes the catalog, and takes the mark away.
func (i *Import) Finish(ctx context.Context, c *store.ImportedCatalog) error {
	return i.s.transaction(ctx, func(conn *pgx.Conn) error {
		var b pgx.Batch
		i.s.begin(&b)
		b.Queue(changing)
		for n := range c.Streams {
			st := &c.Streams[n]
			if st.State != model.Terminated && !i.made[st.ID] {
				b.Queue(`SELECT make_stream($1)`, int64(st.ID))
			}
			value, err := definition(&st.Stream)
			if err != nil {
				return err
			}
			h := head{StreamHead: st.Head, state: st.State, buckets: int32(st.Buckets)}
			b.Queue(`INSERT INTO streams (id, definition, activated) VALUES ($1, $2, $3)`, int64(st.ID), value, int64(st.Activated))
			b.Queue(`INSERT INTO heads (stream, state, lookups_cleared) VALUES ($1, $2, $3)`, int64(st.ID), int16(st.State), opID(st.LookupsCleared))
			b.Queue(replaceHead, h.arguments(st.ID)...)
		}
		b.Queue(`UPDATE owner SET importing = false, last_stream = $1`, int64(c.LastStream))
		b.Queue(`COMMIT`)
		return send(ctx, conn, &b)
	})
}

// Close closes the store. Without Finish, the mark stays.
func (i *Import) Close() error { return i.s.Close() }
