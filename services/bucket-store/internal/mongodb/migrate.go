package mongodb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/model"
)

// migrate makes the collections that are there without a stream.
func (s *Store) migrate(ctx context.Context) error {
	err := s.migrated(ctx)
	if !errors.Is(err, errEmpty) {
		return err
	}
	if err := s.makeCollections(ctx, deployment); err != nil {
		return err
	}
	// The last step, after which the others are not made again.
	st := state{ID: stateName, Format: format, Revision: 1, Units: map[string]*unitState{unitKey(deployment): {Aborted: []int64{}}}}
	if _, err := s.states().InsertOne(ctx, &st); err != nil && !mongo.IsDuplicateKeyError(err) {
		return fmt.Errorf("make the state: %w", err)
	}
	s.options.Log.Info("the collections of the storage are made", "database", s.db.Name())
	return nil
}

// migrated fails unless the collections are what this program needs.
func (s *Store) migrated(ctx context.Context) error {
	st, err := s.load(ctx)
	switch {
	case errors.Is(err, errEmpty) && s.options.NoMigration:
		return errs.New(errs.S3201, "the storage database %s has no collections yet and migrations.disable_auto_migration is set: run sluice migrate up", s.db.Name())
	case err != nil:
		return err
	case st.Format != format:
		return errs.New(errs.S3201, "the storage database %s has collections of format %d, which this program does not know", s.db.Name(), st.Format)
	}
	return nil
}

// namespaceExists is the server's code for a collection that is there already.
const namespaceExists = 48

// makeCollections makes those of a stream.
func (s *Store) makeCollections(ctx context.Context, id model.StreamID) error {
	names := ofStream
	if id == deployment {
		names = []string{usersName, partsName}
	}
	for _, name := range names {
		var e mongo.CommandError
		if err := s.db.CreateCollection(ctx, s.of(id, name).Name()); err != nil && !(errors.As(err, &e) && e.Code == namespaceExists) {
			return fmt.Errorf("make collection %s: %w", name, err)
		}
	}
	if id == deployment {
		return nil
	}
	if _, err := s.of(id, bucketsName).Indexes().CreateMany(ctx, []mongo.IndexModel{{Keys: bson.D{{Key: "o", Value: 1}}}, {Keys: bson.D{{Key: dirtField, Value: 1}}}}); err != nil {
		return fmt.Errorf("make indexes: %w", err)
	}
	return nil
}

// Migrate makes the collections that are missing, or drops all if down is set:
// unless there is data, or dropData is set.
func Migrate(ctx context.Context, c *config.MongoDB, o Options, down, dropData bool) (err error) {
	o.defaults()
	o.NoMigration = false
	s, err := connect(ctx, c, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if !down {
		return s.migrate(ctx)
	}
	return s.drop(ctx, dropData)
}

// drop drops all collections.
func (s *Store) drop(ctx context.Context, dropData bool) error {
	st, err := s.load(ctx)
	if errors.Is(err, errEmpty) {
		s.options.Log.Info("the storage database has no collections", "database", s.db.Name())
		return nil
	}
	if err != nil {
		return err
	}
	if n := len(st.streams()); n > 0 && !dropData {
		return errs.New(errs.S2001, "the storage database %s has %d replication streams; --drop-data removes them, and everything is copied anew", s.db.Name(), n)
	}
	// The state first: whoever writes meanwhile is refused from now on.
	if err := s.states().Drop(ctx); err != nil {
		return fmt.Errorf("drop the state: %w", err)
	}
	names, err := s.db.ListCollectionNames(ctx, bson.D{})
	if err != nil {
		return fmt.Errorf("list collections: %w", err)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if err := s.db.Collection(name).Drop(ctx); err != nil {
			return fmt.Errorf("drop %s: %w", name, err)
		}
	}
	s.options.Log.LogAttrs(ctx, slog.LevelInfo, "the collections of the storage are dropped", slog.String("database", s.db.Name()))
	return nil
}
