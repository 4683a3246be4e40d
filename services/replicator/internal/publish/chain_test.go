package publish

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/kit/trace"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

// pipe is a transport that keeps batches.
type pipe struct {
	t       *testing.T
	batches []*model.ChangeBatch
	sizes   []int
	calm    func() bool
	acked   bool
}

func (p *pipe) send(id string, end model.Cursor, body []byte, _ model.Micros, _ *trace.Span) {
	b, err := wire.DecodeChangeBatch(body)
	if err != nil {
		p.t.Fatal(err)
	}
	if b.End != end || id != messageID(b.Stream, b.Epoch, end) {
		p.t.Fatalf("message %s ends at %s, not %s", id, b.End, end)
	}
	p.batches = append(p.batches, b)
	p.sizes = append(p.sizes, len(body))
}
func (p *pipe) quiet() bool                { return p.calm() }
func (p *pipe) acknowledged() bool         { return p.acked }
func (p *pipe) Wait(context.Context) error { return nil }
func (p *pipe) MaxRow() int                { return source.MaxRow }

var (
	table  = model.SourceTable{ID: model.TableID{1}, Connection: "default", Schema: "public", Name: "t", Columns: []model.Column{{Name: "id", Key: true}, {Name: "x"}}}
	copied = model.SourceTable{ID: model.TableID{2}, Connection: "default", Schema: "public", Name: "copied", Columns: table.Columns}
)

// entry is a transaction of a made-up log: so many changes, perhaps a marker,
// and perhaps a table that has to be copied before change number copyAt.
type entry struct {
	changes int
	marker  bool
	copyAt  int // -1 = never
}

const copyBatches = 3

// smallFull is the size of a full batch in these tests.
const smallFull = 4 << 10

func small(c *Chain) *Chain {
	c.full = smallFull
	return c
}

func position(i int) model.Position { return model.Position(fmt.Sprintf("00000000/%08X", 100*i)) }

// play reads the whole log into a chain, as a source does after a restart. done
// is how many batches of the copied table are stored.
func play(t *testing.T, c *Chain, log []entry, done int, pad string) {
	t.Helper()
	ctx := context.Background()
	insert := func() {
		for done < copyBatches {
			rows := &source.Rows{}
			row := rows.Values(2)
			row[0], row[1] = model.IntegerValue(int64(done)), model.TextValue("copied")
			rows.Add(model.Change{Table: &copied, Op: model.SnapshotRow, Row: row}, 20)
			done++
			if err := c.Insert(ctx, rows, model.BatchMeta{Progress: []model.TableProgress{{Table: copied, Rows: uint64(done), Done: done == copyBatches}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if done > 0 {
		insert() // what was interrupted
	}
	number := 0
	for i, e := range log {
		first := number
		number += e.changes
		if c.Begin(position(i + 1)[:len(position(0))-1] + "0") {
			continue
		}
		for k := range e.changes {
			if c.Skip() {
				continue
			}
			if k == e.copyAt {
				insert()
			}
			rows := c.Rows()
			row := rows.Values(2)
			row[0], row[1] = model.IntegerValue(int64(first+k)), model.TextValue(pad)
			rows.Add(model.Change{Table: &table, Op: model.Insert, Row: row}, 10+len(pad))
			if err := c.Added(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if e.marker {
			c.Heartbeat(model.Micros(i + 1))
		}
		if err := c.Commit(ctx, source.Transaction{Position: position(i+1) + "x", Time: model.Micros(i + 1), Bytes: 10}); err != nil {
			t.Fatal(err)
		}
	}
	c.mu.Lock()
	c.flush()
	c.mu.Unlock()
}

func randomLog(r *rand.Rand) []entry {
	log := make([]entry, 1+r.IntN(30))
	for i := range log {
		log[i] = entry{copyAt: -1, marker: r.IntN(4) == 0}
		switch r.IntN(4) {
		case 0:
		case 1:
			log[i].changes = 1
		case 2:
			log[i].changes = 1 + r.IntN(10)
		case 3:
			log[i].changes = 20 + r.IntN(60)
		}
	}
	if i := r.IntN(len(log)); log[i].changes > 0 {
		log[i].copyAt = r.IntN(log[i].changes)
	}
	return log
}

// flat lists the changes of batches in order.
func flat(batches []*model.ChangeBatch) []string {
	var out []string
	for _, b := range batches {
		for _, c := range b.Changes {
			out = append(out, fmt.Sprint(c.Table.Name, c.Row[0].Int()))
		}
	}
	return out
}

// TestChain: batches hang together, end at offset 0 just at ends of
// transactions (D1), and hold every change once, in order.
func TestChain(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 0))
		log := randomLog(r)
		pad := string(make([]byte, 1+r.IntN(600)))
		p := &pipe{t: t, calm: func() bool { return r.IntN(3) > 0 }}
		play(t, small(newChain(p, 7, 1, model.Cursor{}, position(0), nil, Observer{})), log, 0, pad)
		var prev model.Cursor
		transactions := uint32(0)
		for i, b := range p.batches {
			if b.Previous != prev || b.End.Compare(prev) <= 0 {
				t.Fatalf("seed %d: batch %d leads from %s to %s after %s", seed, i, b.Previous, b.End, prev)
			}
			if whole := b.Meta.Transactions > 0; whole != b.End.AtTransactionEnd() {
				t.Fatalf("seed %d: batch %d has %d transaction ends and ends at %s", seed, i, b.Meta.Transactions, b.End)
			}
			if p.sizes[i] > smallFull+len(pad)+1000 {
				t.Fatalf("seed %d: batch of %d bytes", seed, p.sizes[i])
			}
			transactions += b.Meta.Transactions
			prev = b.End
		}
		got := flat(p.batches)
		var want []string
		n, relevant := 0, uint32(0)
		for _, e := range log {
			if e.changes > 0 || e.marker {
				relevant++
			}
			for k := range e.changes {
				if k == e.copyAt {
					for i := range copyBatches {
						want = append(want, fmt.Sprint("copied", i))
					}
				}
				want = append(want, fmt.Sprint("t", n))
				n++
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: got %v, want %v", seed, got, want)
		}
		if transactions != relevant {
			t.Fatalf("seed %d: %d transactions, want %d", seed, transactions, relevant)
		}
	}
}

// TestResumeAnywhere holds D4: from whichever batch on the chain is made anew,
// packed otherwise, the changes that follow are those that followed.
func TestResumeAnywhere(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		log := randomLog(r)
		pad := string(make([]byte, 1+r.IntN(600)))
		p := &pipe{t: t, calm: func() bool { return r.IntN(3) > 0 }}
		play(t, small(newChain(p, 7, 1, model.Cursor{}, position(0), nil, Observer{})), log, 0, pad)
		all := flat(p.batches)
		for at := range p.batches {
			stored := p.batches[:at+1]
			done, seen := 0, len(flat(stored))
			var known []model.TableProgress
			for _, b := range stored {
				for _, pr := range b.Meta.Progress {
					done, known = int(pr.Rows), []model.TableProgress{pr}
				}
			}
			q := &pipe{t: t, calm: func() bool { return r.IntN(3) > 0 }}
			play(t, small(newChain(q, 7, 2, p.batches[at].End, position(0), known, Observer{})), log, done, pad)
			if got := flat(q.batches); !slices.Equal(got, all[seen:]) {
				t.Fatalf("seed %d: after %s came %v, want %v", seed, p.batches[at].End, got, all[seen:])
			}
			if len(q.batches) > 0 && q.batches[0].Previous != p.batches[at].End {
				t.Fatalf("seed %d: the chain goes on at %s, not %s", seed, q.batches[0].Previous, p.batches[at].End)
			}
		}
	}
}

// TestMismatch: a log that does not repeat is noticed.
func TestMismatch(t *testing.T) {
	p := &pipe{t: t, calm: func() bool { return true }}
	c := newChain(p, 7, 2, model.Cursor{Position: position(1), Offset: 5 << insertBits}, position(0), nil, Observer{})
	c.Begin(position(2))
	for range 3 {
		if !c.Skip() {
			t.Fatal("a change that is stored was not skipped")
		}
	}
	if err := c.Commit(context.Background(), source.Transaction{Position: position(2)}); err == nil {
		t.Fatal("a transaction with fewer changes than are stored was accepted")
	}
}

// TestHeartbeatLeaves: a heartbeat does not wait until the ledger is done with
// what was published before, but for JetStream it does.
func TestHeartbeatLeaves(t *testing.T) {
	p := &pipe{t: t, calm: func() bool { return false }}
	c := newChain(p, 7, 2, model.Cursor{Position: position(1)}, position(0), nil, Observer{})
	n := 1
	commit := func(beat model.Micros) {
		n++
		c.Begin(position(n))
		c.Heartbeat(beat)
		if err := c.Commit(context.Background(), source.Transaction{Position: position(n)}); err != nil {
			t.Fatal(err)
		}
	}
	commit(5)
	if len(p.batches) != 0 {
		t.Error("it was published before JetStream had the last batch")
	}
	p.acked = true
	commit(0) // a marker, but no heartbeat
	if len(p.batches) != 0 {
		t.Error("a transaction without a heartbeat was published")
	}
	commit(6)
	if len(p.batches) != 1 || p.batches[0].Meta.Heartbeat != 6 || p.batches[0].End.Position != position(4) {
		t.Errorf("%d batches for a heartbeat", len(p.batches))
	}
}

// TestIdle: a place without a transaction becomes the end of an empty batch.
func TestIdle(t *testing.T) {
	p := &pipe{t: t, calm: func() bool { return true }}
	c := newChain(p, 7, 2, model.Cursor{Position: position(1), Offset: 3}, position(0), nil, Observer{})
	for _, at := range []int{1, 5, 5, 4} {
		if err := c.Idle(context.Background(), position(at)); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.batches) != 1 || p.batches[0].End != (model.Cursor{Position: position(5)}) {
		t.Fatalf("%d batches", len(p.batches))
	}
	if !c.Begin(position(4)) || c.Begin(position(5)) {
		t.Error("transactions before the place are skipped, and no others")
	}
}

// TestMark: D2 of positions: what the source says is behind the mark of the
// stream's log in each batch, and comes back without it.
func TestMark(t *testing.T) {
	ctx := context.Background()
	p := &pipe{t: t, calm: func() bool { return true }}
	c := newChain(p, 7, 2, model.Cursor{Position: "}~"}, position(3), nil, Observer{})
	if at := c.CopiedUntil(); at != "" {
		t.Errorf("copied until %s", at)
	}
	insert := func(before model.Position) {
		t.Helper()
		if err := c.Insert(ctx, &source.Rows{}, model.BatchMeta{NoCheckpointBefore: before}); err != nil {
			t.Fatal(err)
		}
	}
	insert("")
	insert(position(5))
	if at := c.CopiedUntil(); at != position(5) {
		t.Errorf("copied until %s", at)
	}
	if !c.Begin(position(2)) {
		t.Error("a transaction before the log's beginning is not skipped")
	}
	commit := func(at model.Position) {
		t.Helper()
		if c.Begin(at) {
			t.Fatal("skipped")
		}
		c.Heartbeat(1)
		c.Hold(at)
		if err := c.Commit(ctx, source.Transaction{Position: at}); err != nil {
			t.Fatal(err)
		}
	}
	commit(position(6))
	if err := c.Idle(ctx, position(7)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range p.batches {
		got = append(got, fmt.Sprintf("%s to %s not before %q", b.Previous, b.End, b.Meta.NoCheckpointBefore))
	}
	in := func(n int, offset uint64) string {
		return model.Cursor{Position: "}~" + position(n), Offset: offset}.String()
	}
	want := []string{
		"}~+0 to " + in(3, 1) + ` not before ""`,
		in(3, 1) + " to " + in(3, 2) + ` not before "}~` + string(position(5)) + `"`,
		in(3, 2) + " to " + in(6, 0) + ` not before "}~` + string(position(6)) + `"`,
		in(6, 0) + " to " + in(7, 0) + ` not before ""`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// After a restart in the middle of the log.
	c = newChain(p, 7, 3, p.batches[2].End, position(4), nil, Observer{})
	if c.Begin(position(6)) || !c.Begin(position(5)) {
		t.Error("the log goes on elsewhere than at what is applied")
	}
}
