package sim

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/sluicesync/sluice/libs/model"
)

// The source has four tables, all of five text columns, the first of which is
// the key. What the columns mean is rules.go's business.
const (
	lists = iota
	todos
	notes
	members
	tableCount
)

var tableNames = [tableCount]string{"lists", "todos", "notes", "members"}

type row [5]string

type rowKey struct {
	table int
	id    string
}

// state is the content of the source at one position; immutable once made.
type state map[rowKey]row

// change is one row change in the source's log.
type change struct {
	op     model.ChangeOp
	table  int
	row    row
	before string // the former id, if it changed or for a delete
}

type transaction struct {
	changes []change
	after   state
}

// source is the database: a log of transactions and the state after each.
// Position i is the end of transaction i; transaction 0 is empty.
type source struct {
	rnd *rand.Rand
	log []transaction
}

func newSource(rnd *rand.Rand) *source {
	return &source{rnd: rnd, log: []transaction{{after: state{}}}}
}

// fork is another history that is the same up to a transaction.
func (s *source) fork(at int) *source {
	return &source{rnd: s.rnd, log: slices.Clone(s.log[:at+1])}
}

func (s *source) head() int { return len(s.log) - 1 }

func (s *source) at(i int) state { return s.log[i].after }

// position is the text of the end of transaction i. Between two transactions
// there is room for the point at which a snapshot ends.
func position(i int) model.Position { return model.Position(fmt.Sprintf("%06d", i)) }

// indexOf is the number of the last transaction at or before p, in its history.
func indexOf(p model.Position) int {
	var i int
	if _, err := fmt.Sscanf(string(p.Source()[:6]), "%06d", &i); err != nil {
		panic(fmt.Sprintf("position %q: %v", p, err))
	}
	return i
}

// Small pools, so that the same rows, keys, users and lists meet often.
func (s *source) userID() string { return string(rune('a' + s.rnd.IntN(users))) }
func (s *source) listID() string { return fmt.Sprint("L", s.rnd.IntN(4)) }
func (s *source) rowID() string  { return fmt.Sprint("r", s.rnd.IntN(7)) }

const users = 4

func (s *source) newRow(table int, id string) row {
	text := fmt.Sprint("v", len(s.log), ".", s.rnd.IntN(1000))
	switch table {
	case lists:
		return row{id, s.userID(), fmt.Sprint(s.rnd.IntN(2)), text}
	case members:
		return row{id, s.userID(), s.listID()}
	}
	return row{id, s.listID(), s.userID(), s.userID(), text}
}

// write commits a transaction of up to n changes. What they are is chance, with
// a liking for key changes followed by owner changes of the same row.
func (s *source) write(n int) {
	now := maps.Clone(s.at(s.head()))
	var changes []change
	add := func(c change) {
		changes = append(changes, c)
		if c.before != "" {
			delete(now, rowKey{c.table, c.before})
		}
		if c.op != model.Delete {
			now[rowKey{c.table, c.row[0]}] = c.row
		}
	}
	for range n {
		table := []int{lists, todos, todos, todos, notes, members}[s.rnd.IntN(6)]
		id := s.rowID()
		if table == lists {
			id = s.listID()
		}
		old, exists := now[rowKey{table, id}]
		switch k := s.rnd.IntN(12); {
		case k == 0 && table != lists && s.rnd.IntN(3) == 0:
			changes = append(changes, change{op: model.Truncate, table: table})
			for key := range now {
				if key.table == table {
					delete(now, key)
				}
			}
		case !exists:
			add(change{op: model.Insert, table: table, row: s.newRow(table, id)})
		case k < 3:
			add(change{op: model.Delete, table: table, before: id})
		case k < 6 && table != lists:
			// A key change; half of them are followed by an owner change.
			free := s.rowID()
			if _, taken := now[rowKey{table, free}]; taken {
				continue
			}
			moved := old
			moved[0] = free
			add(change{op: model.Update, table: table, row: moved, before: id})
			if s.rnd.IntN(2) == 0 {
				add(change{op: model.Update, table: table, row: s.newRow(table, free)})
			}
		case k == 6:
			add(change{op: model.Update, table: table, row: old}) // nothing new
		default:
			add(change{op: model.Update, table: table, row: s.newRow(table, id)})
		}
	}
	s.log = append(s.log, transaction{changes, now})
}

// rows are the rows of a table by id, from after on, as they are now.
func (s *source) rows(table int, after string, limit int) []row {
	now := s.at(s.head())
	var rows []row
	for key, r := range now {
		if key.table == table && key.id > after {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		switch {
		case a[0] < b[0]:
			return -1
		case a[0] > b[0]:
			return 1
		}
		return 0
	})
	return rows[:min(limit, len(rows))]
}
