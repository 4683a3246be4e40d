// Package snapshot copies tables into the chain of batches: all of a stream's
// tables at its beginning, several at a time, and single ones later.
//
// Invariants:
//
//   - The progress of a table travels in the batch that has its rows, so a
//     restart goes on behind the last row stored (TestResume).
//   - What was copied of a table that cannot be gone on with is removed before
//     the table is copied again (TestResumeWithoutKey).
//   - What a session copies of a table that another one has begun to copy makes no
//     layer of it that was added in between (TestLayersBetween).
//   - What is stored of an earlier log is compared: a row is removed only when its
//     table is copied to the end and has not shown it (TestCompare).
package snapshot

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

const (
	// batchBytes is the size at which copied rows become a batch.
	batchBytes = 512 << 10
	// logInterval is how often the progress of a table is logged.
	logInterval = 10 * time.Second
)

// Chain is where batches go.
type Chain interface {
	Insert(ctx context.Context, rows *source.Rows, meta model.BatchMeta) error
	InsertAlone(ctx context.Context, rows *source.Rows, meta model.BatchMeta, layer uint32) error
	Copied(until model.Position)
	Known() map[model.TableID]*model.TableProgress
	MaxRow() int
}

// Snapshot copies tables.
type Snapshot struct {
	Log   source.Log
	Chain Chain
	// Position is the end of the source's log now.
	Position func(ctx context.Context) (model.Position, error)
	Logger   *slog.Logger
	// Parallel is how many tables are copied at once.
	Parallel int
	// Compare: what is stored is of an earlier log, or may be.
	Compare bool
	// Rows is told of rows copied.
	Rows func(n int)
	// Layer is the last one of the stream, and Layered the last that is copied.
	Layer, Layered uint32
}

// All makes the initial copy: every table that the stream reads, less what the
// chain's known tables say is copied. The last batch says that it is done, and
// from which position on a checkpoint may be made.
func (s *Snapshot) All(ctx context.Context) error {
	known := s.Chain.Known()
	tables, err := s.Log.Tables(ctx, known)
	if err != nil {
		return err
	}
	var gone []*model.SourceTable
	current := map[model.TableID]bool{}
	var todo []*source.Table
	progress := map[model.TableID]model.TableProgress{}
	for i := range tables {
		t := &tables[i]
		current[t.ID] = true
		p := known[t.ID]
		if p != nil && p.Done && !bytes.Equal(p.LastKey, source.Dropped) {
			continue
		}
		todo = append(todo, t)
		if p != nil {
			progress[t.ID] = *p
		}
	}
	for id, p := range known {
		if !current[id] && !bytes.Equal(p.LastKey, source.Dropped) {
			gone = append(gone, &p.Table)
		}
	}
	if err := s.Drop(ctx, gone); err != nil {
		return err
	}
	eg, egctx := errgroup.WithContext(ctx)
	eg.SetLimit(max(s.Parallel, 1))
	for _, t := range todo {
		if egctx.Err() != nil {
			break
		}
		var p *model.TableProgress
		if known, ok := progress[t.ID]; ok {
			p = &known
		}
		eg.Go(func() error { return s.table(egctx, t, p, false) })
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// After the last read: rows may show the effect of any commit up to here.
	end, err := s.Position(ctx)
	if err != nil {
		return err
	}
	s.Logger.Info("snapshot done", "tables", len(tables), "position", end)
	return s.Chain.Insert(ctx, &source.Rows{}, model.BatchMeta{SnapshotDone: true, NoCheckpointBefore: end})
}

// Begin says that of no table that is stored anything is copied. It is the first
// batch of a log with which tables are to be compared.
func (s *Snapshot) Begin(ctx context.Context) error {
	var meta model.BatchMeta
	for _, p := range s.Chain.Known() {
		if !bytes.Equal(p.LastKey, source.Dropped) {
			meta.Progress = append(meta.Progress, model.TableProgress{Table: p.Table, Estimate: p.Rows})
		}
	}
	slices.SortFunc(meta.Progress, func(a, b model.TableProgress) int { return bytes.Compare(a.Table.ID[:], b.Table.ID[:]) })
	s.Logger.Info("comparing tables with what is stored", "tables", len(meta.Progress))
	return s.Chain.Insert(ctx, &source.Rows{}, meta)
}

// Drop removes tables with their rows.
func (s *Snapshot) Drop(ctx context.Context, gone []*model.SourceTable) error {
	if len(gone) == 0 {
		return nil
	}
	gone = slices.Clone(gone)
	slices.SortFunc(gone, func(a, b *model.SourceTable) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	rows := &source.Rows{}
	var meta model.BatchMeta
	for _, t := range gone {
		s.Logger.Info("dropping table", "table", t.Schema+"."+t.Name)
		rows.Add(model.Change{Table: t, Op: model.DropTable}, 16)
		meta.Progress = append(meta.Progress, model.TableProgress{Table: *t, LastKey: source.Dropped, Done: true})
	}
	return s.Chain.Insert(ctx, rows, meta)
}

// Table copies one table while the log waits. A checkpoint is held back until
// the log has passed what the copy may show.
func (s *Snapshot) Table(ctx context.Context, t *source.Table) error {
	var p *model.TableProgress
	if known := s.Chain.Known()[t.ID]; known != nil && !bytes.Equal(known.LastKey, source.Dropped) {
		p = known
	}
	return s.table(ctx, t, p, true)
}

func (s *Snapshot) table(ctx context.Context, t *source.Table, p *model.TableProgress, inline bool) error {
	c := &copier{s: s, t: t, inline: inline, logged: time.Now(), progress: model.TableProgress{Table: t.SourceTable, Estimate: t.Estimate}}
	c.rows.Limit = s.Chain.MaxRow()
	if p != nil {
		c.progress.Estimate = max(t.Estimate, p.Estimate)
	}
	var after []byte
	start := time.Now()
	if p != nil && len(p.LastKey) > 0 && s.Log.Resumable(t, p.LastKey) {
		after, c.progress.Rows = p.LastKey, p.Rows
	} else if p != nil && !(s.Compare && !inline && hasKey(&t.SourceTable)) {
		// Without a replica identity nobody knows which row was which.
		c.rows.Add(model.Change{Table: &t.SourceTable, Op: model.Truncate}, 16)
		c.extra = 1
		c.progress.LastKey = nil
	}
	s.Logger.Info("copying table", "table", t.Schema+"."+t.Name, "rows", c.progress.Rows, "estimate", t.Estimate)
	if t.Private != nil {
		if err := s.Log.Copy(ctx, t, after, c); err != nil {
			return err
		}
	}
	if s.Compare && !inline {
		c.rows.Add(model.Change{Table: &t.SourceTable, Op: model.Sweep}, 16)
		c.extra++
	}
	c.progress.Done, c.progress.Layer = true, s.Layer
	if after != nil || s.Compare && !inline {
		// An earlier session may have copied some of it, before layers were added
		// that this one knows: what is not copied yet is copied for each alone.
		c.progress.Layer = s.Layered
	}
	if err := c.Flush(ctx, t.Place); err != nil {
		return err
	}
	s.Logger.Info("table copied", "table", t.Schema+"."+t.Name, "rows", c.progress.Rows, "seconds", time.Since(start).Seconds())
	return nil
}

func hasKey(t *model.SourceTable) bool {
	return slices.ContainsFunc(t.Columns, func(c model.Column) bool { return c.Key })
}

// copier collects the rows of one table.
type copier struct {
	s        *Snapshot
	t        *source.Table
	inline   bool
	alone    bool // for the layer of progress alone
	stopped  bool // Copy has not come to the end
	rows     source.Rows
	extra    int // changes in rows that are not rows
	progress model.TableProgress
	logged   time.Time
}

func (c *copier) Rows() *source.Rows { return &c.rows }

func (c *copier) Full() bool { return c.rows.Bytes >= batchBytes }

// Paused ends the piece of a table that is copied between transactions of the log.
func (c *copier) Paused(ctx context.Context, place []byte) (stop bool, err error) {
	if c.stopped = c.alone; !c.stopped {
		return false, nil
	}
	return true, c.Flush(ctx, place)
}

func (c *copier) Flush(ctx context.Context, place []byte) error {
	n := len(c.rows.Changes) - c.extra
	c.extra = 0
	c.progress.Rows += uint64(n)
	c.progress.Estimate = max(c.progress.Estimate, c.progress.Rows)
	c.progress.LastKey = place
	meta := model.BatchMeta{Progress: []model.TableProgress{c.progress}, SourceBytes: uint64(c.rows.Bytes)}
	if c.inline {
		var err error
		if meta.NoCheckpointBefore, err = c.s.Position(ctx); err != nil {
			return err
		}
	}
	insert := c.s.Chain.Insert
	if c.alone {
		insert = func(ctx context.Context, rows *source.Rows, meta model.BatchMeta) error {
			if err := c.s.Chain.InsertAlone(ctx, rows, meta, c.progress.Layer); err != nil {
				return chainError{err}
			}
			return nil
		}
	}
	if err := insert(ctx, &c.rows, meta); err != nil {
		return err
	}
	if time.Since(c.logged) > logInterval {
		c.logged = time.Now()
		c.s.Logger.Info("Replication progress", "table", c.t.Schema+"."+c.t.Name, "rows", c.progress.Rows, "estimate", c.progress.Estimate,
			"percent", 100*c.progress.Rows/max(c.progress.Estimate, 1))
	}
	if c.s.Rows != nil {
		c.s.Rows(n)
	}
	return nil
}
