package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluicesync/sluice/libs/model"
)

// source is a log of row changes in transactions, and what the rows are after
// each one.
type source struct {
	changes []model.EvaluatedRow           // the whole log
	custom  map[int]model.CustomCheckpoint // that changes carry, by their place
	ends    []int                          // changes up to the end of each transaction
}

// state is what buckets and lookups should hold: "bucket table:row id" to data.
type state map[string]string

const (
	tables   = 2
	rowsOf   = 4
	objectOf = "t"
)

func rowKey(table, row int) model.RowKey {
	return model.RowKey{Table: model.TableID{byte('a' + table)}, Row: model.RowID{byte('0' + row)}}
}

// drawSource draws a log that begins with a transaction of given rows, if any,
// and goes on with inserts, updates, moves between buckets, identity
// changes (also chains and swaps of them), deletes and truncates. It is a
// possible log: what changes its identity exists, and is the only one there.
func drawSource(t *rapid.T, given ...model.EvaluatedRow) *source {
	s := &source{custom: map[int]model.CustomCheckpoint{}}
	alive := map[model.RowKey]bool{}
	version := 0
	if len(given) > 0 {
		version = 1000 * int(given[0].Key.Row[0]) // not seen before
		s.changes, s.ends = given, []int{len(given)}
	}
	for i := range given {
		alive[given[i].Key] = true
	}
	put := func(k model.RowKey) model.EvaluatedRow {
		version++
		r := model.EvaluatedRow{Kind: model.RowPut, Key: k, Source: fmt.Sprint("source ", version)}
		for b := range 3 {
			if rapid.Bool().Draw(t, "in bucket") {
				data := fmt.Sprintf(`{"v":%d}`, version)
				id := fmt.Sprintf("%s%d", keyText(k), rapid.IntRange(0, 1).Draw(t, "object"))
				sum, _ := model.PutChecksum(objectOf, id, data, nil)
				r.Puts = append(r.Puts, model.Put{Bucket: fmt.Sprint("b", b), ObjectType: objectOf, ObjectID: id, Data: data, Checksum: sum})
			}
		}
		if rapid.Bool().Draw(t, "lookup") {
			r.Lookups = append(r.Lookups, model.ParameterEntry{Lookup: fmt.Sprint("l", rapid.IntRange(0, 1).Draw(t, "which")), Values: fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "values"))})
		}
		return r
	}
	for range rapid.IntRange(1, 12).Draw(t, "transactions") {
		for range rapid.IntRange(0, 5).Draw(t, "changes") {
			table := rapid.IntRange(0, tables-1).Draw(t, "table")
			k := rowKey(table, rapid.IntRange(0, rowsOf-1).Draw(t, "row"))
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				s.changes = append(s.changes, model.EvaluatedRow{Kind: model.RowTruncate, Key: model.RowKey{Table: k.Table}})
				maps.DeleteFunc(alive, func(a model.RowKey, _ bool) bool { return a.Table == k.Table })
			case 1, 2:
				s.changes = append(s.changes, model.EvaluatedRow{Kind: model.RowDelete, Key: k})
				delete(alive, k)
			case 3, 4, 5:
				to := rowKey(table, rapid.IntRange(0, rowsOf-1).Draw(t, "to"))
				if !alive[k] || alive[to] {
					continue
				}
				r := put(to)
				r.Before = &k.Row
				s.changes = append(s.changes, r)
				delete(alive, k)
				alive[to] = true
			default:
				if rapid.IntRange(0, 2).Draw(t, "carries") == 0 {
					s.custom[len(s.changes)] = model.CustomCheckpoint{
						UserKey: rapid.SampledFrom([]string{"u/1", "u/2"}).Draw(t, "user"), ID: uint64(rapid.IntRange(1, 9).Draw(t, "id")),
					}
				}
				s.changes = append(s.changes, put(k))
				alive[k] = true
			}
		}
		s.ends = append(s.ends, len(s.changes))
	}
	return s
}

// position is the source position after n transactions.
func position(n int) model.Position { return model.Position(fmt.Sprintf("%04d", n)) }

// rows are those of the source after n transactions.
func (s *source) rows(n int) map[model.RowKey]model.EvaluatedRow {
	rows := map[model.RowKey]model.EvaluatedRow{}
	changes := s.changes
	if n == 0 {
		changes = nil
	} else {
		changes = changes[:s.ends[n-1]]
	}
	for _, r := range changes {
		switch r.Kind {
		case model.RowTruncate:
			maps.DeleteFunc(rows, func(k model.RowKey, _ model.EvaluatedRow) bool { return k.Table == r.Key.Table })
		case model.RowDelete:
			delete(rows, r.Key)
		default:
			if r.Before != nil {
				delete(rows, model.RowKey{Table: r.Key.Table, Row: *r.Before})
			}
			r.Before = nil
			rows[r.Key] = r
		}
	}
	return rows
}

// after is what readers should see after n transactions.
func (s *source) after(n int) (buckets, lookups state) {
	buckets, lookups = state{}, state{}
	for k, r := range s.rows(n) {
		for _, p := range r.Puts {
			buckets[fmt.Sprint(p.Bucket, " ", keyText(k), " ", p.ObjectID)] = p.Data
		}
		for _, e := range r.Lookups {
			lookups[fmt.Sprint(e.Lookup, " ", keyText(k))] = e.Values
		}
	}
	return buckets, lookups
}

// reached is the custom write checkpoint of each key after n transactions.
func (s *source) reached(n int) map[string]uint64 {
	all := map[string]uint64{}
	for i, c := range s.custom {
		if n > 0 && i < s.ends[n-1] {
			all[c.UserKey] = max(all[c.UserKey], c.ID)
		}
	}
	return all
}

// batches packs the log from a cursor on, at random, into a chain.
func (s *source) batches(t *rapid.T, from model.Cursor, epoch model.Epoch) []*model.EvaluatedBatch {
	done := 0 // transactions before from
	for done < len(s.ends) && position(done+1) <= from.Position {
		done++
	}
	at := int(from.Offset)
	if done > 0 {
		at += s.ends[done-1]
	}
	var chain []*model.EvaluatedBatch
	for cursor := from; done < len(s.ends); {
		b := &model.EvaluatedBatch{Stream: 1, Epoch: epoch, Previous: cursor, Meta: model.BatchMeta{SnapshotDone: true}}
		start := at
		if part := s.ends[done] - at; part > 1 && rapid.Bool().Draw(t, "split") {
			at += rapid.IntRange(1, part-1).Draw(t, "part")
			begin := 0
			if done > 0 {
				begin = s.ends[done-1]
			}
			cursor = model.Cursor{Position: cursor.Position, Offset: uint64(at - begin)}
		} else {
			done += rapid.IntRange(1, min(3, len(s.ends)-done)).Draw(t, "whole")
			at = s.ends[done-1]
			cursor = model.Cursor{Position: position(done)}
		}
		b.End, b.Rows = cursor, s.changes[start:at]
		for i := start; i < at; i++ {
			if c, ok := s.custom[i]; ok {
				b.Checkpoints = append(b.Checkpoints, c)
			}
		}
		chain = append(chain, b)
	}
	return chain
}

// copied is a copy of the rows of a source, and its log behind it: each row that
// is copied is as it was after one of the transactions from slot to upTo.
type copied struct {
	*source
	mark       model.Position
	slot, upTo int
}

// A copy is made of units: each row, then the sweep, of each table, and its end.
const (
	unitsOfTable = rowsOf + 1
	units        = tables*unitsOfTable + 1
	unitBits     = 8
)

// batches packs copy and log from a cursor on, at random, into a chain.
func (c *copied) batches(t *rapid.T, from model.Cursor, epoch model.Epoch) []*model.EvaluatedBatch {
	begin := c.mark + position(c.slot)
	done := 0 // units
	switch {
	case from.Position > begin:
		done = units
	case from.Position == begin:
		done = int(from.Offset & (1<<unitBits - 1))
	}
	var chain []*model.EvaluatedBatch
	for cursor := from; done < units; {
		b := &model.EvaluatedBatch{Stream: 1, Epoch: epoch, Previous: cursor}
		for range rapid.IntRange(1, 4).Draw(t, "units") {
			if done == units-1 {
				b.Meta.SnapshotDone, b.Meta.NoCheckpointBefore = true, c.mark+position(c.upTo)
			} else if table, row := done/unitsOfTable, done%unitsOfTable; row == rowsOf {
				b.Rows = append(b.Rows, model.EvaluatedRow{Kind: model.RowSweep, Key: model.RowKey{Table: rowKey(table, 0).Table}})
			} else if r, ok := c.rows(rapid.IntRange(c.slot, c.upTo).Draw(t, "read"))[rowKey(table, row)]; ok {
				r.Kind = model.RowSnapshot
				b.Rows = append(b.Rows, r)
			}
			if done++; done == units {
				break
			}
		}
		cursor = model.Cursor{Position: begin, Offset: uint64(done)}
		b.End = cursor
		chain = append(chain, b)
	}
	plain := model.Cursor{Position: position(c.slot)}
	if from.Position >= begin {
		plain = model.Cursor{Position: from.Position.Source(), Offset: from.Offset >> unitBits}
	}
	in := func(p model.Cursor) model.Cursor {
		p.Position, p.Offset = c.mark+p.Position, p.Offset<<unitBits
		if p.Position == begin {
			p.Offset |= units
		}
		return p
	}
	for _, b := range c.source.batches(t, plain, epoch) {
		b.Previous, b.End = in(b.Previous), in(b.End)
		chain = append(chain, b)
	}
	return chain
}

// visible is what the shelf's ops and entries up to op amount to.
func (s *shelf) visible(op model.OpID) (buckets, lookups state) {
	buckets, lookups = state{}, state{}
	for name, ops := range s.buckets {
		for _, o := range ops {
			if o.ID > op {
				continue
			}
			k := fmt.Sprint(name, " ", keyText(o.Key), " ", o.ObjectID)
			if o.Kind == model.OpPut {
				buckets[k] = o.Data
			} else {
				delete(buckets, k)
			}
		}
	}
	for _, e := range s.entries {
		if e.ID > op {
			continue
		}
		k := fmt.Sprint(e.Lookup, " ", keyText(e.Key))
		if e.Values != "" {
			lookups[k] = e.Values
		} else {
			delete(lookups, k)
		}
	}
	return buckets, lookups
}

// check holds D1, D2 and INV-10 at every checkpoint.
// Before are the custom write checkpoints of earlier logs.
func check(t *rapid.T, s *shelf, src *source, checkpoint model.Checkpoint, before map[string]uint64) {
	t.Helper()
	n := 0
	for n < len(src.ends) && position(n+1) <= checkpoint.Position.Source() {
		n++
	}
	buckets, lookups := s.visible(checkpoint.Op)
	wantBuckets, wantLookups := src.after(n)
	if !maps.Equal(buckets, wantBuckets) {
		t.Fatalf("D1, INV-10: at %v (%d transactions) buckets hold\n%v, want\n%v", checkpoint, n, buckets, wantBuckets)
	}
	if !maps.Equal(lookups, wantLookups) {
		t.Fatalf("D1: at %v lookups hold\n%v, want\n%v", checkpoint, lookups, wantLookups)
	}
	want := src.reached(n)
	for key, id := range before {
		want[key] = max(want[key], id)
	}
	if got := s.reached(checkpoint.Position); !maps.Equal(got, want) {
		t.Fatalf("D1: at %v the custom write checkpoints are %v, want %v", checkpoint, got, want)
	}
}

// TestAnyOrder: whatever the packing, the order and number of deliveries, the
// crashes and failed commits, every published checkpoint shows exactly the
// transactions up to its position (D1 to D5, INV-8, INV-10 to INV-12, INV-15).
func TestAnyOrder(t *testing.T) { anyOrder(t, 0) }

// TestCompare: the same when the log is lost time and again, and the source is
// another one than what is stored. What is the same in both has no ops.
func TestCompare(t *testing.T) { anyOrder(t, 2) }

func anyOrder(t *testing.T, losses int) {
	rapid.Check(t, func(t *rapid.T) {
		src := drawSource(t)
		batches := src.batches
		store := newShelf(model.StreamHead{})
		options := Options{
			BufferBytes: rapid.SampledFrom([]int{1, 40, 1 << 20}).Draw(t, "buffer"),
			GroupRows:   rapid.SampledFrom([]int{1, 5, 1000}).Draw(t, "group"),
			TableRows:   rapid.IntRange(1, 3).Draw(t, "table rows"),
			Listed:      rapid.SampledFrom([]int{1, 1000}).Draw(t, "listed"),
		}
		var (
			l        *Ledger
			under    Action // the load or commit under way
			chain    []*model.EvaluatedBatch
			old      []*model.EvaluatedBatch // of ended sessions
			tickets  = map[uint64]*model.EvaluatedBatch{}
			ticket   uint64
			last     model.Checkpoint
			usedOp   model.OpID
			state    = model.Processing
			asked    *Reemit // by a compactor, from what it read at a checkpoint
			done     int     // reemissions asked for and not answered
			putAgain int     // ops, by them
			lost     *Relog  // the loss that is to be told of
			another  func()  // when it has been
			before   map[string]uint64
		)
		restart := func() {
			l = New(&model.Stream{ID: 1, State: state, Head: store.head}, options)
			under = nil
			clear(tickets)
			done = 0
		}
		step := func(e Event) {
			for _, a := range l.Step(e) {
				switch a := a.(type) {
				case Answer:
					b := tickets[a.Ticket]
					if b == nil {
						t.Fatalf("ticket %d answered twice", a.Ticket)
					}
					delete(tickets, a.Ticket)
					if a.Result == ResultCommitted && store.head.Applied.Compare(b.End) < 0 {
						t.Fatalf("INV-7: %s is answered committed, the store has %s", b.End, store.head.Applied)
					}
				case Notify:
					if a.Notice.Checkpoint.Op < last.Op || a.Notice.Checkpoint.Position < last.Position {
						t.Fatalf("INV-3: checkpoint %v after %v", a.Notice.Checkpoint, last)
					}
					noticed(t, store, &a.Notice, last)
					last = a.Notice.Checkpoint
					check(t, store, src, last, before)
				case Relogged:
					if a.Refused == "" && lost != nil {
						lost = nil
						another()
					}
				case Reemitted:
					done--
					putAgain += a.Ops
					if a.Ops > 0 && a.Checkpoint > last.Op {
						t.Fatalf("%d ops at %d were put again, the checkpoint is %v", a.Ops, a.Checkpoint, last)
					}
				case Broken:
					t.Fatalf("broken: %s", a.Reason)
				case *Commit, Load, LoadTable, LoadOps:
					if under != nil {
						t.Fatalf("two actions under way: %T and %T", under, a)
					}
					under = a
				}
			}
		}
		session := func() {
			store.head.Epoch++
			step(SessionOpened{Head: store.head})
			old = append(old, chain...)
			// A commit under way is of the old epoch, and will be refused.
			chain = nil
			if lost == nil {
				chain = batches(t, store.head.Applied, store.head.Epoch)
			}
		}
		perform := func(how int) {
			switch a := under.(type) {
			case LoadOps:
				under = nil
				if how == 0 {
					step(Failed{Head: store.head})
					return
				}
				step(store.load(a))
			case Load, LoadTable:
				under = nil
				step(store.load(a))
			case *Commit:
				under = nil
				for _, op := range a.Ops {
					if op.Op.ID <= usedOp && store.head.Persisted >= op.Op.ID {
						t.Fatalf("D2: op id %s used again", op.Op.ID)
					}
				}
				if how == 0 { // fails
					step(Failed{Head: store.head})
					return
				}
				ok := store.commit(a)
				if ok {
					usedOp = a.Head.Persisted
					if a.Activate {
						state = model.Active
					}
				}
				if how == 1 || !ok { // fails, but may be stored
					step(Failed{Head: store.head})
					return
				}
				step(Committed{})
			}
		}
		deliver := func(b *model.EvaluatedBatch) {
			ticket++
			tickets[ticket] = b
			step(Arrived{Ticket: ticket, Batch: b, Size: 10})
		}
		restart()
		session()
		chaos := func() {
			for range rapid.IntRange(0, 120).Draw(t, "steps") {
				if lost != nil && rapid.Bool().Draw(t, "tell") {
					lost.Epoch = store.head.Epoch
					step(*lost)
				}
				switch rapid.IntRange(0, 21).Draw(t, "step") {
				case 20: // a compactor reads; what it then asks for may be old
					bucket := fmt.Sprint("b", rapid.IntRange(0, 2).Draw(t, "bucket"))
					asked = &Reemit{Bucket: bucket, Checkpoint: last.Op, Ops: store.newest(bucket, last.Op), Bytes: rapid.SampledFrom([]int{10, 30, 1000}).Draw(t, "bytes")}
				case 21:
					if asked != nil && len(asked.Ops) > 0 {
						done++
						step(*asked)
					}
				case 0:
					restart()
				case 1:
					session()
				case 2:
					if len(old) > 0 {
						deliver(rapid.SampledFrom(old).Draw(t, "old batch"))
					}
				case 3, 4:
					perform(rapid.IntRange(0, 1).Draw(t, "failure"))
				case 5, 6, 7, 8, 9:
					perform(2)
				default:
					if len(chain) > 0 {
						deliver(rapid.SampledFrom(chain).Draw(t, "batch"))
					}
				}
			}
		}
		finish := func() {
			// Whatever happened, in the end everything gets through.
			for store.head.Applied.Position.Source() != position(len(src.ends)) {
				was := store.head
				for _, b := range chain {
					deliver(b)
					for under != nil {
						perform(2)
					}
				}
				if store.head == was {
					t.Fatalf("stuck at %s of %s", store.head.Applied, position(len(src.ends)))
				}
			}
			for under != nil {
				perform(2)
			}
			if len(tickets) != 0 || done != 0 {
				t.Fatalf("%d deliveries and %d reemissions were never answered", len(tickets), done)
			}
			if got := store.head.Checkpoint.Position; got.Source() != position(len(src.ends)) || got.Mark() != store.head.Applied.Position.Mark() {
				t.Fatalf("the last checkpoint is at %s", got)
			}
			check(t, store, src, store.head.Checkpoint, before)
		}
		chaos()
		for range losses {
			if rapid.Bool().Draw(t, "first to its end") {
				finish()
			}
			// Some rows of the source are as they were, some are not.
			var given []model.EvaluatedRow
			for _, r := range slices.SortedFunc(maps.Values(src.rows(len(src.ends))), func(a, b model.EvaluatedRow) int { return strings.Compare(keyText(a.Key), keyText(b.Key)) }) {
				if rapid.IntRange(0, 3).Draw(t, "is gone") > 0 {
					given = append(given, r)
				}
			}
			next := drawSource(t, given...)
			next.ends = append(next.ends, len(next.changes)) // a heartbeat
			c := &copied{source: next, slot: rapid.IntRange(0, len(next.ends)-1).Draw(t, "slot")}
			c.upTo = rapid.IntRange(c.slot, len(next.ends)).Draw(t, "up to")
			for under != nil {
				perform(2)
			}
			clear(next.custom)
			lost = &Relog{OtherHistory: rapid.Bool().Draw(t, "other history")}
			old, chain = append(old, chain...), nil
			var begun model.OpID
			var buckets map[string]string
			another = func() {
				src, batches, c.mark = next, c.batches, store.head.Applied.Position
				begun, putAgain = store.head.Persisted, 0
				buckets, _ = store.visible(begun)
				before = store.reached("~~~")
			}
			// The session that finds the loss reads nothing more.
			for chaos(); lost != nil; {
				session()
				lost.Epoch = store.head.Epoch
				for step(*lost); under != nil; {
					perform(2)
				}
			}
			session()
			chaos()
			finish()
			if c.slot == len(next.ends)-1 && putAgain == 0 {
				unchanged(t, store, begun, buckets)
			}
		}
	})
}

// unchanged: of a row that is where it was, with the data that it had, there are
// no ops above begun.
func unchanged(t *rapid.T, s *shelf, begun model.OpID, before state) {
	t.Helper()
	after, _ := s.visible(s.head.Persisted)
	same := func(key string) bool {
		of := func(all state) state {
			some := state{}
			for k, data := range all {
				if strings.Contains(k, " "+key+" ") {
					some[k] = data
				}
			}
			return some
		}
		return maps.Equal(of(before), of(after))
	}
	for name, ops := range s.buckets {
		for _, op := range ops {
			if op.ID > begun && same(keyText(op.Key)) {
				t.Fatalf("D6: bucket %s has %s of a row that is as it was", name, opText(op))
			}
		}
	}
}

// noticed holds INV-29: a notice never says less than what changed.
func noticed(t *rapid.T, s *shelf, n *model.CheckpointNotice, last model.Checkpoint) {
	t.Helper()
	if n.Everything {
		return
	}
	for name, ops := range s.buckets {
		for _, op := range ops {
			if op.ID > last.Op && op.ID <= n.Checkpoint.Op && !slices.Contains(n.Buckets, name) {
				t.Fatalf("INV-29: bucket %s changed by op %s between %v and %v, the notice says %q", name, op.ID, last, n.Checkpoint, n.Buckets)
			}
		}
	}
	for key, id := range s.reached(n.Checkpoint.Position) {
		if id > s.reached(last.Position)[key] && !slices.ContainsFunc(n.Reached, func(w model.WriteCheckpoint) bool { return w.UserKey == key && w.ID == id }) {
			t.Fatalf("INV-29: %s has %d at %v, the notice says %v", key, id, n.Checkpoint, n.Reached)
		}
	}
	for _, e := range s.entries {
		if e.ID > last.Op && e.ID <= n.Checkpoint.Op && !slices.Contains(n.Lookups, e.Lookup) {
			t.Fatalf("INV-29: lookup %s changed by %s, the notice says %q", e.Lookup, e.ID, n.Lookups)
		}
	}
}

// ofLayer is what one of two layers makes of a row: the second one bucket and one
// lookup, the first the others.
func ofLayer(r model.EvaluatedRow, layer int) model.EvaluatedRow {
	second := func(name string) bool { return (name == "b2" || name == "l1") != (layer == 1) }
	r.Puts = slices.DeleteFunc(slices.Clone(r.Puts), func(p model.Put) bool { return second(p.Bucket) })
	r.Lookups = slices.DeleteFunc(slices.Clone(r.Lookups), func(e model.ParameterEntry) bool { return second(e.Lookup) })
	return r
}

// TestLayer: a layer is added when some transactions are stored, and the rows are
// copied for it between those that follow, each piece as it is at a later time, in
// any pieces, with crashes and failed commits. At every checkpoint the first layer
// shows what it shows without that, and from the one on that says so, the second
// one all of its own (D1, D6).
func TestLayer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := drawSource(t)
		var keys []model.RowKey
		for table := range tables {
			for row := range rowsOf {
				keys = append(keys, rowKey(table, row))
			}
		}
		store := newShelf(model.StreamHead{})
		stream := &model.Stream{ID: 1, State: model.Processing}
		var l *Ledger
		layered := false // a checkpoint has said that the second one is copied
		check := func(at model.Checkpoint) {
			n := 0
			for n < len(src.ends) && position(n+1) <= at.Position {
				n++
			}
			want := &source{changes: src.changes, ends: src.ends}
			if !layered {
				want = &source{ends: src.ends}
				for _, r := range src.changes {
					want.changes = append(want.changes, ofLayer(r, 0))
				}
			}
			buckets, lookups := store.visible(at.Op)
			wantBuckets, wantLookups := want.after(n)
			if !layered { // of the other one anything may be there
				maps.DeleteFunc(buckets, func(k, _ string) bool { return k[:2] == "b2" })
				maps.DeleteFunc(lookups, func(k, _ string) bool { return k[:2] == "l1" })
			}
			if !maps.Equal(buckets, wantBuckets) || !maps.Equal(lookups, wantLookups) {
				t.Fatalf("at %v (%d transactions, layered %v) there is\n%v\n%v\nwant\n%v\n%v", at, n, layered, buckets, lookups, wantBuckets, wantLookups)
			}
		}
		restart := func() {
			store.head.Epoch++
			stream.Head = store.head
			l = New(stream, Options{TableRows: 2})
		}
		// apply hands in a batch, and tells whether it is stored: else there was a
		// crash.
		apply := func(b *model.EvaluatedBatch) bool {
			queue := []Event{Arrived{Ticket: 1, Batch: b}}
			for len(queue) > 0 {
				e := queue[0]
				queue = queue[1:]
				for _, a := range l.Step(e) {
					switch a := a.(type) {
					case Load, LoadTable:
						queue = append(queue, store.load(a))
					case *Commit:
						what := rapid.IntRange(0, 9).Draw(t, "commit")
						if what == 0 { // crashes before
							restart()
							return false
						}
						if !store.commit(a) {
							t.Fatal("a commit is refused")
						}
						layered = layered || a.Layer == 1
						stream.Copied(a.Layer)
						if a.Activate {
							stream.State = model.Active
						}
						switch what {
						case 1: // crashes after
							restart()
							return false
						case 2: // fails, but is stored
							queue = append(queue, Failed{Head: store.head})
						default:
							queue = append(queue, Committed{})
						}
					case Notify:
						check(a.Notice.Checkpoint)
					case Answer:
						if a.Result == ResultRetry {
							return false
						}
						if a.Result != ResultCommitted {
							t.Fatalf("%s: %s", a.Result, a.Message)
						}
					case Broken:
						t.Fatal(a.Reason)
					}
				}
			}
			return true
		}
		before := rapid.IntRange(0, len(src.ends)).Draw(t, "before")
		restart()
		copied, until := 0, 0 // keys that are copied, as they were after so many transactions at most
		for store.head.Checkpoint.Position != position(len(src.ends)) || !layered {
			at := store.head.Applied
			done := 0
			for done < len(src.ends) && position(done+1) <= at.Position {
				done++
			}
			adding := done >= before
			if adding && len(stream.Layers) == 0 { // deployed
				stream.Layers = []model.Layer{{Config: "more"}}
				restart()
			}
			b := &model.EvaluatedBatch{Stream: 1, Epoch: store.head.Epoch, Previous: at, Meta: model.BatchMeta{SnapshotDone: true}}
			within := model.Cursor{Position: at.Position, Offset: at.Offset + 1}
			switch {
			case adding && !layered && done > 0 && copied < len(keys) && (done == len(src.ends) || rapid.Bool().Draw(t, "piece")):
				// A session after a crash may begin at any place that is stored.
				from := rapid.IntRange(0, copied).Draw(t, "from")
				to := rapid.IntRange(copied, len(keys)).Draw(t, "to")
				when := rapid.IntRange(done, len(src.ends)).Draw(t, "when")
				rows := src.rows(when)
				for _, k := range keys[from:to] {
					if r, there := rows[k]; there {
						r = ofLayer(r, 1)
						r.Kind, r.Before = model.RowLayer, nil
						b.Rows = append(b.Rows, r)
					}
				}
				b.End = within
				until = max(until, when) // perhaps it is stored
				if apply(b) {
					copied = to
				}
			case adding && !layered && copied == len(keys) && (done == len(src.ends) || rapid.Bool().Draw(t, "say")):
				// Said again after a crash: it is not known whether it was heard.
				b.End = within
				b.Meta.Layer, b.Meta.NoCheckpointBefore = 1, position(until)
				apply(b)
				if done == len(src.ends) { // the log goes on
					src.ends = append(src.ends, len(src.changes))
				}
			case done == len(src.ends):
				src.ends = append(src.ends, len(src.changes))
			default:
				start := 0
				if done > 0 {
					start = src.ends[done-1]
				}
				b.End = model.Cursor{Position: position(done + 1)}
				for _, r := range src.changes[start:src.ends[done]] {
					if !adding {
						r = ofLayer(r, 0)
					}
					b.Rows = append(b.Rows, r)
				}
				apply(b)
			}
		}
		check(store.head.Checkpoint)
	})
}
