package publish

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/stream"
	"github.com/sluicesync/sluice/libs/model"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).Start.func1"))
}

func publisher(t *testing.T, o stream.Options) (*Publisher, jetstream.JetStream) {
	t.Helper()
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS does not start")
	}
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	nc, err := nats.Connect(ns.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1<<16))
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPublisher(context.Background(), js, o, 7, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p, js
}

// running runs p until the test ends; the channel has Run's error.
func running(t *testing.T, p *Publisher) <-chan error {
	ctx, cancel := context.WithCancel(context.Background())
	errc, done := make(chan error, 1), make(chan struct{})
	go func() { defer close(done); errc <- p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return errc
}

func cursor(n int) model.Cursor { return model.Cursor{Position: position(n)} }

// TestBackpressure: what is under way is bounded, whether JetStream refuses it
// or the ledger does not come after; it goes on when there is room.
func TestBackpressure(t *testing.T) {
	p, js := publisher(t, stream.Options{MaxBytes: 1 << 20, Storage: jetstream.MemoryStorage})
	running(t, p)
	ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
	defer cancel()
	n := 0
	for ; p.Wait(ctx) == nil; n++ {
		p.send(messageID(7, 1, cursor(n)), cursor(n), make([]byte, 100<<10), 0, nil)
	}
	if _, bytes := p.InFlight(); bytes > maxUnackedBytes+1<<20 || n < 10 {
		t.Fatalf("%d messages, %d bytes in flight", n, bytes)
	}
	c, err := stream.Consumer(context.Background(), js)
	if err != nil {
		t.Fatal(err)
	}
	for got := 0; got < n; got++ {
		m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", got, n, err)
		}
		if err := m.DoubleAck(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	p.Committed(cursor(n))
	if messages, bytes := p.InFlight(); messages != 0 || bytes != 0 {
		t.Errorf("%d messages, %d bytes are left", messages, bytes)
	}
	if err := p.Wait(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestLostWhenTaken: a message that was acknowledged and is never committed is
// missed; one that still waits is not.
func TestLostWhenTaken(t *testing.T) {
	p, js := publisher(t, stream.Options{Storage: jetstream.MemoryStorage})
	var progress atomic.Int32
	p.progress = func() { progress.Add(1) }
	var beat atomic.Int64
	p.published = func(at model.Micros) { beat.Store(int64(at)) }
	errc := running(t, p)
	p.Committed(cursor(0))
	p.send("1", cursor(1), []byte("x"), 9, nil)
	select {
	case err := <-errc:
		t.Fatalf("lost while it waits in JetStream: %v", err)
	case <-time.After(patience + 2*checkInterval):
	}
	c, err := stream.Consumer(context.Background(), js)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(context.Background()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-errc:
		if !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not missed")
	}
	if progress.Load() == 0 {
		t.Error("no progress was told of")
	}
	if beat.Load() != 9 || !p.acknowledged() {
		t.Errorf("acknowledged: %v, heartbeat %d", p.acknowledged(), beat.Load())
	}
}

// TestLostWhenStreamGone: so is the whole stream.
func TestLostWhenStreamGone(t *testing.T) {
	p, js := publisher(t, stream.Options{Storage: jetstream.MemoryStorage})
	errc := running(t, p)
	if err := js.DeleteStream(context.Background(), stream.Name); err != nil {
		t.Fatal(err)
	}
	p.send("1", cursor(1), []byte("x"), 0, nil)
	select {
	case err := <-errc:
		if !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not missed")
	}
}
