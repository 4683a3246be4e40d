// Package evaluate turns a ChangeBatch into the rows of an EvaluatedBatch: the
// identity of each row, its previous version where values are missing, and what
// the sync config makes of it.
//
// Invariants:
//
//   - D4, D6: the same batch gives the same rows, whoever evaluates it and how
//     often (TestDeterministic).
//   - INV-13, D9: a row that cannot be evaluated is reported with table and key,
//     leaves its buckets, and stops nothing (TestPoisonRow,
//     TestUnresolvableRowLeavesItsBuckets).
//   - The write checkpoints of a batch are those of its saved rows, of each key
//     the highest; a row that should carry one and does not is reported
//     (TestCheckpoints).
//   - A value that the source did not send is the one the row had before, from
//     the same batch or from the ledger, or the row counts as one that cannot be
//     evaluated; it is never taken for NULL (TestUnchangedValues).
//
// It is functions on values: no I/O, no clock, no goroutine.
package evaluate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/libs/wire"
)

const (
	// MaxRow bounds the values of one row; a larger one is not synced (S1002).
	MaxRow = 15 << 20
	// minSource is the least size in row form of a row whose previous version
	// is kept. Only a value stored out of line can be left out of an update, and
	// Postgres stores values out of line only in rows of more than about 2,000
	// bytes. No type's text form is more than eight times shorter than its
	// stored form (the worst are arrays of small composites, with 24 bytes of
	// header an element), so a row below 256 bytes has no such value.
	minSource = 256
)

// Evaluator evaluates the rows of one source table; *rules.TableEvaluator is
// one.
type Evaluator interface {
	EvaluateRow(row []model.Value, out *rules.RowResult)
}

// Table is what a plan knows of a source table: its evaluator, nil if the sync
// config does not use the table.
type Table struct {
	Rows    Evaluator
	columns string // see columnNames
}

// NewTable returns the Table of t.
func NewTable(t *model.SourceTable, rows Evaluator) *Table {
	return &Table{Rows: rows, columns: columnNames(t)}
}

// Plan finds tables.
type Plan interface {
	Table(t *model.SourceTable) *Table
}

// Problem is a row, or a query of a row, that could not be evaluated.
type Problem struct {
	Table      *model.SourceTable
	Key        string // the row's key columns as text, for an operator to find it
	Definition string // of the sync config; "" if the row as a whole is concerned
	Removed    bool   // the row as a whole was taken out of its buckets
	Err        error
}

// Batch is a change batch on its way: first Prepare, then Fill if Missing names
// rows, then Evaluate.
type Batch struct {
	model.ChangeBatch
	rows    []identity
	missing []model.RowKey
	// former has the versions before this batch of the rows of missing, and,
	// while the batch is evaluated, those of its own rows that later ones refer
	// to. It is nil if no row is incomplete.
	former map[model.RowKey]version
}

// identity is who a changed row is.
type identity struct {
	id, before model.RowID
	flags      uint8
}

const (
	known      = 1 << iota // id is set
	moved                  // before is set and differs from id
	incomplete             // values are missing that the row had before
)

// version is a row as it was, with the names of its columns. A nil row says
// that there was none.
type version struct {
	columns string
	row     []model.Value
}

// Prepare finds who the rows of b are and which need their previous version to
// be evaluated by plan.
func Prepare(b *model.ChangeBatch, plan Plan) *Batch {
	p := &Batch{ChangeBatch: *b, rows: make([]identity, len(b.Changes))}
	var scratch []byte
	anyIncomplete := false
	var source *model.SourceTable
	used := false
	for i := range p.Changes {
		c, r := &p.Changes[i], &p.rows[i]
		if c.Table != source {
			source, used = c.Table, plan.Table(c.Table).Rows != nil
		}
		if !used {
			continue
		}
		switch c.Op {
		case model.Truncate, model.DropTable, model.Sweep:
			continue
		case model.Delete:
			var ok bool
			if r.id, ok, scratch = model.RowIdentity(c.Table, c.Before, scratch); ok {
				r.flags = known
			}
			continue
		}
		// What the old row has and the new one lacks is unchanged. This is all
		// there is to do for tables whose old rows come complete.
		for j := range min(len(c.Row), len(c.Before)) {
			if c.Row[j].Kind() == model.Absent {
				c.Row[j] = c.Before[j]
			}
		}
		var ok bool
		if r.id, ok, scratch = model.RowIdentity(c.Table, c.Row, scratch); ok {
			r.flags = known
		} else if c.Op != model.Update && !hasKey(c.Table) {
			r.id = p.numbered(i)
			r.flags = known
		}
		if c.Before != nil {
			if r.before, ok, scratch = model.RowIdentity(c.Table, c.Before, scratch); ok && r.before != r.id {
				r.flags |= moved
			}
		}
		if c.Op == model.Update && !c.Table.CompleteRows && r.flags&known != 0 {
			for j := range c.Row {
				if c.Row[j].Kind() == model.Absent {
					r.flags |= incomplete
					anyIncomplete = true
					break
				}
			}
		}
	}
	if anyIncomplete {
		p.findMissing()
	}
	return p
}

// numbered is the identity of a row of a table without replica identity: of its
// place in the chain, so that a redelivered batch gives the same.
func (p *Batch) numbered(i int) model.RowID {
	name := append([]byte(p.Previous.Position), 0)
	name = strconv.AppendUint(name, p.Previous.Offset, 10)
	name = append(name, 0)
	return model.RowID(model.UUID5(strconv.AppendInt(name, int64(i), 10)))
}

func hasKey(t *model.SourceTable) bool {
	return slices.ContainsFunc(t.Columns, func(c model.Column) bool { return c.Key })
}

// prior is the key under which a changed row was known before.
func (r *identity) prior(t *model.SourceTable) model.RowKey {
	if r.flags&moved != 0 {
		return model.RowKey{Table: t.ID, Row: r.before}
	}
	return model.RowKey{Table: t.ID, Row: r.id}
}

// findMissing lists the rows whose previous version is not in this batch.
func (p *Batch) findMissing() {
	p.former = map[model.RowKey]version{}
	seen := map[model.RowKey]bool{} // said something of in this batch
	gone := map[model.TableID]bool{}
	for i := range p.Changes {
		c, r := &p.Changes[i], &p.rows[i]
		if c.Op == model.Truncate || c.Op == model.DropTable {
			gone[c.Table.ID] = true
			continue
		}
		if c.Op == model.Sweep {
			continue // it says nothing of the rows that are looked at here
		}
		if r.flags&incomplete != 0 {
			prior := r.prior(c.Table)
			if _, asked := p.former[prior]; !asked && !seen[prior] && !gone[c.Table.ID] {
				p.missing = append(p.missing, prior)
			}
			p.former[prior] = version{} // evaluation keeps this row's versions
		}
		if r.flags&moved != 0 {
			seen[r.prior(c.Table)] = true
		}
		seen[model.RowKey{Table: c.Table.ID, Row: r.id}] = true
	}
}

// Missing are the rows whose versions at p.Previous Fill wants.
func (p *Batch) Missing() []model.RowKey { return p.missing }

// Fill gives the stored rows in the order of Missing, "" for those that are not
// known.
func (p *Batch) Fill(rows []string) error {
	if len(rows) != len(p.missing) {
		return fmt.Errorf("%d previous rows for %d keys", len(rows), len(p.missing))
	}
	for i, s := range rows {
		if s == "" {
			continue
		}
		v, err := readSource(s)
		if err != nil {
			return fmt.Errorf("previous version of row %s: %w", p.missing[i].Subkey(), err)
		}
		p.former[p.missing[i]] = v
	}
	return nil
}

// Worker evaluates batches one after the other and keeps its memory. Not safe
// for concurrent use.
type Worker struct {
	rows    []model.EvaluatedRow
	spans   []span
	result  rules.RowResult
	befores []model.RowID
	sources []byte
	// checkpoints of the batch, at most one per key, and where each key's is
	// (nil before the first).
	checkpoints []model.CustomCheckpoint
	keys        map[string]int
}

// span is where in a Worker's memory the parts of a row are, while that memory
// may still move.
type span struct {
	puts, lookups, source [2]int
	before                int // index + 1
}

// Evaluate returns p's rows, which are valid until the next call. Problems go to
// report.
func (w *Worker) Evaluate(p *Batch, plan Plan, report func(Problem)) []model.EvaluatedRow {
	w.rows, w.spans, w.befores, w.sources = w.rows[:0], w.spans[:0], w.befores[:0], w.sources[:0]
	w.result.Reset()
	w.checkpoints, w.keys = w.checkpoints[:0], nil
	e := evaluation{Worker: w, batch: p, plan: plan, report: report}
	for e.next < len(p.Changes) {
		e.run()
	}
	for i := range w.rows {
		r, s := &w.rows[i], &w.spans[i]
		r.Puts = w.result.Puts[s.puts[0]:s.puts[1]:s.puts[1]]
		r.Lookups = w.result.Lookups[s.lookups[0]:s.lookups[1]:s.lookups[1]]
		if s.source[1] > s.source[0] {
			r.Source = alias(w.sources[s.source[0]:s.source[1]])
		}
		if s.before > 0 {
			r.Before = &w.befores[s.before-1]
		}
	}
	return w.rows
}

// Checkpoints are the write checkpoints of the batch that was evaluated last,
// valid until the next one.
func (w *Worker) Checkpoints() []model.CustomCheckpoint { return w.checkpoints }

// carry takes a write checkpoint of a row.
func (w *Worker) carry(c model.CustomCheckpoint) {
	i, ok := w.keys[c.UserKey]
	switch {
	case !ok:
		if w.keys == nil {
			w.keys = map[string]int{}
		}
		w.keys[c.UserKey] = len(w.checkpoints)
		w.checkpoints = append(w.checkpoints, c)
	case c.ID > w.checkpoints[i].ID:
		w.checkpoints[i] = c
	}
}

func alias(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// evaluation is one call of Evaluate.
type evaluation struct {
	*Worker
	batch  *Batch
	plan   Plan
	report func(Problem)
	next   int // change to evaluate next
	// The table of the last change.
	source *model.SourceTable
	table  *Table
}

// run evaluates changes until the end or a panic, which costs its row only: the
// row is reported and leaves its buckets.
func (e *evaluation) run() {
	rows, puts, lookups, befores, sources := 0, 0, 0, 0, 0
	defer func() {
		if r := recover(); r != nil {
			e.rows, e.spans, e.befores, e.sources = e.rows[:rows], e.spans[:rows], e.befores[:befores], e.sources[:sources]
			e.result.Puts, e.result.Lookups = e.result.Puts[:puts], e.result.Lookups[:lookups]
			e.result.Errors, e.result.Events = e.result.Errors[:0], e.result.Events[:0]
			e.remove(e.next, fmt.Errorf("panic while evaluating: %v", r))
			e.next++
		}
	}()
	for e.next < len(e.batch.Changes) {
		rows, puts, lookups = len(e.rows), len(e.result.Puts), len(e.result.Lookups)
		befores, sources = len(e.befores), len(e.sources)
		e.change(e.next)
		e.next++
	}
}

// remove says that change i's row is in no bucket now, and why.
func (e *evaluation) remove(i int, err error) {
	c, r := &e.batch.Changes[i], &e.batch.rows[i]
	p := Problem{Table: c.Table, Key: keyText(c), Err: err}
	if r.flags&known != 0 {
		p.Removed = true
		e.add(e.kind(c), i)
	}
	e.report(p)
	if e.batch.former != nil {
		// Whether later changes of the row can be completed is unknown: its
		// version before this change would be the wrong one.
		e.forget(model.RowKey{Table: c.Table.ID, Row: r.id})
	}
}

// kind is what a change that has a row becomes.
func (e *evaluation) kind(c *model.Change) model.RowKind {
	switch {
	case e.batch.Alone:
		return model.RowLayer
	case c.Op == model.SnapshotRow:
		return model.RowSnapshot
	}
	return model.RowPut
}

func (e *evaluation) forget(k model.RowKey) {
	if _, kept := e.batch.former[k]; kept {
		e.batch.former[k] = version{}
	}
}

// add starts a row for change i, with nothing in it, and returns its span.
func (e *evaluation) add(kind model.RowKind, i int) *span {
	c, r := &e.batch.Changes[i], &e.batch.rows[i]
	s := span{
		puts:    [2]int{len(e.result.Puts), len(e.result.Puts)},
		lookups: [2]int{len(e.result.Lookups), len(e.result.Lookups)},
	}
	if r.flags&moved != 0 {
		e.befores = append(e.befores, r.before)
		s.before = len(e.befores)
	}
	e.rows = append(e.rows, model.EvaluatedRow{Kind: kind, Key: model.RowKey{Table: c.Table.ID, Row: r.id}})
	e.spans = append(e.spans, s)
	return &e.spans[len(e.spans)-1]
}

func (e *evaluation) change(i int) {
	c, r := &e.batch.Changes[i], &e.batch.rows[i]
	if c.Table != e.source {
		e.source, e.table = c.Table, e.plan.Table(c.Table)
	}
	if c.Op == model.Truncate || c.Op == model.DropTable {
		e.add(model.RowTruncate, i)
		for k := range e.batch.former {
			if k.Table == c.Table.ID {
				e.batch.former[k] = version{}
			}
		}
		return
	}
	if c.Op == model.Sweep {
		e.add(model.RowSweep, i)
		return
	}
	if e.table.Rows == nil {
		return // nothing of this table was ever stored
	}
	if r.flags&known == 0 {
		e.report(Problem{Table: c.Table, Key: keyText(c), Err: errNoIdentity})
		return
	}
	if c.Op == model.Delete {
		e.add(model.RowDelete, i)
		if e.batch.former != nil {
			e.forget(model.RowKey{Table: c.Table.ID, Row: r.id})
		}
		return
	}
	var missing error
	if r.flags&incomplete != 0 {
		missing = e.complete(c, r)
	}
	size := rowSize(c.Row)
	s := e.add(e.kind(c), i)
	switch {
	case missing != nil:
		e.report(Problem{Table: c.Table, Key: keyText(c), Removed: true, Err: missing})
	case size > MaxRow:
		e.report(Problem{Table: c.Table, Key: keyText(c), Removed: true, Err: &TooLargeError{Size: size}})
	default:
		e.table.Rows.EvaluateRow(c.Row, &e.result)
		for j := range e.result.Errors {
			e.report(Problem{Table: c.Table, Key: keyText(c), Definition: e.result.Errors[j].Definition, Err: e.result.Errors[j].Err})
		}
		for j := range e.result.Events {
			given, ok, err := e.result.Events[j].Checkpoint()
			if err != nil {
				e.report(Problem{Table: c.Table, Key: keyText(c), Definition: e.result.Events[j].Name, Err: err})
			} else if ok {
				e.carry(given)
			}
		}
		e.result.Errors, e.result.Events = e.result.Errors[:0], e.result.Events[:0]
	}
	s.puts[1], s.lookups[1] = len(e.result.Puts), len(e.result.Lookups)
	if !c.Table.CompleteRows && size >= minSource && size <= MaxRow {
		s.source[0] = len(e.sources)
		e.sources = appendSource(e.sources, e.table.columns, c.Row)
		s.source[1] = len(e.sources)
	}
	if e.batch.former != nil {
		if r.flags&moved != 0 {
			e.forget(r.prior(c.Table))
		}
		k := model.RowKey{Table: c.Table.ID, Row: r.id}
		if _, kept := e.batch.former[k]; kept {
			e.batch.former[k] = version{columns: e.table.columns, row: c.Row}
		}
	}
}

// complete puts into c's row what it had before.
func (e *evaluation) complete(c *model.Change, r *identity) error {
	former := e.batch.former[r.prior(c.Table)]
	var lacking []string
	for j := range c.Row {
		if c.Row[j].Kind() != model.Absent {
			continue
		}
		if k := findColumn(former, e.table.columns, j); k >= 0 {
			c.Row[j] = former.row[k]
		}
		if c.Row[j].Kind() == model.Absent && j < len(c.Table.Columns) {
			lacking = append(lacking, c.Table.Columns[j].Name)
		}
	}
	if lacking != nil {
		return fmt.Errorf("%w: %s", errUnknownBefore, strings.Join(lacking, ", "))
	}
	return nil
}

// rowSize is about the size of row in row form.
func rowSize(row []model.Value) int {
	n := 0
	for i := range row {
		n += 2 + len(row[i].Str())
	}
	return n
}

// keyText is the key columns of a change as text, cut where they are long.
func keyText(c *model.Change) string {
	row := c.Row
	if row == nil {
		row = c.Before
	}
	var b strings.Builder
	for i := range min(len(c.Table.Columns), len(row)) {
		if !c.Table.Columns[i].Key {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(c.Table.Columns[i].Name)
		b.WriteByte('=')
		switch v := row[i]; v.Kind() {
		case model.Integer:
			b.WriteString(strconv.FormatInt(v.Int(), 10))
		case model.Real:
			b.WriteString(strconv.FormatFloat(v.Float(), 'g', -1, 64))
		case model.Text, model.BigInteger:
			b.WriteString(strings.ToValidUTF8(v.Str()[:min(len(v.Str()), 64)], "\uFFFD"))
		default:
			b.WriteString(v.Kind().String())
		}
	}
	return b.String()
}

func readSource(s string) (version, error) {
	row, err := wire.Row(s, nil)
	if err != nil {
		return version{}, err
	}
	last := len(row) - 1
	if last < 0 || row[last].Kind() != model.Blob || len(row[last].Str()) != last*nameSize {
		return version{}, fmt.Errorf("%w: stored row without column names", wire.ErrMalformed)
	}
	return version{columns: row[last].Str(), row: row[:last:last]}, nil
}
