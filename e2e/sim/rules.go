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

var columns = [tableCount][]string{
	lists:   {"id", "owner", "public", "name"},
	todos:   {"id", "list", "owner", "other", "text"},
	notes:   {"id", "list", "owner", "other", "text"},
	members: {"id", "member", "list"},
}

// deployed is a config as a stream has it.
type deployed struct {
	evaluators [tableCount]*rules.TableEvaluator // of the tables, in order
	servings   []*served
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
		for i := range d.evaluators {
			t := sourceTable(i)
			d.evaluators[i] = d.servings[0].plan.Table(&t)
		}
		return d
	}))
	return made.(func() *deployed)()
}

func compile(id model.StreamID, text string) *rules.Plan {
	p, problems := rules.Compile(text, rules.Options{DefaultSchema: "public", Version: int64(id)})
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

// data is the oracle's JSON of a row.
func data(table int, r row) string {
	var b strings.Builder
	for i, c := range columns[table] {
		fmt.Fprintf(&b, `,"%s":"%s"`, c, r[i])
	}
	return "{" + b.String()[1:] + "}"
}

// evaluate makes the row that the rules-evaluator makes of a change. It keeps
// out's memory.
func (w *stream) evaluate(c change, out *rules.RowResult) model.EvaluatedRow {
	e := model.EvaluatedRow{Key: key(c.table, c.row[0])}
	switch c.op {
	case model.Truncate:
		return model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: tableID(c.table)}}
	case model.Delete:
		return model.EvaluatedRow{Kind: model.RowDelete, Key: key(c.table, c.before)}
	case model.SnapshotRow:
		e.Kind = model.RowSnapshot
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
	w.config.evaluators[c.table].EvaluateRow(values, out)
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
		buckets, objectType := w.bucketsOf(k.table, r)
		for _, b := range buckets {
			if c[b] == nil {
				c[b] = map[objectKey]string{}
			}
			c[b][objectKey{objectType, r[0], key(k.table, k.id)}] = data(k.table, r)
		}
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
	for k, r := range s {
		if k.table == members && r[1] == user {
			all[dynamicBucket(w.id, r[2])] = true
		}
	}
	maps.DeleteFunc(all, func(b string, _ bool) bool { return !by.gives(w.id, b) })
	return all
}
