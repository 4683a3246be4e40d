package replicator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/freshness"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/libs/wire"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
	"github.com/sluicesync/sluice/services/replicator/internal/publish"
	"github.com/sluicesync/sluice/services/replicator/internal/snapshot"
	"github.com/sluicesync/sluice/services/replicator/internal/source"
)

const (
	leaseTTL   = 5 * time.Second
	renewEvery = 1500 * time.Millisecond
	callTime   = 2 * time.Second
	// leaseRetry is how often the lease of another is asked for.
	leaseRetry = 500 * time.Millisecond
	// slotInterval is how often the slot is looked after.
	slotInterval = 30 * time.Second
)

// errLeaseLost ends a session whose lease is gone, or may be.
var errLeaseLost = errors.New("lease lost")

// job replicates one stream.
type job struct {
	r      *replicator
	stream model.Stream
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{} // closed when the job has ended
	stop   bool          // it cleans up the stream rather than replicate it

	reading    atomic.Bool
	running    atomic.Bool
	read       atomic.Int64 // newest heartbeat read back
	published  atomic.Int64 // newest heartbeat published
	moved      atomic.Int64 // when JetStream got a batch, or reading began; ns
	publisher  atomic.Pointer[publish.Publisher]
	reader     atomic.Pointer[source.Log]
	commitTime atomic.Int64 // of the newest commit stored
	problem    atomic.Pointer[error]
}

// run replicates until ctx ends or the stream has been handed to another.
func (j *job) run(ctx context.Context) {
	defer close(j.done)
	if j.stop {
		j.terminate(ctx)
		return
	}
	var attempt int
	waited := false
	for ctx.Err() == nil {
		began := time.Now()
		epoch, err := j.session(ctx)
		j.running.Store(false)
		j.reading.Store(false)
		j.publisher.Store(nil)
		j.reader.Store(nil)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			attempt = 0
		}
		if errs.CodeOf(err) == errs.S1003 {
			if !waited {
				j.log.Info("another process replicates this stream", "code", errs.S1003)
			}
			waited = true
			j.r.env.Health.SetReady(nil) // standing by is what this process is for
			pause(ctx, leaseRetry)
			continue
		}
		waited = false
		attempt++
		j.problem.Store(&err)
		j.r.metrics.failed(err, j.r.src.Class(err))
		delay := j.backoff(err, attempt)
		j.log.Warn("replication failed", "error", errs.Cause(err), "retry_in", delay)
		j.r.env.Health.SetReady(err)
		if j.r.src.Class(err) == source.Lost {
			j.restart(ctx, epoch, err)
		}
		pause(ctx, delay)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// backoff is how long to wait after an error (spec/04 §1.2; what heals by
// itself is tried sooner).
func (j *job) backoff(err error, attempt int) time.Duration {
	grow := func(first, last time.Duration) time.Duration {
		return min(first<<min(attempt-1, 16), last)
	}
	if errors.Is(err, publish.ErrLost) || errors.Is(err, errLeaseLost) {
		return grow(100*time.Millisecond, time.Second)
	}
	switch j.r.src.Class(err) {
	case source.Restarting:
		return grow(250*time.Millisecond, 2*time.Second)
	case source.Unreachable:
		return grow(time.Second, 30*time.Second)
	case source.Denied:
		return grow(30*time.Second, 15*time.Minute)
	case source.Lost:
		return grow(500*time.Millisecond, 30*time.Second)
	}
	return grow(500*time.Millisecond, 30*time.Second)
}

// restart tells the ledger that the log that the session of epoch has read is lost:
// the next session begins another one.
func (j *job) restart(ctx context.Context, epoch model.Epoch, cause error) {
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	other := errors.Is(cause, source.ErrOtherHistory)
	if _, err := j.r.rep.Restart(call, &pb.RestartRequest{Stream: int64(j.stream.ID), Epoch: uint64(epoch), Reason: cause.Error(), OtherHistory: other}); err != nil {
		j.log.Error("cannot begin another log", "error", errs.Cause(err)) // the next session finds the same
		return
	}
	j.log.Warn("history lost: tables are compared with what is stored", "reason", cause.Error(), "other_history", other)
}

// session holds the lease once, until an error. The epoch is 0 if there was none.
func (j *job) session(ctx context.Context) (model.Epoch, error) {
	call, cancel := context.WithTimeout(ctx, callTime)
	opened, err := j.r.rep.OpenSession(call, &pb.OpenSessionRequest{Stream: int64(j.stream.ID), Holder: j.r.env.Instance, TtlMs: leaseTTL.Milliseconds()})
	cancel()
	if err != nil {
		return 0, sessionError("open session", err)
	}
	epoch := model.Epoch(opened.GetEpoch())
	stream := j.stream
	if d := opened.GetDefinition(); d != nil {
		stream = wire.ModelStream(d)
	}
	stream.Head = wire.ModelStreamHead(opened.GetHead())
	known, err := wire.ModelTablesProgress(opened.GetTables())
	if err != nil {
		return epoch, err
	}
	j.running.Store(true)
	j.r.metrics.sessions.Inc()
	j.log.Info("session open", "epoch", epoch, "position", stream.Head.Applied.String(), "snapshot_done", stream.Head.SnapshotDone)

	eg, ctx := errgroup.WithContext(ctx)
	heads := make(chan model.StreamHead, 1)
	eg.Go(func() error { return j.keepLease(ctx, epoch) })
	eg.Go(func() error { return j.watchHeads(ctx, epoch, heads) })
	eg.Go(func() error {
		err := j.replicate(ctx, &stream, epoch, known, heads)
		if err != nil && ctx.Err() == nil {
			j.report(ctx, epoch, err)
		}
		return err
	})
	err = eg.Wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	if _, cerr := j.r.rep.CloseSession(closing, &pb.CloseSessionRequest{Stream: int64(stream.ID), Holder: j.r.env.Instance, Epoch: uint64(epoch)}); cerr != nil {
		j.log.Debug("cannot close session", "error", cerr)
	}
	return epoch, err
}

// sessionError marks errors of calls to bucket-store, whatever they are, as
// ones after which to ask for the lease again soon.
func sessionError(what string, err error) error {
	if errs.CodeOf(err) == errs.S1003 {
		return err
	}
	return fmt.Errorf("%s: %w: %w", what, errLeaseLost, err)
}

// report records err where status shows it. What heals by itself is not worth
// it.
func (j *job) report(ctx context.Context, epoch model.Epoch, err error) {
	if errors.Is(err, publish.ErrLost) || errors.Is(err, errLeaseLost) || errors.Is(err, context.Canceled) {
		return
	}
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, rerr := j.r.rep.ReportError(call, &pb.ReportErrorRequest{Stream: int64(j.stream.ID), Epoch: uint64(epoch), Message: errs.Cause(err)}); rerr != nil {
		j.log.Debug("cannot report error", "error", rerr)
	}
}

// keepLease renews the lease, and ends the session when it may have run out.
func (j *job) keepLease(ctx context.Context, epoch model.Epoch) error {
	held := time.Now() // the lease is ours until held + leaseTTL
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		asked := time.Now()
		call, cancel := context.WithTimeout(ctx, min(callTime, time.Until(held.Add(leaseTTL))))
		_, err := j.r.rep.RenewLease(call, &pb.RenewLeaseRequest{Stream: int64(j.stream.ID), Holder: j.r.env.Instance, Epoch: uint64(epoch), TtlMs: leaseTTL.Milliseconds()})
		cancel()
		switch {
		case err == nil:
			held = asked
		case ctx.Err() != nil:
			return ctx.Err()
		case errs.CodeOf(err) == errs.S1003:
			return fmt.Errorf("%w: %w", errLeaseLost, err)
		case time.Since(held) >= leaseTTL:
			return fmt.Errorf("%w: bucket-store did not renew it in time: %w", errLeaseLost, err)
		}
	}
}

// watchHeads follows the ledger's head.
func (j *job) watchHeads(ctx context.Context, epoch model.Epoch, heads chan<- model.StreamHead) error {
	for ctx.Err() == nil {
		watch, err := j.r.rep.Committed(ctx, &pb.CommittedRequest{Stream: int64(j.stream.ID)})
		for err == nil {
			var reply *pb.CommittedReply
			if reply, err = watch.Recv(); err != nil {
				break
			}
			head := wire.ModelStreamHead(reply.GetHead())
			if head.Epoch > epoch {
				return fmt.Errorf("%w: epoch %d has begun", errLeaseLost, head.Epoch)
			}
			j.commitTime.Store(int64(head.CommitTime))
			j.r.env.Health.Touch()
			select {
			case heads <- head:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if ctx.Err() == nil {
			if p := j.publisher.Load(); p != nil {
				p.Silent()
			}
			j.log.Debug("bucket-store does not tell its head", "error", err)
			pause(ctx, 100*time.Millisecond)
		}
	}
	return ctx.Err()
}

// replicate does the work of a session.
func (j *job) replicate(ctx context.Context, stream *model.Stream, epoch model.Epoch, known []model.TableProgress, heads <-chan model.StreamHead) error {
	problems, err := j.r.src.Check(ctx)
	if err != nil {
		return err
	}
	if err := fatal(problems); err != nil {
		return err
	}
	tables := stream.Tables
	stream.Tables = stream.Reads()
	j.warn(ctx, stream)
	applied := stream.Head.Applied
	// The source knows nothing of the logs before.
	atSource := *stream
	atSource.Head.Applied.Position = applied.Position.Source()
	log, err := j.r.src.Open(ctx, &atSource)
	if err != nil {
		return err
	}
	defer log.Close()
	publisher, err := publish.NewPublisher(ctx, j.r.js, j.r.cfg.Stream, stream.ID, j.log)
	if err != nil {
		return fmt.Errorf("%w: %w", errLeaseLost, err) // NATS is away: soon again
	}
	chain := publish.NewChain(publisher, stream.ID, epoch, applied, log.Start(), known, j.observer())
	chain.Layered(uint32(len(stream.Layers)))
	if until := stream.Head.NoCheckpointBefore; until.Mark() == applied.Position.Mark() {
		chain.Copied(until.Source())
	}
	if o := log.Origin(); o != stream.Head.Origin {
		chain.From(o)
	}
	snap := &snapshot.Snapshot{Log: log, Chain: chain, Position: j.r.src.Position, Logger: j.log, Parallel: j.r.src.Parallel(), Compare: applied.Position.Log() > 0, Rows: j.r.metrics.snapshotRows, Layer: uint32(len(stream.Layers)), Layered: stream.Layered}
	layers := &snapshot.Layers{Snapshot: snap, All: stream.Layers, Done: stream.Layered, Mark: j.r.head.Mark, Failed: func(err error) {
		j.log.Warn("cannot copy what was added to the stream; trying again", "error", errs.Cause(err))
		j.report(ctx, epoch, fmt.Errorf("copy what was added: %w", err))
	}}
	j.publisher.Store(publisher)
	j.reader.Store(&log)

	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return publisher.Run(ctx) })
	eg.Go(func() error { return j.watchSlot(ctx, log) })
	eg.Go(func() error {
		for {
			select {
			case head := <-heads:
				publisher.Committed(head.Applied)
				// What is at the position is stored even if more of a later
				// transaction is.
				log.Confirm(head.Applied.Position.Source())
				if head.SnapshotDone {
					j.problem.Store(nil)
					j.r.env.Health.SetReady(j.still())
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	eg.Go(func() error {
		if !stream.Head.SnapshotDone {
			if snap.Compare && applied.Position.Source() == "" {
				if err := snap.Begin(ctx); err != nil {
					return err
				}
			}
			if err := snap.All(ctx); err != nil {
				return err
			}
		} else {
			if err := layers.Begin(ctx, tables); err != nil {
				return err
			}
			if err := catchUp(ctx, log, chain, snap); err != nil {
				return err
			}
		}
		// Whatever was put into the chain becomes a checkpoint only at the end of
		// a transaction.
		j.r.head.Mark()
		j.moved.Store(time.Now().UnixNano())
		j.reading.Store(true)
		return log.Read(ctx, sink{Chain: chain, snap: snap, layers: layers, mark: j.r.head.Mark})
	})
	return eg.Wait()
}

// warn logs what is wrong with the tables that the stream reads.
func (j *job) warn(ctx context.Context, stream *model.Stream) {
	d, err := j.r.src.Diagnose(ctx, []source.StreamTables{{ID: stream.ID, Tables: stream.Tables}})
	if err != nil {
		return // the next step says why
	}
	for _, s := range d.Streams {
		for _, t := range s.Tables {
			for _, p := range t.Problems {
				j.log.Warn(p.Message, "code", p.Code, "fix", p.Fix)
			}
		}
	}
}

// watchSlot looks after the log that the source keeps for us: it ends the
// session if that is gone, and warns before it is.
func (j *job) watchSlot(ctx context.Context, log source.Log) error {
	tick := time.NewTicker(slotInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		lag, err := log.Lag(ctx)
		switch {
		case err != nil:
			continue // whoever needs the source finds out as well
		case lag.Missing || lag.WALStatus == "lost":
			// The next session finds out what is to be done.
			return errs.New(errs.S1146, "replication slot %s is gone, or its WAL is", j.stream.Name)
		case lag.MaxSlotWALKeepSize > 0 && lag.SafeWALSize >= 0 && lag.SafeWALSize <= lag.MaxSlotWALKeepSize/2:
			j.log.Warn("half of the WAL that the source keeps is used up", "lag_bytes", lag.Bytes, "left_bytes", lag.SafeWALSize, "max_slot_wal_keep_size", lag.MaxSlotWALKeepSize)
		}
	}
}

// catchUp copies tables that the stream reads and does not have: those that
// appeared while nobody read, and one whose copy was interrupted.
func catchUp(ctx context.Context, log source.Log, chain *publish.Chain, snap *snapshot.Snapshot) error {
	tables, err := log.Tables(ctx, chain.Known())
	if err != nil {
		return err
	}
	for i := range tables {
		p := chain.Known()[tables[i].ID]
		if p != nil && (p.Done || p.Layer > 0) && string(p.LastKey) != string(source.Dropped) {
			continue // or it is copied for a layer alone
		}
		if p == nil && snapshot.Replaces(chain.Known(), &tables[i]) {
			continue // the log will say when it became this one
		}
		if err := snap.Table(ctx, &tables[i]); err != nil {
			return err
		}
	}
	return nil
}

// sink is a chain that can copy tables in between.
type sink struct {
	*publish.Chain
	snap   *snapshot.Snapshot
	layers *snapshot.Layers
	mark   func() // makes the log move on soon
}

// Commit ends the open transaction, and takes the time until the next one.
func (s sink) Commit(ctx context.Context, t source.Transaction) error {
	if err := s.Chain.Commit(ctx, t); err != nil {
		return err
	}
	return s.layers.Step(ctx)
}

// Hold keeps checkpoints back until the log has passed position, which it soon
// does.
func (s sink) Hold(position model.Position) {
	s.Chain.Hold(position)
	s.mark()
}

func (s sink) Table(ctx context.Context, t *source.Table, gone []*model.SourceTable) error {
	if err := s.snap.Drop(ctx, gone); err != nil {
		return err
	}
	if t == nil {
		return nil
	}
	defer s.mark() // no checkpoint is made before the log has passed the copy
	return s.snap.Table(ctx, t)
}

// fatal joins the fatal problems, with their fixes, in one error.
func fatal(problems []source.Problem) error {
	var all []error
	for _, p := range problems {
		if !p.Fatal {
			continue
		}
		msg := p.Message
		if p.Fix != "" {
			msg += "; fix: " + p.Fix
		}
		if p.Code != "" {
			all = append(all, errs.New(errs.Code(p.Code), "%s", msg))
		} else {
			all = append(all, errors.New(msg))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("the source is not ready: %w", errors.Join(all...))
}

func (j *job) observer() publish.Observer {
	m := j.r.metrics
	return publish.Observer{
		Batch: func(rows, transactions int, sourceBytes uint64, size int) {
			m.batch(rows, transactions, sourceBytes, size)
			j.r.env.Health.Touch()
		},
		Read: func(at model.Micros) { j.read.Store(int64(at)) },
		Published: func(at model.Micros) {
			j.moved.Store(time.Now().UnixNano())
			if at != 0 {
				j.published.Store(int64(at))
			}
		},
		Trouble: j.r.env.Health.SetReady,
		Trace:   j.r.env.Trace,
	}
}

// terminate cleans up a stream that is replaced.
func (j *job) terminate(ctx context.Context) {
	for attempt := 1; ctx.Err() == nil; attempt++ {
		err := j.clean(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			return
		}
		if errs.CodeOf(err) == errs.S1003 {
			pause(ctx, leaseRetry)
			continue
		}
		j.log.Warn("cannot clean up stream", "error", errs.Cause(err))
		pause(ctx, min(j.backoff(err, attempt), 30*time.Second))
	}
}

func (j *job) clean(ctx context.Context) error {
	// No lease: bucket-store gives none for a stopped stream, and whoever still
	// reads its slot reads for nobody. Two that clean up at once do no harm.
	if err := j.r.src.Remove(ctx, &j.stream); err != nil {
		return err
	}
	if _, err := j.r.rep.Terminate(ctx, &pb.TerminateRequest{Stream: int64(j.stream.ID)}); err != nil {
		return fmt.Errorf("terminate stream: %w", err)
	}
	j.log.Info("stream terminated")
	return nil
}

// jobs are those that run now.
type jobs struct {
	mu  sync.Mutex
	all map[model.StreamID]*job // guarded by mu
}

func newJobs() *jobs { return &jobs{all: map[model.StreamID]*job{}} }

func (js *jobs) list() []*job {
	js.mu.Lock()
	defer js.mu.Unlock()
	out := make([]*job, 0, len(js.all))
	for _, j := range js.all {
		out = append(out, j)
	}
	return out
}

func (js *jobs) get(id model.StreamID) *job {
	js.mu.Lock()
	defer js.mu.Unlock()
	return js.all[id]
}

func (js *jobs) anyReading() bool {
	for _, j := range js.list() {
		if j.reading.Load() {
			return true
		}
	}
	return false
}

// beats are the newest heartbeats of the streams that are replicated here, or
// would be if nobody else did.
func (js *jobs) beats() []freshness.Beat {
	var all []freshness.Beat
	for _, j := range js.list() {
		if j.stop {
			continue // nobody waits for its data
		}
		all = append(all, freshness.Beat{Stage: freshness.Read, Stream: int64(j.stream.ID), At: j.read.Load()},
			freshness.Beat{Stage: freshness.Published, Stream: int64(j.stream.ID), At: j.published.Load()})
	}
	return all
}

// assess says of each stream that stands still that it does. That it goes on is
// said by what comes of it.
func (js *jobs) assess() {
	for _, j := range js.list() {
		if err := j.still(); err != nil {
			j.r.env.Health.SetReady(err)
		}
	}
}

// still is an error if nothing has come from the log for too long: heartbeats
// are written into it all the time.
func (j *job) still() error {
	if !j.reading.Load() {
		return nil // or there is another error
	}
	if since := time.Since(time.Unix(0, j.moved.Load())); since > j.r.cfg.Heartbeat+freshness.Patience {
		return fmt.Errorf("stream %d stands still: nothing was read and published for %s", j.stream.ID, since.Round(time.Second))
	}
	return nil
}

// watch follows the catalog: a job for each stream.
func (r *replicator) watch(ctx context.Context) error {
	defer func() { // ctx has ended
		for _, j := range r.jobs.list() {
			j.cancel()
			<-j.done
		}
	}()
	for {
		watch, err := r.catalog.Watch(ctx, &pb.WatchRequest{})
		for err == nil {
			var reply *pb.WatchReply
			if reply, err = watch.Recv(); err == nil {
				r.adjust(ctx, wire.ModelStreams(reply.GetStreams()))
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.env.Log.Debug("bucket-store does not tell its streams", "error", err)
		pause(ctx, 200*time.Millisecond)
	}
}

// adjust starts and stops jobs so that they fit the streams.
func (r *replicator) adjust(ctx context.Context, streams []model.Stream) {
	wanted := map[model.StreamID]*model.Stream{}
	for i := range streams {
		switch streams[i].State {
		case model.Processing, model.Active, model.Stopped:
			wanted[streams[i].ID] = &streams[i]
		}
	}
	for _, j := range r.jobs.list() {
		w := wanted[j.stream.ID]
		ended := false
		select {
		case <-j.done:
			ended = true
		default:
		}
		if w == nil || j.stop != (w.State == model.Stopped) || len(w.Layers) != len(j.stream.Layers) || ended {
			j.cancel()
			<-j.done
			r.jobs.mu.Lock()
			delete(r.jobs.all, j.stream.ID)
			r.jobs.mu.Unlock()
		}
	}
	for id, w := range wanted {
		if r.jobs.get(id) != nil {
			continue
		}
		jctx, cancel := context.WithCancel(ctx)
		j := &job{r: r, stream: *w, stop: w.State == model.Stopped, cancel: cancel, done: make(chan struct{}), log: r.env.Log.With("stream", int64(id))}
		// What is stored has been read and published, if by another process.
		j.read.Store(int64(w.Head.Heartbeat))
		j.published.Store(int64(w.Head.Heartbeat))
		r.jobs.mu.Lock()
		r.jobs.all[id] = j
		r.jobs.mu.Unlock()
		go j.run(jctx)
	}
	if len(wanted) == 0 {
		r.env.Health.SetReady(nil) // nothing to do is done
	}
}
