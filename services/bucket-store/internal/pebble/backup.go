package pebble

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/sluicesync/sluice/libs/model"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// A backup is a folder with a checkpoint of the database, and this manifest of
// it, written last: a folder without it is no backup.
const manifestFile = "BACKUP.json"

// Manifest says what a backup has.
type Manifest struct {
	Version int // 1
	Created time.Time
	Streams []BackupStream
	Files   []BackupFile
}

// BackupStream is how far a backup has a stream, at least.
type BackupStream struct {
	ID       model.StreamID
	Name     string
	State    string
	Position model.Position
	Op       model.OpID
}

// BackupFile is a file of a backup.
type BackupFile struct {
	Name   string
	Bytes  int64
	SHA256 string
}

// Bytes is the size of the backup.
func (m *Manifest) Bytes() (n int64) {
	for _, f := range m.Files {
		n += f.Bytes
	}
	return n
}

// ErrExists: a backup is to be made, or restored, where something is.
var ErrExists = errors.New("there is something already")

// Backup makes a backup in the folder dir, which must not be there. It has what
// was committed when it is called; what is committed meanwhile it may have. Reads
// and writes go on. Files that do not change any more are linked, where dir is on
// the same disk. A crash on the way leaves a folder without a manifest.
func (s *Store) Backup(dir string) (*Manifest, error) {
	m := &Manifest{Version: 1, Created: time.Now().UTC()}
	for _, st := range s.list() {
		if st.State != model.Terminated {
			m.Streams = append(m.Streams, BackupStream{st.ID, st.Name, st.State.String(), st.Head.Applied.Position, st.Head.Persisted})
		}
	}
	if err := s.disk.room(); err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("back up to %s: %w", dir, errors.Join(ErrExists, err))
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	if err := s.db.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
		return nil, fmt.Errorf("back up to %s: %w", dir, fault(err))
	}
	if err := m.describe(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("back up to %s: %w", dir, err), os.RemoveAll(dir))
	}
	return m, nil
}

// describe writes the manifest of the files in dir.
func (m *Manifest) describe(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		sum, n, err := hashFile(filepath.Join(dir, f.Name()), io.Discard)
		if err != nil {
			return err
		}
		m.Files = append(m.Files, BackupFile{f.Name(), n, sum})
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(vfs.Default, dir, manifestFile, append(data, '\n'))
}

// hashFile copies a file to w and returns its SHA-256 and size.
func hashFile(path string, w io.Writer) (sum string, n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	n, err = io.Copy(io.MultiWriter(w, h), f)
	return hex.EncodeToString(h.Sum(nil)), n, errors.Join(err, f.Close())
}

// restoreGap is by how much a restored store goes on behind what it has: numbers
// that were given out after the backup are not given out again (D2), and batches
// of that time are of an epoch that is over (D5).
const restoreGap = 1 << 32

// restoreStreams is the same for the ids of streams.
const restoreStreams = 1000

// Restore makes the folder dir, which must be empty or not be there, from the
// backup in the folder from. It is there as a whole or not at all: until then it
// is beside it, in a folder whose name ends in .restoring.
func Restore(from, dir string, o Options) (*Manifest, error) {
	data, err := os.ReadFile(filepath.Join(from, manifestFile))
	if err != nil {
		return nil, fmt.Errorf("%s is no backup: %w", from, err)
	}
	m := &Manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%s of the backup %s cannot be read: %w: %w", manifestFile, from, store.ErrDamaged, err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("the backup %s is of version %d, this program knows 1", from, m.Version)
	}
	if err := vacant(dir); err != nil {
		return nil, fmt.Errorf("restore into %s: %w", dir, err)
	}
	part := dir + ".restoring"
	if err := os.RemoveAll(part); err != nil { // of an attempt that was cut short
		return nil, fmt.Errorf("restore into %s: %w", dir, err)
	}
	if err := m.restore(from, part, o); err != nil {
		return nil, errors.Join(fmt.Errorf("restore %s into %s: %w", from, dir, err), os.RemoveAll(part))
	}
	if err := moveIn(part, dir); err != nil {
		return nil, fmt.Errorf("restore into %s: %w", dir, err)
	}
	return m, nil
}

// vacant fails with ErrExists unless the folder dir is empty or not there.
func vacant(dir string) error {
	found, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(found) == 0 {
		return nil
	}
	if err == nil {
		err = ErrExists
	}
	return err
}

// moveIn gives the folder part the name dir, which an empty folder may have.
func moveIn(part, dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(part, dir); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func (m *Manifest) restore(from, part string, o Options) error {
	if err := os.MkdirAll(part, 0o700); err != nil {
		return err
	}
	for _, f := range m.Files {
		if f.Name != filepath.Base(f.Name) || f.Name == manifestFile {
			return fmt.Errorf("file %q: %w", f.Name, store.ErrDamaged)
		}
		if err := copyFile(filepath.Join(from, f.Name), filepath.Join(part, f.Name), f); err != nil {
			return err
		}
	}
	s, err := Open(part, o)
	if err != nil {
		return err
	}
	return errors.Join(m.renumber(s), s.Close())
}

// renumber holds the store to the manifest and leaves the gaps.
func (m *Manifest) renumber(s *Store) error {
	for _, b := range m.Streams {
		st, err := s.stream(b.ID)
		if err != nil {
			return fmt.Errorf("stream %d is not in the backup: %w", b.ID, store.ErrDamaged)
		}
		if h := st.head.Load(); h.Persisted < b.Op || h.Applied.Position < b.Position {
			return fmt.Errorf("stream %d is at op %s, the manifest says %s: %w", b.ID, h.Persisted, b.Op, store.ErrDamaged)
		}
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	for id, st := range *s.streams.Load() {
		h := *st.head.Load()
		h.Persisted += restoreGap
		h.Epoch += restoreGap
		if err := batch.Set(streamKey(kindHead, id), appendHead(nil, &h), nil); err != nil {
			return err
		}
		st.head.Store(&h)
	}
	s.next += restoreStreams
	if err := batch.Set(nextKey, binary.BigEndian.AppendUint64(nil, uint64(s.next)), nil); err != nil {
		return err
	}
	return s.apply(batch, pebble.Sync)
}

func copyFile(from, to string, want BackupFile) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	sum, n, err := hashFile(from, f)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if n != want.Bytes || sum != want.SHA256 {
		return fmt.Errorf("file %s of the backup is not what was backed up: %w", want.Name, store.ErrDamaged)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
