package ledger

import "github.com/sluicesync/sluice/libs/model"

// reemission is a Reemit that waits for its turn or, once begun, is under way
// in place of a group.
type reemission struct {
	Reemit
	begun  bool
	commit *Commit // under way
	bytes  int     // of the data in it
}

// reemits tells whether a reemission is under way.
func (l *Ledger) reemits() bool { return l.reemit != nil && l.reemit.begun }

func (l *Ledger) reemitAsked(e Reemit) []Action {
	if l.reemit != nil {
		return []Action{Reemitted{Ticket: e.Ticket, Reason: "another one is under way"}}
	}
	l.reemit = &reemission{Reemit: e}
	return nil
}

// beginReemit is only done where readers see everything that is stored, so that
// the ops can be published at once, at the position that they already have.
func (l *Ledger) beginReemit() []Action {
	r := l.reemit
	if l.state != model.Active || l.head.Checkpoint != (model.Checkpoint{Op: l.head.Persisted, Position: l.head.Applied.Position}) || !l.head.Applied.AtTransactionEnd() {
		return l.endReemit("the stream is not at a checkpoint")
	}
	r.begun = true
	return []Action{LoadOps{Bucket: r.Bucket, Ops: r.Ops, Checkpoint: r.Checkpoint, Bytes: r.Bytes}}
}

func (l *Ledger) endReemit(reason string) []Action {
	ticket := l.reemit.Ticket
	l.reemit = nil
	return []Action{Reemitted{Ticket: ticket, Reason: reason}}
}

// place is a row's place in a bucket.
type place struct {
	key        model.RowKey
	objectType string
	objectID   string
}

func (l *Ledger) opsLoaded(e OpsLoaded) []Action {
	r := l.reemit
	if e.Cut {
		return l.endReemit("they are too large, or too much has changed")
	}
	newer := make(map[place]struct{}, len(e.Since))
	for i := range e.Since {
		op := &e.Since[i]
		newer[place{op.Key, op.ObjectType, op.ObjectID}] = struct{}{}
	}
	l.builder.reset(l.head.Persisted)
	for i := range e.Ops {
		op := e.Ops[i]
		if _, ok := newer[place{op.Key, op.ObjectType, op.ObjectID}]; ok || op.Kind != model.OpPut {
			continue
		}
		l.builder.add(r.Bucket, op)
		r.bytes += len(op.Data)
	}
	if l.builder.op == l.head.Persisted {
		return l.endReemit("no such op is left")
	}
	head := l.head
	head.Persisted = l.builder.op
	head.Checkpoint.Op = head.Persisted
	r.commit = &Commit{Stream: l.stream, Previous: l.head.Applied, PreviousOp: l.head.Persisted, Head: head, Published: true}
	l.builder.fill(r.commit)
	return []Action{r.commit}
}

func (l *Ledger) reemitCommitted() []Action {
	r := l.reemit
	l.stored(r.commit)
	l.reemit = nil
	return l.settle([]Action{
		Notify{Notice: l.changed.notice(l.stream, &r.commit.Head)},
		Reemitted{Ticket: r.Ticket, Ops: len(r.commit.Ops), Bytes: r.bytes, Checkpoint: r.commit.Head.Checkpoint.Op},
	})
}

func (l *Ledger) reemitFailed(e Failed) []Action {
	if c := l.reemit.commit; c != nil && c.is(e.Head) {
		return l.reemitCommitted()
	}
	l.head = e.Head
	l.changed.everything = true
	return l.settle(l.endReemit("the store failed"))
}
