package mongodb

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Commit stores c in three round trips, if it is small: what is there of its
// buckets is read, everything is written, and the head moves, which decides.
func (s *Store) Commit(ctx context.Context, c *ledger.Commit) error {
	u := s.unit(c.Stream)
	u.mu.Lock()
	defer u.mu.Unlock()
	s.changing.RLock()
	defer s.changing.RUnlock()
	known := u.known.take()
	err := s.commit(ctx, u, c, known)
	for n := 1; errors.Is(err, errMoved); n++ {
		if err = s.refusal(ctx, c, err); n == attempts || !errors.Is(err, errMoved) {
			break
		}
		// What an attempt that was given up has written came in between.
		err = s.commit(ctx, u, c, nil)
	}
	if err != nil {
		return failed(c.Stream, "commit", err)
	}
	return nil
}

// refusal says why a commit was refused.
func (s *Store) refusal(ctx context.Context, c *ledger.Commit, moved error) error {
	st, err := s.load(ctx)
	if err != nil {
		return errors.Join(moved, err)
	}
	if err := s.owned(st); err != nil {
		return err
	}
	u, err := st.at(c.Stream)
	if err != nil {
		return err
	}
	head := u.Head.model()
	if err := store.CheckCommit(model.StreamState(u.State), &head, c); err != nil {
		return err
	}
	return moved
}

func (s *Store) commit(ctx context.Context, u *unit, c *ledger.Commit, known map[model.RowKey]*cell) error {
	a, err := s.begin(ctx, u, c.Stream)
	if err != nil {
		return err
	}
	head := a.was.Head.model()
	if err := store.CheckCommit(model.StreamState(a.was.State), &head, c); err != nil {
		// What this process knows may be old.
		return s.refusal(ctx, c, err)
	}
	w := commit{attempt: a, c: c, known: known, visible: head.Checkpoint.Op}
	if err := w.read(ctx); err != nil {
		return err
	}
	defined, err := w.layered(ctx)
	if err != nil {
		return err
	}
	if err := w.write(ctx); err != nil {
		return err
	}
	for {
		st := s.view.Load()
		guard, set, inc := w.activation(st)
		if defined != "" || c.Activate {
			inc = append(inc, bson.E{Key: "catalog", Value: 1})
		}
		err := a.decide(ctx, func(u *unitState) {
			u.Head = headOf(new(store.NextHead(&head, c)))
			if c.Activate {
				u.State, u.Activated = int32(model.Active), int64(c.Head.StoredAt)
			}
			if defined != "" {
				u.Definition = defined
			}
		}, guard, set, inc)
		if err == nil && defined != "" {
			s.undefine(ctx, a.was.Definition)
		}
		if !errors.Is(err, errMoved) || !c.Activate {
			return err
		}
		// Only the catalog may have changed.
		now, lerr := s.load(ctx)
		if lerr != nil {
			return errors.Join(err, lerr)
		}
		if is := now.Units[unitKey(c.Stream)]; is == nil || is.Version != a.was.Version || now.Catalog == st.Catalog {
			return err
		}
	}
}

// commit is one under way.
type commit struct {
	*attempt
	c       *ledger.Commit
	known   map[model.RowKey]*cell
	visible model.OpID // the checkpoint until then

	hashes  []hash
	buckets map[hash]*bucket
	records map[string]*cell // that were not known
	tables  map[string]*cell
	users   map[string]*cell
}

// activation is what a commit changes of other streams.
func (w *commit) activation(st *state) (guard, set, inc bson.D) {
	if !w.c.Activate {
		return nil, nil, nil
	}
	guard = bson.D{{Key: "catalog", Value: st.Catalog}}
	for id, u := range st.streams() {
		if state := model.StreamState(u.State); id != w.id && (state == model.Active || state == model.Errored) {
			key := "units." + unitKey(id)
			set = append(set, bson.E{Key: key + ".state", Value: int32(model.Stopped)})
			inc = append(inc, bson.E{Key: key + ".version", Value: 1})
		}
	}
	return guard, set, inc
}

// layered stores the definition of the stream after its layers up to c.Layer are
// copied, and returns its name; "": it stays.
func (w *commit) layered(ctx context.Context) (string, error) {
	if w.c.Layer == 0 {
		return "", nil
	}
	st, err := w.s.definition(ctx, w.was.Definition)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return "", fmt.Errorf("%w: %w", errMoved, err) // it is edited
	}
	if err != nil || !st.Copied(w.c.Layer) {
		return "", err
	}
	return w.s.define(ctx, &st)
}

// read reads what is there of what the commit changes.
func (w *commit) read(ctx context.Context) error {
	c := w.c
	w.hashes = make([]hash, len(c.Buckets))
	for i := range c.Buckets {
		w.hashes[i] = hashOf(c.Buckets[i].Bucket)
	}
	var unknown, tables, users [][]byte
	for i := range c.Rows {
		if _, ok := w.known[c.Rows[i].Key]; !ok {
			unknown = append(unknown, recordID(&c.Rows[i].Key))
		}
	}
	for i := range c.Progress {
		tables = append(tables, c.Progress[i].Table.ID[:])
	}
	for i := range c.Checkpoints {
		users = append(users, userID(c.Checkpoints[i].UserKey))
	}
	return atOnce(ctx,
		func(ctx context.Context) (err error) { w.buckets, err = w.s.buckets(ctx, w.id, w.hashes); return err },
		func(ctx context.Context) (err error) {
			w.records, err = w.s.cells(ctx, w.s.of(w.id, recordsName), unknown)
			return err
		},
		func(ctx context.Context) (err error) {
			w.tables, err = w.s.cells(ctx, w.s.of(w.id, tablesName), tables)
			return err
		},
		func(ctx context.Context) (err error) {
			w.users, err = w.s.cells(ctx, w.s.of(w.id, usersName), users)
			return err
		},
	)
}

// write writes everything but the head. A crash leaves what nobody sees.
func (w *commit) write(ctx context.Context) error {
	records := w.recordWrites()
	tables, err := w.tableWrites()
	if err != nil {
		return err
	}
	users, err := w.userWrites(ctx)
	if err != nil {
		return err
	}
	return w.attempt.write(ctx,
		w.bury(records, tables, users),
		func(ctx context.Context) error { return w.writeChunks(ctx, w.chunks(w.c, w.hashes)) },
		w.writeBuckets,
		func(ctx context.Context) error {
			if err := w.removeRanges(ctx); err != nil {
				return err
			}
			return w.cells(ctx, recordsName, records)
		},
		func(ctx context.Context) error { return w.cells(ctx, tablesName, tables) },
		func(ctx context.Context) error { return w.cells(ctx, usersName, users) },
		w.writeEntries,
	)
}

func (w *commit) writeBuckets(ctx context.Context) error {
	var made []any
	var changed []mongo.WriteModel
	for i := range w.c.Buckets {
		add := &w.c.Buckets[i]
		b := w.buckets[w.hashes[i]]
		if b == nil {
			made = append(made, &bucket{ID: w.hashes[i][:], Name: []byte(add.Bucket), Order: orderOf(add.Bucket), Attempt: w.number, Now: (*bucketState)(nil).add(add, w.visible)})
			continue
		}
		if w.outrun(b.Attempt) {
			return errMoved
		}
		filter, change := w.change(b, b.counts(w.was).add(add, w.visible))
		changed = append(changed, mongo.NewUpdateOneModel().SetFilter(filter).SetUpdate(change))
	}
	c := w.s.of(w.id, bucketsName)
	if err := w.insert(ctx, c, made); err != nil {
		return err
	}
	return w.replace(ctx, c, changed)
}

// recordWrites are the records that change.
func (w *commit) recordWrites() []cellWrite {
	writes := make([]cellWrite, 0, len(w.c.Rows))
	for i := range w.c.Rows {
		r := &w.c.Rows[i]
		key := recordID(&r.Key)
		old, ok := w.known[r.Key]
		if !ok {
			old = w.records[textOf(key)]
		}
		if r.Record == nil {
			if old.stored(w.was) != nil {
				writes = append(writes, cellWrite{key, old, nil})
			}
			continue
		}
		value := record.Append(nil, r.Record)
		if was := old.stored(w.was); len(was) > 0 && was[0] == whole && string(was[1:]) == string(value) {
			continue
		}
		writes = append(writes, cellWrite{key, old, value})
	}
	return writes
}

func (w *commit) tableWrites() ([]cellWrite, error) {
	index := map[model.TableID]int{}
	var writes []cellWrite
	for i := range w.c.Progress {
		p := &w.c.Progress[i]
		value, err := json.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("encode progress: %w", err)
		}
		if at, twice := index[p.Table.ID]; twice {
			writes[at].value = value
			continue
		}
		index[p.Table.ID] = len(writes)
		key := slices.Clone(p.Table.ID[:])
		writes = append(writes, cellWrite{key, w.tables[string(key)], value})
	}
	return writes, nil
}

func (w *commit) userWrites(ctx context.Context) ([]cellWrite, error) {
	_, writes, err := w.take(ctx, w.users, store.CustomRequests(w.c), w.was.Head.model().Checkpoint.Position)
	return writes, err
}

// entry is a version of the parameter index.
type entry struct {
	ID      []byte `bson:"_id"` // see entryID
	Op      int64  `bson:"o"`
	Attempt int64  `bson:"a"`
	Removed bool   `bson:"r,omitempty"`
	Values  []byte `bson:"v,omitempty"`
}

// entryID is the lookup, the row, and the newest op first.
func entryID(lookup hash, key *model.RowKey, op model.OpID, attempt int64) []byte {
	id := make([]byte, 0, 64)
	id = append(id, lookup[:]...)
	id = append(id, key.Table[:]...)
	id = append(id, key.Row[:]...)
	id = binary.BigEndian.AppendUint64(id, ^uint64(op))
	return binary.BigEndian.AppendUint64(id, uint64(attempt))
}

// groupBytes of an entry's id say whose version it is.
const groupBytes = 48

func (w *commit) writeEntries(ctx context.Context) error {
	docs := make([]any, len(w.c.Entries))
	for i := range w.c.Entries {
		e := &w.c.Entries[i]
		docs[i] = &entry{ID: entryID(hashOf(e.Lookup), &e.Key, e.ID, w.number), Op: opID(e.ID), Attempt: w.number, Removed: e.Values == "", Values: []byte(e.Values)}
	}
	return w.insert(ctx, w.s.of(w.id, lookupsName), docs)
}
