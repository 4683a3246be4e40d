package sim

import (
	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// writer is a bucket-store process that believes to be the one that writes: a
// ledger, what it is waiting for, and whom it owes an answer.
type writer struct {
	w       *stream
	run     uint64
	ledger  *ledger.Ledger
	pending ledger.Action // Load, LoadTable, LoadOps or *Commit under way
	tickets map[uint64]*message
	next    uint64
	waited  int // idle turns in which the ledger waited for a batch
}

func (w *stream) newWriter() *writer {
	streams, err := w.store.Streams(w.ctx)
	w.must(err, "streams")
	w.runs++
	b := &writer{w: w, run: w.runs, tickets: map[uint64]*message{}}
	for i := range streams {
		if streams[i].ID == w.id {
			// Small bounds, so that they are met.
			b.ledger = ledger.New(&streams[i], ledger.Options{BufferBytes: 1500, GroupRows: 1 + w.rnd.IntN(30), TableRows: 1 + w.rnd.IntN(3), Listed: 1 + w.rnd.IntN(12)})
		}
	}
	w.logf("writer %d begins at %s", b.run, b.ledger.Head().Applied)
	w.everything() // a new run: gateways cannot know what they have missed
	return b
}

func (b *writer) arrived(m *message, e *model.EvaluatedBatch) {
	b.next++
	b.tickets[b.next] = m
	b.step(ledger.Arrived{Ticket: b.next, Batch: e, Size: 100 + 20*len(e.Rows)})
}

func (b *writer) sessionOpened() {
	head, err := b.w.store.Head(b.w.ctx, b.w.id)
	b.w.must(err, "head")
	b.step(ledger.SessionOpened{Head: head})
}

func (b *writer) step(e ledger.Event) {
	w := b.w
	for _, a := range b.ledger.Step(e) {
		switch a := a.(type) {
		case ledger.Answer:
			m, ok := b.tickets[a.Ticket]
			if !ok {
				w.failf("ticket %d is answered twice", a.Ticket)
			}
			delete(b.tickets, a.Ticket)
			w.answered(m, a.Result)
		case ledger.Notify:
			a.Notice.Run = b.run
			w.notify(a.Notice)
			if a.Activated {
				w.count("activations")
				w.statesChanged(b)
			}
		case ledger.Reemitted:
			if a.Ops > 0 {
				w.count("reemissions")
			}
		case ledger.Relogged:
			w.relogged(a)
		case ledger.Broken:
			w.loseLease(a.Epoch, a.Reason)
		default:
			if b.pending != nil {
				w.failf("%T while %T is under way", a, b.pending)
			}
			b.pending = a
		}
	}
}

// work does what the ledger waits for. It may fail, and a commit may fail
// though it is stored (D3).
func (b *writer) work(fail bool) {
	w := b.w
	a := b.pending
	b.pending = nil
	failed := func() {
		head, err := w.store.Head(w.ctx, w.id)
		w.must(err, "head")
		b.step(ledger.Failed{Head: head})
	}
	if fail && w.rnd.IntN(2) == 0 && a != nil {
		failed()
		return
	}
	switch a := a.(type) {
	case nil:
		if !b.ledger.Waiting() {
			b.waited = 0
		} else if b.waited++; b.waited > 30+10*len(w.queue) || w.faults && w.rnd.IntN(300) == 0 {
			b.waited = 0
			b.step(ledger.Stalled{})
		}
	case ledger.Load:
		records, err := w.store.Records(w.ctx, w.id, a.Keys)
		w.must(err, "records")
		b.step(ledger.Loaded{Records: records})
	case ledger.LoadTable:
		rows, more, err := w.store.Table(w.ctx, w.id, a.Table, a.After, a.Limit)
		w.must(err, "table")
		b.step(ledger.TableLoaded{Rows: rows, More: more})
	case ledger.LoadOps:
		e, err := store.LoadOps(w.ctx, w.store, w.id, a)
		w.must(err, "ops")
		b.step(e)
	case *ledger.Commit:
		before, err := w.store.Head(w.ctx, w.id)
		w.must(err, "head")
		w.commits++
		a.Head.StoredAt = w.commits
		err = w.store.Commit(w.ctx, a)
		if err != nil {
			if !refused(err) {
				w.must(err, "commit")
			}
			w.unchanged(before, "a refused commit")
			failed()
			return
		}
		w.committed(before, a)
		if fail {
			failed()
			return
		}
		b.step(ledger.Committed{})
	}
}
