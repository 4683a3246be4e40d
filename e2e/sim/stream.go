package sim

import (
	"slices"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// stream is one replication stream, and what works on it.
type stream struct {
	*World
	id      model.StreamID
	variant int // of the config
	era     uint32
	state   model.StreamState // as the store has it
	slot    int               // the transaction after which streaming begins
	// sources are those of the stream's logs, by the mark of their positions; and
	// carried are the custom write checkpoints of users before each log.
	sources  map[model.Position]*source
	carried  map[model.Position]map[string]uint64
	slotLost bool // and nobody knows yet
	config   *deployed
	served   *served // by which clients that connect are served
	layers   int     // that were added
	layered  uint32  // of which so many are copied
	adding   bool    // clients are to be served by all of them when they are copied

	replicators []*replicator // the last one is current
	queue       []*message    // in the buffer between replicator and evaluators
	writers     []*writer     // the last one is current
	compactions []*compaction
	reemits     []ledger.Reemit // that compactions have proposed

	checkpoints []model.Checkpoint         // published, in order
	contents    map[model.Position]content // of the oracle
	known       map[string]bool            // every bucket that ever had an op
	lookupsNext []byte
}

// maxStreams bounds the streams that a world makes.
const maxStreams = 7

// change alters the catalog. It returns the stream that it makes, if it makes one.
func (w *World) change(c store.Change, variant int) *stream {
	made, err := w.store.Change(w.ctx, func([]model.Stream) store.Change { return c })
	w.must(err, "change the catalog")
	var st *stream
	if made != nil {
		for _, other := range w.streams {
			if other.id >= made.ID {
				w.failf("stream %d is made after %d", made.ID, other.id)
			}
		}
		d := deployment(made.ID, variant)
		st = &stream{
			World: w, id: made.ID, variant: variant, era: made.Era, state: made.State, config: d, served: d.servings[0],
			sources: map[model.Position]*source{}, carried: map[model.Position]map[string]uint64{},
			contents: map[model.Position]content{}, known: map[string]bool{},
		}
		w.streams = append(w.streams, st)
		st.writers = []*writer{st.newWriter()}
		st.replicators = []*replicator{st.openSession()}
	}
	w.statesChanged(nil)
	return st
}

// statesChanged reads the catalog, and tells it to all writers but one, and but
// those that do not listen.
func (w *World) statesChanged(but *writer) {
	streams, err := w.store.Streams(w.ctx)
	w.must(err, "streams")
	active, processing := 0, 0
	for i := range streams {
		switch streams[i].State {
		case model.Active:
			active++
		case model.Processing:
			processing++
		}
		for _, st := range w.streams {
			if st.id == streams[i].ID && st.state != streams[i].State {
				w.logf("stream %d is %s", st.id, streams[i].State)
				st.state = streams[i].State
			}
		}
	}
	if active > 1 || processing > 1 {
		w.failf("INV-36: %d streams are active, %d processing", active, processing)
	}
	for _, st := range w.streams {
		for _, b := range st.writers {
			if b != but && (!w.faults || w.rnd.IntN(4) > 0) {
				b.step(ledger.StateChanged{State: st.state})
			}
		}
	}
}

func (st *stream) replicated() bool { return store.Replicated(st.state) }

// in is the newest stream in one of the states, or nil.
func (w *World) in(states ...model.StreamState) *stream {
	for _, st := range slices.Backward(w.streams) {
		if slices.Contains(states, st.state) {
			return st
		}
	}
	return nil
}

// serving is the stream that clients who connect are served from; nil if there is
// none yet.
func (w *World) serving() *stream { return w.in(model.Active) }

// newest is the stream that is to serve in the end.
func (w *World) newest() *stream { return w.in(model.Processing, model.Active) }

// anyStream is one that is replicated; sometimes one that was.
func (w *World) anyStream() *stream {
	var some []*stream
	all := w.rnd.IntN(8) == 0
	for _, st := range w.streams {
		if st.state != model.Terminated && (all || st.replicated()) {
			some = append(some, st)
		}
	}
	return some[w.rnd.IntN(len(some))]
}

// deploy makes another config the one to be served, beside the one that is. The
// one that was to be, before, is given up.
func (w *World) deploy(variant int) {
	if len(w.streams) >= maxStreams || !w.historyKnown() {
		return
	}
	c := store.Change{States: map[model.StreamID]model.StreamState{}, New: newStream(variant, w.era)}
	if old := w.in(model.Processing); old != nil {
		w.count("deploys over a deploy")
		c.States[old.id] = model.Stopped
	}
	w.count("deploys")
	w.change(c, variant)
}

func newStream(variant int, era uint32) *model.Stream {
	return &model.Stream{State: model.Processing, Config: configs[variant], Era: era}
}

// rollback gives up what is to be served, or deploys what was before.
func (w *World) rollback() {
	next, now := w.in(model.Processing), w.in(model.Active)
	switch {
	case now == nil:
	case next != nil:
		w.count("rollbacks before activation")
		w.change(store.Change{States: map[model.StreamID]model.StreamState{next.id: model.Stopped}}, 0)
		now.withdraw()
	case now.adding:
		now.withdraw()
	case len(w.streams) > 1:
		w.count("rollbacks")
		w.deploy(1 - now.variant)
	}
}

// clear removes the data of a stopped stream. Whoever works on it or reads it
// finds it gone.
func (w *World) clear() {
	st := w.in(model.Stopped)
	if st == nil {
		return
	}
	w.must(w.store.Clear(w.ctx, st.id), "clear")
	w.count("streams cleared")
	st.queue, st.writers, st.replicators, st.compactions, st.reemits = nil, nil, nil, nil, nil
	w.statesChanged(nil)
}
