package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// head is a row of heads.
type head struct {
	model.StreamHead
	state   model.StreamState
	buckets int32
}

const headColumns = `state, epoch, applied_position, applied_offset, persisted, checkpoint, checkpoint_position, snapshot_done,
	no_checkpoint_before, commit_time, heartbeat, published_at, evaluated_at, stored_at, last_error, last_error_at, buckets, origin`

// readHead reads headColumns, and what comes before them.
func readHead(row pgx.Row, before ...any) (h head, err error) {
	var applied, position, noBefore, lastError, origin []byte
	err = row.Scan(append(before, &h.state, &h.Epoch, &applied, &h.Applied.Offset, &h.Persisted, &h.Checkpoint.Op, &position, &h.SnapshotDone,
		&noBefore, &h.CommitTime, &h.Heartbeat, &h.PublishedAt, &h.EvaluatedAt, &h.StoredAt, &lastError, &h.LastErrorAt, &h.buckets, &origin)...)
	h.Applied.Position, h.Checkpoint.Position = model.Position(applied), model.Position(position)
	h.NoCheckpointBefore, h.LastError, h.Origin = model.Position(noBefore), string(lastError), string(origin)
	return h, err
}

// replaceHead writes all that a commit may change.
const replaceHead = `UPDATE heads SET state = $2, epoch = $3, applied_position = $4, applied_offset = $5, persisted = $6, checkpoint = $7,
	checkpoint_position = $8, snapshot_done = $9, no_checkpoint_before = $10, commit_time = $11, heartbeat = $12, published_at = $13,
	evaluated_at = $14, stored_at = $15, last_error = $16, last_error_at = $17, buckets = $18, origin = $19 WHERE stream = $1`

func (h *head) arguments(id model.StreamID) []any {
	return []any{int64(id), int16(h.state), int64(h.Epoch), []byte(h.Applied.Position), int64(h.Applied.Offset), opID(h.Persisted), opID(h.Checkpoint.Op),
		[]byte(h.Checkpoint.Position), h.SnapshotDone, []byte(h.NoCheckpointBefore), int64(h.CommitTime), int64(h.Heartbeat), int64(h.PublishedAt),
		int64(h.EvaluatedAt), int64(h.StoredAt), []byte(h.LastError), int64(h.LastErrorAt), h.buckets, []byte(h.Origin)}
}

// there tells whether a head that was read is of a stream whose data is there.
func there(id model.StreamID, h *head, err error) error {
	if errors.Is(err, pgx.ErrNoRows) || err == nil && h.state == model.Terminated {
		return fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
	}
	if err != nil {
		return fmt.Errorf("read head of stream %d: %w", id, err)
	}
	return nil
}

// Head returns a stream's head.
func (s *Store) Head(ctx context.Context, id model.StreamID) (model.StreamHead, error) {
	st := s.stream(id)
	query, pool := `SELECT `+headColumns+` FROM heads WHERE stream = $1`, s.read
	unsettled := st.unsettled.Load() && s.epoch.Load() != 0
	if unsettled {
		query, pool = query+` FOR UPDATE`, s.write // waits until a commit under way has ended
	}
	h, err := readHead(pool.QueryRow(ctx, query, int64(id)))
	if err = there(id, &h, err); err != nil {
		return model.StreamHead{}, err
	}
	if unsettled {
		st.unsettled.Store(false)
	}
	return h.StreamHead, nil
}

// Streams returns every stream by id.
func (s *Store) Streams(ctx context.Context) ([]model.Stream, error) {
	rows, err := s.read.Query(ctx, listStreams)
	if err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	return readStreams(rows)
}

const listStreams = `SELECT definition, activated, ` + headColumns + ` FROM streams JOIN heads ON stream = id ORDER BY id`

func readStreams(rows pgx.Rows) ([]model.Stream, error) {
	streams, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (model.Stream, error) {
		var def []byte
		var activated model.Micros
		h, err := readHead(row, &def, &activated)
		if err != nil {
			return model.Stream{}, err
		}
		var st model.Stream
		if err := json.Unmarshal(def, &st); err != nil {
			return st, fmt.Errorf("decode stream: %w", err)
		}
		st.State, st.Head, st.Activated = h.state, h.StreamHead, activated
		return st, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	return streams, nil
}

// changing begins a transaction that no other change of the catalog runs beside.
const changing = `LOCK TABLE streams IN SHARE ROW EXCLUSIVE MODE`

// catalogChanged is part of each transaction that changes what Streams returns,
// heads apart.
const catalogChanged = `UPDATE catalog SET version = version + 1`

// Change alters the catalog.
func (s *Store) Change(ctx context.Context, decide func([]model.Stream) store.Change) (made *model.Stream, err error) {
	err = s.transaction(ctx, func(conn *pgx.Conn) error {
		var b pgx.Batch
		s.begin(&b)
		b.Queue(changing)
		b.Queue(`SELECT FROM heads ORDER BY stream FOR UPDATE`)
		if err := send(ctx, conn, &b); err != nil {
			return fmt.Errorf("lock streams: %w", err)
		}
		rows, err := conn.Query(ctx, listStreams)
		if err != nil {
			return fmt.Errorf("read streams: %w", err)
		}
		streams, err := readStreams(rows)
		if err != nil {
			return err
		}
		change := decide(streams)
		b = pgx.Batch{}
		found := 0
		altered := change.Altered()
		for i := range streams {
			st := streams[i]
			if !slices.Contains(altered, st.ID) {
				continue
			}
			found++
			change.Alter(&st)
			b.Queue(`UPDATE heads SET state = $2 WHERE stream = $1`, int64(st.ID), int16(st.State))
			if _, ok := change.Edited[st.ID]; !ok {
				continue
			}
			value, err := definition(&st)
			if err != nil {
				return err
			}
			b.Queue(`UPDATE streams SET definition = $2 WHERE id = $1`, int64(st.ID), value)
		}
		if found < len(altered) {
			return store.ErrNoStream
		}
		if change.New != nil {
			def := *change.New
			if err := conn.QueryRow(ctx, `SELECT `+lastStream+` + 1`).Scan(&def.ID); err != nil {
				return fmt.Errorf("read the last stream: %w", err)
			}
			def.Name = fmt.Sprintf("%s%d%s", change.Prefix, def.ID, change.Suffix)
			def.Head = model.StreamHead{}
			value, err := definition(&def)
			if err != nil {
				return err
			}
			b.Queue(`INSERT INTO streams (id, definition, activated) VALUES ($1, $2, $3)`, int64(def.ID), value, int64(def.Activated))
			b.Queue(`INSERT INTO heads (stream, state) VALUES ($1, $2)`, int64(def.ID), int16(def.State))
			b.Queue(`SELECT make_stream($1)`, int64(def.ID))
			made = &def
		}
		if len(altered) > 0 || made != nil {
			b.Queue(catalogChanged)
		}
		b.Queue(`COMMIT`)
		return send(ctx, conn, &b)
	})
	if err != nil {
		return nil, fmt.Errorf("change catalog: %w", err)
	}
	return made, nil
}

// definition is st without what columns have.
func definition(st *model.Stream) ([]byte, error) {
	def := *st
	def.Head = model.StreamHead{}
	value, err := json.Marshal(&def)
	if err != nil {
		return nil, fmt.Errorf("encode stream %d: %w", st.ID, err)
	}
	return value, nil
}

// changeHead changes columns of a head whose row is locked.
func (s *Store) changeHead(ctx context.Context, id model.StreamID, change func(*head) error) (h head, err error) {
	err = s.transaction(ctx, func(conn *pgx.Conn) error {
		var b pgx.Batch
		s.begin(&b)
		b.Queue(`SELECT `+headColumns+` FROM heads WHERE stream = $1 FOR UPDATE`, int64(id)).QueryRow(func(row pgx.Row) (err error) {
			h, err = readHead(row)
			return there(id, &h, err)
		})
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		if err := change(&h); err != nil {
			return err
		}
		b = pgx.Batch{}
		b.Queue(`UPDATE heads SET epoch = $2, last_error = $3, last_error_at = $4 WHERE stream = $1`, int64(id), int64(h.Epoch), []byte(h.LastError), int64(h.LastErrorAt))
		b.Queue(`COMMIT`)
		return send(ctx, conn, &b)
	})
	if err != nil {
		return h, fmt.Errorf("change head: %w", err)
	}
	return h, nil
}

// OpenSession raises the epoch.
func (s *Store) OpenSession(ctx context.Context, id model.StreamID) (model.StreamHead, error) {
	h, err := s.changeHead(ctx, id, func(h *head) error {
		if !store.Replicated(h.state) {
			return fmt.Errorf("stream %d: %w", id, store.ErrNotReplicated)
		}
		h.Epoch++
		return nil
	})
	return h.StreamHead, err
}

// ReportError keeps the last error.
func (s *Store) ReportError(ctx context.Context, id model.StreamID, epoch model.Epoch, message string, at model.Micros) error {
	_, err := s.changeHead(ctx, id, func(h *head) error {
		if epoch != h.Epoch {
			return &store.FencedError{Epoch: epoch, Current: h.Epoch}
		}
		h.LastError, h.LastErrorAt = message, at
		if message == "" {
			h.LastErrorAt = 0
		}
		return nil
	})
	return err
}

// Tables returns the progress of every table.
func (s *Store) Tables(ctx context.Context, id model.StreamID) ([]model.TableProgress, error) {
	rows, err := s.read.Query(ctx, of(id, `SELECT value FROM progress@ ORDER BY tbl`))
	if err != nil {
		return nil, failed(id, "read tables", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p model.TableProgress, err error) {
		var value []byte
		if err := row.Scan(&value); err != nil {
			return p, err
		}
		return p, json.Unmarshal(value, &p)
	})
	if err != nil {
		return nil, failed(id, "read tables", err)
	}
	return tables, nil
}

// Clear drops a stopped stream's tables.
func (s *Store) Clear(ctx context.Context, id model.StreamID) error {
	err := s.transaction(ctx, func(conn *pgx.Conn) error {
		var b pgx.Batch
		s.begin(&b)
		b.Queue(changing)
		if err := send(ctx, conn, &b); err != nil {
			return fmt.Errorf("lock streams: %w", err)
		}
		h, err := readHead(conn.QueryRow(ctx, `SELECT `+headColumns+` FROM heads WHERE stream = $1 FOR UPDATE`, int64(id)))
		if errors.Is(err, pgx.ErrNoRows) {
			return store.ErrNoStream
		}
		if err != nil {
			return fmt.Errorf("read head: %w", err)
		}
		switch h.state {
		case model.Terminated:
			return nil
		case model.Stopped:
		default:
			return fmt.Errorf("it is %s: only a stopped one may be cleared", h.state)
		}
		b = pgx.Batch{}
		b.Queue(`SELECT drop_stream($1)`, int64(id))
		b.Queue(`UPDATE heads SET state = $2 WHERE stream = $1`, int64(id), int16(model.Terminated))
		b.Queue(catalogChanged)
		b.Queue(`COMMIT`)
		return send(ctx, conn, &b)
	})
	if err != nil {
		return fmt.Errorf("clear stream %d: %w", id, err)
	}
	s.streams.Delete(id)
	return nil
}
