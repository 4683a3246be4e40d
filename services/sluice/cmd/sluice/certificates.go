package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluicesync/sluice/libs/kit/authority"
	"github.com/sluicesync/sluice/libs/kit/certificate"
	"github.com/sluicesync/sluice/libs/kit/config"
)

type certificatesCmd struct {
	Folder     string   `arg:"" optional:"" default:"certificates" help:"Where they are; the CA that is there is used again."`
	Name       []string `short:"n" placeholder:"NAME" help:"Host or address under which services are found, besides localhost and their own names. May be given several times."`
	Days       int      `default:"90" help:"How long they are valid; the CA is for ten years."`
	Identities string   `default:"${identities}" help:"What stands before the role in their URIs (sluice.tls.identities)."`
	NewCA      bool     `name:"new-ca" help:"Only make a new CA and put it before the old one: the next time it signs."`
}

// caValid is how long a CA is.
const caValid = 10 * 365 * 24 * time.Hour

func (c *certificatesCmd) Run(_ *cli, t terminal) error {
	if c.Days < 1 {
		return errors.New("--days must be at least 1")
	}
	if err := os.MkdirAll(c.Folder, 0o700); err != nil {
		return fmt.Errorf("make the folder: %w", err)
	}
	ca, err := c.authority(t)
	if err != nil || c.NewCA {
		return err
	}
	for _, r := range certificate.Roles {
		names := append([]string{"localhost", "127.0.0.1", "::1", string(r)}, c.Name...)
		text, key, err := ca.Issue(certificate.Identity(c.Identities, r), names, time.Duration(c.Days)*24*time.Hour)
		if err != nil {
			return err
		}
		if err := errors.Join(c.write(string(r)+"-key.pem", key), c.write(string(r)+".pem", text)); err != nil {
			return err
		}
	}
	folder, err := filepath.Abs(c.Folder)
	if err != nil {
		return fmt.Errorf("find the folder: %w", err)
	}
	fmt.Fprintf(t.out, "# Certificates of all roles for %d days, for trying out: whoever has ca-key.pem can make more.\nsluice:\n  tls:\n    ca: %s\n", c.Days, filepath.Join(folder, "ca.pem"))
	if c.Identities != config.DefaultIdentities {
		fmt.Fprintf(t.out, "    identities: %s\n", c.Identities)
	}
	for _, r := range certificate.Roles {
		section := strings.TrimPrefix(strings.ReplaceAll(string(r), "-", "_"), "sync_")
		fmt.Fprintf(t.out, "    %s: {certificate: %s, key: %s}\n", section, filepath.Join(folder, string(r)+".pem"), filepath.Join(folder, string(r)+"-key.pem"))
	}
	return nil
}

// authority is the CA of the folder. It makes one where there is none, and a new
// one if told to, which others trust together with the old one.
func (c *certificatesCmd) authority(t terminal) (*authority.Authority, error) {
	old, err := os.ReadFile(filepath.Join(c.Folder, "ca.pem"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	if err == nil && !c.NewCA {
		key, err := os.ReadFile(filepath.Join(c.Folder, "ca-key.pem"))
		if err != nil {
			return nil, fmt.Errorf("read the CA's key: %w", err)
		}
		return authority.Load(old, key)
	}
	ca, err := authority.New("Sluice "+time.Now().UTC().Format(time.DateTime), caValid)
	if err != nil {
		return nil, err
	}
	if len(old) > 0 {
		fmt.Fprintln(t.out, "ca.pem has a new CA before the old one. When every service has read it, make certificates anew; when every service has those, take the last one out of ca.pem.")
	}
	return ca, errors.Join(c.write("ca-key.pem", ca.Key), c.write("ca.pem", append(ca.Certificate, old...)))
}

// write replaces a file as a whole: services may be reading it.
func (c *certificatesCmd) write(name string, text []byte) error {
	f, err := os.CreateTemp(c.Folder, "."+name+".*") // for the owner alone
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(c.Folder, name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(f.Name()))
	}
	return nil
}
