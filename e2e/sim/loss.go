package sim

import (
	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
)

// lose drops a slot, or puts the source back to an earlier state. Who reads its log
// finds out when it begins a session; those that are replaced and live on publish
// what they have read.
func (w *World) lose() {
	if w.rnd.IntN(2) == 0 {
		w.restore()
		return
	}
	st := w.newest()
	if old := w.in(model.Active); old != nil && w.rnd.IntN(2) == 0 {
		st = old
	}
	if st.head().Applied.Position.Source() == "" {
		return // a slot from which nothing was read is made anew
	}
	w.logf("the slot of stream %d is lost", st.id)
	w.count("slots lost")
	st.slotLost = true
	st.current().dead = true
}

// restore puts the source back, if all streams have something of its present
// history: that they miss one history, and with it the era in which their positions
// are compared, is not simulated.
func (w *World) restore() {
	if !w.historyKnown() {
		return
	}
	for _, st := range w.streams {
		if st.replicated() && st.head().Applied.Position.Source() == "" {
			return
		}
	}
	w.source = w.source.fork(w.rnd.IntN(w.source.head() + 1))
	w.logf("the source is put back to %s", position(w.source.head()))
	w.count("histories lost")
	for range w.rnd.IntN(4) {
		w.source.write(w.rnd.IntN(5))
	}
	for _, st := range w.streams {
		if st.replicated() {
			st.current().dead = true
		}
	}
}

// historyKnown tells whether no stream has yet to find that the source's history is
// another one.
func (w *World) historyKnown() bool {
	for _, st := range w.streams {
		if st.replicated() && st.otherHistory(st.head().Applied.Position) {
			return false
		}
	}
	return true
}

// otherHistory tells whether what is stored up to a position is of a history that
// the source has no more.
func (w *stream) otherHistory(p model.Position) bool {
	s := w.sources[p.Mark()]
	return s != nil && s != w.source
}

// findLoss looks for the log behind a position, as a new session does: nothing is
// known of the history where nothing of it is stored.
func (w *stream) findLoss(applied model.Position) (loss model.Loss) {
	mark := applied.Mark()
	if applied.Source() == "" && applied.Loss() != model.LostLog {
		w.sources[mark] = w.source
	}
	switch {
	case w.otherHistory(applied):
		return model.LostHistory
	case w.slotLost && applied.Source() != "":
		return model.LostLog
	}
	w.slotLost = false
	return model.NoLoss
}

// tell makes a session that has found a loss ask for another log.
func (r *replicator) tell(loss model.Loss) {
	r.dead, r.asking = true, true
	b := r.w.pickWriter()
	b.next++
	r.w.logf("epoch %d tells writer %d that the log is lost, other history %v", r.epoch, b.run, loss == model.LostHistory)
	b.step(ledger.Relog{Ticket: b.next, Epoch: r.epoch, OtherHistory: loss == model.LostHistory})
}

// asks tells whether r waits for the writer's answer, which may never come: the
// writer may be gone.
func (r *replicator) asks() bool {
	if !r.asking {
		return false
	}
	r.asked++
	r.asking = r.asked < 20
	return r.asking
}

// relogged: the answer to those that ask.
func (w *stream) relogged(a ledger.Relogged) {
	if a.Refused != "" {
		w.logf("refused: %s", a.Refused)
		w.count("refused logs")
	}
	for _, r := range w.replicators {
		r.asking = false // the next session finds the same, or that the log is another one
	}
}

// logBegun: if a commit has taken the stream over to another log, what was stored is
// to be compared.
func (w *stream) logBegun(from, to model.Position) {
	was, mark := from.Mark(), to.Mark()
	if mark == was {
		return
	}
	if mark <= was {
		w.failf("INV-3: the log %q begins after %q", mark, was)
	}
	w.count("logs")
	if w.layers > int(w.layered) {
		w.count("logs that begin while a layer is copied")
	}
	if w.in(model.Processing) != nil {
		w.count("logs that begin while a deploy is processed")
	}
	w.slotLost = false
	w.carried[mark] = map[string]uint64{}
	for u := range users {
		user := string(rune('a' + u))
		w.carried[mark][user] = max(w.carried[was][user], w.sources[was].carriedIn(user, 0, w.sources[was].head()))
	}
	if to.Loss() == model.LostLog {
		w.sources[mark] = w.sources[was]
	}
	w.World.era = max(w.World.era, w.era+to.Histories())
}

// stateAt is the source at a position of the stream.
func (w *stream) stateAt(p model.Position) state { return w.sources[p.Mark()].at(indexOf(p)) }

// carriedUpTo is the highest custom write checkpoint of a user that rows carry up to
// a position.
func (w *stream) carriedUpTo(user string, p model.Position) uint64 {
	return max(w.carried[p.Mark()][user], w.sources[p.Mark()].carriedIn(user, 0, indexOf(p)))
}
