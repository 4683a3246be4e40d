package pebble

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

var _ store.Export = (*Store)(nil)

// LastStream is the highest stream id that may have been used.
func (s *Store) LastStream(context.Context) (model.StreamID, error) {
	s.catalog.RLock()
	defer s.catalog.RUnlock()
	return s.next, nil
}

// Counts counts keys, but for ops, whose number the states of buckets tell.
func (s *Store) Counts(ctx context.Context, id model.StreamID) (n store.Counts, err error) {
	if id == 0 {
		err = s.scan(ctx, []byte{kindUser}, func(_, _ []byte) (bool, error) { n.Users++; return true, nil })
		return n, err
	}
	for _, of := range []struct {
		kind  byte
		count *uint64
	}{{kindRecord, &n.Records}, {kindLookup, &n.Entries}, {kindCustom, &n.Users}} {
		if err := s.scan(ctx, streamKey(of.kind, id), func(_, _ []byte) (bool, error) { *of.count++; return true, nil }); err != nil {
			return n, err
		}
	}
	err = s.scan(ctx, streamKey(kindBucket, id), func(_, value []byte) (bool, error) {
		b, err := readState(value)
		n.Ops += b.head.count
		return true, err
	})
	return n, err
}

// scan calls do with the keys that begin with prefix, while it returns true.
func (s *Store) scan(ctx context.Context, prefix []byte, do func(key, value []byte) (bool, error)) error {
	it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return fault(err)
	}
	more := true
	for ok := it.First(); ok && more && err == nil; ok = it.Next() {
		if err = ctx.Err(); err == nil {
			more, err = do(it.Key(), it.Value())
		}
	}
	return fault(errors.Join(err, it.Error(), it.Close()))
}

// AllRecords yields records by key.
func (s *Store) AllRecords(ctx context.Context, id model.StreamID) iter.Seq2[ledger.KeyedRecord, error] {
	return store.Sequence(func(yield func(ledger.KeyedRecord) bool) error {
		prefix := streamKey(kindRecord, id)
		return reading("records", s.scan(ctx, prefix, func(key, value []byte) (bool, error) {
			if len(key) != len(prefix)+rowKeySize {
				return false, record.ErrCorrupt
			}
			rec, err := record.Read(string(value))
			if err != nil {
				return false, err
			}
			key = key[len(prefix):]
			return yield(ledger.KeyedRecord{Key: model.RowKey{Table: model.TableID(key), Row: model.RowID(key[16:])}, Record: rec}), nil
		}))
	})
}

func reading(what string, err error) error {
	if err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

// AllEntries yields the whole index, by key.
func (s *Store) AllEntries(ctx context.Context, id model.StreamID) (model.OpID, iter.Seq2[ledger.EntryWrite, error], error) {
	st, err := s.stream(id)
	if err != nil {
		return 0, nil, err
	}
	return model.OpID(st.cleared.Load()), store.Sequence(func(yield func(ledger.EntryWrite) bool) error {
		return reading("lookups", s.scan(ctx, streamKey(kindLookup, id), func(key, value []byte) (bool, error) {
			e, err := entryOf(key, value)
			return err == nil && yield(e), err
		}))
	}), nil
}

// entryOf is the entry that appendLookupKey made the key of.
func entryOf(key, value []byte) (e ledger.EntryWrite, err error) {
	group, op, ok := lookupKey(key)
	if !ok {
		return e, record.ErrCorrupt
	}
	n := len(group) - rowKeySize
	e = ledger.EntryWrite{ID: op, Key: model.RowKey{Table: model.TableID(group[n:]), Row: model.RowID(group[n+16:])}, Values: string(value)}
	escaped := group[1+8 : n-2]
	lookup := make([]byte, 0, len(escaped))
	for i := 0; i < len(escaped); i++ {
		lookup = append(lookup, escaped[i])
		if escaped[i] == 0 {
			i++ // the ff behind it
		}
	}
	e.Lookup = string(lookup)
	return e, nil
}

// AllUsers yields users by key.
func (s *Store) AllUsers(ctx context.Context, id model.StreamID) iter.Seq2[store.User, error] {
	return store.Sequence(func(yield func(store.User) bool) error {
		prefix := []byte{kindUser}
		if id != 0 {
			prefix = streamKey(kindCustom, id)
		}
		return reading("write checkpoints", s.scan(ctx, prefix, func(key, value []byte) (bool, error) {
			u, err := readUser(string(value))
			return err == nil && yield(store.User{Key: string(key[len(prefix):]), UserCheckpoints: u}), err
		}))
	})
}

// AllOps yields ops by the names of their buckets.
func (s *Store) AllOps(ctx context.Context, id model.StreamID) iter.Seq2[store.ExportedOp, error] {
	return store.Sequence(func(yield func(store.ExportedOp) bool) error {
		lower, upper := streamRange(kindOp, id)
		it, err := s.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			return reading("ops", fault(err))
		}
		prefix := streamKey(kindBucket, id)
		err = s.scan(ctx, prefix, func(key, value []byte) (bool, error) {
			b, err := readState(value)
			if err != nil {
				return false, err
			}
			e := store.ExportedOp{Bucket: string(key[len(prefix):]), Changes: b.changes}
			count := uint64(0)
			end := opKey(id, b.number+1, 0)
			for ok := it.SeekGE(opKey(id, b.number, 0)); ok && bytes.Compare(it.Key(), end) < 0; ok = it.Next() {
				value, err := it.ValueAndErr()
				if err != nil {
					return false, err
				}
				if err := readOp(opID(it.Key()), value, &e.Op); err != nil {
					return false, err
				}
				if !yield(e) {
					return false, nil
				}
				count++
			}
			if it.Error() == nil && count != b.head.count {
				return false, fmt.Errorf("bucket %q has %d ops, its state tells of %d: %w", e.Bucket, count, b.head.count, store.ErrDamaged)
			}
			return true, it.Error()
		})
		return reading("ops", fault(errors.Join(err, it.Close())))
	})
}

// copyEnd follows a folder's name while an import fills it.
const copyEnd = ".copying"

// Import fills a folder beside the one that the store will have: that is there
// as a whole or not at all.
type Import struct {
	dir string
	s   *Store
}

// NewImport begins to fill the folder dir, which must be empty or not be there.
func NewImport(dir string, o Options) (*Import, error) {
	if err := vacant(dir); err != nil {
		return nil, fmt.Errorf("copy into %s: %w", dir, err)
	}
	if err := removePart(dir + copyEnd); err != nil {
		return nil, fmt.Errorf("copy into %s: %w", dir, err)
	}
	s, err := Open(dir+copyEnd, o)
	if err != nil {
		return nil, err
	}
	return &Import{dir, s}, nil
}

// removePart removes what a copy that was cut short has left, unless it is still
// under way.
func removePart(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := pebble.LockDirectory(dir, vfs.Default)
	if err != nil {
		return fmt.Errorf("folder %s: %w", dir, errors.Join(ErrInUse, err))
	}
	return errors.Join(lock.Close(), os.RemoveAll(dir))
}

// Add stores a part. It need not be durable before Finish.
func (i *Import) Add(_ context.Context, p *store.Part) error {
	if err := i.s.disk.room(); err != nil {
		return err
	}
	batch := i.s.db.NewBatch()
	defer batch.Close()
	w := writer{batch: batch, stream: p.Stream}
	for n := range p.Tables {
		w.progress(&p.Tables[n])
	}
	for n := range p.Records {
		w.record(&ledger.RowWrite{Key: p.Records[n].Key, Record: p.Records[n].Record})
	}
	for n := range p.Entries {
		w.entry(&p.Entries[n])
	}
	prefix := []byte{kindUser}
	if p.Stream != 0 {
		prefix = streamKey(kindCustom, p.Stream)
	}
	for n := range p.Users {
		w.user(prefix, p.Users[n].Key, p.Users[n].UserCheckpoints)
	}
	for n := range p.Buckets {
		b := &p.Buckets[n]
		s := bucketState{
			number: b.Number, head: total{b.Head.Checksum, b.Head.Count, b.Head.Last}, base: total{b.Base.Checksum, b.Base.Count, b.Base.Last},
			first: b.First, cleared: b.Cleared, changes: b.Changes,
		}
		w.state(b.Bucket, &s, s.dirt()) // Finish leaves the index by dirt to who opens the store
	}
	for n := range p.Ops {
		w.op(p.Buckets[p.Ops[n].Bucket].Number, &p.Ops[n].Op)
	}
	if w.err != nil {
		return fmt.Errorf("encode a part: %w", w.err)
	}
	return fault(i.s.apply(batch, pebble.NoSync))
}

// Finish writes the catalog, and gives the folder its name.
func (i *Import) Finish(_ context.Context, c *store.ImportedCatalog) error {
	batch := i.s.db.NewBatch()
	defer batch.Close()
	for n := range c.Streams {
		st := &c.Streams[n]
		def, h := st.Stream, head{StreamHead: st.Head, buckets: st.Buckets}
		def.Head = model.StreamHead{}
		cleared := binary.BigEndian.AppendUint64(nil, uint64(st.LookupsCleared))
		if err := errors.Join(setDefinition(batch, &def), batch.Set(streamKey(kindHead, st.ID), appendHead(nil, &h), nil), batch.Set(streamKey(kindCleared, st.ID), cleared, nil)); err != nil {
			return err
		}
	}
	if err := batch.Delete(dirtIndexed, nil); err != nil {
		return err
	}
	if err := batch.Set(nextKey, binary.BigEndian.AppendUint64(nil, uint64(c.LastStream)), nil); err != nil {
		return err
	}
	if err := i.s.apply(batch, pebble.Sync); err != nil {
		return fault(err)
	}
	// What was not synced is in files now that are.
	if err := i.s.db.Flush(); err != nil {
		return fault(err)
	}
	if err := i.Close(); err != nil {
		return err
	}
	return moveIn(i.dir+copyEnd, i.dir)
}

// Close closes the store that is filled. Without Finish, the folder beside is left.
func (i *Import) Close() error {
	if i.s == nil {
		return nil
	}
	s := i.s
	i.s = nil
	return s.Close()
}
