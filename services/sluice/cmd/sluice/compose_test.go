package main

import (
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
)

// compose is what a compose file has that is looked at here.
type compose struct {
	Services map[string]struct {
		Environment map[string]string
		Secrets     []secret
	}
	Secrets map[string]struct{ File string }
}

// secret is one that a service is given: its name, or its name and another for the
// file.
type secret struct{ Source, Target string }

func (s *secret) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		s.Source, s.Target = n.Value, n.Value
		return nil
	}
	type plain secret
	return n.Decode((*plain)(s))
}

// TestComposeTLS: with the certificates that the file says how to make, each
// container of deploy/compose.tls.yaml is of its role, is given no other's key, and
// is found under the name by which compose.yaml has it dialled.
func TestComposeTLS(t *testing.T) {
	read := func(name string) (c compose) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("../../../../deploy", name))
		if err == nil {
			err = yaml.Unmarshal(text, &c)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plain, tls := read("compose.yaml"), read("compose.tls.yaml")
	dir := t.TempDir()
	if code, _, stderr := sluice("certificates", filepath.Join(dir, "tls")); code != 0 {
		t.Fatal(stderr)
	}
	dialled := map[string]bool{} // hosts
	for name, value := range plain.Services["rules-evaluator"].Environment {
		if host, _, err := net.SplitHostPort(value); err == nil && strings.HasSuffix(name, "_ADDRESS") {
			dialled[host] = true
		}
	}
	u, err := url.Parse(plain.Services["rules-evaluator"].Environment["SLUICE_NATS_URL"])
	if err != nil {
		t.Fatal(err)
	}
	dialled[u.Hostname()] = true
	if len(dialled) != 4 {
		t.Fatalf("compose.yaml has %v dialled", dialled)
	}
	for _, role := range certificate.Roles {
		given := map[string]string{} // path in the container → file
		for _, s := range tls.Services[string(role)].Secrets {
			given["/run/secrets/"+s.Target] = filepath.Join(dir, tls.Secrets[s.Source].File)
		}
		f, err := config.Parse([]byte("{}"), "t", "/", func(name string) (string, bool) {
			if path, ok := tls.Services[string(role)].Environment[name]; ok {
				return given[path], true
			}
			return "", false
		})
		if err != nil {
			t.Fatal(err)
		}
		k, err := certificate.ForService(f.Sluice.TLS, role, slog.New(slog.DiscardHandler))
		if err != nil || k == nil {
			t.Fatalf("%s has no TLS: %v", role, err)
		}
		if len(given) != 3 {
			t.Errorf("%s is given %v", role, given)
		}
		pair, err := k.Pair()
		if err != nil {
			t.Fatal(err)
		}
		if dialled[string(role)] && !slices.Contains(pair.Leaf.DNSNames, string(role)) {
			t.Errorf("%s is dialled, and its certificate is of %v", role, pair.Leaf.DNSNames)
		}
		delete(dialled, string(role))
		delete(plain.Services, string(role))
	}
	if len(dialled) > 0 {
		t.Errorf("%v are dialled and have no certificate", dialled)
	}
	delete(plain.Services, "postgres")
	if len(plain.Services) > 0 {
		t.Errorf("without TLS: %v", plain.Services)
	}
}
