package config

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluicesync/sluice/libs/kit/errs"
)

// DefaultPath is read if nothing else is given.
const DefaultPath = "powersync.yaml"

// Options say where the config comes from (spec/06 §1). A field that is set
// beats its environment variable.
type Options struct {
	Path       string // POWERSYNC_CONFIG_PATH
	Base64     string // POWERSYNC_CONFIG_B64; beats Path
	SyncBase64 string // POWERSYNC_SYNC_CONFIG_B64: the sync config; beats the file's
	// Dir is where a relative Path starts; "" = the working directory.
	Dir string
	// Env looks up environment variables; nil = os.LookupEnv.
	Env func(string) (string, bool)
}

// Load reads the service config from the first source that is given. A bad one
// is an error with all its problems (*Error); no other is tried.
func Load(o Options) (*File, error) {
	env := o.Env
	if env == nil {
		env = os.LookupEnv
	}
	given := func(option string, names ...string) string {
		if option != "" {
			return option
		}
		for _, n := range names {
			if v, _ := env(n); v != "" {
				return v
			}
		}
		return ""
	}
	dir := o.Dir
	if dir == "" {
		var err error
		if dir, err = os.Getwd(); err != nil {
			return nil, fmt.Errorf("find the working directory: %w", err)
		}
	}
	f := source{name: "config", dir: dir, env: env}
	path := given(o.Path, "POWERSYNC_CONFIG_PATH")
	if b64 := o.Base64; b64 != "" || path == "" || o.Path == "" && given("", "POWERSYNC_CONFIG_B64") != "" {
		if b64 == "" {
			b64 = given("", "POWERSYNC_CONFIG_B64")
		}
		if b64 != "" {
			b, err := decode64(b64)
			if err != nil {
				return nil, &Error{Name: f.name, Problems: []Problem{{Code: errs.S9001, Message: "the config is not base64"}}}
			}
			f.name, f.text = "config (base64)", b
		}
	}
	if f.text == nil {
		if path == "" {
			path = DefaultPath
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, &Error{Name: path, Problems: []Problem{{Code: errs.S9001, Message: "cannot be read: " + cause(err)}}}
		}
		f.name, f.text, f.dir = path, b, filepath.Dir(path)
		switch strings.ToLower(filepath.Ext(path)) {
		case ".yaml", ".yml":
			f.form = yamlForm
		case ".json":
			f.form = jsonForm
		}
	}
	if b64 := given(o.SyncBase64, "POWERSYNC_SYNC_CONFIG_B64", "POWERSYNC_SYNC_RULES_B64"); b64 != "" {
		b, err := decode64(b64)
		if err != nil {
			return nil, &Error{Name: f.name, Problems: []Problem{{Code: errs.S9001, Message: "the sync config is not base64"}}}
		}
		text := string(b)
		f.sync = &text
	}
	return f.parse()
}

// Parse reads a config that is given as text. Relative paths in it start at dir.
func Parse(text []byte, name, dir string, env func(string) (string, bool)) (*File, error) {
	return source{name: name, text: text, dir: dir, env: env}.parse()
}

// SyncText returns the configured sync config and what to call it; ok is false
// if none is configured.
func (f *File) SyncText() (text, name string, ok bool, err error) {
	switch {
	case f.Sync == nil:
		return "", "", false, nil
	case f.Sync.Path == "":
		return f.Sync.Content, f.Name + " (sync config)", true, nil
	}
	b, err := os.ReadFile(f.Sync.Path)
	if err != nil {
		return "", f.Sync.Path, true, fmt.Errorf("read the sync config: %w", err)
	}
	return string(b), f.Sync.Path, true, nil
}

func decode64(s string) ([]byte, error) {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == ' ' || r == '\t' {
			return -1
		}
		return r
	}, s)
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(s)
	}
	if err != nil {
		return nil, err
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

// cause is a file error without the path, which the message names already.
func cause(err error) string {
	if p, ok := err.(*os.PathError); ok {
		return p.Err.Error()
	}
	return err.Error()
}
