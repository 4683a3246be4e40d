package rules

import (
	"sort"
	"strconv"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules/eval"
	"github.com/sluicesync/sluice/libs/rules/plan"
)

// output makes the JSON text of a result row. Its columns are found once for
// a table: * becomes the table's columns.
type output struct {
	name  string // output table
	slots []slot
	// assigns compute the values of slots, in the order of the select list.
	assigns []assign
	// plain: each slot is assigned once, so that slots are written as they are
	// computed.
	plain bool
	each  bool // reads json_each rows, so that a row has several results
	id    int  // slot of the column id, -1 = none
}

type slot struct{ name, key string } // key: "name":

type assign struct {
	slot   int
	expr   eval.Expr
	column int // of the row, for *; -1 otherwise
	// fill: only if the slot has no value yet (* before edition 3).
	fill bool
}

// newOutput resolves a select list against the columns of a table.
func newOutput(r *plan.Rows, t *model.SourceTable, b plan.Binder) *output {
	o := &output{name: r.Output, id: -1, plain: true}
	if o.name == "" {
		o.name = t.Name
	}
	index := map[string]int{}
	at := func(name string) int {
		i, ok := index[name]
		if !ok {
			i = len(o.slots)
			index[name] = i
			key := model.AppendJSON(nil, model.TextValue(name))
			o.slots = append(o.slots, slot{name, string(key) + ":"})
		} else {
			o.plain = false
		}
		return i
	}
	for _, c := range r.Columns {
		if c.Expr != nil {
			c.Expr.Walk(func(e *plan.Expr) { o.each = o.each || e.Op == plan.EachKey || e.Op == plan.EachValue })
			o.assigns = append(o.assigns, assign{at(c.Name), c.Expr.Bind(b), -1, false})
			continue
		}
		for i, col := range t.Columns {
			if r.StarAll || !strings.HasPrefix(col.Name, "_") {
				o.assigns = append(o.assigns, assign{at(col.Name), nil, i, !r.StarAll})
			}
		}
	}
	if i, ok := index["id"]; ok {
		o.id = i
	}
	o.sortIndexKeys()
	return o
}

// sortIndexKeys puts names that look like array indexes first, ascending, as
// an object of the reference's language keeps them.
func (o *output) sortIndexKeys() {
	order := make([]int, len(o.slots))
	numbers := false
	for i := range order {
		order[i] = i
		_, ok := arrayIndex(o.slots[i].name)
		numbers = numbers || ok
	}
	if !numbers {
		return
	}
	sort.SliceStable(order, func(a, b int) bool {
		x, okX := arrayIndex(o.slots[order[a]].name)
		y, okY := arrayIndex(o.slots[order[b]].name)
		return okX && (!okY || x < y)
	})
	slots := make([]slot, len(order))
	place := make([]int, len(order))
	for to, from := range order {
		slots[to] = o.slots[from]
		place[from] = to
	}
	o.slots = slots
	for i := range o.assigns {
		o.assigns[i].slot = place[o.assigns[i].slot]
	}
	if o.id >= 0 {
		o.id = place[o.id]
	}
	o.plain = false
}

func arrayIndex(name string) (uint64, bool) {
	if name == "" || len(name) > 10 || name[0] == '0' && len(name) > 1 {
		return 0, false
	}
	n, err := strconv.ParseUint(name, 10, 32)
	return n, err == nil && n < 1<<32-1
}

// encode appends the JSON text of the row to dst and returns its id.
func (o *output) encode(s *scratch, dst []byte) (_ []byte, id model.Value, err error) {
	dst = append(dst, '{')
	start := len(dst)
	if !o.plain {
		return o.encodeSlots(s, dst)
	}
	for i := range o.assigns {
		a := &o.assigns[i]
		v, err := a.value(&s.env)
		if err != nil {
			return dst, id, err
		}
		if v.Kind() == model.Absent || v.Kind() == model.Blob {
			continue
		}
		if a.slot == o.id {
			id = v
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, o.slots[a.slot].key...)
		dst = model.AppendJSON(dst, v)
	}
	return append(dst, '}'), id, nil
}

func (a *assign) value(env *eval.Env) (model.Value, error) {
	if a.column < 0 {
		return a.expr(env)
	}
	if a.column < len(env.Row) {
		return env.Row[a.column], nil
	}
	return model.Value{}, nil
}

// encodeSlots is encode for columns that are assigned several times: a column
// stands where it was assigned first.
func (o *output) encodeSlots(s *scratch, dst []byte) (_ []byte, id model.Value, err error) {
	s.values = append(s.values[:0], make([]model.Value, len(o.slots))...)
	for i := range o.assigns {
		a := &o.assigns[i]
		v, err := a.value(&s.env)
		if err != nil {
			return dst, id, err
		}
		if a.column >= 0 && v.Kind() == model.Absent || a.fill && !s.values[a.slot].IsNull() {
			continue
		}
		s.values[a.slot] = v
	}
	start := len(dst)
	for i, v := range s.values {
		if v.Kind() == model.Absent || v.Kind() == model.Blob {
			continue
		}
		if i == o.id {
			id = v
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(dst, o.slots[i].key...)
		dst = model.AppendJSON(dst, v)
	}
	return append(dst, '}'), id, nil
}
