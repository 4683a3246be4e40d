package snapshot

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// Layers copies the tables of the layers that were added to a stream, for each of
// them alone: a piece at a time, between two transactions of the log, which goes
// on for those who have what is there.
//
// The log waits while a piece is read, and a piece sees all that the log has said
// by then. So what a piece says of a row is newer than what is known of it, or the
// same; and if it is newer, the log says so later.
type Layers struct {
	*Snapshot
	// All are the layers of the stream, of which the first Done are copied.
	All  []model.Layer
	Done uint32
	// Mark makes the log come to the end of a transaction soon.
	Mark func()
	// Failed is told why a piece cannot be copied. It is tried again, and the log
	// goes on meanwhile: those who have what is there do not need the layer.
	Failed func(error)

	todo     []*source.Table // of layer Done + 1
	listed   bool            // todo is set
	rest     time.Time       // the log goes on alone until then
	failures int             // in a row
}

// pause is until when the log goes on alone if it has said what a copy does not
// see yet; maxPause bounds that after failures.
const (
	pause    = 5 * time.Millisecond
	maxPause = 30 * time.Second
)

// chainError is one of the chain: it ends the session.
type chainError struct{ error }

func (e chainError) Unwrap() error { return e.error }

// Begin makes the tables known to the log that only the layers read which are not
// copied: they are not for it to copy as tables that have appeared.
func (l *Layers) Begin(ctx context.Context, tables []model.TablePattern) error {
	if l.over() {
		return nil
	}
	had := &model.Stream{Tables: tables, Layers: l.All[:l.Done]}
	others, err := l.Log.TablesOf(ctx, had.Reads(), l.Chain.Known())
	if err != nil {
		return err
	}
	of := map[model.TableID]bool{}
	for i := range others {
		of[others[i].ID] = true
	}
	var meta model.BatchMeta
	for i, layer := range l.All[l.Done:] {
		found, err := l.Log.TablesOf(ctx, layer.Tables, l.Chain.Known())
		if err != nil {
			return err
		}
		for j := range found {
			t := &found[j]
			if l.Chain.Known()[t.ID] != nil || of[t.ID] || Replaces(l.Chain.Known(), t) {
				continue
			}
			of[t.ID] = true
			meta.Progress = append(meta.Progress, model.TableProgress{Table: t.SourceTable, Estimate: t.Estimate, LastKey: t.Place, Layer: l.Done + uint32(i) + 1})
		}
	}
	// What an earlier session copied may show the effect of what the log says up
	// to here.
	position, err := l.Position(ctx)
	if err != nil {
		return err
	}
	l.Chain.Copied(position)
	if len(meta.Progress) == 0 {
		return nil
	}
	return l.Chain.InsertAlone(ctx, &source.Rows{}, meta, l.Done+1)
}

func (l *Layers) over() bool { return int(l.Done) >= len(l.All) }

// Step copies a piece, if the log has gone on for as long as the last one took. It
// is for the goroutine that reads the log, between transactions.
func (l *Layers) Step(ctx context.Context) error {
	if l.over() || time.Now().Before(l.rest) {
		return nil
	}
	start := time.Now()
	settled, err := l.Log.Settled(ctx)
	if err == nil && settled {
		err = l.piece(ctx)
	}
	took := max(time.Since(start), pause)
	switch broken := (chainError{}); {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &broken):
		return broken.error
	case err != nil:
		l.listed = false // it may be another table by now
		took = min(time.Second<<min(l.failures, 10), maxPause)
		l.failures++
		l.Failed(err)
	case settled:
		l.failures = 0
	}
	l.rest = time.Now().Add(took)
	time.AfterFunc(took, l.Mark) // else it might be silent
	return nil
}

// piece copies one, or says that a layer is copied.
func (l *Layers) piece(ctx context.Context) error {
	if !l.listed {
		if err := l.list(ctx); err != nil {
			return err
		}
	}
	for len(l.todo) > 0 {
		if !l.wants(l.todo[0]) {
			l.todo = l.todo[1:]
			continue
		}
		return l.copy(ctx, l.todo[0])
	}
	// Readers may see the layer from the first checkpoint on that has all that its
	// copy may show.
	end, err := l.Position(ctx)
	if err != nil {
		return err
	}
	if err := l.Chain.Insert(ctx, &source.Rows{}, model.BatchMeta{Layer: l.Done + 1, NoCheckpointBefore: end}); err != nil {
		return chainError{err}
	}
	l.Done, l.listed = l.Done+1, false
	l.Logger.Info("layer copied", "layer", l.Done)
	return nil
}

// list finds the tables of the layer that is copied.
func (l *Layers) list(ctx context.Context) error {
	found, err := l.Log.TablesOf(ctx, l.All[l.Done].Tables, l.Chain.Known())
	if err != nil {
		return err
	}
	l.todo, l.listed = nil, true
	for i := range found {
		l.todo = append(l.todo, &found[i])
	}
	return nil
}

// wants tells whether a table has to be copied for the layer: not if it was copied
// for all since, or is gone, or if the log will say that it is another one now, or
// that it appeared.
func (l *Layers) wants(t *source.Table) bool {
	p := l.Chain.Known()[t.ID]
	return p != nil && !bytes.Equal(p.LastKey, source.Dropped) && (p.Layer <= l.Done || p.Layer == l.Done+1 && !p.Done)
}

func (l *Layers) copy(ctx context.Context, t *source.Table) error {
	layer := l.Done + 1
	c := &copier{s: l.Snapshot, t: t, alone: true, logged: time.Now(), progress: model.TableProgress{Table: t.SourceTable, Estimate: t.Estimate, Layer: layer}}
	c.rows.Limit = l.Chain.MaxRow()
	var after []byte
	if p := l.Chain.Known()[t.ID]; p.Layer == layer && len(p.LastKey) > 0 && l.Log.Resumable(t, p.LastKey) {
		after, c.progress.Rows = p.LastKey, p.Rows
	} else {
		l.Logger.Info("copying table", "table", t.Schema+"."+t.Name, "layer", layer, "estimate", t.Estimate)
	}
	if t.Private != nil {
		if err := l.Log.Copy(ctx, t, after, c); err != nil {
			return err
		}
	}
	if !c.stopped {
		c.progress.Done = true
		if err := c.Flush(ctx, t.Place); err != nil {
			return err
		}
		l.Logger.Info("table copied", "table", t.Schema+"."+t.Name, "layer", layer, "rows", c.progress.Rows)
	}
	position, err := l.Position(ctx)
	if err != nil {
		return err
	}
	l.Chain.Copied(position)
	return nil
}

// Replaces tells whether a table that is not known takes the place of one that is:
// the log will say when.
func Replaces(known map[model.TableID]*model.TableProgress, t *source.Table) bool {
	for _, p := range known {
		if p.Table.Schema == t.Schema && p.Table.Name == t.Name && string(p.LastKey) != string(source.Dropped) {
			return true
		}
		if len(p.LastKey) >= 4 && string(p.LastKey[:4]) == string(t.Place[:4]) {
			return true
		}
	}
	return false
}
