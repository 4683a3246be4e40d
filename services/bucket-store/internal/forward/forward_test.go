package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestOwned: a bucket-store may call of others what it passes on, and nothing
// else.
func TestOwned(t *testing.T) {
	for name, roles := range rpc.Access {
		if slices.Contains(roles, certificate.Compactor) && slices.Contains(roles, certificate.NATS) {
			continue // everybody may
		}
		if slices.Contains(roles, certificate.BucketStore) != Owned[name] {
			t.Errorf("%s: forwarded %t, roles %s", name, Owned[name], roles)
		}
	}
	for name := range Owned {
		if rpc.Access[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}
}

// process answers calls with its name.
type process struct {
	pb.UnimplementedAppenderServer
	pb.UnimplementedReplicationServer
	pb.UnimplementedReaderServer
	name   string
	fail   error
	router *Router
	conn   Conn
}

func (p *process) Restart(context.Context, *pb.RestartRequest) (*pb.RestartReply, error) {
	return &pb.RestartReply{Stream: int64(p.name[0])}, p.fail
}

func (p *process) Head(context.Context, *pb.HeadRequest) (*pb.HeadReply, error) {
	return &pb.HeadReply{Run: uint64(p.name[0])}, nil
}

func (p *process) Apply(stream grpc.BidiStreamingServer[pb.ApplyRequest, pb.ApplyReply]) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return p.fail
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&pb.ApplyReply{Id: m.GetId(), Message: p.name}); err != nil {
			return err
		}
	}
}

// start starts a and b, which find one another by name.
func start(t *testing.T, names ...string) map[string]*process {
	t.Helper()
	env := service.Env{Log: slog.New(slog.DiscardHandler)}
	all := map[string]*process{}
	for _, name := range names {
		lis, conn := rpc.Pipe()
		p := &process{name: name, conn: conn}
		p.router = New(func(address string) (Conn, error) {
			if all[address] == nil {
				return nil, errors.New("no such address")
			}
			return shared{all[address].conn}, nil
		})
		all[name] = p
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- rpc.Serve(ctx, lis, env, func(r grpc.ServiceRegistrar) {
				r = p.router.Registrar(r)
				pb.RegisterAppenderServer(r, p)
				pb.RegisterReplicationServer(r, p)
				pb.RegisterReaderServer(r, p)
			})
		}()
		t.Cleanup(func() {
			p.router.Close()
			_ = conn.Close()
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	return all
}

// shared is a connection that others go on using.
type shared struct{ grpc.ClientConnInterface }

func (shared) Close() error { return nil }

func (p *process) restart(t *testing.T) (string, error) {
	t.Helper()
	r, err := pb.NewReplicationClient(p.conn).Restart(t.Context(), &pb.RestartRequest{})
	if err != nil {
		return "", err
	}
	return string(rune(r.GetStream())), nil
}

// TestForward: the owner answers what only it can, everybody the rest.
func TestForward(t *testing.T) {
	all := start(t, "a", "b")
	a, b := all["a"], all["b"]
	b.router.Here(true)
	if err := a.router.There(1, "b"); err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if got, err := p.restart(t); got != "b" || err != nil {
			t.Errorf("%s: answered by %q, %v", p.name, got, err)
		}
		if r, err := pb.NewReaderClient(p.conn).Head(t.Context(), &pb.HeadRequest{}); err != nil || r.GetRun() != uint64(p.name[0]) {
			t.Errorf("%s: a read is answered by %c, %v", p.name, rune(r.GetRun()), err)
		}
		s, err := pb.NewAppenderClient(p.conn).Apply(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for n := range uint64(3) {
			if err := s.Send(&pb.ApplyRequest{Id: n}); err != nil {
				t.Fatal(err)
			}
			if r, err := s.Recv(); err != nil || r.GetId() != n || r.GetMessage() != "b" {
				t.Errorf("%s: %v, %v", p.name, r, err)
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: the end of a stream is %v", p.name, err)
		}
	}
	b.fail = errs.New(errs.S1003, "locked")
	if _, err := a.restart(t); errs.CodeOf(err) != errs.S1003 {
		t.Errorf("the owner's error arrives as %v", err)
	}
	// The owner is here from now on.
	b.router.Here(false)
	a.router.Here(true)
	if got, err := a.restart(t); got != "a" || err != nil {
		t.Errorf("answered by %q, %v", got, err)
	}
}

// TestOnce: of two that each take the other one for the owner, neither sends a
// call back; it waits until its receiver is the owner.
func TestOnce(t *testing.T) {
	all := start(t, "a", "b")
	a, b := all["a"], all["b"]
	if err := errors.Join(a.router.There(1, "b"), b.router.There(1, "a")); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		r, err := a.restart(t)
		if err != nil {
			r = err.Error()
		}
		got <- r
	}()
	b.router.Here(true)
	if r := <-got; r != "b" {
		t.Errorf("answered by %s", r)
	}
}

// TestReplaced: a call to an owner that says nothing ends when there is another
// one, with an error after which to call again.
func TestReplaced(t *testing.T) {
	all := start(t, "a", "b", "c")
	a, c := all["a"], all["c"]
	all["b"].router.Here(true)
	c.router.Here(true)
	if err := a.router.There(1, "b"); err != nil {
		t.Fatal(err)
	}
	s, err := pb.NewAppenderClient(a.conn).Apply(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&pb.ApplyRequest{Id: 1}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Recv(); err != nil || r.GetMessage() != "b" {
		t.Fatalf("%v, %v", r, err)
	}
	if err := a.router.There(2, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); errs.CodeOf(err) != errs.S2003 || !errs.IsRetry(err) {
		t.Errorf("the stream to the former owner ends with %v", err)
	}
	if got, err := a.restart(t); got != "c" || err != nil {
		t.Errorf("answered by %q, %v", got, err)
	}
}
