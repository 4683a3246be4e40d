//go:build linux || darwin

package bucketstore

import (
	"fmt"
	"syscall"
)

// disk returns the size of the file system that has dir, and what of it may
// still be written.
func disk(dir string) (size, free uint64, err error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, 0, fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	return s.Blocks * uint64(s.Bsize), s.Bavail * uint64(s.Bsize), nil
}
