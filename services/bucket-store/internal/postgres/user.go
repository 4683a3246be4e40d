package postgres

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

func selectUsers(table string) string {
	return `SELECT key, id, head, reached_id, reached_head, requested FROM ` + table + ` WHERE hash = ANY($1::uuid[])`
}

// readUsers reads what selectUsers finds, by key.
func readUsers(rows pgx.Rows) (map[string]store.UserCheckpoints, error) {
	users := map[string]store.UserCheckpoints{}
	var u store.UserCheckpoints
	var key, head, reached []byte
	_, err := pgx.ForEachRow(rows, []any{&key, &u.ID, &head, &u.ReachedID, &reached, &u.Requested}, func() error {
		u.Head, u.ReachedHead = model.Position(head), model.Position(reached)
		users[string(key)] = u
		return nil
	})
	return users, err
}

// queueTaken gives the requests their numbers, while clients see a checkpoint at
// position, and writes what changes of users in the table.
func queueTaken(b *pgx.Batch, table string, users map[string]store.UserCheckpoints, requests []store.WriteCheckpointRequest, position model.Position) []model.WriteCheckpoint {
	taken, keys := store.TakeAll(users, requests, position)
	changed := make([]store.User, len(keys))
	for i, key := range keys {
		changed[i] = store.User{Key: key, UserCheckpoints: users[key]}
	}
	queueUsers(b, table, changed)
	return taken
}

// queueUsers writes users in the table.
func queueUsers(b *pgx.Batch, table string, users []store.User) {
	if len(users) == 0 {
		return
	}
	keys := make([]string, len(users))
	var names, heads, reached [][]byte
	var ids, reachedIDs, at []int64
	for i, u := range users {
		keys[i] = u.Key
		names, heads, reached = append(names, []byte(u.Key)), append(heads, []byte(u.Head)), append(reached, []byte(u.ReachedHead))
		ids, reachedIDs, at = append(ids, int64(u.ID)), append(reachedIDs, int64(u.ReachedID)), append(at, int64(u.Requested))
	}
	b.Queue(`INSERT INTO `+table+` (hash, key, id, head, reached_id, reached_head, requested)
		SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::int8[], $4::bytea[], $5::int8[], $6::bytea[], $7::int8[])
		ON CONFLICT (hash) DO UPDATE SET id = excluded.id, head = excluded.head, reached_id = excluded.reached_id,
		  reached_head = excluded.reached_head, requested = excluded.requested`,
		hashes(keys), names, ids, heads, reachedIDs, reached, at)
}

// lockUsers makes changes of what is handed out follow one another.
func (s *Store) lockUsers(b *pgx.Batch) {
	b.Queue(`SELECT pg_advisory_xact_lock($1)`, advisory(s.options.Schema, "users"))
}

// CreateWriteCheckpoints gives all requests their numbers in one transaction.
func (s *Store) CreateWriteCheckpoints(ctx context.Context, position model.Position, requests []store.WriteCheckpointRequest) ([]model.WriteCheckpoint, error) {
	keys := make([]string, len(requests))
	for i := range requests {
		keys[i] = requests[i].UserKey
	}
	var taken []model.WriteCheckpoint
	err := s.transaction(ctx, func(conn *pgx.Conn) error {
		var users map[string]store.UserCheckpoints
		var b pgx.Batch
		s.begin(&b)
		s.lockUsers(&b)
		b.Queue(selectUsers("users"), hashes(keys)).Query(func(rows pgx.Rows) (err error) {
			users, err = readUsers(rows)
			return err
		})
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		b = pgx.Batch{}
		taken = queueTaken(&b, "users", users, requests, position)
		b.Queue(`COMMIT`)
		return send(ctx, conn, &b)
	})
	if err != nil {
		return nil, fmt.Errorf("store write checkpoints: %w", err)
	}
	return taken, nil
}

// Reached returns the numbers that position has reached.
func (s *Store) Reached(ctx context.Context, position model.Position, keys []string) ([]uint64, error) {
	ids, err := s.reached(ctx, "users", position, keys)
	if err != nil {
		return nil, fmt.Errorf("read write checkpoints: %w", err)
	}
	return ids, nil
}

// CustomReached returns a stream's custom numbers that position has reached.
func (s *Store) CustomReached(ctx context.Context, id model.StreamID, position model.Position, keys []string) ([]uint64, error) {
	ids, err := s.reached(ctx, of(id, "users@"), position, keys)
	if err != nil {
		return nil, failed(id, "read custom write checkpoints", err)
	}
	return ids, nil
}

func (s *Store) reached(ctx context.Context, table string, position model.Position, keys []string) ([]uint64, error) {
	rows, err := s.read.Query(ctx, selectUsers(table), hashes(keys))
	if err != nil {
		return nil, err
	}
	users, err := readUsers(rows)
	if err != nil {
		return nil, err
	}
	ids := make([]uint64, len(keys))
	for i, key := range keys {
		u := users[key]
		ids[i] = u.Reached(position)
	}
	return ids, nil
}

// Unreached yields what position has not reached. It holds a connection.
func (s *Store) Unreached(ctx context.Context, position model.Position) iter.Seq2[model.WriteCheckpoint, error] {
	return func(yield func(model.WriteCheckpoint, error) bool) {
		rows, err := s.read.Query(ctx, `SELECT key, id, head FROM users WHERE head > $1 ORDER BY key`, []byte(position))
		if err != nil {
			yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", err))
			return
		}
		defer rows.Close()
		for rows.Next() {
			v := rows.RawValues()
			w := model.WriteCheckpoint{UserKey: string(v[0]), ID: binary.BigEndian.Uint64(v[1]), Head: model.Position(v[2])}
			if !yield(w, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(model.WriteCheckpoint{}, fmt.Errorf("read write checkpoints: %w", err))
		}
	}
}

// ExpireRequests drops old requests. A place is the table, 'c' or 'u', and the
// hash to go on from.
func (s *Store) ExpireRequests(ctx context.Context, id model.StreamID, before model.Micros, from []byte, limit int) (removed uint64, next []byte, err error) {
	if len(from) == 0 {
		from = append([]byte{'c'}, make([]byte, 16)...)
	}
	if len(from) != 17 || from[0] != 'c' && from[0] != 'u' {
		return 0, nil, fmt.Errorf("expire requests: %x is not a place", from)
	}
	err = s.transaction(ctx, func(conn *pgx.Conn) error {
		// Nobody asks for a number again between the look and the removal.
		var b pgx.Batch
		s.begin(&b)
		b.Queue(`SET LOCAL synchronous_commit = off`)
		s.lockUsers(&b)
		var h head
		b.Queue(`SELECT `+headColumns+` FROM heads WHERE stream = $1 FOR UPDATE`, int64(id)).QueryRow(func(row pgx.Row) (err error) {
			h, err = readHead(row)
			return there(id, &h, err)
		})
		var st model.Stream
		b.Queue(`SELECT definition FROM streams WHERE id = $1`, int64(id)).QueryRow(func(row pgx.Row) error {
			var def []byte
			if err := row.Scan(&def); err != nil {
				return err
			}
			return json.Unmarshal(def, &st)
		})
		if err := conn.SendBatch(ctx, &b).Close(); err != nil {
			return err
		}
		reached := map[byte]model.Position{'c': h.Checkpoint.Position, 'u': st.Place(h.Checkpoint.Position)}
		for left := int64(limit); from != nil && (limit == 0 || left > 0); {
			table, place := "users", [16]byte(from[1:])
			if from[0] == 'c' {
				table = of(id, "users@")
			}
			end, looked, err := pageEnd(ctx, conn, table, place, left)
			if err != nil {
				return err
			}
			left -= looked
			tag, err := conn.Exec(ctx, `DELETE FROM `+table+` WHERE hash >= $1 AND ($2::uuid IS NULL OR hash < $2) AND requested <> 0 AND requested < $3 AND head <= $4`,
				place, end, int64(before), []byte(reached[from[0]]))
			if err != nil {
				return err
			}
			removed += uint64(tag.RowsAffected())
			switch {
			case end != nil:
				from = append([]byte{from[0]}, end[:]...)
			case from[0] == 'c':
				from = append([]byte{'u'}, make([]byte, 16)...)
			default:
				from = nil
			}
		}
		_, err := conn.Exec(ctx, `COMMIT`)
		return err
	})
	if err != nil {
		if errors.Is(err, store.ErrNoStream) {
			return 0, nil, fmt.Errorf("expire requests: %w", err)
		}
		return 0, nil, failed(id, "expire requests", err)
	}
	return removed, from, nil
}

// pageEnd is where the next page of a table of users begins, nil if this one is
// the last, and how many keys this one has. Without a limit all are one.
func pageEnd(ctx context.Context, conn *pgx.Conn, table string, begin [16]byte, limit int64) (end *[16]byte, keys int64, err error) {
	if limit == 0 {
		return nil, 0, nil
	}
	rows, err := conn.Query(ctx, `SELECT hash FROM `+table+` WHERE hash >= $1 ORDER BY hash LIMIT $2`, begin, limit+1)
	if err != nil {
		return nil, 0, err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
	if err != nil || int64(len(found)) <= limit {
		return nil, int64(len(found)), err
	}
	return &found[limit], limit, nil
}
