package nats

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gonats "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// A server that listens serves JetStream, keeps its store, and stops with its
// context.
func TestRun(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "nats://" + lis.Addr().String()
	dir := t.TempDir()
	if err := Run(context.Background(), dir, address, nil, quiet); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("on a port that is taken: %v", err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	for round, want := range []uint64{1, 2} {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, dir, address, nil, quiet) }()
		nc, err := gonats.Connect(address, gonats.RetryOnFailedConnect(true), gonats.MaxReconnects(-1), gonats.ReconnectWait(10*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		call, done := context.WithTimeout(context.Background(), 10*time.Second)
		for !nc.IsConnected() {
			if call.Err() != nil {
				t.Fatal("no connection")
			}
			if err := nc.FlushTimeout(100 * time.Millisecond); err != nil && call.Err() != nil {
				t.Fatal(err)
			}
		}
		s, err := js.CreateOrUpdateStream(call, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(call, "s", make([]byte, 9<<20)); err != nil {
			t.Errorf("a large message: %v", err)
		}
		info, err := s.Info(call)
		if err != nil || info.State.Msgs != want {
			t.Errorf("round %d: %+v %v", round, info, err)
		}
		done()
		nc.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nats"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string][2]string{
		"is not nats://host:port": {t.TempDir(), "nowhere"},
		"start NATS":              {dir, ""},
	} {
		if s, err := Start(c[0], c[1], nil, quiet); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
			if s != nil {
				Stop(s)
			}
		}
	}
}
