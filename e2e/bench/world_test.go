package bench

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/e2e/harness"
)

func mode() harness.Mode {
	if os.Getenv("SLUICE_BENCH_MODE") == string(harness.Suite) {
		return harness.Suite
	}
	return harness.Dev
}

// scaled is n, or with SLUICE_BENCH_SHORT a fiftieth of it: enough to see that a scenario
// runs, too little to say how fast.
func scaled(n int) int {
	if os.Getenv("SLUICE_BENCH_SHORT") != "" {
		return max(2, n/50)
	}
	return n
}

// interrupted ends with a signal: then the scenario that runs fails, and its
// servers are stopped and its folders removed as after any other failure.
var interrupted context.Context

func TestMain(m *testing.M) {
	var stop func()
	interrupted, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := m.Run()
	stop()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: goroutines are left:", err)
		code = 1
	}
	if path := os.Getenv("SLUICE_BENCH_OUT"); path != "" {
		if err := results.save(path, string(mode())); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// The source: rows of about 200 bytes, each in one bucket, that of its owner.
const schema = `
CREATE TABLE rows (id bigserial PRIMARY KEY, owner text NOT NULL, seq bigint NOT NULL DEFAULT 0, body text NOT NULL);
CREATE INDEX ON rows(owner);
CREATE PUBLICATION powersync FOR ALL TABLES;
`

const syncConfig = `
bucket_definitions:
  own:
    parameters: SELECT request.user_id() AS user_id
    data:
      - SELECT id, owner, seq, body FROM rows WHERE owner = bucket.user_id
`

// body pads a row to about 200 bytes, differently for each.
const body = "repeat(md5(i::text), 4)"

type world struct {
	*testing.B
	ctx    context.Context // ends when the scenario has taken too long, or at an interrupt
	kind   Kind            // of the streams it opens
	urls   []string        // of the gateways that they are opened at in turn; nil = the first one
	turn   *atomic.Int64
	pg     *harness.Postgres
	sluice *harness.Instance
	conn   *pgx.Conn
}

// patience is how long a scenario may take in all. The longest take a minute.
const patience = 10 * time.Minute

// newWorld starts a source with these rows; start starts Sluice on it.
func newWorld(b *testing.B, seed string) *world {
	b.Helper()
	if interrupted.Err() != nil {
		b.Fatal("interrupted")
	}
	dir := harness.NeedsServers(b)
	harness.Binaries(b) // built before anything is timed
	ctx, cancel := context.WithTimeoutCause(interrupted, patience, fmt.Errorf("the scenario has not ended within %s", patience))
	b.Cleanup(cancel)
	b.Cleanup(func() {
		if b.Failed() {
			results.fail(scenario(b))
		}
	})
	w := &world{B: b, ctx: ctx, kind: ndjson, turn: new(atomic.Int64), pg: harness.StartPostgres(b, dir)}
	w.pg.Exec(schema + seed)
	w.pg.Exec("VACUUM ANALYZE")
	w.pg.Exec("CHECKPOINT")
	w.conn = w.pg.Connect()
	return w
}

// by is the same world whose streams are of another kind.
func (w *world) by(k Kind) *world {
	other := *w
	other.kind = k
	return &other
}

// It returns once the first checkpoint is available to a client.
func (w *world) start(more ...func(*harness.Options)) {
	w.Helper()
	o := harness.Options{Mode: mode(), Replicas: 1, SyncConfig: syncConfig, Storage: os.Getenv("SLUICE_BENCH_STORAGE")}
	for _, change := range more {
		change(&o)
	}
	w.sluice = harness.StartInstance(w, harness.NeedsServers(w), w.pg, o)
	harness.Eventually(w, 5*time.Minute, "the first checkpoint", func() error {
		s, err := w.stream(w.ctx, "nobody", 4<<10)
		if err == nil {
			s.Close()
		}
		return err
	})
}

func (w *world) client(user, id string, buffer int) Client {
	w.Helper()
	url := w.sluice.URLs()[0]
	if len(w.urls) > 0 {
		url = w.urls[int(w.turn.Add(1))%len(w.urls)]
	}
	return Client{URL: url, Token: harness.Token(w, user, time.Hour, nil), ID: id, Kind: w.kind, Buffer: buffer}
}

// stream opens the stream of a user and reads its first complete checkpoint.
func (w *world) stream(ctx context.Context, user string, buffer int) (*Stream, error) {
	s, err := w.client(user, user, buffer).Open(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Complete(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// must is stream for one that has to work, closed with the benchmark.
func (w *world) must(user string, buffer int) *Stream {
	w.Helper()
	s, err := w.stream(w.ctx, user, buffer)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(s.Close)
	return s
}

func (w *world) exec(sql string, args ...any) {
	w.Helper()
	if _, err := w.conn.Exec(w.ctx, sql, args...); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

func scenario(t testing.TB) string { return strings.TrimPrefix(t.Name(), "Benchmark") }

func (w *world) report(r Result) {
	w.Helper()
	r.Scenario = scenario(w)
	results.add(r)
	unit := strings.ReplaceAll(r.Metric+"-"+r.Unit, " ", "-")
	w.ReportMetric(r.Value, unit)
	if r.Limit > 0 {
		w.ReportMetric(r.Limit, unit+"-limit")
	}
}

// crowd is many streams of many users, read by one goroutine each.
type crowd struct {
	w       *world
	ctx     context.Context // of the streams
	cancel  context.CancelFunc
	wg      sync.WaitGroup // a goroutine a stream
	streams []*Stream
}

// connect opens n streams, at most 64 at once, user(i) for each. It calls on
// for every complete checkpoint after the first, from the stream's goroutine.
func (w *world) connect(n int, user func(int) string, on func(i int, s *Stream, at time.Time)) *crowd {
	w.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	c := &crowd{w: w, ctx: ctx, cancel: cancel, streams: make([]*Stream, n)}
	var opening sync.WaitGroup
	gate := make(chan struct{}, 64) // bounds the connects at one time
	var failed sync.Once
	for i := range n {
		opening.Add(1)
		gate <- struct{}{}
		c.wg.Go(func() {
			s, err := w.stream(ctx, user(i), 4<<10)
			<-gate
			if err != nil {
				failed.Do(func() { w.Errorf("client %d: %v", i, err) })
				opening.Done()
				return
			}
			c.streams[i] = s
			opening.Done()
			defer s.Close()
			for s.Complete() == nil {
				if on != nil {
					on(i, s, time.Now())
				}
			}
			if ctx.Err() == nil {
				failed.Do(func() { w.Errorf("client %d: the stream ended", i) })
			}
		})
	}
	opening.Wait()
	w.Cleanup(c.close)
	if w.Failed() {
		w.FailNow()
	}
	return c
}

func (c *crowd) close() {
	c.cancel()
	c.wg.Wait()
}
