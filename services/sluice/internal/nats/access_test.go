package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	gonats "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/sluicesync/sluice/libs/kit/authority"
	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	"github.com/sluicesync/sluice/libs/kit/stream"
	_ "github.com/sluicesync/sluice/proto/sluice/v1" // registers the methods
)

// snippet is what docs/security.md tells to include.
const snippet = "../../../../deploy/nats/roles.conf"

// TestAccess: each method of proto/ has its roles, and no other has.
func TestAccess(t *testing.T) {
	all := map[string]bool{}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				all[fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name())] = true
			}
		}
		return true
	})
	if !all["/sluice.v1.Appender/Apply"] || !all["/grpc.health.v1.Health/Check"] {
		t.Fatalf("methods are missing: %v", all)
	}
	for method := range all {
		if len(rpc.Access[method]) == 0 {
			t.Errorf("%s: nobody may call it", method)
		}
	}
	for method := range rpc.Access {
		if !all[method] {
			t.Errorf("%s is no method", method)
		}
	}
	// What this is all about.
	for method, denied := range map[string]certificate.Role{
		"Appender/Apply": certificate.Gateway, "Replication/OpenSession": certificate.Gateway, "Compaction/Replace": certificate.Gateway,
		"Appender/PreviousRows": certificate.Compactor, "Reader/Ops": certificate.Compactor, "Source/ExecuteSQL": certificate.Evaluator,
	} {
		if slices.Contains(rpc.Access["/sluice.v1."+method], denied) {
			t.Errorf("%s may call %s", denied, method)
		}
	}
}

// lines is a log that is read line by line; what nobody reads is lost.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}

// surroundings are those of a service of a role with a certificate of a.
func surroundings(t *testing.T, a *authority.Authority, r certificate.Role, log *slog.Logger) service.Env {
	t.Helper()
	c, key, err := a.Issue(certificate.Identity(config.DefaultIdentities, r), []string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	k, err := certificate.ForService(config.ServicesTLS{Identities: config.DefaultIdentities, Mutual: config.Mutual{
		CA: config.PEM{Text: string(a.Certificate)}, TLS: config.TLS{Certificate: config.PEM{Text: string(c)}, Key: config.PEM{Text: string(key)}},
	}}, r, log)
	if err != nil {
		t.Fatal(err)
	}
	return service.Env{Log: log, Instance: string(r), TLS: k}
}

func newAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	a, err := authority.New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// embedded is `sluice nats` with TLS.
func embedded(t *testing.T, a *authority.Authority) *server.Server {
	t.Helper()
	s, err := Start(t.TempDir(), "nats://127.0.0.1:"+freePort(t), surroundings(t, a, certificate.NATS, quiet).TLS, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// own is a server of one's own that includes the snippet.
func own(t *testing.T, a *authority.Authority) *server.Server {
	t.Helper()
	dir := t.TempDir()
	c, key, err := a.Issue("", []string{"127.0.0.1"}, time.Hour) // of no role
	if err != nil {
		t.Fatal(err)
	}
	roles, err := os.ReadFile(snippet)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"ca.pem": a.Certificate, "cert.pem": c, "key.pem": key, "roles.conf": roles, "nats.conf": fmt.Appendf(nil, `
listen: "127.0.0.1:-1"
max_payload: 64MB
jetstream { store_dir: %[1]q }
tls { ca_file: "%[1]s/ca.pem", cert_file: "%[1]s/cert.pem", key_file: "%[1]s/key.pem", verify_and_map: true }
include "roles.conf"
`, dir)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	o.NoSigs, o.NoLog = true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(startLimit) {
		t.Fatal("NATS does not start")
	}
	return s
}

// connect connects as a role; refused gets what the server does not allow.
func connect(t *testing.T, s *server.Server, a *authority.Authority, r certificate.Role) (nc *gonats.Conn, refused chan error) {
	t.Helper()
	refused = make(chan error, 16)
	nc, err := stream.Connect(s.ClientURL(), surroundings(t, a, r, quiet), gonats.ErrorHandler(func(_ *gonats.Conn, _ *gonats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, refused
}

// TestRoles: over `sluice nats`, and over a server of one's own with the snippet of
// deploy/nats, each role can do its work and nothing else.
func TestRoles(t *testing.T) {
	want := Settings(config.DefaultIdentities)
	if got, err := os.ReadFile(snippet); err != nil || string(got) != want {
		t.Errorf("%s (%v) should be:\n%s", snippet, err, want)
	}
	for name, start := range map[string]func(*testing.T, *authority.Authority) *server.Server{"embedded": embedded, "own": own} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			s := start(t, a)
			defer Stop(s)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			work(ctx, t, s, a)
			deny(ctx, t, s, a)
		})
	}
}

// work does what each service does.
func work(ctx context.Context, t *testing.T, s *server.Server, a *authority.Authority) {
	replicator, wrong1 := connect(t, s, a, certificate.Replicator)
	evaluator, wrong2 := connect(t, s, a, certificate.Evaluator)
	store, wrong3 := connect(t, s, a, certificate.BucketStore)
	gateway, wrong4 := connect(t, s, a, certificate.Gateway)
	js := func(nc *gonats.Conn) jetstream.JetStream {
		t.Helper()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		return js
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	// The evaluator may be first, and both bring the stream up to date.
	for _, nc := range []*gonats.Conn{evaluator, replicator, evaluator} {
		_, err := stream.Changes(ctx, js(nc), stream.Options{MaxBytes: 1 << 20})
		must("make the stream", err)
	}
	future, err := js(replicator).PublishMsgAsync(&gonats.Msg{Subject: stream.ChangesSubject(int64(1)), Data: []byte("batch")})
	must("publish", err)
	select {
	case <-future.Ok():
	case err := <-future.Err():
		t.Fatal(err)
	case <-ctx.Done():
		t.Fatal("no answer to what is published")
	}
	ack, err := js(replicator).Publish(ctx, stream.ChangesSubject(int64(1)), []byte("batch"))
	must("publish", err)
	str, err := js(replicator).Stream(ctx, stream.Name)
	must("look for the stream", err)
	_, err = str.GetMsg(ctx, ack.Sequence)
	must("look for a message", err)

	for range 2 {
		_, err = stream.Consumer(ctx, js(evaluator))
		must("make the consumer", err)
	}
	c, err := stream.Consumer(ctx, js(evaluator))
	must("make the consumer", err)
	it, err := c.Messages(jetstream.PullMaxMessagesWithBytesLimit(128, 4<<20), jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(time.Second),
		jetstream.WithMessagesErrOnMissingHeartbeat(true))
	must("pull", err)
	for range 2 {
		m, err := it.Next(jetstream.NextContext(ctx))
		must("take a batch", err)
		must("hold it", m.InProgress())
		must("acknowledge it", m.DoubleAck(ctx))
	}
	it.Stop()

	heard := make(chan *gonats.Msg, 1)
	_, err = gateway.ChanSubscribe(stream.CheckpointSubject(int64(1)), heard)
	must("listen for notices", err)
	must("listen for notices", gateway.FlushWithContext(ctx))
	must("publish a notice", store.Publish(stream.CheckpointSubject(int64(1)), []byte("notice")))
	select {
	case m := <-heard:
		if string(m.Data) != "notice" {
			t.Errorf("heard %q", m.Data)
		}
	case <-ctx.Done():
		t.Error("the notice is not heard")
	}
	for i, c := range []chan error{wrong1, wrong2, wrong3, wrong4} {
		select {
		case err := <-c:
			t.Errorf("connection %d: %v", i, err)
		default:
		}
	}
}

// deny tries what a role must not do.
func deny(ctx context.Context, t *testing.T, s *server.Server, a *authority.Authority) {
	replicator, _ := connect(t, s, a, certificate.Replicator)
	js, err := jetstream.New(replicator)
	if err != nil {
		t.Fatal(err)
	}
	str, err := js.Stream(ctx, stream.Name)
	if err != nil {
		t.Fatal(err)
	}
	before, err := str.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	batch := stream.ChangesSubject(int64(1))
	for role, c := range map[certificate.Role]struct{ publish, subscribe []string }{
		certificate.Gateway: {
			[]string{batch, stream.CheckpointSubject(int64(1)), "$JS.API.STREAM.PURGE." + stream.Name, "$JS.API.STREAM.INFO." + stream.Name, "$JS.ACK." + stream.Name + ".evaluators.1.1.1.1.1"},
			[]string{batch, "sluice.>", ">", "_INBOX.>", "_INBOX.rules-evaluator.>", "$JS.>"},
		},
		certificate.BucketStore: {[]string{batch, "$JS.API.STREAM.DELETE." + stream.Name}, []string{batch, "_INBOX.>"}},
		certificate.Replicator: {
			[]string{stream.CheckpointSubject(int64(1)), "$JS.API.STREAM.PURGE." + stream.Name, "$JS.API.STREAM.CREATE.OTHER", "$JS.API.CONSUMER.CREATE." + stream.Name + ".evaluators"},
			[]string{stream.AllCheckpoints, batch, "_INBOX.rules-evaluator.>"},
		},
		certificate.Evaluator: {
			[]string{batch, stream.CheckpointSubject(int64(1)), "$JS.API.STREAM.PURGE." + stream.Name, "$JS.API.CONSUMER.CREATE." + stream.Name + ".other", "$JS.API.CONSUMER.DELETE." + stream.Name + ".evaluators"},
			[]string{batch, "_INBOX.replicator.>"},
		},
	} {
		nc, refused := connect(t, s, a, role)
		denied := func(what string, err error) {
			t.Helper()
			if err == nil {
				err = nc.FlushWithContext(ctx)
			}
			if err != nil {
				t.Fatalf("%s: %s: %v", role, what, err)
			}
			select {
			case err := <-refused:
				if !errors.Is(err, gonats.ErrPermissionViolation) {
					t.Errorf("%s: %s: %v", role, what, err)
				}
			case <-ctx.Done():
				t.Errorf("%s may %s", role, what)
			}
		}
		for _, subject := range c.publish {
			denied("publish to "+subject, nc.Publish(subject, []byte("x")))
		}
		for _, subject := range c.subscribe {
			_, err := nc.SubscribeSync(subject)
			denied("subscribe to "+subject, err)
		}
	}
	after, err := str.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if after.State.LastSeq != before.State.LastSeq {
		t.Errorf("the stream has %d messages more", after.State.LastSeq-before.State.LastSeq)
	}
	// Who is no user of NATS, or of another CA, or shows nothing, is not let in; the
	// log says so.
	for name, c := range map[string]struct {
		env  service.Env
		want string
	}{
		"compactor": {surroundings(t, a, certificate.Compactor, quiet), "Authorization Violation"},
		"stranger":  {surroundings(t, newAuthority(t), certificate.Gateway, quiet), "unknown authority"},
		"nobody":    {service.Env{Log: quiet, Instance: "nobody"}, "unknown authority"},
	} {
		env := c.env
		log := make(lines, 64)
		env.Log = slog.New(slog.NewTextHandler(log, nil))
		nc, err := stream.Connect(s.ClientURL(), env)
		if err != nil {
			t.Errorf("%s: %v", name, err) // it goes on trying
			continue
		}
		select {
		case line := <-log:
			if !strings.Contains(line, "NATS cannot be reached") || !strings.Contains(line, c.want) {
				t.Errorf("%s: want %q, got %s", name, c.want, line)
			}
		case <-ctx.Done():
			t.Errorf("%s: no word of why", name)
		}
		if nc.IsConnected() {
			t.Errorf("%s is connected", name)
		}
		nc.Close()
	}
}

// TestRotation: a running server shows new connections its new certificate and
// believes the new CA, and those that stand go on.
func TestRotation(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	pem := func(name string) config.PEM { return config.PEM{Path: filepath.Join(dir, name)} }
	write := func(a *authority.Authority) {
		t.Helper()
		c, key, err := a.Issue(certificate.Identity(config.DefaultIdentities, certificate.NATS), []string{"127.0.0.1"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string][]byte{"ca": a.Certificate, "certificate": c, "key": key} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(old)
	shown, err := certificate.ForService(config.ServicesTLS{
		Identities: config.DefaultIdentities, Mutual: config.Mutual{CA: pem("ca"), TLS: config.TLS{Certificate: pem("certificate"), Key: pem("key")}},
	}, certificate.NATS, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- shown.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	s, err := Start(t.TempDir(), "nats://127.0.0.1:"+freePort(t), shown, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer Stop(s)
	standing, _ := connect(t, s, old, certificate.Gateway)
	if err := standing.FlushWithContext(ctx); err != nil {
		t.Fatal(err)
	}
	write(next)
	late, _ := connect(t, s, next, certificate.BucketStore) // tries until the server has read its files
	heard, err := standing.SubscribeSync(stream.AllCheckpoints)
	if err != nil {
		t.Fatal(err)
	}
	if connected := late.StatusChanged(gonats.CONNECTED); !late.IsConnected() {
		select {
		case <-connected:
		case <-ctx.Done():
			t.Fatal("no connection by the new CA")
		}
	}
	if err := errors.Join(standing.FlushWithContext(ctx), late.Publish(stream.CheckpointSubject(int64(1)), nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := heard.NextMsgWithContext(ctx); err != nil || standing.Reconnects != 0 {
		t.Errorf("the connection that stood: %v, made anew %d times", err, standing.Reconnects)
	}
	gone, _ := connect(t, s, old, certificate.Gateway)
	if gone.IsConnected() {
		t.Error("a certificate of the old CA is accepted")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	_, port, err := net.SplitHostPort(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
