package postgres

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

const (
	// A chunk is one statement, and so one snapshot of the database that keeps
	// vacuum waiting: of about chunkBytes, and chunkRows before sizes are known.
	chunkBytes   = 32 << 20
	chunkRows    = 20_000
	minChunkRows = 1_000
	maxChunkRows = 500_000
)

// Resumable reports whether a copy can begin at the place after.
func (l *logReader) Resumable(t *source.Table, after []byte) bool {
	_, key, ok := parsePlace(after)
	return ok && (len(key) == 0 || len(key) == len(t.Private.(*table).key))
}

// Copy reads a table by COPY, chunk by chunk of its key. A table without a key
// is read in one go, and has no places in its middle.
func (l *logReader) Copy(ctx context.Context, st *source.Table, after []byte, c source.Copier) error {
	t := st.Private.(*table)
	var key []string
	if after != nil {
		var ok bool
		if _, key, ok = parsePlace(after); !ok {
			return errs.New(errs.S1101, "place of table %s.%s cannot be read", st.Schema, st.Name)
		}
	}
	conn, err := l.source.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("copy table %s.%s: %w", st.Schema, st.Name, err)
	}
	defer conn.Release()
	w := &copyWriter{ctx: ctx, source: l.source, table: &st.SourceTable, t: t, copier: c, converter: converter{options: l.stream.Values}, key: make([][]byte, len(t.key)), keyIndex: make([]int, len(st.Columns))}
	for i, k := range t.key {
		w.keyIndex[k] = i + 1
	}
	limit := chunkRows
	for {
		w.rows, w.bytes = 0, 0
		sql := copyStatement(st, t, key, limit)
		watched, stop := w.watch(ctx, l.source.config.SnapshotSocketTimeout)
		tag, err := conn.Conn().PgConn().CopyTo(watched, w, sql)
		if silent := stop(); silent != nil {
			err = silent
		}
		if err == nil {
			err = w.err
		}
		if err != nil {
			return fmt.Errorf("copy table %s.%s: %w", st.Schema, st.Name, err)
		}
		if len(w.rest) > 0 || tag.RowsAffected() != int64(w.rows) {
			return errs.New(errs.S1101, "copy of table %s.%s gave %d of %d rows", st.Schema, st.Name, w.rows, tag.RowsAffected())
		}
		if len(t.key) == 0 || w.rows < limit {
			return nil
		}
		if stop, err := c.Paused(ctx, w.place()); stop || err != nil {
			return err
		}
		key = key[:0]
		for _, k := range w.key {
			key = append(key, string(k))
		}
		limit = min(max(chunkBytes/max(w.bytes/w.rows, 1), minChunkRows), maxChunkRows)
	}
}

// copyStatement reads up to limit rows behind key.
func copyStatement(st *source.Table, t *table, key []string, limit int) string {
	var b strings.Builder
	b.WriteString(copySelect(st))
	var columns, values []string
	for i, k := range t.key {
		columns = append(columns, quote(st.Columns[k].Name))
		if len(key) > 0 {
			values = append(values, literal(key[i])+"::"+t.keyTypes[i])
		}
	}
	var where []string
	if t.filter != "" {
		where = append(where, "("+t.filter+")")
	}
	if len(key) > 0 {
		where = append(where, "("+strings.Join(columns, ", ")+") > ("+strings.Join(values, ", ")+")")
	}
	if len(where) > 0 {
		b.WriteString(" WHERE " + strings.Join(where, " AND "))
	}
	if len(columns) > 0 {
		b.WriteString(" ORDER BY " + strings.Join(columns, ", ") + " LIMIT " + strconv.Itoa(limit))
	}
	b.WriteString(") TO STDOUT")
	return b.String()
}

// copySelect begins a COPY of a table's columns.
func copySelect(st *source.Table) string {
	columns := make([]string, len(st.Columns))
	for i, c := range st.Columns {
		columns[i] = quote(c.Name)
	}
	return "COPY (SELECT " + strings.Join(columns, ", ") + " FROM ONLY " + quote(st.Schema) + "." + quote(st.Name)
}

// copyWriter takes the text form of COPY, a row a line.
type copyWriter struct {
	ctx       context.Context
	source    *Source
	table     *model.SourceTable
	t         *table
	copier    source.Copier
	converter converter
	keyIndex  []int    // by column: place in key, plus one
	key       [][]byte // texts of the last row's key
	rest      []byte   // beginning of a line whose end has not come
	scratch   []byte
	rows      int
	bytes     int
	err       error         // of Flush, which the driver would hide
	writes    atomic.Uint64 // odd while the server waits for us
}

// watch returns a context that ends when the server sends nothing for about
// timeout (0 = ever). stop ends the watch, and returns an error if it was that.
func (w *copyWriter) watch(ctx context.Context, timeout time.Duration) (_ context.Context, stop func() error) {
	if timeout <= 0 {
		return ctx, func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	silent := errs.Wrap(errs.S1121, errClosed, "the source has sent nothing for %s (snapshot_socket_timeout)", timeout)
	var found error // written before watching is closed
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		tick := time.NewTicker(timeout / 4)
		defer tick.Stop()
		last, since := w.writes.Load(), time.Now()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if n := w.writes.Load(); n != last || n%2 != 0 {
				last, since = n, time.Now()
			} else if time.Since(since) >= timeout {
				found = silent
				cancel()
				return
			}
		}
	}()
	return ctx, func() error {
		cancel()
		<-watching
		return found
	}
}

// Write is called with a line at a time by servers so far; that is not promised.
func (w *copyWriter) Write(p []byte) (int, error) {
	w.writes.Add(1)
	defer w.writes.Add(1)
	n := len(p)
	if len(w.rest) > 0 {
		p = append(w.rest, p...)
		w.rest = nil
	}
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			w.rest = append([]byte(nil), p...)
			return n, nil
		}
		if err := w.line(p[:end]); err != nil {
			w.err = err
			return n, err
		}
		p = p[end+1:]
	}
	return n, nil
}

func (w *copyWriter) line(line []byte) error {
	w.rows++
	w.bytes += len(line) + 1
	rows := w.copier.Rows()
	w.converter.arena = &rows.Arena
	columns := w.t.types
	escaped := bytes.IndexByte(line, '\\') >= 0
	row := rows.Values(len(columns))
	tooLarge := rows.TooLarge(len(line))
	size := 0
	for i, typ := range columns {
		text := line
		if end := bytes.IndexByte(line, '\t'); end >= 0 {
			text, line = line[:end], line[end+1:]
		} else if i < len(columns)-1 {
			return errs.New(errs.S1101, "copy gave a row of %d columns, not %d", i+1, len(columns))
		}
		if escaped {
			if len(text) == 2 && text[0] == '\\' && text[1] == 'N' {
				row[i] = model.NullValue
				continue
			}
			if bytes.IndexByte(text, '\\') >= 0 {
				w.scratch = unescape(w.scratch[:0], text)
				text = w.scratch
			}
		}
		if k := w.keyIndex[i]; k > 0 {
			w.key[k-1] = append(w.key[k-1][:0], text...)
		}
		if !tooLarge {
			row[i] = w.converter.value(typ, text)
			size += len(row[i].Str()) + 3
		}
	}
	if tooLarge || rows.TooLarge(size) {
		w.source.reportTooLarge(w.table, w.bytes)
	} else {
		rows.Add(model.Change{Table: w.table, Op: model.SnapshotRow, Row: row}, size)
	}
	if !w.copier.Full() {
		return nil
	}
	return w.copier.Flush(w.ctx, w.place())
}

// place is that behind the last row, or that of the table if it has none.
func (w *copyWriter) place() []byte {
	if len(w.t.key) == 0 {
		return nil
	}
	return place(w.t.oid, w.key)
}

// unescape undoes the escapes of COPY's text form.
func unescape(dst, text []byte) []byte {
	for i := 0; i < len(text); i++ {
		ch := text[i]
		if ch != '\\' || i+1 == len(text) {
			dst = append(dst, ch)
			continue
		}
		i++
		switch ch = text[i]; ch {
		case 'b':
			ch = '\b'
		case 'f':
			ch = '\f'
		case 'n':
			ch = '\n'
		case 'r':
			ch = '\r'
		case 't':
			ch = '\t'
		case 'v':
			ch = '\v'
		}
		dst = append(dst, ch)
	}
	return dst
}
