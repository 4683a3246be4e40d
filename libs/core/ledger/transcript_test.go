package ledger

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/sluicesync/sluice/libs/model"
)

// TestTranscripts drives ledgers over an in-memory shelf by commands and
// compares what they do with the recorded transcripts.
//
//	stream [state=] [snapshot-done] [buffer=BYTES] [table-rows=N] [listed=N] [group-rows=N]
//	arrive TICKET epoch=E FROM TO [size=N] [layer=N] rows follow, one a line
//	commit [fails | persists]                lets the commit under way end
//	run                                      lets commits end until nothing is under way
//	reemit TICKET BUCKET checkpoint=OP [bytes=N] OP...
//	relog TICKET epoch=E [other-history]
//	open | stalled | state NAME | buckets | lookups
//
// A cursor is POSITION+OFFSET. A row is put KEY [from KEY] (BUCKET/ID=DATA |
// ?LOOKUP=VALUES)..., snapshot ..., layer ..., delete KEY, truncate TABLE or sweep
// TABLE; a key is TABLE:ROW. A line "checkpoint USER=ID" is a custom write checkpoint.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		var w *world
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "stream" {
				w = newWorld(t, d)
				return ""
			}
			return w.do(t, d)
		})
	})
}

type world struct {
	shelf  *shelf
	ledger *Ledger
	under  Action // way
	out    strings.Builder
}

func newWorld(t *testing.T, d *datadriven.TestData) *world {
	t.Helper()
	s := &model.Stream{ID: 1, State: model.Processing, Head: model.StreamHead{Epoch: 1}}
	var o Options
	for _, a := range d.CmdArgs {
		n := 0
		if len(a.Vals) > 0 {
			n, _ = strconv.Atoi(a.Vals[0])
		}
		switch a.Key {
		case "snapshot-done":
			s.Head.SnapshotDone = true
		case "active":
			s.State = model.Active
		case "buffer":
			o.BufferBytes = n
		case "table-rows":
			o.TableRows = n
		case "listed":
			o.Listed = n
		case "group-rows":
			o.GroupRows = n
		default:
			t.Fatalf("%s: unknown argument %s", d.Pos, a.Key)
		}
	}
	return &world{shelf: newShelf(s.Head), ledger: New(s, o)}
}

func (w *world) do(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	w.out.Reset()
	switch d.Cmd {
	case "arrive":
		b := &model.EvaluatedBatch{Stream: 1, Epoch: 1}
		size := 10
		ticket := uint64(0)
		cursors := 0
		for _, a := range d.CmdArgs {
			switch {
			case a.Key == "epoch":
				b.Epoch = model.Epoch(number(t, a.Vals[0]))
			case a.Key == "size":
				size = number(t, a.Vals[0])
			case a.Key == "snapshot-done":
				b.Meta.SnapshotDone = true
			case a.Key == "layer":
				b.Meta.Layer = uint32(number(t, a.Vals[0]))
			case a.Key == "not-before":
				b.Meta.NoCheckpointBefore = model.Position(a.Vals[0])
			case ticket == 0:
				ticket = uint64(number(t, a.Key))
			case cursors == 0:
				b.Previous = cursor(t, a.Key)
				cursors++
			default:
				b.End = cursor(t, a.Key)
			}
		}
		for line := range strings.Lines(d.Input) {
			line = strings.TrimSpace(line)
			if given, ok := strings.CutPrefix(line, "checkpoint "); ok {
				user, id, _ := strings.Cut(given, "=")
				b.Checkpoints = append(b.Checkpoints, model.CustomCheckpoint{UserKey: user, ID: uint64(number(t, id))})
				continue
			}
			b.Rows = append(b.Rows, parseRow(t, line))
		}
		w.step(Arrived{Ticket: ticket, Batch: b, Size: size})
	case "commit":
		how := ""
		if len(d.CmdArgs) > 0 {
			how = d.CmdArgs[0].Key
		}
		w.finish(t, how)
	case "run":
		for w.under != nil {
			w.finish(t, "")
		}
	case "elsewhere": // another writer commits up to a cursor
		w.shelf.head.Applied = cursor(t, d.CmdArgs[0].Key)
		w.shelf.head.Persisted += model.OpID(number(t, d.CmdArgs[1].Key))
		w.shelf.head.StoredAt++
	case "open":
		w.shelf.head.Epoch++
		w.step(SessionOpened{Head: w.shelf.head})
	case "reemit":
		e := Reemit{Ticket: uint64(number(t, d.CmdArgs[0].Key)), Bucket: d.CmdArgs[1].Key, Bytes: 1000}
		for _, a := range d.CmdArgs[2:] {
			switch a.Key {
			case "checkpoint":
				e.Checkpoint = model.OpID(number(t, a.Vals[0]))
			case "bytes":
				e.Bytes = number(t, a.Vals[0])
			default:
				e.Ops = append(e.Ops, model.OpID(number(t, a.Key)))
			}
		}
		w.step(e)
	case "relog":
		e := Relog{Ticket: uint64(number(t, d.CmdArgs[0].Key)), Epoch: 1}
		for _, a := range d.CmdArgs[1:] {
			switch a.Key {
			case "epoch":
				e.Epoch = model.Epoch(number(t, a.Vals[0]))
			case "other-history":
				e.OtherHistory = true
			}
		}
		w.step(e)
	case "stalled":
		w.step(Stalled{})
	case "state":
		for s := model.Processing; s <= model.Terminated; s++ {
			if s.String() == d.CmdArgs[0].Key {
				w.step(StateChanged{State: s})
			}
		}
	case "buckets":
		for _, name := range slices.Sorted(keysOf(w.shelf.buckets)) {
			fmt.Fprintf(&w.out, "%s:", name)
			for _, op := range w.shelf.buckets[name] {
				fmt.Fprintf(&w.out, " %s", opText(op))
			}
			w.out.WriteByte('\n')
		}
	case "lookups":
		for _, e := range w.shelf.entries {
			fmt.Fprintf(&w.out, "%s %s %s=%s\n", e.ID, keyText(e.Key), e.Lookup, e.Values)
		}
	default:
		t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	}
	if w.out.Len() == 0 {
		return "-"
	}
	return w.out.String()
}

// step steps the ledger; loads are answered at once, commits when the
// transcript says so.
func (w *world) step(e Event) {
	for _, a := range w.ledger.Step(e) {
		switch a := a.(type) {
		case Load, LoadTable, LoadOps:
			w.step(w.shelf.load(a))
		case Reemitted:
			fmt.Fprintf(&w.out, "reemitted %d: %d ops, %d bytes", a.Ticket, a.Ops, a.Bytes)
			if a.Reason != "" {
				fmt.Fprintf(&w.out, ": %s", a.Reason)
			}
			w.out.WriteByte('\n')
		case Relogged:
			fmt.Fprintf(&w.out, "relogged %d", a.Ticket)
			if a.Refused != "" {
				fmt.Fprintf(&w.out, " refused: %s", a.Refused)
			}
			w.out.WriteByte('\n')
		case *Commit:
			w.under = a
			fmt.Fprintf(&w.out, "commit %s -> %s batches=%d ops=%d", a.Previous, a.Head.Applied, a.Batches, len(a.Ops))
			for _, r := range a.Gone {
				fmt.Fprintf(&w.out, " gone (%s, %s]", keyText(model.RowKey{Table: r.Table, Row: r.After}), keyText(model.RowKey{Table: r.Table, Row: r.UpTo}))
			}
			for _, c := range a.Checkpoints {
				fmt.Fprintf(&w.out, " %s=%d from %s", c.UserKey, c.ID, a.CheckpointsAt)
			}
			if a.Published {
				fmt.Fprintf(&w.out, " checkpoint %s at %s", a.Head.Checkpoint.Op, a.Head.Checkpoint.Position)
			}
			if a.Activate {
				w.out.WriteString(" activate")
			}
			if a.Layer > 0 {
				fmt.Fprintf(&w.out, " layer %d", a.Layer)
			}
			w.out.WriteByte('\n')
		case Answer:
			fmt.Fprintf(&w.out, "answer %d %s", a.Ticket, a.Result)
			if a.Message != "" {
				fmt.Fprintf(&w.out, ": %s", a.Message)
			}
			w.out.WriteByte('\n')
		case Notify:
			fmt.Fprintf(&w.out, "notify %s at %s", a.Notice.Checkpoint.Op, a.Notice.Checkpoint.Position)
			if a.Notice.Everything {
				w.out.WriteString(" everything")
			} else {
				fmt.Fprintf(&w.out, " buckets %q lookups %q", a.Notice.Buckets, a.Notice.Lookups)
			}
			for _, c := range a.Notice.Reached {
				fmt.Fprintf(&w.out, " %s=%d from %s", c.UserKey, c.ID, c.Head)
			}
			w.out.WriteByte('\n')
		case Broken:
			fmt.Fprintf(&w.out, "broken epoch %d: %s\n", a.Epoch, a.Reason)
		}
	}
}

func (w *world) finish(t *testing.T, how string) {
	t.Helper()
	c, ok := w.under.(*Commit)
	if !ok {
		t.Fatal("no commit is under way")
	}
	w.under = nil
	stored := how != "fails" && w.shelf.commit(c)
	if how == "" && stored {
		w.step(Committed{})
		return
	}
	w.step(Failed{Head: w.shelf.head})
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func cursor(t *testing.T, s string) model.Cursor {
	t.Helper()
	position, offset, found := strings.Cut(s, "+")
	c := model.Cursor{Position: model.Position(position)}
	if position == "-" {
		c.Position = ""
	}
	if found {
		c.Offset = uint64(number(t, offset))
	}
	return c
}

func parseKey(t *testing.T, s string) model.RowKey {
	t.Helper()
	table, row, _ := strings.Cut(s, ":")
	var k model.RowKey
	copy(k.Table[:], table)
	copy(k.Row[:], row)
	return k
}

func keyText(k model.RowKey) string {
	return string(bytes.TrimRight(k.Table[:], "\x00")) + ":" + string(bytes.TrimRight(k.Row[:], "\x00"))
}

func parseRow(t *testing.T, line string) model.EvaluatedRow {
	t.Helper()
	words := strings.Fields(line)
	kinds := map[string]model.RowKind{"put": model.RowPut, "snapshot": model.RowSnapshot, "layer": model.RowLayer, "delete": model.RowDelete, "truncate": model.RowTruncate, "sweep": model.RowSweep}
	r := model.EvaluatedRow{Kind: kinds[words[0]], Key: parseKey(t, words[1])}
	if r.Kind == 0 {
		t.Fatalf("unknown row %q", line)
	}
	rest := words[2:]
	if len(rest) > 1 && rest[0] == "from" {
		before := parseKey(t, rest[1]).Row
		r.Before, rest = &before, rest[2:]
	}
	for _, w := range rest {
		name, value, ok := strings.Cut(w, "=")
		if !ok {
			t.Fatalf("what is %q in %q?", w, line)
		}
		if lookup, is := strings.CutPrefix(name, "?"); is {
			r.Lookups = append(r.Lookups, model.ParameterEntry{Lookup: lookup, Values: value})
			continue
		}
		bucket, id, _ := strings.Cut(name, "/")
		sum, _ := model.PutChecksum("t", id, value, nil)
		r.Puts = append(r.Puts, model.Put{Bucket: bucket, ObjectType: "t", ObjectID: id, Data: value, Checksum: sum})
	}
	return r
}

func opText(op model.Op) string {
	if op.Kind == model.OpPut {
		return fmt.Sprintf("%s:PUT(%s,%s=%s)", op.ID, keyText(op.Key), op.ObjectID, op.Data)
	}
	return fmt.Sprintf("%s:%s(%s,%s)", op.ID, op.Kind, keyText(op.Key), op.ObjectID)
}
