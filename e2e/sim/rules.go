package sim

import (
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
)

// config is the sync config of the simulation. A row may be in several buckets,
// two source rows may have the same object type and id in one bucket, and
// membership goes through a parameter table. A note carries a write checkpoint of
// its owner: the number of the transaction that made its text.
const config = `
bucket_definitions:
  global:
    priority: 1
    data:
      - SELECT * FROM lists WHERE public = '1'
  own:
    priority: 3
    parameters: SELECT request.user_id() AS owner
    data:
      - SELECT * FROM todos WHERE owner = bucket.owner
      - SELECT * FROM todos WHERE other = bucket.owner
      - SELECT * FROM notes AS todos WHERE owner = bucket.owner
  list:
    priority: 2
    parameters: SELECT list FROM members WHERE member = request.user_id()
    data:
      - SELECT * FROM lists WHERE id = bucket.list
      - SELECT * FROM todos WHERE list = bucket.list
event_definitions:
  write_checkpoints:
    payloads:
      - SELECT owner AS user_id, 'c' AS client_id, CAST(substring(text, 2) AS integer) AS checkpoint FROM notes
`

// configs are config and one that shows other lists to all, and notes as what
// they are.
var configs = [2]string{config, strings.NewReplacer("public = '1'", "public = '0'", "notes AS todos", "notes").Replace(config)}

// additions are definitions that are added to a config, each as a layer: of rows
// that the config reads as well, one with an index of its own.
var additions = [maxLayers]struct{ name, definition string }{
	{"kin", `
    parameters: SELECT list AS kin FROM members WHERE member = request.user_id()
    data:
      - SELECT id, name FROM lists WHERE id = bucket.kin
      - SELECT id, text FROM notes WHERE list = bucket.kin
`},
	{"aid", `
    parameters: SELECT request.user_id() AS other
    data:
      - SELECT id, other FROM todos WHERE other = bucket.other
`},
}

const maxLayers = 2

// with is a config with the first n additions.
func with(config string, n int) string {
	for _, a := range additions[:n] {
		config = strings.Replace(config, "event_definitions:\n", "  "+a.name+":"+a.definition+"event_definitions:\n", 1)
	}
	return config
}

var columns = [tableCount][]string{
	lists:   {"id", "owner", "public", "name"},
	todos:   {"id", "list", "owner", "other", "text"},
	notes:   {"id", "list", "owner", "other", "text"},
	members: {"id", "member", "list"},
}

// deployed is a config as a stream has it.
type deployed struct {
	// evaluators are of the tables, in order, by layer; nil for a table that a
	// layer does not read.
	evaluators [1 + maxLayers][tableCount]*rules.TableEvaluator
	servings   []*served
	added      [maxLayers]*served // of all layers up to each
}

type deployedKey struct {
	id      model.StreamID
	variant int
}

// deployments are made once for all worlds, for they are immutable.
var deployments sync.Map // of func() *deployed by deployedKey

func deployment(id model.StreamID, variant int) *deployed {
	made, _ := deployments.LoadOrStore(deployedKey{id, variant}, sync.OnceValue(func() *deployed {
		d := &deployed{servings: servings(id, configs[variant])}
		var plans []*rules.Plan
		for layer := range d.evaluators {
			text := with(configs[variant], layer)
			plan := compile(id, text, uint32(layer))
			less := plan
			if layer > 0 {
				less = plan.Less(plans...)
			}
			plans = append(plans, plan)
			for i := range tableCount {
				t := sourceTable(i)
				d.evaluators[layer][i] = less.Table(&t)
			}
			if layer > 0 {
				name := "all and " + additions[layer-1].name
				d.added[layer-1] = &served{name: name, plan: over(compile(id, text, 0), name, plans...), layers: layer}
			}
		}
		return d
	}))
	return made.(func() *deployed)()
}

func compile(id model.StreamID, text string, layer uint32) *rules.Plan {
	p, problems := rules.Compile(text, rules.Options{DefaultSchema: "public", Version: int64(id), Layer: layer})
	if len(problems) > 0 {
		panic(fmt.Sprintf("the sync config: %+v", problems))
	}
	return p
}

func tableID(table int) model.TableID { return model.UUID5([]byte(tableNames[table])) }

func rowID(id string) model.RowID { return model.UUID5([]byte(id)) }

func key(table int, id string) model.RowKey {
	return model.RowKey{Table: tableID(table), Row: rowID(id)}
}

func sourceTable(table int) model.SourceTable {
	t := model.SourceTable{ID: tableID(table), Connection: "default", Schema: "public", Name: tableNames[table]}
	for _, c := range columns[table] {
		t.Columns = append(t.Columns, model.Column{Name: c, Type: "text", Key: c == "id"})
	}
	return t
}

// bucketsOf is the oracle: the config written out by hand. It says which
// buckets a row is in, as which object type.
func (w *stream) bucketsOf(table int, r row) (buckets []string, objectType string) {
	add := func(format string, args ...any) {
		b := fmt.Sprintf("%d#", w.id) + fmt.Sprintf(format, args...)
		for _, have := range buckets {
			if have == b {
				return
			}
		}
		buckets = append(buckets, b)
	}
	switch table {
	case lists:
		if r[2] == "1" == (w.variant == 0) {
			add("global[]")
		}
		add("list[%q]", r[0])
		return buckets, "lists"
	case todos:
		add("own[%q]", r[2])
		add("own[%q]", r[3])
		add("list[%q]", r[1])
	case notes:
		add("own[%q]", r[2])
		if w.variant == 1 {
			return buckets, "notes"
		}
	}
	return buckets, "todos"
}

// addedOf is the oracle of the additions: what they make of a row.
func (w *stream) addedOf(table int, r row, put func(bucket, objectType, data string)) {
	switch table {
	case lists:
		put(addedBucket(w.id, 1, r[0]), "lists", fmt.Sprintf(`{"id":%q,"name":%q}`, r[0], r[3]))
	case todos:
		put(addedBucket(w.id, 2, r[3]), "todos", fmt.Sprintf(`{"id":%q,"other":%q}`, r[0], r[3]))
	case notes:
		put(addedBucket(w.id, 1, r[1]), "notes", fmt.Sprintf(`{"id":%q,"text":%q}`, r[0], r[4]))
	}
}

func addedBucket(stream model.StreamID, layer int, value string) string {
	return fmt.Sprintf("%s%s[%q]", addedPrefix(stream, layer), additions[layer-1].name, value)
}

func addedPrefix(stream model.StreamID, layer int) string {
	return fmt.Sprintf("%d.%d#", stream, layer)
}

// data is the oracle's JSON of a row.
func data(table int, r row) string {
	var b strings.Builder
	for i, c := range columns[table] {
		fmt.Fprintf(&b, `,"%s":"%s"`, c, r[i])
	}
	return "{" + b.String()[1:] + "}"
}

// evaluate makes the row that the rules-evaluator makes of a change in a batch. It
// keeps out's memory.
func (w *stream) evaluate(c change, in *batch, out *rules.RowResult) model.EvaluatedRow {
	e := model.EvaluatedRow{Key: key(c.table, c.row[0])}
	switch c.op {
	case model.Truncate:
		return model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: tableID(c.table)}}
	case model.Sweep:
		return model.EvaluatedRow{Kind: model.RowSweep, Key: model.RowKey{Table: tableID(c.table)}}
	case model.Delete:
		return model.EvaluatedRow{Kind: model.RowDelete, Key: key(c.table, c.before)}
	case model.SnapshotRow:
		if e.Kind = model.RowSnapshot; in.alone {
			e.Kind = model.RowLayer
		}
	default:
		e.Kind = model.RowPut
		if c.before != "" && c.before != c.row[0] {
			b := rowID(c.before)
			e.Before = &b
		}
	}
	values := make([]model.Value, len(columns[c.table]))
	for i := range values {
		values[i] = model.TextValue(c.row[i])
	}
	puts, lookups := len(out.Puts), len(out.Lookups)
	for i, layer := range w.config.evaluators[:in.layer+1] {
		if te := layer[c.table]; te != nil && (!in.alone || i == int(in.layer)) {
			te.EvaluateRow(values, out)
		}
	}
	e.Puts, e.Lookups = out.Puts[puts:len(out.Puts):len(out.Puts)], out.Lookups[lookups:len(out.Lookups):len(out.Lookups)]
	return e
}

// carried are the write checkpoints of the events of out, and forgets them.
func carried(out *rules.RowResult) (all []model.CustomCheckpoint, err error) {
	index := map[string]int{}
	for i := range out.Events {
		c, ok, err := out.Events[i].Checkpoint()
		if err != nil {
			return nil, err
		}
		at, known := index[c.UserKey]
		switch {
		case !ok:
		case !known:
			index[c.UserKey] = len(all)
			all = append(all, c)
		case c.ID > all[at].ID:
			all[at] = c
		}
	}
	out.Events = out.Events[:0]
	return all, nil
}

// carriedIn is the oracle of a user's custom write checkpoint: the highest that
// transactions after one and up to another carry.
func (s *source) carriedIn(user string, after, upTo int) (id uint64) {
	for _, t := range s.log[after+1 : upTo+1] {
		for _, c := range t.changes {
			if c.table == notes && (c.op == model.Insert || c.op == model.Update) && c.row[2] == user {
				var of uint64
				if _, err := fmt.Sscanf(c.row[4], "v%d.", &of); err != nil {
					panic(err)
				}
				id = max(id, of)
			}
		}
	}
	return id
}

type querierKey struct {
	user   string
	served *served
}

// resolve says which buckets a user that is served by a config has at a
// checkpoint, through the index in the store.
func (w *stream) resolve(user string, by *served, at model.OpID) (*rules.Buckets, error) {
	k := querierKey{user, by}
	q := w.queriers[k]
	if q == nil {
		var err error
		if q, err = by.plan.Querier(rules.Request{Token: fmt.Appendf(nil, `{"sub":%q}`, user), IncludeDefaults: true}); err != nil {
			return nil, err
		}
		w.queriers[k] = q
	}
	return q.Resolve(func(keys []string) ([][]string, error) {
		return w.store.Lookups(w.ctx, w.id, at, keys, 100)
	})
}

func staticBuckets(stream model.StreamID, user string) []string {
	return []string{fmt.Sprintf("%d#global[]", stream), fmt.Sprintf("%d#own[%q]", stream, user)}
}

func dynamicBucket(stream model.StreamID, value string) string {
	return fmt.Sprintf("%d#list[%q]", stream, value)
}

// objectKey is a row as a client tells rows apart within a bucket.
type objectKey struct {
	objectType, objectID string
	key                  model.RowKey
}

// content is what the config makes of a state of the source: the oracle.
type content map[string]map[objectKey]string

func (w *stream) contentOf(s state) content {
	c := content{}
	for k, r := range s {
		put := func(bucket, objectType, data string) {
			if c[bucket] == nil {
				c[bucket] = map[objectKey]string{}
			}
			c[bucket][objectKey{objectType, r[0], key(k.table, k.id)}] = data
		}
		buckets, objectType := w.bucketsOf(k.table, r)
		for _, b := range buckets {
			put(b, objectType, data(k.table, r))
		}
		w.addedOf(k.table, r, put)
	}
	return c
}

// bucketsFor is the oracle's answer to which buckets a user has that is served
// by a config.
func (w *stream) bucketsFor(s state, user string, by *served) map[string]bool {
	all := map[string]bool{}
	for _, b := range staticBuckets(w.id, user) {
		all[b] = true
	}
	if by.layers > 1 {
		all[addedBucket(w.id, 2, user)] = true
	}
	for k, r := range s {
		if k.table == members && r[1] == user {
			all[dynamicBucket(w.id, r[2])] = true
			if by.layers > 0 {
				all[addedBucket(w.id, 1, r[2])] = true
			}
		}
	}
	maps.DeleteFunc(all, func(b string, _ bool) bool { return !by.gives(w.id, b) })
	return all
}
