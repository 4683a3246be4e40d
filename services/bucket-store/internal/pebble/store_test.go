package pebble

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/sluicesync/sluice/services/bucket-store/store"
	"github.com/sluicesync/sluice/services/bucket-store/store/storetest"
)

func TestStore(t *testing.T) {
	for name, o := range map[string]Options{
		"default": {},
		// Everything is evicted, given up and flushed at once.
		"tiny": {StateBytes: 1, FilterBytes: 1, CacheBytes: 1, MemTableBytes: 64 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Instance {
				if strings.HasSuffix(t.Name(), "/Broken") {
					return breakable(t, o)
				}
				dir := t.TempDir()
				s := open(t, dir, o)
				current := s
				t.Cleanup(func() {
					if err := current.Close(); err != nil {
						t.Error(err)
					}
				})
				other := filepath.Join(t.TempDir(), "copy")
				return storetest.Instance{Store: s, Small: name == "tiny", Import: func() (store.Import, func() (store.Store, error)) {
					to, err := NewImport(other, o)
					if err != nil {
						t.Fatal(err)
					}
					return to, func() (store.Store, error) {
						if _, err := os.Stat(other); err != nil {
							return nil, err
						}
						return Open(other, o)
					}
				}, Reopen: func() store.Store {
					if err := current.Close(); err != nil {
						t.Fatal(err)
					}
					current = open(t, dir, o)
					return current
				}}
			})
		})
	}
}

// breakable is a store on a disk whose power is cut when the write-ahead log is
// synced the next time: before or after that. A power cut loses all that is not
// synced.
func breakable(t *testing.T, o Options) storetest.Instance {
	disk := vfs.NewCrashableMem()
	const whole, before, after = 0, 1, 2
	var next atomic.Int32
	start := func() *Store {
		disk, o := disk, o
		o.FS = errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			default:
				return nil
			}
			if !strings.HasSuffix(op.Path, ".log") {
				return nil
			}
			cut := next.Swap(whole)
			if cut == whole {
				return nil
			}
			if cut == after {
				f, err := disk.Open(op.Path)
				if err == nil {
					err = errors.Join(f.Sync(), f.Close())
				}
				if err != nil {
					t.Error(err)
				}
			}
			return errorfs.ErrInjected
		}))
		return open(t, "store", o)
	}
	current := start()
	end := func() {
		// The store of a cut disk ends with the error that it met.
		if err := current.Close(); err != nil && !errors.Is(err, errorfs.ErrInjected) {
			t.Error(err)
		}
	}
	t.Cleanup(func() { end() })
	return storetest.Instance{Store: current, Reopen: func() store.Store {
		cut := disk.CrashClone(vfs.CrashCloneCfg{})
		next.Store(whole)
		end()
		disk = cut
		current = start()
		return current
	}, Break: func(persisted bool) {
		next.Store(before)
		if persisted {
			next.Store(after)
		}
	}}
}
