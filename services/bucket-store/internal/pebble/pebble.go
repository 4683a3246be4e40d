// Package pebble keeps everything in one folder, in an embedded Pebble
// database that one process at a time may open.
//
// Invariants, besides those of the contract (storetest.Run):
//
//   - D3: a commit is one batch of the write-ahead log, with one fsync; after
//     a crash it is there or not (TestKilled, TestUnsyncedLoss).
//   - INV-5: memory (heads, bucket states) moves after the batch is durable;
//     nobody reads a checkpoint before.
//   - On a full disk commits are refused, or wait, and reads go on; nothing is
//     lost or done in half (TestFullDisk).
//   - What is damaged is not served, and no part of it is taken for the whole
//     (TestDamage). After a crash, though, damage to what the last ten seconds
//     have written may pass for what the crash has cut off.
//   - Keys sort as the names they are made of, whatever bytes those have
//     (TestKeyOrder, FuzzLookupKey).
//
// Locks, in the order in which they are taken: Store.catalog, stream.compact,
// stream.write. The write lock is held across the commit's fsync on purpose:
// it is what makes commits of one stream follow one another.
package pebble

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/internal/record"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Options of Open; zero means default.
type Options struct {
	// CacheBytes is the memory for blocks of the database. 0 = 128 MiB.
	CacheBytes int64
	// StateBytes is the memory for bucket states. 0 = 64 MiB.
	StateBytes int
	// FilterBytes is the memory per stream for knowing rows never stored.
	// 0 = 16 MiB, good for 13 million rows.
	FilterBytes int
	// MemTableBytes is the size of one memtable. 0 = 64 MiB.
	MemTableBytes uint64
	// ReserveBytes is the free space of the disk below which commits are refused.
	// 0 = two memtables.
	ReserveBytes uint64
	// Log takes what Pebble reports; nil = nowhere.
	Log *slog.Logger
	// FS replaces the file system, in tests.
	FS vfs.FS
}

// Store is a store.Store.
type Store struct {
	db      *pebble.DB
	lock    *pebble.Lock
	disk    *disk
	options Options
	states  *stateCache

	// catalog: held for reading by every commit, for writing by what changes
	// stream states.
	catalog sync.RWMutex
	streams atomic.Pointer[map[model.StreamID]*stream] // replaced whole, under catalog
	next    model.StreamID                             // highest id used; guarded by catalog

	users sync.Mutex // serialises write checkpoint changes

	notes sync.Mutex   // serialises notes of the progress
	noted atomic.Int64 // when the last one was begun, in ns
}

var _ store.Store = (*Store)(nil)

// stream is what is in memory of a stream.
type stream struct {
	id         model.StreamID
	definition atomic.Pointer[model.Stream] // without Head; replaced under catalog
	head       atomic.Pointer[head]         // replaced under write
	// cleared is the op up to which superseded lookups may be gone.
	cleared atomic.Uint64
	filter  atomic.Pointer[rowFilter] // nil: any row may be stored

	write   sync.Mutex // one commit at a time
	compact sync.Mutex // one replacement at a time
}

// nextKey has the highest stream id that may have been used, where that is not the
// highest one there is.
var nextKey = []byte{kindMeta, 'n'}

// version is the format of keys and values.
const version = "1"

// Open opens the database in folder dir, making it if there is none.
func Open(dir string, o Options) (*Store, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = 128 << 20
	}
	if o.StateBytes == 0 {
		o.StateBytes = 64 << 20
	}
	if o.FilterBytes == 0 {
		o.FilterBytes = 16 << 20
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 64 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 2 * o.MemTableBytes
	}
	disk := newDisk(o.FS, dir, o.ReserveBytes, o.Log)
	cache := pebble.NewCache(o.CacheBytes)
	defer cache.Unref()
	po := &pebble.Options{
		FS:                          disk,
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                o.MemTableBytes,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       64,
		LBaseMaxBytes:               256 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      logger{o.Log},
		EventListener: &pebble.EventListener{
			// Not the end of the process: what is not damaged is served.
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				o.Log.Error("the storage is damaged: what is in this file is not served", "file", i.Path, "error", i.Details)
			},
		},
	}
	for i := range po.Levels {
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		po.Levels[i].BlockSize = 16 << 10
	}
	if err := o.FS.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder %s: %w", dir, err)
	}
	if err := disk.room(); err != nil {
		return nil, fmt.Errorf("open store in %s: %w", dir, err)
	}
	// The lock tells a folder in use apart from any other failure to open.
	lock, err := pebble.LockDirectory(dir, o.FS)
	var inaccessible *fs.PathError
	if errors.As(err, &inaccessible) {
		return nil, fmt.Errorf("lock folder %s: %w", dir, err)
	} else if err != nil {
		return nil, fmt.Errorf("folder %s: %w", dir, errors.Join(ErrInUse, err))
	}
	po.Lock = lock
	db, err := openDB(dir, po)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", store.ErrDamaged, err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store in %s: %w", dir, fault(err)), lock.Close())
	}
	s := &Store{db: db, lock: lock, disk: disk, options: o, states: newStateCache(o.StateBytes)}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read store in %s: %w", dir, fault(err)), db.Close(), lock.Close())
	}
	disk.patient.Store(true)
	return s, nil
}

// openDB turns a fatal failure to open into an error.
func openDB(dir string, o *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if f := recover(); f != nil {
			stopped, ok := f.(fatal)
			if !ok {
				panic(f)
			}
			err = stopped
		}
	}()
	return pebble.Open(dir, o)
}

// ErrInUse: another process has the folder.
var ErrInUse = errors.New("it is in use by another process")

// apply commits a batch. If the disk is full and nobody waits for it any more, it
// is not known what becomes of the batch.
func (s *Store) apply(batch *pebble.Batch, o *pebble.WriteOptions) (err error) {
	defer func() {
		if f := recover(); f != nil {
			if stopped, ok := f.(fatal); ok && s.disk.givenUp() {
				err = errors.Join(store.ErrFull, stopped)
				return
			}
			panic(f)
		}
	}()
	return batch.Commit(o)
}

// GiveUp ends the writes that wait for space on a full disk, so that the store
// can be closed.
func (s *Store) GiveUp() { s.disk.giveUp() }

// load reads the catalog into memory.
func (s *Store) load() error {
	found, ok, err := s.get([]byte{kindMeta, 'v'})
	if err != nil {
		return err
	}
	if !ok {
		if err := s.db.Set([]byte{kindMeta, 'v'}, []byte(version), pebble.Sync); err != nil {
			return err
		}
	} else if found != version {
		return fmt.Errorf("its format is version %q, this program knows %q", found, version)
	}
	streams := map[model.StreamID]*stream{}
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{kindStream}, UpperBound: []byte{kindStream + 1}})
	if err != nil {
		return err
	}
	defer iter.Close()
	for iter.First(); iter.Valid(); iter.Next() {
		var def model.Stream
		if err := json.Unmarshal(iter.Value(), &def); err != nil {
			return fmt.Errorf("stream %x: %w", iter.Key(), err)
		}
		st := &stream{id: def.ID}
		st.definition.Store(&def)
		value, _, err := s.get(streamKey(kindHead, def.ID))
		if err != nil {
			return err
		}
		h, err := readHead(value)
		if err != nil {
			return fmt.Errorf("head of stream %d: %w", def.ID, fault(err))
		}
		st.head.Store(h)
		if value, ok, err := s.get(streamKey(kindCleared, def.ID)); err != nil {
			return err
		} else if ok {
			if len(value) != 8 {
				return fmt.Errorf("stream %d: %w", def.ID, record.ErrCorrupt)
			}
			st.cleared.Store(binary.BigEndian.Uint64([]byte(value)))
		}
		if def.State == model.Processing || def.State == model.Active {
			empty, err := s.empty(streamRange(kindRecord, def.ID))
			if err != nil {
				return err
			}
			if empty {
				st.filter.Store(newRowFilter(s.options.FilterBytes))
			}
		}
		streams[def.ID] = st
		s.next = max(s.next, def.ID)
	}
	s.streams.Store(&streams)
	if value, ok, err := s.get(nextKey); err != nil {
		return err
	} else if ok {
		if len(value) != 8 {
			return fmt.Errorf("highest stream id: %w", record.ErrCorrupt)
		}
		s.next = max(s.next, model.StreamID(binary.BigEndian.Uint64([]byte(value))))
	}
	if err := iter.Error(); err != nil {
		return err
	}
	if err := s.indexDirt(); err != nil {
		return fmt.Errorf("index buckets by dirt: %w", err)
	}
	return s.checkProgress()
}

// Close closes the database.
func (s *Store) Close() error {
	s.disk.giveUp()
	s.note()
	return errors.Join(s.db.Close(), s.lock.Close())
}

// stream returns a stream whose data is there.
func (s *Store) stream(id model.StreamID) (*stream, error) {
	st := (*s.streams.Load())[id]
	if st == nil || st.definition.Load().State == model.Terminated {
		return nil, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
	}
	return st, nil
}

// get returns a copy of a value.
func (s *Store) get(key []byte) (string, bool, error) {
	value, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	text := string(value)
	return text, true, closer.Close()
}

func (s *Store) empty(lower, upper []byte) (bool, error) {
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return false, err
	}
	found := iter.First()
	return !found, errors.Join(iter.Error(), iter.Close())
}

// state returns the state of a bucket; one with number 0 if there is none.
func (s *Store) state(k stateKey) (bucketState, error) {
	st, ok, mark := s.states.get(k)
	if ok {
		return st, nil
	}
	value, closer, err := s.db.Get(appendBucketKey(nil, k.stream, k.bucket))
	if errors.Is(err, pebble.ErrNotFound) {
		return bucketState{}, nil
	}
	if err != nil {
		return bucketState{}, fmt.Errorf("read bucket state: %w", fault(err))
	}
	st, err = readState(value)
	if err = errors.Join(err, closer.Close()); err != nil {
		return bucketState{}, fmt.Errorf("read bucket state: %w", fault(err))
	}
	s.states.add(k, st, mark)
	return st, nil
}

// Size estimates the bytes on disk.
func (s *Store) Size(context.Context) (store.Size, error) {
	var size store.Size
	for _, k := range []struct {
		kinds string
		field *uint64
	}{{"bo", &size.Operations}, {"p", &size.Parameters}, {"rt", &size.Replication}} {
		for i := range len(k.kinds) {
			n, err := s.db.EstimateDiskUsage([]byte{k.kinds[i]}, []byte{k.kinds[i] + 1})
			if err != nil {
				return size, fmt.Errorf("estimate size: %w", fault(err))
			}
			*k.field += n
		}
	}
	return size, nil
}

// logger passes Pebble's reports on. After a fatal one (a write-ahead log that
// cannot be written) the state of commits is unknown, so the process must go.
type logger struct{ log *slog.Logger }

func (l logger) Infof(format string, args ...any) {
	l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
}

func (l logger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	panic(fatal("pebble: " + fmt.Sprintf(format, args...)))
}

// fatal is a failure that Pebble cannot go on after.
type fatal string

func (f fatal) Error() string { return string(f) }
