package line

import "math/bits"

// specialMask has the high bit of each byte of w that is '"', '\\' or below
// 0x20. Bytes from 0x80 on are never marked. The lowest mark is exact; higher
// ones may be wrong, so callers use only the first.
func specialMask(w uint64) uint64 {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	quote := w ^ ones*'"'
	slash := w ^ ones*'\\'
	m := (quote - ones) & ^quote
	m |= (slash - ones) & ^slash
	m |= (w - ones*0x20) & ^w
	return m & highs
}

// trailingBytes is the index of the lowest marked byte.
func trailingBytes(m uint64) int { return bits.TrailingZeros64(m) / 8 }
