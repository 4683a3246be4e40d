package pebble

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/sluicesync/sluice/libs/core/ledger"
	"github.com/sluicesync/sluice/services/bucket-store/store"
)

// smallDisk is a disk that may be full: a write then stores half of its bytes.
// What is left of it is known if left is not negative.
type smallDisk struct {
	vfs.FS
	full  atomic.Bool
	wrote atomic.Int64 // attempts while it was full
	left  atomic.Int64
}

func (d *smallDisk) err() error {
	if d.full.Load() {
		d.wrote.Add(1)
		return fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return nil
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	if n := d.left.Load(); n >= 0 {
		return vfs.DiskUsage{AvailBytes: uint64(n)}, nil
	}
	return vfs.DiskUsage{}, vfs.ErrUnsupported
}

func (d *smallDisk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := d.err(); err != nil {
		return nil, err
	}
	f, err := d.FS.Create(name, c)
	return &smallFile{f, d}, err
}

func (d *smallDisk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.ReuseForWrite(old, name, c)
	return &smallFile{f, d}, err
}

type smallFile struct {
	vfs.File
	disk *smallDisk
}

func (f *smallFile) Write(p []byte) (int, error) {
	if err := f.disk.err(); err != nil {
		n, werr := f.File.Write(p[:len(p)/2])
		return n, errors.Join(err, werr)
	}
	return f.File.Write(p)
}

// TestFullDisk: on a full disk commits wait or are refused, reads go on, and
// when there is space nothing is lost and nothing is there twice (D3).
func TestFullDisk(t *testing.T) {
	memory := vfs.NewCrashableMem()
	fs := &smallDisk{FS: memory}
	fs.left.Store(-1)
	var log bytes.Buffer
	s := open(t, "store", Options{FS: fs, MemTableBytes: 64 << 10, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))})
	l, err := begin(s)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	add := func() error {
		if err := addTransaction(s, l, 1, n+1); err != nil {
			return err
		}
		n++
		return nil
	}
	for range 100 {
		if err := add(); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		fs.full.Store(true)
		tried := fs.wrote.Load()
		done := make(chan error, 1)
		go func() {
			for range 300 { // enough to flush
				if err := add(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		for fs.wrote.Load() < tried+3 { // it waits, and tries again
			time.Sleep(time.Millisecond)
		}
		before := applied(t, s)
		head, err := s.Head(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		visible(t, s, before, head.Checkpoint.Op)
		select {
		case err := <-done:
			t.Fatalf("round %d: commits on a full disk: %v", round, err)
		default:
		}
		// A crash now leaves what was acknowledged.
		crashed := open(t, "store", Options{FS: memory.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(1, uint64(round)))})})
		if got := applied(t, crashed); got < before || got > before+1 {
			t.Errorf("D3: after a crash on a full disk %d transactions are there, %d were acknowledged", got, before)
		} else {
			consistent(t, crashed, got)
		}
		if err := crashed.Close(); err != nil {
			t.Error(err)
		}
		fs.full.Store(false)
		if err := <-done; err != nil {
			t.Fatalf("round %d: after there was space: %v", round, err)
		}
		consistent(t, s, n)
	}
	if text := log.String(); !strings.Contains(text, "the disk is full") || !strings.Contains(text, "dir=store") {
		t.Errorf("log: %s", text)
	}

	// Near the end of the disk there are errors at once.
	fs.left.Store(128<<10 - 1)
	if err := add(); !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "folder store") {
		t.Errorf("commit on a disk nearly full: %v", err)
	}
	if _, err := s.CreateWriteCheckpoints(t.Context(), "", []store.WriteCheckpointRequest{{UserKey: "u"}}); !errors.Is(err, store.ErrFull) {
		t.Errorf("write checkpoint on a disk nearly full: %v", err)
	}
	consistent(t, s, n)
	// What frees space is let.
	if _, err := s.Replace(t.Context(), 1, store.Replacement{Bucket: "all", Checkpoint: l.Head().Checkpoint.Op, Finished: true}); err != nil {
		t.Errorf("compaction on a disk nearly full: %v", err)
	}
	if _, err := Open("other", Options{FS: fs, MemTableBytes: 64 << 10}); !errors.Is(err, store.ErrFull) {
		t.Errorf("open on a disk nearly full: %v", err)
	}
	fs.left.Store(128 << 10)
	l = reload(t, s)
	if err := add(); err != nil {
		t.Errorf("commit after there was space: %v", err)
	}

	// The end of the process does not wait for space.
	fs.left.Store(-1)
	if err := s.db.Flush(); err != nil { // the next write begins no log
		t.Fatal(err)
	}
	fs.full.Store(true)
	tried := fs.wrote.Load()
	done := make(chan error, 1)
	go func() { done <- addTransaction(s, l, 1, n+1) }()
	for fs.wrote.Load() == tried {
		time.Sleep(time.Millisecond)
	}
	s.GiveUp()
	if err := <-done; !errors.Is(err, store.ErrFull) {
		t.Errorf("a commit given up: %v", err)
	}
	if err := s.Close(); err == nil {
		t.Error("a store with a write given up is closed without an error")
	}
	s = open(t, "store", Options{FS: memory.CrashClone(vfs.CrashCloneCfg{})})
	if got := applied(t, s); got != n {
		t.Errorf("D3: %d transactions are there, %d were acknowledged", got, n)
	}
	consistent(t, s, n)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// reload is the ledger of stream 1 after a commit that failed.
func reload(t *testing.T, s *Store) *ledger.Ledger {
	t.Helper()
	l, err := begin(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
