// Package rpc is how services serve and call gRPC: one set of limits, keepalive
// and error mapping for both ends, over TCP or within a process.
//
// Invariants:
//
//   - An errs.Error that a handler returns arrives at the caller as an
//     errs.Error with the same code, for unary calls and streams alike
//     (TestErrorCrosses).
//   - Serve returns only when no handler runs any more (TestServeStops).
//   - A handler that panics costs its own call only (TestPanic).
//   - A call made within a trace is part of it at both ends (TestTrace).
//   - Streams mean the same over TCP and within a process (TestStreams,
//     TestChaos).
//   - Of several processes of a service those that answer are called, and a
//     call to one that is silent ends (TestReplicas).
//   - With TLS each call is by a role that may make it, and one that may not
//     reaches no handler (TestAccess).
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc/local"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/trace"
)

const (
	// MaxMessage bounds one message in either direction.
	MaxMessage = 64 << 20
	// drainTime is how long Serve waits for running calls before it cuts them.
	drainTime = 5 * time.Second
	// pingInterval is when a peer that is silent is asked for a sign of life, and
	// how long it may take to give it. Of clients, gRPC makes the former 10 s.
	pingInterval = 5 * time.Second
	window       = 4 << 20
	// connectTime is how long a call that does not wait for ready waits for a
	// server that is about to begin.
	connectTime = time.Second
)

// server is what Serve asks of grpc.Server and of local.Server.
type server interface {
	grpc.ServiceRegistrar
	Serve(net.Listener) error
	GracefulStop()
	Stop() // ends what runs
}

// Serve serves what register registers on lis until ctx ends, then lets running
// calls end (their contexts are cancelled after 5 s) and returns nil. It owns
// lis. The standard health service answers SERVING.
func Serve(ctx context.Context, lis net.Listener, env service.Env, register func(grpc.ServiceRegistrar)) error {
	s := newServer(lis, env)
	register(s)
	h := health.NewServer()
	healthpb.RegisterHealthServer(s, h)
	done := make(chan error, 1) // one value: Serve's
	go func() { done <- s.Serve(lis) }()
	select {
	case err := <-done:
		s.Stop()
		return fmt.Errorf("serve %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	h.Shutdown()
	cut := time.AfterFunc(drainTime, s.Stop)
	s.GracefulStop()
	cut.Stop()
	if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
		return fmt.Errorf("serve %s: %w", lis.Addr(), err)
	}
	return nil
}

func newServer(lis net.Listener, env service.Env) server {
	if _, ok := lis.(*local.Listener); ok {
		env.TLS = nil // whoever has the other end was handed it
		return local.NewServer(unaryServer(env), streamServer(env))
	}
	return grpc.NewServer(
		grpc.Creds(serverCredentials(env)),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(2*window),
		grpc.ReadBufferSize(128<<10),
		grpc.WriteBufferSize(128<<10),
		grpc.MaxConcurrentStreams(100_000),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingInterval, Timeout: pingInterval}),
		grpc.UnaryInterceptor(unaryServer(env)),
		grpc.StreamInterceptor(streamServer(env)),
		grpc.WaitForHandlers(true),
	)
}

// Dial returns a connection to the service of a role at target (host:port)
// without waiting for it: a server that is not there yet is tried again at least
// once a second. Calls made with grpc.WaitForReady(true) wait for it.
func Dial(target string, server certificate.Role, env service.Env) (*grpc.ClientConn, error) {
	return dialNamed(target, target, server, env)
}

// DialPeer is Dial for another process of the caller's own service: its
// certificate is for the names that the caller's is for, whatever its address.
func DialPeer(target string, env service.Env) (*grpc.ClientConn, error) {
	if env.TLS == nil {
		return dialNamed(target, target, "", env)
	}
	name := target
	if pair, err := env.TLS.Pair(); err == nil && len(pair.Leaf.DNSNames) > 0 {
		name = pair.Leaf.DNSNames[0]
	}
	return dialNamed(target, name, env.TLS.Role(), env)
}

// dialNamed connects to target, whose certificate is for the host of name.
func dialNamed(target, name string, server certificate.Role, env service.Env) (*grpc.ClientConn, error) {
	c, err := grpc.NewClient(target, append(options(), grpc.WithAuthority(name), grpc.WithTransportCredentials(clientCredentials(server, env)))...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", target, err)
	}
	return c, nil
}

// Pipe returns the two ends of a connection within the process: calls reach the
// handlers that Serve serves on lis without a network. lis is served once.
func Pipe() (net.Listener, *local.Conn) {
	return local.Pipe(local.Options{MaxMessage: MaxMessage, Window: window, Connect: connectTime, Unary: unaryClient, Stream: streamClient})
}

func options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingInterval, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: connectTime,
		}),
		grpc.WithInitialWindowSize(window),
		grpc.WithInitialConnWindowSize(2 * window),
		grpc.WithReadBufferSize(128 << 10),
		grpc.WithWriteBufferSize(128 << 10),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithUnaryInterceptor(unaryClient),
		grpc.WithStreamInterceptor(streamClient),
	}
}

func unaryServer(env service.Env) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (_ any, err error) {
		if env.Trace != nil {
			if parent := metadata.ValueFromIncomingContext(ctx, trace.Header); len(parent) == 1 {
				s := span(env.Trace.Child(parent[0], info.FullMethod[1:], trace.Server), info.FullMethod)
				ctx = s.In(ctx)
				defer func() {
					s.Error(err)
					s.End()
				}()
			}
		}
		defer recovered(env.Log, info.FullMethod, &err)
		if err := admit(ctx, env, info.FullMethod); err != nil {
			return nil, errs.ToGRPC(err)
		}
		resp, err := next(ctx, req)
		return resp, errs.ToGRPC(err)
	}
}

// span says of s what call it is of. Calls that are not part of a trace have no
// span, and streams never: they live as long as the processes at their ends, and
// what they carry names its trace itself.
func span(s *trace.Span, method string) *trace.Span {
	if s != nil {
		service, name, _ := strings.Cut(method[1:], "/")
		s.Text("rpc.system", "grpc")
		s.Text("rpc.service", service)
		s.Text("rpc.method", name)
	}
	return s
}

func streamServer(env service.Env) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		defer recovered(env.Log, info.FullMethod, &err)
		if err := admit(ss.Context(), env, info.FullMethod); err != nil {
			return errs.ToGRPC(err)
		}
		return errs.ToGRPC(next(srv, ss))
	}
}

// recovered turns a panic, which is a bug in one handler, into that call's
// error.
func recovered(log *slog.Logger, method string, err *error) {
	if r := recover(); r != nil {
		log.Error("panic in gRPC handler", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = errs.ToGRPC(errs.New(errs.S0001, "internal error in %s", method))
	}
}

func unaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if within := trace.From(ctx); within != nil {
		s := span(within.Child(method[1:], trace.Client), method)
		ctx = metadata.AppendToOutgoingContext(ctx, trace.Header, s.Traceparent())
		err := errs.FromGRPC(invoke(ctx, method, req, reply, cc, opts...))
		s.Error(err)
		s.End()
		return err
	}
	return errs.FromGRPC(invoke(ctx, method, req, reply, cc, opts...))
}

func streamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, errs.FromGRPC(err)
	}
	return clientStream{s}, nil
}

type clientStream struct{ grpc.ClientStream }

func (s clientStream) RecvMsg(m any) error { return errs.FromGRPC(s.ClientStream.RecvMsg(m)) }
func (s clientStream) SendMsg(m any) error { return errs.FromGRPC(s.ClientStream.SendMsg(m)) }
