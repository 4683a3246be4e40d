package mongodb

import (
	"context"
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/sluicesync/sluice/libs/model"
)

// heal removes what attempts have left that came to nothing, and returns those that
// stay listed: the newest ones, which a process that is stalled may still be of. It
// looks at every document of the stream, so it is done when they are many.
func (s *Store) heal(ctx context.Context, id model.StreamID, aborted []int64) (left []int64, err error) {
	stay := s.options.abortedMax / 4
	old, left := aborted[:len(aborted)-stay], aborted[len(aborted)-stay:]
	filter := bson.D{{Key: "a", Value: bson.D{{Key: "$in", Value: old}}}}
	of := ofStream
	if id == deployment {
		of = []string{usersName, partsName}
	}
	for _, name := range of {
		c := s.of(id, name)
		switch name {
		case opsName, lookupsName, partsName:
			_, err = c.DeleteMany(ctx, filter)
		default:
			err = healCells(ctx, c, filter)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return left, nil
}

// healCells gives cells, and documents of buckets, the value back that they had.
func healCells(ctx context.Context, c *mongo.Collection, filter bson.D) error {
	cursor, err := c.Find(ctx, filter)
	if err != nil {
		return err
	}
	defer cursor.Close(ctx)
	for cursor.Next(ctx) {
		var d struct {
			ID      []byte        `bson:"_id"`
			Attempt int64         `bson:"a"`
			Was     bson.RawValue `bson:"p"`
		}
		if err := cursor.Decode(&d); err != nil {
			return err
		}
		is := bson.D{{Key: "_id", Value: d.ID}, {Key: "a", Value: d.Attempt}}
		if d.Was.IsZero() {
			_, err = c.DeleteOne(ctx, is)
		} else {
			_, err = c.UpdateOne(ctx, is, bson.D{{Key: "$set", Value: bson.D{{Key: "a", Value: int64(0)}, {Key: "s", Value: d.Was}}}, {Key: "$unset", Value: bson.D{{Key: "p", Value: ""}}}})
		}
		if err != nil {
			return err
		}
	}
	return cursor.Err()
}
