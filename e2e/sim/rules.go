package sim

import (
	"fmt"
	"strings"

	"github.com/sluicesync/sluice/libs/model"
)

// The sync config of the simulation, written out by hand:
//
//	global:  SELECT * FROM lists WHERE public
//	own:     parameters: SELECT token.user_id
//	         SELECT * FROM todos WHERE owner = bucket.user
//	         SELECT * FROM todos WHERE other = bucket.user
//	         SELECT * FROM notes AS todos WHERE owner = bucket.user
//	list:    parameters: SELECT list FROM members WHERE user = token.user_id
//	         SELECT * FROM lists WHERE id = bucket.list
//	         SELECT * FROM todos WHERE list = bucket.list
//
// So a row may be in several buckets, two source rows may have the same object
// type and id in one bucket, and membership goes through a parameter table.

func tableID(table int) model.TableID { return model.UUID5([]byte(tableNames[table])) }

func rowID(id string) model.RowID { return model.UUID5([]byte(id)) }

func key(table int, id string) model.RowKey {
	return model.RowKey{Table: tableID(table), Row: rowID(id)}
}

func sourceTable(table int) model.SourceTable {
	return model.SourceTable{ID: tableID(table), Name: tableNames[table]}
}

func lookup(user string) string { return "members of " + user }

// bucketsOf says which buckets a row is in, as which object type.
func bucketsOf(stream model.StreamID, table int, r row) (buckets []string, objectType string) {
	add := func(format string, args ...any) {
		b := fmt.Sprintf("%d#", stream) + fmt.Sprintf(format, args...)
		for _, have := range buckets {
			if have == b {
				return
			}
		}
		buckets = append(buckets, b)
	}
	switch table {
	case lists:
		if r[2] == "1" {
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
	}
	return buckets, "todos"
}

func data(r row) string { return `["` + strings.Join(r[:], `","`) + `"]` }

// evaluate makes the row that the rules-evaluator makes of a change.
func evaluate(stream model.StreamID, c change, scratch []byte) (model.EvaluatedRow, []byte) {
	e := model.EvaluatedRow{Key: key(c.table, c.row[0])}
	switch c.op {
	case model.Truncate:
		return model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: tableID(c.table)}}, scratch
	case model.Delete:
		return model.EvaluatedRow{Kind: model.RowDelete, Key: key(c.table, c.before)}, scratch
	case model.SnapshotRow:
		e.Kind = model.RowSnapshot
	default:
		e.Kind = model.RowPut
		if c.before != "" && c.before != c.row[0] {
			b := rowID(c.before)
			e.Before = &b
		}
	}
	buckets, objectType := bucketsOf(stream, c.table, c.row)
	text := data(c.row)
	for _, b := range buckets {
		var sum model.Checksum
		sum, scratch = model.PutChecksum(objectType, c.row[0], text, scratch)
		e.Puts = append(e.Puts, model.Put{Bucket: b, ObjectType: objectType, ObjectID: c.row[0], Data: text, Checksum: sum})
	}
	if c.table == members {
		e.Lookups = []model.ParameterEntry{{Lookup: lookup(c.row[1]), Values: c.row[2]}}
	}
	return e, scratch
}

// staticBuckets, and one bucket per value of the user's lookup, are what a
// client gets.
func staticBuckets(stream model.StreamID, user string) []string {
	return []string{fmt.Sprintf("%d#global[]", stream), fmt.Sprintf("%d#own[%q]", stream, user)}
}

func dynamicBucket(stream model.StreamID, value string) string {
	return fmt.Sprintf("%d#list[%q]", stream, value)
}

func priority(bucket string) int {
	switch {
	case strings.Contains(bucket, "#global"):
		return 1
	case strings.Contains(bucket, "#list"):
		return 2
	}
	return 3
}

// objectKey is a row as a client tells rows apart within a bucket.
type objectKey struct {
	objectType, objectID string
	key                  model.RowKey
}

// content is what the config makes of a state of the source: the oracle.
type content map[string]map[objectKey]string

func contentOf(stream model.StreamID, s state) content {
	c := content{}
	for k, r := range s {
		buckets, objectType := bucketsOf(stream, k.table, r)
		for _, b := range buckets {
			if c[b] == nil {
				c[b] = map[objectKey]string{}
			}
			c[b][objectKey{objectType, r[0], key(k.table, k.id)}] = data(r)
		}
	}
	return c
}

// bucketsFor is the oracle's answer to which buckets a user has.
func bucketsFor(stream model.StreamID, s state, user string) map[string]bool {
	all := map[string]bool{}
	for _, b := range staticBuckets(stream, user) {
		all[b] = true
	}
	for k, r := range s {
		if k.table == members && r[1] == user {
			all[dynamicBucket(stream, r[2])] = true
		}
	}
	return all
}
