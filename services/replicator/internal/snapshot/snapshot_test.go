package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCrash = errors.New("crash")

// store is a chain that stores what is inserted, until it crashes.
type store struct {
	mu     sync.Mutex
	left   int // batches until the crash
	known  map[model.TableID]*model.TableProgress
	rows   map[model.TableID]map[int64]int // how often each row was added since the table was empty
	done   bool
	before model.Position
	layer  uint32                                     // that is said to be copied
	alone  map[uint32]map[model.TableID]map[int64]int // rows for one layer alone
	swept  map[model.TableID]int                      // rows there were at each sweep of a table
}

func (s *store) Known() map[model.TableID]*model.TableProgress { return s.known }
func (s *store) MaxRow() int                                   { return source.MaxRow }
func (s *store) Copied(model.Position)                         {}

func (s *store) InsertAlone(ctx context.Context, rows *source.Rows, meta model.BatchMeta, layer uint32) error {
	all := s.rows
	if s.alone[layer] == nil {
		s.alone[layer] = map[model.TableID]map[int64]int{}
	}
	s.rows = s.alone[layer]
	defer func() { s.rows = all }()
	return s.Insert(ctx, rows, meta)
}

func (s *store) Insert(_ context.Context, rows *source.Rows, meta model.BatchMeta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left--; s.left < 0 {
		return errCrash
	}
	for _, c := range rows.Changes {
		if c.Op == model.SnapshotRow {
			if s.rows[c.Table.ID] == nil {
				s.rows[c.Table.ID] = map[int64]int{}
			}
			s.rows[c.Table.ID][c.Row[0].Int()]++
		} else if c.Op == model.Sweep {
			if _, ok := s.swept[c.Table.ID]; ok || meta.Progress[0].Table.ID != c.Table.ID || !meta.Progress[0].Done {
				return errors.New("a sweep that does not end a copy")
			}
			s.swept[c.Table.ID] = len(s.rows[c.Table.ID])
		} else {
			delete(s.rows, c.Table.ID)
		}
	}
	for i := range meta.Progress {
		p := meta.Progress[i]
		s.known[p.Table.ID] = &p
	}
	s.done = s.done || meta.SnapshotDone
	s.layer = max(s.layer, meta.Layer)
	s.before = max(s.before, meta.NoCheckpointBefore)
	rows.Reset()
	return nil
}

// database is a source.Log with tables of numbered rows.
type database struct {
	source.Log
	tables []source.Table
	sizes  map[model.TableID]int
	keyed  map[model.TableID]bool
	fails  atomic.Int64 // how often Copy fails before it reads anything
	copies atomic.Int64
}

func (d *database) Tables(context.Context, map[model.TableID]*model.TableProgress) ([]source.Table, error) {
	return d.tables, nil
}

// TablesOf takes the names of patterns.
func (d *database) TablesOf(_ context.Context, patterns []model.TablePattern, _ map[model.TableID]*model.TableProgress) (found []source.Table, _ error) {
	for _, t := range d.tables {
		if slices.ContainsFunc(patterns, func(p model.TablePattern) bool { return p.Name == t.Name }) {
			found = append(found, t)
		}
	}
	return found, nil
}

func (d *database) Settled(context.Context) (bool, error) { return true, nil }

func (d *database) Resumable(t *source.Table, after []byte) bool {
	return d.keyed[t.ID] && len(after) == 8
}

func (d *database) Copy(ctx context.Context, t *source.Table, after []byte, c source.Copier) error {
	if d.fails.Add(-1) >= 0 {
		return errors.New("permission denied")
	}
	d.copies.Add(1)
	from := 0
	if after != nil {
		from = int(binary.BigEndian.Uint64(after))
	}
	for i := from; i < d.sizes[t.ID]; i++ {
		rows := c.Rows()
		row := rows.Values(1)
		row[0] = model.IntegerValue(int64(i))
		rows.Add(model.Change{Table: &t.SourceTable, Op: model.SnapshotRow, Row: row}, batchBytes/10)
		if c.Full() {
			var place []byte
			if d.keyed[t.ID] {
				place = binary.BigEndian.AppendUint64(nil, uint64(i+1))
			}
			if err := c.Flush(ctx, place); err != nil {
				return err
			}
			if d.keyed[t.ID] {
				if stop, err := c.Paused(ctx, place); stop || err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func newDatabase(keyed bool, sizes ...int) *database {
	d := &database{sizes: map[model.TableID]int{}, keyed: map[model.TableID]bool{}}
	for i, n := range sizes {
		t := source.Table{SourceTable: model.SourceTable{ID: model.TableID{byte(i + 1)}, Schema: "public", Name: strings.Repeat("t", i+1)}, Estimate: uint64(n), Place: []byte{1}, Private: d}
		t.Columns = []model.Column{{Name: "n", Key: keyed}}
		d.tables = append(d.tables, t)
		d.sizes[t.ID], d.keyed[t.ID] = n, keyed
	}
	return d
}

func newStore(left int) *store {
	return &store{left: left, known: map[model.TableID]*model.TableProgress{}, rows: map[model.TableID]map[int64]int{}, alone: map[uint32]map[model.TableID]map[int64]int{}, swept: map[model.TableID]int{}}
}

func snapshot(d *database, s *store) *Snapshot {
	return &Snapshot{Log: d, Chain: s, Logger: slog.New(slog.DiscardHandler), Parallel: 3,
		Position: func(context.Context) (model.Position, error) { return "end", nil }}
}

// crashing copies all, with a crash after every few batches, and checks the rows.
func crashing(t *testing.T, keyed bool, every int, sizes ...int) {
	t.Helper()
	d := newDatabase(keyed, sizes...)
	s := newStore(0)
	for attempt := 0; !s.done; attempt++ {
		if attempt > 1000 {
			t.Fatal("no end")
		}
		s.left = every
		if err := snapshot(d, s).All(context.Background()); err != nil && !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
	}
	for id, n := range d.sizes {
		if len(s.rows[id]) != n || !s.known[id].Done {
			t.Errorf("table %d has %d rows of %d", id[0], len(s.rows[id]), n)
		}
		for row, times := range s.rows[id] {
			if times != 1 {
				t.Fatalf("row %d of table %d was added %d times", row, id[0], times)
			}
		}
	}
	if s.before != "end" {
		t.Errorf("checkpoints are allowed from %q", s.before)
	}
}

func TestResume(t *testing.T) { crashing(t, true, 2, 95, 0, 40, 7, 120) }

// TestResumeWithoutKey: such tables begin anew, so they must fit between crashes.
func TestResumeWithoutKey(t *testing.T) { crashing(t, false, 16, 95, 0, 40, 7) }

// TestGone: tables that no longer exist lose their rows, and stay gone.
func TestGone(t *testing.T) {
	d := newDatabase(true, 20, 30)
	s := newStore(1000)
	if err := snapshot(d, s).All(context.Background()); err != nil {
		t.Fatal(err)
	}
	gone := d.tables[1].ID
	d.tables = d.tables[:1]
	if err := snapshot(d, s).All(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(s.rows[gone]) != 0 || string(s.known[gone].LastKey) != string(source.Dropped) {
		t.Errorf("%d rows of a table that is gone", len(s.rows[gone]))
	}
}

// TestCompare: what is stored of a table stays until the table is copied to its
// end, whatever crashes in between, and is then swept: the rows that the copy has
// not shown are gone. Only a table without a replica identity is copied anew.
func TestCompare(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		d := newDatabase(keyed, 95, 0, 40, 7)
		s := newStore(1000)
		if err := snapshot(d, s).All(context.Background()); err != nil {
			t.Fatal(err)
		}
		const extra = 1000 // a row that is not in the source any more
		for _, rows := range s.rows {
			rows[extra] = 1
		}
		s.done, s.swept = false, map[model.TableID]int{}
		begun := false
		for attempt := 0; !s.done; attempt++ {
			if attempt > 100 {
				t.Fatal("no end")
			}
			s.left = 16
			again := snapshot(d, s)
			again.Compare = true
			err := error(nil)
			if !begun {
				err = again.Begin(context.Background())
				for id, p := range s.known {
					if p.Done || p.LastKey != nil || p.Rows != 0 || p.Estimate != uint64(d.sizes[id]) {
						t.Errorf("table %d is at %+v", id[0], p)
					}
				}
				begun = true
			}
			if err == nil {
				err = again.All(context.Background())
			}
			if err != nil && !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
		}
		for id, n := range d.sizes {
			want := n
			if keyed && n > 0 {
				want++
			}
			if got, ok := s.swept[id]; !ok || got != want {
				t.Errorf("keyed %t: when table %d was swept there were %d rows, want %d", keyed, id[0], got, want)
			}
		}
	}
}
