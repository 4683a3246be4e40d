package harness

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// Neighbours make each of two processes take the other for one of the next version:
// whatever they say to each other, by gRPC and by NATS, arrives with fields that no
// message has today, in every message and in those within it.
type Neighbours struct {
	t testing.TB

	mu   sync.Mutex
	seen map[string]int // methods and subjects, guarded by mu
}

// NewNeighbours returns those of a test.
func NewNeighbours(t testing.TB) *Neighbours { return &Neighbours{t: t, seen: map[string]int{}} }

// Seen returns how many messages of a method ("/sluice.v1.Reader/Head") or of a
// subject were changed on their way.
func (n *Neighbours) Seen(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[name]
}

func (n *Neighbours) see(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen[name]++
}

// future adds what a later version may to an encoded message.
func future(m protoreflect.Message, body []byte) ([]byte, error) {
	if err := proto.Unmarshal(body, m.Interface()); err != nil {
		return nil, err
	}
	add(m)
	return proto.Marshal(m.Interface())
}

func add(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				if f.MapValue().Message() != nil {
					add(v.Message())
				}
				return true
			})
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				add(v.List().Get(i).Message())
			}
		default:
			add(v.Message())
		}
		return true
	})
	var later []byte
	later = protowire.AppendVarint(protowire.AppendTag(later, 1001, protowire.VarintType), 7)
	later = protowire.AppendString(protowire.AppendTag(later, 1002, protowire.BytesType), "of a later version")
	later = protowire.AppendFixed64(protowire.AppendTag(later, 1003, protowire.Fixed64Type), 7)
	m.SetUnknown(append(m.GetUnknown(), later...))
}

// GRPC stands between a service at an address and one that calls it, which shall
// dial what it returns. The methods in unknown are those that the service does not
// have. It ends with the test.
func (n *Neighbours) GRPC(to string, unknown ...string) string {
	n.t.Helper()
	const most = 64 << 20
	conn, err := grpc.NewClient(to, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(frames{}), grpc.MaxCallRecvMsgSize(most), grpc.MaxCallSendMsgSize(most)))
	if err != nil {
		n.t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodec(frames{}), grpc.MaxRecvMsgSize(most), grpc.MaxSendMsgSize(most),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.UnknownServiceHandler(func(_ any, in grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(in)
			if slices.Contains(unknown, method) {
				return status.Errorf(codes.Unimplemented, "unknown method %s", method)
			}
			return n.call(conn, method, in)
		}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(lis); err != nil {
			n.t.Errorf("neighbour of %s: %v", to, err)
		}
	}()
	n.t.Cleanup(func() {
		s.Stop()
		<-done
		conn.Close()
	})
	return lis.Addr().String()
}

// call carries one call, of whatever kind, from in to conn.
func (n *Neighbours) call(conn *grpc.ClientConn, method string, in grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	md, _ := metadata.FromIncomingContext(ctx)
	out, err := conn.NewStream(metadata.NewOutgoingContext(ctx, md), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	var input, output protoreflect.MessageType // nil for what is not ours, as the health service
	if d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(method[1:], "/", "."))); err == nil && d.ParentFile().Package() == pb.File_sluice_v1_model_proto.Package() {
		input, output = n.messageOf(d.(protoreflect.MethodDescriptor).Input()), n.messageOf(d.(protoreflect.MethodDescriptor).Output())
	}
	go func() { // until the call is over, which is when this returns
		if err := n.pump(method, input, in.RecvMsg, out.SendMsg); errors.Is(err, io.EOF) {
			_ = out.CloseSend() // without effect if the call is over
		}
	}()
	err = n.pump(method, output, out.RecvMsg, in.SendMsg)
	cancel()
	in.SetTrailer(out.Trailer())
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (n *Neighbours) messageOf(d protoreflect.MessageDescriptor) protoreflect.MessageType {
	m, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // the package that has the method has it
	}
	return m
}

// pump carries messages until one end fails, and returns that error.
func (n *Neighbours) pump(method string, kind protoreflect.MessageType, from, to func(any) error) error {
	for {
		var body []byte
		if err := from(&body); err != nil {
			return err
		}
		if kind != nil {
			var err error
			if body, err = future(kind.New(), body); err != nil {
				return status.Errorf(codes.Internal, "neighbour at %s: %v", method, err)
			}
			n.see(method)
		}
		if err := to(&body); err != nil {
			return err
		}
	}
}

// frames is a codec that leaves messages as they are.
type frames struct{}

func (frames) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (frames) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}
func (frames) Name() string { return "proto" }

// NATS stands between a NATS server at an address and one that publishes there. It
// ends with the test.
func (n *Neighbours) NATS(to string) string {
	n.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			client, err := lis.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close() // the server is not there yet
				continue
			}
			end := sync.OnceFunc(func() {
				client.Close()
				server.Close()
			})
			unhook := context.AfterFunc(ctx, end)
			wg.Go(func() {
				defer end()
				_, _ = io.Copy(client, server) // its end is that of the connection
			})
			wg.Go(func() {
				defer unhook()
				defer end()
				if err := n.publish(server, bufio.NewReader(client)); err != nil {
					n.t.Errorf("neighbour of NATS: %v", err)
				}
			})
		}
	})
	n.t.Cleanup(func() {
		stop()
		lis.Close()
		wg.Wait()
	})
	return lis.Addr().String()
}

// publish carries what a client says to a NATS server until one of them is gone.
func (n *Neighbours) publish(to io.Writer, from *bufio.Reader) error {
	for {
		line, err := from.ReadString('\n')
		if err != nil {
			return nil
		}
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "PUB" && words[0] != "HPUB" {
			if _, err := io.WriteString(to, line); err != nil {
				return nil
			}
			continue
		}
		size, err := strconv.Atoi(words[len(words)-1])
		if err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		body := make([]byte, size+2) // with its line end
		if _, err := io.ReadFull(from, body); err != nil {
			return nil
		}
		var m proto.Message
		switch subject := words[1]; {
		case strings.HasPrefix(subject, "sluice.changes."):
			m = &pb.ChangeBatch{}
		case strings.HasPrefix(subject, "sluice.checkpoints."):
			m = &pb.CheckpointNotice{}
		}
		if m != nil {
			head := 0
			if words[0] == "HPUB" {
				if head, err = strconv.Atoi(words[len(words)-2]); err != nil {
					return fmt.Errorf("%q: %w", line, err)
				}
			}
			changed, err := future(m.ProtoReflect(), body[head:size])
			if err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			n.see(words[1])
			words[len(words)-1] = strconv.Itoa(head + len(changed))
			line = strings.Join(words, " ") + "\r\n"
			body = append(append(body[:head:head], changed...), "\r\n"...)
		}
		if _, err := io.WriteString(to, line+string(body)); err != nil {
			return nil
		}
	}
}
