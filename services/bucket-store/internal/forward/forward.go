// Package forward sends the calls that only the owner of a shared storage can
// answer to the process that is the owner.
//
// Invariants:
//
//   - A caller may call any process. What it is told is the owner's answer, or
//     an error after which to call again (TestForward).
//   - A call is forwarded once: who gets it and is not the owner waits to
//     become it, and forwards it no further (TestOnce).
//   - A call to an owner that is replaced ends (TestReplaced), also if it is
//     stalled.
//
// Whether the caller may make the call is asked before it is forwarded, by the
// process that it is made to; the owner asks whether that one is a bucket-store.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// Owned are the methods that only the owner can answer.
var Owned = map[string]bool{
	"/sluice.v1.Appender/Apply":            true,
	"/sluice.v1.Appender/PreviousRows":     true,
	"/sluice.v1.Replication/OpenSession":   true,
	"/sluice.v1.Replication/RenewLease":    true,
	"/sluice.v1.Replication/CloseSession":  true,
	"/sluice.v1.Replication/ReportError":   true,
	"/sluice.v1.Replication/Restart":       true,
	"/sluice.v1.Replication/Terminate":     true,
	"/sluice.v1.Catalog/Deploy":            true,
	"/sluice.v1.Catalog/Teardown":          true,
	"/sluice.v1.WriteCheckpoints/Create":   true,
	"/sluice.v1.Compaction/Hold":           true,
	"/sluice.v1.Compaction/Release":        true,
	"/sluice.v1.Compaction/Dirtiest":       true,
	"/sluice.v1.Compaction/Replace":        true,
	"/sluice.v1.Compaction/Reemit":         true,
	"/sluice.v1.Compaction/CompactLookups": true,
	"/sluice.v1.Compaction/ExpireRequests": true,
}

// Patience is how long a call waits for an owner.
const Patience = 5 * time.Second

// mark is in the metadata of a call that is forwarded.
const mark = "sluice-forwarded"

// ErrNoOwner is what a call is told that found no owner in time.
var ErrNoOwner = errs.New(errs.S2003, "no bucket-store writes to the storage at present").Retryable()

// errReplaced is what a call is told whose outcome the former owner did not say.
var errReplaced = errs.New(errs.S2003, "another bucket-store has become the one that writes to the storage").Retryable()

// Conn is a connection to another process.
type Conn interface {
	grpc.ClientConnInterface
	io.Closer
}

// Router knows where the owner is. It is safe for concurrent use.
type Router struct {
	dial func(address string) (Conn, error)

	mu      sync.Mutex
	here    bool   // this process is the owner and can answer; guarded by mu
	epoch   uint64 // of the owner that conn leads to; guarded by mu
	conn    Conn   // to the owner, nil if it is not known or here; guarded by mu
	life    context.Context
	end     context.CancelFunc
	changed chan struct{} // closed when any of them changes; guarded by mu
}

// New returns a router that knows of no owner.
func New(dial func(address string) (Conn, error)) *Router {
	return &Router{dial: dial, changed: make(chan struct{})}
}

func (r *Router) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Here says whether this process is the owner and can answer.
func (r *Router) Here(here bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.here != here {
		r.here = here
		r.change()
	}
}

// There says that the owner with that epoch, another process, is at address;
// "" = nobody knows where.
func (r *Router) There(epoch uint64, address string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch == epoch && (r.conn != nil) == (address != "") {
		return nil
	}
	r.drop()
	r.epoch = epoch
	defer r.change()
	if address == "" {
		return nil
	}
	conn, err := r.dial(address)
	if err != nil {
		return fmt.Errorf("connect to the owner of the storage: %w", err)
	}
	r.conn = conn
	r.life, r.end = context.WithCancel(context.Background())
	return nil
}

// drop ends the calls to the former owner. The caller holds mu.
func (r *Router) drop() {
	if r.conn == nil {
		return
	}
	r.end()
	_ = r.conn.Close() // ends its calls, and cannot fail otherwise
	r.conn = nil
}

// Close ends what is forwarded.
func (r *Router) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop()
	r.change()
}

// route is where a call goes: here if conn is nil.
type route struct {
	conn grpc.ClientConnInterface
	life context.Context // of the owner as such
}

// route waits for the owner.
func (r *Router) route(ctx context.Context) (route, error) {
	forwarded := len(metadata.ValueFromIncomingContext(ctx, mark)) > 0
	patience := time.NewTimer(Patience)
	defer patience.Stop()
	for {
		r.mu.Lock()
		here, to, changed := r.here, route{r.conn, r.life}, r.changed
		known := r.conn != nil
		r.mu.Unlock()
		switch {
		case here:
			return route{}, nil
		case known && !forwarded:
			return to, nil
		}
		select {
		case <-changed:
		case <-patience.C:
			return route{}, ErrNoOwner
		case <-ctx.Done():
			return route{}, fmt.Errorf("wait for a bucket-store that writes: %w", ctx.Err())
		}
	}
}

// outgoing is the context of the forwarded call.
func (to route) outgoing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, mark, "1"))
	stop := context.AfterFunc(to.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// failed is what the caller is told of the owner's error.
func (to route) failed(ctx context.Context, err error) error {
	if err != nil && to.life.Err() != nil && ctx.Err() == nil {
		return errReplaced
	}
	return err
}

// Registrar registers services so that calls of Owned go to the owner.
func (r *Router) Registrar(to grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{to, r} }

type registrar struct {
	to grpc.ServiceRegistrar
	*Router
}

// RegisterService registers a service, some methods of which are replaced.
func (r registrar) RegisterService(desc *grpc.ServiceDesc, service any) {
	d := *desc
	d.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range d.Methods {
		m := &d.Methods[i]
		if name := "/" + d.ServiceName + "/" + m.MethodName; Owned[name] {
			m.Handler = r.unary(name, typesOf(d.ServiceName, m.MethodName), m.Handler)
		}
	}
	d.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	for i := range d.Streams {
		s := &d.Streams[i]
		if name := "/" + d.ServiceName + "/" + s.StreamName; Owned[name] {
			s.Handler = r.stream(name, typesOf(d.ServiceName, s.StreamName), *s)
		}
	}
	r.to.RegisterService(&d, service)
}

// types are the messages of a method.
type types struct{ in, out protoreflect.MessageType }

func typesOf(service, method string) types {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		panic(err) // generated code registers what it describes
	}
	m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	return types{typeOf(m.Input()), typeOf(m.Output())}
}

func typeOf(m protoreflect.MessageDescriptor) protoreflect.MessageType {
	t, err := protoregistry.GlobalTypes.FindMessageByName(m.FullName())
	if err != nil {
		panic(err)
	}
	return t
}

func (t types) newIn() proto.Message  { return t.in.New().Interface() }
func (t types) newOut() proto.Message { return t.out.New().Interface() }

func (r *Router) unary(name string, t types, handle grpc.MethodHandler) grpc.MethodHandler {
	return func(service any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		return handle(service, ctx, decode, func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			return intercept(ctx, request, info, func(ctx context.Context, request any) (any, error) {
				to, err := r.route(ctx)
				if err != nil {
					return nil, err
				}
				if to.conn == nil {
					return next(ctx, request)
				}
				out, done := to.outgoing(ctx)
				defer done()
				reply := t.newOut()
				if err := to.failed(ctx, to.conn.Invoke(out, name, request, reply)); err != nil {
					return nil, err
				}
				return reply, nil
			})
		})
	}
}

func (r *Router) stream(name string, t types, desc grpc.StreamDesc) grpc.StreamHandler {
	return func(service any, caller grpc.ServerStream) error {
		to, err := r.route(caller.Context())
		if err != nil {
			return err
		}
		if to.conn == nil {
			return desc.Handler(service, caller)
		}
		out, done := to.outgoing(caller.Context())
		defer done()
		owner, err := to.conn.NewStream(out, &grpc.StreamDesc{StreamName: desc.StreamName, ClientStreams: desc.ClientStreams, ServerStreams: desc.ServerStreams}, name)
		if err != nil {
			return to.failed(caller.Context(), err)
		}
		// Not waited for: RecvMsg returns only after this handler has, and then at
		// once.
		go func() {
			for {
				m := t.newIn()
				if err := caller.RecvMsg(m); err != nil {
					if errors.Is(err, io.EOF) {
						_ = owner.CloseSend() // its failure is RecvMsg's
					} else {
						done()
					}
					return
				}
				if owner.SendMsg(m) != nil {
					return // RecvMsg says why
				}
			}
		}()
		for {
			m := t.newOut()
			switch err := owner.RecvMsg(m); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return to.failed(caller.Context(), err)
			}
			if err := caller.SendMsg(m); err != nil {
				return err
			}
		}
	}
}
