// Command images makes the container image of Sluice without a container
// engine: what deploy/Dockerfile makes, from the same tree. All binaries are in
// one image, static, from scratch, not run as root; beside it an SPDX document
// says what they are made of.
//
//	GOWORK=off go run . -out ../../bin/images -platforms linux/amd64,linux/arm64 ../..
//
// The same tree and Go give the same bytes, wherever and whenever they are made
// (TestReproducible). SOURCE_DATE_EPOCH is the time that the image claims to be
// of; without it there is none.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	dir := flags.String("out", "bin/images", "`folder` for the images and their SBOMs")
	tag := flags.String("tag", "sluice:local", "`name:tag` that the image has when it is loaded")
	platforms := flags.String("platforms", "linux/"+runtime.GOARCH, "`list` of os/arch, with commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("usage: images [flags] TREE")
	}
	ref, err := name.NewTag(*tag)
	if err != nil {
		return fmt.Errorf("-tag: %w", err)
	}
	created, err := epoch(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	root := flags.Arg(0)
	commands, err := filepath.Glob(filepath.Join(root, "services", "*", "cmd", "*"))
	if err != nil || len(commands) == 0 {
		return fmt.Errorf("no services in %s", root)
	}
	if err := os.MkdirAll(*dir, 0o755); err != nil {
		return err
	}
	for platform := range strings.SplitSeq(*platforms, ",") {
		p, err := v1.ParsePlatform(platform)
		if err != nil {
			return fmt.Errorf("-platforms: %w", err)
		}
		path := filepath.Join(*dir, "sluice-"+strings.ReplaceAll(platform, "/", "-"))
		b, err := build(root, commands, p)
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		err = save(b, ref, p, created, path, out)
		if rerr := os.RemoveAll(b.dir); err == nil {
			err = rerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
	}
	return nil
}

// save writes path.tar and path.spdx.json and says so.
func save(b *binaries, ref name.Tag, p *v1.Platform, created time.Time, path string, out io.Writer) error {
	img, err := image(b, p, created)
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(path+".tar", ref, img); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	doc, err := sbom(b, ref, digest, created)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".spdx.json", doc, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s.tar: %s, %s\n", path, ref, digest)
	return nil
}

// epoch is the time that SOURCE_DATE_EPOCH says; the zero time if it is not set.
func epoch(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

// binaries are built in a folder, which whoever has them removes.
type binaries struct {
	dir   string
	names []string // sorted
}

// build builds commands, which are folders of root, for p.
func build(root string, commands []string, p *v1.Platform) (*binaries, error) {
	dir, err := os.MkdirTemp("", "sluice-images-")
	if err != nil {
		return nil, err
	}
	b := &binaries{dir: dir}
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}
	for _, c := range commands {
		rel, err := filepath.Rel(root, c)
		if err != nil {
			return nil, err
		}
		args = append(args, "./"+filepath.ToSlash(rel))
		b.names = append(b.names, filepath.Base(c))
	}
	slices.Sort(b.names)
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture, "GOWORK=")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("build: %w", err)
	}
	return b, nil
}
