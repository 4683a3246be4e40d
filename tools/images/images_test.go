package main

import (
	"archive/tar"
	"crypto/x509"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const root = "../.."

// one is a service that is small to build.
const one = "services/compactor/cmd/compactor"

var platform = &v1.Platform{OS: "linux", Architecture: "amd64"}

// made makes an image of one service of the tree in dir, and returns the folder
// with it and its SBOM.
func made(t *testing.T, dir string) string {
	t.Helper()
	b, err := build(dir, []string{filepath.Join(dir, one)}, platform)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(b.dir)
	ref, err := name.NewTag("sluice:test")
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if err := save(b, ref, platform, time.Time{}, filepath.Join(out, "image"), io.Discard); err != nil {
		t.Fatal(err)
	}
	return out
}

// Another folder, another moment: the same bytes.
func TestReproducible(t *testing.T) {
	elsewhere := t.TempDir()
	list := exec.Command("git", "ls-files", "-z")
	list.Dir = root
	files, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for f := range strings.SplitSeq(strings.Trim(string(files), "\x00"), "\x00") {
		from := filepath.Join(root, f)
		if s, err := os.Lstat(from); err != nil || !s.Mode().IsRegular() {
			continue // a link, or deleted
		}
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(elsewhere, f)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GOFLAGS", "-buildvcs=false") // the copy is in no repository
	a, b := made(t, root), made(t, elsewhere)
	for _, f := range []string{"image.tar", "image.spdx.json"} {
		x, err := sum(filepath.Join(a, f))
		if err != nil {
			t.Fatal(err)
		}
		y, err := sum(filepath.Join(b, f))
		if err != nil {
			t.Fatal(err)
		}
		if x != y {
			t.Errorf("%s differs", f)
		}
	}
}

// An image has the binary, certificates and an empty data folder, and nothing
// else; the SBOM names the image, the binary and its modules.
func TestContent(t *testing.T) {
	dir := made(t, root)
	img, err := tarball.ImageFromPath(filepath.Join(dir, "image.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "amd64" || config.Config.User != "65532:65532" {
		t.Errorf("config %+v", config)
	}
	var got []string
	fs := mutate.Extract(img)
	defer fs.Close()
	for r := tar.NewReader(fs); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name)
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Name {
		case "compactor":
			path := filepath.Join(t.TempDir(), "compactor")
			if err := os.WriteFile(path, b, 0o755); err != nil {
				t.Fatal(err)
			}
			// It runs, in an empty environment; what it says of a missing config is its own.
			cmd := exec.Command(path, "--config", "/nowhere.yaml")
			cmd.Env = []string{}
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "/nowhere.yaml") {
				t.Errorf("compactor: %v %s", err, out)
			}
		case "etc/ssl/certs/ca-certificates.crt":
			if p := x509.NewCertPool(); !p.AppendCertsFromPEM(b) || strings.Count(string(b), "BEGIN") < 50 {
				t.Errorf("%d bytes of certificates", len(b))
			}
		case "data", "data/":
			if h.Uid != user || h.Typeflag != tar.TypeDir {
				t.Errorf("data: %+v", h)
			}
		}
	}
	slices.Sort(got)
	for i := range got {
		got[i] = strings.TrimSuffix(got[i], "/")
	}
	if want := []string{"compactor", "data", "etc", "etc/ssl", "etc/ssl/certs", "etc/ssl/certs/ca-certificates.crt"}; !slices.Equal(got, want) {
		t.Errorf("files %q, not %q", got, want)
	}

	b, err := os.ReadFile(filepath.Join(dir, "image.spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc spdx
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	packages := map[string]spdxPackage{}
	ids := map[string]bool{"SPDXRef-DOCUMENT": true}
	for _, p := range doc.Packages {
		if ids[p.ID] {
			t.Errorf("%s is there twice", p.ID)
		}
		packages[p.Name], ids[p.ID] = p, true
	}
	for _, n := range []string{"sluice", "compactor", "stdlib", "google.golang.org/grpc", rootStore} {
		if packages[n].Version == "" {
			t.Errorf("the SBOM lacks %s, or its version", n)
		}
	}
	for _, r := range doc.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("relation of what is not there: %+v", r)
		}
	}
}

// The Dockerfile, for those who have an engine, says the same.
func TestDockerfile(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "deploy", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	_, last, ok := strings.Cut(string(b), "FROM scratch\n")
	if !ok {
		t.Fatal("it is not from scratch")
	}
	s := settings()
	cmd, err := json.Marshal(s.Cmd)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"USER " + s.User, "ENV " + s.Env[0], "VOLUME /data", "EXPOSE 8080", "CMD " + strings.ReplaceAll(string(cmd), `","`, `", "`)} {
		if !slices.Contains(strings.Split(last, "\n"), line) {
			t.Errorf("it has no line %q", line)
		}
	}
}
