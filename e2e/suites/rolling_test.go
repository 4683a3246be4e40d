package suites

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicesync/sluice/e2e/harness"
)

// follower is a client that reads its stream as the SDKs do, and holds that it is
// sent everything once: each data line goes on where the one before ended, and at
// each checkpoint it has as many ops, with the checksum, as it was told of.
type follower struct {
	url, token string
	http       *http.Client

	connects atomic.Int32
	at       atomic.Int64 // ops of its announcements at the last checkpoint

	buckets map[string]*followed
}

type followed struct {
	After    string
	ops      int
	sum      uint32
	count    int // as announced
	checksum uint32
}

type followedBucket struct {
	Bucket   string
	Checksum uint32
	Count    int
}

// follow reads streams until ctx ends; any other end than that of a whole response
// is an error.
func (f *follower) follow(ctx context.Context) error {
	f.buckets = map[string]*followed{}
	for ctx.Err() == nil {
		f.connects.Add(1)
		if err := f.stream(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("connection %d: %w", f.connects.Load(), err)
		}
	}
	return nil
}

func (f *follower) stream(ctx context.Context) error {
	type position struct {
		Name  string `json:"name"`
		After string `json:"after"`
	}
	positions := []position{}
	for name, b := range f.buckets {
		positions = append(positions, position{name, b.After})
	}
	body, err := json.Marshal(map[string]any{"buckets": positions, "raw_data": true, "client_id": "c"})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", f.url+"/sync/stream", strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+f.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := f.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	r := bufio.NewReader(resp.Body)
	complete := true
	for {
		text, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(text) == 0 {
			if !complete {
				return errors.New("it ended in the middle of a checkpoint")
			}
			return nil
		}
		if err != nil {
			return err
		}
		if complete, err = f.line(text, complete); err != nil {
			return fmt.Errorf("%w in %.200s", err, text)
		}
	}
}

func (f *follower) line(text []byte, was bool) (complete bool, err error) {
	var l struct {
		Checkpoint *struct{ Buckets []followedBucket }
		Diff       *struct {
			Removed []string         `json:"removed_buckets"`
			Updated []followedBucket `json:"updated_buckets"`
		} `json:"checkpoint_diff"`
		Data *struct {
			Bucket, After string
			Next          string `json:"next_after"`
			Data          []struct {
				ID       string `json:"op_id"`
				Checksum uint32
			}
		}
		Complete *json.RawMessage `json:"checkpoint_complete"`
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return false, err
	}
	announce := func(list []followedBucket) {
		for _, x := range list {
			b := f.buckets[x.Bucket]
			if b == nil {
				b = &followed{After: "0"}
				f.buckets[x.Bucket] = b
			}
			b.checksum, b.count = x.Checksum, x.Count
		}
	}
	switch {
	case l.Checkpoint != nil:
		announce(l.Checkpoint.Buckets)
		return false, nil
	case l.Diff != nil:
		if len(l.Diff.Removed) > 0 {
			return false, errors.New("a bucket is removed")
		}
		announce(l.Diff.Updated)
		return false, nil
	case l.Data != nil:
		b := f.buckets[l.Data.Bucket]
		if b == nil || b.After != l.Data.After {
			return false, fmt.Errorf("data does not go on where it was: %+v", b)
		}
		last, err := strconv.ParseUint(b.After, 10, 64)
		if err != nil {
			return false, err
		}
		for _, op := range l.Data.Data {
			id, err := strconv.ParseUint(op.ID, 10, 64)
			if err != nil || id <= last {
				return false, fmt.Errorf("op %s after %d", op.ID, last)
			}
			last = id
			b.sum += op.Checksum
			b.ops++
		}
		b.After = l.Data.Next
		return was, nil
	case l.Complete != nil:
		for name, b := range f.buckets {
			if b.ops != b.count || b.sum != b.checksum {
				return false, fmt.Errorf("bucket %s: %d ops with checksum %d, want %d with %d", name, b.ops, b.sum, b.count, b.checksum)
			}
			if strings.Contains(name, "#announcements[") {
				f.at.Store(int64(b.ops))
			}
		}
		return true, nil
	}
	return was, nil // a keepalive
}

var followers = flag.Int("rolling.streams", 400, "how many streams a rolling restart has to survive; more than 400 take minutes")

// together is how many of them come at once.
const together = 20

// TestRollingRestart restarts every service under load, one after the other and
// each politely, with hundreds of streams: none sees an error or a half checkpoint,
// none is sent anything twice or misses anything. Nothing but the restart of its
// gateway ends a stream, and that once.
func TestRollingRestart(t *testing.T) {
	first, second := []string{harness.Gateway1, harness.Gateway2}, []string{"sync-gateway-3", "sync-gateway-4"}
	w := newWorld(t, harness.Suite, "INSERT INTO announcements SELECT 'seed' || i, repeat('x', 100) FROM generate_series(1, 500) i;", func(o *harness.Options) {
		o.Replicas = 4 // ports for the gateways that come instead
		o.CompactOnDemand = true
		o.Only = append([]string{harness.NATS, harness.BucketStore, harness.Replicator, harness.Evaluator1, harness.Evaluator2, harness.Compactor}, first...)
	})
	harness.Eventually(t, soon, "the sync config is active", func() error {
		_, err := w.sluice.CLI("status")
		return err
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	failed := make(chan error, *followers)
	all := make([]*follower, *followers)
	everyone := max(1, *followers/80) // more streams are not sent more: the test has to read it all
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range all {
		if i >= together { // all at once would be a test of this machine
			harness.Eventually(t, soon, "earlier clients are served", func() error { return harness.Equal(all[i-together].at.Load() > 0, true) })
		}
		f := &follower{url: w.sluice.URL(), token: harness.Token(t, fmt.Sprintf("r%d", i), time.Hour, nil), http: client}
		all[i] = f
		running.Go(func() {
			if err := f.follow(ctx); err != nil {
				failed <- fmt.Errorf("client %d: %w", i, err)
			}
		})
	}
	// caughtUp waits until every client has as many announcements as there are.
	caughtUp := func(what string) {
		t.Helper()
		harness.Eventually(t, soon, "all clients have everything "+what, func() error {
			select {
			case err := <-failed:
				t.Fatal(err)
			default:
			}
			rows, err := w.pg.Rows("SELECT count(*) FROM announcements")
			if err != nil {
				return err
			}
			for i, f := range all {
				if got := fmt.Sprint(f.at.Load()); got != rows[0] {
					return fmt.Errorf("client %d has %s of %s", i, got, rows[0])
				}
			}
			return nil
		})
	}
	caughtUp("at first")
	var serial atomic.Int64
	l := start(t, w.pg, 20*time.Millisecond, func(ctx context.Context, tx pgx.Tx) error {
		n := serial.Add(1)
		if n%int64(everyone) == 0 { // every client gets it
			if _, err := tx.Exec(ctx, "INSERT INTO announcements VALUES ($1, 'load')", fmt.Sprintf("load%d", n)); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, "INSERT INTO lists(id, owner_id, name) VALUES ($1, $2, 'load')", fmt.Sprintf("list%d", n), fmt.Sprintf("r%d", n%int64(*followers)))
		return err
	})
	// goOn lets the load go on for a while.
	goOn := func() {
		t.Helper()
		from := l.committed()
		harness.Eventually(t, soon, "the load goes on", func() error {
			if n := l.committed() - from; n < 40 {
				return fmt.Errorf("%d transactions", n)
			}
			return nil
		})
	}
	goOn()
	for _, name := range []string{harness.Evaluator1, harness.Evaluator2, harness.Replicator, harness.Compactor, harness.NATS, harness.BucketStore} {
		w.sluice.Stop(name)
		w.sluice.Start(name)
		harness.Eventually(t, soon, name+" is ready", func() error {
			if name == harness.NATS || name == harness.Compactor {
				return nil // the next step needs the former, and nobody the latter
			}
			ready, err := w.sluice.Ready(name)
			if err == nil {
				err = harness.Equal(ready, true)
			}
			return err
		})
		goOn()
	}
	for i, f := range all {
		if n := f.connects.Load(); n != 1 {
			t.Errorf("client %d connected %d times before any gateway was restarted", i, n)
		}
	}
	// As Kubernetes does it with a surge: the new ones come first.
	for _, name := range second {
		w.sluice.Start(name)
	}
	w.sluice.Balance(second...)
	for _, name := range first {
		w.sluice.Stop(name)
		goOn()
	}
	t.Logf("%d transactions", l.stop())
	caughtUp("in the end")
	for i, f := range all {
		if n := f.connects.Load(); n != 2 {
			t.Errorf("client %d connected %d times, want once more for the restart of its gateway", i, n)
		}
	}
	stop()
	running.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}
