// Package sim is a deterministic simulation of the line from source to client:
// the cores that decide (core/ledger, core/session, core/compact) and a store,
// in one goroutine, with a model of everything around them. A seed decides all
// that happens: what is written, how the log is cut into batches, which batch
// is delivered when and how often, what fails, crashes, restarts, is compacted,
// connects, disconnects and resumes; which config is deployed, given up or rolled
// back to, as a stream of its own or as a layer of the one that is served; when a
// slot is lost or the source is put back to an earlier state, so that what is
// stored is compared with it (loss.go); and when the data of a stream that was
// replaced is cleared.
//
// What is checked, and where:
//
//   - D1: each checkpoint shows the transactions up to its position and nothing
//     of later ones (published).
//   - D2: op ids grow from commit to commit, and a client never sees one twice
//     (committed, client.receive).
//   - D3: a commit that is refused changes nothing; one that fails may have
//     happened wholly (writer.work, unchanged).
//   - INV-36: at most one stream is active and one processing, and none
//     is made under an id that was used (change, statesChanged).
//   - D4: batches are delivered twice, late and in any order; a gap ends the
//     session, and the next one goes on (Settle).
//   - D5: replaced replicators go on publishing, replaced writers go on
//     committing.
//   - D6: at each complete line a client holds exactly what the sync config
//     of its stream gives for the source at that position (client.completed);
//     in the end all are served what was deployed last (Settle).
//   - D7: checksums and counts are those of the ops that a new client is sent
//     (checkBucket), and what a client sums up is what it was told.
//
// In a third of the worlds rows carry the write checkpoints of clients, elsewhere
// they are handed out (INV-26 to INV-28 hold for both).
//
// And INV-3, INV-10 to INV-12, INV-15 to INV-22, INV-24 to INV-29, INV-32, as the
// messages say. D8 to D10 are the shells' business.
package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/rules"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// World is everything there is. Not safe for concurrent use.
type World struct {
	ctx    context.Context
	seed   uint64
	rnd    *rand.Rand
	source *source // its present history
	era    uint32  // how often it was replaced, as is known
	store  store.Store
	faults bool // whether things may fail
	custom bool // whether rows carry the write checkpoints
	temper temperament

	streams []*stream // by id
	clients []*client

	runs     uint64
	commits  model.Micros                         // tried; the time of each
	writes   map[string]map[uint64]model.Position // places of write checkpoints by user
	chunks   map[chunkKey]cached                  // the gateways' cache
	queriers map[querierKey]*rules.Querier

	history   []string
	counts    map[string]int
	completes int
	ops       int // that clients were sent
}

// Failure is a broken invariant, thrown by panic.
type Failure struct {
	Seed    uint64
	Message string
	History []string // what had happened, latest last
}

func (f *Failure) Error() string {
	return fmt.Sprintf("seed %d: %s\nlast steps:\n  %s", f.Seed, f.Message, strings.Join(f.History, "\n  "))
}

// New returns the world of a seed around an empty store.
func New(ctx context.Context, seed uint64, s store.Store) *World {
	rnd := rand.New(rand.NewPCG(seed, 0))
	w := &World{
		ctx: ctx, seed: seed, rnd: rnd, source: newSource(rnd), store: s, faults: true, custom: seed%3 == 0,
		writes: map[string]map[uint64]model.Position{}, chunks: map[chunkKey]cached{}, queriers: map[querierKey]*rules.Querier{}, counts: map[string]int{},
	}
	for range 1 + rnd.IntN(12) {
		w.source.write(rnd.IntN(8))
	}
	for id := range 1 + rnd.IntN(4) {
		w.clients = append(w.clients, w.newClient(id))
	}
	st := w.change(store.Change{New: newStream(0, 0)}, 0)
	w.temper = newTemperament(rnd)
	if rnd.IntN(4) > 0 {
		st.warmUp()
	}
	return w
}

// warmUp replicates, undisturbed, until there is a checkpoint: what comes after
// it is the larger part of life.
func (w *stream) warmUp() {
	w.World.faults = false
	for len(w.checkpoints) == 0 {
		if w.source.write(0); w.current().dead {
			w.replace()
		}
		w.current().turn()
		w.deliver()
		w.writers[0].work(false)
	}
	w.replicators = w.replicators[len(w.replicators)-1:]
	w.World.faults = true
}

// A seed also decides how often what happens: some worlds write a lot, some
// compact a lot, some have slow clients.
type temperament struct {
	total   int
	actions []action
}

type action struct {
	weight int
	do     func(w *World)
}

func newTemperament(rnd *rand.Rand) temperament {
	t := temperament{actions: []action{
		{60, (*World).writeSource},
		{140, func(w *World) { w.anyStream().anyReplicator().turn() }},
		{170, func(w *World) { w.anyStream().deliver() }},
		{170, func(w *World) { w.anyStream().pickWriter().work(w.rnd.IntN(15) == 0) }},
		{70, serving((*stream).compact)},
		{12, serving((*stream).startCompaction)},
		{12, serving((*stream).reemit)},
		{10, serving((*stream).compactLookups)},
		{260, func(w *World) { w.gatewayTurn(w.anyClient()) }},
		{60, func(w *World) { w.noticeTurn(w.anyClient()) }},
		{220, func(w *World) { w.clientTurn(w.anyClient()) }},
		{8, (*World).disaster},
		{4, (*World).failover},
		{2, serving((*stream).serve)},
		{1, func(w *World) { w.deploy(w.rnd.IntN(2)) }},
		{2, (*World).add},
		{1, (*World).rollback},
		{2, (*World).lose},
		{5, (*World).clear},
	}}
	for i := range t.actions {
		a := &t.actions[i]
		a.weight = a.weight << rnd.IntN(4) >> rnd.IntN(4)
		t.total += a.weight
	}
	return t
}

// serving is an action on the stream that clients are served from.
func serving(do func(*stream)) func(*World) {
	return func(w *World) {
		if st := w.serving(); st != nil {
			do(st)
		}
	}
}

// Step does one thing.
func (w *World) Step() {
	n := w.rnd.IntN(w.temper.total)
	for _, a := range w.temper.actions {
		if n -= a.weight; n < 0 {
			a.do(w)
			return
		}
	}
}

// writeSource writes, unless the world is far behind: what comes late says
// little.
func (w *World) writeSource() {
	st, seen := w.newest(), 0
	if n := len(st.checkpoints); n > 0 {
		seen = indexOf(st.checkpoints[n-1].Position)
	}
	if w.source.head()-max(st.slot, seen) > 40 {
		return
	}
	size := w.rnd.IntN(5)
	if w.rnd.IntN(30) == 0 {
		size = 20 + w.rnd.IntN(40)
	}
	w.source.write(size)
}

// compact goes on with a compaction, by one step or by many.
func (w *stream) compact() {
	if len(w.compactions) == 0 {
		w.startCompaction()
		return
	}
	i := w.rnd.IntN(len(w.compactions))
	c := w.compactions[i]
	for n := []int{1, 1, 1, 2, 5, 30}[w.rnd.IntN(6)]; n > 0 && !c.done; n-- {
		c.step()
	}
	if c.done {
		w.compactions = slices.Delete(w.compactions, i, i+1)
	}
}

func (w *World) anyClient() *client { return w.clients[w.rnd.IntN(len(w.clients))] }

func (w *World) gatewayTurn(c *client) {
	switch {
	case c.conn == nil:
	case c.conn.ended:
		c.disconnect()
	case c.conn.outdated() && w.rnd.IntN(8) == 0:
		w.count("streams of a config before")
		c.disconnect()
	default:
		c.conn.work()
	}
}

// outdated: clients that connect now are served by another config.
func (g *connection) outdated() bool { return g.w != g.w.serving() || g.served != g.w.served }

func (w *World) noticeTurn(c *client) {
	if c.conn != nil {
		c.conn.hear()
	}
}

func (w *World) clientTurn(c *client) {
	switch {
	case c.conn == nil:
		if st := w.serving(); st != nil {
			st.connect(c)
		}
	case w.rnd.IntN(40) == 0:
		c.disconnect()
	case w.rnd.IntN(20) == 0:
		w.writeCheckpoint(c)
	default:
		c.receive()
	}
}

func (r *replicator) turn() {
	if r.asks() {
		return
	}
	if r.dead {
		if r == r.w.current() && r.w.replicated() {
			r.w.replace()
		}
		return
	}
	if r == r.w.current() && r.snapshot == nil && r.outdated() && r.w.replicated() && (!r.w.faults || r.w.rnd.IntN(3) == 0) {
		r.w.logf("the replicator hears of a layer")
		r.w.replace()
		return
	}
	r.publish()
}

func (w *stream) current() *replicator { return w.replicators[len(w.replicators)-1] }

// replace starts a new replicator. The old one sometimes does not know.
func (w *stream) replace() {
	old := w.current()
	r := w.openSession()
	if old.dead || w.rnd.IntN(3) > 0 {
		w.replicators = nil
	} else {
		w.count("replicators that live on")
		w.replicators = []*replicator{old}
	}
	w.replicators = append(w.replicators, r)
}

func (w *stream) anyReplicator() *replicator {
	if w.rnd.IntN(4) == 0 {
		return w.replicators[w.rnd.IntN(len(w.replicators))]
	}
	return w.current()
}

func (w *stream) pickWriter() *writer {
	if w.rnd.IntN(2) == 0 {
		return w.writers[w.rnd.IntN(len(w.writers))]
	}
	return w.writers[len(w.writers)-1]
}

// answered: a batch's fate is known. The acknowledgement may get lost.
func (w *stream) answered(m *message, r ledger.Result) {
	w.count("batches " + r.String())
	if r == ledger.ResultRetry || w.faults && w.rnd.IntN(10) == 0 {
		return
	}
	w.acknowledge(m)
}

// failover: another writer takes over, and the old one does not know it yet.
func (w *World) failover() {
	st := w.newest()
	if old := w.in(model.Active); old != nil && w.rnd.IntN(2) == 0 {
		st = old
	}
	w.logf("a writer takes over")
	w.count("writers that live on")
	st.writers = append(st.writers[len(st.writers)-1:], st.newWriter())
}

// disaster is what one hopes not to happen.
func (w *World) disaster() {
	st := w.newest()
	if old := w.in(model.Active); old != nil && w.rnd.IntN(2) == 0 {
		st = old
	}
	st.disaster()
}

func (w *stream) disaster() {
	switch w.rnd.IntN(7) {
	case 0:
		w.logf("replicator restarts")
		w.replace()
	case 1:
		w.logf("replicator crashes")
		w.current().dead = true
	case 2:
		w.logf("writer restarts")
		w.writers = []*writer{w.newWriter()}
	case 3:
		// The replicator notices, sooner or later.
		w.logf("the buffer of %d batches is wiped", len(w.queue))
		w.queue = nil
		w.current().dead = w.current().dead || w.rnd.IntN(2) == 0
	case 4:
		w.logf("compactors crash")
		w.compactions = nil
	case 5:
		w.logf("gateway crashes")
		for _, c := range w.clients {
			if c.conn != nil {
				c.disconnect()
			}
		}
		clear(w.chunks)
	case 6:
		w.logf("the gateways' cache is emptied")
		clear(w.chunks)
	}
}

// writeCheckpoint: the client has written, and asks for the number that tells
// it when it sees that again.
func (w *World) writeCheckpoint(c *client) {
	st := c.conn.w
	if w.custom || st.state == model.Terminated {
		return // what it writes carries it, or it does not get through
	}
	// The place is of the newest log: what is served of a history that the source
	// has no more does not reach it.
	head := model.PlaceIn(w.era, position(w.source.head()))
	got, err := w.store.CreateWriteCheckpoints(w.ctx, model.PlaceIn(st.era, st.head().Checkpoint.Position), []store.WriteCheckpointRequest{{UserKey: c.user, Head: head}})
	w.must(err, "create write checkpoint")
	if w.writes[c.user] == nil {
		w.writes[c.user] = map[uint64]model.Position{}
	}
	if _, taken := w.writes[c.user][got[0].ID]; taken {
		w.failf("write checkpoint %d of user %s is given out twice", got[0].ID, c.user)
	}
	w.writes[c.user][got[0].ID] = head
}

// Settle lets everything that is under way come to its end, without faults,
// and checks that every client ends at the source's present.
func (w *World) Settle() {
	w.faults = false
	w.source.write(0) // a heartbeat, so that write checkpoints are reached
	w.statesChanged(nil)
	for _, st := range w.streams {
		st.writers = st.writers[max(0, len(st.writers)-1):]
		st.replicators = st.replicators[max(0, len(st.replicators)-1):]
	}
	for round := 0; ; round++ {
		st := w.newest()
		if round > 20_000 {
			w.failf("no end in sight: %d batches on the way, store at %s", len(st.queue), st.head().Applied)
		}
		done := st.settle() && st == w.serving()
		for _, c := range w.clients {
			if c.conn != nil && c.conn.outdated() {
				c.disconnect()
			}
			if c.conn == nil {
				if to := w.serving(); to != nil {
					to.connect(c)
				}
				done = false
				continue
			}
			busy := !c.complete
			for range 8 {
				heard, worked, received := c.conn.hear(), c.conn.work(), c.receive()
				busy = busy || heard || worked || received
			}
			if c.conn.gap {
				c.conn.everything, c.conn.told, c.conn.gap, busy = true, true, false, true // by the next heartbeat
			}
			done = done && !busy
		}
		if done {
			st.settled()
			return
		}
	}
}

// settle goes on with what is under way, and says whether nothing is.
func (w *stream) settle() bool {
	r := w.current()
	if r.dead && !r.asking || len(w.queue) == 0 && w.writers[0].pending == nil && r.caughtUp() && w.head().Applied != r.cursor {
		w.replace() // it has noticed that its batches are gone
		w.replicators = w.replicators[len(w.replicators)-1:]
		return false
	}
	if r.caughtUp() && w.head().Applied == r.cursor && w.head().Checkpoint.Position >= r.mark+position(r.source.head()) && r.layers > w.layered {
		// A writer that knew that a layer is copied restarted before that was shown.
		// Its sessions end with it, and the next one says so again.
		w.replace()
		w.replicators = w.replicators[len(w.replicators)-1:]
		return false
	}
	w.current().turn()
	w.deliver()
	for range 4 {
		w.writers[0].work(false)
	}
	for _, c := range slices.Clone(w.compactions) {
		c.step()
	}
	w.compactions = slices.DeleteFunc(w.compactions, func(c *compaction) bool { return c.done })
	return r.caughtUp() && r.layers == w.layered && w.head().Applied == r.cursor && len(w.queue) == 0 && len(w.compactions) == 0
}

func (w *stream) settled() {
	head := w.head()
	if head.Checkpoint.Position < head.Applied.Position.Mark()+position(w.source.head()) || w.otherHistory(head.Checkpoint.Position) {
		w.failf("INV-8: checkpoint at %s, source at %s", head.Checkpoint.Position, position(w.source.head()))
	}
	for _, c := range w.clients {
		// Clients hear of what concerns them only, so their last line may be
		// older; what they hold must be of today.
		want := w.contentAt(head.Checkpoint.Position)
		for name, h := range c.buckets {
			w.sameContent(want[name], h.rows, "D6, INV-29: client %d, bucket %s at the end", c.id, name)
		}
		least := uint64(len(w.writes[c.user]))
		most := least
		if w.custom {
			// Of what was there before the copy, a part was there to be copied.
			least, most = w.source.carriedIn(c.user, w.slot, w.source.head()), w.carriedUpTo(c.user, head.Checkpoint.Position)
		}
		c.conn.everything, c.conn.told = true, true
		for range 100 {
			c.conn.work()
			c.receive()
		}
		if c.write < least || c.write > most {
			w.failf("INV-28: client %d was told of write checkpoint %d, the last one is %d (%d)", c.id, c.write, most, least)
		}
	}
}

func (r *replicator) caughtUp() bool {
	return !r.dead && r.snapshot == nil && r.next == len(r.source.log) && r.copied == r.layers && !r.outdated()
}

func (w *stream) head() model.StreamHead {
	head, err := w.store.Head(w.ctx, w.id)
	w.must(err, "head")
	return head
}

func (w *World) count(what string) { w.counts[what]++ }

func (w *World) logf(format string, args ...any) {
	const kept = 60
	if len(w.history) >= 4*kept {
		w.history = slices.Delete(w.history, 0, 3*kept)
	}
	w.history = append(w.history, fmt.Sprintf(format, args...))
}

func (w *World) failf(format string, args ...any) {
	panic(&Failure{Seed: w.seed, Message: fmt.Sprintf(format, args...), History: w.history})
}

func (w *World) must(err error, what string) {
	if err != nil {
		w.failf("%s: %v", what, err)
	}
}
