package snapshot

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// TestLayersCopied: the tables of added layers are copied for each of them alone, a
// piece between two transactions, whatever crashes and fails, and a layer is said
// to be copied when it is; what the other layers have of the tables stays.
func TestLayersCopied(t *testing.T) {
	for name, keyed := range map[string]bool{"keyed": true, "without keys": false} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { layersCopied(t, keyed) }) })
	}
}

func layersCopied(t *testing.T, keyed bool) {
	d := newDatabase(keyed, 95, 40, 70, 0)
	names := func(tables ...int) (all []model.TablePattern) {
		for _, i := range tables {
			all = append(all, model.TablePattern{Name: d.tables[i].Name})
		}
		return all
	}
	// The stream reads the first two. The first layer reads one of those and a new
	// one, and the second both new ones.
	s := newStore(1000)
	for i := range 2 {
		p := model.TableProgress{Table: d.tables[i].SourceTable, LastKey: d.tables[i].Place, Done: true}
		s.known[p.Table.ID] = &p
	}
	layers := []model.Layer{{Tables: names(0, 2)}, {Tables: names(2, 3)}}
	failed, crashes := 0, 0
	d.fails.Store(2)
	for s.layer < 2 {
		marks := make(chan struct{}, 10)
		l := &Layers{Snapshot: snapshot(d, s), All: layers, Done: s.layer, Mark: func() { marks <- struct{}{} }, Failed: func(error) { failed++ }}
		s.left = 7 // batches until the crash
		if !keyed {
			s.left = 14
		}
		err := l.Begin(t.Context(), names(0, 1))
		for n := 0; err == nil && !l.over(); n++ {
			before := d.copies.Load()
			if err = l.Step(t.Context()); d.copies.Load() > before+1 {
				t.Fatalf("%d pieces at once", d.copies.Load()-before)
			}
			if before := d.copies.Load(); err == nil {
				if err = l.Step(t.Context()); d.copies.Load() != before {
					t.Fatal("the log has no time between pieces")
				}
				<-marks
			}
		}
		if errors.Is(err, errCrash) {
			crashes++
		} else if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // of a bubble: what is on order
	}
	if failed != 2 || crashes == 0 {
		t.Errorf("%d failures and %d crashes", failed, crashes)
	}
	for layer, tables := range map[uint32][]int{1: {0, 2}, 2: {2, 3}} {
		for _, i := range tables {
			id := d.tables[i].ID
			if got := len(s.alone[layer][id]); got != d.sizes[id] {
				t.Errorf("%d rows of table %d for layer %d, not %d", got, i, layer, d.sizes[id])
			}
			if p := s.known[id]; !p.Done || p.Layer < layer || string(p.LastKey) != string(d.tables[i].Place) {
				t.Errorf("progress of table %d: %+v", i, p)
			}
		}
	}
	if len(s.rows) != 0 || s.known[d.tables[1].ID].Layer != 0 {
		t.Errorf("what all layers have of tables changed: %v", s.rows)
	}
	if s.before != "end" {
		t.Errorf("readers may see it from %q on", s.before)
	}
}

// TestLayersBetween: what is compared with what is stored, and a table that has
// appeared, has no layer that was added after a session had begun to copy it. That
// is copied for the layer alone.
func TestLayersBetween(t *testing.T) {
	for _, compare := range []bool{true, false} {
		d := newDatabase(true, 5, 95, 40)
		s := newStore(1000)
		for i := range d.tables {
			p := model.TableProgress{Table: d.tables[i].SourceTable, LastKey: d.tables[i].Place, Done: true}
			s.known[p.Table.ID] = &p
		}
		copies := func(layer uint32) error {
			snap := snapshot(d, s)
			snap.Compare, snap.Parallel, snap.Layer = compare, 1, layer
			if !compare {
				return snap.Table(t.Context(), &d.tables[1])
			}
			if layer == 0 {
				if err := snap.Begin(t.Context()); err != nil {
					return err
				}
			}
			return snap.All(t.Context())
		}
		if !compare {
			delete(s.known, d.tables[1].ID)
		}
		s.left = 4
		if err := copies(0); !errors.Is(err, errCrash) {
			t.Fatal(err)
		}
		if p := s.known[d.tables[1].ID]; p.Done || len(p.LastKey) == 0 {
			t.Fatalf("nothing is half copied: %+v", p)
		}
		s.left = 1000
		if err := copies(1); err != nil {
			t.Fatal(err)
		}
		if s.layer != 0 {
			t.Errorf("compare %t: layer %d is said to be copied", compare, s.layer)
		}
		all := &Layers{Snapshot: snapshot(d, s), All: []model.Layer{{Tables: []model.TablePattern{{Name: d.tables[1].Name}, {Name: d.tables[2].Name}}}}, Mark: func() {}}
		for !all.over() {
			if err := all.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
			all.rest = time.Time{}
		}
		for _, i := range []int{1, 2} {
			if id := d.tables[i].ID; len(s.alone[1][id]) != d.sizes[id] {
				t.Errorf("compare %t: %d rows of table %d for the layer, not %d", compare, len(s.alone[1][id]), i, d.sizes[id])
			}
		}
	}
}

// TestLayersLeave: tables that have come or gone since are for the log to say.
func TestLayersLeave(t *testing.T) {
	d := newDatabase(true, 5, 5, 5, 5)
	s := newStore(1000)
	known := func(i int, p model.TableProgress) {
		p.Table = d.tables[i].SourceTable
		s.known[p.Table.ID] = &p
	}
	known(0, model.TableProgress{LastKey: source.Dropped, Done: true})
	known(1, model.TableProgress{LastKey: d.tables[1].Place, Done: true, Layer: 1}) // appeared, and was copied for all
	known(2, model.TableProgress{LastKey: []byte{1, 2, 3, 4}})                      // for all, from the beginning
	l := &Layers{Snapshot: snapshot(d, s), All: []model.Layer{{Tables: []model.TablePattern{
		{Name: d.tables[0].Name}, {Name: d.tables[1].Name}, {Name: d.tables[3].Name},
	}}}, Mark: func() {}}
	if err := l.Begin(context.Background(), []model.TablePattern{{Name: d.tables[2].Name}, {Name: d.tables[3].Name}}); err != nil {
		t.Fatal(err)
	}
	if s.known[d.tables[3].ID] != nil { // another layer reads it
		t.Error("a table that has appeared is not left to whoever copies those for all")
	}
	for !l.over() {
		if err := l.Step(context.Background()); err != nil {
			t.Fatal(err)
		}
		l.rest = time.Time{}
	}
	if d.copies.Load() != 0 || s.layer != 1 {
		t.Errorf("%d copies, layer %d", d.copies.Load(), s.layer)
	}
}
