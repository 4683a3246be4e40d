package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

func absent(row []model.Value) bool {
	for i := range row {
		if row[i].Kind() == model.Absent {
			return true
		}
	}
	return false
}

// fill reads the values of a row that an update did not send. While a table is
// copied, a change of its key can move a row from the part that is not yet read
// to that already read. The copy misses it then, and the update, which is all
// that the log has of it, leaves out its unchanged large values: nobody else
// could know them (spec/04 §2.4). If the row has another key by now, or is gone,
// the log will say so.
//
// The values may be newer than the update, so no checkpoint is made before the
// log's present end.
func (l *logReader) fill(ctx context.Context, s *relationState, fields []field, row []model.Value, size *int) error {
	if err := l.source.seen(ctx, l.xid, 0); err != nil {
		return err
	}
	st, err := l.current(ctx, s)
	if err != nil || st == nil {
		return err
	}
	t := st.Private.(*table)
	index := map[string]int{} // of the columns in row
	for i := range s.columns {
		index[s.columns[i].name] = i
	}
	var where []string
	for k, column := range t.key {
		c := st.Columns[column]
		i, ok := index[c.Name]
		if !ok || fields[i].kind != 't' {
			return nil
		}
		where = append(where, quote(c.Name)+" = "+literal(string(fields[i].data))+"::"+t.keyTypes[k])
	}
	if len(where) == 0 {
		return nil
	}
	conn, err := l.source.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("read row of %s.%s: %w", s.schema, s.name, err)
	}
	defer conn.Release()
	one := &oneRow{}
	w := &copyWriter{ctx: ctx, source: l.source, table: &st.SourceTable, t: t, copier: one, converter: converter{options: l.stream.Values}, keyIndex: make([]int, len(st.Columns))}
	if _, err := conn.Conn().PgConn().CopyTo(ctx, w, copySelect(st)+" WHERE "+strings.Join(where, " AND ")+") TO STDOUT"); err != nil {
		return fmt.Errorf("read row of %s.%s: %w", s.schema, s.name, err)
	}
	at, err := l.source.Position(ctx)
	if err != nil {
		return err
	}
	l.sink.Hold(at)
	if len(one.rows.Changes) != 1 {
		return nil
	}
	for j, v := range one.rows.Changes[0].Row {
		c := st.Columns[j]
		if i, ok := index[c.Name]; ok && row[i].Kind() == model.Absent && s.table.Columns[i].Type == c.Type {
			row[i] = v
			*size += len(v.Str())
		}
	}
	return nil
}

// oneRow is a copier that keeps what it gets.
type oneRow struct{ rows source.Rows }

func (o *oneRow) Rows() *source.Rows                           { return &o.rows }
func (o *oneRow) Full() bool                                   { return false }
func (o *oneRow) Flush(context.Context, []byte) error          { return nil }
func (o *oneRow) Paused(context.Context, []byte) (bool, error) { return false, nil }
