package postgres

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Commit stores c in one transaction: the head is locked and compared, buckets
// that have no id yet get one, and then all rows follow. A small commit takes
// two round trips; rows that are many are copied, by one more for each table.
func (s *Store) Commit(ctx context.Context, c *ledger.Commit) error {
	st := s.stream(c.Stream)
	w := commit{s: s, st: st, c: c, rows: copies.Get().(*copyRows)}
	defer w.rows.free()
	known := st.takeKnown()
	var refused bool
	err := s.transaction(ctx, func(conn *pgx.Conn) error {
		err := w.begin(ctx, conn)
		if err == nil {
			err = store.CheckCommit(w.was.state, &w.was.StreamHead, c)
			refused = err != nil
		}
		if err != nil {
			return err
		}
		if err := w.ops(ctx, conn); err != nil {
			return err
		}
		if err := w.records(ctx, conn, known); err != nil {
			return err
		}
		if err := w.entries(ctx, conn); err != nil {
			return err
		}
		return w.end(ctx, conn)
	})
	if err != nil {
		if !refused && !errors.Is(err, store.ErrNotOwner) {
			st.unsettled.Store(true)
		}
		return failed(c.Stream, "commit", err)
	}
	st.learn(w.ids)
	return nil
}

// takeKnown returns what Records has found, for one commit.
func (st *stream) takeKnown() map[model.RowKey]string {
	st.mu.Lock()
	defer st.mu.Unlock()
	known := st.known
	st.known = nil
	return known
}

// bucketIDs bounds the ids of buckets in memory: 32 bytes each, about.
const bucketIDs = 1 << 20

// learn keeps ids of buckets that are committed. They never change.
func (st *stream) learn(ids map[hash]int32) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.buckets)+len(ids) > bucketIDs {
		clear(st.buckets)
	}
	for h, id := range ids {
		if len(st.buckets) < bucketIDs {
			st.buckets[h] = id
		}
	}
}

// commit is one under way.
type commit struct {
	s  *Store
	st *stream
	c  *ledger.Commit

	was     head
	stream  model.Stream   // its definition, if c.Layer is not 0
	buckets []int32        // id of each of c.Buckets
	hashes  []hash         // of each of c.Buckets
	ids     map[hash]int32 // that were not known
	users   map[string]store.UserCheckpoints
	batch   pgx.Batch // goes with the end
	rows    *copyRows
}

// begin locks and reads the head, and finds the ids of buckets and the custom
// write checkpoints.
func (w *commit) begin(ctx context.Context, conn *pgx.Conn) error {
	c := w.c
	w.buckets, w.hashes = make([]int32, len(c.Buckets)), make([]hash, len(c.Buckets))
	var unknown [][16]byte
	var names [][]byte
	for i := range c.Buckets {
		w.hashes[i] = hashOf(c.Buckets[i].Bucket)
	}
	w.st.mu.Lock()
	for i, h := range w.hashes {
		if id, ok := w.st.buckets[h]; ok {
			w.buckets[i] = id
		} else {
			unknown, names = append(unknown, h), append(names, bytesOf(c.Buckets[i].Bucket))
		}
	}
	w.st.mu.Unlock()

	var b pgx.Batch
	w.s.begin(&b)
	if c.Activate || c.Layer > 0 {
		b.Queue(changing)
		b.Queue(`SELECT FROM heads ORDER BY stream FOR UPDATE`)
	}
	if c.Layer > 0 {
		b.Queue(`SELECT definition FROM streams WHERE id = $1`, int64(c.Stream)).QueryRow(func(row pgx.Row) error {
			var def []byte
			if err := row.Scan(&def); err != nil {
				return fmt.Errorf("read definition: %w", err)
			}
			return json.Unmarshal(def, &w.stream)
		})
	}
	var refused error // by the head; what comes after it does not matter then
	b.Queue(`SELECT `+headColumns+` FROM heads WHERE stream = $1 FOR UPDATE`, int64(c.Stream)).QueryRow(func(row pgx.Row) error {
		h, err := readHead(row)
		if err = there(c.Stream, &h, err); err != nil {
			refused = err
			return err
		}
		w.was = h
		return nil
	})
	if len(unknown) > 0 {
		w.ids = make(map[hash]int32, len(unknown))
		b.Queue(of(c.Stream, resolve), int64(c.Stream), unknown, names).Query(w.resolved)
	}
	if len(c.Checkpoints) > 0 {
		keys := make([]string, len(c.Checkpoints))
		for i := range c.Checkpoints {
			keys[i] = c.Checkpoints[i].UserKey
		}
		b.Queue(of(c.Stream, selectUsers("users@")), hashes(keys)).Query(func(rows pgx.Rows) (err error) {
			w.users, err = readUsers(rows)
			return err
		})
	}
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return cmp.Or(refused, err)
	}
	for i, h := range w.hashes {
		if w.buckets[i] == 0 {
			w.buckets[i] = w.ids[h]
		}
	}
	return nil
}

// resolve returns the ids of buckets, giving one to those that have none; the
// head is locked.
const resolve = `WITH k AS (SELECT hash, name FROM unnest($2::uuid[], $3::bytea[]) k(hash, name)),
	made AS (
	  INSERT INTO buckets@ (hash, name, id)
	  SELECT hash, name, (SELECT buckets FROM heads WHERE stream = $1) + row_number() OVER ()
	  FROM k WHERE NOT EXISTS (SELECT FROM buckets@ b WHERE b.hash = k.hash) RETURNING hash, id
	)
	SELECT hash, id, true FROM made UNION ALL SELECT b.hash, b.id, false FROM k JOIN buckets@ b ON b.hash = k.hash`

func (w *commit) resolved(rows pgx.Rows) error {
	for rows.Next() {
		v := rows.RawValues()
		w.ids[hash(v[0])] = int32(binary.BigEndian.Uint32(v[1]))
		if v[2][0] == 1 {
			w.was.buckets++
		}
	}
	return rows.Err()
}

// ops writes the ops in the order of buckets, so that what is read together
// stands together.
func (w *commit) ops(ctx context.Context, conn *pgx.Conn) error {
	ops := w.c.Ops
	order := opOrder(w.c, w.buckets)
	if len(ops) >= w.s.options.copyRows {
		w.rows.begin()
		for _, i := range order {
			op := &ops[i].Op
			w.rows.row(7)
			w.rows.int8(opID(op.ID))
			if target(op) {
				w.rows.int8(opID(op.Target))
			} else {
				w.rows.null()
			}
			w.rows.int4(w.buckets[ops[i].Bucket])
			w.rows.int4(int32(op.Checksum))
			w.rows.int2(int16(op.Kind))
			if target(op) {
				w.rows.null()
			} else {
				w.rows.name(op)
			}
			if op.Kind == model.OpPut {
				w.rows.bytes(op.Data)
			} else {
				w.rows.null()
			}
		}
		return w.rows.copy(ctx, conn, of(w.c.Stream, `COPY ops@ (op, target, bucket, checksum, kind, name, data) FROM STDIN BINARY`))
	}
	if len(ops) == 0 {
		return nil
	}
	n := len(ops)
	ids, targets, buckets, sums := make([]int64, n), make([]*int64, n), make([]int32, n), make([]int32, n)
	kinds, names, data := make([]int16, n), make([][]byte, n), make([][]byte, n)
	for to, i := range order {
		op := &ops[i].Op
		ids[to], buckets[to], sums[to], kinds[to] = opID(op.ID), w.buckets[ops[i].Bucket], int32(op.Checksum), int16(op.Kind)
		if target(op) {
			targets[to] = new(opID(op.Target))
		} else {
			names[to] = appendName(nil, op)
		}
		if op.Kind == model.OpPut {
			data[to] = bytesOf(op.Data)
		}
	}
	w.batch.Queue(of(w.c.Stream, `INSERT INTO ops@ (op, target, bucket, checksum, kind, name, data)
		SELECT * FROM unnest($1::int8[], $2::int8[], $3::int4[], $4::int4[], $5::int2[], $6::bytea[], $7::bytea[])`),
		ids, targets, buckets, sums, kinds, names, data)
	return nil
}

// target tells whether an op has a target rather than a name.
func target(op *model.Op) bool { return op.Kind == model.OpMove || op.Kind == model.OpClear }

// opOrder returns the indexes of the ops in the order of bucket and op.
func opOrder(c *ledger.Commit, ids []int32) []int32 {
	buckets := make([]int32, len(ids))
	for i := range buckets {
		buckets[i] = int32(i)
	}
	slices.SortFunc(buckets, func(a, b int32) int { return cmp.Compare(ids[a], ids[b]) })
	next := make([]int32, len(ids)) // the place of the bucket's next op
	place := int32(0)
	for _, i := range buckets {
		next[i] = place
		place += int32(c.Buckets[i].Count)
	}
	order := make([]int32, len(c.Ops))
	for i := range c.Ops {
		b := c.Ops[i].Bucket
		order[next[b]] = int32(i)
		next[b]++
	}
	return order
}

// entries writes the new versions of the parameter index.
func (w *commit) entries(ctx context.Context, conn *pgx.Conn) error {
	entries := w.c.Entries
	if len(entries) >= w.s.options.copyRows {
		w.rows.begin()
		for i := range entries {
			e := &entries[i]
			w.rows.row(5)
			w.rows.uuid(hashOf(e.Lookup))
			w.rows.uuid(e.Key.Table)
			w.rows.uuid(e.Key.Row)
			w.rows.int8(opID(e.ID))
			w.rows.bytes(e.Values)
		}
		return w.rows.copy(ctx, conn, of(w.c.Stream, `COPY lookups@ (lookup, tbl, rid, op, vals) FROM STDIN BINARY`))
	}
	if len(entries) == 0 {
		return nil
	}
	n := len(entries)
	lookups, tables, rows, ids, values := make([][16]byte, n), make([][16]byte, n), make([][16]byte, n), make([]int64, n), make([][]byte, n)
	for i := range entries {
		e := &entries[i]
		lookups[i], tables[i], rows[i], ids[i], values[i] = hashOf(e.Lookup), e.Key.Table, e.Key.Row, opID(e.ID), []byte(e.Values)
	}
	w.batch.Queue(of(w.c.Stream, `INSERT INTO lookups@ (lookup, tbl, rid, op, vals)
		SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int8[], $5::bytea[])`), lookups, tables, rows, ids, values)
	return nil
}

// addToBuckets adds a commit to the states of its buckets. $1 is the checkpoint
// that readers see until then.
const addToBuckets = `UPDATE buckets@ b SET
	base_checksum = CASE WHEN b.last <= $1 THEN b.checksum ELSE b.base_checksum END,
	base_count = CASE WHEN b.last <= $1 THEN b.count ELSE b.base_count END,
	base_last = CASE WHEN b.last <= $1 THEN b.last ELSE b.base_last END,
	first = CASE WHEN b.last <= $1 THEN k.first ELSE b.first END,
	checksum = (b.checksum + k.checksum) & 4294967295, count = b.count + k.count, last = k.last, changes = b.changes + k.count
	FROM unnest($2::uuid[], $3::int8[], $4::int8[], $5::int8[], $6::int8[]) k(hash, checksum, count, first, last) WHERE b.hash = k.hash`

// end sends everything that is left, and commits.
func (w *commit) end(ctx context.Context, conn *pgx.Conn) error {
	c, b := w.c, &w.batch
	if n := len(c.Buckets); n > 0 {
		names, sums, counts, firsts, lasts := make([][16]byte, n), make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
		for i := range c.Buckets {
			d := &c.Buckets[i]
			names[i], sums[i], counts[i], firsts[i], lasts[i] = w.hashes[i], int64(d.Checksum), int64(d.Count), opID(d.First), opID(d.Last)
		}
		b.Queue(of(c.Stream, addToBuckets), opID(w.was.Checkpoint.Op), names, sums, counts, firsts, lasts)
	}
	if err := w.progress(); err != nil {
		return err
	}
	if len(c.Checkpoints) > 0 {
		queueTaken(b, of(c.Stream, "users@"), w.users, store.CustomRequests(c), w.was.Checkpoint.Position)
	}
	now := head{StreamHead: store.NextHead(&w.was.StreamHead, c), state: w.was.state, buckets: w.was.buckets}
	if c.Activate {
		now.state = model.Active
		b.Queue(`UPDATE streams SET activated = $2 WHERE id = $1`, int64(c.Stream), int64(now.StoredAt))
		b.Queue(`UPDATE heads SET state = $2 WHERE stream <> $1 AND state IN ($3, $4)`, int64(c.Stream), int16(model.Stopped), int16(model.Active), int16(model.Errored))
		b.Queue(catalogChanged)
	}
	if w.stream.Copied(c.Layer) {
		value, err := definition(&w.stream)
		if err != nil {
			return err
		}
		b.Queue(`UPDATE streams SET definition = $2 WHERE id = $1`, int64(c.Stream), value)
		b.Queue(catalogChanged)
	}
	b.Queue(replaceHead, now.arguments(c.Stream)...)
	b.Queue(`COMMIT`)
	r := conn.SendBatch(ctx, b)
	for i := range b.Len() {
		tag, err := r.Exec()
		if err != nil {
			return errors.Join(err, ignored(r.Close()))
		}
		if i == b.Len()-1 && tag.String() != "COMMIT" {
			return errors.Join(fmt.Errorf("the transaction was ended by %s", tag), r.Close())
		}
	}
	return r.Close()
}

// progress writes the progress of tables.
func (w *commit) progress() error {
	n := len(w.c.Progress)
	if n == 0 {
		return nil
	}
	tables, values := make([][16]byte, n), make([][]byte, n)
	for i := range w.c.Progress {
		value, err := json.Marshal(&w.c.Progress[i])
		if err != nil {
			return fmt.Errorf("encode progress: %w", err)
		}
		tables[i], values[i] = w.c.Progress[i].Table.ID, value
	}
	w.batch.Queue(of(w.c.Stream, `INSERT INTO progress@ SELECT DISTINCT ON (tbl) tbl, value FROM unnest($1::uuid[], $2::bytea[]) WITH ORDINALITY k(tbl, value, i)
		ORDER BY tbl, i DESC ON CONFLICT (tbl) DO UPDATE SET value = excluded.value`), tables, values)
	return nil
}
