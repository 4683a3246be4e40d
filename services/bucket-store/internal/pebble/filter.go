package pebble

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/sluicesync/sluice/libs/model"
)

// rowFilter knows which rows of a stream were certainly never stored, so that
// an initial copy reads nothing. It begins with an empty stream and is given
// up when it is full. Row ids are hashes already, so they are used as such.
//
// One writer adds; anyone may ask.
type rowFilter struct {
	blocks [][8]atomic.Uint64 // of 512 bits, one cache line
	rows   uint64             // added; owned by the writer
	limit  uint64
}

// filterBits is the bits per row at which a filter is full.
const filterBits = 10

func newRowFilter(bytes int) *rowFilter {
	n := max(bytes/64, 1)
	return &rowFilter{blocks: make([][8]atomic.Uint64, n), limit: uint64(n) * 512 / filterBits}
}

// place returns the block of a key and eight bits in it, one a word.
func (f *rowFilter) place(k *model.RowKey) (*[8]atomic.Uint64, uint64) {
	h := binary.LittleEndian.Uint64(k.Row[:8]) ^ binary.LittleEndian.Uint64(k.Table[8:])*0x9e3779b97f4a7c15
	g := binary.LittleEndian.Uint64(k.Row[8:]) ^ binary.LittleEndian.Uint64(k.Table[:8])
	h *= 0xff51afd7ed558ccd
	h ^= h >> 32
	return &f.blocks[h%uint64(len(f.blocks))], g*0xc4ceb9fe1a85ec53 ^ g>>29
}

// add notes a row and tells whether the filter still is of use.
func (f *rowFilter) add(k *model.RowKey) bool {
	b, bits := f.place(k)
	for i := range b {
		w := uint64(1) << (bits >> (6 * i) & 63)
		if old := b[i].Load(); old&w == 0 {
			b[i].Store(old | w)
		}
	}
	f.rows++
	return f.rows <= f.limit
}

// maybe tells whether the row may have been added.
func (f *rowFilter) maybe(k *model.RowKey) bool {
	b, bits := f.place(k)
	for i := range b {
		if b[i].Load()&(uint64(1)<<(bits>>(6*i)&63)) == 0 {
			return false
		}
	}
	return true
}
