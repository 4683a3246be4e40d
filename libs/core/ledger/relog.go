package ledger

import (
	"fmt"

	"github.com/sluicesync/sluice/libs/model"
)

// relogAsked is done when nothing is under way, in place of a group of batches.
func (l *Ledger) relogAsked(e Relog) []Action {
	if l.relog != nil || l.group != nil && l.group.relog != nil {
		return []Action{Relogged{Ticket: e.Ticket, Refused: "another one is under way"}}
	}
	l.relog = &e
	return nil
}

// beginRelog moves the cursor to where the next log begins, and takes back that
// every table is copied. Readers stay at the checkpoint that they see. A crash
// after it leaves a stream whose tables are to be compared; nobody may say that
// of a log that another session reads by now (D5).
func (l *Ledger) beginRelog() []Action {
	e := l.relog
	l.relog = nil
	switch {
	case !l.replicating():
		return []Action{Relogged{Ticket: e.Ticket, Refused: "the stream is " + l.state.String()}}
	case e.Epoch != l.head.Epoch:
		return []Action{Relogged{Ticket: e.Ticket, Refused: fmt.Sprintf("epoch %d is over, it is %d now", e.Epoch, l.head.Epoch)}}
	}
	head := l.head
	head.Applied = model.Cursor{Position: head.Applied.Position.Next(e.OtherHistory)}
	head.SnapshotDone = false
	if e.OtherHistory {
		head.Origin = ""
	}
	l.builder.reset(l.head.Persisted)
	l.group = &group{last: true, relog: &e.Ticket, commit: &Commit{Stream: l.stream, Previous: l.head.Applied, PreviousOp: l.head.Persisted, Head: head}}
	return []Action{l.group.commit}
}
