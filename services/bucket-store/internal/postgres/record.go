package postgres

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
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
		if records[i], err = record.Read(value); err != nil {
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

// tableBytes bounds the records that Table returns, but for one.
const tableBytes = 8 << 20

// Table returns records of a table.
func (s *Store) Table(ctx context.Context, id model.StreamID, table model.TableID, after model.RowID, limit int) (found []ledger.KeyedRecord, more bool, err error) {
	rows, err := s.write.Query(ctx, of(id, `SELECT rid, CASE WHEN n <= $4 AND before < $5 THEN value END FROM (
		  SELECT rid, value, row_number() OVER w AS n, coalesce(sum(octet_length(value)) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
		  FROM (SELECT rid, value FROM records@ WHERE tbl = $1 AND rid >= $2 AND (rid > $2 OR $3) ORDER BY rid LIMIT $4 + 1) r WINDOW w AS (ORDER BY rid)
		) r ORDER BY rid`), [16]byte(table), [16]byte(after), after == model.RowID{}, limit, tableBytes)
	if err != nil {
		return nil, false, failed(id, "read table", err)
	}
	defer rows.Close()
	for rows.Next() {
		v := rows.RawValues()
		if v[1] == nil {
			more = true
			continue
		}
		rec, err := record.Read(string(v[1]))
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
	for i := range w.c.Gone {
		r := &w.c.Gone[i]
		maps.DeleteFunc(known, func(k model.RowKey, _ string) bool { return r.Has(k) })
		// Now, before rows are copied.
		if _, err := conn.Exec(ctx, of(w.c.Stream, `DELETE FROM records@ WHERE tbl = $1 AND rid >= $2 AND (rid > $2 OR $3) AND rid <= $4`),
			[16]byte(r.Table), [16]byte(r.After), r.After == model.RowID{}, [16]byte(r.UpTo)); err != nil {
			return err
		}
	}
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
		value := record.Append(nil, r.Record)
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
