package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/service"
)

const (
	// resolveEvery is how often names are looked up.
	resolveEvery = 5 * time.Second
	// probeEvery is how often each process is asked for a sign of life, and
	// probeTime how long it may take to give it.
	probeEvery = 500 * time.Millisecond
	probeTime  = 2 * time.Second
)

// Replicas is a connection to all processes of one service: each call goes to
// the next of those that answer. One that is silent, for it is stalled or its
// machine is gone, is called no more, and the calls to it end with an error
// after which to call again. It is safe for concurrent use.
type Replicas struct {
	targets []target
	server  certificate.Role
	env     service.Env
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	members map[string]*member // by address; guarded by mu
	order   []*member          // of them; guarded by mu
	next    int                // guarded by mu
	changed chan struct{}      // closed when a call may find what it did not before; guarded by mu
}

// target is host:port, where host may stand for several addresses.
type target struct{ text, host, port string }

// member is one process.
type member struct {
	conn  *grpc.ClientConn
	leave context.CancelFunc // ends its probes

	// guarded by Replicas.mu
	silent bool
	life   context.Context // ends when it is silent, or leaves
	end    context.CancelFunc
}

// DialReplicas returns a connection to the processes of a role at targets:
// host:port, or several of them with commas between. A host's name may stand for
// several processes, and others later.
func DialReplicas(targets string, server certificate.Role, env service.Env) (*Replicas, error) {
	r := &Replicas{server: server, env: env, members: map[string]*member{}, changed: make(chan struct{})}
	for text := range strings.SplitSeq(targets, ",") {
		text = strings.TrimSpace(text)
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", targets, err)
		}
		r.targets = append(r.targets, target{text, host, port})
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	if !r.named() {
		if err := r.resolve(ctx); err != nil {
			return nil, err
		}
		return r, nil
	}
	r.running.Go(func() {
		tick := time.NewTicker(resolveEvery)
		defer tick.Stop()
		for {
			if err := r.resolve(ctx); err != nil && ctx.Err() == nil {
				env.Log.Warn("a service's addresses cannot be found", "service", server, "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return r, nil
}

// named tells whether there is a name to look up.
func (r *Replicas) named() bool {
	return slices.ContainsFunc(r.targets, func(t target) bool { return net.ParseIP(t.host) == nil })
}

// resolve makes members what the targets stand for now.
func (r *Replicas) resolve(ctx context.Context) error {
	found := map[string]string{} // address -> the name that its certificate is for
	for _, t := range r.targets {
		if net.ParseIP(t.host) != nil {
			found[t.text] = t.text
			continue
		}
		lookup, cancel := context.WithTimeout(ctx, resolveEvery)
		hosts, err := net.DefaultResolver.LookupHost(lookup, t.host)
		cancel()
		if err != nil {
			return fmt.Errorf("look up %s: %w", t.host, err) // all stay as they are
		}
		for _, h := range hosts {
			found[net.JoinHostPort(h, t.port)] = t.text
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	for address, name := range found {
		if r.members[address] != nil {
			continue
		}
		conn, err := dialNamed(address, name, r.server, r.env)
		if err != nil {
			return err
		}
		probes, leave := context.WithCancel(ctx)
		m := &member{conn: conn, leave: leave}
		m.life, m.end = context.WithCancel(context.Background())
		r.members[address] = m
		r.running.Go(func() { r.probe(probes, m) })
	}
	for address, m := range r.members {
		if _, ok := found[address]; !ok {
			delete(r.members, address)
			m.leave() // then probe closes it
		}
	}
	r.order = r.order[:0]
	for _, address := range slices.Sorted(maps.Keys(r.members)) {
		r.order = append(r.order, r.members[address])
	}
	r.change()
	return nil
}

func (r *Replicas) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// probe looks after m until it leaves.
func (r *Replicas) probe(ctx context.Context, m *member) {
	defer m.conn.Close()
	defer func() { m.end() }()
	health := healthpb.NewHealthClient(m.conn)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	go func() { // ends with ctx; until then a call that waits learns of the connection at once
		for state := m.conn.GetState(); m.conn.WaitForStateChange(ctx, state); state = m.conn.GetState() {
			r.mu.Lock()
			r.change()
			r.mu.Unlock()
		}
	}()
	for {
		attempt, cancel := context.WithTimeout(ctx, probeTime)
		_, err := health.Check(attempt, &healthpb.HealthCheckRequest{})
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		if silent := err != nil; silent != m.silent {
			m.silent = silent
			if silent {
				m.end()
			} else {
				m.life, m.end = context.WithCancel(context.Background())
			}
			r.change()
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Close ends the calls that run; none can be made any more.
func (r *Replicas) Close() error {
	r.stop()
	r.mu.Lock()
	r.order = nil
	r.change()
	r.mu.Unlock()
	r.running.Wait()
	return nil
}

// errNone is what a call that does not wait is told.
var errNone = errs.New(errs.S2003, "no process of the service answers").Retryable()

// errSilent is what a call is told whose outcome is not known.
var errSilent = errs.New(errs.S2003, "the process that was called is silent").Retryable()

// pick returns the next process, and its life; nil = a lone one's is no matter:
// there is nobody else to call.
func (r *Replicas) pick(ctx context.Context, wait bool) (*member, context.Context, error) {
	var patience <-chan time.Time
	if !wait {
		t := time.NewTimer(connectTime)
		defer t.Stop()
		patience = t.C
	}
	for {
		r.mu.Lock()
		changed := r.changed
		if len(r.order) == 1 {
			m := r.order[0]
			r.mu.Unlock()
			return m, nil, nil
		}
		for range r.order {
			r.next = (r.next + 1) % len(r.order)
			if m := r.order[r.next]; !m.silent && m.conn.GetState() == connectivity.Ready {
				life := m.life
				r.mu.Unlock()
				return m, life, nil
			}
		}
		r.mu.Unlock()
		select {
		case <-changed:
		case <-patience:
			return nil, nil, errNone
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for a process of %s that answers: %w", r.server, ctx.Err())
		}
	}
}

// waits tells whether a call waits for a process that answers.
func waits(opts []grpc.CallOption) (wait bool) {
	for _, o := range opts {
		if o, ok := o.(grpc.FailFastCallOption); ok {
			wait = !o.FailFast
		}
	}
	return wait
}

// within is ctx, ended with life, and what to do when the call is over.
func within(ctx, life context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if life == nil {
		return ctx, cancel
	}
	stop := context.AfterFunc(life, cancel)
	context.AfterFunc(ctx, func() { stop() })
	return ctx, cancel
}

// told is what the caller whose context is ctx is told of err.
func told(ctx, life context.Context, err error) error {
	if err != nil && !errors.Is(err, io.EOF) && life != nil && life.Err() != nil && ctx.Err() == nil {
		return errSilent
	}
	return err
}

// Invoke makes a unary call.
func (r *Replicas) Invoke(ctx context.Context, method string, request, reply any, opts ...grpc.CallOption) error {
	m, life, err := r.pick(ctx, waits(opts))
	if err != nil {
		return err
	}
	call, done := within(ctx, life)
	defer done()
	return told(ctx, life, m.conn.Invoke(call, method, request, reply, opts...))
}

// NewStream begins a stream.
func (r *Replicas) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	m, life, err := r.pick(ctx, waits(opts))
	if err != nil {
		return nil, err
	}
	call, done := within(ctx, life)
	s, err := m.conn.NewStream(call, desc, method, opts...)
	if err != nil {
		done()
		return nil, told(ctx, life, err)
	}
	return &replicaStream{s, ctx, life, done}, nil
}

type replicaStream struct {
	grpc.ClientStream
	ctx, life context.Context // of the caller, and of the process that is called
	done      context.CancelFunc
}

// RecvMsg ends the stream if it fails.
func (s *replicaStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil {
		err = told(s.ctx, s.life, err)
		s.done()
	}
	return err
}
