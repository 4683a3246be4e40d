package mongodb

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// definition is a document with what is not in the state of a stream. It does not
// change: a stream that is altered gets another one.
type definition struct {
	ID     string `bson:"_id"`
	Stream []byte `bson:"stream"` // JSON
}

// terminated is a document with the end of a stream that is not in the state any
// more.
type terminated struct {
	ID   int64     `bson:"_id"`
	Unit unitState `bson:"unit"`
}

func (s *Store) definitions() *mongo.Collection { return s.db.Collection(prefix + "streams") }
func (s *Store) terminated() *mongo.Collection  { return s.db.Collection(prefix + "terminated") }

// define stores a definition of st, that is of use when the state names it.
func (s *Store) define(ctx context.Context, st *model.Stream) (string, error) {
	def := *st
	def.Head = model.StreamHead{}
	value, err := json.Marshal(&def)
	if err != nil {
		return "", fmt.Errorf("encode stream %d: %w", st.ID, err)
	}
	d := definition{ID: rand.Text(), Stream: value}
	if _, err := s.definitions().InsertOne(ctx, &d); err != nil {
		return "", fmt.Errorf("store the definition of stream %d: %w", st.ID, err)
	}
	return d.ID, nil
}

// definition reads one.
func (s *Store) definition(ctx context.Context, id string) (st model.Stream, err error) {
	var d definition
	if err := s.definitions().FindOne(ctx, bson.D{{Key: "_id", Value: id}}).Decode(&d); err != nil {
		return st, fmt.Errorf("read a definition: %w", err)
	}
	return st, json.Unmarshal(d.Stream, &st)
}

// Streams returns every stream by id.
func (s *Store) Streams(ctx context.Context) ([]model.Stream, error) {
	for {
		st, err := s.load(ctx)
		if err != nil {
			return nil, err
		}
		streams, err := s.list(ctx, st)
		if !errors.Is(err, mongo.ErrNoDocuments) {
			return streams, err
		}
		// A definition is gone: the state names another one by now.
		now, lerr := s.load(ctx)
		if lerr != nil || now.Catalog == st.Catalog {
			return nil, errors.Join(err, lerr)
		}
	}
}

// list returns the streams of a state.
func (s *Store) list(ctx context.Context, st *state) ([]model.Stream, error) {
	cursor, err := s.terminated().Find(ctx, bson.D{})
	if err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	var ended []terminated
	if err := cursor.All(ctx, &ended); err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	units := st.streams()
	for i := range ended {
		if id := model.StreamID(ended[i].ID); units[id] == nil {
			units[id] = &ended[i].Unit
		}
	}
	var names bson.A
	for _, u := range units {
		names = append(names, u.Definition)
	}
	definitions := map[string][]byte{}
	if len(names) > 0 {
		cursor, err := s.definitions().Find(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: names}}}})
		if err != nil {
			return nil, fmt.Errorf("read streams: %w", err)
		}
		var found []definition
		if err := cursor.All(ctx, &found); err != nil {
			return nil, fmt.Errorf("read streams: %w", err)
		}
		for _, d := range found {
			definitions[d.ID] = d.Stream
		}
	}
	all := make([]model.Stream, 0, len(units))
	for id, u := range units {
		var stream model.Stream
		value, ok := definitions[u.Definition]
		if !ok {
			return nil, fmt.Errorf("read stream %d: %w", id, mongo.ErrNoDocuments)
		}
		if err := json.Unmarshal(value, &stream); err != nil {
			return nil, fmt.Errorf("decode stream %d: %w", id, err)
		}
		stream.State, stream.Head, stream.Activated = model.StreamState(u.State), u.Head.model(), model.Micros(u.Activated)
		all = append(all, stream)
	}
	slices.SortFunc(all, func(a, b model.Stream) int { return int(a.ID - b.ID) })
	return all, nil
}

// Change alters the catalog: new definitions and collections are made, and then the
// state is changed if it is as decide has seen it.
func (s *Store) Change(ctx context.Context, decide func([]model.Stream) store.Change) (made *model.Stream, err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	for {
		made, err = s.change(ctx, decide)
		if !errors.Is(err, errMoved) {
			break
		}
		st, lerr := s.load(ctx)
		if lerr == nil {
			lerr = s.owned(st)
		}
		if lerr != nil {
			err = lerr
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("change catalog: %w", err)
	}
	return made, nil
}

func (s *Store) change(ctx context.Context, decide func([]model.Stream) store.Change) (made *model.Stream, err error) {
	st, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.owned(st); err != nil {
		return nil, err
	}
	streams, err := s.list(ctx, st)
	if err != nil {
		return nil, err
	}
	change := decide(streams)
	set := bson.D{{Key: "catalog", Value: st.Catalog + 1}}
	var former []string
	altered := change.Altered()
	found := 0
	for i := range streams {
		is := &streams[i]
		was := st.Units[unitKey(is.ID)]
		if !slices.Contains(altered, is.ID) || was == nil {
			continue
		}
		found++
		change.Alter(is)
		next := *was
		next.Version++
		next.State = int32(is.State)
		if _, ok := change.Edited[is.ID]; ok {
			former = append(former, was.Definition)
			if next.Definition, err = s.define(ctx, is); err != nil {
				return nil, err
			}
		}
		set = append(set, bson.E{Key: "units." + unitKey(is.ID), Value: &next})
	}
	if found < len(altered) {
		return nil, store.ErrNoStream
	}
	if change.New != nil {
		def := *change.New
		def.ID = model.StreamID(st.Last + 1)
		def.Name = fmt.Sprintf("%s%d%s", change.Prefix, def.ID, change.Suffix)
		def.Head = model.StreamHead{}
		unit := unitState{State: int32(def.State), Activated: int64(def.Activated), Aborted: []int64{}}
		if unit.Definition, err = s.define(ctx, &def); err != nil {
			return nil, err
		}
		if err := s.makeCollections(ctx, def.ID); err != nil {
			return nil, err
		}
		set = append(set, bson.E{Key: "last", Value: int64(def.ID)}, bson.E{Key: "units." + unitKey(def.ID), Value: &unit})
		made = &def
	}
	if err := s.flip(ctx, bson.D{{Key: "revision", Value: st.Revision}}, set, nil); err != nil {
		return nil, err
	}
	s.undefine(ctx, former...)
	return made, nil
}

// undefine removes definitions that the state does not name any more.
func (s *Store) undefine(ctx context.Context, former ...string) {
	if len(former) == 0 {
		return
	}
	if _, err := s.definitions().DeleteMany(ctx, bson.D{{Key: "_id", Value: bson.D{{Key: "$in", Value: former}}}}); err != nil {
		s.options.Log.Warn("a former definition of a stream stays", "error", err)
	}
}

// Head returns a stream's head. What was under way when a step failed is given up
// first, so that it does not move any more.
func (s *Store) Head(ctx context.Context, id model.StreamID) (model.StreamHead, error) {
	if s.epoch.Load() != 0 {
		u := s.unit(id)
		u.mu.Lock()
		defer u.mu.Unlock()
		if !u.settled {
			if err := s.settle(ctx, u, id); err != nil && !errors.Is(err, store.ErrNotOwner) {
				return model.StreamHead{}, err
			}
		}
	}
	u, err := s.fresh(ctx, id)
	if err != nil {
		return model.StreamHead{}, err
	}
	return u.Head.model(), nil
}

// OpenSession raises the epoch.
func (s *Store) OpenSession(ctx context.Context, id model.StreamID) (h model.StreamHead, err error) {
	err = s.changeHead(ctx, id, func(u *unitState) error {
		if !store.Replicated(model.StreamState(u.State)) {
			return fmt.Errorf("stream %d: %w", id, store.ErrNotReplicated)
		}
		u.Head.Epoch++
		h = u.Head.model()
		return nil
	})
	return h, err
}

// ReportError keeps the last error.
func (s *Store) ReportError(ctx context.Context, id model.StreamID, epoch model.Epoch, message string, at model.Micros) error {
	return s.changeHead(ctx, id, func(u *unitState) error {
		if int64(epoch) != u.Head.Epoch {
			return &store.FencedError{Epoch: epoch, Current: model.Epoch(u.Head.Epoch)}
		}
		u.Head.LastError, u.Head.LastErrorAt = []byte(message), int64(at)
		if message == "" {
			u.Head.LastErrorAt = 0
		}
		return nil
	})
}

// changeHead changes the head of a stream, at once: it waits for no commit, but
// one under way fails then.
func (s *Store) changeHead(ctx context.Context, id model.StreamID, change func(*unitState) error) error {
	for {
		st, err := s.load(ctx)
		if err == nil {
			err = s.owned(st)
		}
		if err != nil {
			return fmt.Errorf("change head: %w", err)
		}
		was, err := st.at(id)
		if err != nil {
			return err
		}
		next := *was
		if err := change(&next); err != nil {
			return err
		}
		next.Version++
		key := "units." + unitKey(id)
		if err := s.flip(ctx, bson.D{{Key: key + ".version", Value: was.Version}}, bson.D{{Key: key, Value: &next}}, nil); !errors.Is(err, errMoved) {
			return err
		}
	}
}

// Tables returns the progress of every table.
func (s *Store) Tables(ctx context.Context, id model.StreamID) ([]model.TableProgress, error) {
	cursor, err := s.of(id, tablesName).Find(ctx, bson.D{}, options.Find().SetSort(bson.D{{Key: "_id", Value: 1}}))
	if err != nil {
		return nil, failed(id, "read tables", err)
	}
	var cells []cell
	if err := cursor.All(ctx, &cells); err != nil {
		return nil, failed(id, "read tables", err)
	}
	u, err := s.fresh(ctx, id)
	if err != nil {
		return nil, err
	}
	var tables []model.TableProgress
	for i := range cells {
		value, ok, err := s.value(ctx, id, cells[i].ID, cells[i].stored(u))
		if err == nil && ok {
			var p model.TableProgress
			err = json.Unmarshal(value, &p)
			tables = append(tables, p)
		}
		if err != nil {
			return nil, failed(id, "read tables", err)
		}
	}
	return tables, nil
}

// Clear drops a stopped stream's collections. From its first step on, nothing of
// the stream can be read; in the last one it is terminated.
func (s *Store) Clear(ctx context.Context, id model.StreamID) error {
	if err := s.clear(ctx, id); err != nil {
		return fmt.Errorf("clear stream %d: %w", id, err)
	}
	s.units.Delete(id)
	return nil
}

func (s *Store) clear(ctx context.Context, id model.StreamID) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	key := "units." + unitKey(id)
	st, err := s.load(ctx)
	if err != nil {
		return err
	}
	if err := s.owned(st); err != nil {
		return err
	}
	was := st.Units[unitKey(id)]
	if was == nil {
		err := s.terminated().FindOne(ctx, bson.D{{Key: "_id", Value: int64(id)}}).Err()
		if errors.Is(err, mongo.ErrNoDocuments) {
			return store.ErrNoStream
		}
		return err
	}
	if state := model.StreamState(was.State); state != model.Stopped {
		return fmt.Errorf("it is %s: only a stopped one may be cleared", state)
	}
	if !was.Clearing {
		r, err := s.states().UpdateOne(ctx, bson.D{{Key: "_id", Value: stateName}, {Key: "owner.epoch", Value: s.epoch.Load()}, {Key: key + ".version", Value: was.Version}},
			bson.D{{Key: "$inc", Value: bson.D{{Key: "revision", Value: 1}, {Key: key + ".version", Value: 1}}}, {Key: "$set", Value: bson.D{{Key: key + ".clearing", Value: true}}}})
		if err != nil {
			return err
		}
		if r.MatchedCount == 0 {
			return errMoved
		}
	}
	for _, name := range ofStream {
		if err := s.of(id, name).Drop(ctx); err != nil {
			return fmt.Errorf("drop %s: %w", name, err)
		}
	}
	if st, err = s.load(ctx); err != nil {
		return err
	}
	if was = st.Units[unitKey(id)]; was == nil {
		return errMoved
	}
	end := terminated{ID: int64(id), Unit: *was}
	end.Unit.State, end.Unit.Aborted = int32(model.Terminated), []int64{}
	if _, err := s.terminated().ReplaceOne(ctx, bson.D{{Key: "_id", Value: end.ID}}, &end, options.Replace().SetUpsert(true)); err != nil {
		return err
	}
	var now state
	err = s.states().FindOneAndUpdate(ctx, bson.D{{Key: "_id", Value: stateName}, {Key: "owner.epoch", Value: s.epoch.Load()}, {Key: key + ".version", Value: was.Version}},
		bson.D{{Key: "$unset", Value: bson.D{{Key: key, Value: ""}}}, {Key: "$inc", Value: bson.D{{Key: "revision", Value: 1}, {Key: "catalog", Value: 1}}}},
		options.FindOneAndUpdate().SetReturnDocument(options.After)).Decode(&now)
	if errors.Is(err, mongo.ErrNoDocuments) {
		return errMoved
	}
	if err == nil {
		s.learn(&now)
	}
	return err
}
