// Package mongodb keeps everything in collections of a MongoDB database.
//
// Every step of the contract is decided by one change of one document, which is
// atomic on every server: the state document, that has the owner and all heads.
// What belongs to a step is written before that, in bulk, under the number of its
// attempt, which nobody sees as long as the state document does not have it. An
// attempt that comes to nothing is listed there, and what it left is passed over
// by readers for ever after, also if it is written only later by a process that
// was stalled; it is removed by and by.
//
// So transactions are not used, also where the deployment has them: they would
// make nothing simpler, as the same must hold without them, and they have limits
// in time that a large commit need not have. All writes are acknowledged by a
// majority and all reads are of what a majority has, so on a replica set nothing
// that was shown is rolled back.
//
// Invariants, besides those of the contract (storetest.Run, storetest.RunShared):
//
//   - D3: whatever command a step is cut short at, before it or after, the store
//     is as before the step or as after it (TestCutAnywhere).
//   - D5: the change that decides compares the owner's epoch, so a former owner
//     changes nothing, however long it was stalled (TestStalled).
//   - The ops of a bucket are in chunks of hundreds; no command is sent for one op
//     or row alone where there may be many (TestCommands), and none without a bound.
//
// It was tested against the fake of package mongotest, and against a server only
// where somebody has one (TestServer); see docs/operations.md.
//
// A reader reads chunks first and the document of their bucket after them: what
// compaction removes is gone from that document before it is gone from the chunks.
package mongodb

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Options of Open; zero means default.
type Options struct {
	// NoMigration leaves it to Migrate to make the collections.
	NoMigration bool
	// Log; nil = nowhere.
	Log *slog.Logger

	// chunkOps and chunkBytes bound a chunk, except that it has one op at least.
	// 0 = 250, 256 KiB.
	chunkOps, chunkBytes int
	// pageChunks is how many chunks a read begins with, and pageOps how many ops
	// its first page has at least. 0 = 5, one op more than a reader's chunk has.
	pageChunks, pageOps int
	// batch bounds the documents that one command reads or writes. 0 = 10,000.
	batch int
	// partBytes is the size from which on a value is kept in parts. 0 = 7 MiB:
	// a document has two of them and at most 16 MB.
	partBytes int
	// mergeRun is how many small chunks in a row are made one. 0 = 4.
	mergeRun int
	// abortedMax is how many attempts that came to nothing are listed before
	// what they left is removed. 0 = 64.
	abortedMax int
}

func (o *Options) defaults() {
	o.chunkOps, o.chunkBytes = cmp.Or(o.chunkOps, 250), cmp.Or(o.chunkBytes, 256<<10)
	o.pageChunks, o.pageOps, o.batch = cmp.Or(o.pageChunks, 5), cmp.Or(o.pageOps, 1001), cmp.Or(o.batch, 10_000)
	o.partBytes, o.mergeRun, o.abortedMax = cmp.Or(o.partBytes, 7<<20), cmp.Or(o.mergeRun, 4), cmp.Or(o.abortedMax, 64)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Store is a store.Shared.
type Store struct {
	options Options
	client  *mongo.Client
	db      *mongo.Database

	epoch atomic.Int64          // of this process as the owner; 0 = it is not
	view  atomic.Pointer[state] // the newest state that this process has seen
	seen  atomic.Pointer[pulse] // of the owner
	// changing: a change of the catalog is under way; others only read-lock it.
	changing sync.RWMutex
	units    sync.Map // of *unit by model.StreamID
}

var _ store.Shared = (*Store)(nil)

// unit is what is in memory of a stream, or of what is not any stream's (0).
type unit struct {
	// mu keeps attempts apart.
	mu sync.Mutex
	// settled: no other attempt is under way that the next one's number could be
	// of; guarded by mu.
	settled bool
	// graves are cells that have no value any more; guarded by mu.
	graves []grave
	// compact keeps replacements apart, and is locked before mu.
	compact sync.Mutex

	known knownRecords
}

func (s *Store) unit(id model.StreamID) *unit {
	if u, ok := s.units.Load(id); ok {
		return u.(*unit)
	}
	u, _ := s.units.LoadOrStore(id, &unit{})
	return u.(*unit)
}

// Open connects to the database, and makes the collections that are missing.
func Open(ctx context.Context, c *config.MongoDB, o Options) (*Store, error) {
	o.defaults()
	s, err := connect(ctx, c, o)
	if err != nil {
		return nil, err
	}
	if o.NoMigration {
		err = s.migrated(ctx)
	} else {
		err = s.migrate(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

const (
	// selectTimeout bounds the wait for a server that can be written to.
	selectTimeout = 10 * time.Second
	// minWire is the wire version of MongoDB 4.4.
	minWire = 9
)

// connect connects to a server.
func connect(ctx context.Context, c *config.MongoDB, o Options) (*Store, error) {
	majority := writeconcern.Majority()
	opts := options.Client().ApplyURI(c.URI)
	if c.Username != "" {
		auth := options.Credential{}
		if opts.Auth != nil {
			auth = *opts.Auth
		}
		auth.Username, auth.Password, auth.PasswordSet = c.Username, c.Password, c.Password != ""
		opts.SetAuth(auth)
	}
	if c.MaxPoolSize > 0 {
		opts.SetMaxPoolSize(uint64(c.MaxPoolSize))
	}
	if opts.ServerSelectionTimeout == nil {
		opts.SetServerSelectionTimeout(selectTimeout)
	}
	// What must hold whatever the URI says. A write that failed is not made again
	// by the driver: the store finds out what became of it.
	opts.SetAppName("sluice bucket-store").SetRetryWrites(false).SetReadPreference(readpref.Primary()).
		SetReadConcern(readconcern.Majority()).SetWriteConcern(majority).SetDialer(c.Dialer())
	if err := opts.Validate(); err != nil {
		return nil, errs.New(errs.S1109, "connection options cannot be used") // err may quote them
	}
	client, err := mongo.Connect(opts)
	if err != nil {
		return nil, errs.New(errs.S1109, "connection options cannot be used")
	}
	s := &Store{options: o, client: client, db: client.Database(c.Database)}
	var hello struct {
		Wire    int32  `bson:"maxWireVersion"`
		Message string `bson:"msg"`
	}
	err = s.db.RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&hello)
	switch {
	case err != nil:
		err = unreachable(c, err)
	case hello.Wire < minWire:
		err = errs.New(errs.S3201, "the storage database is too old: MongoDB 4.4 or later is needed")
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Check connects to a server, and says whether it can be used.
func Check(ctx context.Context, c *config.MongoDB) error {
	s, err := connect(ctx, c, Options{})
	if err != nil {
		return err
	}
	return s.Close()
}

// unreachable gives a failure to connect its code.
func unreachable(c *config.MongoDB, err error) error {
	var e mongo.CommandError
	if mongo.IsTimeout(err) || mongo.IsNetworkError(err) || !errors.As(err, &e) {
		return errs.Wrap(errs.S2402, err, "cannot connect to the storage database %s", c.Redacted()).Retryable()
	}
	return errs.Wrap(errs.S2402, err, "the storage database %s cannot be used", c.Redacted())
}

// closeTimeout bounds the wait for connections that are in use.
const closeTimeout = 5 * time.Second

// Close closes all connections.
func (s *Store) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.client.Disconnect(ctx)
}

// prefix begins the names of all collections.
const prefix = "sluice_"

// Names of collections that each stream has for itself, so that clearing it is
// dropping them.
const (
	opsName     = "ops"     // chunks of ops
	bucketsName = "buckets" // what is known of each bucket
	recordsName = "records" // what is known of each source row
	lookupsName = "lookups" // versions of the parameter index
	tablesName  = "tables"  // progress of the initial copy
	usersName   = "users"   // custom write checkpoints; of stream 0, those handed out
	partsName   = "parts"   // of values that are too large for a document
)

// ofStream are the collections of a stream, in the order in which they are
// dropped: a reader that misses a bucket looks whether the stream is gone.
var ofStream = []string{bucketsName, opsName, recordsName, lookupsName, tablesName, usersName, partsName}

func (s *Store) of(id model.StreamID, name string) *mongo.Collection {
	return s.db.Collection(prefix + name + "_" + strconv.FormatInt(int64(id), 10))
}

// hash stands for a name.
type hash [16]byte

func hashOf(name string) hash {
	sum := sha256.Sum256([]byte(name))
	return hash(sum[:16])
}

// opID is an op id as MongoDB has them; more is not given out.
func opID(id model.OpID) int64 { return int64(min(id, math.MaxInt64)) }

// outOfDisk is the server's code for it.
const outOfDisk = 14031

// failed wraps the failure of a command.
func failed(id model.StreamID, doing string, err error) error {
	var e mongo.ServerError
	if errors.As(err, &e) && e.HasErrorCode(outOfDisk) {
		err = fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return fmt.Errorf("%s of stream %d: %w", doing, id, err)
}

// inBatches calls do for the parts of a list.
func inBatches[T any](list []T, size int, do func([]T) error) error {
	for len(list) > 0 {
		n := min(size, len(list))
		if err := do(list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// Ping asks the server for a sign of life.
func (s *Store) Ping(ctx context.Context) error { return s.client.Ping(ctx, nil) }

// Size asks for the bytes on disk, indexes and all.
func (s *Store) Size(ctx context.Context) (size store.Size, err error) {
	st, err := s.load(ctx)
	if err != nil {
		return size, err
	}
	for id := range st.streams() {
		for _, name := range ofStream {
			var stats struct {
				Data    float64 `bson:"storageSize"`
				Indexes float64 `bson:"totalIndexSize"`
			}
			if err := s.db.RunCommand(ctx, bson.D{{Key: "collStats", Value: s.of(id, name).Name()}}).Decode(&stats); err != nil {
				return size, fmt.Errorf("ask for the size: %w", err)
			}
			bytes := uint64(stats.Data + stats.Indexes)
			switch name {
			case opsName, bucketsName:
				size.Operations += bytes
			case lookupsName:
				size.Parameters += bytes
			case recordsName, tablesName:
				size.Replication += bytes
			}
		}
	}
	return size, nil
}
