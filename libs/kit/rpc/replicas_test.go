package rpc

import (
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
)

// gate is a way to a server that may be shut: then nothing passes, and nobody is
// told.
type gate struct {
	net.Listener
	to string
	wg sync.WaitGroup

	mu    sync.Mutex
	open  *sync.Cond // of mu
	shut  bool       // guarded by mu
	ended bool       // guarded by mu
	conns []net.Conn // guarded by mu
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: lis, to: to}
	g.open = sync.NewCond(&g.mu)
	g.wg.Go(g.accept)
	t.Cleanup(func() {
		lis.Close()
		g.mu.Lock()
		g.ended = true
		for _, c := range g.conns {
			c.Close()
		}
		g.mu.Unlock()
		g.open.Broadcast()
		g.wg.Wait()
	})
	return g
}

func (g *gate) accept() {
	for {
		client, err := g.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", g.to)
		if err != nil {
			client.Close()
			continue
		}
		g.mu.Lock()
		g.conns = append(g.conns, client, server)
		if g.ended {
			client.Close()
			server.Close()
		}
		g.mu.Unlock()
		g.wg.Go(func() { g.pass(client, server) })
		g.wg.Go(func() { g.pass(server, client) })
	}
}

func (g *gate) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		g.mu.Lock()
		for g.shut && !g.ended {
			g.open.Wait()
		}
		g.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	g.shut = shut
	g.mu.Unlock()
	g.open.Broadcast()
}

// TestReplicas: calls go round those that answer. A process that ends is called
// no more, one that is stalled soon no more, and a call to it ends; when they are
// there again they are called again.
func TestReplicas(t *testing.T) {
	var gates []*gate
	var addresses []string
	var stops []func() error
	for range 3 {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, stop := serve(t, lis)
		stops = append(stops, stop)
		g := newGate(t, lis.Addr().String())
		gates, addresses = append(gates, g), append(addresses, g.Addr().String())
	}
	r, err := DialReplicas(strings.Join(addresses, ", "), "", service.Env{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// called returns who answers n calls; those to a silent one may fail.
	called := func(n int, mayFail bool) map[string]int {
		t.Helper()
		by := map[string]int{}
		for range n {
			var p peer.Peer
			var out wrapperspb.StringValue
			err := r.Invoke(t.Context(), "/test.Echo/Call", wrapperspb.String("x"), &out, grpc.WaitForReady(true), grpc.Peer(&p))
			switch {
			case err == nil && out.Value == "x":
				by[p.Addr.String()]++
			case !mayFail || errs.CodeOf(err) != errs.S2003 || !errs.IsRetry(err):
				t.Fatalf("%q, %v", out.Value, err)
			}
		}
		return by
	}
	until := func(what string, processes int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if by := called(3*len(addresses), true); len(by) == processes {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("%s: called are %v", what, by)
			}
		}
	}
	until("at the beginning", 3)
	by := called(30, false)
	for _, n := range by {
		if n != 10 {
			t.Errorf("of 30 calls, each process got %v", by)
			break
		}
	}

	// A stalled one: the stream to it ends, and others are called.
	var streams []grpc.ClientStream
	for range addresses {
		s, err := r.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/test.Echo/Stream")
		if err != nil {
			t.Fatal(err)
		}
		var m wrapperspb.StringValue
		if err := errors.Join(s.SendMsg(wrapperspb.String("hello")), s.RecvMsg(&m)); err != nil || m.Value != "hello" {
			t.Fatalf("%q, %v", m.Value, err)
		}
		streams = append(streams, s)
	}
	gates[0].set(true)
	ended := make(chan error, len(streams))
	for _, s := range streams {
		go func() { ended <- s.RecvMsg(new(wrapperspb.StringValue)) }()
	}
	begin := time.Now()
	if err := <-ended; errs.CodeOf(err) != errs.S2003 || !errs.IsRetry(err) {
		t.Errorf("the stream to a stalled process ends with %v", err)
	}
	t.Logf("a stalled process was noticed after %s", time.Since(begin).Round(time.Millisecond))
	if by := called(10, false); len(by) != 2 || by[addresses[0]] != 0 {
		t.Errorf("called are %v; stalled is %s", by, addresses[0])
	}
	gates[0].set(false)
	until("when it goes on", 3)

	// One that ends. The other two streams are untouched until their servers end.
	if err := stops[1](); err != nil {
		t.Error(err)
	}
	until("one has ended", 2)
	if by := called(10, false); len(by) != 2 || by[addresses[1]] != 0 {
		t.Errorf("called are %v; ended is %s", by, addresses[1])
	}

	// Nobody: a call that does not wait is told soon.
	gates[0].set(true)
	gates[2].set(true)
	for deadline := time.Now().Add(20 * time.Second); ; {
		var out wrapperspb.StringValue
		err := r.Invoke(t.Context(), "/test.Echo/Call", wrapperspb.String("x"), &out)
		if errors.Is(err, error(errNone)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with nobody there a call is told %v", err)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for range len(streams) - 1 {
		if err := <-ended; err == nil {
			t.Error("a stream goes on when the connection is closed")
		}
	}
	gates[0].set(false)
	gates[2].set(false)
	if err := errors.Join(stops[0](), stops[2]()); err != nil {
		t.Error(err)
	}
	if _, err := DialReplicas("nowhere", "", service.Env{}); err == nil {
		t.Error("an address without a port is taken")
	}
}
