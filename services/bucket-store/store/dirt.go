package store

import "math/bits"

// Dirt says how dirty a bucket is, by what it has of ops and of those since its
// last compaction: 0 if those are less than a tenth of its ops, which is not
// worth it yet, else the number of binary digits of their count. It grows only
// a few times until the bucket is compacted, so that an index over it costs
// commits next to nothing.
func Dirt(ops, changes uint64) int {
	if changes < ops/10 {
		return 0
	}
	return bits.Len64(changes)
}
