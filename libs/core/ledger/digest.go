package ledger

import (
	"math/bits"

	"github.com/sluicesync/sluice/libs/model"
)

// digestOf is a digest of what a row is put as: of puts in any order, 0 of none. By
// chance two versions of a row do not have the same: it has 64 bits, and the ops'
// checksums in them. Who makes two that do deceives nobody but who reads that row.
// It is stored, so it stays what it is (TestDigest).
func digestOf(puts []model.Put) uint64 {
	if len(puts) == 0 {
		return 0
	}
	var all, data uint64
	for i := range puts {
		p := &puts[i]
		if i == 0 || p.Data != puts[i-1].Data {
			data = digest(0, p.Data)
		}
		all += digest(digest(digest(mix(data, uint64(p.Checksum)), p.Bucket), p.ObjectType), p.ObjectID)
	}
	return max(all, 1)
}

// mix is the step of wyhash: both halves of a product.
func mix(h, w uint64) uint64 {
	high, low := bits.Mul64(h^0x9e3779b97f4a7c15, w^0xd6e8feb86659fd93)
	return high ^ low
}

func digest(h uint64, s string) uint64 {
	h = mix(h, uint64(len(s)))
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := s[i : i+8]
		h = mix(h, uint64(w[0])|uint64(w[1])<<8|uint64(w[2])<<16|uint64(w[3])<<24|uint64(w[4])<<32|uint64(w[5])<<40|uint64(w[6])<<48|uint64(w[7])<<56)
	}
	var w uint64
	for ; i < len(s); i++ {
		w = w<<8 | uint64(s[i])
	}
	return mix(h, w)
}
