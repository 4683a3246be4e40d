//go:build linux || darwin

package bucketstore

import (
	"path/filepath"
	"testing"
)

func TestDisk(t *testing.T) {
	size, free, err := disk(t.TempDir())
	if err != nil || size == 0 || free > size {
		t.Errorf("%d of %d free, %v", free, size, err)
	}
	if _, _, err := disk(filepath.Join(t.TempDir(), "nothing")); err == nil {
		t.Error("a folder that is not there has a size")
	}
}
