package pebble

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// disk is a file system on which a full disk makes writes wait, once the store is
// open: Pebble never sees it, as it would have to end the process. What was
// written is kept, what was not is written when there is space, and reads go on.
//
// A sync is not tried again: after one that failed nobody knows what is there.
type disk struct {
	vfs.FS
	dir     string
	reserve uint64
	log     *slog.Logger

	patient atomic.Bool   // false: errors are passed on
	ended   chan struct{} // closed by giveUp
	once    sync.Once

	mu      sync.Mutex
	waiting int // writes; guarded by mu
}

// diskPause is how long a write waits before it is tried again.
const diskPause = 200 * time.Millisecond

func newDisk(fs vfs.FS, dir string, reserve uint64, log *slog.Logger) *disk {
	return &disk{FS: fs, dir: dir, reserve: reserve, log: log, ended: make(chan struct{})}
}

// room returns store.ErrFull if less than the reserve is free, which is kept for
// what frees space, for writes under way and for what Pebble does by itself.
func (d *disk) room() error {
	usage, err := d.GetDiskUsage(d.dir)
	if err != nil || usage.AvailBytes >= d.reserve {
		return nil // not known on every file system: then writes wait
	}
	return fmt.Errorf("the disk of folder %s has %d MiB left, less than the %d MiB that are kept free: %w", d.dir, usage.AvailBytes>>20, d.reserve>>20, store.ErrFull)
}

// giveUp fails the writes that wait for space, and those that would. If one of them
// is to end a log, Pebble ends the process at once.
func (d *disk) giveUp() { d.once.Do(func() { close(d.ended) }) }

func (d *disk) givenUp() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// retry calls do until it does not fail of a full disk.
func (d *disk) retry(do func() error) error {
	err := do()
	if !vfs.IsNoSpaceError(err) || !d.patient.Load() {
		return err
	}
	d.wait(1)
	defer d.wait(-1)
	for vfs.IsNoSpaceError(err) {
		select {
		case <-d.ended:
			return err
		case <-time.After(diskPause):
			err = do()
		}
	}
	return err
}

// wait counts the writes that wait, and says when the first begins to and when
// the last goes on.
func (d *disk) wait(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.waiting
	d.waiting += n
	switch {
	case was == 0:
		d.log.Error("the disk is full: writes wait until there is space, reads go on", "dir", d.dir)
	case d.waiting == 0 && !d.givenUp():
		d.log.Info("writes go on", "dir", d.dir)
	}
}

// Unwrap returns the file system below.
func (d *disk) Unwrap() vfs.FS { return d.FS }

func (d *disk) file(open func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	err := d.retry(func() (err error) {
		f, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &diskFile{f, d}, nil
}

// Create waits.
func (d *disk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return d.file(func() (vfs.File, error) { return d.FS.Create(name, category) })
}

// OpenReadWrite waits.
func (d *disk) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.file(func() (vfs.File, error) { return d.FS.OpenReadWrite(name, category, opts...) })
}

// ReuseForWrite waits.
func (d *disk) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return d.file(func() (vfs.File, error) { return d.FS.ReuseForWrite(old, name, category) })
}

// Link waits.
func (d *disk) Link(old, name string) error {
	return d.retry(func() error { return d.FS.Link(old, name) })
}

// Rename waits.
func (d *disk) Rename(old, name string) error {
	return d.retry(func() error { return d.FS.Rename(old, name) })
}

// diskFile is a file whose writes wait.
type diskFile struct {
	vfs.File
	disk *disk
}

// Write waits, and goes on where the disk became full.
func (f *diskFile) Write(p []byte) (n int, err error) {
	err = f.disk.retry(func() error {
		m, err := f.File.Write(p[n:])
		n += m
		return err
	})
	return n, err
}

// WriteAt waits.
func (f *diskFile) WriteAt(p []byte, at int64) (n int, err error) {
	err = f.disk.retry(func() error {
		n, err = f.File.WriteAt(p, at)
		return err
	})
	return n, err
}

// Preallocate waits.
func (f *diskFile) Preallocate(offset, length int64) error {
	return f.disk.retry(func() error { return f.File.Preallocate(offset, length) })
}
