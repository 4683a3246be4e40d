package stream

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/sluicesync/sluice/libs/kit/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, dir string) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{JetStream: true, StoreDir: dir, DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS does not start")
	}
	return s
}

var env = service.Env{Log: slog.New(slog.DiscardHandler), Instance: "test"}

// The stream is a bounded work queue that refuses what is too much, and knows
// a message that it has had.
func TestChanges(t *testing.T) {
	s := start(t, t.TempDir())
	defer s.WaitForShutdown()
	defer s.Shutdown()
	nc, err := Connect("", env, nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := Consumer(ctx, js); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("a consumer without a stream: %v", err)
	}
	for range 2 { // a second time changes nothing
		if _, err := Changes(ctx, js, Options{MaxBytes: 10_000}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Consumer(ctx, js)
	if err != nil {
		t.Fatal(err)
	}
	type streamID int64
	for range 2 {
		if _, err := js.Publish(ctx, ChangesSubject(streamID(7)), make([]byte, 6000), jetstream.WithMsgID("a")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := js.Publish(ctx, ChangesSubject(streamID(7)), make([]byte, 6000)); err == nil {
		t.Error("more than MaxBytes is taken")
	}
	m, err := c.Next(jetstream.FetchMaxWait(5 * time.Second))
	if err != nil || m.Subject() != "sluice.changes.7" {
		t.Fatalf("%v %v", m, err)
	}
	if err := m.DoubleAck(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(ctx, Name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := st.Info(ctx)
	if err != nil || info.State.Msgs != 0 || info.Config.Retention != jetstream.WorkQueuePolicy {
		t.Errorf("after the acknowledgement: %+v %v", info, err)
	}
	if _, err := Changes(ctx, js, Options{MaxBytes: 20_000}); err != nil {
		t.Errorf("a larger bound: %v", err)
	}
}

func TestSubjects(t *testing.T) {
	s := start(t, t.TempDir())
	defer s.WaitForShutdown()
	defer s.Shutdown()
	nc, err := Connect("", env, nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	sub, err := nc.SubscribeSync(AllCheckpoints)
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish(CheckpointSubject(int64(12)), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if m, err := sub.NextMsg(5 * time.Second); err != nil || string(m.Data) != "x" {
		t.Errorf("%v %v", m, err)
	}
}

// A server that is not there is no error: it is waited for. A publish in the
// meantime is.
func TestConnectWithoutServer(t *testing.T) {
	nc, err := Connect("nats://127.0.0.1:1", env)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if nc.IsConnected() {
		t.Error("connected to nobody")
	}
	if err := nc.Publish("x", nil); err == nil {
		t.Error("a publish is kept in memory")
	}
	if _, err := Connect("nats://%zz", env); err == nil {
		t.Error("a bad URL is taken")
	}
}
