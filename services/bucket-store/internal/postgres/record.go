package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// Records returns what is known of rows, and remembers it for the commit that
// follows.
func (s *Store) Records(ctx context.Context, id model.StreamID, keys []model.RowKey) ([]*ledger.Record, error) {
	tables, ids := make([][16]byte, len(keys)), make([][16]byte, len(keys))
	known := make(map[model.RowKey]string, len(keys))
	for i := range keys {
		tables[i], ids[i] = keys[i].Table, keys[i].Row
		known[keys[i]] = ""
	}
	rows, err := s.write.Query(ctx, of(id, `SELECT k.i, r.value FROM unnest($1::uuid[], $2::uuid[]) WITH ORDINALITY k(tbl, rid, i)
		JOIN records@ r ON r.tbl = k.tbl AND r.rid = k.rid`), tables, ids)
	if err != nil {
		return nil, failed(id, "read records", err)
	}
	defer rows.Close()
	records := make([]*ledger.Record, len(keys))
	for rows.Next() {
		v := rows.RawValues()
		i := binary.BigEndian.Uint64(v[0]) - 1
		value := string(v[1])
		if records[i], err = readRecord(value); err != nil {
			return nil, failed(id, "read records", err)
		}
		known[keys[i]] = value
	}
	if err := rows.Err(); err != nil {
		return nil, failed(id, "read records", err)
	}
	st := s.stream(id)
	st.mu.Lock()
	st.known = known
	st.mu.Unlock()
	return records, nil
}

// Table returns records of a table.
func (s *Store) Table(ctx context.Context, id model.StreamID, table model.TableID, after model.RowID, limit int) (found []ledger.KeyedRecord, more bool, err error) {
	rows, err := s.write.Query(ctx, of(id, `SELECT rid, value FROM records@ WHERE tbl = $1 AND rid >= $2 AND (rid > $2 OR $3) ORDER BY rid LIMIT $4`),
		[16]byte(table), [16]byte(after), after == model.RowID{}, limit+1)
	if err != nil {
		return nil, false, failed(id, "read table", err)
	}
	defer rows.Close()
	for rows.Next() {
		if len(found) == limit {
			more = true
			continue
		}
		v := rows.RawValues()
		rec, err := readRecord(string(v[1]))
		if err != nil {
			return nil, false, failed(id, "read table", err)
		}
		found = append(found, ledger.KeyedRecord{Key: model.RowKey{Table: table, Row: model.RowID(v[0])}, Record: rec})
	}
	if err := rows.Err(); err != nil {
		return nil, false, failed(id, "read table", err)
	}
	return found, more, nil
}

// records writes and removes records: those that are known to stay the same are
// left alone, many that are known to be new are copied.
func (w *commit) records(ctx context.Context, conn *pgx.Conn, known map[model.RowKey]string) error {
	var fresh, changed []recordRow
	var gone []model.RowKey
	for i := range w.c.Rows {
		r := &w.c.Rows[i]
		old, ok := known[r.Key]
		absent := ok && old == ""
		if r.Record == nil {
			if !absent {
				gone = append(gone, r.Key)
			}
			continue
		}
		value := appendRecord(nil, r.Record)
		switch {
		case absent:
			fresh = append(fresh, recordRow{&r.Key, value})
		case !ok || old != string(value):
			changed = append(changed, recordRow{&r.Key, value})
		}
	}
	if len(gone) > 0 {
		tables, rows := make([][16]byte, len(gone)), make([][16]byte, len(gone))
		for i := range gone {
			tables[i], rows[i] = gone[i].Table, gone[i].Row
		}
		w.batch.Queue(of(w.c.Stream, `DELETE FROM records@ r USING unnest($1::uuid[], $2::uuid[]) k(tbl, rid) WHERE r.tbl = k.tbl AND r.rid = k.rid`), tables, rows)
	}
	if len(fresh) < w.s.options.copyRows {
		changed = append(changed, fresh...)
	} else {
		slices.SortFunc(fresh, recordRow.compare)
		w.rows.begin()
		for _, r := range fresh {
			w.rows.row(3)
			w.rows.uuid(r.key.Table)
			w.rows.uuid(r.key.Row)
			w.rows.size(len(r.value))
			w.rows.buf = append(w.rows.buf, r.value...)
		}
		if err := w.rows.copy(ctx, conn, of(w.c.Stream, `COPY records@ (tbl, rid, value) FROM STDIN BINARY`)); err != nil {
			return err
		}
	}
	slices.SortFunc(changed, recordRow.compare)
	for len(changed) > 0 {
		n, size := 0, 0
		var tables, rows [][16]byte
		var values [][]byte
		for ; n < len(changed) && (n == 0 || size+len(changed[n].value) <= w.s.options.RecordBytes); n++ {
			size += len(changed[n].value)
			tables, rows, values = append(tables, changed[n].key.Table), append(rows, changed[n].key.Row), append(values, changed[n].value)
		}
		w.batch.Queue(of(w.c.Stream, `INSERT INTO records@ AS r SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bytea[])
			ON CONFLICT (tbl, rid) DO UPDATE SET value = excluded.value WHERE r.value <> excluded.value`), tables, rows, values)
		changed = changed[n:]
	}
	return nil
}

type recordRow struct {
	key   *model.RowKey
	value []byte
}

func (r recordRow) compare(other recordRow) int {
	return cmp.Or(bytes.Compare(r.key.Table[:], other.key.Table[:]), bytes.Compare(r.key.Row[:], other.key.Row[:]))
}

// A record: its memberships, each with its object type and id if they are not
// those of the one before, its lookups, its source (up to the end).

func appendRecord(dst []byte, rec *ledger.Record) []byte {
	var typ, id string
	dst = binary.AppendUvarint(dst, uint64(len(rec.Buckets)))
	for i := range rec.Buckets {
		m := &rec.Buckets[i]
		dst = appendText(dst, m.Bucket)
		dst = appendAgain(dst, m.ObjectType, &typ)
		dst = appendAgain(dst, m.ObjectID, &id)
	}
	dst = binary.AppendUvarint(dst, uint64(len(rec.Lookups)))
	for i := range rec.Lookups {
		dst = appendText(dst, rec.Lookups[i].Lookup)
		dst = appendText(dst, rec.Lookups[i].Values)
	}
	return append(dst, rec.Source...)
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// appendAgain writes s, or a zero byte if it is the same as the last one.
func appendAgain(dst []byte, s string, last *string) []byte {
	if s == *last {
		return append(dst, 0)
	}
	*last = s
	return append(binary.AppendUvarint(dst, uint64(len(s))+1), s...)
}

// readRecord decodes a record that shares memory with value.
func readRecord(value string) (*ledger.Record, error) {
	r := reader{s: value}
	rec := &ledger.Record{}
	var typ, id string
	if n := r.uvarint(); n > 0 {
		rec.Buckets = make([]ledger.Membership, 0, min(n, 1024))
		for range n {
			rec.Buckets = append(rec.Buckets, ledger.Membership{Bucket: r.text(), ObjectType: r.again(&typ), ObjectID: r.again(&id)})
			if r.bad {
				return nil, errCorrupt
			}
		}
	}
	if n := r.uvarint(); n > 0 {
		rec.Lookups = make([]model.ParameterEntry, 0, min(n, 1024))
		for range n {
			rec.Lookups = append(rec.Lookups, model.ParameterEntry{Lookup: r.text(), Values: r.text()})
			if r.bad {
				return nil, errCorrupt
			}
		}
	}
	rec.Source = r.s
	if r.bad {
		return nil, errCorrupt
	}
	return rec, nil
}

// reader takes a value apart; the first fault sticks.
type reader struct {
	s   string
	bad bool
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(bytesOf(r.s[:min(len(r.s), binary.MaxVarintLen64)]))
	if size <= 0 {
		r.bad = true
		return 0
	}
	r.s = r.s[size:]
	return n
}

func (r *reader) bytes(n uint64) string {
	if n > uint64(len(r.s)) {
		r.bad = true
		return ""
	}
	s := r.s[:n]
	r.s = r.s[n:]
	return s
}

func (r *reader) text() string { return r.bytes(r.uvarint()) }

// again reads a text that appendAgain wrote.
func (r *reader) again(last *string) string {
	if n := r.uvarint(); n > 0 {
		*last = r.bytes(n - 1)
	}
	return *last
}
