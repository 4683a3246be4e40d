package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluicesync/sluice/e2e/harness"
)

func insert(rows int, owner string) string {
	return fmt.Sprintf("INSERT INTO rows(owner, body) SELECT %s, %s FROM generate_series(1, %d) i;", owner, body, rows)
}

// BenchmarkSnapshotAndDownload copies 500k rows and gives them to one client,
// then 10k of them to 50 clients at once.
func BenchmarkSnapshotAndDownload(b *testing.B) {
	rows, shared, clients := scaled(500_000), scaled(10_000), scaled(50)
	w := newWorld(b, insert(rows-shared, "'all'")+insert(shared, "'many'"))
	for b.Loop() {
		copied := w.timed(func() { // what the source alone can give
			if _, err := w.conn.PgConn().CopyTo(w.ctx, io.Discard, "COPY rows TO STDOUT (FORMAT binary)"); err != nil {
				b.Fatal(err)
			}
		})
		begin := time.Now()
		w.start()
		took := time.Since(begin)
		w.report(Result{Metric: "snapshot", Value: float64(rows) / took.Seconds(), Unit: "rows/s", Goal: 80_000, Better: "more",
			Limit: float64(rows) / copied.Seconds(), LimitWhat: "COPY of the same table to nowhere"})

		begin = time.Now()
		s := w.must("all", 256<<10)
		if err := s.read(rows - shared); err != nil {
			b.Fatal(err)
		}
		took = time.Since(begin)
		limit := loopback(b, s.Bytes)
		w.report(Result{Metric: "download", Value: float64(s.Ops) / took.Seconds(), Unit: "rows/s", Goal: 250_000, Better: "more",
			Limit: float64(s.Ops) / limit.Seconds(), LimitWhat: "the same bytes over loopback HTTP"})

		w.report(Result{Metric: "shared download", Value: w.sharedDownload("many", shared, clients), Unit: "rows/s", Goal: 700_000, Better: "more"})
	}
}

// sharedDownload gives clients the same rows at once and returns how many rows a
// second that are in all.
func (w *world) sharedDownload(user string, rows, clients int) float64 {
	w.Helper()
	var wg sync.WaitGroup
	var all atomic.Int64
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			s, err := w.stream(w.ctx, user, 64<<10)
			if err != nil {
				w.Error(err)
				return
			}
			defer s.Close()
			if err := s.read(rows); err != nil {
				w.Error(err)
				return
			}
			all.Add(int64(s.Ops))
		})
	}
	wg.Wait()
	took := time.Since(begin)
	if w.Failed() {
		w.FailNow()
	}
	return float64(all.Load()) / took.Seconds()
}

// BenchmarkDownload gives one client 500k rows in every way that a client may ask
// for, and 50 clients 10k rows by WebSocket. Its goals for WebSocket are a quarter
// below those for NDJSON.
func BenchmarkDownload(b *testing.B) {
	const rounds = 3 // of which the median counts
	rows, shared, clients := scaled(500_000), scaled(10_000), scaled(50)
	w := newWorld(b, insert(rows, "'all'")+insert(shared, "'many'"))
	w.start()
	kinds := []struct {
		Kind
		goal float64
	}{
		{ndjson, 250_000},
		{socket, 187_500},
		{Kind{Name: "WebSocket with permessage-deflate", Socket: true, Deflate: true}, 100_000},
		{Kind{Name: "NDJSON in gzip", Coding: "gzip"}, 100_000},
		{Kind{Name: "NDJSON in zstd", Coding: "zstd"}, 100_000},
		{Kind{Name: "BSON in gzip", BSON: true, Coding: "gzip"}, 100_000},
		{Kind{Name: "BSON in zstd", BSON: true, Coding: "zstd"}, 100_000},
	}
	for b.Loop() {
		speeds := make([][]float64, len(kinds))
		sizes := make([]float64, len(kinds)) // on the wire, per byte of lines
		for range rounds {
			for i, k := range kinds {
				w := w.by(k.Kind)
				begin := time.Now()
				s, err := w.client("all", "all", 256<<10).Open(w.ctx)
				if err == nil {
					err = s.read(rows)
				}
				if err != nil {
					b.Fatalf("%s: %v", k.Name, err)
				}
				speeds[i] = append(speeds[i], float64(rows)/time.Since(begin).Seconds())
				sizes[i] = float64(s.conn.n) / float64(s.Bytes)
				s.Close()
			}
		}
		for i, k := range kinds {
			slices.Sort(speeds[i])
			w.report(Result{Metric: k.Name, Value: speeds[i][rounds/2], Unit: "rows/s", Goal: k.goal, Better: "more"})
			if k.Coding != "" || k.Deflate {
				w.report(Result{Metric: k.Name + " shrinks to", Value: 100 * sizes[i], Unit: "%", Better: "less"})
			}
		}
		w.report(Result{Metric: "WebSocket beside NDJSON", Value: 100 * speeds[1][rounds/2] / speeds[0][rounds/2], Unit: "%", Goal: 75, Better: "more"})

		plain, ws := w.sharedDownload("many", shared, clients), w.by(socket).sharedDownload("many", shared, clients)
		w.report(Result{Metric: "shared, WebSocket", Value: ws, Unit: "rows/s", Goal: 525_000, Better: "more"})
		w.report(Result{Metric: "shared, WebSocket beside NDJSON", Value: 100 * ws / plain, Unit: "%", Goal: 75, Better: "more"})
	}
}

// BenchmarkTransactions gives one client one large transaction and then 20k
// small ones, written faster than they replicate.
func BenchmarkTransactions(b *testing.B) {
	large, small := scaled(100_000), scaled(20_000)
	w := newWorld(b, "")
	w.start()
	for b.Loop() {
		s := w.must("u", 256<<10)
		begin := time.Now()
		w.exec(insert(large, "'u'"))
		written := time.Since(begin)
		if err := s.read(large); err != nil {
			b.Fatal(err)
		}
		took := time.Since(begin)
		w.report(Result{Metric: "one transaction", Value: float64(large) / took.Seconds(), Unit: "rows/s", Goal: 40_000, Better: "more",
			Limit: float64(large) / written.Seconds(), LimitWhat: "the source's own write of it"})

		begin = time.Now()
		w.exec("SET synchronous_commit = off")
		w.exec(fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP INSERT INTO rows(owner, body) VALUES ('u', %s); COMMIT; END LOOP; END $$", small, body))
		written = time.Since(begin)
		if err := s.read(large + small); err != nil {
			b.Fatal(err)
		}
		took = time.Since(begin)
		w.report(Result{Metric: "small transactions", Value: float64(small) / took.Seconds(), Unit: "tx/s", Goal: 12_000, Better: "more",
			Limit: float64(small) / written.Seconds(), LimitWhat: "the source's own writes, not waiting for the disk"})
	}
}

// BenchmarkIdleLatency is one client and one transaction a second.
func BenchmarkIdleLatency(b *testing.B) {
	w := newWorld(b, "")
	w.start()
	for b.Loop() {
		l := w.latencies(1, scaled(25), time.Second, func(int) string { return "u" })
		w.report(Result{Metric: "commit to complete p50", Value: percentile(l, 0.5), Unit: "ms", Goal: 5, Better: "less"})
		w.report(Result{Metric: "commit to complete p99", Value: percentile(l, 0.99), Unit: "ms", Better: "less"})
	}
}

// BenchmarkManyClients is clients with buckets of their own and 50 transactions
// a second for any of them: work grows with those affected, not with those connected.
func BenchmarkManyClients(b *testing.B) {
	for _, c := range []struct {
		clients  int
		p50, p99 float64
	}{{1000, 10, 60}, {5000, 15, 100}} {
		b.Run(fmt.Sprint(c.clients), func(b *testing.B) {
			w := newWorld(b, "")
			w.start()
			for b.Loop() {
				own := func(i int) string { return fmt.Sprintf("u%d", i) }
				l := w.latencies(scaled(c.clients), scaled(750), 20*time.Millisecond, own)
				w.report(Result{Metric: "commit to complete p50", Value: percentile(l, 0.5), Unit: "ms", Goal: c.p50, Better: "less"})
				w.report(Result{Metric: "commit to complete p99", Value: percentile(l, 0.99), Unit: "ms", Goal: c.p99, Better: "less"})
			}
		})
	}
}

// BenchmarkSharedBucket is 5,000 clients on one bucket and one transaction a
// second, by HTTP and then by WebSocket.
func BenchmarkSharedBucket(b *testing.B) {
	w := newWorld(b, "")
	w.start()
	clients, transactions := scaled(5000), scaled(20)
	for b.Loop() {
		var half [2]float64
		for i, k := range []struct {
			Kind
			goal float64
		}{{ndjson, 400}, {socket, 500}} {
			f := w.by(k.Kind).fan(k.Name, clients, transactions)
			l := f.run()
			f.crowd.close()
			half[i] = percentile(l, 0.5)
			w.report(Result{Metric: k.Name + ", last client p50", Value: half[i], Unit: "ms", Better: "less"})
			w.report(Result{Metric: k.Name + ", last client p99", Value: percentile(l, 0.99), Unit: "ms", Goal: k.goal, Better: "less"})
		}
		w.report(Result{Metric: "WebSocket beside NDJSON, p50", Value: 100 * half[1] / half[0], Unit: "%", Goal: 125, Better: "less"})
	}
}

// BenchmarkTenThousand is 10,000 streams on one gateway process, on one bucket,
// and one transaction a second: twice BenchmarkSharedBucket.
func BenchmarkTenThousand(b *testing.B) {
	for _, k := range []struct {
		Kind
		goal float64
	}{{ndjson, 800}, {socket, 1000}} {
		b.Run(k.Name, func(b *testing.B) {
			clients, transactions := scaled(10_000), scaled(20)
			needFiles(b, clients+200)
			w := newWorld(b, "").by(k.Kind)
			w.start()
			for b.Loop() {
				warm := w.connect(scaled(1000), func(int) string { return "u" }, nil)
				before := w.settled()
				warm.close()
				begin := time.Now()
				f := w.fan("fan", clients, transactions)
				w.report(Result{Metric: "connected within", Value: time.Since(begin).Seconds(), Unit: "s", Better: "less"})
				idle := w.settled()
				l := f.run()
				busy := w.settled()
				w.report(Result{Metric: "last client p50", Value: percentile(l, 0.5), Unit: "ms", Better: "less"})
				w.report(Result{Metric: "last client p99", Value: percentile(l, 0.99), Unit: "ms", Goal: k.goal, Better: "less"})
				w.report(Result{Metric: "gateway's memory, idle", Value: float64(idle) / (1 << 20), Unit: "MiB", Better: "less"})
				w.report(Result{Metric: "gateway's memory after it", Value: float64(busy) / (1 << 20), Unit: "MiB", Better: "less"})
				w.report(Result{Metric: "memory of a stream", Value: float64(idle-before) / float64(clients-scaled(1000)) / 1024, Unit: "KiB", Goal: 20, Better: "less"})
				f.crowd.close()
			}
		})
	}
}

// fan is clients on one bucket, and transactions for all of them.
type fan struct {
	w     *world
	crowd *crowd
	user  string // whose bucket it is
	// By transaction, from 1: when the last client held it, and how many do.
	last, count []atomic.Int64
	done        chan int64 // the number of each one that all hold, which is put once
}

// fan connects the clients, to a bucket that has no numbers of another fan.
func (w *world) fan(user string, clients, transactions int) *fan {
	w.Helper()
	f := &fan{w: w, user: user, last: make([]atomic.Int64, transactions+1), count: make([]atomic.Int64, transactions+1), done: make(chan int64, transactions)}
	f.crowd = w.connect(clients, func(int) string { return user }, func(_ int, s *Stream, at time.Time) {
		seq := s.Seq
		if seq < 1 || seq > int64(transactions) {
			return
		}
		for {
			old := f.last[seq].Load()
			if at.UnixNano() <= old || f.last[seq].CompareAndSwap(old, at.UnixNano()) {
				break
			}
		}
		if f.count[seq].Add(1) == int64(clients) {
			f.done <- seq
		}
	})
	return f
}

// run commits the transactions, one a second, and returns how long after each
// the last client held it.
func (f *fan) run() []time.Duration {
	f.w.Helper()
	var l []time.Duration
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for seq := 1; seq < len(f.last); seq++ {
		<-tick.C
		l = append(l, f.step(seq))
	}
	return l
}

// step commits a transaction, and returns how long after it the last client held it.
func (f *fan) step(seq int) time.Duration {
	w := f.w
	w.Helper()
	committed := w.commit(f.user, int64(seq))
	const within = 20 * time.Second
	select {
	case <-f.done:
	case <-time.After(within):
		w.Fatalf("transaction %d reached %d of %d clients within %s", seq, f.count[seq].Load(), len(f.crowd.streams), within)
	case <-w.ctx.Done():
		w.Fatalf("transaction %d reached %d of %d clients: %v", seq, f.count[seq].Load(), len(f.crowd.streams), context.Cause(w.ctx))
	}
	return time.Unix(0, f.last[seq].Load()).Sub(committed)
}

// BenchmarkReconnect breaks the streams of 2,000 clients at once, and lets them
// all come back at once with what they have, a row behind.
func BenchmarkReconnect(b *testing.B) {
	const held = 10 // rows of each
	for _, k := range []Kind{ndjson, socket} {
		b.Run(k.Name, func(b *testing.B) {
			clients := scaled(2000)
			own := func(i int) string { return fmt.Sprintf("u%d", i) }
			w := newWorld(b, insert(held*clients, fmt.Sprintf("'u' || i %% %d", clients))).by(k)
			w.start()
			for b.Loop() {
				c := w.connect(clients, own, nil)
				c.close()
				watch := w.must(own(0), 4<<10)
				w.exec(insert(clients, fmt.Sprintf("'u' || i %% %d", clients)))
				if err := watch.read(held + 1); err != nil {
					b.Fatal(err)
				}
				var back atomic.Int64
				var first sync.Once
				var wg sync.WaitGroup
				start := make(chan struct{})
				for i, s := range c.streams {
					wg.Go(func() {
						<-start
						err := s.Resume(w.ctx)
						if err == nil {
							defer s.Close()
							err = s.Complete()
						}
						if err == nil && s.Ops != held+1 {
							err = fmt.Errorf("has %d ops, not %d", s.Ops, held+1)
						}
						if err != nil {
							first.Do(func() { b.Errorf("client %d: %v", i, err) })
							return
						}
						back.Add(1)
					})
				}
				begin := time.Now()
				close(start)
				wg.Wait()
				took := time.Since(begin)
				if n := back.Load(); n != int64(clients) {
					b.Fatalf("%d of %d clients came back", n, clients)
				}
				w.report(Result{Metric: "all at a checkpoint", Value: took.Seconds(), Unit: "s", Goal: 3, Better: "less"})
			}
		})
	}
}

// BenchmarkWriteCheckpoints asks for them as fast as 32 callers can, and then
// measures how soon one is acknowledged on the stream.
func BenchmarkWriteCheckpoints(b *testing.B) {
	w := newWorld(b, "")
	w.start()
	for b.Loop() {
		callers, length := 32, time.Duration(scaled(5000))*time.Millisecond
		w.must("u", 4<<10)
		var n atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range callers {
			wg.Go(func() {
				user := fmt.Sprintf("w%d", i)
				token := harness.Token(b, user, time.Hour, nil)
				c, err := dial(w.ctx, w.sluice.URLs()[0], headBuffer)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				for time.Since(begin) < length {
					if _, err := writeCheckpoint(c, token, user); err != nil {
						b.Error(err)
						return
					}
					n.Add(1)
				}
			})
		}
		wg.Wait()
		w.report(Result{Metric: "requests", Value: float64(n.Load()) / time.Since(begin).Seconds(), Unit: "1/s", Goal: 10_000, Better: "more"})

		s := w.must("ack", 4<<10)
		token := harness.Token(b, "ack", time.Hour, nil)
		c, err := dial(w.ctx, w.sluice.URLs()[0], headBuffer)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		for _, kind := range []struct {
			name  string
			write bool
			goal  float64
		}{{"acknowledged after a write p50", true, 10}, {"acknowledged on an idle source p50", false, 15}} {
			var l []time.Duration
			for i := range scaled(40) {
				if kind.write {
					w.commit("ack", int64(i+1))
				}
				asked := time.Now()
				id, err := writeCheckpoint(c, token, "ack")
				if err != nil {
					b.Fatal(err)
				}
				for s.WriteCheckpoint < id {
					if err := s.Complete(); err != nil {
						b.Fatal(err)
					}
				}
				l = append(l, time.Since(asked))
			}
			w.report(Result{Metric: kind.name, Value: percentile(l, 0.5), Unit: "ms", Goal: kind.goal, Better: "less"})
		}
	}
}

// BenchmarkConnects opens streams, reads the first checkpoint and closes them.
func BenchmarkConnects(b *testing.B) {
	w := newWorld(b, insert(1000, "'u' || i"))
	w.start()
	for b.Loop() {
		length := time.Duration(scaled(5000)) * time.Millisecond
		tokens := make([]string, 1000)
		for i := range tokens {
			tokens[i] = harness.Token(b, fmt.Sprintf("u%d", i+1), time.Hour, nil)
		}
		w.must("u1", 4<<10)
		var n atomic.Int64
		var wg sync.WaitGroup
		begin := time.Now()
		for worker := range 32 {
			wg.Go(func() {
				for i := worker; time.Since(begin) < length; i += 32 {
					c := Client{URL: w.sluice.URLs()[0], Token: tokens[i%len(tokens)], ID: "c", Kind: w.kind, Buffer: 4 << 10}
					s, err := c.Open(w.ctx)
					if err == nil {
						err = s.Complete()
						s.Close()
					}
					if err != nil {
						b.Error(err)
						return
					}
					n.Add(1)
				}
			})
		}
		wg.Wait()
		w.report(Result{Metric: "connects", Value: float64(n.Load()) / time.Since(begin).Seconds(), Unit: "1/s", Goal: 3000, Better: "more"})
	}
}

// BenchmarkIdleMemory is what each of 4,000 more idle streams costs the gateway.
func BenchmarkIdleMemory(b *testing.B) {
	for _, k := range []Kind{ndjson, socket} {
		b.Run(k.Name, func(b *testing.B) {
			w := newWorld(b, insert(1000, "'u' || i % 100")).by(k)
			w.start()
			for b.Loop() {
				user := func(i int) string { return fmt.Sprintf("u%d", i%100) }
				few, more := scaled(1000), scaled(4000)
				w.connect(few, user, nil)
				before := w.settled()
				w.connect(more, user, nil)
				after := w.settled()
				w.report(Result{Metric: "memory of a stream", Value: float64(after-before) / float64(more) / 1024, Unit: "KiB", Goal: 20, Better: "less"})
			}
		})
	}
}

// BenchmarkCompact compacts 1,000 rows that were changed 200 times each.
func BenchmarkCompact(b *testing.B) {
	rows, updates := 1000, scaled(200)
	w := newWorld(b, insert(rows, "'u'"))
	w.start(func(o *harness.Options) { o.CompactOnDemand = true })
	for b.Loop() {
		s := w.must("u", 256<<10)
		for range updates {
			w.exec("UPDATE rows SET seq = seq + 1")
		}
		if err := s.read(rows * (updates + 1)); err != nil {
			b.Fatal(err)
		}
		took := w.timed(func() {
			if out, err := w.sluice.CLI("compact"); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		})
		fresh := w.must("u", 256<<10)
		w.report(Result{Metric: "compacted", Value: float64(rows*(updates+1)) / took.Seconds(), Unit: "ops/s", Goal: 200_000, Better: "more"})
		w.report(Result{Metric: "ops left for a new client", Value: float64(fresh.Ops), Unit: "ops", Better: "less"})
	}
}

// BenchmarkCompacting is what live transactions notice of a compactor at work: a
// process for each service, 50 clients and 50 transactions a second, in turns
// without a compactor and with one that has 80,000 new ops before it.
func BenchmarkCompacting(b *testing.B) {
	rounds, owners, each, updates := 5, 20, 20, scaled(200)
	w := newWorld(b, insert(rounds*owners*each, fmt.Sprintf("'busy' || i %% %d || '-' || i %% %d", rounds, rounds*owners)))
	w.start(func(o *harness.Options) { o.Mode = harness.Suite })
	for b.Loop() {
		var alone, beside []time.Duration
		var took time.Duration
		done := 0.0
		for round := range rounds {
			w.sluice.Stop(harness.Compactor)
			for range updates {
				w.exec("UPDATE rows SET seq = seq + 1 WHERE owner LIKE $1", fmt.Sprintf("busy%d-%%", round))
			}
			s := w.must("marker", 4<<10)
			w.commit("marker", 1) // what comes after all of them
			if err := s.read(s.Ops + 1); err != nil {
				b.Fatal(err)
			}
			s.Close()
			live := func(prefix string) []time.Duration {
				return w.latencies(50, scaled(250), 20*time.Millisecond, func(i int) string { return fmt.Sprint(prefix, round, "-", i) })
			}
			alone = append(alone, live("a")...)
			w.sluice.Start(harness.Compactor)
			harness.Eventually(w, time.Minute, "the compactor", func() error {
				if ready, err := w.sluice.Ready(harness.Compactor); err != nil || !ready {
					return cmp.Or(err, errors.New("it is not ready"))
				}
				return nil
			})
			took += w.timed(func() { beside = append(beside, live("b")...) })
			for _, name := range []string{"sluice_compactor_ops_moved_total", "sluice_compactor_ops_cleared_total"} {
				n, err := w.sluice.Metric(harness.Compactor, name)
				if err != nil {
					b.Fatal(err)
				}
				done += n
			}
		}
		w.report(Result{Metric: "commit to complete p50, alone", Value: percentile(alone, 0.5), Unit: "ms", Better: "less"})
		w.report(Result{Metric: "commit to complete p99, alone", Value: percentile(alone, 0.99), Unit: "ms", Better: "less"})
		w.report(Result{Metric: "commit to complete p50, compacting", Value: percentile(beside, 0.5), Unit: "ms", Better: "less"})
		w.report(Result{Metric: "commit to complete p99, compacting", Value: percentile(beside, 0.99), Unit: "ms", Goal: 1.2 * percentile(alone, 0.99), Better: "less"})
		w.report(Result{Metric: "moved and cleared meanwhile", Value: done / took.Seconds(), Unit: "ops/s", Better: "more"})
	}
}

func (w *world) timed(do func()) time.Duration {
	begin := time.Now()
	do()
	return time.Since(begin)
}

// commit writes one row and returns when its commit returned.
func (w *world) commit(owner string, seq int64) time.Time {
	w.Helper()
	w.exec("INSERT INTO rows(owner, seq, body) SELECT $1, $2, "+strings.ReplaceAll(body, "i::text", "$1::text"), owner, seq)
	return time.Now()
}

// latencies connects clients and commits transactions at a pace, each for one
// client; it returns the times from commit to checkpoint_complete.
func (w *world) latencies(clients, transactions int, pace time.Duration, user func(int) string) []time.Duration {
	w.Helper()
	type event struct {
		client int
		seq    int64
		at     time.Time
	}
	events := make(chan event, 4*transactions) // about one a transaction; a reader may wait
	over := make(chan struct{})                // closed when no more events are read
	defer close(over)
	w.connect(clients, user, func(i int, s *Stream, at time.Time) {
		select {
		case events <- event{i, s.Seq, at}:
		case <-over:
		}
	})
	committed := make([]time.Time, transactions+1)
	owner := make([]int, transactions+1)
	random := rand.New(rand.NewPCG(1, 2))
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for seq := 1; seq <= transactions; seq++ {
		owner[seq] = random.IntN(clients)
		<-tick.C
		committed[seq] = w.commit(user(owner[seq]), int64(seq))
	}
	var l []time.Duration
	seen := make([]bool, transactions+1)
	deadline := time.After(30 * time.Second)
	for missing := transactions; missing > 0; {
		select {
		case e := <-events:
			// A checkpoint may bring several transactions of its client.
			for seq := int(e.seq); seq > 0 && missing > 0; seq-- {
				if owner[seq] == e.client && !seen[seq] {
					seen[seq] = true
					missing--
					l = append(l, e.at.Sub(committed[seq]))
				}
			}
		case <-deadline:
			w.Fatalf("%d of %d transactions did not arrive within 30 s", missing, transactions)
		case <-w.ctx.Done():
			w.Fatalf("%d of %d transactions have not arrived: %v", missing, transactions, context.Cause(w.ctx))
		}
	}
	return l
}

// settled returns the gateway's memory once it no longer shrinks or grows much.
func (w *world) settled() int64 {
	w.Helper()
	last := int64(0)
	for steady := 0; steady < 3; {
		now, err := rss(w.sluice.GatewayPID())
		if err != nil {
			w.Fatal(err)
		}
		if diff := now - last; diff < 1<<20 && diff > -1<<20 {
			steady++
		} else {
			steady = 0
		}
		last = now
		time.Sleep(time.Second) // a sampling interval: nothing is awaited here
	}
	return last
}

// needFiles fails if this process may not have so many open files; the gateway may
// have as many.
func needFiles(b *testing.B, n int) {
	b.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if limit.Cur < uint64(n) { // which the runtime has raised as far as it goes
		b.Fatalf("%d open files are needed, the limit is %d: raise it (ulimit -n)", n, limit.Cur)
	}
}

func rss(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return 0, err
	}
	return resident * int64(os.Getpagesize()), nil
}

// writeCheckpoint asks for one on a connection that is kept.
func writeCheckpoint(c *conn, token, client string) (uint64, error) {
	if err := c.send(http.MethodGet, "/write-checkpoint2.json?client_id="+client, token, "", nil); err != nil {
		return 0, err
	}
	text, err := c.answer()
	if err != nil {
		return 0, fmt.Errorf("write checkpoint: %w", err)
	}
	id, err := strconv.ParseUint(quoted(text, wcMark), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("write checkpoint: %s: %w", text, err)
	}
	return id, nil
}

// loopback measures how long it takes to move bytes through a plain HTTP server
// and client on this machine.
func loopback(b *testing.B, size int64) time.Duration {
	b.Helper()
	url, stop := serveZeros(b, size)
	defer stop()
	begin := time.Now()
	resp, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
		b.Fatalf("loopback moved %d of %d bytes: %v", n, size, err)
	}
	return time.Since(begin)
}

func serveZeros(b *testing.B, size int64) (url string, stop func()) {
	b.Helper()
	chunk := make([]byte, 64<<10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for left := size; left > 0; left -= int64(len(chunk)) {
			if _, err := w.Write(chunk[:min(int64(len(chunk)), left)]); err != nil {
				return
			}
		}
	}))
	return server.URL, server.Close
}
