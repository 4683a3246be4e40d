package store

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// maxSince bounds what a bucket may have got since it was read, to be put again.
const maxSince = 20_000

// LoadOps does what a says.
func LoadOps(ctx context.Context, s Store, id model.StreamID, a ledger.LoadOps) (e ledger.OpsLoaded, err error) {
	size := 0
	for op, err := range s.Ops(ctx, id, a.Bucket, a.Ops[0]-1, a.Ops[len(a.Ops)-1]) {
		if errors.Is(err, ErrInvalidated) {
			return ledger.OpsLoaded{}, nil // they are folded
		}
		if err != nil {
			return e, err
		}
		if _, wanted := slices.BinarySearch(a.Ops, op.ID); !wanted {
			continue
		}
		if size += len(op.Data); size > a.Bytes {
			return ledger.OpsLoaded{Cut: true}, nil
		}
		e.Ops = append(e.Ops, keep(op))
	}
	for op, err := range s.Scan(ctx, id, a.Bucket, a.Checkpoint, math.MaxInt64, true) {
		if err != nil {
			return e, err
		}
		if len(e.Since) == maxSince {
			e.Cut = true
			break
		}
		e.Since = append(e.Since, keep(op))
	}
	return e, nil
}

// keep makes an op valid for good.
func keep(op model.Op) model.Op {
	op.ObjectType, op.ObjectID, op.Data = strings.Clone(op.ObjectType), strings.Clone(op.ObjectID), strings.Clone(op.Data)
	return op
}
