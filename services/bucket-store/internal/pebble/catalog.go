package pebble

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// Streams returns every stream by id.
func (s *Store) Streams(context.Context) ([]model.Stream, error) { return s.list(), nil }

func (s *Store) list() []model.Stream {
	streams := *s.streams.Load()
	list := make([]model.Stream, 0, len(streams))
	for _, st := range streams {
		def := *st.definition.Load()
		def.Head = st.head.Load().StreamHead
		list = append(list, def)
	}
	slices.SortFunc(list, func(a, b model.Stream) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Change alters the catalog.
func (s *Store) Change(_ context.Context, decide func([]model.Stream) store.Change) (*model.Stream, error) {
	s.catalog.Lock()
	defer s.catalog.Unlock()
	change := decide(s.list())
	batch := s.db.NewBatch()
	defer batch.Close()
	moved, err := s.setDefinitions(batch, change.Altered(), change.Alter)
	if err != nil {
		return nil, err
	}
	var made *model.Stream
	if change.New != nil {
		if err := s.disk.room(); err != nil {
			return nil, err
		}
		def := *change.New
		def.ID = s.next + 1
		def.Name = fmt.Sprintf("%s%d%s", change.Prefix, def.ID, change.Suffix)
		def.Head = model.StreamHead{}
		made = &def
		if err := setDefinition(batch, made); err != nil {
			return nil, err
		}
		if err := batch.Set(streamKey(kindHead, made.ID), appendHead(nil, &head{}), nil); err != nil {
			return nil, err
		}
	}
	if batch.Empty() {
		return nil, nil
	}
	if err := s.apply(batch, pebble.Sync); err != nil {
		return nil, fmt.Errorf("change catalog: %w", fault(err))
	}
	for st, def := range moved {
		st.definition.Store(def)
	}
	if made != nil {
		st := &stream{id: made.ID}
		st.definition.Store(made)
		st.head.Store(&head{})
		st.filter.Store(newRowFilter(s.options.FilterBytes))
		streams := maps.Clone(*s.streams.Load())
		streams[made.ID] = st
		s.streams.Store(&streams)
		s.next = made.ID
		made = new(*made)
		s.note()
	}
	return made, nil
}

// setDefinitions writes changed definitions into batch and returns those that
// are to take effect when it is committed. The caller holds catalog.
func (s *Store) setDefinitions(batch *pebble.Batch, ids []model.StreamID, alter func(*model.Stream)) (map[*stream]*model.Stream, error) {
	moved := map[*stream]*model.Stream{}
	for _, id := range ids {
		st := (*s.streams.Load())[id]
		if st == nil {
			return nil, fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
		}
		def := *st.definition.Load()
		alter(&def)
		if err := setDefinition(batch, &def); err != nil {
			return nil, err
		}
		moved[st] = &def
	}
	return moved, nil
}

func setDefinition(batch *pebble.Batch, def *model.Stream) error {
	value, err := json.Marshal(def)
	if err != nil {
		return fmt.Errorf("encode stream %d: %w", def.ID, fault(err))
	}
	return batch.Set(streamKey(kindStream, def.ID), value, nil)
}

// changeHead replaces the head of a stream by a durable commit of its own.
func (s *Store) changeHead(id model.StreamID, change func(state model.StreamState, h *head) error) (model.StreamHead, error) {
	s.catalog.RLock()
	defer s.catalog.RUnlock()
	st, err := s.stream(id)
	if err != nil {
		return model.StreamHead{}, err
	}
	st.write.Lock()
	defer st.write.Unlock()
	h := *st.head.Load()
	if err := change(st.definition.Load().State, &h); err != nil {
		return model.StreamHead{}, err
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	if err := batch.Set(streamKey(kindHead, id), appendHead(nil, &h), nil); err != nil {
		return model.StreamHead{}, err
	}
	if err := s.apply(batch, pebble.Sync); err != nil {
		return model.StreamHead{}, fmt.Errorf("write head of stream %d: %w", id, fault(err))
	}
	st.head.Store(&h)
	return h.StreamHead, nil
}

// OpenSession raises the epoch.
func (s *Store) OpenSession(_ context.Context, id model.StreamID) (model.StreamHead, error) {
	return s.changeHead(id, func(state model.StreamState, h *head) error {
		if !store.Replicated(state) {
			return fmt.Errorf("stream %d: %w", id, store.ErrNotReplicated)
		}
		h.Epoch++
		return nil
	})
}

// ReportError keeps the last error.
func (s *Store) ReportError(_ context.Context, id model.StreamID, epoch model.Epoch, message string, at model.Micros) error {
	_, err := s.changeHead(id, func(_ model.StreamState, h *head) error {
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
func (s *Store) Tables(_ context.Context, id model.StreamID) (tables []model.TableProgress, err error) {
	if _, err := s.stream(id); err != nil {
		return nil, err
	}
	lower, upper := streamRange(kindProgress, id)
	iter, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("read tables: %w", fault(err))
	}
	defer iter.Close()
	for iter.First(); iter.Valid(); iter.Next() {
		var p model.TableProgress
		if err := json.Unmarshal(iter.Value(), &p); err != nil {
			return nil, fmt.Errorf("read table: %w", fault(err))
		}
		tables = append(tables, p)
	}
	slices.SortFunc(tables, func(a, b model.TableProgress) int { return bytes.Compare(a.Table.ID[:], b.Table.ID[:]) })
	return tables, fault(iter.Error())
}

// Clear removes a stopped stream's data. Range tombstones make it one small
// batch; Pebble drops the files behind them by and by.
func (s *Store) Clear(_ context.Context, id model.StreamID) error {
	s.catalog.Lock()
	defer s.catalog.Unlock()
	st := (*s.streams.Load())[id]
	if st == nil {
		return fmt.Errorf("stream %d: %w", id, store.ErrNoStream)
	}
	switch state := st.definition.Load().State; state {
	case model.Terminated:
		return nil
	case model.Stopped:
	default:
		return fmt.Errorf("stream %d is %s: only a stopped one may be cleared", id, state)
	}
	st.compact.Lock()
	defer st.compact.Unlock()
	batch := s.db.NewBatch()
	defer batch.Close()
	moved, err := s.setDefinitions(batch, []model.StreamID{id}, func(def *model.Stream) { def.State = model.Terminated })
	if err != nil {
		return err
	}
	for _, kind := range streamKinds {
		lower, upper := streamRange(kind, id)
		if err := batch.DeleteRange(lower, upper, nil); err != nil {
			return err
		}
	}
	if err := s.apply(batch, pebble.Sync); err != nil {
		return fmt.Errorf("clear stream %d: %w", id, fault(err))
	}
	for st, def := range moved {
		st.definition.Store(def)
	}
	st.filter.Store(nil)
	return nil
}
