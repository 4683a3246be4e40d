package mongodb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// state is the document whose changes decide everything.
type state struct {
	ID     string `bson:"_id"`
	Format int32  `bson:"format"`
	// Revision is raised by every change, but for those that only say that the
	// owner is there.
	Revision int64 `bson:"revision"`
	// Catalog is raised when a stream is made, changes its state or its config.
	Catalog int64 `bson:"catalog"`
	Last    int64 `bson:"last"` // stream id
	Owner   pulse `bson:"owner"`
	// Units are the streams that are not terminated, and "0".
	Units map[string]*unitState `bson:"units"`
}

// unitState is what is decided of a stream; of unit 0 only what attempts need.
type unitState struct {
	Version int64 `bson:"version"` // raised by every change of it
	// Attempt is the highest number that an attempt has had that was decided or
	// came to nothing; those are Aborted.
	Attempt int64   `bson:"attempt"`
	Aborted []int64 `bson:"aborted"`

	State      int32  `bson:"state"`
	Definition string `bson:"definition"` // which one
	Activated  int64  `bson:"activated"`
	Clearing   bool   `bson:"clearing"` // its data is being removed
	// Superseded is the op up to which superseded lookups may be gone.
	Superseded int64 `bson:"superseded"`
	Head       head  `bson:"head"`
}

// head is a model.StreamHead. Texts are bytes, whatever they are.
type head struct {
	Epoch              int64  `bson:"epoch"`
	Applied            []byte `bson:"applied"`
	Offset             int64  `bson:"offset"`
	Persisted          int64  `bson:"persisted"`
	Checkpoint         int64  `bson:"checkpoint"`
	Position           []byte `bson:"position"`
	SnapshotDone       bool   `bson:"snapshotDone"`
	NoCheckpointBefore []byte `bson:"noCheckpointBefore"`
	Origin             []byte `bson:"origin"`
	CommitTime         int64  `bson:"commitTime"`
	Heartbeat          int64  `bson:"heartbeat"`
	PublishedAt        int64  `bson:"publishedAt"`
	EvaluatedAt        int64  `bson:"evaluatedAt"`
	StoredAt           int64  `bson:"storedAt"`
	LastError          []byte `bson:"lastError"`
	LastErrorAt        int64  `bson:"lastErrorAt"`
}

func headOf(h *model.StreamHead) head {
	return head{
		Epoch: int64(h.Epoch), Applied: []byte(h.Applied.Position), Offset: int64(h.Applied.Offset), Persisted: opID(h.Persisted),
		Checkpoint: opID(h.Checkpoint.Op), Position: []byte(h.Checkpoint.Position), SnapshotDone: h.SnapshotDone,
		NoCheckpointBefore: []byte(h.NoCheckpointBefore), Origin: []byte(h.Origin), CommitTime: int64(h.CommitTime), Heartbeat: int64(h.Heartbeat),
		PublishedAt: int64(h.PublishedAt), EvaluatedAt: int64(h.EvaluatedAt), StoredAt: int64(h.StoredAt),
		LastError: []byte(h.LastError), LastErrorAt: int64(h.LastErrorAt),
	}
}

func (h *head) model() model.StreamHead {
	return model.StreamHead{
		Epoch: model.Epoch(h.Epoch), Applied: model.Cursor{Position: model.Position(h.Applied), Offset: uint64(h.Offset)}, Persisted: model.OpID(h.Persisted),
		Checkpoint: model.Checkpoint{Op: model.OpID(h.Checkpoint), Position: model.Position(h.Position)}, SnapshotDone: h.SnapshotDone,
		NoCheckpointBefore: model.Position(h.NoCheckpointBefore), Origin: string(h.Origin), CommitTime: model.Micros(h.CommitTime), Heartbeat: model.Micros(h.Heartbeat),
		PublishedAt: model.Micros(h.PublishedAt), EvaluatedAt: model.Micros(h.EvaluatedAt), StoredAt: model.Micros(h.StoredAt),
		LastError: string(h.LastError), LastErrorAt: model.Micros(h.LastErrorAt),
	}
}

// visible tells whether what an attempt wrote counts.
func (u *unitState) visible(attempt int64) bool {
	return attempt <= u.Attempt && !slices.Contains(u.Aborted, attempt)
}

func unitKey(id model.StreamID) string { return strconv.FormatInt(int64(id), 10) }

// at is a unit whose data is there.
func (s *state) at(id model.StreamID) (*unitState, error) {
	if u := s.Units[unitKey(id)]; u != nil && !u.Clearing {
		return u, nil
	}
	return nil, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
}

// streams are the units that are streams, by id.
func (s *state) streams() map[model.StreamID]*unitState {
	all := make(map[model.StreamID]*unitState, len(s.Units))
	for key, u := range s.Units {
		if id, err := strconv.ParseInt(key, 10, 64); err == nil && id != 0 {
			all[model.StreamID(id)] = u
		}
	}
	return all
}

const (
	stateName = "state" // of the collection and of the document
	format    = 1
)

func (s *Store) states() *mongo.Collection { return s.db.Collection(prefix + stateName) }

var (
	// errMoved: the state is another one than the change is of.
	errMoved = errors.New("the stream was changed by another process meanwhile")
	// errEmpty: there is no state document.
	errEmpty = errors.New("the storage database has no collections of this program")
)

// load reads the state.
func (s *Store) load(ctx context.Context) (*state, error) {
	var st state
	err := s.states().FindOne(ctx, bson.D{{Key: "_id", Value: stateName}}).Decode(&st)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return nil, errEmpty
	}
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	s.learn(&st)
	return &st, nil
}

// learn keeps a state unless there is a newer one.
func (s *Store) learn(st *state) {
	for {
		old := s.view.Load()
		if old != nil && old.Revision >= st.Revision || s.view.CompareAndSwap(old, st) {
			return
		}
	}
}

// current is a state in which everything up to op can be seen that ever will be.
func (s *Store) current(ctx context.Context, id model.StreamID, op model.OpID) (*unitState, error) {
	if st := s.view.Load(); st != nil {
		if u := st.Units[unitKey(id)]; u != nil && !u.Clearing && opID(op) <= u.Head.Persisted {
			return u, nil
		}
	}
	return s.fresh(ctx, id)
}

// fresh is a unit as it is now.
func (s *Store) fresh(ctx context.Context, id model.StreamID) (*unitState, error) {
	st, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	return st.at(id)
}

// flip changes the state document if it is still as was says and this process is
// the owner: this is what decides. errMoved: it is not, and nothing changed.
func (s *Store) flip(ctx context.Context, was, set, inc bson.D) error {
	epoch := s.epoch.Load()
	if epoch == 0 {
		return store.ErrNotOwner
	}
	filter := append(bson.D{{Key: "_id", Value: stateName}, {Key: "owner.epoch", Value: epoch}}, was...)
	update := bson.D{{Key: "$set", Value: set}, {Key: "$inc", Value: append(bson.D{{Key: "revision", Value: 1}}, inc...)}}
	var now state
	err := s.states().FindOneAndUpdate(ctx, filter, update, options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&now)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return errMoved
	}
	if err != nil {
		return fmt.Errorf("change the state: %w", err)
	}
	s.learn(&now)
	return nil
}

// owned fails unless this process is the owner in st.
func (s *Store) owned(st *state) error {
	if epoch := s.epoch.Load(); epoch == 0 || epoch != st.Owner.Epoch {
		return store.ErrNotOwner
	}
	return nil
}
