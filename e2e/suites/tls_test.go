package suites

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluicesync/sluice/e2e/harness"
	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
	"github.com/sluicesync/sluice/libs/kit/rpc"
	"github.com/sluicesync/sluice/libs/kit/service"
	kitstream "github.com/sluicesync/sluice/libs/kit/stream"
	pb "github.com/sluicesync/sluice/proto/sluice/v1"
)

// TestMutualTLS: with TLS between the services all works, strangers and wrong
// roles get nowhere, and certificates and the CA are replaced under a running
// stream without its noticing.
func TestMutualTLS(t *testing.T) {
	w := newWorld(t, harness.Suite, "", func(o *harness.Options) { o.TLS, o.Replicas = true, 1 })
	user := w.user()
	c := w.client(t, user)
	c.FirstSync(soon)
	write := func(what string) {
		t.Helper()
		w.pg.Exec("INSERT INTO lists(id, owner_id, name) VALUES ($1, $2, 'tls')", what, user)
		harness.Converged(t, w.pg, soon, lists(c, user))
	}
	write("sync")
	c.Execute(harness.Statement{SQL: "INSERT INTO lists(id, owner_id, name, n) VALUES ('own', ?, 'mine', 1)", Args: []any{user}})
	harness.Converged(t, w.pg, soon, lists(c, user))
	if out, err := w.sluice.CLI("compact"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}

	strangers(t, w)
	connects := c.Stats().Connects
	rotate(t, w, write)
	if again := c.Stats().Connects; again != connects {
		t.Errorf("the client connected %d more times while certificates were replaced", again-connects)
	}
	// A gateway connects to all that has gone on running, by the new CA alone.
	w.sluice.Stop(harness.Gateway1)
	w.sluice.Start(harness.Gateway1)
	write("restarted")
	c.Sound()
	c.Close()
}

// as is the surroundings of a process of a role with a certificate of a folder.
func as(t *testing.T, folder string, r certificate.Role) service.Env {
	t.Helper()
	pem := func(name string) config.PEM { return config.PEM{Path: filepath.Join(folder, name)} }
	k, err := certificate.ForService(config.ServicesTLS{Identities: config.DefaultIdentities, Mutual: config.Mutual{
		CA: pem("ca.pem"), TLS: config.TLS{Certificate: pem(string(r) + ".pem"), Key: pem(string(r) + "-key.pem")},
	}}, r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return service.Env{Log: slog.New(slog.DiscardHandler), Instance: "stranger", TLS: k}
}

func strangers(t *testing.T, w *world) {
	folder, other := w.sluice.Certificates(), filepath.Join(t.TempDir(), "other")
	if out, err := w.sluice.CLI("certificates", other); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	address := w.sluice.Setting("sluice.bucket_store.address")
	head := func(env service.Env) error {
		t.Helper()
		conn, err := rpc.Dial(address, certificate.BucketStore, env)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = pb.NewReaderClient(conn).Head(ctx, &pb.HeadRequest{Stream: 1})
		return err
	}
	if err := head(as(t, folder, certificate.Gateway)); err != nil {
		t.Errorf("a gateway: %v", err)
	}
	if err := head(as(t, folder, certificate.Compactor)); errs.CodeOf(err) != errs.S9011 {
		t.Errorf("the compactor reads as a gateway: %v", err)
	}
	if log := w.sluice.Log(harness.BucketStore); !strings.Contains(log, "call denied") || !strings.Contains(log, "spiffe://sluice/compactor") {
		t.Error("bucket-store's log does not say that the compactor was denied")
	}
	if err := head(as(t, other, certificate.Gateway)); errs.CodeOf(err) != errs.S2003 || !strings.Contains(errs.Cause(err), "unknown authority") {
		t.Errorf("a gateway of another CA: %v", errs.Cause(err))
	}
	if err := head(service.Env{}); errs.CodeOf(err) != errs.S2003 {
		t.Errorf("without TLS: %v", err)
	}
	refused := make(chan error, 1)
	nc, err := kitstream.Connect(w.sluice.Setting("sluice.nats.url"), as(t, folder, certificate.Gateway), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := errors.Join(nc.Publish(kitstream.ChangesSubject(int64(1)), []byte("x")), nc.FlushWithContext(ctx)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-refused:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("a gateway may publish changes")
	}
}

// rotate replaces the certificates, then the CA with both overlapping.
func rotate(t *testing.T, w *world, write func(string)) {
	names := w.sluice.Running()
	if !slices.Contains(names, harness.NATS) || len(names) != 6 {
		t.Fatalf("running: %v", names)
	}
	read := func(what string, change func()) {
		t.Helper()
		const line = "TLS certificate read"
		before := map[string]int{}
		for _, n := range names {
			before[n] = strings.Count(w.sluice.Log(n), line)
		}
		change()
		harness.Eventually(t, soon, what+" is read", func() error {
			for _, n := range names {
				if strings.Count(w.sluice.Log(n), line) == before[n] {
					return fmt.Errorf("not by %s", n)
				}
			}
			return nil
		})
		write(what)
	}
	issue := func(args ...string) func() {
		return func() {
			t.Helper()
			if out, err := w.sluice.CLI(append([]string{"certificates", w.sluice.Certificates()}, args...)...); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	}
	read("renewed", issue("--days", "1"))
	for _, n := range names {
		if n == harness.NATS {
			continue // has no metrics
		}
		if at, err := w.sluice.Metric(n, "sluice_certificate_expiry_timestamp_seconds"); err != nil || time.Until(time.Unix(int64(at), 0)) > 25*time.Hour {
			t.Errorf("%s: the certificate expires at %v, %v", n, at, err)
		}
	}
	read("both CAs", issue("--new-ca"))
	read("by the new CA", issue())
	read("new CA alone", func() {
		t.Helper()
		file := filepath.Join(w.sluice.Certificates(), "ca.pem")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		end := []byte("-----END CERTIFICATE-----\n")
		if n := bytes.Count(text, end); n != 2 {
			t.Fatalf("%d CAs", n)
		}
		if err := os.WriteFile(file, text[:bytes.Index(text, end)+len(end)], 0o600); err != nil {
			t.Fatal(err)
		}
	})
}
