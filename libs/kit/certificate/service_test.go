package certificate

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicesync/sluice/libs/kit/authority"
	"github.com/sluicesync/sluice/libs/kit/config"
	"github.com/sluicesync/sluice/libs/kit/errs"
)

func newCA(t *testing.T) *authority.Authority {
	t.Helper()
	a, err := authority.New("test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// files are a service's; what is not given stays as it is.
type files struct {
	t   *testing.T
	dir string
}

func (f files) write(ca, certificate, key []byte) {
	f.t.Helper()
	for name, text := range map[string][]byte{"ca": ca, "certificate": certificate, "key": key} {
		if text != nil {
			if err := os.WriteFile(filepath.Join(f.dir, name), text, 0o600); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

func (f files) config() config.ServicesTLS {
	pem := func(name string) config.PEM { return config.PEM{Path: filepath.Join(f.dir, name)} }
	return config.ServicesTLS{
		Mutual:     config.Mutual{CA: pem("ca"), TLS: config.TLS{Certificate: pem("certificate"), Key: pem("key")}},
		Identities: config.DefaultIdentities,
	}
}

// issue is Authority.Issue for tests, of a role that is at localhost.
func issue(t *testing.T, a *authority.Authority, identity string) (certificate, key []byte) {
	t.Helper()
	c, k, err := a.Issue(identity, []string{"localhost"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return c, k
}

func identity(r Role) string { return Identity(config.DefaultIdentities, r) }

// keeper is of a role, with a certificate of a, which it trusts.
func keeper(t *testing.T, a *authority.Authority, r Role) (*Keeper, files) {
	t.Helper()
	f := files{t, t.TempDir()}
	certificate, key := issue(t, a, identity(r))
	f.write(a.Certificate, certificate, key)
	k, err := ForService(f.config(), r, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k, f
}

// meet connects two ends and returns why they do not get on. It sends a byte each
// way, since a client does not hear otherwise that its certificate was refused.
func meet(t *testing.T, server, client *tls.Config) (asServer, asClient error) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	talk := func(conn net.Conn) error {
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	done := make(chan error, 1)
	go func() {
		conn, err := lis.Accept()
		if err == nil {
			err = talk(tls.Server(conn, server))
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	asClient = talk(tls.Client(conn, client))
	return <-done, asClient
}

func (k *Keeper) dials(server Role, name string) *tls.Config {
	c := k.Client(server)
	c.ServerName = name
	return c
}

// TestMutual: both ends are known, by CA, name and role, or there is no
// connection.
func TestMutual(t *testing.T) {
	ours, theirs := newCA(t), newCA(t)
	store, _ := keeper(t, ours, BucketStore)
	gateway, _ := keeper(t, ours, Gateway)
	stranger, _ := keeper(t, theirs, Gateway)
	foreign, _ := keeper(t, theirs, BucketStore)
	// A NATS server of one's own has a certificate of no role.
	plain, key := issue(t, ours, "")
	pair, err := tls.X509KeyPair(plain, key)
	if err != nil {
		t.Fatal(err)
	}
	external := store.server()
	external.Certificates = []tls.Certificate{pair}
	bare := gateway.dials(BucketStore, "localhost")
	bare.Certificates = nil
	for name, c := range map[string]struct {
		server, client *tls.Config
		asServer       string // "" = they get on
		asClient       string
	}{
		"both known":         {store.Server(), gateway.dials(BucketStore, "localhost"), "", ""},
		"NATS, none of ours": {external, gateway.dials(NATS, "localhost"), "", ""},
		"client's CA":        {store.Server(), stranger.dials(BucketStore, "localhost"), "remote error: tls", "unknown authority"},
		"server's CA":        {foreign.Server(), gateway.dials(BucketStore, "localhost"), "remote error: tls", "unknown authority"},
		"no certificate":     {store.Server(), bare, "didn't provide a certificate", "certificate required"},
		"another name":       {store.Server(), gateway.dials(BucketStore, "db.example"), "remote error: tls", "valid for localhost, not db.example"},
		"a gateway's, as a store's": {gateway.Server(), gateway.dials(BucketStore, "localhost"), "remote error: tls",
			"this is not bucket-store: the certificate is of role sync-gateway"},
		"a gateway's, as NATS's": {gateway.Server(), gateway.dials(NATS, "localhost"), "remote error: tls", "this is not nats"},
		"of no role":             {external, gateway.dials(BucketStore, "localhost"), "remote error: tls", "the certificate is of role none"},
	} {
		asServer, asClient := meet(t, c.server, c.client)
		for _, e := range []struct {
			end  string
			err  error
			want string
		}{{"server", asServer, c.asServer}, {"client", asClient, c.asClient}} {
			if (e.want == "") != (e.err == nil) || e.err != nil && !strings.Contains(e.err.Error(), e.want) {
				t.Errorf("%s: the %s wants %q, got %v", name, e.end, e.want, e.err)
			}
		}
	}
	// Only the client's CA, which the server does not know, is wrong.
	foreignClient := stranger.dials(BucketStore, "localhost")
	foreignClient.RootCAs = gateway.Client(BucketStore).RootCAs
	if asServer, _ := meet(t, store.Server(), foreignClient); asServer == nil || !strings.Contains(asServer.Error(), "unknown authority") {
		t.Errorf("a client of another CA: %v", asServer)
	}
}

// TestRotation changes the CA while two services talk: at each step one has read
// its files and the other has not, and new connections are made both ways.
func TestRotation(t *testing.T) {
	old, next := newCA(t), newCA(t)
	a, aFiles := keeper(t, old, BucketStore)
	b, bFiles := keeper(t, old, Replicator)
	both := append(append([]byte{}, next.Certificate...), old.Certificate...)
	aServer, bServer := a.Server(), b.Server() // of servers that are not restarted
	talk := func(step string) {
		t.Helper()
		if asServer, asClient := meet(t, aServer, b.dials(BucketStore, "localhost")); asServer != nil || asClient != nil {
			t.Errorf("%s: b to a: %v, %v", step, asServer, asClient)
		}
		if asServer, asClient := meet(t, bServer, a.dials(Replicator, "localhost")); asServer != nil || asClient != nil {
			t.Errorf("%s: a to b: %v, %v", step, asServer, asClient)
		}
	}
	read := func(k *Keeper) {
		t.Helper()
		if err := k.read(); err != nil {
			t.Fatal(err)
		}
	}
	retired := a.dials(Replicator, "localhost")
	aCertificate, aKey := issue(t, next, identity(BucketStore))
	bCertificate, bKey := issue(t, next, identity(Replicator))
	for _, step := range []struct {
		name string
		ca   []byte
		a, b [2][]byte
	}{
		{name: "both CAs", ca: both},
		{name: "certificates of the new CA", a: [2][]byte{aCertificate, aKey}, b: [2][]byte{bCertificate, bKey}},
		{name: "the new CA alone", ca: next.Certificate},
	} {
		aFiles.write(step.ca, step.a[0], step.a[1])
		bFiles.write(step.ca, step.b[0], step.b[1])
		read(a)
		talk(step.name + ", half way")
		read(b)
		talk(step.name)
	}
	if asServer, _ := meet(t, bServer, retired); asServer == nil {
		t.Error("a certificate of the CA that was taken away is accepted")
	}
}

// TestForService: what others would refuse, or is not there, is said at the start,
// with a code and without the key.
func TestForService(t *testing.T) {
	if k, err := ForService(config.ServicesTLS{}, Gateway, slog.New(slog.DiscardHandler)); k != nil || err != nil {
		t.Errorf("without: %v %v", k, err)
	}
	a := newCA(t)
	certificate, key := issue(t, a, identity(Gateway))
	_, other := issue(t, a, identity(Gateway))
	expired, expiredKey, err := a.Issue(identity(Gateway), nil, -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	unnamed, unnamedKey := issue(t, a, "")
	text := func(ca, certificate, key []byte) config.ServicesTLS {
		return config.ServicesTLS{Identities: config.DefaultIdentities, Mutual: config.Mutual{
			CA: config.PEM{Text: string(ca)}, TLS: config.TLS{Certificate: config.PEM{Text: string(certificate)}, Key: config.PEM{Text: string(key)}},
		}}
	}
	gone := text(a.Certificate, certificate, key)
	gone.Key = config.PEM{Path: "/nowhere/key.pem"}
	elsewhere := text(a.Certificate, certificate, key)
	elsewhere.Identities = "spiffe://other/"
	for want, c := range map[string]struct {
		from config.ServicesTLS
		role Role
	}{
		"there is no ca":                            {text(nil, certificate, key), Gateway},
		"there is no certificate":                   {text(a.Certificate, nil, nil), Gateway},
		"open /nowhere/key.pem: no such file":       {gone, Gateway},
		"private key does not match public key":     {text(a.Certificate, certificate, other), Gateway},
		"there is no certificate in the CA":         {text(key, certificate, key), Gateway},
		"the certificate has expired at":            {text(a.Certificate, expired, expiredKey), Gateway},
		"its only URI must be spiffe://sluice/nats": {text(a.Certificate, certificate, key), NATS},
		"must be spiffe://sluice/sync-gateway":      {text(a.Certificate, unnamed, unnamedKey), Gateway},
		"must be spiffe://other/sync-gateway":       {elsewhere, Gateway},
	} {
		_, err := ForService(c.from, c.role, slog.New(slog.DiscardHandler))
		if errs.CodeOf(err) != errs.S9010 || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "BEGIN") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	synctest.Test(t, func(t *testing.T) { // it is the year 2000
		if _, err := ForService(text(a.Certificate, certificate, key), Gateway, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "is not valid before") {
			t.Errorf("too early: %v", err)
		}
	})
}

// A certificate of another CA than one's own is usable where others have that CA,
// but most likely a mistake.
func TestStrangeCA(t *testing.T) {
	certificate, key := issue(t, newCA(t), identity(Gateway))
	f := files{t, t.TempDir()}
	f.write(newCA(t).Certificate, certificate, key)
	var log logged
	if _, err := ForService(f.config(), Gateway, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if text := log.take(); !strings.Contains(text, "level=WARN") || !strings.Contains(text, "unknown authority") {
		t.Errorf("log: %s", text)
	}
}

func TestRoleOf(t *testing.T) {
	a := newCA(t)
	for uri, want := range map[string]Role{
		"spiffe://sluice/nats": NATS, "spiffe://sluice/rules-evaluator": Evaluator,
		"spiffe://sluice/": "", "spiffe://sluice/admin": "", "spiffe://sluice/x/nats": "", "spiffe://other/nats": "", "https://sluice/nats": "", "": "",
	} {
		certificate, key := issue(t, a, uri)
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		if got := roleOf(config.DefaultIdentities, pair.Leaf); got != want {
			t.Errorf("%s: %q", uri, got)
		}
		// Two URIs say two things.
		pair.Leaf.URIs = append(pair.Leaf.URIs, pair.Leaf.URIs...)
		if got := roleOf(config.DefaultIdentities, pair.Leaf); len(pair.Leaf.URIs) > 0 && got != "" {
			t.Errorf("twice %s: %q", uri, got)
		}
	}
	k := &Keeper{}
	if k.RoleOf(tls.ConnectionState{}) != "" {
		t.Error("nobody has a role")
	}
	if _, err := authority.Load([]byte("x"), nil); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("no CA: %v", err)
	}
}
