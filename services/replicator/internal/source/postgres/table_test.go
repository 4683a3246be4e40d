package postgres

import (
	"slices"
	"testing"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// TestAdopt: a table keeps its id over a load from a dump, while it is compared and
// ever after; a table that takes the place of another has an id of its own.
func TestAdopt(t *testing.T) {
	relationOf := func(oid uint32, change func(*relation)) *relation {
		r := &relation{oid: oid, schema: "public", name: "todos", identity: 'd', columns: []relationColumn{{name: "id", typeOID: 23, key: true}, {name: "title", typeOID: 25}}}
		if change != nil {
			change(r)
		}
		return r
	}
	stored := relationOf(100, nil).sourceTable()
	for name, c := range map[string]struct {
		place  []byte // stored
		oid    uint32
		change func(*relation)
		keeps  bool
	}{
		"the same":                       {place(100, nil), 100, nil, true},
		"with another column":            {place(100, nil), 100, func(r *relation) { r.columns = append(r.columns, relationColumn{name: "done", typeOID: 16}) }, true},
		"to be compared":                 {nil, 200, nil, true},
		"compared":                       {place(200, nil), 200, nil, true},
		"compared in part":               {place(200, [][]byte{[]byte("7")}), 200, nil, true},
		"made anew":                      {place(100, nil), 200, nil, false},
		"made anew after it is compared": {place(200, nil), 300, nil, false},
		"dropped":                        {source.Dropped, 200, nil, false},
		"of another name":                {nil, 200, func(r *relation) { r.name = "other" }, false},
		"of another schema":              {nil, 200, func(r *relation) { r.schema = "other" }, false},
		"of another key":                 {nil, 200, func(r *relation) { r.columns[1].key = true }, false},
		"of another type of key":         {nil, 200, func(r *relation) { r.columns[0].typeOID = 20 }, false},
		"of all columns": {nil, 200, func(r *relation) {
			r.identity = 'f'
			r.columns = slices.Clone(r.columns)
			r.columns[1].key = true
		}, false},
	} {
		known := map[model.TableID]*model.TableProgress{stored.ID: {Table: stored, LastKey: c.place}}
		r := relationOf(c.oid, c.change)
		now := r.sourceTable()
		if adopt(known, &now, r.oid); (now.ID == stored.ID) != c.keeps {
			t.Errorf("%s: the id is kept: %t, want %t", name, !c.keeps, c.keeps)
		}
	}
}
