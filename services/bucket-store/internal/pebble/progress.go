package pebble

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// The file PROGRESS says how far the store had come at least. Pebble takes damage
// near the end of a log or of its list of files for the trace of a crash, and
// opens what was there before it, perhaps nothing. Then this file tells that more
// was acknowledged (TestDamage).
const progressFile = "PROGRESS"

// progressEvery is the time between two notes of commits.
const progressEvery = 10 * time.Second

// progress is a stream's, as far as it is known to be durable.
type progress struct {
	Stream model.StreamID
	Epoch  model.Epoch
	Op     model.OpID
}

// noteSoon notes the progress unless that was done lately.
func (s *Store) noteSoon() {
	if last := s.noted.Load(); time.Since(time.Unix(0, last)) < progressEvery || !s.noted.CompareAndSwap(last, time.Now().UnixNano()) {
		return
	}
	s.note()
}

// note writes the progress down. A crash on the way leaves the former note. The
// store does not depend on it.
func (s *Store) note() {
	s.notes.Lock()
	defer s.notes.Unlock()
	if err := s.writeProgress(); err != nil {
		s.options.Log.Warn("progress is not noted", "dir", s.disk.dir, "error", err)
	}
}

func (s *Store) writeProgress() error {
	var all []progress
	for _, st := range s.list() {
		all = append(all, progress{st.ID, st.Head.Epoch, st.Head.Persisted})
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	data = fmt.Appendf(data, "\n%08x\n", crc32.ChecksumIEEE(data))
	return replaceFile(s.disk, s.disk.dir, progressFile, data)
}

// replaceFile makes a file's new content durable in one step.
func replaceFile(f vfs.FS, dir, name string, data []byte) error {
	path := f.PathJoin(dir, name)
	file, err := f.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := f.Rename(path+".new", path); err != nil {
		return err
	}
	folder, err := f.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// checkProgress fails if less is there than was noted.
func (s *Store) checkProgress() error {
	f, err := s.disk.Open(s.disk.PathJoin(s.disk.dir, progressFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	data, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	text, sum, _ := strings.Cut(string(data), "\n")
	var all []progress
	if sum != fmt.Sprintf("%08x\n", crc32.ChecksumIEEE([]byte(text))) || json.Unmarshal([]byte(text), &all) != nil {
		return fmt.Errorf("file %s cannot be read: %w", progressFile, store.ErrDamaged)
	}
	streams := *s.streams.Load()
	for _, p := range all {
		st := streams[p.Stream]
		if st == nil {
			return fmt.Errorf("stream %d is gone: %w", p.Stream, store.ErrDamaged)
		}
		if h := st.head.Load(); h.Epoch < p.Epoch || h.Persisted < p.Op {
			return fmt.Errorf("stream %d is at op %s of epoch %d, it was at op %s of epoch %d: %w", p.Stream, h.Persisted, h.Epoch, p.Op, p.Epoch, store.ErrDamaged)
		}
	}
	return nil
}
