//go:build !linux && !darwin

package bucketstore

// disk is not known here.
func disk(string) (size, free uint64, err error) { return 0, 0, nil }
