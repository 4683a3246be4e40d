package pebble

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// TestBackup makes backups while transactions are committed: each has all of
// those before it and whole ones only, and a restored one goes on with numbers
// that were never given out (D2, D3, D5).
func TestBackup(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "store"), Options{MemTableBytes: 64 << 10})
	l, err := begin(s)
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := make(chan int, 1) // the newest transaction
	acknowledged <- 0
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := addTransaction(s, l, 1, n); err != nil {
				done <- err
				return
			}
			<-acknowledged
			acknowledged <- n
		}
	}()
	before := make([]int, 3)
	var manifest *Manifest
	for i := range before {
		for before[i] < 100*(i+1) {
			before[i] = <-acknowledged
			acknowledged <- before[i]
		}
		if manifest, err = s.Backup(filepath.Join(dir, "backups", string(rune('a'+i)))); err != nil {
			t.Fatal(err)
		}
	}
	if len(manifest.Streams) != 1 || manifest.Streams[0].State != "PROCESSING" && manifest.Streams[0].State != "ACTIVE" || manifest.Bytes() == 0 {
		t.Errorf("manifest %+v", manifest)
	}
	if _, err := s.Backup(filepath.Join(dir, "backups", "a")); !errors.Is(err, ErrExists) {
		t.Errorf("a backup over another: %v", err)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	newest, err := s.Head(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(filepath.Join(dir, "backups", "a"), filepath.Join(dir, "store"), Options{}); !errors.Is(err, ErrExists) {
		t.Errorf("restored over a store: %v", err)
	}
	for i := range before {
		name := string(rune('a' + i))
		to := filepath.Join(dir, "restored "+name)
		if i == 0 { // a folder that is there, empty; and the rest of an attempt
			for _, d := range []string{to, to + ".restoring/x"} {
				if err := os.MkdirAll(d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := Restore(filepath.Join(dir, "backups", name), to, Options{}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(to + ".restoring"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("something is left of the restore: %v", err)
		}
		s := open(t, to, Options{})
		n := applied(t, s)
		if n < before[i] || i+1 < len(before) && n > before[i+1] {
			t.Errorf("backup %s has %d transactions, there were %d before it", name, n, before[i])
		}
		if _, err := history(s); err != nil {
			t.Error(err)
		}
		head, err := s.Head(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		if head.Persisted <= newest.Persisted || head.Epoch <= newest.Epoch {
			t.Errorf("D2: the restored head is %+v, the newest before was %+v", head, newest)
		}
		// A writer of before the restore is fenced.
		var fenced *store.FencedError
		if err := s.Commit(t.Context(), &ledger.Commit{Stream: 1, Previous: head.Applied, PreviousOp: head.Persisted, Head: newest}); !errors.As(err, &fenced) {
			t.Errorf("D5: a commit of before the restore: %v", err)
		}
		l := reload(t, s)
		if err := addTransaction(s, l, 1, n+1); err != nil {
			t.Fatal(err)
		}
		if got, err := history(s); err != nil || got != n+1 {
			t.Errorf("after another transaction: %d %v", got, err)
		}
		for range 2 {
			made, err := s.Change(t.Context(), func([]model.Stream) store.Change { return store.Change{New: &model.Stream{State: model.Processing}} })
			if err != nil || made.ID <= 1+restoreStreams {
				t.Errorf("D2: a stream made after the restore is %+v %v", made, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, to, Options{})
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBadBackup: a backup that is not what was made is refused, and leaves
// nothing.
func TestBadBackup(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "store"), Options{})
	l, err := begin(s)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 20; n++ {
		if err := addTransaction(s, l, 1, n); err != nil {
			t.Fatal(err)
		}
	}
	backup := filepath.Join(dir, "backup")
	if _, err := s.Backup(backup); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(backup, manifestFile)
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	largest := m.Files[0]
	for _, f := range m.Files {
		if f.Bytes > largest.Bytes {
			largest = f
		}
	}
	file := filepath.Join(backup, largest.Name)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := append([]byte(nil), data...)
	changed[len(changed)/2] ^= 1
	write := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		name        string
		spoil, mend func()
		damaged     bool
	}{
		{"a bit is flipped", func() { write(file, changed) }, func() { write(file, data) }, true},
		{"the end is cut off", func() { write(file, data[:len(data)-1]) }, func() { write(file, data) }, true},
		{"a file is gone", func() { os.Remove(file) }, func() { write(file, data) }, false},
		{"the manifest is gone", func() { os.Remove(manifest) }, func() { write(manifest, text) }, false},
		{"the manifest is cut off", func() { write(manifest, text[:len(text)/2]) }, func() { write(manifest, text) }, true},
		{"of another version", func() { write(manifest, []byte(strings.Replace(string(text), `"Version": 1`, `"Version": 9`, 1))) }, func() { write(manifest, text) }, false},
		{"of more than there is", func() { write(manifest, []byte(strings.Replace(string(text), `"Op": `, `"Op": 9`, 1))) }, func() { write(manifest, text) }, true},
		{"of files elsewhere", func() {
			write(manifest, []byte(strings.Replace(string(text), `"Name": "`+largest.Name, `"Name": "../store/`+largest.Name, 1)))
		}, func() { write(manifest, text) }, true},
	} {
		x.spoil()
		_, err := Restore(backup, filepath.Join(dir, "restored"), Options{})
		if err == nil || errors.Is(err, store.ErrDamaged) != x.damaged {
			t.Errorf("%s: %v", x.name, err)
		}
		x.mend()
		if left, err := filepath.Glob(filepath.Join(dir, "restored*")); err != nil || left != nil {
			t.Errorf("%s: %v is left %v", x.name, left, err)
		}
	}
	if _, err := Restore(backup, filepath.Join(dir, "restored"), Options{}); err != nil {
		t.Errorf("a backup mended: %v", err)
	}
}
