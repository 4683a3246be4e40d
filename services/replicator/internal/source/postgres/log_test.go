package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// TestAskSilentServer: a server of which nothing is heard is asked for an
// answer, so that rare heartbeats do not look like a dead connection.
func TestAskSilentServer(t *testing.T) {
	here, there := net.Pipe()
	l := &logReader{answer: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.report(ctx, nil, here) }()
	defer func() {
		cancel()
		there.Close()
		if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, errClosed) {
			t.Error(err)
		}
	}()
	asks := func() bool {
		var b [39]byte
		if _, err := io.ReadFull(there, b[:]); err != nil {
			t.Fatal(err)
		}
		return b[38] == 1
	}
	if asks() {
		t.Error("asked while nobody listens")
	}
	l.heard.Store(time.Now().Add(-askAfter - time.Second).UnixNano())
	l.reportNow()
	if !asks() {
		t.Error("not asked")
	}
	l.heard.Store(time.Now().UnixNano())
	l.reportNow()
	if asks() {
		t.Error("asked although something was heard just now")
	}
}
