package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

const (
	// statusInterval is how often the server hears of us, at least.
	statusInterval = time.Second
	// senderTimeout is the patience that the server shall have with us
	// (wal_sender_timeout), where we may say so; else it is a minute by default.
	// In the middle of a large transaction of which we want nothing, half of it is
	// how often the server gets to answer.
	senderTimeout        = 20 * time.Second
	senderTimeoutVersion = 120000
	// silence is how long the server may be silent while we listen; it is asked
	// for a sign of life before.
	silence    = 20 * time.Second
	oldSilence = 45 * time.Second // where senderTimeout cannot be set
	askAfter   = 5 * time.Second
	// insistence is how long a server may ask for the confirmation of a place
	// that does not come, before the connection is given up so that it can shut
	// down.
	insistence = 10 * time.Second
)

const objectNotInPrerequisiteState = "55000"

// logReader is one stream's slot.
type logReader struct {
	source  *Source
	stream  *model.Stream
	version int
	start   lsn
	origin  origin

	confirmed atomic.Uint64 // what the server may forget
	heard     atomic.Int64  // when a message came, ns; 0 while we do not listen
	answer    chan struct{} // the server wants to hear of us; capacity 1
	wanted    atomic.Uint64 // the place that the server waits for us to confirm, 0 = none

	// What follows is owned by Read.
	sink      source.Sink
	msg       message
	relations map[uint32]*relationState
	converter converter
	open      bool // within a transaction
	skip      bool // that is skipped
	empty     bool // it had no message of ours and no change
	size      uint64
	at        model.Position // not after the end of the open transaction
	xid       uint32         // its id
	recent    []uint32       // transactions that Settled has not found settled
	asked     time.Time      // since when the server asks in vain
}

var _ source.Log = (*logReader)(nil)

// relationState is a relation as this session's decoder has it.
type relationState struct {
	relation
	table   model.SourceTable
	matched bool
	ready   bool // types known, copied, predecessors dropped
	types   []*pgType
}

func (l *logReader) Start() model.Position { return l.start.position() }

// Origin is the cluster and its timeline.
func (l *logReader) Origin() string { return l.origin.String() }

func (l *logReader) Close() {}

func (l *logReader) Tables(ctx context.Context, known map[model.TableID]*model.TableProgress) ([]source.Table, error) {
	return l.TablesOf(ctx, l.stream.Tables, known)
}

func (l *logReader) TablesOf(ctx context.Context, patterns []model.TablePattern, known map[model.TableID]*model.TableProgress) ([]source.Table, error) {
	all, err := l.source.tables(ctx, patterns, 0)
	for i := range all {
		adopt(known, &all[i].SourceTable, all[i].Private.(*table).oid)
	}
	return all, err
}

// Confirm says that everything up to p is stored.
func (l *logReader) Confirm(p model.Position) {
	at, err := parseLSN(string(p))
	if err != nil {
		return // before the first position
	}
	for {
		was := l.confirmed.Load()
		if uint64(at) <= was {
			return
		}
		if l.confirmed.CompareAndSwap(was, uint64(at)) {
			break
		}
	}
	if wanted := l.wanted.Load(); wanted != 0 && uint64(at) >= wanted {
		l.wanted.Store(0)
		l.reportNow()
	}
}

func (l *logReader) reportNow() {
	select {
	case l.answer <- struct{}{}:
	default: // a report is on its way
	}
}

// Read streams the slot's log into sink until ctx ends.
func (l *logReader) Read(ctx context.Context, sink source.Sink) error {
	conn, err := l.source.replicationConn(ctx)
	if err != nil {
		return err
	}
	hijacked, err := l.startReplication(ctx, conn)
	if err != nil {
		conn.Close(context.WithoutCancel(ctx))
		return err
	}
	l.sink = sink
	l.converter.options = l.stream.Values
	l.relations = map[uint32]*relationState{}
	l.open = false

	eg, ctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	var closeOnce sync.Once
	closeConn := func() { closeOnce.Do(func() { hijacked.Conn.Close() }) }
	defer closeConn()
	eg.Go(func() error {
		defer close(done)
		return l.receive(ctx, hijacked.Frontend)
	})
	eg.Go(func() error {
		// The only writer. It ends the reader by closing the connection.
		defer closeConn()
		return l.report(ctx, done, hijacked.Conn)
	})
	return eg.Wait()
}

func (l *logReader) startReplication(ctx context.Context, conn *pgconn.PgConn) (*pgconn.HijackedConn, error) {
	sql := "START_REPLICATION SLOT " + quote(l.stream.Name) + " LOGICAL 0/0 (proto_version '1', publication_names " + literal(quote(publication))
	if l.version >= 140000 {
		sql += ", messages 'true'"
	}
	conn.Frontend().SendQuery(&pgproto3.Query{String: sql + ")"})
	if err := conn.Frontend().Flush(); err != nil {
		return nil, fmt.Errorf("start replication: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	for {
		m, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return nil, fmt.Errorf("start replication: %w", err)
		}
		switch m := m.(type) {
		case *pgproto3.CopyBothResponse:
			h, err := conn.Hijack()
			if err != nil {
				return nil, fmt.Errorf("start replication: %w", err)
			}
			return h, nil
		case *pgproto3.ErrorResponse:
			return nil, fmt.Errorf("start replication: %w", pgconn.ErrorResponseToPgError(m))
		}
	}
}

// report tells the server how far we are: each second, and when it asks.
func (l *logReader) report(ctx context.Context, done <-chan struct{}, conn net.Conn) error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	silence := silence
	if l.version < senderTimeoutVersion {
		silence = oldSilence
	}
	var b [39]byte
	b[0] = 'd'
	binary.BigEndian.PutUint32(b[1:], 38)
	b[5] = 'r'
	for {
		at := l.confirmed.Load()
		binary.BigEndian.PutUint64(b[6:], at)
		binary.BigEndian.PutUint64(b[14:], at)
		binary.BigEndian.PutUint64(b[22:], at)
		binary.BigEndian.PutUint64(b[30:], uint64(time.Now().UnixMicro()-postgresEpoch))
		b[38] = 0
		if heard := l.heard.Load(); heard != 0 && time.Since(time.Unix(0, heard)) > askAfter {
			b[38] = 1
		}
		if err := conn.SetWriteDeadline(time.Now().Add(silence)); err != nil {
			return fmt.Errorf("report position: %w", errors.Join(errClosed, err))
		}
		if _, err := conn.Write(b[:]); err != nil {
			return fmt.Errorf("report position: %w", errors.Join(errClosed, err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-done:
			return nil
		case <-tick.C:
		case <-l.answer:
		}
		if heard := l.heard.Load(); heard != 0 && time.Since(time.Unix(0, heard)) > silence {
			return errs.Wrap(errs.S1121, errClosed, "nothing heard of the source for %s", silence)
		}
	}
}

func (l *logReader) receive(ctx context.Context, f *pgproto3.Frontend) error {
	for n := uint(0); ; n++ {
		if n%64 == 0 || f.ReadBufferLen() == 0 {
			l.heard.Store(time.Now().UnixNano())
		}
		m, err := f.Receive()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errClosed
			}
			return fmt.Errorf("read the log: %w", err)
		}
		switch m := m.(type) {
		case *pgproto3.CopyData:
			if err := l.copyData(ctx, m.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("read the log: %w", pgconn.ErrorResponseToPgError(m))
		case *pgproto3.NoticeResponse:
			// From version 18 on a missing publication is no error: its changes are
			// left out with a warning.
			if m.Code == objectNotInPrerequisiteState {
				return errs.Wrap(errs.S1141, source.ErrHistoryLost, "changes were left out of the log: %s", m.Message)
			}
		case *pgproto3.CopyDone:
			return fmt.Errorf("read the log: %w", errClosed)
		}
	}
}

func (l *logReader) copyData(ctx context.Context, b []byte) error {
	if len(b) == 0 {
		return errTruncated
	}
	switch b[0] {
	case 'w':
		if len(b) < 25 {
			return errTruncated
		}
		return l.data(ctx, b[25:])
	case 'k':
		if len(b) < 18 {
			return errTruncated
		}
		asked := b[17] != 0
		if asked {
			l.reportNow()
		}
		// A server that shuts down asks until its whole log is confirmed, of
		// which the end has nothing for us. (Before version 14 the log does not
		// have our messages, and the place of a keepalive stands in for them.)
		end := binary.BigEndian.Uint64(b[1:])
		if l.open || end <= l.confirmed.Load() || !asked && l.version >= 140000 {
			l.asked = time.Time{}
			return nil
		}
		if l.asked.IsZero() {
			l.asked = time.Now()
		} else if asked && time.Since(l.asked) > insistence {
			return fmt.Errorf("the server waits for %s to be confirmed, which does not come: %w", lsn(end), errClosed)
		}
		l.wanted.Store(end)
		return l.idle(ctx, lsn(end))
	}
	return nil
}

// idle makes a place without a transaction one that the ledger will have.
func (l *logReader) idle(ctx context.Context, at lsn) error {
	return l.blocking(func() error { return l.sink.Idle(ctx, at.position()) })
}

// blocking runs what may wait for the pipeline: not the server's silence.
func (l *logReader) blocking(f func() error) error {
	l.heard.Store(0)
	err := f()
	l.heard.Store(time.Now().UnixNano())
	return err
}

func (l *logReader) data(ctx context.Context, b []byte) error {
	m := &l.msg
	if err := m.decode(b); err != nil {
		return err
	}
	l.size += uint64(len(b))
	switch m.tag {
	case 'B':
		l.open, l.empty, l.size = true, true, uint64(len(b))
		l.at, l.xid = m.lsn.position(), m.xid
		l.skip = l.sink.Begin(l.at)
		if len(l.recent) == maxRecent {
			l.recent = slices.Delete(l.recent, 0, maxRecent/2)
		}
		l.recent = append(l.recent, m.xid)
	case 'C':
		l.open = false
		if l.skip {
			return nil
		}
		if l.version < 140000 && l.empty {
			// Perhaps a marker of ours: its content is not sent, its time is.
			l.sink.Heartbeat(model.Micros(m.time))
		}
		t := source.Transaction{Position: m.end.position(), Time: model.Micros(m.time), Bytes: l.size}
		return l.blocking(func() error { return l.sink.Commit(ctx, t) })
	case 'R':
		l.relation(m.rel)
	case 'M':
		if l.skip || !m.transactional || string(m.prefix) != prefix {
			return nil
		}
		at, err := strconv.ParseInt(string(m.content), 10, 64)
		if err != nil {
			at = 0 // a marker without a time
		}
		l.sink.Heartbeat(model.Micros(at))
	case 'I', 'U', 'D', 'T':
		if !l.skip {
			l.empty = false
			return l.change(ctx, m)
		}
	}
	return nil
}

// relation remembers a relation. What follows from it waits for the first
// change that is not skipped.
func (l *logReader) relation(r relation) {
	s := &relationState{relation: r, table: r.sourceTable(), matched: matchesAny(l.stream.Tables, r.schema, r.name)}
	adopt(l.sink.Known(), &s.table, r.oid)
	l.relations[r.oid] = s
}

// prepare makes a relation ready for its first change.
func (l *logReader) prepare(ctx context.Context, s *relationState) error {
	s.ready = true
	if !s.matched {
		// Perhaps it was renamed away: what had its oid is gone.
		if replaced := gone(l.sink.Known(), s.table.ID, s.oid, "", ""); len(replaced) > 0 {
			return l.sink.Table(ctx, nil, replaced)
		}
		return nil
	}
	for _, c := range s.columns {
		if c.typeOID >= firstUserOID {
			l.source.types.forget() // it may have changed with the table
			break
		}
	}
	var err error
	if s.types, err = l.source.columnTypes(ctx, &s.table); err != nil {
		return err
	}
	p := l.sink.Known()[s.table.ID]
	known := p != nil && !bytes.Equal(p.LastKey, source.Dropped)
	replaced := gone(l.sink.Known(), s.table.ID, s.oid, s.schema, s.name)
	if known && len(replaced) == 0 {
		return nil
	}
	var copied *source.Table
	if !known {
		if copied, err = l.current(ctx, s); err != nil {
			return err
		}
		if copied == nil {
			// It is another one by now, or gone, and the log will say so: it goes on
			// from nothing.
			copied = &source.Table{SourceTable: s.table, Place: place(s.oid, nil)}
		}
	}
	return l.sink.Table(ctx, copied, replaced)
}

// current returns a relation's table as it is now, nil if that is another one.
func (l *logReader) current(ctx context.Context, s *relationState) (*source.Table, error) {
	for _, seen := range []bool{false, true} {
		if seen {
			if err := l.source.seen(ctx, l.xid, s.oid); err != nil {
				return nil, err
			}
		}
		found, err := l.source.tables(ctx, nil, s.oid)
		if err != nil {
			return nil, err
		}
		for i := range found {
			adopt(l.sink.Known(), &found[i].SourceTable, s.oid)
		}
		if len(found) == 1 && found[0].ID == s.table.ID {
			return &found[0], nil
		}
	}
	return nil, nil
}

func (l *logReader) change(ctx context.Context, m *message) error {
	if m.tag == 'T' {
		return l.truncate(ctx, m)
	}
	s := l.relations[m.relation]
	if s == nil {
		return errs.New(errs.S1101, "change of relation %d, which was not announced", m.relation)
	}
	if !s.matched {
		if !s.ready {
			return l.blocking(func() error { return l.prepare(ctx, s) })
		}
		return nil
	}
	if l.sink.Skip() {
		return nil
	}
	if !s.ready {
		if err := l.blocking(func() error { return l.prepare(ctx, s) }); err != nil {
			return err
		}
	}
	rows := l.sink.Rows()
	l.converter.arena = &rows.Arena
	c := model.Change{Table: &s.table}
	rowSize, beforeSize := 16, 16
	var err error
	switch m.tag {
	case 'I':
		c.Op = model.Insert
		c.Row, err = l.row(rows, s, m.new, nil, &rowSize)
	case 'U':
		c.Op = model.Update
		if m.oldKind != 0 {
			if c.Before, err = l.before(rows, s, m.old, &beforeSize); err != nil {
				return err
			}
		}
		if c.Row, err = l.row(rows, s, m.new, c.Before, &rowSize); err != nil {
			return err
		}
		if c.Before != nil && sameKey(&s.table, c.Before, c.Row) {
			c.Before, beforeSize = nil, 0
		}
		if c.Before != nil && l.at < l.sink.CopiedUntil() && absent(c.Row) {
			if err := l.blocking(func() error { return l.fill(ctx, s, m.new, c.Row, &rowSize) }); err != nil {
				return err
			}
		}
	case 'D':
		c.Op = model.Delete
		c.Before, err = l.before(rows, s, m.old, &beforeSize)
	}
	if err != nil {
		return err
	}
	if rows.TooLarge(rowSize + beforeSize) {
		l.source.reportTooLarge(&s.table, rowSize)
		c, rowSize = removal(rows, &s.table, c, beforeSize)
	}
	if c.Op != 0 {
		rows.Add(c, rowSize+beforeSize)
	}
	if rows.Bytes < fullRows {
		return l.sink.Added(ctx)
	}
	return l.blocking(func() error { return l.sink.Added(ctx) })
}

// fullRows is the size from which on adding may have to wait.
const fullRows = 128 << 10

// removal replaces the change of a row that is too large by the row's removal
// (INV-13); its Op is 0 if nothing names the row, or only all of it does.
func removal(rows *source.Rows, t *model.SourceTable, c model.Change, beforeSize int) (model.Change, int) {
	if c.Before != nil && !rows.TooLarge(beforeSize) {
		return model.Change{Table: t, Op: model.Delete, Before: c.Before}, 0
	}
	if c.Before != nil || t.CompleteRows {
		return model.Change{}, 0
	}
	before := rows.Values(len(t.Columns))
	size := 0
	for i := range t.Columns {
		if t.Columns[i].Key {
			before[i] = c.Row[i]
			size += len(c.Row[i].Str()) + 16
		}
	}
	if size == 0 || rows.TooLarge(size) {
		return model.Change{}, 0
	}
	return model.Change{Table: t, Op: model.Delete, Before: before}, size
}

// row converts a new tuple. Unchanged values are taken from the old one where
// it has them, else they are Absent.
func (l *logReader) row(rows *source.Rows, s *relationState, fields []field, before []model.Value, size *int) ([]model.Value, error) {
	if len(fields) != len(s.types) {
		return nil, errs.New(errs.S1101, "row of %d columns in table %s.%s, which has %d", len(fields), s.schema, s.name, len(s.types))
	}
	row := rows.Values(len(fields))
	for i := range fields {
		switch f := &fields[i]; f.kind {
		case 't':
			row[i] = l.converter.value(s.types[i], f.data)
			*size += len(row[i].Str()) + 3
		case 'n':
			row[i] = model.NullValue
		case 'u':
			if before != nil {
				row[i] = before[i]
				*size += len(row[i].Str()) + 3
			}
		}
	}
	return row, nil
}

// before converts an old tuple: the columns of the replica identity.
func (l *logReader) before(rows *source.Rows, s *relationState, fields []field, size *int) ([]model.Value, error) {
	if len(fields) != len(s.types) {
		return nil, errs.New(errs.S1101, "old row of %d columns in table %s.%s, which has %d", len(fields), s.schema, s.name, len(s.types))
	}
	row := rows.Values(len(fields))
	for i := range fields {
		if !s.columns[i].key {
			continue
		}
		switch f := &fields[i]; f.kind {
		case 't':
			row[i] = l.converter.value(s.types[i], f.data)
			*size += len(row[i].Str()) + 3
		case 'n':
			row[i] = model.NullValue
		}
	}
	return row, nil
}

func sameKey(t *model.SourceTable, a, b []model.Value) bool {
	for i := range t.Columns {
		if t.Columns[i].Key && a[i] != b[i] {
			return false
		}
	}
	return true
}

func (l *logReader) truncate(ctx context.Context, m *message) error {
	counted := false
	for _, oid := range m.truncated {
		s := l.relations[oid]
		if s == nil {
			return errs.New(errs.S1101, "truncation of relation %d, which was not announced", oid)
		}
		if !s.matched {
			continue
		}
		if !counted {
			// One message is one change of the cursor, however many tables.
			if l.sink.Skip() {
				return nil
			}
			counted = true
		}
		if !s.ready {
			if err := l.blocking(func() error { return l.prepare(ctx, s) }); err != nil {
				return err
			}
		}
		l.sink.Rows().Add(model.Change{Table: &s.table, Op: model.Truncate}, 16)
	}
	if !counted {
		return nil
	}
	return l.blocking(func() error { return l.sink.Added(ctx) })
}

// Lag reads how far the slot is behind.
func (l *logReader) Lag(ctx context.Context) (source.Lag, error) {
	return l.source.lag(ctx, l.stream.Name)
}

func (s *Source) lag(ctx context.Context, name string) (source.Lag, error) {
	ctx, cancel := context.WithTimeout(ctx, catalogTime)
	defer cancel()
	f, err := s.findSlot(ctx, name)
	if err != nil {
		return source.Lag{}, err
	}
	lag := source.Lag{Bytes: -1, SafeWALSize: -1, MaxSlotWALKeepSize: -1}
	if f == nil {
		lag.Missing = true
		return lag, nil
	}
	lag.Bytes = max(int64(f.current)-int64(f.confirmed), 0)
	lag.WALStatus, lag.SafeWALSize, lag.Confirmed = f.status, f.safe, f.confirmed.position()
	if version, err := s.serverVersion(ctx); err == nil && version >= 130000 {
		var megabytes int64
		if err := s.pool.QueryRow(ctx, `SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'`).Scan(&megabytes); err != nil {
			return lag, fmt.Errorf("read max_slot_wal_keep_size: %w", err)
		}
		if megabytes >= 0 {
			lag.MaxSlotWALKeepSize = megabytes << 20
		}
	}
	return lag, nil
}

func (s *Source) reportTooLarge(t *model.SourceTable, size int) {
	s.log.Warn("row is too large and not replicated", "code", errs.S1002, "table", t.Schema+"."+t.Name, "bytes", size)
}
