package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluicesync/sluice/libs/kit/authority"
	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
)

// known are methods that Access has, of a service that answers with what it gets.
var known = []grpc.ServiceDesc{
	{ServiceName: "sluice.v1.Reader", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Head", Handler: echoed("/sluice.v1.Reader/Head")}}},
	{ServiceName: "sluice.v1.Unknown", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Head", Handler: echoed("/sluice.v1.Unknown/Head")}}},
	{ServiceName: "sluice.v1.Appender", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{StreamName: "Apply", ServerStreams: true, ClientStreams: true, Handler: description.Streams[0].Handler}}},
}

func echoed(method string) grpc.MethodHandler {
	return func(srv any, ctx context.Context, dec func(any) error, in grpc.UnaryServerInterceptor) (any, error) {
		var m wrapperspb.StringValue
		if err := dec(&m); err != nil {
			return nil, err
		}
		return in(ctx, &m, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return &m, nil })
	}
}

// logged is a log that is read while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// secured is the surroundings of a service of a role, with a certificate in files.
func secured(t *testing.T, a *authority.Authority, r certificate.Role) (env service.Env, renew func(), log *logged) {
	t.Helper()
	dir := t.TempDir()
	pem := func(name string) config.PEM { return config.PEM{Path: filepath.Join(dir, name)} }
	from := config.ServicesTLS{Identities: config.DefaultIdentities, Mutual: config.Mutual{CA: pem("ca"), TLS: config.TLS{Certificate: pem("certificate"), Key: pem("key")}}}
	renew = func() {
		c, key, err := a.Issue(certificate.Identity(config.DefaultIdentities, r), []string{"127.0.0.1"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for p, text := range map[config.PEM][]byte{from.CA: a.Certificate, from.Certificate: c, from.Key: key} {
			if err := os.WriteFile(p.Path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	renew()
	log = &logged{}
	k, err := certificate.ForService(from, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return service.Env{Log: slog.New(slog.NewTextHandler(log, nil)), TLS: k}, renew, log
}

// store serves known as bucket-store does.
func store(t *testing.T, a *authority.Authority) (address string, renew func(), log *logged) {
	t.Helper()
	env, renew, log := secured(t, a, certificate.BucketStore)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, lis, env, func(r grpc.ServiceRegistrar) {
			for i := range known {
				r.RegisterService(&known[i], &echo{})
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lis.Addr().String(), renew, log
}

func dial(t *testing.T, address string, server certificate.Role, env service.Env) *grpc.ClientConn {
	t.Helper()
	c, err := Dial(address, server, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func authorityOf(t *testing.T) *authority.Authority {
	t.Helper()
	a, err := authority.New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestAccess: who may call what is decided by the certificate; what is denied
// leaves a line in the log and reaches no handler.
func TestAccess(t *testing.T) {
	a := authorityOf(t)
	address, _, log := store(t, a)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	head := func(method string) func(*grpc.ClientConn) error {
		return func(c *grpc.ClientConn) error {
			return c.Invoke(ctx, method, wrapperspb.String(""), &wrapperspb.StringValue{}, grpc.WaitForReady(true))
		}
	}
	apply := func(c *grpc.ClientConn) error {
		s, err := c.NewStream(ctx, &known[2].Streams[0], "/sluice.v1.Appender/Apply", grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		// io.EOF: the call has ended already, and RecvMsg says why.
		if err := s.SendMsg(wrapperspb.String("x")); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := s.RecvMsg(&wrapperspb.StringValue{}); err != nil {
			return err
		}
		return s.CloseSend()
	}
	for _, role := range certificate.Roles {
		env, _, _ := secured(t, a, role)
		c := dial(t, address, certificate.BucketStore, env)
		for name, call := range map[string]struct {
			of  []certificate.Role
			try func(*grpc.ClientConn) error
		}{
			"/sluice.v1.Reader/Head":    {[]certificate.Role{certificate.Gateway}, head("/sluice.v1.Reader/Head")},
			"/sluice.v1.Unknown/Head":   {nil, head("/sluice.v1.Unknown/Head")},
			"/sluice.v1.Appender/Apply": {[]certificate.Role{certificate.Evaluator, certificate.BucketStore}, apply},
			"health":                    {certificate.Roles, head("/grpc.health.v1.Health/Check")},
		} {
			err := call.try(c)
			if slices.Contains(call.of, role) {
				if err != nil {
					t.Errorf("%s calls %s: %v", role, name, err)
				}
				continue
			}
			if errs.CodeOf(err) != errs.S9011 || errs.IsRetry(err) || status.Code(errors.Unwrap(err)) != codes.PermissionDenied {
				t.Errorf("%s calls %s: %v", role, name, err)
			}
			line := fmt.Sprintf(`level=WARN msg=audit action="call denied" method=%s role=%s identity=[spiffe://sluice/%s]`, name, role, role)
			if !strings.Contains(log.String(), line) {
				t.Errorf("the log has no line %s:\n%s", line, log)
			}
		}
	}
}

// A server or a client that is not what it should be gets no call through, and
// the caller's log can say why.
func TestStrangers(t *testing.T) {
	a, other := authorityOf(t), authorityOf(t)
	address, _, _ := store(t, a)
	ours, _, _ := secured(t, a, certificate.Gateway)
	theirs, _, _ := secured(t, other, certificate.Gateway)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for want, c := range map[string]*grpc.ClientConn{
		"unknown authority": dial(t, address, certificate.BucketStore, theirs),
		"this is not replicator: the certificate is of role bucket-store": dial(t, address, certificate.Replicator, ours),
		"but wanted to match localhost":                                   dial(t, strings.Replace(address, "127.0.0.1", "localhost", 1), certificate.BucketStore, ours),
		"error reading server preface":                                    dial(t, address, certificate.BucketStore, service.Env{}),
	} {
		err := c.Invoke(ctx, "/sluice.v1.Reader/Head", wrapperspb.String("x"), &wrapperspb.StringValue{})
		if errs.CodeOf(err) != errs.S2003 || !strings.Contains(errs.Cause(err), want) {
			t.Errorf("want %q, got %v", want, errs.Cause(err))
		}
	}
}

// TestRotation: a renewed certificate is shown to new connections, and a stream
// that runs goes on.
func TestRotation(t *testing.T) {
	a := authorityOf(t)
	address, renew, _ := store(t, a)
	env, renewOwn, _ := secured(t, a, certificate.Evaluator)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	running := dial(t, address, certificate.BucketStore, env)
	s, err := running.NewStream(ctx, &known[2].Streams[0], "/sluice.v1.Appender/Apply", grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() {
		t.Helper()
		var m wrapperspb.StringValue
		if err := errors.Join(s.SendMsg(wrapperspb.String("x")), s.RecvMsg(&m)); err != nil || m.Value != "x" {
			t.Fatal(err)
		}
	}
	exchange()
	serial := func() string {
		t.Helper()
		var p peer.Peer
		c, err := Dial(address, certificate.BucketStore, env)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Invoke(ctx, "/grpc.health.v1.Health/Check", wrapperspb.String(""), &wrapperspb.StringValue{}, grpc.WaitForReady(true), grpc.Peer(&p)); err != nil {
			t.Fatal(err)
		}
		return p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].SerialNumber.String()
	}
	own := func() string {
		t.Helper()
		pair, err := env.TLS.Pair()
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	before, ownBefore := serial(), own()
	renew()
	renewOwn()
	for serial() == before || own() == ownBefore {
		exchange()
		if ctx.Err() != nil {
			t.Fatal("the renewed certificates are not shown")
		}
	}
	exchange()
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
}
